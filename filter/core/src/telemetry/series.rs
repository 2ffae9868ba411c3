//! The series of a pool and of an endpoint, asked for once.

use super::{Handle, MAX_ENDPOINTS, OTHER, Registry, table};
use crate::admission::Priority;
use crate::decision::{Decision, Reason};
use crate::feedback::Unread;
use crate::hash::Table;

/// Series with the label `pool`.
#[derive(Debug)]
pub struct PoolSeries {
    name: Box<str>,
    /// A pool has one policy, or two: few enough to look through.
    requests: Vec<(&'static str, Reason, Handle)>,
    endpoints: Table<Box<str>, EndpointSeries>,
    /// Stands for the endpoints that found no room.
    other: Option<Box<EndpointSeries>>,
    /// By the number of [`Priority`].
    pub shed: [Handle; Priority::ALL.len()],
    pub retried: Handle,
    pub disconnects: Handle,
    pub ttft: Handle,
    pub itl: Handle,
    pub latency: Handle,
    pub prompt_tokens: Handle,
    pub predicted_cached: Handle,
    pub reported_prompt: Handle,
    pub reported_cached: Handle,
    pub reported_output: Handle,
    /// By the number of [`Unread`].
    pub unreported: [Handle; Unread::ALL.len()],
    pub load_reports: Handle,
    pub known: Handle,
    pub usable: Handle,
    pub stale: Handle,
    pub scrape_duration: Handle,
    pub discovery_changes: Handle,
}

/// Series with the labels `pool` and `endpoint`.
#[derive(Clone, Copy, Debug)]
pub struct EndpointSeries {
    /// Whether several endpoints share it.
    pub shared: bool,
    pub decisions: Handle,
    pub in_flight: Handle,
    pub waiting: Handle,
    pub queued_tokens: Handle,
    pub context_tokens: Handle,
    pub finished: Handle,
    pub failed: Handle,
    pub first_tokens: Handle,
    pub ttft_sum: Handle,
    pub latency_sum: Handle,
    pub decode_sum: Handle,
    pub decode_parts: Handle,
    pub predicted: Handle,
    pub reported: Handle,
    pub state: Handle,
    pub engine_running: Handle,
    pub engine_waiting: Handle,
    pub engine_finished: Handle,
    pub engine_kv_usage: Handle,
    pub engine_kv_capacity: Handle,
    pub engine_prefix_hits: Handle,
    pub engine_uptime: Handle,
    pub scrape_age: Handle,
    pub scrape_errors: Handle,
}

impl PoolSeries {
    pub fn new(registry: &mut Registry, name: &str) -> Self {
        let unreported =
            Unread::ALL.map(|cause| registry.series(&table::UNREPORTED, &[name, cause.name()]));
        let shed = Priority::ALL.map(|priority| {
            let handle = registry.series(&table::SHED, &[name, priority.name()]);
            registry.announce(handle);
            handle
        });
        let mut series = |metric| registry.series(metric, &[name]);
        PoolSeries {
            shed,
            name: name.into(),
            requests: Vec::new(),
            endpoints: Table::default(),
            other: None,
            retried: series(&table::RETRIED),
            disconnects: series(&table::DISCONNECTS),
            ttft: series(&table::TTFT),
            itl: series(&table::ITL),
            latency: series(&table::LATENCY),
            prompt_tokens: series(&table::PROMPT_TOKENS),
            predicted_cached: series(&table::PREDICTED_CACHED),
            reported_prompt: series(&table::REPORTED_PROMPT),
            reported_cached: series(&table::REPORTED_CACHED),
            reported_output: series(&table::REPORTED_OUTPUT),
            unreported,
            load_reports: series(&table::LOAD_REPORTS),
            known: series(&table::KNOWN),
            usable: series(&table::USABLE),
            stale: series(&table::STALE),
            scrape_duration: series(&table::SCRAPE_DURATION),
            discovery_changes: series(&table::DISCOVERY_CHANGES),
        }
    }

    /// Name of the pool.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn requests(&mut self, registry: &mut Registry, decision: &Decision) -> Handle {
        let (policy, reason) = (decision.policy, decision.reason);
        let known = |row: &&(&str, Reason, Handle)| row.1 == reason && row.0 == policy;
        if let Some((.., handle)) = self.requests.iter().find(known) {
            return *handle;
        }
        let handle = registry.series(&table::REQUESTS, &[&self.name, policy, reason.name()]);
        self.requests.push((policy, reason, handle));
        handle
    }

    /// The series of an endpoint. `told_apart` is how many endpoints of all pools have series of
    /// their own; it is counted up when this is one more.
    pub fn endpoint(
        &mut self,
        registry: &mut Registry,
        address: &str,
        told_apart: &mut usize,
    ) -> EndpointSeries {
        if let Some(series) = self.endpoints.get(address) {
            return *series;
        }
        if *told_apart < MAX_ENDPOINTS {
            *told_apart += 1;
            let series = EndpointSeries::new(registry, &self.name, address, false);
            registry.announce(series.failed);
            self.endpoints.insert(address.into(), series);
            return series;
        }
        let other = || Box::new(EndpointSeries::new(registry, &self.name, OTHER, true));
        **self.other.get_or_insert_with(other)
    }
}

impl EndpointSeries {
    fn new(registry: &mut Registry, pool: &str, address: &str, shared: bool) -> Self {
        let mut series = |metric| registry.series(metric, &[pool, address]);
        EndpointSeries {
            shared,
            decisions: series(&table::DECISIONS),
            in_flight: series(&table::IN_FLIGHT),
            waiting: series(&table::WAITING),
            queued_tokens: series(&table::QUEUED_TOKENS),
            context_tokens: series(&table::CONTEXT_TOKENS),
            finished: series(&table::FINISHED),
            failed: series(&table::FAILED),
            first_tokens: series(&table::FIRST_TOKENS),
            ttft_sum: series(&table::TTFT_SUM),
            latency_sum: series(&table::LATENCY_SUM),
            decode_sum: series(&table::DECODE_SUM),
            decode_parts: series(&table::DECODE_PARTS),
            predicted: series(&table::ENDPOINT_PREDICTED),
            reported: series(&table::ENDPOINT_REPORTED),
            state: series(&table::STATE),
            engine_running: series(&table::ENGINE_RUNNING),
            engine_waiting: series(&table::ENGINE_WAITING),
            engine_finished: series(&table::ENGINE_FINISHED),
            engine_kv_usage: series(&table::ENGINE_KV_USAGE),
            engine_kv_capacity: series(&table::ENGINE_KV_CAPACITY),
            engine_prefix_hits: series(&table::ENGINE_PREFIX_HITS),
            engine_uptime: series(&table::ENGINE_UPTIME),
            scrape_age: series(&table::SCRAPE_AGE),
            scrape_errors: series(&table::SCRAPE_ERRORS),
        }
    }

    /// Its gauges.
    pub fn gauges(&self) -> [Handle; 13] {
        [
            self.in_flight,
            self.waiting,
            self.queued_tokens,
            self.context_tokens,
            self.state,
            self.engine_running,
            self.engine_waiting,
            self.engine_finished,
            self.engine_kv_usage,
            self.engine_kv_capacity,
            self.engine_prefix_hits,
            self.engine_uptime,
            self.scrape_age,
        ]
    }
}
