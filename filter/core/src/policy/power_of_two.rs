//! The less loaded of two drawn by lot (Mitzenmacher 2001), by requests in flight at this moment.
//!
//! Drawing first keeps many routers with a slightly old view from all choosing the same endpoint.

use super::{View, random};
use crate::decision::Reason;

pub(super) fn rank(view: &View) -> (Vec<usize>, Reason) {
    let mut ranked = random::draw(view, view.candidates.max(2));
    let usage = |position: &usize| {
        let load = view.load(*position);
        let place = view.group.place(*position).unwrap_or_default();
        (view.group.scaled(place, load.in_flight), load.last_used_us)
    };
    if let [first, second, ..] = ranked.as_mut_slice()
        && usage(second) < usage(first)
    {
        std::mem::swap(first, second);
    }
    ranked.truncate(view.candidates);
    (ranked, Reason::LesserOfTwo)
}
