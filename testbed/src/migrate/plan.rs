//! What a command line asks for, in the terms of this project: what its dialect was no longer matters.
//!
//! `None` stands for "not asked for": then the shipped configuration stays as it is.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;
use serde_json::Value;

use super::url::Engine;

/// Longest name of a pool.
const NAME_CHARS: usize = 64;
/// Most pools of a configuration.
const POOLS: usize = 64;

/// Clusters that the shipped configuration has beside those of pools.
const CLUSTERS: [&str; 3] = ["prometheus_stats", "warmpath_scrape", INDEX];
/// The cluster of the index service that policies ask.
pub const INDEX: &str = "kv_index";

/// What a command line asks for.
#[derive(Debug, Default)]
pub struct Plan {
    /// Address of the listener.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The pools, the default pool first.
    pub pools: Vec<Pool>,
    /// The index service that policies ask.
    pub index: Option<Engine>,
    /// Where session keys stand.
    pub session_key: Vec<Value>,
    /// Headers that may hold a request's id.
    pub request_id: Vec<String>,
    /// From one scrape of an engine to the next.
    pub scrape_interval_ms: Option<u64>,
    /// Tries of a request, the first included.
    pub attempts: Option<u64>,
    /// Pauses before retries.
    pub back_off: Option<BackOff>,
    /// Answers that are retried.
    pub retried_statuses: Option<Vec<u16>>,
    /// When an engine that fails is left out.
    pub breaker: Breaker,
    /// Active health checks.
    pub checks: Checks,
    /// Longest time for a whole answer.
    pub request_timeout_s: Option<u64>,
    /// Most of a body that is held.
    pub max_payload_bytes: Option<u64>,
    /// Where Envoy's metrics are served beside the admin interface.
    pub prometheus: Option<Engine>,
    /// Paths that Envoy answers itself while it runs.
    pub alive_paths: Vec<&'static str>,
    /// Paths that Envoy answers itself if the default pool has a healthy engine.
    pub ready_paths: Vec<&'static str>,
    /// What else there is to be said.
    pub notes: Vec<String>,
}

/// A pool and its cluster.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    /// Its name, and that of its cluster.
    pub name: String,
    /// Its models.
    pub models: Vec<String>,
    /// Its aliases.
    pub aliases: BTreeMap<String, String>,
    /// Its engines.
    pub engines: Vec<PoolEngine>,
    /// Its policy, as in the configuration.
    pub policy: Value,
    /// Whether engines are asked for their models.
    pub discover_models: bool,
    /// Ranks of each engine, if there are several.
    pub ranks: Option<u64>,
    /// Its `disaggregation`, as in the configuration.
    pub disaggregation: Option<Value>,
}

/// An engine of a pool.
#[derive(Clone, Debug)]
pub struct PoolEngine {
    /// Where it listens.
    pub engine: Engine,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Pool {
    /// A pool of engines without labels.
    pub fn new(name: &str, engines: Vec<Engine>, policy: Value) -> Self {
        let engines = engines.into_iter().map(|engine| PoolEngine {
            engine,
            labels: BTreeMap::new(),
        });
        Self {
            name: name.to_owned(),
            engines: engines.collect(),
            policy,
            ..Self::default()
        }
    }

    /// Whether one of its engines has labels.
    pub fn is_labelled(&self) -> bool {
        self.engines.iter().any(|one| !one.labels.is_empty())
    }

    /// Whether Envoy has to resolve one of its engines.
    pub fn is_resolved(&self) -> bool {
        self.engines.iter().any(|one| one.engine.is_named())
    }
}

/// Pauses before retries, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct BackOff {
    /// The first.
    pub base_ms: u64,
    /// The longest.
    pub max_ms: u64,
}

/// When an engine that fails is left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Breaker {
    /// Failures in a row.
    pub failures: Option<u64>,
    /// For how long.
    pub pause_s: Option<u64>,
    /// Never.
    pub off: bool,
}

/// Active health checks.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    /// The path that is asked for.
    pub path: Option<String>,
    /// From one check to the next.
    pub interval_s: Option<u64>,
    /// How long an answer may take.
    pub timeout_s: Option<u64>,
    /// Failures until an engine is unhealthy.
    pub failures: Option<u64>,
    /// Successes until it is healthy.
    pub successes: Option<u64>,
}

impl Plan {
    /// Gives each pool a name of its own that is one: `wanted` with `-` for what a name may not have.
    ///
    /// # Errors
    /// There are too many pools.
    pub fn name(&self, wanted: &str, ending: &str) -> anyhow::Result<String> {
        ensure!(
            self.pools.len() < POOLS,
            "a configuration has at most {POOLS} pools"
        );
        let pools = self.pools.iter().map(|pool| pool.name.as_str());
        let taken: BTreeSet<&str> = pools.chain(CLUSTERS).collect();
        let allowed = |char: char| match char.is_ascii_alphanumeric() || char == '_' {
            true => char,
            false => '-',
        };
        let wanted: String = wanted.chars().map(allowed).collect();
        // One of so many numbers is free.
        let names = (1..=POOLS + 1).map(|number| {
            let number = match number {
                1 => String::new(),
                number => format!("-{number}"),
            };
            let room = NAME_CHARS.saturating_sub(number.len() + ending.len());
            let start: String = wanted.chars().take(room).collect();
            format!("{start}{number}{ending}")
        });
        let mut free = names.filter(|name| !taken.contains(name.as_str()));
        Ok(free.next().unwrap_or_default())
    }
}
