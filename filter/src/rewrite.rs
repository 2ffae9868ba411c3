//! The one change that is made to a body: a model's own name in place of its alias.

use crate::host;
use warmpath_core::decision::Rewrite;

/// Puts the model's own name where the alias stood, and nothing else.
pub fn rewrite_model(rewrite: &Rewrite, held_bytes: usize, content_length: Option<usize>) {
    let Some(body) = host::request_body(0, held_bytes) else {
        return;
    };
    let (Some(before), Some(after)) =
        (body.get(..rewrite.span.start), body.get(rewrite.span.end..))
    else {
        return;
    };
    let mut rewritten = Vec::with_capacity(body.len() + rewrite.json.len());
    rewritten.extend_from_slice(before);
    rewritten.extend_from_slice(rewrite.json.as_bytes());
    rewritten.extend_from_slice(after);
    if let Some(length) = content_length {
        let grown = (length + rewritten.len()).saturating_sub(body.len());
        host::set_request_header("content-length", Some(grown.to_string().as_bytes()));
    }
    host::replace_request_body(&rewritten);
}
