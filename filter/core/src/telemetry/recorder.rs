//! One function for each thing that happens.
//!
//! In a request's way each is a lookup by address and a few additions; everything else may be called
//! from ticks and call responses. Gauges mean the whole fleet, so only one worker of all calls their
//! functions (the one that asks the engines); [`Recorder::gone`] is for every worker.
//!
//! ```
//! use warmpath_core::telemetry::{Kind, Recorder, Sink};
//! struct Nowhere;
//! impl Sink for Nowhere {
//!     fn define(&self, _: Kind, _: &str) -> Option<u32> { None }
//!     fn add(&self, _: u32, _: u64) {}
//!     fn set(&self, _: u32, _: u64) {}
//!     fn record(&self, _: u32, _: u64) {}
//! }
//! let mut recorder = Recorder::new(Nowhere, ["llama"], 0);
//! recorder.lease_changed();
//! recorder.flush();
//! ```

mod fleet;
mod peers;
mod requests;
mod totals;

pub use fleet::Scrape;
pub use requests::Span;
pub use totals::{EndpointTotals, Totals};

use super::series::{EndpointSeries, PoolSeries};
use super::{Handle, Metric, Registry, Sink, table};
use crate::decision::Fallback;

/// Counters whose first event should raise an alarm, beside those that belong to an endpoint.
const ALARMING: [(&Metric, &[&str]); 3] = [
    (&table::ANSWERS, &["503", "no_endpoint"]),
    (&table::STATE_ERRORS, &[]),
    (&table::TABLE_EVICTIONS, &[]),
];

/// An endpoint of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint<'a> {
    /// Position of the pool in the config.
    pub pool: usize,
    /// `ip:port`.
    pub address: &'a str,
}

/// The figures of one VM and config.
#[derive(Debug)]
pub struct Recorder<K> {
    sink: K,
    registry: Registry,
    pools: Vec<PoolSeries>,
    /// Endpoints with series of their own.
    told_apart: usize,
    fallbacks: Vec<(Fallback, Handle)>,
    born_us: u64,
    /// Whether this worker has written gauges.
    has_gauges: bool,
    /// What was counted of the exchange with other Envoys.
    peers: crate::sync::Tally,
}

impl<K: Sink> Recorder<K> {
    /// A recorder for pools of these names. Counts the start of a VM.
    pub fn new<'a>(sink: K, pools: impl IntoIterator<Item = &'a str>, now_us: u64) -> Self {
        let mut registry = Registry::default();
        let fallbacks = Fallback::ALL.map(|fallback| {
            let handle = registry.series(&table::FALLBACKS, &[fallback.name()]);
            registry.announce(handle);
            (fallback, handle)
        });
        for (metric, values) in ALARMING {
            let handle = registry.series(metric, values);
            registry.announce(handle);
        }
        let starts = registry.series(&table::VM_STARTS, &[]);
        registry.add(starts, 1);
        let pools = pools
            .into_iter()
            .map(|name| PoolSeries::new(&mut registry, name));
        Recorder {
            pools: pools.collect(),
            sink,
            registry,
            told_apart: 0,
            fallbacks: fallbacks.to_vec(),
            born_us: now_us,
            has_gauges: false,
            peers: crate::sync::Tally::default(),
        }
    }

    /// The endpoints could not be learned this time.
    pub fn discovery_failed(&mut self) {
        self.count(&table::DISCOVERY_ERRORS, &[], 1);
    }

    /// This worker became the one that asks the engines.
    pub fn lease_changed(&mut self) {
        self.count(&table::LEASE_CHANGES, &[], 1);
    }

    /// Operations on shared state were given up, compare-and-set attempts lost.
    pub fn shared_state(&mut self, errors: u64, conflicts: u64) {
        self.count(&table::STATE_ERRORS, &[], errors);
        self.count(&table::STATE_CONFLICTS, &[], conflicts);
    }

    /// The prefix table: its size, its room, what is in use. Gauges.
    pub fn prefix_table(&mut self, bytes: u64, capacity: u64, entries: u64) {
        self.set(&table::TABLE_BYTES, bytes);
        self.set(&table::TABLE_CAPACITY, capacity);
        self.set(&table::TABLE_ENTRIES, entries);
    }

    /// Entries of the prefix table gave way. For one worker of all, like a gauge: all see the same.
    pub fn evicted(&mut self, entries: u64) {
        self.count(&table::TABLE_EVICTIONS, &[], entries);
    }

    /// Age of this worker's configuration.
    pub fn age_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.born_us)
    }

    /// How many workers are alive, and how old this one's configuration is. Gauges.
    pub fn alive(&mut self, workers: usize, now_us: u64) {
        self.set(&table::WORKERS, workers as u64);
        self.set(&table::UPTIME, self.age_us(now_us) / 1_000_000);
    }

    /// Hands over what was counted.
    pub fn flush(&mut self) {
        self.registry.flush(&self.sink);
    }

    /// The config is no longer used: what nobody may write any more becomes 0. A worker that still
    /// writes some of it, for a newer config, does so with its next tick.
    pub fn leave(&mut self) {
        if self.has_gauges {
            self.registry.zero_gauges();
        }
        self.flush();
    }

    fn count(&mut self, metric: &'static Metric, values: &[&str], amount: u64) {
        let handle = self.registry.series(metric, values);
        self.registry.add(handle, amount);
    }

    fn set(&mut self, metric: &'static Metric, value: u64) {
        self.has_gauges = true;
        let handle = self.registry.series(metric, &[]);
        self.registry.set(handle, value);
    }

    fn in_pool(&mut self, pool: usize, change: impl FnOnce(&mut Registry, &PoolSeries)) {
        if let Some(series) = self.pools.get(pool) {
            change(&mut self.registry, series);
        }
    }

    fn at(&mut self, at: Endpoint, change: impl FnOnce(&mut Registry, &EndpointSeries)) {
        if let Some(pool) = self.pools.get_mut(at.pool) {
            let series = pool.endpoint(&mut self.registry, at.address, &mut self.told_apart);
            change(&mut self.registry, &series);
        }
    }

    fn gauges<I: IntoIterator<Item = (Handle, u64)>>(
        &mut self,
        endpoint: Endpoint,
        values: impl FnOnce(&EndpointSeries) -> I,
    ) {
        self.has_gauges = true;
        self.at(endpoint, |registry, series| {
            for (handle, value) in values(series) {
                match series.shared {
                    true => registry.gather(handle, value),
                    false => registry.set(handle, value),
                }
            }
        });
    }
}

/// Milliseconds, to the nearest.
fn ms(us: u64) -> u64 {
    us.saturating_add(500) / 1000
}
