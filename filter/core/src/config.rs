//! The plugin configuration: JSON in, a validated [`Config`] out, or every error at once.
//!
//! Nothing is left to interpret afterwards: names are resolved to positions, addresses are parsed,
//! defaults are filled in. Unknown fields are refused. The shape and every default are described
//! for users in docs/configuration.md, which a test holds against this module.

mod admission;
mod checks;
mod disaggregation;
mod endpoints;
mod fleet;
mod headers;
mod kv_aware;
mod limits;
mod policy;
mod pool;
mod reader;
mod status;
mod sync;

pub use disaggregation::{Connector, Disaggregation};
pub use endpoints::EndpointConfig;
pub use fleet::{Polling, ScrapeOptions};
pub use headers::HeaderNames;
pub use kv_aware::{IndexKind, IndexOptions, KvAwareOptions};
pub use limits::Limits;
pub use policy::PolicyConfig;
pub use pool::PoolConfig;
pub use reader::ConfigError;
pub use status::StatusOptions;
pub use sync::SyncOptions;

use crate::feedback::FeedbackOptions;
use crate::fitness::HealthOptions;
use crate::json::Value;
use crate::prefix::table::{SET_BYTES, SLOT_BYTES};
use crate::session::KeySource;
use checks::{check_pools, check_sources};
use headers::{headers, key_source};
use limits::{TABLE_RANGE, limits};
use pool::pool;
use reader::{Reader, list, text};

/// Most pools in one config; each is a label value of the metrics.
pub const MAX_POOLS: usize = 64;
/// Most endpoints in one config.
pub const MAX_ENDPOINTS: usize = 1024;
/// Most model names and aliases of one pool.
pub const MAX_MODELS: usize = 1024;
/// Most labels of one endpoint.
pub const MAX_LABELS: usize = 16;
/// Most bytes of a label's value, and of a role.
pub const MAX_LABEL_BYTES: usize = 256;

/// Tokens of KV capacity for each entry of the table: a stored link stands for many chunks of a long
/// prompt and for one of a short prompt.
const TOKENS_PER_ENTRY: u64 = 200;

/// A validated configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Hash of its text: tells one config of a process from the next.
    pub hash: u64,
    /// Pools in the order of the config; at least one.
    pub pools: Vec<PoolConfig>,
    /// Position of the pool for requests whose model is not known.
    pub default_pool: Option<usize>,
    /// Where a session key may be found, best first.
    pub session_key: Vec<KeySource>,
    /// Header names.
    pub headers: HeaderNames,
    /// How Envoy is told of decisions that need the body.
    pub steer_by: SteerBy,
    /// Bounds.
    pub limits: Limits,
    /// How Envoy is asked for its endpoints and their health, if it is.
    pub discovery: Option<Polling>,
    /// How the engines are scraped, if they are.
    pub scrape: Option<ScrapeOptions>,
    /// How failures are taken.
    pub health: HealthOptions,
    /// What is read of the engines' answers.
    pub feedback: FeedbackOptions,
    /// Whether responses tell who answered and why.
    pub debug_headers: bool,
    /// The status page, if it is served.
    pub status: Option<StatusOptions>,
    /// How the Envoys of a fleet tell each other what they learn, if they do.
    pub sync: Option<SyncOptions>,
}

/// How Envoy is told of decisions that need the body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SteerBy {
    /// By the request's headers, which the filter holds until it has decided.
    #[default]
    Headers,
    /// By the stream's filter state; other filters hold the headers and set them from it.
    FilterState,
}

impl Config {
    /// Parses and checks a configuration.
    ///
    /// # Errors
    /// Every mistake found, in the order of the document.
    pub fn parse(json: &[u8]) -> Result<Config, Vec<ConfigError>> {
        let value = match Value::read(json) {
            Ok(value) => value,
            Err(error) => {
                return Err(vec![ConfigError {
                    path: "config".to_owned(),
                    got: error.to_string(),
                    want: "JSON".to_owned(),
                }]);
            }
        };
        let mut reader = Reader::default();
        let config = root(&mut reader, &value);
        match config {
            Some(config) if reader.errors.is_empty() => Ok(Config {
                hash: crate::hash::hash(json),
                ..config
            }),
            _ => Err(reader.errors),
        }
    }
}

impl Config {
    /// Envoy's cluster for calls to one engine, and the header that names the engine to it: those of the
    /// scrapes, also where nothing is scraped.
    pub fn engine_calls(&self) -> (String, String) {
        let scrape = self.scrape.clone();
        let scrape = scrape.unwrap_or_else(fleet::default_scrape);
        (scrape.polling.cluster, scrape.header)
    }

    /// Size of the prefix table of one worker before any engine has said a word: as configured, else
    /// that [for](Config::table_bytes_for) the KV capacity of all listed endpoints of pools that look
    /// at prompts. 0 if there is no such pool.
    pub fn prefix_table_bytes(&self) -> usize {
        let tokens = self.pools.iter().filter_map(|pool| {
            let kv_tokens = pool.kv_tokens()?;
            Some(kv_tokens.saturating_mul(pool.listed_ranks() as u64))
        });
        let tokens = tokens.reduce(u64::saturating_add);
        tokens.map_or(0, |tokens| self.table_bytes_for(tokens))
    }

    /// Size of the prefix table for engines with so many tokens of KV capacity in all: as configured,
    /// else one entry of 22 bytes for each [`TOKENS_PER_ENTRY`] of them, rounded up to a power of two
    /// of 176-byte sets.
    pub fn table_bytes_for(&self, tokens: u64) -> usize {
        let sets = (tokens / TOKENS_PER_ENTRY)
            .saturating_mul(SLOT_BYTES as u64)
            .div_ceil(SET_BYTES as u64);
        let sets = sets.min(*TABLE_RANGE.end()).next_power_of_two();
        let bytes = sets.saturating_mul(SET_BYTES as u64);
        let bounded = bytes.clamp(*TABLE_RANGE.start(), *TABLE_RANGE.end());
        self.limits.prefix_table_bytes.unwrap_or(bounded as usize)
    }
}

fn root(reader: &mut Reader, value: &Value) -> Option<Config> {
    let mut fields = reader.object("config", value)?;
    let pools = fields.required(reader, "pools", |reader, path, value| {
        list(reader, path, value, 1..=MAX_POOLS, pool)
    });
    let default_pool = fields.optional(reader, "default_pool", text);
    let session_key = fields
        .optional(reader, "session_key", |reader, path, value| {
            list(reader, path, value, 0..=16, key_source)
        })
        .unwrap_or_else(KeySource::defaults);
    let headers = fields
        .optional(reader, "headers", headers)
        .unwrap_or_default();
    let steer_by = fields
        .optional(reader, "steer_by", steer_by)
        .unwrap_or_default();
    let limits = fields
        .optional(reader, "limits", limits)
        .unwrap_or_default();
    let discovery = fields
        .optional(reader, "discovery", fleet::discovery)
        .unwrap_or_else(|| Some(fleet::default_discovery()));
    let scrape = fields
        .optional(reader, "scrape", fleet::scrape)
        .unwrap_or_else(|| Some(fleet::default_scrape()));
    let health = fields
        .optional(reader, "health", fleet::health)
        .unwrap_or_default();
    let feedback = fields
        .optional(reader, "feedback", fleet::feedback)
        .unwrap_or_default();
    if feedback.orca && scrape.is_none() {
        let want = "false, because `scrape` is off";
        reader.error("config.feedback.orca", &true.into(), want);
    }
    let debug_headers = fields.flag(reader, "debug_headers", false);
    let status = fields.optional(reader, "status", status::status);
    let sync = fields.optional(reader, "sync", sync::sync);
    // For editors, which look there for config.schema.json.
    fields.optional(reader, "$schema", text);
    fields.finish(reader);
    let mut pools = pools?;
    disaggregation::resolve(reader, &mut pools);
    check_pools(reader, &pools);
    check_sources(reader, &pools, discovery.is_some(), scrape.is_some());
    let default_pool = match default_pool {
        None => {
            let mut serving = pools.iter().enumerate().filter(|(_, pool)| !pool.prefills);
            let first = serving.next().map(|(index, _)| index);
            first.filter(|_| serving.next().is_none())
        }
        Some(name) => {
            let serves = |pool: &PoolConfig| pool.name == name && !pool.prefills;
            let found = pools.iter().position(serves);
            if found.is_none() {
                let want = match pools.iter().any(|pool| pool.name == name) {
                    true => "a pool that does not prefill for another",
                    false => "the name of a pool",
                };
                reader.error("config.default_pool", &name.into(), want);
            }
            found
        }
    };
    Some(Config {
        hash: 0,
        pools,
        default_pool,
        session_key,
        headers,
        steer_by,
        limits,
        discovery,
        scrape,
        health,
        feedback,
        debug_headers,
        status,
        sync,
    })
}

fn steer_by(reader: &mut Reader, path: &str, value: &Value) -> Option<SteerBy> {
    let (kind, value) = reader.tagged(path, value, &["headers", "filter_state"])?;
    reader.no_options(&format!("{path}.{kind}"), value);
    Some(match kind {
        "headers" => SteerBy::Headers,
        _ => SteerBy::FilterState,
    })
}

#[cfg(test)]
mod tests;
