//! `cache_aware` as vllm-project/router publishes it, for those who move from there.
//!
//! While the fleet is imbalanced (most - fewest > `balance_abs_threshold` and most > fewest x
//! `balance_rel_threshold`, in requests in flight) the least loaded engine is asked. Otherwise the
//! engine that holds the most of the prompt, if that is more than `cache_threshold` of it; else the
//! least loaded. The matching is ours: the same bounded index as `prefix`, not a text tree.

use super::prefix::Warmth;
use super::{Shortlist, View, least_request};
use crate::decision::Reason;
use std::cmp::Reverse;

/// The options of the policy.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheAwareOptions {
    /// KV capacity of one endpoint in tokens.
    pub kv_tokens: u64,
    /// Whether an engine's own word on its capacity counts instead.
    pub learns_kv_tokens: bool,
    /// Least share of the prompt that must be held.
    pub cache_threshold: f64,
    /// Difference in requests above which the fleet may be imbalanced.
    pub balance_abs_threshold: u32,
    /// Ratio of requests above which it then is.
    pub balance_rel_threshold: f64,
}

pub(super) fn rank(view: &View, options: &CacheAwareOptions) -> (Vec<usize>, Reason) {
    let (difference, fewest) = view.group.spread();
    let most = fewest + difference;
    let beyond = f64::from(most) > f64::from(fewest) * options.balance_rel_threshold;
    if difference > options.balance_abs_threshold && beyond {
        return (least_request::rank(view).0, Reason::Imbalance);
    }
    let Some(warmth) = view.warmth else {
        return least_request::rank(view);
    };
    let best = warmth.most_held(view.group);
    if best as f64 <= options.cache_threshold * warmth.tokens as f64 {
        return (least_request::rank(view).0, Reason::ColdPrefix);
    }
    (by_held(view, &warmth), Reason::LongestPrefix)
}

/// By descending tokens held, then as `least_request` ranks.
fn by_held(view: &View, warmth: &Warmth) -> Vec<usize> {
    let usage = |position: usize| {
        let place = view.group.place(position);
        place
            .and_then(|place| view.group.usage().get(place))
            .unwrap_or_default()
    };
    let mut list: Shortlist<(Reverse<u64>, (u32, u64), usize)> = Shortlist::new(view.candidates);
    for (position, tokens) in warmth.holders_in(view.group) {
        list.offer((Reverse(tokens), usage(position), position));
    }
    let may_enter =
        |key, worst: &(Reverse<u64>, (u32, u64), usize)| (Reverse(0), key) <= (worst.0, worst.1);
    let item = |place, key| {
        let position = view.group.position(place);
        let holds = warmth.holders.tokens(position) > 0;
        (!holds).then_some((Reverse(0), key, position))
    };
    view.group.usage().offer(&mut list, may_enter, item);
    let ranked = list.into_items().into_iter();
    ranked.map(|(_, _, position)| position).collect()
}
