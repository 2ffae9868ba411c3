//! Fewest requests within a sliding window; among equals, the least recently used.

use super::{View, least};
use crate::decision::Reason;
use crate::rate::bucket;

pub(super) fn rank(view: &View, window_us: u64) -> (Vec<usize>, Reason) {
    let now = bucket(view.now_us, window_us);
    let costs = view.members.iter().map(|position| {
        let requests = view
            .rates
            .total(*position)
            .map_or(0, |rate| rate.requests(now));
        let used_us = view
            .loads
            .total(*position)
            .map_or(0, |load| load.last_used_us);
        (requests, used_us, *position)
    });
    let ranked = least(costs, view.candidates);
    (
        ranked
            .into_iter()
            .map(|(_, _, position)| position)
            .collect(),
        Reason::LowestRate,
    )
}
