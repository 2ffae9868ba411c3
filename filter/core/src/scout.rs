//! The scout: keeps the [fleet](crate::fleet) known.
//!
//! Every VM has one. The scout that holds the [lease](crate::lease) makes the calls that its
//! [timetable](crate::scrape) asks for and writes what it learns; the others read it. Nothing here is
//! on a request's way, and nothing that a call answers, or fails to, can stop the router: what is not
//! known stays as it was and grows old.

mod heard;
mod told;

use crate::address::EngineAddress;
use crate::call::{CallBody, HttpCall, Method, Reply};
use crate::config::{Config, PoolConfig};
use crate::fleet::{Fleet, HostHealth};
use crate::hash;
use crate::lease::{self, Candidate};
use crate::order;
use crate::scrape::{Call, Timetable};
use crate::sorted::Sorted;
use crate::store::Store;
use crate::wire::{clusters, endpoint_metadata};
use heard::Heard;
use std::net::SocketAddr;

/// Figures older than this many intervals are not believed.
pub const STALE_INTERVALS: u64 = 3;
/// The lease's term where the holder speaks with other Envoys: longer than any tick.
const SYNC_TERM_MS: u64 = 1000;
/// Health that Envoy has not confirmed for this many intervals is not believed.
const FORGET_INTERVALS: u64 = 10;

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
    paths: Sorted<SocketAddr, (String, usize)>,
    tally: Tally,
    /// What answers told since the engine was scraped; for engines of the fleet only.
    heard: Sorted<SocketAddr, Heard>,
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
            paths: Sorted::default(),
            tally: Tally::default(),
            heard: Sorted::default(),
            dirty: false,
            unsaved: false,
        }
    }

    /// What is known.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// A hash of which endpoints there are, what is written about them and what models they serve.
    pub fn shape(&self) -> u64 {
        let mut shape = 0;
        let mut note = |text: &str| shape = hash::mix(shape, hash::hash(text.as_bytes()));
        for (name, cluster) in self.fleet.clusters.iter() {
            note(name);
            for address in cluster.hosts.keys() {
                note(&address.to_string());
                if let Some(metadata) = cluster.metadata_of(address) {
                    metadata.texts().for_each(&mut note);
                }
            }
        }
        for (address, engine) in self.fleet.engines.iter() {
            if let Some(models) = &engine.models {
                note(&address.to_string());
                models.iter().for_each(|model| note(model));
            }
        }
        for (socket, engine) in self.fleet.engines.iter() {
            let last = engine.ranks.len().checked_sub(1);
            if let Some(rank) = last.and_then(|rank| u16::try_from(rank).ok()) {
                let (socket, rank) = (*socket, Some(rank));
                note(&EngineAddress { socket, rank }.to_string());
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
            // By the names that discovery has for them, which come with their endpoints.
            let mut readers = config.pools.iter().filter(|pool| pool.reads_metadata);
            if readers.any(|pool| self.fleet.clusters.contains_key(&pool.cluster))
                && self.timetable.metadata_due(interval_ms, timeout_ms, now_ms)
            {
                calls.push(Call::Metadata);
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
                headers: vec![(scrape.header.clone(), address.to_string())],
                method: Method::Get,
                body: CallBody::Empty,
                timeout_ms: scrape.polling.timeout_ms,
                max_bytes: scrape.polling.max_bytes,
            })
        };
        let admin = |path: String, most_bytes: usize| {
            let polling = config.discovery.as_ref()?;
            Some(HttpCall {
                cluster: polling.cluster.clone(),
                path,
                authority: polling.cluster.clone(),
                headers: Vec::new(),
                method: Method::Get,
                body: CallBody::Empty,
                timeout_ms: polling.timeout_ms,
                max_bytes: polling.max_bytes.min(most_bytes),
            })
        };
        match call {
            Call::Endpoints => {
                let pools = config.pools.iter();
                let names = distinct(pools.map(|pool| pool.cluster.as_str()).collect());
                admin(clusters::path(&names), usize::MAX)
            }
            Call::Metadata => {
                let pools = config.pools.iter().filter(|pool| pool.reads_metadata);
                let names = distinct(pools.map(|pool| self.service(pool)).collect());
                admin(
                    endpoint_metadata::path(&names),
                    endpoint_metadata::MAX_PAGE_BYTES,
                )
            }
            Call::Metrics(address) => {
                let path = self.paths.get(address).map(|(path, _)| path.clone());
                engine(address, path.unwrap_or_default())
            }
            Call::Models(address) => engine(address, "/v1/models".to_owned()),
            // Not a call of the scout's.
            Call::Peers => None,
        }
    }

    /// Takes over what a call answered; `in_flight` is what this process has at an engine, or at one of
    /// its ranks. Whether anything was learned.
    pub fn ended(
        &mut self,
        config: &Config,
        call: &Call,
        reply: Reply,
        in_flight: impl Fn(Option<u16>) -> u32,
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
            Reply::Failed | Reply::TimedOut | Reply::NoRoom => {
                self.tally.failed = self.tally.failed.saturating_add(1);
                None
            }
            Reply::NoCluster => {
                self.tally.no_cluster = self.tally.no_cluster.saturating_add(1);
                None
            }
        };
        let learned = match (call, body) {
            (Call::Endpoints, Some(body)) => self.learn_endpoints(config, body, now_ms),
            (Call::Metadata, Some(body)) => self.learn_metadata(body),
            (Call::Metrics(address), Some(body)) => {
                self.learn_metrics(address, body, config, in_flight, now_ms)
            }
            (Call::Models(address), Some(body)) => self.learn_models(address, body),
            (Call::Metrics(address), None) => {
                self.missed(address);
                return false;
            }
            (Call::Endpoints | Call::Metadata | Call::Models(_), None) | (Call::Peers, _) => {
                return false;
            }
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

    /// The name by which discovery knows a pool's cluster.
    fn service<'a>(&'a self, pool: &'a PoolConfig) -> &'a str {
        let cluster = self.fleet.clusters.get(&pool.cluster);
        let service = cluster.and_then(|cluster| cluster.service.as_deref());
        service.unwrap_or(&pool.cluster)
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
            self.fleet.keep_engines(self.paths.keys().copied());
            self.dirty = true;
            self.unsaved = true;
        }
        let interval_ms = scrape.polling.interval_ms;
        self.timetable
            .set_engines(self.fleet.engines.keys().copied(), interval_ms);
    }
}

fn distinct(mut names: Vec<&str>) -> Vec<&str> {
    order::sort(&mut names, |one, other| one.cmp(other));
    names.dedup();
    names
}

/// The lease's term: as long as the shortest interval, so that a new holder misses one turn at most.
fn term_ms(config: &Config) -> Option<u64> {
    let discovery = config.discovery.as_ref().map(|polling| polling.interval_ms);
    let scrape = config
        .scrape
        .as_ref()
        .map(|scrape| scrape.polling.interval_ms);
    let sync = config.sync.as_ref().map(|_| SYNC_TERM_MS);
    discovery.into_iter().chain(scrape).chain(sync).min()
}
