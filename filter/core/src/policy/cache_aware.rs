//! `cache_aware` as vllm-project/router publishes it, for those who move from there.
//!
//! While the fleet is imbalanced (most - fewest > `balance_abs_threshold` and most > fewest x
//! `balance_rel_threshold`, in requests in flight) the least loaded engine is asked. Otherwise the
//! engine that holds the most of the prompt, if that is more than `cache_threshold` of it; else the
//! least loaded. The matching is ours: the same bounded index as `prefix`, not a text tree.

use super::{View, least, least_request};
use crate::decision::Reason;
use std::cmp::Reverse;

/// The options of the policy.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheAwareOptions {
    /// KV capacity of one endpoint in tokens.
    pub kv_tokens: u64,
    /// Least share of the prompt that must be held.
    pub cache_threshold: f64,
    /// Difference in requests above which the fleet may be imbalanced.
    pub balance_abs_threshold: u32,
    /// Ratio of requests above which it then is.
    pub balance_rel_threshold: f64,
}

pub(super) fn rank(view: &View, options: &CacheAwareOptions) -> (Vec<usize>, Reason) {
    let in_flight = |position: &usize| view.loads.total(*position).map_or(0, |load| load.in_flight);
    let most = view.members.iter().map(in_flight).max().unwrap_or_default();
    let fewest = view.members.iter().map(in_flight).min().unwrap_or_default();
    let beyond = f64::from(most) > f64::from(fewest) * options.balance_rel_threshold;
    if most - fewest > options.balance_abs_threshold && beyond {
        return (least_request::rank(view).0, Reason::Imbalance);
    }
    let Some(warmth) = view.warmth else {
        return least_request::rank(view);
    };
    let held = |position: &usize| warmth.held.get(*position).copied().unwrap_or_default();
    let best = view.members.iter().map(held).max().unwrap_or_default();
    if best as f64 <= options.cache_threshold * warmth.tokens as f64 {
        return (least_request::rank(view).0, Reason::ColdPrefix);
    }
    let costs = view.members.iter().map(|position| {
        let load = view.loads.total(*position).copied().unwrap_or_default();
        (
            Reverse(held(position)),
            load.in_flight,
            load.last_used_us,
            *position,
        )
    });
    let ranked = least(costs, view.candidates);
    (
        ranked
            .into_iter()
            .map(|(_, _, _, position)| position)
            .collect(),
        Reason::LongestPrefix,
    )
}
