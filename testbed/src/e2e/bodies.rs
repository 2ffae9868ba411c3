//! Bodies arrive in any pieces and sizes: the choice of the engine and the bytes it gets are those
//! of the body as a whole.

use anyhow::ensure;
use serde_json::json;

use super::arrival::whole;
use super::client::{Call, Transport};
use super::harness::{Context, Stack, StackSpec};
use super::raw::{Framing, Pieces};
use super::{Case, named};

pub(super) fn cases() -> Vec<Case> {
    named!("bodies":
        a_body_cut_anywhere_is_routed_like_a_whole,
        a_body_may_come_byte_by_byte,
        large_bodies_pass_whole,
        a_large_body_is_retried,
    )
}

/// More than Envoy's default buffer, which answers 413.
const LARGE_BYTES: usize = 8_000_000;

/// A chat whose pool and session stand at the end of the body, with text of all kinds before.
fn late_model(session: &str) -> Call {
    let body = json!({
        "messages": [{"role": "user", "content": "Grüße \u{1f600} \"quoted\" \\ {\"model\": \"x\"}"}],
        "max_tokens": 1,
        "user": session,
        "z-model-comes-last": 1,
    });
    let text = body.to_string();
    let text = text.replace("\"z-model-comes-last\":1", "\"model\":\"llama-3-8b\"");
    Call::post("/v1/chat/completions", &body).body(text)
}

async fn a_body_cut_anywhere_is_routed_like_a_whole(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    let call = late_model("alice");
    let want = whole(&stack, stack.send(call.clone()).await?, &call.body)?;
    for framing in [Framing::Length, Framing::Chunked] {
        for offset in 1..call.body.len() {
            let pieces = Pieces::split_at(offset, framing);
            let reply = stack.send_in_pieces(call.clone(), &pieces).await?;
            let name = whole(&stack, reply, &call.body)?;
            ensure!(
                name == want,
                "{framing:?}, cut at {offset}: {name} instead of {want}"
            );
        }
    }
    Ok(())
}

async fn a_body_may_come_byte_by_byte(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    for session in ["alice", "bob", "carol"] {
        let call = late_model(session);
        let want = whole(&stack, stack.send(call.clone()).await?, &call.body)?;
        for framing in [Framing::Length, Framing::Chunked] {
            let pieces = Pieces::of(1, call.body.len(), framing);
            let reply = stack.send_in_pieces(call.clone(), &pieces).await?;
            let name = whole(&stack, reply, &call.body)?;
            ensure!(name == want, "{framing:?}: {name} instead of {want}");
        }
    }
    Ok(())
}

/// A chat of about [`LARGE_BYTES`] of text.
fn large(model: &str) -> Call {
    Call::chat(model, &"tell me more ".repeat(LARGE_BYTES / 13))
}

async fn large_bodies_pass_whole(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped().with_room()).await?;
    let call = large("qwen-2.5-7b");
    for transport in [Transport::Http1, Transport::Http2] {
        let reply = stack.send(call.clone().over(transport)).await?;
        ensure!(whole(&stack, reply, &call.body)? == "qwen-0");
    }
    let pieces = Pieces::of(100_000, call.body.len(), Framing::Chunked);
    let reply = stack.send_in_pieces(call.clone(), &pieces).await?;
    ensure!(whole(&stack, reply, &call.body)? == "qwen-0");
    Ok(())
}

async fn a_large_body_is_retried(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped().with_room()).await?;
    let call = large("llama-3-8b").header("x-session-id", "alice")?;
    let first = whole(&stack, stack.send(call.clone()).await?, &call.body)?;
    stack.engine(&first)?.engine.kill().await;
    let second = whole(&stack, stack.send(call.clone()).await?, &call.body)?;
    ensure!(second != first, "{first} is dead");
    Ok(())
}
