//! The session's owner, by rendezvous hashing (Thaler, Ravishankar 1998), with an optional bound on
//! its load (Mirrokni, Thorup, Zadimoghaddam 2018).
//!
//! Every endpoint gets a score from the key and its own address; the highest owns the key. There is
//! no ring to build or to share: two Envoys with the same endpoints agree on every key, an endpoint
//! that leaves moves only its own keys, each to the next in that key's own order, and the load of
//! 10 endpoints differs by the noise of a fair draw only. O(members) for each decision.

use super::{View, least};
use crate::decision::Reason;
use std::cmp::Reverse;

pub(super) fn rank(view: &View, key: u64, bounded_load: Option<f64>) -> (Vec<usize>, Reason) {
    let Some(factor) = bounded_load else {
        return (owners(view, key), Reason::SessionOwner);
    };
    let group = view.group;
    let total = group.total_in_flight();
    // The mean counts this request too, so that a bound of 1.0 still admits one per endpoint.
    let mean = f64::from(total.saturating_add(1)) / group.members().len().max(1) as f64;
    let bound = |place| (factor * mean * group.speed(place)).ceil();
    let free = group.scores(key).zip(group.in_flight()).enumerate();
    let free = free.filter(|(place, (_, in_flight))| f64::from(**in_flight) < bound(*place));
    let best = free
        .map(|(_, ((score, position), _))| claim(score, position))
        .min();
    let owners = owners(view, key);
    match best {
        Some(best) if owners.first() != Some(&best.1) => (from(view, key, best), Reason::OwnerBusy),
        _ => (owners, Reason::SessionOwner),
    }
}

/// A place in the order of a key's owners; the least comes first.
type Claim = (Reverse<u64>, usize);

fn claim(score: u64, position: usize) -> Claim {
    (Reverse(score), position)
}

/// The first owners of a key, at most as many as candidates are asked for.
fn owners(view: &View, key: u64) -> Vec<usize> {
    view.group.owners(key, view.candidates)
}

/// The same from one of the owners on; those before it come last.
fn from(view: &View, key: u64, first: Claim) -> Vec<usize> {
    let claims = || view.group.scores(key).map(|(score, at)| claim(score, at));
    let mut ranked = least(claims().filter(|claim| *claim >= first), view.candidates);
    let room = view.candidates - ranked.len().min(view.candidates);
    ranked.extend(least(claims().filter(|claim| *claim < first), room));
    positions(ranked)
}

fn positions(claims: Vec<Claim>) -> Vec<usize> {
    claims.into_iter().map(|(_, position)| position).collect()
}
