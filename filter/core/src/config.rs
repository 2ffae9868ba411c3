//! The plugin configuration: JSON in, a validated [`Config`] out, or every error at once.
//!
//! Nothing is left to interpret afterwards: names are resolved to positions, addresses are parsed,
//! defaults are filled in. Unknown fields are refused. The shape and every default are described
//! for users in docs/configuration.md, which a test holds against this module.

mod admission;
mod disaggregation;
mod endpoints;
mod fleet;
mod kv_aware;
mod pool;
mod reader;
mod status;
mod sync;

pub use disaggregation::{Connector, Disaggregation};
pub use endpoints::EndpointConfig;
pub use fleet::{Polling, ScrapeOptions};
pub use kv_aware::{IndexKind, IndexOptions, KvAwareOptions};
pub use pool::{PolicyConfig, PoolConfig};
pub use reader::ConfigError;
pub use status::StatusOptions;
pub use sync::SyncOptions;

use crate::feedback::FeedbackOptions;
use crate::fitness::HealthOptions;
use crate::json::Value;
use crate::prefix::table::{MOST_BYTES, SET_BYTES, SLOT_BYTES};
use crate::session::KeySource;
use crate::workers::MAX_WORKERS;
use pool::pool;
use reader::{Fields, Reader, list, text};
use std::ops::RangeInclusive;

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

/// Half of Envoy's default buffer limit of 1 MiB: body callbacks have been seen to grow by more
/// than 0.5 MiB at a time, and what is held beyond the limit is answered 413 by Envoy.
const HOLD_BYTES: u64 = 512 * 1024;
/// Twenty missed heartbeats: a worker that only stalls keeps its column.
const WORKER_EXPIRY_MS: u64 = 10_000;
/// More than the hardware threads of any machine, twice over for a config change.
const WORKERS: u64 = 256;
/// From the smallest useful table to a share of the 1 GiB that Envoy grants a VM.
const TABLE_RANGE: RangeInclusive<u64> = 64 * 1024..=MOST_BYTES as u64;
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

/// Names of the headers that are read and set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderNames {
    /// Ranked `ip:port` list for Envoy's `override_host` policy.
    pub destination: String,
    /// The upstream cluster, for routes with `cluster_header`.
    pub cluster: String,
    /// A client's choice of pool where the model does not decide.
    pub pool: String,
    /// Whether a request may be refused first.
    pub priority: String,
    /// Where a request id may be found, best first; for logs.
    pub request_id: Vec<String>,
}

/// Bounds of what a request or a worker may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most body bytes that are held and read before a decision.
    pub hold_bytes: usize,
    /// Age of the last heartbeat at which a worker counts as dead.
    pub worker_expiry_ms: u64,
    /// Most workers whose load is shared.
    pub workers: usize,
    /// Size of the prefix table of one worker; `None`: by the KV capacity of the engines.
    pub prefix_table_bytes: Option<usize>,
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

/// Checks what no pool can see alone: names that must be unique, and sums that are bounded.
fn check_pools(reader: &mut Reader, pools: &[PoolConfig]) {
    let mut any_model = None;
    let mut endpoints = 0;
    for (index, pool) in pools.iter().enumerate() {
        let path = format!("config.pools[{index}]");
        let earlier = || pools.iter().take(index);
        endpoints += pool.listed_ranks();
        check_ranks(reader, &path, pool, earlier());
        if earlier().any(|other| other.name == pool.name) {
            reader.error(
                &format!("{path}.name"),
                &pool.name.clone().into(),
                "a name no other pool has",
            );
        }
        for name in pool.served_names() {
            if earlier().any(|other| other.served_names().contains(&name)) {
                let want = "a model or alias that no other pool serves";
                reader.error(&format!("{path}.models"), &name.into(), want);
            }
        }
        if pool.served_names().is_empty() && !pool.prefills {
            if let Some(first) = any_model {
                let want = format!("`models`: pool `{first}` already takes every model");
                reader.error(&format!("{path}.models"), &Value::Null, &want);
            }
            any_model = Some(&pool.name);
        }
    }
    if endpoints > MAX_ENDPOINTS {
        let want = format!("at most {MAX_ENDPOINTS} endpoints in all, each rank counted");
        reader.error("config.pools", &endpoints.into(), &want);
    }
}

/// An engine has as many ranks in each pool that lists it.
fn check_ranks<'a>(
    reader: &mut Reader,
    path: &str,
    pool: &PoolConfig,
    earlier: impl Iterator<Item = &'a PoolConfig> + Clone,
) {
    for (index, one) in pool.endpoints.iter().enumerate() {
        let mut others = earlier.clone().flat_map(|other| {
            let same = other.endpoints.iter();
            let same = same.filter(|it| it.address == one.address);
            same.map(|it| other.ranks_of(it))
        });
        let ranks = pool.ranks_of(one);
        if others.any(|other| other != ranks) {
            let path = format!("{path}.endpoints.static[{index}].data_parallel_size");
            let want = "the same as in the other pool that lists this address";
            reader.error(&path, &ranks.map_or(Value::Null, Into::into), want);
        }
    }
}

/// A pool can ask only where somebody answers.
fn check_sources(reader: &mut Reader, pools: &[PoolConfig], discovery: bool, scrape: bool) {
    for (index, pool) in pools.iter().enumerate() {
        let path = format!("config.pools[{index}]");
        if pool.discovered && !discovery {
            let want = "`static`, because `discovery` is off";
            reader.error(&format!("{path}.endpoints"), &"envoy".into(), want);
        }
        if pool.policy.kv_aware().is_some() && !scrape {
            let want = "another policy, because `scrape` is off: engines are asked for tokens by its cluster";
            reader.error(&format!("{path}.policy"), &"kv_aware".into(), want);
        }
        if pool.discover_models && !scrape {
            let want = "false, because `scrape` is off";
            reader.error(&format!("{path}.discover_models"), &true.into(), want);
        }
    }
}

fn key_source(reader: &mut Reader, path: &str, value: &Value) -> Option<KeySource> {
    let (kind, value) = reader.tagged(path, value, &["header", "cookie", "body"])?;
    let name = text(reader, &format!("{path}.{kind}"), value)?;
    match kind {
        "header" => Some(KeySource::Header(name.to_ascii_lowercase())),
        "cookie" => Some(KeySource::Cookie(name)),
        _ => match crate::scan::ScanPlan::new(std::slice::from_ref(&name), false) {
            Ok(_) => Some(KeySource::Body(name)),
            Err(_) => {
                reader.error(
                    &format!("{path}.body"),
                    value,
                    "a JSON pointer such as `/user`",
                );
                None
            }
        },
    }
}

impl Default for HeaderNames {
    fn default() -> Self {
        HeaderNames {
            destination: "x-gateway-destination-endpoint".to_owned(),
            cluster: "x-warmpath-cluster".to_owned(),
            pool: "x-warmpath-pool".to_owned(),
            priority: "x-warmpath-priority".to_owned(),
            request_id: [
                "x-request-id",
                "x-correlation-id",
                "x-trace-id",
                "request-id",
            ]
            .map(str::to_owned)
            .to_vec(),
        }
    }
}

fn headers(reader: &mut Reader, path: &str, value: &Value) -> Option<HeaderNames> {
    let mut fields = reader.object(path, value)?;
    let defaults = HeaderNames::default();
    let mut name = |reader: &mut Reader, key, default| {
        fields.optional(reader, key, header_name).unwrap_or(default)
    };
    let destination = name(reader, "destination", defaults.destination);
    let cluster = name(reader, "cluster", defaults.cluster);
    let pool = name(reader, "pool", defaults.pool);
    let priority = name(reader, "priority", defaults.priority);
    let request_id = fields
        .optional(reader, "request_id", |reader, path, value| {
            list(reader, path, value, 0..=16, header_name)
        })
        .unwrap_or(defaults.request_id);
    fields.finish(reader);
    Some(HeaderNames {
        destination,
        cluster,
        pool,
        priority,
        request_id,
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

fn header_name(reader: &mut Reader, path: &str, value: &Value) -> Option<String> {
    let name = text(reader, path, value)?.to_ascii_lowercase();
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.len() <= 128 && name.bytes().all(legal) {
        return Some(name);
    }
    reader.error(path, value, "a header name");
    None
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            hold_bytes: HOLD_BYTES as usize,
            worker_expiry_ms: WORKER_EXPIRY_MS,
            workers: WORKERS as usize,
            prefix_table_bytes: None,
        }
    }
}

fn limits(reader: &mut Reader, path: &str, value: &Value) -> Option<Limits> {
    const HOLD: RangeInclusive<u64> = 1024..=256 * 1024 * 1024;
    let mut fields: Fields = reader.object(path, value)?;
    let hold_bytes = fields.count(reader, "hold_bytes", HOLD, HOLD_BYTES);
    let worker_expiry_ms =
        fields.count(reader, "worker_expiry_ms", 3000..=600_000, WORKER_EXPIRY_MS);
    let workers = fields.count(reader, "workers", 1..=MAX_WORKERS as u64, WORKERS);
    let prefix_table_bytes = fields
        .optional_count(reader, "prefix_table_bytes", TABLE_RANGE, "by KV capacity")
        .map(|bytes| bytes as usize);
    fields.finish(reader);
    Some(Limits {
        prefix_table_bytes,
        hold_bytes: hold_bytes as usize,
        worker_expiry_ms,
        workers: workers as usize,
    })
}

#[cfg(test)]
mod tests;
