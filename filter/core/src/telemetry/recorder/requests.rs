//! The figures of requests, from their decision to their end, and of what engines tell in their answers.

use super::super::{Metric, Sink, table};
use super::{Endpoint, Recorder, ms};
use crate::answer::Answer;
use crate::decision::{Decision, Fallback};
use crate::disaggregation::{CallEnd, Note};
use crate::feedback::{Finding, Unread};
use crate::kv::{Outcome, Skip, Tally};
use crate::router::Charge;

/// Fewer parts say more about how bytes were cut than about tokens.
const LEAST_STREAM_PARTS: u32 = 8;

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

impl<K: Sink> Recorder<K> {
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

    fn unreported(&mut self, pool: usize, cause: Unread) {
        self.in_pool(pool, |registry, series| {
            if let Some(handle) = series.unreported.get(cause as usize) {
                registry.add(*handle, 1);
            }
        });
    }
}
