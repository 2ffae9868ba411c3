//! How a pool shares its work with a pool of prefill engines.

use super::PoolConfig;
use super::reader::{Reader, text};
use crate::json::Value;
use std::ops::RangeInclusive;

/// A transfer costs about a round trip and a second request in the queue; below this an engine that
/// decodes computes the prompt as fast itself. Not tuned.
const MIN_UNCACHED_TOKENS: u64 = 256;
/// The longest prompts of common models take about a minute.
const TIMEOUT_MS: u64 = 120_000;
const MAX_PENDING: u64 = 1024;
const PORT: RangeInclusive<u64> = 1..=65_535;
/// The port in the examples of vLLM's connector.
const P2P_NCCL_PORT: u64 = 21_001;
/// The default of vLLM's Mooncake connector and of SGLang.
const BOOTSTRAP_PORT: u64 = 8998;

/// Prefill by another pool's engines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disaggregation {
    /// Name of the pool that prefills.
    pub prefill_pool: String,
    /// Its position in the config.
    pub prefill: usize,
    /// How the engines hand over what they computed.
    pub connector: Connector,
    /// Fewest tokens of a prompt that are worth a transfer.
    pub min_uncached_tokens: u64,
    /// How long a prefill may take.
    pub timeout_ms: u64,
    /// Most calls that requests wait for in one worker.
    pub max_pending: usize,
}

/// How engines hand over the keys and values of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connector {
    /// vLLM's `NixlConnector`: the answer of the prefill engine says where they are.
    Nixl,
    /// vLLM's `P2pNcclConnector`: the request id says who sends them to whom.
    P2pNccl {
        /// Port of an engine's side channel that no label names.
        port: u16,
    },
    /// vLLM's `MooncakeConnector`: both engines work at the same time and find each other.
    Mooncake {
        /// Port of a prefill engine's bootstrap server that no label names.
        bootstrap_port: u16,
    },
    /// SGLang: the same by a room of the prefill engine's bootstrap server.
    Sglang {
        /// As for Mooncake.
        bootstrap_port: u16,
    },
}

impl Connector {
    /// The name in configs.
    pub fn name(self) -> &'static str {
        match self {
            Connector::Nixl => "nixl",
            Connector::P2pNccl { .. } => "p2p_nccl",
            Connector::Mooncake { .. } => "mooncake",
            Connector::Sglang { .. } => "sglang",
        }
    }

    /// Whether an engine that decodes also serves a request that nobody has prefilled. One of
    /// `P2pNcclConnector` ends when the request id names nobody, one of SGLang answers 400.
    pub fn decodes_alone(self) -> bool {
        matches!(self, Connector::Nixl | Connector::Mooncake { .. })
    }

    /// Whether both engines work at the same time.
    pub fn is_concurrent(self) -> bool {
        matches!(self, Connector::Mooncake { .. } | Connector::Sglang { .. })
    }
}

pub(super) fn disaggregation(
    reader: &mut Reader,
    path: &str,
    value: &Value,
) -> Option<Disaggregation> {
    let mut fields = reader.object(path, value)?;
    let prefill_pool = fields.required(reader, "prefill_pool", text);
    let connector = fields.required(reader, "connector", connector);
    let tokens = 0..=10_000_000;
    let min_uncached_tokens =
        fields.count(reader, "min_uncached_tokens", tokens, MIN_UNCACHED_TOKENS);
    let timeout_ms = fields.count(reader, "timeout_ms", 10..=3_600_000, TIMEOUT_MS);
    let max_pending = fields.count(reader, "max_pending", 1..=65_536, MAX_PENDING) as usize;
    fields.finish(reader);
    Some(Disaggregation {
        prefill_pool: prefill_pool?,
        prefill: 0,
        connector: connector?,
        min_uncached_tokens,
        timeout_ms,
        max_pending,
    })
}

fn connector(reader: &mut Reader, path: &str, value: &Value) -> Option<Connector> {
    let kinds = ["nixl", "p2p_nccl", "mooncake", "sglang"];
    let (kind, options) = reader.tagged(path, value, &kinds)?;
    let empty = Value::Object(Default::default());
    let options = if options.is_null() { &empty } else { options };
    let mut fields = reader.object(&format!("{path}.{kind}"), options)?;
    let connector = match kind {
        "nixl" => Connector::Nixl,
        "p2p_nccl" => Connector::P2pNccl {
            port: fields.count(reader, "port", PORT, P2P_NCCL_PORT) as u16,
        },
        "mooncake" => Connector::Mooncake {
            bootstrap_port: fields.count(reader, "bootstrap_port", PORT, BOOTSTRAP_PORT) as u16,
        },
        _ => Connector::Sglang {
            bootstrap_port: fields.count(reader, "bootstrap_port", PORT, BOOTSTRAP_PORT) as u16,
        },
    };
    fields.finish(reader);
    Some(connector)
}

/// Finds the pools that prefill, and checks what may be said of them.
pub(super) fn resolve(reader: &mut Reader, pools: &mut [PoolConfig]) {
    for index in 0..pools.len() {
        let name = |pool: &PoolConfig| {
            let options = pool.disaggregation.as_ref();
            options.map(|options| options.prefill_pool.clone())
        };
        let Some(wanted) = pools.get(index).and_then(name) else {
            continue;
        };
        let path = format!("config.pools[{index}].disaggregation.prefill_pool");
        let prefill = pools.iter().position(|pool| pool.name == wanted);
        let Some(prefill) = prefill.filter(|prefill| *prefill != index) else {
            reader.error(&path, &wanted.into(), "the name of another pool");
            continue;
        };
        if let Some(pool) = pools.get_mut(prefill) {
            pool.prefills = true;
            let path = format!("config.pools[{prefill}]");
            if pool.disaggregation.is_some() {
                let want = "nothing: the pool prefills for another";
                reader.error(
                    &format!("{path}.disaggregation"),
                    &wanted.clone().into(),
                    want,
                );
            }
            if !pool.served_names().is_empty() || pool.discover_models {
                let want = "nothing: the pool prefills for another, which has the models";
                reader.error(&format!("{path}.models"), &wanted.into(), want);
            }
        }
        let options = pools
            .get_mut(index)
            .and_then(|pool| pool.disaggregation.as_mut());
        if let Some(options) = options {
            options.prefill = prefill;
        }
    }
}
