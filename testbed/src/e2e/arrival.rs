//! What of a request arrived at the engine that answered it.

use anyhow::{Context as _, ensure};
use xxhash_rust::xxh3::xxh3_64;

use super::client::Reply;
use super::harness::{Stack, StackEngine};
use crate::engine::Seen;

/// The engine that gave a reply, and the request as it saw it. The status may be any.
pub fn arrival<'s>(stack: &'s Stack<'_>, reply: &Reply) -> anyhow::Result<(&'s StackEngine, Seen)> {
    let engine = stack.answered_by(reply)?;
    let id = Some(reply.request_id.as_bytes());
    let mut seen = engine.engine.log().into_iter().rev();
    let seen = seen.find(|seen| seen.header("x-request-id") == id);
    let seen = seen.context("the engine that answered saw no such request")?;
    Ok((engine, seen))
}

/// Fails unless the reply is 200 and its engine got exactly `body`; names the engine.
pub fn whole(stack: &Stack<'_>, reply: Reply, body: &[u8]) -> anyhow::Result<String> {
    let (engine, seen) = arrival(stack, &reply.expect_status(200)?)?;
    ensure!(
        (seen.body_bytes, seen.body_xxh3) == (body.len(), xxh3_64(body)),
        "{} bytes became {}, or others",
        body.len(),
        seen.body_bytes
    );
    Ok(engine.name.clone())
}
