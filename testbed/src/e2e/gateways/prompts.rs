//! What an overlay with prompts promises, one promise after the other on one stack.

use std::collections::BTreeSet;

use anyhow::ensure;
use serde_json::json;

use super::{MODEL, Overlay, send, start};
use crate::e2e::client::Call;
use crate::e2e::conversation::{Conversation, text};
use crate::e2e::counters::counter;
use crate::e2e::harness::{Context, Stack, eventually};
use crate::e2e::workers::seed;
use crate::engine::{Fault, FaultPlan};

/// Everything that an overlay with prompts promises.
pub(super) async fn follows_prompts(context: &Context, overlay: Overlay) -> anyhow::Result<()> {
    let (stack, _folder) = start(context, overlay, |_| Ok(())).await?;
    conversations_stay(&stack).await?;
    clients_cannot_steer(&stack).await?;
    long_prompts_pass(&stack).await?;
    the_next_of_the_list_takes_over(&stack).await?;
    labels_are_cut_out(&stack).await
}

/// Each conversation stays with the engine that has it cached, by that engine's word, and all engines
/// are in use.
async fn conversations_stay(stack: &Stack<'_>) -> anyhow::Result<()> {
    let mut homes = BTreeSet::new();
    for _ in 0..9 {
        let mut conversation = Conversation::new(&text(seed(), 4000)).field("model", json!(MODEL));
        let mut home = String::new();
        for turn in 0..4 {
            let reply = send(stack, conversation.ask(&text(seed(), 500))).await?;
            let name = &stack.answered_by(&reply)?.name;
            if turn == 0 {
                home.clone_from(name);
            }
            let (prompt, cached) = reply.prompt_tokens()?;
            ensure!(*name == home, "turn {turn}: {name} instead of {home}");
            ensure!(
                (turn == 0) == (cached == 0),
                "turn {turn}: {cached} of {prompt} cached"
            );
            conversation.heard(&reply)?;
        }
        homes.insert(home);
    }
    ensure!(homes.len() > 1, "all conversations are at {homes:?}");
    Ok(())
}

/// A client's own header does not decide: it names an engine that has nothing of the prompt.
async fn clients_cannot_steer(stack: &Stack<'_>) -> anyhow::Result<()> {
    let call = Call::chat(MODEL, &text(seed(), 4000));
    let home = stack
        .answered_by(&send(stack, call.clone()).await?)?
        .name
        .clone();
    for other in stack.pool("llama").filter(|it| it.name != home) {
        let call = call
            .clone()
            .header("x-gateway-destination-endpoint", other.address.to_string())?;
        let reply = send(stack, call).await?;
        let name = &stack.answered_by(&reply)?.name;
        ensure!(*name == home, "a client chose {name}");
    }
    Ok(())
}

/// More than Envoy holds unless it is told to.
async fn long_prompts_pass(stack: &Stack<'_>) -> anyhow::Result<()> {
    let reply = stack
        .send(Call::chat(MODEL, &text(seed(), 3_000_000)))
        .await?;
    // The engine's own refusal of so many tokens is as good: the request has reached it.
    ensure!(reply.header("x-engine").is_some(), "{}", reply.status);
    Ok(())
}

/// An engine that fails is followed by the next of the list, on the same request.
async fn the_next_of_the_list_takes_over(stack: &Stack<'_>) -> anyhow::Result<()> {
    let call = Call::chat(MODEL, &text(seed(), 4000));
    let home = stack.answered_by(&send(stack, call.clone()).await?)?;
    home.engine.set_fault(FaultPlan {
        requests: Some(1),
        ..Fault::Status {
            code: 500,
            retry_after_s: None,
        }
        .into()
    });
    let reply = send(stack, call).await?;
    ensure!(stack.answered_by(&reply)?.name != home.name, "no retry");
    Ok(())
}

async fn labels_are_cut_out(stack: &Stack<'_>) -> anyhow::Result<()> {
    let labels = [
        ("pool", "llm"),
        ("policy", "prefix"),
        ("reason", "longest_prefix"),
    ];
    eventually("requests are counted by reason", async || {
        let count = counter(stack, "warmpath_requests_total", &labels).await?;
        Ok((count >= 27).then_some(()))
    })
    .await
}
