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

mod peers;

use super::series::{EndpointSeries, PoolSeries};
use super::{Handle, Metric, Registry, Sink, table};
use crate::answer::Answer;
use crate::decision::{Decision, Fallback};
use crate::disaggregation::{CallEnd, Note};
use crate::feedback::{Finding, Unread};
use crate::kv::{Outcome, Skip, Tally};
use crate::load::Load;
use crate::router::{Charge, State};

/// Fewer parts say more about how bytes were cut than about tokens.
const LEAST_STREAM_PARTS: u32 = 8;

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

/// What the metrics must know of a request until it ends.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pool: usize,
    started_us: u64,
    first_us: Option<u64>,
    streamed: bool,
}

impl Span {
    /// Position of the pool in the config.
    pub fn pool(&self) -> usize {
        self.pool
    }
}

/// What an engine's metrics say; `None` where it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scrape {
    /// Requests that it works on.
    pub running: Option<u64>,
    /// Requests queued in it.
    pub waiting: Option<u64>,
    /// Requests completed since it started.
    pub finished: Option<u64>,
    /// How full its KV cache is, 0 to 1.
    pub kv_usage: Option<f64>,
    /// How much its KV cache holds.
    pub kv_capacity_tokens: Option<u64>,
    /// Share of prompt tokens that it had cached, 0 to 1.
    pub prefix_hits: Option<f64>,
    /// Time since it started.
    pub uptime_s: Option<u64>,
}

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

    /// A request was routed and is counted as `charge` says. `address` is the first of its ranking.
    pub fn routed(
        &mut self,
        decision: &Decision,
        charge: &Charge,
        address: &str,
        started_us: u64,
    ) -> Span {
        if let Some(pool) = self.pools.get_mut(decision.pool) {
            let requests = pool.requests(&mut self.registry, decision);
            self.registry.add(requests, 1);
            let (prompt, cached) = (pool.prompt_tokens, pool.predicted_cached);
            self.registry.add(prompt, charge.prompt_tokens());
            self.registry.add(cached, charge.cached_tokens());
        }
        let pool = decision.pool;
        self.at(Endpoint { pool, address }, |registry, series| {
            registry.add(series.decisions, 1);
        });
        Span {
            pool,
            started_us,
            first_us: None,
            streamed: charge.streamed(),
        }
    }

    /// A request went on with less knowledge than it could have had.
    pub fn fell_back(&mut self, fallback: Fallback) {
        let known = self.fallbacks.iter().find(|(known, _)| *known == fallback);
        if let Some((_, handle)) = known {
            self.registry.add(*handle, 1);
        }
    }

    /// A request was answered by the filter.
    pub fn answered(&mut self, answer: &Answer) {
        let status = answer.status.to_string();
        self.count(&table::ANSWERS, &[&status, answer.cause], 1);
        if let Some(shed) = answer.shed {
            self.in_pool(shed.pool, |registry, series| {
                if let Some(handle) = series.shed.get(shed.priority as usize) {
                    registry.add(*handle, 1);
                }
            });
        }
    }

    /// Something happened on a request's way. `address` is that of the engine it speaks of.
    pub fn noted(&mut self, note: Note, address: &str) {
        match note {
            Note::Skipped { pool, skip } => {
                self.count_in(pool, &table::UNDISAGGREGATED, skip.name());
            }
            Note::Disaggregated { pool, outcome } => {
                self.count_in(pool, &table::DISAGGREGATED, outcome.name());
            }
            Note::Prefilled {
                pool, end, took_us, ..
            } => {
                self.count_in(pool, &table::PREFILL_CALLS, end.name());
                let served = end == CallEnd::Ok;
                let took_ms = took_us.map(ms);
                if let (true, Some(took_ms), Some(series)) = (served, took_ms, self.pools.get(pool))
                {
                    let labels = &[series.name()];
                    let time = self.registry.series(&table::PREFILL_TIME, labels);
                    self.registry.observe(time, took_ms);
                }
                self.at(Endpoint { pool, address }, |registry, series| {
                    registry.add(series.decisions, 1);
                    registry.add(series.finished, 1);
                    registry.add(series.failed, u64::from(!served));
                    registry.add(series.latency_sum, took_ms.unwrap_or_default());
                });
            }
        }
    }

    /// Counts one in a series of a pool with one more label.
    fn count_in(&mut self, pool: usize, metric: &'static Metric, value: &'static str) {
        if let Some(series) = self.pools.get(pool) {
            let handle = self.registry.series(metric, &[series.name(), value]);
            self.registry.add(handle, 1);
        }
    }

    /// Another endpoint than the one put first answered.
    pub fn retried(&mut self, pool: usize) {
        self.in_pool(pool, |registry, series| registry.add(series.retried, 1));
    }

    /// The first byte of the answer's body came.
    pub fn first_token(&mut self, span: &mut Span, address: &str, now_us: u64) {
        span.first_us = Some(now_us);
        if !span.streamed {
            return;
        }
        let pool = span.pool;
        let took_ms = ms(now_us.saturating_sub(span.started_us));
        self.in_pool(pool, |registry, series| {
            registry.observe(series.ttft, took_ms)
        });
        self.at(Endpoint { pool, address }, |registry, series| {
            registry.add(series.first_tokens, 1);
            registry.add(series.ttft_sum, took_ms);
        });
    }

    /// The request ended, after so many parts of an answer's body.
    pub fn finished(&mut self, span: &Span, address: &str, served: bool, parts: u32, now_us: u64) {
        let pool = span.pool;
        let took_ms = ms(now_us.saturating_sub(span.started_us));
        let first_us = span
            .first_us
            .filter(|_| span.streamed && parts >= LEAST_STREAM_PARTS);
        let decode_us = first_us.map(|first_us| now_us.saturating_sub(first_us));
        let steps = u64::from(parts.saturating_sub(1)).max(1);
        self.in_pool(pool, |registry, series| {
            if served {
                registry.observe(series.latency, took_ms);
            }
            if let Some(decode_us) = decode_us {
                registry.observe(series.itl, ms(decode_us / steps));
            }
        });
        self.at(Endpoint { pool, address }, |registry, series| {
            registry.add(series.finished, 1);
            registry.add(series.failed, u64::from(!served));
            registry.add(series.latency_sum, took_ms);
            if let Some(decode_us) = decode_us {
                registry.add(series.decode_sum, ms(decode_us));
                registry.add(series.decode_parts, steps);
            }
        });
    }

    /// A client left before its answer was complete.
    pub fn client_left(&mut self, pool: usize) {
        self.in_pool(pool, |registry, series| registry.add(series.disconnects, 1));
    }

    /// What was found in an engine's answer.
    pub fn told(&mut self, endpoint: Endpoint, finding: Finding) {
        let report = match finding {
            Finding::Nothing => return,
            Finding::Unread(cause) => return self.unreported(endpoint.pool, cause),
            Finding::Report(report) => report,
        };
        self.in_pool(endpoint.pool, |registry, series| {
            let output_tokens = report.output_tokens.unwrap_or_default();
            registry.add(series.reported_prompt, report.prompt_tokens);
            registry.add(series.reported_output, output_tokens);
        });
        let Some(cached_tokens) = report.cached_tokens else {
            return self.unreported(endpoint.pool, Unread::NoCachedTokens);
        };
        self.in_pool(endpoint.pool, |registry, series| {
            registry.add(series.reported_cached, cached_tokens);
        });
        if let Some(predicted_tokens) = report.predicted_tokens {
            self.at(endpoint, |registry, series| {
                registry.add(series.predicted, predicted_tokens);
                registry.add(series.reported, cached_tokens);
            });
        }
    }

    /// What became of the lookups of a pool since this was last told.
    pub fn looked_up(&mut self, pool: usize, tally: &Tally) {
        let Some(pool) = self.pools.get(pool) else {
            return;
        };
        let (registry, name) = (&mut self.registry, pool.name());
        let mut count = |metric, values: &[&str], amount| {
            if amount > 0 {
                let handle = registry.series(metric, values);
                registry.add(handle, amount);
            }
        };
        for (outcome, amount) in Outcome::ALL.iter().zip(tally.outcomes) {
            count(&table::KV_LOOKUPS, &[name, outcome.name()], amount);
        }
        for (skip, amount) in Skip::ALL.iter().zip(tally.skips) {
            count(&table::KV_SKIPPED, &[name, skip.name()], amount);
        }
        count(&table::KV_OVERLAP, &[name], tally.overlap_tokens);
        let duration = registry.series(&table::KV_DURATION, &[name]);
        for took_us in &tally.took_us {
            registry.observe(duration, ms(*took_us));
        }
    }

    /// An engine told its load with an answer.
    pub fn load_told(&mut self, pool: usize) {
        self.in_pool(pool, |registry, series| {
            registry.add(series.load_reports, 1)
        });
    }

    /// What is in flight at an endpoint. A gauge.
    pub fn load(&mut self, endpoint: Endpoint, load: &Load) {
        self.gauges(endpoint, |series| {
            [
                (series.in_flight, u64::from(load.in_flight)),
                (series.waiting, u64::from(load.waiting)),
                (series.queued_tokens, load.prefill_tokens),
                (series.context_tokens, load.context_tokens),
            ]
        });
    }

    /// What the filter makes of an endpoint. A gauge.
    pub fn state(&mut self, endpoint: Endpoint, state: State) {
        self.gauges(endpoint, |series| [(series.state, state.code())]);
    }

    /// An engine of a pool has shown its metrics, which took so long. A histogram.
    pub fn scrape_took(&mut self, pool: usize, took_us: u64) {
        self.in_pool(pool, |registry, series| {
            registry.observe(series.scrape_duration, ms(took_us));
        });
    }

    /// What an engine, or one of its ranks, has shown. Gauges.
    pub fn scraped(&mut self, endpoint: Endpoint, scrape: &Scrape) {
        self.gauges(endpoint, |series| {
            let told = [
                (series.engine_running, scrape.running),
                (series.engine_waiting, scrape.waiting),
                (series.engine_finished, scrape.finished),
                (series.engine_kv_usage, scrape.kv_usage.map(permille)),
                (series.engine_kv_capacity, scrape.kv_capacity_tokens),
                (series.engine_prefix_hits, scrape.prefix_hits.map(permille)),
                (series.engine_uptime, scrape.uptime_s),
            ];
            told.into_iter()
                .filter_map(|(handle, value)| Some((handle, value?)))
        });
    }

    /// How old the last scrape of an endpoint is. A gauge.
    pub fn scrape_age(&mut self, endpoint: Endpoint, age_us: u64) {
        self.gauges(endpoint, |series| [(series.scrape_age, ms(age_us))]);
    }

    /// An engine did not show its metrics.
    pub fn scrape_failed(&mut self, endpoint: Endpoint) {
        self.at(endpoint, |registry, series| {
            registry.add(series.scrape_errors, 1)
        });
    }

    /// How many endpoints a pool has, and to how many of them requests are sent. Gauges.
    pub fn pool_size(&mut self, pool: usize, known: usize, usable: usize) {
        self.has_gauges = true;
        self.in_pool(pool, |registry, series| {
            registry.set(series.known, known as u64);
            registry.set(series.usable, usable as u64);
        });
    }

    /// Of how many endpoints of a pool the figures are too old to be used. A gauge.
    pub fn pool_stale(&mut self, pool: usize, stale: usize) {
        self.in_pool(pool, |registry, series| {
            registry.set(series.stale, stale as u64);
        });
    }

    /// An endpoint has left its pool. Its gauges become 0, the code of what is gone: a metric cannot
    /// be removed. For every worker, and any number of times.
    pub fn gone(&mut self, endpoint: Endpoint) {
        self.at(endpoint, |registry, series| {
            if !series.shared {
                series
                    .gauges()
                    .iter()
                    .for_each(|gauge| registry.set(*gauge, 0));
            }
        });
    }

    /// A pool's set of endpoints has changed.
    pub fn discovery_changed(&mut self, pool: usize) {
        self.in_pool(pool, |registry, series| {
            registry.add(series.discovery_changes, 1)
        });
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

    fn unreported(&mut self, pool: usize, cause: Unread) {
        self.in_pool(pool, |registry, series| {
            if let Some(handle) = series.unreported.get(cause as usize) {
                registry.add(*handle, 1);
            }
        });
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

/// Thousandths of a share; 0 for what is none.
fn permille(share: f64) -> u64 {
    (share.clamp(0.0, 1.0) * 1000.0).round() as u64
}
