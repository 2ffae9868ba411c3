//! The session's owner, by rendezvous hashing (Thaler, Ravishankar 1998), with an optional bound on
//! its load (Mirrokni, Thorup, Zadimoghaddam 2018).
//!
//! Every endpoint gets a score from the key and its own address; the highest owns the key. There is
//! no ring to build or to share: two Envoys with the same endpoints agree on every key, an endpoint
//! that leaves moves only its own keys, each to the next in that key's own order, and the load of
//! 10 endpoints differs by the noise of a fair draw only. O(members) for each decision.

use super::{View, least};
use crate::decision::Reason;
use crate::hash::mix;
use std::cmp::Reverse;

pub(super) fn rank(view: &View, key: u64, bounded_load: Option<f64>) -> (Vec<usize>, Reason) {
    let Some(factor) = bounded_load else {
        return (owners(view, key, view.candidates), Reason::SessionOwner);
    };
    let in_flight = |position: &usize| view.loads.total(*position).map_or(0, |load| load.in_flight);
    let total: u32 = view.members.iter().map(in_flight).sum();
    // The mean counts this request too, so that a bound of 1.0 still admits one per endpoint.
    let mean = f64::from(total.saturating_add(1)) / view.members.len().max(1) as f64;
    let bound = (factor * mean).ceil();
    let order = owners(view, key, view.members.len());
    let free = |position: &usize| f64::from(in_flight(position)) < bound;
    match order.iter().position(free) {
        Some(0) | None => (first(order, view.candidates), Reason::SessionOwner),
        Some(index) => {
            let ranked = order
                .iter()
                .skip(index)
                .chain(order.iter().take(index))
                .copied();
            (ranked.take(view.candidates).collect(), Reason::OwnerBusy)
        }
    }
}

fn first(mut order: Vec<usize>, count: usize) -> Vec<usize> {
    order.truncate(count);
    order
}

/// How strongly an endpoint claims a key; the highest score owns it.
pub(super) fn score(view: &View, key: u64, position: usize) -> u64 {
    mix(
        key,
        view.identities.get(position).copied().unwrap_or_default(),
    )
}

/// Members by descending score for `key`.
fn owners(view: &View, key: u64, count: usize) -> Vec<usize> {
    let claim = |position: &usize| (Reverse(score(view, key, *position)), *position);
    let ranked = if count < view.members.len() {
        least(view.members.iter().map(claim), count)
    } else {
        let mut all: Vec<_> = view.members.iter().map(claim).collect();
        all.sort_unstable();
        all
    };
    ranked.into_iter().map(|(_, position)| position).collect()
}
