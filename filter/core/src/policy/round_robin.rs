//! In turn. The turn is counted once for all workers, so the order holds across them.

use super::View;
use crate::decision::Reason;

pub(super) fn rank(view: &View) -> (Vec<usize>, Reason) {
    let members = view.group.members();
    let size = members.len().max(1) as u64;
    let first = match view.group.weights() {
        Some(weights) => weights.in_turn(view.turn),
        None => (view.turn % size) as usize,
    };
    let turns = members.iter().skip(first).chain(members);
    let ranked = turns
        .take(view.candidates.min(members.len()))
        .copied()
        .collect();
    (ranked, Reason::Turn)
}
