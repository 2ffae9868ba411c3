//! The cost of `prefix`, with what an index service says that the engines really hold.
//!
//! What differs is who says it: [`Warmth`](super::prefix::Warmth) then has the service's figures, and the
//! longer of these and of what was routed a moment ago. Load counts as much as ever, so a prompt that is
//! held by one busy engine alone does not wait there for ever.

use super::{View, prefix};
use crate::config::{KvAwareOptions, PolicyConfig};
use crate::decision::Reason;

pub(super) fn rank(view: &View, options: &KvAwareOptions) -> (Vec<usize>, Reason) {
    let PolicyConfig::Prefix(weights) = options.prefix.as_ref() else {
        return (Vec::new(), Reason::ColdPrefix);
    };
    let (ranked, reason) = prefix::rank(view, weights);
    let reason = match reason {
        Reason::LongestPrefix => Reason::LongestCached,
        Reason::LoadOverPrefix => Reason::LoadOverCached,
        other => other,
    };
    (ranked, reason)
}
