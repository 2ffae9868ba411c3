//! The warm path: where cached prefix and queued work together give the earliest first token.
//!
//! Every engine gets a cost in tokens of prefill work, and the cheapest is asked:
//!
//! ```text
//! cost = W + alpha * u * (1 - home_affinity * [engine is the conversation's home])
//!          + request_tokens * n + context_weight * c
//! u     = max(16, prompt tokens - tokens held by the engine)
//! alpha = 1 + stickiness * q
//! q     = mean over engines of the requests without a first token, each counted to at most 2 more
//!         than the least of them; at most 8
//! ```
//!
//! `W` is the prefill work that awaits a first token at the engine, `n` its requests in flight, `c`
//! their context tokens. `u` is our own work there; it weighs more the more is queued anywhere,
//! because work done twice delays everybody behind it (`alpha`; a greedy router has alpha 1 and tips
//! over at saturation). Equal costs, as those of a cold prompt on an idle fleet, are decided by the
//! conversation's rendezvous rank, so that replicas which share nothing still agree.
//!
//! With an `imbalance_threshold` the least loaded engine wins before any of this, once the most and
//! the least loaded differ by that many requests.

use super::consistent_hash::score;
use super::{View, least_request};
use crate::decision::Reason;
use std::cmp::{Ordering, Reverse};

/// What of a prompt is known, and where it is held.
#[derive(Clone, Copy, Debug)]
pub struct Warmth<'a> {
    /// Tokens of the prompt.
    pub tokens: u64,
    /// Tokens held, by position of the endpoint in the router.
    pub held: &'a [u64],
    /// Hash of the session key, or of what all turns of the conversation share.
    pub conversation: u64,
}

/// The options of the policy.
#[derive(Clone, Debug, PartialEq)]
pub struct PrefixOptions {
    /// KV capacity of one endpoint in tokens.
    pub kv_tokens: u64,
    /// How much the cost of prefill counts more for each request that waits, per engine.
    pub stickiness: f64,
    /// Discount of the prefill cost at the conversation's home, 0 to 1.
    pub home_affinity: f64,
    /// Cost of a request in flight, in tokens.
    pub request_tokens: f64,
    /// Cost of a context token in flight, in tokens.
    pub context_weight: f64,
    /// Difference in requests at which only load counts.
    pub imbalance_threshold: Option<u32>,
}

/// No engine computes less than a block again.
const LEAST_WORK_TOKENS: u64 = 16;
/// How far beyond the shortest queue one counts. A queue at one engine says nothing about the cost
/// of doing work twice while another engine is idle.
const MOST_BEYOND_SHORTEST: u32 = 2;
/// Beyond this many waiting requests per engine, more do not make a hit worth more.
const MOST_WAITING: f64 = 8.0;

pub(super) fn rank(view: &View, options: &PrefixOptions) -> (Vec<usize>, Reason) {
    if options
        .imbalance_threshold
        .is_some_and(|threshold| imbalance(view) >= threshold)
    {
        return (least_request::rank(view).0, Reason::Imbalance);
    }
    let Some(warmth) = view.warmth else {
        return least_request::rank(view);
    };
    let load = |position: usize| view.loads.total(position).copied().unwrap_or_default();
    let waiting = |position: &usize| load(*position).waiting;
    let shortest = view.members.iter().map(waiting).min().unwrap_or_default();
    let longest = shortest.saturating_add(MOST_BEYOND_SHORTEST);
    let queued: u32 = view
        .members
        .iter()
        .map(|position| waiting(position).min(longest))
        .sum();
    let queue = f64::from(queued) / view.members.len().max(1) as f64;
    let alpha = 1.0 + options.stickiness * queue.min(MOST_WAITING);
    let home = (options.home_affinity > 0.0)
        .then(|| home(view, warmth.conversation))
        .flatten();
    let costs = view.members.iter().map(|position| {
        let load = load(*position);
        let work = work(&warmth, *position) as f64;
        let discount = if home == Some(*position) {
            1.0 - options.home_affinity
        } else {
            1.0
        };
        let cost = load.prefill_tokens as f64
            + alpha * work * discount
            + options.request_tokens * f64::from(load.in_flight)
            + options.context_weight * load.context_tokens as f64;
        // The bits of a float that is not negative are in its order.
        (cost.max(0.0).to_bits(), *position)
    });
    let rank = |position: usize| Reverse(score(view, warmth.conversation, position));
    let ranked = cheapest(costs, rank, view.candidates);
    let reason = reason(view, &warmth, ranked.first().copied());
    (ranked, reason)
}

/// The `count` cheapest positions; only equal costs are told apart by `rank`.
fn cheapest<R: Ord>(
    costs: impl Iterator<Item = (u64, usize)>,
    rank: impl Fn(usize) -> R,
    count: usize,
) -> Vec<usize> {
    let mut best: Vec<(u64, usize)> = Vec::with_capacity(count.saturating_add(1));
    for (cost, position) in costs {
        let goes_before = |other: &(u64, usize)| match cost.cmp(&other.0) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal => (rank(position), position) < (rank(other.1), other.1),
        };
        if best.len() == count && !best.last().is_some_and(goes_before) {
            continue;
        }
        let at = best.iter().position(goes_before).unwrap_or(best.len());
        best.insert(at, (cost, position));
        best.truncate(count);
    }
    best.into_iter().map(|(_, position)| position).collect()
}

/// Tokens that an endpoint would have to prefill.
pub fn work(warmth: &Warmth, position: usize) -> u64 {
    let held = warmth.held.get(position).copied().unwrap_or_default();
    warmth.tokens.saturating_sub(held).max(LEAST_WORK_TOKENS)
}

fn home(view: &View, conversation: u64) -> Option<usize> {
    view.members
        .iter()
        .copied()
        .max_by_key(|position| score(view, conversation, *position))
}

fn imbalance(view: &View) -> u32 {
    let in_flight = |position: &usize| view.loads.total(*position).map_or(0, |load| load.in_flight);
    let most = view.members.iter().map(in_flight).max().unwrap_or_default();
    let fewest = view.members.iter().map(in_flight).min().unwrap_or_default();
    most - fewest
}

fn reason(view: &View, warmth: &Warmth, first: Option<usize>) -> Reason {
    let held = |position: usize| warmth.held.get(position).copied().unwrap_or_default();
    let most = view
        .members
        .iter()
        .map(|position| held(*position))
        .max()
        .unwrap_or_default();
    match first.map(held) {
        _ if most == 0 => Reason::ColdPrefix,
        Some(held) if held == most => Reason::LongestPrefix,
        _ => Reason::LoadOverPrefix,
    }
}
