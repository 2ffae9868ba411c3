//! What one Envoy learns the others know: prompts, load, and what was learned before they started.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::ensure;

use super::super::Case;
use super::super::client::Call;
use super::super::harness::{Context, eventually};
use super::super::workers::{Workers, streamed};
use super::{Pair, is_warm, prompt, stored};
use crate::engine::Fault;
use crate::store::Binaries;

pub(super) fn cases(binaries: &Binaries) -> Vec<Case> {
    stored!(binaries, "shared":
        prompts_of_one_envoy_are_warm_at_the_other,
        load_of_one_envoy_is_avoided_by_the_other,
        a_restarted_envoy_is_warm,
    )
}

/// Requests in a row that must pass a busy engine by. An Envoy that does not know of its load would send
/// every other one there.
const PASSED_BY: usize = 6;
/// Prompts that are told before an Envoy is restarted.
const TOLD: usize = 60;
/// How many of them in a row must be warm.
const WARM: usize = 5;

async fn prompts_of_one_envoy_are_warm_at_the_other(
    context: &Context,
    binaries: &Binaries,
) -> anyhow::Result<()> {
    let pair = Pair::start(context, binaries).await?;
    // What is known is known by every worker of the other.
    let mut calls = Vec::new();
    for _ in 0..TOLD {
        let call = prompt();
        pair.stack.send(call.clone()).await?.expect_status(200)?;
        calls.push(call);
    }
    pair.acquainted().await?;
    for call in calls {
        let reply = pair.other.send(call).await?.expect_status(200)?;
        ensure!(is_warm(&reply)?, "{:?}", reply.decision()?);
    }
    Ok(())
}

async fn load_of_one_envoy_is_avoided_by_the_other(
    context: &Context,
    binaries: &Binaries,
) -> anyhow::Result<()> {
    let pair = Pair::start(context, binaries).await?;
    let workers = Workers::introduced(&pair.stack).await?;
    let chat = || Call::chat("qwen-2.5-7b", "hello");
    let held = workers.hold(&pair.stack, 0, chat()).await?;
    let passes_by = async || {
        for _ in 0..PASSED_BY {
            let reply = pair.other.send(chat()).await?.expect_status(200)?;
            if pair.stack.answered_by(&reply)?.name == held.engine {
                return Ok(None);
            }
        }
        Ok(Some(()))
    };
    eventually("the other Envoy avoids a busy engine", passes_by).await?;
    let busy = held.engine.clone();
    drop(held);
    eventually("the other Envoy knows that it is free again", async || {
        let reply = pair.other.send(chat()).await?.expect_status(200)?;
        Ok((pair.stack.answered_by(&reply)?.name == busy).then_some(()))
    })
    .await
}

async fn a_restarted_envoy_is_warm(context: &Context, binaries: &Binaries) -> anyhow::Result<()> {
    let mut pair = Pair::start(context, binaries).await?;
    let mut calls = Vec::new();
    for _ in 0..TOLD {
        let call = prompt();
        pair.stack.send(call.clone()).await?.expect_status(200)?;
        calls.push(call);
    }
    pair.acquainted().await?;
    pair.other.kill()?;
    // The first hears of its loss as of any silence; what both knew is in the store.
    pair.other.start().await?;
    let next = AtomicUsize::new(0);
    let warm_in_a_row = async || {
        for _ in 0..WARM {
            let Some(call) = calls.get(next.fetch_add(1, Ordering::Relaxed)) else {
                anyhow::bail!("none of {TOLD} prompts is warm");
            };
            let reply = pair.other.send(call.clone()).await?.expect_status(200)?;
            if !is_warm(&reply)? {
                return Ok(None);
            }
        }
        Ok(Some(()))
    };
    let listening = eventually("a restarted Envoy serves", async || {
        Ok(pair.other.send(Call::get("/v1/models")).await.ok())
    });
    listening.await?;
    eventually("a restarted Envoy is warm", warm_in_a_row).await?;
    // Nothing that was held back then is owed now.
    pair.stack.set_fault("llama", Fault::None);
    let call = streamed(prompt())?;
    pair.other.send(call).await?.expect_status(200)?;
    pair.acquainted().await
}
