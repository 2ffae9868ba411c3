//! Every metric name, in one table.
//!
//! Labels are written as `key=.=value;.;`, the form that Istio's tag extraction knows; the shipped
//! static config and the Envoy Gateway manifests carry the same patterns. All label values come from
//! the config or from closed sets, so the number of metrics is bounded.

use crate::host;
use std::collections::HashMap;
use warmpath_core::{Answer, Decision, Fallback};

/// Counters, defined at their first use and kept.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: HashMap<(usize, &'static str, &'static str), Option<u32>>,
    fallbacks: HashMap<Fallback, Option<u32>>,
    answers: HashMap<&'static str, Option<u32>>,
}

impl Metrics {
    /// A request was routed.
    pub fn routed(&mut self, pool: &str, decision: &Decision) {
        let (policy, reason) = (decision.policy, decision.reason.name());
        let counter = *self.requests.entry((decision.pool, policy, reason)).or_insert_with(|| {
            host::counter(&format!(
                "warmpath.requests.pool=.={pool};.;policy=.={policy};.;reason=.={reason};.;total"
            ))
        });
        increment(counter);
    }

    /// A request went on with less knowledge than it could have had.
    pub fn fell_back(&mut self, fallback: Fallback) {
        let counter = *self.fallbacks.entry(fallback).or_insert_with(|| {
            host::counter(&format!(
                "warmpath.fallbacks.cause=.={};.;total",
                fallback.name()
            ))
        });
        increment(counter);
    }

    /// A request was answered by the filter.
    pub fn answered(&mut self, answer: &Answer) {
        let cause = answer.cause;
        let counter = *self
            .answers
            .entry(cause)
            .or_insert_with(|| host::counter(&format!("warmpath.answers.cause=.={cause};.;total")));
        increment(counter);
    }
}

fn increment(counter: Option<u32>) {
    if let Some(counter) = counter {
        host::add(counter, 1);
    }
}
