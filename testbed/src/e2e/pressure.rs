//! The policy `prefix` weighs what is cached against what is queued: load counts while it is there,
//! on every way that a request can end, and a request that failed leaves no credit behind.

use anyhow::{Context as _, ensure};
use serde_json::json;
use tokio::task::JoinSet;

use super::client::{Call, Client, Reply, Transport};
use super::conversation::{Conversation, text};
use super::harness::{Context, Stack, StackSpec, eventually};
use super::prefix::{self, ensure_warm};
use super::workers::{Workers, seed, streamed};
use super::{Case, named};
use crate::engine::Fault;

pub(super) fn cases() -> Vec<Case> {
    named!("pressure":
        cold_prompts_spread_over_the_engines,
        conversations_with_one_system_prompt_spread,
        every_end_of_a_request_gives_its_load_back,
        a_failed_request_leaves_no_credit,
        a_request_that_failed_everywhere_leaves_no_credit,
        a_conversation_moves_when_its_engine_dies,
    )
}

const BURST: usize = 30;

/// Only the filter's own view counts: when engines are asked for theirs is chance.
fn spec() -> StackSpec {
    prefix::spec().option("scrape", json!("off"))
}

/// Requests that wait for their first token, until this is dropped.
struct Waiting {
    _tasks: JoinSet<anyhow::Result<Reply>>,
}

/// Sends calls through each worker in turn while the engines answer nothing; each call is sent
/// when the one before has reached its engine.
async fn wait_all(
    stack: &Stack<'_>,
    workers: &Workers,
    calls: Vec<Call>,
) -> anyhow::Result<(Waiting, Vec<u64>)> {
    stack.set_fault("llama", Fault::HangBeforeHeaders);
    let before = stack.requests_seen();
    let total = |seen: &[u64]| seen.iter().sum::<u64>();
    let mut tasks = JoinSet::new();
    for (number, call) in calls.into_iter().enumerate() {
        let client: Client = workers.client(number)?.clone();
        tasks.spawn(async move { client.send(call.over(Transport::Http2)).await });
        let want = total(&before) + number as u64 + 1;
        eventually("the request reaches its engine", async || {
            Ok((total(&stack.requests_seen()) == want).then_some(()))
        })
        .await?;
    }
    stack.set_fault("llama", Fault::None);
    let seen = stack.requests_seen().into_iter().zip(before);
    let counts = seen.map(|(after, before)| after - before);
    Ok((Waiting { _tasks: tasks }, counts.take(3).collect()))
}

fn cold(bytes: usize) -> Call {
    Call::chat("llama-3-8b", &text(seed(), bytes))
}

async fn cold_prompts_spread_over_the_engines(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let workers = Workers::introduced(&stack).await?;
    let calls = (0..BURST).map(|_| cold(4000)).collect();
    let (_waiting, counts) = wait_all(&stack, &workers, calls).await?;
    ensure!(
        counts.iter().all(|&count| count == BURST as u64 / 3),
        "{counts:?}"
    );
    Ok(())
}

async fn conversations_with_one_system_prompt_spread(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let workers = Workers::introduced(&stack).await?;
    let system = text(seed(), 4000);
    let ask = || Conversation::new(&system).ask(&text(seed(), 2000));
    // Enough for the last engine to catch up, whenever its first one came.
    let calls = (0..BURST + BURST / 2).map(|_| ask()).collect();
    let (_waiting, counts) = wait_all(&stack, &workers, calls).await?;
    // One engine has the system prompt first. Were it to serve all, the last would wait for 16,000
    // tokens of prefill while two engines have nothing to do.
    let fewest = counts.iter().min().copied().unwrap_or_default();
    ensure!(fewest >= BURST as u64 / 6, "{counts:?}");
    Ok(())
}

async fn every_end_of_a_request_gives_its_load_back(context: &Context) -> anyhow::Result<()> {
    // However often it fails, the engine stays in use: how requests end is what this is about.
    let spec = spec().option("health", json!({"failures": 1000}));
    let stack = Stack::start(context, spec).await?;
    let workers = Workers::introduced(&stack).await?;
    // All at one engine: what one of them leaves behind makes that engine look busy.
    let call = cold(40_000);
    let reply = workers.send(0, call.clone()).await?.expect_status(200)?;
    let home = stack.answered_by(&reply)?.name.clone();
    workers.catch_up().await?;
    for number in 0..20 {
        for call in [call.clone(), streamed(call.clone())?] {
            let reply = workers.send(number, call).await?.expect_status(200)?;
            ensure_warm(&stack, &reply, &home)?;
        }
        drop(workers.hold(&stack, number, call.clone()).await?);
    }
    let at_home = stack.engine(&home)?;
    for fault in [
        status(500),
        Fault::ResetBeforeHeaders,
        Fault::ResetAfter { body_bytes: 1 },
    ] {
        at_home.engine.set_fault(fault);
        for number in 0..10 {
            // Whole, cut off or an error: only that it ends is of interest.
            let _ended = workers.send(number, call.clone()).await;
        }
        at_home.engine.set_fault(Fault::None);
    }
    let (waiting, _) = wait_all(&stack, &workers, vec![call.clone(); 10]).await?;
    drop(waiting);
    eventually("the load is given back", async || {
        let calls = (0..BURST).map(|_| cold(4000)).collect();
        let (_waiting, counts) = wait_all(&stack, &workers, calls).await?;
        let even = counts.iter().all(|&count| count == BURST as u64 / 3);
        Ok(even.then_some(()))
    })
    .await
}

/// Fails if a prompt that met `fault` wherever it was sent is believed to be cached anywhere.
async fn ensure_no_credit(
    stack: &Stack<'_>,
    workers: &Workers,
    fault: Fault,
) -> anyhow::Result<()> {
    let call = cold(4000);
    stack.set_fault("llama", fault);
    let reply = workers.send(0, call.clone()).await?;
    stack.set_fault("llama", Fault::None);
    ensure!(reply.status != 200, "{fault:?}: {reply:?}");
    workers.catch_up().await?;
    let reply = workers.send(1, call).await?.expect_status(200)?;
    let told = reply.decision()?;
    ensure!(told.reason == "cold_prefix", "{fault:?}: {told:?}");
    Ok(())
}

fn status(code: u16) -> Fault {
    Fault::Status {
        code,
        retry_after_s: None,
    }
}

async fn a_failed_request_leaves_no_credit(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let workers = Workers::introduced(&stack).await?;
    for fault in [status(500), status(429)] {
        ensure_no_credit(&stack, &workers, fault).await?;
    }
    // The client leaves before the first token. Its next request follows on the same connection.
    let call = cold(4000);
    let (waiting, _) = wait_all(&stack, &workers, vec![call.clone()]).await?;
    drop(waiting);
    eventually("the engine is left", async || {
        let mut log = stack.pool("llama").flat_map(|it| it.engine.log());
        Ok(log.any(|seen| seen.left).then_some(()))
    })
    .await?;
    let reply = workers.send(0, call).await?.expect_status(200)?;
    ensure!(reply.decision()?.reason == "cold_prefix", "{reply:?}");
    Ok(())
}

async fn a_request_that_failed_everywhere_leaves_no_credit(
    context: &Context,
) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let workers = Workers::introduced(&stack).await?;
    // The busy answer last: it puts an engine aside.
    for fault in [Fault::ResetBeforeHeaders, status(503)] {
        let seen = stack.requests_seen();
        ensure_no_credit(&stack, &workers, fault).await?;
        let asked = stack.requests_seen().into_iter().zip(seen).take(3);
        ensure!(
            asked.into_iter().all(|(after, before)| after > before),
            "{fault:?}: no retries"
        );
    }
    Ok(())
}

async fn a_conversation_moves_when_its_engine_dies(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let workers = Workers::introduced(&stack).await?;
    let mut conversation = Conversation::new(&text(seed(), 4000));
    let mut home = String::new();
    for turn in 0..6 {
        let call = conversation.ask(&text(seed(), 1000));
        let reply = workers.send(turn, call).await?.expect_status(200)?;
        let (_, cached) = reply.prompt_tokens()?;
        match turn {
            0 => home.clone_from(&stack.answered_by(&reply)?.name),
            3 => {
                let name = &stack.answered_by(&reply)?.name;
                ensure!(*name != home, "{home} is dead");
                home.clone_from(name);
            }
            _ => {
                ensure_warm(&stack, &reply, &home).with_context(|| format!("turn {turn}"))?;
                ensure!(cached > 900, "turn {turn}: {cached} tokens cached");
            }
        }
        conversation.heard(&reply)?;
        if turn == 2 {
            stack.engine(&home)?.engine.kill().await;
        }
        workers.catch_up().await?;
    }
    Ok(())
}
