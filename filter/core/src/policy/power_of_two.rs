//! The less loaded of two drawn by lot (Mitzenmacher 2001), by requests in flight at this moment.
//!
//! Drawing first keeps many routers with a slightly old view from all choosing the same endpoint.

use super::{View, random};
use crate::decision::Reason;

pub(super) fn rank(view: &View) -> (Vec<usize>, Reason) {
    let mut ranked = random::draw(view, view.candidates.max(2));
    let load = |position: &usize| view.load(*position);
    if let [first, second, ..] = ranked.as_mut_slice() {
        let (a, b) = (load(first), load(second));
        if (b.in_flight, b.last_used_us) < (a.in_flight, a.last_used_us) {
            std::mem::swap(first, second);
        }
    }
    ranked.truncate(view.candidates);
    (ranked, Reason::LesserOfTwo)
}
