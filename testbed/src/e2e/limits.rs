//! Bodies longer than the filter may hold: it decides on what it has read, lets the rest stream,
//! and says so.

use anyhow::ensure;
use serde_json::{Value, json};

use super::arrival::whole;
use super::client::Call;
use super::counters::{counted, counter};
use super::harness::{Context, Stack, StackSpec};
use super::raw::{Framing, Pieces};
use super::{Case, named};

pub(super) fn cases() -> Vec<Case> {
    named!("limits":
        an_early_model_routes_a_long_body,
        a_late_model_leaves_the_choice_to_headers_and_default,
        a_late_session_key_is_done_without,
    )
}

const HOLD_BYTES: usize = 64 * 1024;
const BODY_BYTES: usize = 2_000_000;

fn spec() -> StackSpec {
    StackSpec::shipped()
        .with_room()
        .option("limits", json!({"hold_bytes": HOLD_BYTES}))
}

/// A chat of [`BODY_BYTES`] with members before and after its text.
fn long(first: &str, last: &str) -> Call {
    let text = "tell me more ".repeat(BODY_BYTES / 13);
    let text = format!(
        r#"{{{first}"max_tokens":1,"messages":[{{"role":"user","content":"{text}"}}]{last}}}"#
    );
    Call::post("/v1/chat/completions", &Value::Null).body(text)
}

/// Sends a call whole, and in pieces in both framings; every time all of it must arrive at an engine
/// of `pool`. Returns how often it was sent.
async fn arrives(stack: &Stack<'_>, call: &Call, pool: &str) -> anyhow::Result<u64> {
    let mut replies = vec![stack.send(call.clone()).await?];
    for framing in [Framing::Length, Framing::Chunked] {
        let pieces = Pieces::of(30_000, call.body.len(), framing);
        replies.push(stack.send_in_pieces(call.clone(), &pieces).await?);
    }
    let sent = replies.len() as u64;
    for reply in replies {
        let name = whole(stack, reply, &call.body)?;
        ensure!(
            stack.engine(&name)?.pool == pool,
            "{name} instead of {pool}"
        );
    }
    Ok(sent)
}

async fn fallbacks(stack: &Stack<'_>, cause: &str, want: u64) -> anyhow::Result<()> {
    counted(stack, "warmpath_fallbacks_total", &[("cause", cause)], want).await
}

async fn an_early_model_routes_a_long_body(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let mut sent = arrives(&stack, &long(r#""model":"qwen-2.5-7b","#, ""), "qwen").await?;
    // No other source of a session key ranks above this one.
    let session = r#""model":"llama-3-8b","session_params":{"session_id":"alice"},"#;
    sent += arrives(&stack, &long(session, ""), "llama").await?;
    let alias = r#""session_params":{"session_id":"alice"},"model":"gpt-4o-mini","#;
    for call in [
        long(alias, ""),
        long(alias, "").trailer("x-checksum", "abc"),
    ] {
        let reply = stack.send(call).await?;
        let want = long(&alias.replace("gpt-4o-mini", "llama-3-8b"), "");
        whole(&stack, reply, &want.body)?;
        sent += 1;
    }
    counted(&stack, "warmpath_requests_total", &[], sent).await?;
    let all = counter(&stack, "warmpath_fallbacks_total", &[]).await?;
    ensure!(all == 0, "{all} decided on less than there was");
    Ok(())
}

async fn a_late_model_leaves_the_choice_to_headers_and_default(
    context: &Context,
) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let unnamed = long("", r#","model":"llama-3-8b""#);
    let mut sent = arrives(&stack, &unnamed, "llama").await?;
    let named = long("", r#","model":"qwen-2.5-7b""#).header("x-warmpath-pool", "qwen")?;
    sent += arrives(&stack, &named, "qwen").await?;
    fallbacks(&stack, "model_beyond_limit", sent).await?;
    // Where the model can be read, the header has no say.
    let read = Call::chat("llama-3-8b", "hello").header("x-warmpath-pool", "qwen")?;
    let reply = stack.send(read).await?.expect_status(200)?;
    ensure!(stack.answered_by(&reply)?.pool == "llama", "{reply:?}");
    Ok(())
}

async fn a_late_session_key_is_done_without(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let call = long(r#""model":"llama-3-8b","#, r#","user":"alice""#);
    let sent = arrives(&stack, &call, "llama").await?;
    fallbacks(&stack, "key_beyond_limit", sent).await?;
    // A key in a header is known all the same.
    let call = call.header("x-session-id", "alice")?;
    let reply = stack.send(call).await?.expect_status(200)?;
    ensure!(reply.decision()?.reason == "session_owner", "{reply:?}");
    counted(&stack, "warmpath_requests_total", &[], sent + 1).await?;
    fallbacks(&stack, "key_beyond_limit", sent).await?;
    // So is one in the body that was read, though a better one might have followed.
    let read = long(r#""model":"llama-3-8b","user":"alice","#, "");
    let reply = stack.send(read).await?.expect_status(200)?;
    ensure!(reply.decision()?.reason == "session_owner", "{reply:?}");
    Ok(())
}
