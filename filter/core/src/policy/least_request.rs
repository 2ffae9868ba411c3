//! Fewest requests in flight; among equals, the least recently used.
//!
//! The tie rule matters: an idle fleet would otherwise send everything to the first endpoint.

use super::{Adapter, Keys, Shortlist, View, least};
use crate::decision::Reason;

/// What a step that an endpoint is from having a LoRA adapter loaded counts, in requests in flight.
const ADAPTER_REQUESTS: u32 = 4;

pub(super) fn rank(view: &View) -> (Vec<usize>, Reason) {
    let ranked = match &view.adapter {
        Some(adapter) => near_adapter(view, adapter),
        None => in_order(view, view.group.usage()),
    };
    (ranked, Reason::LeastInFlight)
}

/// The same, with each step that an endpoint is from the adapter as so many requests; O(members).
fn near_adapter(view: &View, adapter: &Adapter) -> Vec<usize> {
    let members = view.group.members().iter().enumerate();
    let keys = members.map(|(place, position)| {
        let load = view.load(*position);
        let steps = adapter.steps(*position) * ADAPTER_REQUESTS;
        let in_flight = load.in_flight.saturating_add(steps);
        let in_flight = view.group.scaled(place, in_flight);
        (in_flight, load.last_used_us, *position)
    });
    let ranked = least(keys, view.candidates).into_iter();
    ranked.map(|(_, _, position)| position).collect()
}

/// The first by a count and, among equals, the least recently used.
pub(super) fn in_order<K: Copy + Ord>(view: &View, keys: &Keys<K>) -> Vec<usize> {
    let mut list = Shortlist::new(view.candidates);
    let may_enter = |key, worst: &(K, usize)| key <= worst.0;
    let item = |place, key| Some((key, view.group.position(place)));
    keys.offer(&mut list, may_enter, item);
    let ranked = list.into_items().into_iter();
    ranked.map(|(_, position)| position).collect()
}
