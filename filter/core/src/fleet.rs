//! The fleet: what one VM, the holder of the [lease](crate::lease), has learned for all.
//!
//! Two sources feed it: Envoy itself, which knows the endpoints of its clusters and their health, and
//! the engines, which tell their load and capacity. The holder writes the whole picture as one value;
//! the other workers read it with each tick. It speaks of clusters by name and of engines by address,
//! so it outlives workers, configs and the lease itself: a new holder goes on from what it finds.
//!
//! Layout (little-endian): version byte; then the hosts of each cluster: count of clusters (u16), and
//! for each its name, the name by which discovery knows it or an empty text, when Envoy told it in ms
//! (u64), count of hosts (u16), hosts of 25 bytes, count of those with metadata (u16) and for each its
//! address (18) and that: role (a text, empty: none), weight (f32, NaN: none), labels and models, each
//! a count (u16) and texts; then model names: count (u16), texts; then engines: count (u16), rows of
//! 109 bytes with their LoRA adapters (9 bytes each), the numbers of their models (2 bytes each) and
//! their ranks (rows without address, of 89 bytes and adapters). Texts are a length (u16) and UTF-8. Bounds: [`MAX_CLUSTERS`], [`MAX_ENDPOINTS`] hosts, engines and ranks,
//! [`MAX_NAMES`] names, [`MAX_LORAS`] adapters and [`MAX_MODELS`] models an engine. What does not read
//! is an empty fleet.

mod layout;
mod metadata;
mod ranks;

pub use metadata::Metadata;

use crate::address::EngineAddress;
use crate::config::MAX_ENDPOINTS;
use crate::sorted::Sorted;
use crate::store::Store;
use std::net::SocketAddr;

/// Most clusters.
pub const MAX_CLUSTERS: usize = 64;
/// Most distinct model names.
pub const MAX_NAMES: usize = 4096;
/// Most LoRA adapters of one engine.
pub const MAX_LORAS: usize = 64;
/// Most models of one engine.
pub const MAX_MODELS: usize = 256;

const KEY: &str = "warmpath/fleet";

/// The endpoints of one of Envoy's clusters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    /// The name by which discovery lists its endpoints, where that is another one.
    pub service: Option<String>,
    /// When Envoy last told them, in milliseconds of the Unix clock.
    pub told_ms: u64,
    /// By address.
    pub hosts: Sorted<SocketAddr, Host>,
    /// What the configuration of the cluster says of them, where it was asked for; by address, sorted.
    pub metadata: Vec<(SocketAddr, Metadata)>,
}

/// What Envoy says of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Whether it may be used, and if not, why.
    pub health: HostHealth,
    /// Its load-balancing weight, at least 1.
    pub weight: u16,
    /// When it came, or came back, to others that were healthy already, in seconds of the Unix
    /// clock; 0: never.
    pub since_s: u32,
}

impl Host {
    /// [`Host::since_s`] in microseconds.
    pub fn since_us(&self) -> u64 {
        u64::from(self.since_s).saturating_mul(1_000_000)
    }
}

/// Envoy's verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostHealth {
    /// Usable.
    #[default]
    Healthy,
    /// Failed its active health check, or is declared unhealthy by its discovery.
    Unhealthy,
    /// Ejected by outlier detection.
    Ejected,
    /// Its discovery takes it out of service.
    Draining,
}

/// What an engine said of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Engine {
    /// When it last answered, in milliseconds of the Unix clock; 0: never.
    pub told_ms: u64,
    /// How often in a row it has not.
    pub failures: u16,
    /// Requests running.
    pub running: Option<u32>,
    /// Requests waiting.
    pub waiting: Option<u32>,
    /// Requests at the engine that did not come through this process, when it answered.
    pub foreign: u32,
    /// Used share of the KV cache, 0 to 1.
    pub kv_usage: Option<f32>,
    /// Capacity of the KV cache in tokens.
    pub kv_capacity_tokens: Option<u64>,
    /// Prompt tokens looked up in the prefix cache since it started.
    pub queried_tokens: Option<u64>,
    /// Prompt tokens found there.
    pub hit_tokens: Option<u64>,
    /// Requests finished since it started.
    pub finished: Option<u64>,
    /// Output tokens generated since it started.
    pub generated_tokens: Option<u64>,
    /// When it started, in seconds of the Unix clock.
    pub started_s: Option<u64>,
    /// When these were last seen to have grown, or, where it does not tell them, the finished
    /// requests, in milliseconds of the Unix clock; 0: never.
    pub moved_ms: u64,
    /// Whether it sleeps.
    pub sleeping: bool,
    /// Most LoRA adapters it holds at a time.
    pub max_loras: Option<u16>,
    /// Its LoRA adapters: hash of the name, and whether it is loaded (else it waits).
    pub loras: Vec<(u64, bool)>,
    /// What it serves; `None` until it said so.
    pub models: Option<Vec<String>>,
    /// What its data-parallel ranks said, in order; empty if it has none.
    pub ranks: Vec<Engine>,
}

/// The picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fleet {
    /// By name.
    pub clusters: Sorted<String, Cluster>,
    /// By address.
    pub engines: Sorted<SocketAddr, Engine>,
    /// Model names that were ever seen, oldest first.
    pub seen_models: Vec<String>,
}

impl Fleet {
    /// What the store holds, and its version.
    pub fn load<S: Store>(store: &S) -> (Fleet, u32) {
        let value = store.get(KEY);
        (
            layout::decode(&value.bytes).unwrap_or_default(),
            value.version,
        )
    }

    /// The same, unless it still has `version`.
    pub fn load_newer<S: Store>(store: &S, version: u32) -> Option<(Fleet, u32)> {
        let value = store.get(KEY);
        if value.version == version {
            return None;
        }
        Some((
            layout::decode(&value.bytes).unwrap_or_default(),
            value.version,
        ))
    }

    /// Writes it for all. Only the holder of the lease may.
    pub fn save<S: Store>(&self, store: &S) {
        store.set(KEY, &layout::encode(self));
    }

    /// What an endpoint said of itself.
    pub fn engine(&self, at: &EngineAddress) -> Option<&Engine> {
        let engine = self.engines.get(&at.socket)?;
        match at.rank {
            Some(rank) => engine.ranks.get(usize::from(rank)),
            None => Some(engine),
        }
    }

    /// Takes over what Envoy told of a cluster; whether endpoints came or went.
    pub fn tell_cluster(
        &mut self,
        name: &str,
        hosts: impl Iterator<Item = (SocketAddr, HostHealth, u16)>,
        now_ms: u64,
    ) -> bool {
        if !self.clusters.contains_key(name) && self.clusters.len() >= MAX_CLUSTERS {
            return false;
        }
        if !self.clusters.contains_key(name) {
            self.clusters.insert(name.to_owned(), Cluster::default());
        }
        let Some(cluster) = self.clusters.get_mut(name) else {
            return false;
        };
        let before = std::mem::take(&mut cluster.hosts);
        let carried = before
            .values()
            .any(|host| host.health == HostHealth::Healthy);
        let mut told = Vec::new();
        for (address, health, weight) in hosts.take(MAX_ENDPOINTS) {
            let since_s = match before.get(&address) {
                Some(old) if old.health == HostHealth::Healthy || health != HostHealth::Healthy => {
                    old.since_s
                }
                // Nobody was there to carry the load meanwhile, as at the start, when all engines wait
                // for their first health check: who comes first cannot be spared.
                _ if !carried => 0,
                _ => (now_ms / 1000) as u32,
            };
            let host = Host {
                health,
                weight: weight.max(1),
                since_s,
            };
            told.push((address, host));
        }
        cluster.hosts = told.into();
        cluster.told_ms = now_ms;
        cluster.forget_metadata();
        !before.keys().eq(cluster.hosts.keys())
    }

    /// Keeps the engines that `wanted` names, and makes room for new ones.
    pub fn keep_engines(&mut self, wanted: impl Iterator<Item = SocketAddr>) {
        let mut before = std::mem::take(&mut self.engines);
        for address in wanted.take(MAX_ENDPOINTS) {
            let engine = before.get_mut(&address).map(std::mem::take);
            let engine = engine.unwrap_or_default();
            self.engines.insert(address, engine);
        }
    }

    /// Remembers names of models, the newest [`MAX_NAMES`] of them.
    pub fn remember_models(&mut self, names: &[String]) {
        for name in names {
            if !self.seen_models.contains(name) {
                self.seen_models.push(name.clone());
            }
        }
        let excess = self.seen_models.len().saturating_sub(MAX_NAMES);
        self.seen_models.drain(..excess);
    }
}

impl Engine {
    /// Whether its figures are younger than `most_ms`.
    pub fn is_fresh(&self, now_ms: u64, most_ms: u64) -> bool {
        self.told_ms > 0 && now_ms.saturating_sub(self.told_ms) <= most_ms
    }
}

#[cfg(test)]
mod tests;
