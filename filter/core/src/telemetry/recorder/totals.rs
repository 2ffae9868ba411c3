//! What the counters have come to, read back for the status page.

use super::super::{Sink, table};
use super::{Endpoint, Recorder};
use crate::decision::Fallback;

/// What the counters of an endpoint have come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointTotals {
    /// Requests whose decision put it first.
    pub decisions: u64,
    /// Requests that it failed.
    pub failed: u64,
    /// Whether these are of several endpoints together.
    pub shared: bool,
}

/// What the counters of all pools have come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Tokens believed to be cached.
    pub predicted_cached_tokens: u64,
    /// Tokens that engines reported as cached; `None` until one reported anything.
    pub reported_cached_tokens: Option<u64>,
    /// Entries that gave way in the prefix table.
    pub evictions: u64,
    /// Fallbacks by cause.
    pub fallbacks: Vec<(Fallback, u64)>,
}

impl<K: Sink> Recorder<K> {
    /// What the counters of an endpoint have come to, all workers together.
    pub fn endpoint_totals(&mut self, endpoint: Endpoint) -> EndpointTotals {
        let Some(pool) = self.pools.get_mut(endpoint.pool) else {
            return EndpointTotals::default();
        };
        let registry = &mut self.registry;
        let series = pool.endpoint(registry, endpoint.address, &mut self.told_apart);
        EndpointTotals {
            decisions: registry.total(series.decisions, &self.sink),
            failed: registry.total(series.failed, &self.sink),
            shared: series.shared,
        }
    }

    /// What the counters of all pools have come to, all workers together.
    pub fn totals(&mut self) -> Totals {
        let (registry, sink) = (&mut self.registry, &self.sink);
        let evictions = registry.series(&table::TABLE_EVICTIONS, &[]);
        let fallbacks = self.fallbacks.iter();
        let mut totals = Totals {
            evictions: registry.total(evictions, sink),
            fallbacks: fallbacks
                .map(|(cause, handle)| (*cause, registry.total(*handle, sink)))
                .collect(),
            ..Totals::default()
        };
        for pool in &self.pools {
            totals.predicted_cached_tokens += registry.total(pool.predicted_cached, sink);
            if registry.total(pool.reported_prompt, sink) > 0 {
                let cached = registry.total(pool.reported_cached, sink);
                *totals.reported_cached_tokens.get_or_insert(0) += cached;
            }
        }
        totals
    }
}
