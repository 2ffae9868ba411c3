//! Fewest requests within a sliding window; among equals, the least recently used.

use super::View;
use super::least_request::in_order;
use crate::decision::Reason;

pub(super) fn rank(view: &View) -> (Vec<usize>, Reason) {
    let ranked = in_order(view, view.group.requests());
    (ranked, Reason::LowestRate)
}
