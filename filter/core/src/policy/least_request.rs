//! Fewest requests in flight; among equals, the least recently used.
//!
//! The tie rule matters: an idle fleet would otherwise send everything to the first endpoint.

use super::{View, least};
use crate::decision::Reason;

pub(super) fn rank(view: &View) -> (Vec<usize>, Reason) {
    let costs = view.members.iter().map(|position| {
        let load = view.loads.total(*position).copied().unwrap_or_default();
        (load.in_flight, load.last_used_us, *position)
    });
    let ranked = least(costs, view.candidates);
    (
        ranked
            .into_iter()
            .map(|(_, _, position)| position)
            .collect(),
        Reason::LeastInFlight,
    )
}
