//! The scout: keeps the [fleet](crate::fleet) known.
//!
//! Every VM has one. The scout that holds the [lease](crate::lease) makes the calls that its
//! [timetable](crate::scrape) asks for and writes what it learns; the others read it. Nothing here is
//! on a request's way, and nothing that a call answers, or fails to, can stop the router: what is not
//! known stays as it was and grows old.

mod heard;

use crate::config::Config;
use crate::fleet::{Engine, Fleet, HostHealth};
use crate::hash;
use crate::lease::{self, Candidate};
use crate::scrape::{Call, Timetable};
use crate::stats::{EngineStats, Figures, Names};
use crate::store::Store;
use crate::wire::clusters::{self, EdsHealth};
use crate::wire::models;
use ahash::AHashMap;
use heard::Heard;
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Figures older than this many intervals are not believed.
pub const STALE_INTERVALS: u64 = 3;
/// Health that Envoy has not confirmed for this many intervals is not believed.
const FORGET_INTERVALS: u64 = 10;

/// A call as HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCall {
    /// Envoy's cluster.
    pub cluster: String,
    /// Path and query.
    pub path: String,
    /// The `:authority`.
    pub authority: String,
    /// One more header.
    pub header: Option<(String, String)>,
    /// How long the answer may take.
    pub timeout_ms: u64,
    /// Longest body that is read.
    pub max_bytes: usize,
}

/// How a call ended.
#[derive(Clone, Copy, Debug)]
pub enum Reply<'a> {
    /// An answer with this status.
    Answer {
        /// The status.
        status: u16,
        /// The body.
        body: &'a [u8],
    },
    /// An answer over the limit, unread.
    TooLong,
    /// None: no connection, timeout, reset.
    Failed,
    /// Envoy does not know the cluster.
    NoCluster,
}

/// What became of calls, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Calls made.
    pub calls: u64,
    /// Those without an answer.
    pub failed: u64,
    /// Those with an answer that is not 200, or that does not read.
    pub refused: u64,
    /// Those with an answer over the limit.
    pub too_long: u64,
    /// Those that Envoy has no cluster for.
    pub no_cluster: u64,
}

/// One VM's scout.
#[derive(Debug)]
pub struct Scout {
    candidate: Candidate,
    holds: bool,
    changes: u32,
    fleet: Fleet,
    version: u32,
    timetable: Timetable,
    paths: AHashMap<SocketAddr, (String, usize)>,
    tally: Tally,
    /// What answers told since the engine was scraped; for engines of the fleet only.
    heard: AHashMap<SocketAddr, Heard>,
    /// Whether the router of this VM has yet to take it over.
    dirty: bool,
    /// Whether the others have.
    unsaved: bool,
}

impl Scout {
    /// A scout for the config with this text.
    pub fn new<S: Store>(store: &S, config_hash: u64, owner: u64) -> Self {
        let generation = lease::generation(store, config_hash);
        let (fleet, version) = Fleet::load(store);
        Scout {
            candidate: Candidate { owner, generation },
            holds: false,
            changes: 0,
            fleet,
            version,
            timetable: Timetable::default(),
            paths: AHashMap::new(),
            tally: Tally::default(),
            heard: AHashMap::new(),
            dirty: false,
            unsaved: false,
        }
    }

    /// What is known.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// A hash of which endpoints there are and what models they serve.
    pub fn shape(&self) -> u64 {
        let mut shape = 0;
        for (name, cluster) in &self.fleet.clusters {
            shape = hash::mix(shape, hash::hash(name.as_bytes()));
            for address in cluster.hosts.keys() {
                shape = hash::mix(shape, hash::hash(address.to_string().as_bytes()));
            }
        }
        for (address, engine) in &self.fleet.engines {
            if let Some(models) = &engine.models {
                shape = hash::mix(shape, hash::hash(address.to_string().as_bytes()));
                for model in models {
                    shape = hash::mix(shape, hash::hash(model.as_bytes()));
                }
            }
        }
        shape
    }

    /// Whether this VM makes the calls.
    pub fn holds_lease(&self) -> bool {
        self.holds
    }

    /// How often the maker of calls has changed in this process.
    pub fn lease_changes(&self) -> u32 {
        self.changes
    }

    /// Generation of the config.
    pub fn generation(&self) -> u32 {
        self.candidate.generation
    }

    /// What became of this VM's calls.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Age of the figures that are not believed any more.
    pub fn stale_ms(config: &Config) -> u64 {
        let interval_ms = config
            .scrape
            .as_ref()
            .map_or(0, |it| it.polling.interval_ms);
        interval_ms.saturating_mul(STALE_INTERVALS)
    }

    /// Envoy's verdict about an endpoint of a cluster, as far as it is recent.
    pub fn health(
        &self,
        config: &Config,
        cluster: &str,
        address: &SocketAddr,
        now_ms: u64,
    ) -> HostHealth {
        let Some(polling) = &config.discovery else {
            return HostHealth::Healthy;
        };
        let forget_ms = polling.interval_ms.saturating_mul(FORGET_INTERVALS);
        let told = self.fleet.clusters.get(cluster);
        let told = told.filter(|it| now_ms.saturating_sub(it.told_ms) <= forget_ms);
        told.and_then(|cluster| cluster.hosts.get(address))
            .map_or(HostHealth::Healthy, |host| host.health)
    }

    /// Follows what the holder of the lease wrote; whether there was anything new.
    pub fn follow<S: Store>(&mut self, store: &S) -> bool {
        if self.holds {
            return std::mem::take(&mut self.dirty);
        }
        let dirty = std::mem::take(&mut self.dirty);
        let Some((fleet, version)) = Fleet::load_newer(store, self.version) else {
            return dirty;
        };
        self.version = version;
        let before = std::mem::replace(&mut self.fleet, fleet);
        self.recall();
        dirty || before != self.fleet
    }

    /// Takes or renews the lease, and says which calls to make if this VM has it.
    pub fn calls<S: Store>(&mut self, store: &S, config: &Config, now_ms: u64) -> Vec<Call> {
        let Some(term_ms) = term_ms(config) else {
            return Vec::new();
        };
        let lease = lease::acquire(store, self.candidate, term_ms, now_ms);
        if lease.held != self.holds {
            // Start from what the last holder knew, or stop at once.
            self.timetable.abandon();
            self.follow(store);
            self.holds = lease.held;
        }
        self.changes = lease.changes;
        if !self.holds {
            return Vec::new();
        }
        self.set_targets(config);
        // Once a tick, however many engines answered meanwhile.
        if std::mem::take(&mut self.unsaved) {
            self.fleet.save(store);
        }
        let mut calls = Vec::new();
        if let Some(polling) = &config.discovery {
            let (interval_ms, timeout_ms) = (polling.interval_ms, polling.timeout_ms);
            if self
                .timetable
                .endpoints_due(interval_ms, timeout_ms, now_ms)
            {
                calls.push(Call::Endpoints);
            }
        }
        if let Some(scrape) = &config.scrape {
            let (interval_ms, timeout_ms) = (scrape.polling.interval_ms, scrape.polling.timeout_ms);
            for (address, models) in self.timetable.engines_due(interval_ms, timeout_ms, now_ms) {
                calls.push(Call::Metrics(address));
                if models && self.wants_models(config, &address) {
                    calls.push(Call::Models(address));
                }
            }
        }
        self.tally.calls = self.tally.calls.saturating_add(calls.len() as u64);
        calls
    }

    /// A call as HTTP; `None` if its source is off.
    pub fn http(&self, config: &Config, call: &Call) -> Option<HttpCall> {
        let engine = |address: &SocketAddr, path: String| {
            let scrape = config.scrape.as_ref()?;
            Some(HttpCall {
                cluster: scrape.polling.cluster.clone(),
                path,
                authority: address.to_string(),
                header: Some((scrape.header.clone(), address.to_string())),
                timeout_ms: scrape.polling.timeout_ms,
                max_bytes: scrape.polling.max_bytes,
            })
        };
        match call {
            Call::Endpoints => {
                let polling = config.discovery.as_ref()?;
                let names: BTreeSet<&str> = config
                    .pools
                    .iter()
                    .map(|pool| pool.cluster.as_str())
                    .collect();
                let names: Vec<&str> = names.into_iter().collect();
                Some(HttpCall {
                    cluster: polling.cluster.clone(),
                    path: clusters::path(&names),
                    authority: polling.cluster.clone(),
                    header: None,
                    timeout_ms: polling.timeout_ms,
                    max_bytes: polling.max_bytes,
                })
            }
            Call::Metrics(address) => {
                let path = self.paths.get(address).map(|(path, _)| path.clone());
                engine(address, path.unwrap_or_default())
            }
            Call::Models(address) => engine(address, "/v1/models".to_owned()),
        }
    }

    /// Takes over what a call answered; `in_flight` is what this process has at the engine. Whether
    /// anything was learned.
    pub fn ended(
        &mut self,
        config: &Config,
        call: &Call,
        reply: Reply,
        in_flight: u32,
        now_ms: u64,
    ) -> bool {
        self.timetable.ended(call);
        // Who lost the lease while it waited has nothing to tell.
        if !self.holds {
            return false;
        }
        let body = match reply {
            Reply::Answer { status: 200, body } => Some(body),
            Reply::Answer { .. } => {
                self.tally.refused = self.tally.refused.saturating_add(1);
                None
            }
            Reply::TooLong => {
                self.tally.too_long = self.tally.too_long.saturating_add(1);
                None
            }
            Reply::Failed => {
                self.tally.failed = self.tally.failed.saturating_add(1);
                None
            }
            Reply::NoCluster => {
                self.tally.no_cluster = self.tally.no_cluster.saturating_add(1);
                None
            }
        };
        let learned = match (call, body) {
            (Call::Endpoints, Some(body)) => self.learn_endpoints(body, now_ms),
            (Call::Metrics(address), Some(body)) => {
                let pool = self.paths.get(address).map(|(_, pool)| *pool);
                let names = pool.and_then(|pool| config.pools.get(pool));
                let names = names.map(|pool| &pool.metric_names);
                self.learn_metrics(address, body, names, in_flight, now_ms)
            }
            (Call::Models(address), Some(body)) => self.learn_models(address, body),
            (Call::Metrics(address), None) => {
                if let Some(engine) = self.fleet.engines.get_mut(address) {
                    engine.failures = engine.failures.saturating_add(1);
                }
                return false;
            }
            (Call::Endpoints | Call::Models(_), None) => return false,
        };
        self.dirty |= learned;
        self.unsaved |= learned;
        learned
    }

    /// The config is no longer used, or the VM goes.
    pub fn leave<S: Store>(&mut self, store: &S) {
        if self.holds {
            lease::release(store, self.candidate);
            self.holds = false;
        }
    }

    fn wants_models(&self, config: &Config, address: &SocketAddr) -> bool {
        let pool = self
            .paths
            .get(address)
            .and_then(|(_, pool)| config.pools.get(*pool));
        pool.is_some_and(|pool| pool.discover_models)
    }

    /// Whom to scrape follows from the config and from what Envoy told last.
    fn set_targets(&mut self, config: &Config) {
        let Some(scrape) = &config.scrape else { return };
        self.paths.clear();
        for (index, pool) in config.pools.iter().enumerate() {
            let path = || (pool.metrics_path.clone(), index);
            if pool.discovered {
                let cluster = self.fleet.clusters.get(&pool.cluster);
                for address in cluster.into_iter().flat_map(|cluster| cluster.hosts.keys()) {
                    self.paths.insert(*address, path());
                }
            } else {
                for endpoint in &pool.endpoints {
                    self.paths.insert(endpoint.address, path());
                }
            }
        }
        let known = self.fleet.engines.len() == self.paths.len()
            && self
                .paths
                .keys()
                .all(|address| self.fleet.engines.contains_key(address));
        if !known {
            let wanted: BTreeSet<SocketAddr> = self.paths.keys().copied().collect();
            self.fleet.keep_engines(wanted.iter().copied());
            self.dirty = true;
            self.unsaved = true;
        }
        let interval_ms = scrape.polling.interval_ms;
        self.timetable
            .set_engines(self.fleet.engines.keys().copied(), interval_ms);
    }

    fn learn_endpoints(&mut self, body: &[u8], now_ms: u64) -> bool {
        let Ok(clusters) = clusters::parse(body) else {
            self.tally.refused = self.tally.refused.saturating_add(1);
            return false;
        };
        for cluster in &clusters {
            let hosts = cluster.hosts.iter().map(|host| {
                (
                    host.address,
                    verdict(&host.health),
                    host.weight.min(u32::from(u16::MAX)) as u16,
                )
            });
            self.fleet.tell_cluster(&cluster.name, hosts, now_ms);
        }
        true
    }

    fn learn_metrics(
        &mut self,
        address: &SocketAddr,
        page: &[u8],
        names: Option<&Names>,
        in_flight: u32,
        now_ms: u64,
    ) -> bool {
        let Some(engine) = self.fleet.engines.get_mut(address) else {
            return false;
        };
        let stats = EngineStats::read(page, names.unwrap_or(&Names::default()));
        let total = stats.total;
        if total == Figures::default() && stats.adapters.is_empty() {
            // Not the page of an engine. What it said before grows old, as if it had said nothing.
            self.tally.refused = self.tally.refused.saturating_add(1);
            engine.failures = engine.failures.saturating_add(1);
            return false;
        }
        let at_engine = total
            .running
            .unwrap_or_default()
            .saturating_add(total.waiting.unwrap_or_default());
        let moved = match (total.generated_tokens, engine.generated_tokens) {
            (Some(now), before) => before.is_some_and(|before| now != before),
            (None, _) => total.finished.is_some() && total.finished != engine.finished,
        };
        *engine = Engine {
            told_ms: now_ms,
            failures: 0,
            running: total.running,
            waiting: total.waiting,
            foreign: at_engine.saturating_sub(in_flight),
            kv_usage: total.kv_usage,
            // It does not change while the engine runs, but a page may come without it.
            kv_capacity_tokens: total
                .kv_capacity_tokens
                .filter(|tokens| *tokens > 0)
                .or(engine.kv_capacity_tokens),
            queried_tokens: total.prefix_queries_tokens,
            hit_tokens: total.prefix_hits_tokens,
            finished: total.finished,
            generated_tokens: total.generated_tokens,
            moved_ms: if moved { now_ms } else { engine.moved_ms },
            sleeping: total.is_sleeping.unwrap_or_default(),
            max_loras: stats
                .max_adapters
                .map(|most| u16::try_from(most).unwrap_or(u16::MAX - 1)),
            loras: stats
                .adapters
                .iter()
                .map(|adapter| (hash::hash(adapter.name.as_bytes()), adapter.is_running))
                .collect(),
            models: engine.models.take(),
        };
        true
    }

    fn learn_models(&mut self, address: &SocketAddr, body: &[u8]) -> bool {
        let Ok(models) = models::parse(body) else {
            self.tally.refused = self.tally.refused.saturating_add(1);
            return false;
        };
        let names: Vec<String> = models.into_iter().map(|model| model.id).collect();
        let Some(engine) = self.fleet.engines.get_mut(address) else {
            return false;
        };
        if engine.models.as_ref() != Some(&names) {
            engine.models = Some(names.clone());
            self.fleet.remember_models(&names);
        }
        true
    }
}

fn verdict(health: &clusters::HostHealth) -> HostHealth {
    match health.eds {
        _ if health.pending_dynamic_removal => HostHealth::Draining,
        EdsHealth::Draining => HostHealth::Draining,
        EdsHealth::Unhealthy | EdsHealth::Timeout => HostHealth::Unhealthy,
        _ if health.failed_active_health_check
            || health.active_hc_timeout
            || health.excluded_via_immediate_hc_fail =>
        {
            HostHealth::Unhealthy
        }
        _ if health.failed_outlier_check => HostHealth::Ejected,
        _ => HostHealth::Healthy,
    }
}

/// The lease's term: as long as the shortest interval, so that a new holder misses one turn at most.
fn term_ms(config: &Config) -> Option<u64> {
    let discovery = config.discovery.as_ref().map(|polling| polling.interval_ms);
    let scrape = config
        .scrape
        .as_ref()
        .map(|scrape| scrape.polling.interval_ms);
    let shortest = discovery.into_iter().chain(scrape).min()?;
    Some(shortest)
}
