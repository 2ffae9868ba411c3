//! Changes of a request's body.

use crate::host;
use crate::steering::Steering;
use warmpath_core::splice::{self, Change};

/// Makes these changes in what is held of a body, and in the header that tells its length; false if they
/// cannot be made. Nothing is touched if there is nothing to change.
pub fn rewrite(
    steering: &Steering,
    changes: &[Change],
    held_bytes: usize,
    content_length: Option<usize>,
) -> bool {
    if changes.is_empty() {
        return true;
    }
    let Some(body) = host::request_body(0, held_bytes) else {
        return false;
    };
    let Some(changed) = splice::rewrite(&body, changes) else {
        return false;
    };
    if let Some(length) = content_length {
        steering.set_length((length + changed.len()).saturating_sub(body.len()));
    }
    host::replace_request_body(&changed);
    true
}
