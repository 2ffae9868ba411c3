//! Every metric name, in one table.
//!
//! Labels are written as `key=.=value;.;`, the form that Istio's tag extraction knows; the shipped
//! static config and the Envoy Gateway manifests carry the same patterns. All label values come from
//! the config or from closed sets, so the number of metrics is bounded.

use crate::host;
use std::collections::HashMap;
use warmpath_core::{Answer, Decision, Fallback};

/// Counters, defined at their first use and kept. They are added up here and handed to Envoy with
/// every tick: a call for each request would be one of the dearest things a request does.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: HashMap<(usize, &'static str, &'static str), Counter>,
    fallbacks: HashMap<Fallback, Counter>,
    answers: HashMap<&'static str, Counter>,
}

#[derive(Debug)]
struct Counter {
    id: Option<u32>,
    pending: i64,
}

impl Counter {
    fn new(name: &str) -> Self {
        Counter {
            id: host::counter(name),
            pending: 0,
        }
    }

    fn flush(&mut self) {
        let amount = std::mem::take(&mut self.pending);
        if let Some(id) = self.id.filter(|_| amount != 0) {
            host::add(id, amount);
        }
    }
}

impl Metrics {
    /// A request was routed.
    pub fn routed(&mut self, pool: &str, decision: &Decision) {
        let (policy, reason) = (decision.policy, decision.reason.name());
        let counter = self.requests.entry((decision.pool, policy, reason)).or_insert_with(|| {
            Counter::new(&format!(
                "warmpath.requests.pool=.={pool};.;policy=.={policy};.;reason=.={reason};.;total"
            ))
        });
        counter.pending += 1;
    }

    /// A request went on with less knowledge than it could have had.
    pub fn fell_back(&mut self, fallback: Fallback) {
        let counter = self.fallbacks.entry(fallback).or_insert_with(|| {
            Counter::new(&format!(
                "warmpath.fallbacks.cause=.={};.;total",
                fallback.name()
            ))
        });
        counter.pending += 1;
    }

    /// A request was answered by the filter.
    pub fn answered(&mut self, answer: &Answer) {
        let cause = answer.cause;
        let counter = self
            .answers
            .entry(cause)
            .or_insert_with(|| Counter::new(&format!("warmpath.answers.cause=.={cause};.;total")));
        counter.pending += 1;
    }

    /// Hands what was counted to Envoy.
    pub fn flush(&mut self) {
        self.requests.values_mut().for_each(Counter::flush);
        self.fallbacks.values_mut().for_each(Counter::flush);
        self.answers.values_mut().for_each(Counter::flush);
    }
}
