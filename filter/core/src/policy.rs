//! Policies: given the usable endpoints of a pool, who is asked first, second, third.
//!
//! A policy ranks instead of picking, because Envoy's retries walk the list: the second entry is the
//! policy's own second choice, not whoever a load balancer draws. One file per algorithm.

mod adapter;
pub mod cache_aware;
mod consistent_hash;
mod foreign;
mod group;
mod holders;
mod kv_aware;
mod least_kv;
mod least_request;
mod lowest_qps;
mod power_of_two;
pub mod prefix;
mod random;
mod round_robin;
mod shortlist;
mod weights;

use crate::board::Board;
use crate::config::PolicyConfig;
use crate::decision::Reason;
use crate::load::Load;
use crate::rate::{Rate, bucket};
use prefix::Warmth;

pub use adapter::Adapter;
pub use foreign::{Foreign, Heard, Usage, share};
pub use group::Group;
pub use holders::Holders;
pub use shortlist::{Keys, Shortlist, least};
pub use weights::Weights;

/// What policies may look at.
#[derive(Debug)]
pub struct View<'a> {
    /// The usable endpoints; [`catch_up`] was called for it.
    pub group: &'a Group,
    /// Work of ours in flight.
    pub loads: &'a Board<Load>,
    /// What engines said of requests that are not ours, by position; left out: nothing.
    pub foreign: &'a [Foreign],
    /// The LoRA adapter that the request asks for, if it is known where it is loaded.
    pub adapter: Option<Adapter<'a>>,
    /// Hash of the session key.
    pub key: Option<u64>,
    /// What is known of the prompt, for policies that look at it.
    pub warmth: Option<Warmth<'a>>,
    /// What an index service says of the prompt.
    pub word: Word,
    /// What the prefill work that other Envoys may have sent to the pool since they were heard may count.
    pub unseen_tokens: f64,
    /// Number of this request in its pool, for `round_robin`.
    pub turn: u64,
    /// A random number.
    pub draw: u64,
    /// Most entries of the ranking.
    pub candidates: usize,
}

impl View<'_> {
    /// The load of an endpoint, with what its engine said added to it.
    pub fn load(&self, position: usize) -> Load {
        group::seen(self.loads, self.foreign, position)
    }
}

/// Endpoints in order of preference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranking {
    /// Distinct positions of members; empty only if there are none.
    pub ranked: Vec<usize>,
    /// Name of the policy that decided.
    pub policy: &'static str,
    /// Why the first is first.
    pub reason: Reason,
}

/// What an index service says of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Word {
    /// Nothing: it was not asked, or did not answer.
    #[default]
    None,
    /// That no engine holds enough of it.
    Unmatched,
    /// Who holds how much of it.
    Matched,
}

/// The policy that decides about a request: itself, or its stand-in when there is no session key, or no
/// word of an index service.
pub fn effective(policy: &PolicyConfig, has_key: bool, word: Word) -> &PolicyConfig {
    match (policy, word) {
        (PolicyConfig::ConsistentHash { without_key, .. }, _) if !has_key => without_key,
        (PolicyConfig::KvAware(options), Word::None) => &options.prefix,
        (PolicyConfig::KvAware(options), Word::Unmatched) => match &options.fallback {
            Some(fallback) => effective(fallback, has_key, word),
            None => policy,
        },
        (policy, _) => policy,
    }
}

/// Takes over into a group what a policy compares; `rates` is only fed when a pool asks for it. Whatever
/// stands in for the pool's policy, the group's costs are those of the pool's `prefix`, if it has any.
pub fn catch_up(
    policy: &PolicyConfig,
    pool: &PolicyConfig,
    group: &mut Group,
    loads: &Board<Load>,
    foreign: &[Foreign],
    rates: &Board<Rate>,
    now_us: u64,
) {
    let weights = pool.prefix();
    let cost = |load: &Load| weights.map_or(0.0, |weights| prefix::load_cost(weights, load));
    match policy {
        PolicyConfig::RoundRobin
        | PolicyConfig::Random
        | PolicyConfig::PowerOfTwo
        | PolicyConfig::LeastKv
        | PolicyConfig::ConsistentHash {
            bounded_load: None, ..
        } => {}
        PolicyConfig::LowestQps { window_us } => {
            group.catch_up_rates(rates, loads, foreign, bucket(now_us, *window_us));
        }
        PolicyConfig::LeastRequest
        | PolicyConfig::Prefix(_)
        | PolicyConfig::KvAware(_)
        | PolicyConfig::CacheAware(_)
        | PolicyConfig::ConsistentHash { .. } => group.catch_up(loads, foreign, cost),
    }
}

/// Ranks the members of a view.
pub fn rank(policy: &PolicyConfig, view: &View) -> Ranking {
    let policy = effective(policy, view.key.is_some(), view.word);
    let (ranked, reason) = match policy {
        PolicyConfig::RoundRobin => round_robin::rank(view),
        PolicyConfig::Random => random::rank(view),
        PolicyConfig::LeastRequest => least_request::rank(view),
        PolicyConfig::LeastKv => least_kv::rank(view),
        PolicyConfig::PowerOfTwo => power_of_two::rank(view),
        PolicyConfig::LowestQps { .. } => lowest_qps::rank(view),
        PolicyConfig::Prefix(options) => prefix::rank(view, options),
        PolicyConfig::CacheAware(options) => cache_aware::rank(view, options),
        PolicyConfig::KvAware(options) => kv_aware::rank(view, options),
        PolicyConfig::ConsistentHash { bounded_load, .. } => {
            consistent_hash::rank(view, view.key.unwrap_or_default(), *bounded_load)
        }
    };
    Ranking {
        ranked,
        policy: policy.name(),
        reason,
    }
}

/// One step of SplitMix64 (Steele, Lea, Flood 2014): a cheap, well mixed sequence for draws.
pub fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number below `bound` (0 for 0) from a random number, without the bias of a remainder.
pub fn below(random: u64, bound: usize) -> usize {
    ((u128::from(random) * bound as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_stays_below() {
        assert_eq!(below(u64::MAX, 10), 9);
        assert_eq!(below(0, 10), 0);
        assert_eq!(below(u64::MAX, 0), 0);
    }
}
