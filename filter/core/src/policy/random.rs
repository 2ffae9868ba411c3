//! By lot, without replacement.

use super::{View, below, next_random};
use crate::decision::Reason;

pub(super) fn rank(view: &View) -> (Vec<usize>, Reason) {
    (draw(view, view.candidates), Reason::Draw)
}

/// Distinct members drawn by lot (Floyd's sampling: one random number for each).
pub(super) fn draw(view: &View, count: usize) -> Vec<usize> {
    let mut state = view.draw;
    if let Some(weights) = view.group.weights() {
        let drawn = weights.draw(count, |bound| below(next_random(&mut state), bound));
        return drawn
            .into_iter()
            .map(|it| view.group.position(it))
            .collect();
    }
    let size = view.group.members().len();
    let count = count.min(size);
    let mut drawn: Vec<usize> = Vec::with_capacity(count);
    for last in size - count..size {
        let index = below(next_random(&mut state), last + 1);
        let index = if drawn.contains(&index) { last } else { index };
        // Floyd's set is fair but its order is not: put each new one at a random place.
        let place = below(next_random(&mut state), drawn.len() + 1);
        drawn.insert(place, index);
    }
    drawn
        .iter()
        .filter_map(|index| view.group.members().get(*index).copied())
        .collect()
}
