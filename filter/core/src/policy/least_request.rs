//! Fewest requests in flight; among equals, the least recently used.
//!
//! The tie rule matters: an idle fleet would otherwise send everything to the first endpoint.

use super::{Keys, Shortlist, View};
use crate::decision::Reason;

pub(super) fn rank(view: &View) -> (Vec<usize>, Reason) {
    let ranked = in_order(view, view.group.usage());
    (ranked, Reason::LeastInFlight)
}

/// The first by a count and, among equals, the least recently used.
pub(super) fn in_order(view: &View, keys: &Keys<(u32, u64)>) -> Vec<usize> {
    let mut list = Shortlist::new(view.candidates);
    let may_enter = |key, worst: &((u32, u64), usize)| key <= worst.0;
    let item = |place, key| Some((key, view.group.position(place)));
    keys.offer(&mut list, may_enter, item);
    let ranked = list.into_items().into_iter();
    ranked.map(|(_, position)| position).collect()
}
