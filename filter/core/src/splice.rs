//! Changing a body without touching the rest of it: members of its objects are taken out or put in, and
//! every other byte stays as it came.
//!
//! A body is never parsed into values and written again: unknown fields, the order of keys, the way that
//! numbers are written and white space survive. [`rewrite`] walks the objects that a [`Change`] speaks of
//! once ([`members`]), turns the changes into spans and copies what is between them. Linear in the body
//! and, for each member, in the number of changes; memory is one new body and 48 bytes for each member
//! that is changed, of which there are at most [`MOST_MEMBERS`].
//!
//! ```
//! # use warmpath_core::splice::{Change, rewrite};
//! let body = br#"{ "model":"m", "secret" : [1, {}], "temperature":1.0 }"#;
//! let changes = [Change::Remove(&["secret"]), Change::Set("n", "1".to_owned())];
//! let changed = rewrite(body, &changes).expect("a JSON object");
//! assert_eq!(changed, br#"{ "model":"m", "temperature":1.0,"n":1 }"#);
//! ```

mod members;
mod plan;

pub use members::{Member, Members, members};

use crate::order;
use plan::Plan;
use std::ops::Range;

/// Members that one rewriting takes out or puts in; who repeats a key more often than that is refused.
pub const MOST_MEMBERS: usize = 256;

/// Bytes to put where others are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The bytes of the old body that go.
    pub span: Range<usize>,
    /// What comes in their place.
    pub bytes: Vec<u8>,
}

/// What is to be different. Keys are compared decoded, however they are written, and every member
/// of that key is meant, however often it comes. Later changes win over earlier ones of the same key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// These bytes, wherever they are. They must not overlap with what another change speaks of.
    At(Edit),
    /// No member under this path of keys, the outermost first.
    Remove(&'static [&'static str]),
    /// One top-level member of this key with this JSON text, after all others.
    Set(&'static str, String),
    /// This JSON text as the value of every top-level member of the key; none is added.
    Replace(&'static str, String),
}

/// The body with all changes made; `None` if it is no JSON object, or has more than [`MOST_MEMBERS`]
/// members to change.
#[must_use]
pub fn rewrite(body: &[u8], changes: &[Change]) -> Option<Vec<u8>> {
    Some(apply(body, edits(body, changes)?))
}

/// The changes as edits, in the order of the body.
fn edits(body: &[u8], changes: &[Change]) -> Option<Vec<Edit>> {
    let mut edits = Vec::new();
    let mut plan = Plan::default();
    for change in changes {
        match change {
            Change::At(edit) => edits.push(edit.clone()),
            change => plan.add(change),
        }
    }
    if !plan.is_empty() {
        plan.edits(body, &mut edits)?;
    }
    order::sort(&mut edits, |one, other| {
        let place = |edit: &Edit| (edit.span.start, edit.span.end);
        place(one).cmp(&place(other))
    });
    (edits.len() <= MOST_MEMBERS).then_some(edits)
}

/// Copies the body but for the edits, which are in its order. One that is out of bounds or overlaps with
/// the one before it is left out.
fn apply(body: &[u8], edits: Vec<Edit>) -> Vec<u8> {
    let more: usize = edits.iter().map(|edit| edit.bytes.len()).sum();
    let mut changed = Vec::with_capacity(body.len() + more);
    let mut copied = 0;
    for Edit { span, bytes } in edits {
        let between = body.get(copied..span.start);
        let (Some(between), true) = (between, span.start <= span.end && span.end <= body.len())
        else {
            continue;
        };
        changed.extend_from_slice(between);
        changed.extend_from_slice(&bytes);
        copied = span.end;
    }
    changed.extend_from_slice(body.get(copied..).unwrap_or_default());
    changed
}

#[cfg(test)]
mod tests;
