//! Admission: at its bound a pool refuses at once what it would only queue, whichever worker is asked;
//! requests of low priority go first; and what was in flight is forgotten when it ends.

use std::cell::{Cell, RefCell};

use anyhow::{Context as _, ensure};
use serde_json::json;
use tokio::task::JoinSet;

use super::client::{Call, Client, Reply, Transport};
use super::conversation::text;
use super::counters::{counted, counter};
use super::harness::{Context, Stack, StackSpec, eventually};
use super::workers::{Held, Workers, seed};
use super::{Case, named};
use crate::engine::Fault;

pub(super) fn cases() -> Vec<Case> {
    named!("admission":
        at_its_bound_a_pool_refuses_and_below_it_does_not,
        low_priority_is_refused_first,
        a_burst_at_all_workers_is_bounded,
        queued_prefill_is_bounded,
        a_session_moves_on_when_its_engine_is_full,
    )
}

const ENGINES: usize = 3;
/// Requests that an engine is given.
const MOST: usize = 3;
const ALL: usize = ENGINES * MOST;
/// Requests of a burst: several times what is admitted by every worker for itself.
const BURST: usize = 60;

fn spec(admission: serde_json::Value) -> StackSpec {
    StackSpec::shipped()
        .engines("llama", ENGINES)
        .engines("qwen", 2)
        .policy("llama", json!("least_request"))
        .pool_option("llama", "admission", admission)
}

fn chat() -> Call {
    Call::chat("llama-3-8b", "hello")
}

fn low(call: Call) -> anyhow::Result<Call> {
    call.header("x-warmpath-priority", "low")
}

/// Fails unless the filter itself refused the request, and says so as clients of OpenAI expect it.
fn ensure_refused(reply: &Reply, retry_after: &str) -> anyhow::Result<()> {
    ensure!(reply.status == 429, "{reply:?}");
    ensure!(
        reply.header("retry-after") == Some(retry_after),
        "{reply:?}"
    );
    for name in ["x-engine", "x-envoy-upstream-service-time"] {
        ensure!(reply.header(name).is_none(), "{reply:?}");
    }
    ensure!(
        reply.header("content-type") == Some("application/json"),
        "{reply:?}"
    );
    let document = reply.json()?;
    let error = |field: &str| document.pointer(&format!("/error/{field}")).cloned();
    ensure!(error("code") == Some(json!("overloaded")), "{document}");
    ensure!(
        error("type") == Some(json!("rate_limit_error")),
        "{document}"
    );
    let message = error("message").unwrap_or_default();
    ensure!(
        message.as_str().is_some_and(|it| it.contains("llama")),
        "{document}"
    );
    Ok(())
}

/// Puts so many requests in flight, each through another worker than the one before.
async fn hold(
    stack: &Stack<'_>,
    workers: &Workers,
    calls: impl IntoIterator<Item = Call>,
) -> anyhow::Result<Vec<Held>> {
    let mut held = Vec::new();
    for (number, call) in calls.into_iter().enumerate() {
        let one = workers.hold(stack, number, call).await;
        held.push(one.with_context(|| format!("request {number} was not taken"))?);
    }
    Ok(held)
}

/// Waits until the filter says that this many requests are in flight.
async fn in_flight(stack: &Stack<'_>, want: u64) -> anyhow::Result<()> {
    let name = "warmpath_endpoint_in_flight_requests";
    eventually(&format!("{want} requests are in flight"), async || {
        let found = counter(stack, name, &[("pool", "llama")]).await?;
        Ok((found == want).then_some(()))
    })
    .await
}

async fn at_its_bound_a_pool_refuses_and_below_it_does_not(
    context: &Context,
) -> anyhow::Result<()> {
    let spec = spec(json!({"max_requests": MOST, "retry_after_s": 3}));
    let stack = Stack::start(context, spec).await?;
    let workers = Workers::introduced(&stack).await?;
    let refused = Cell::new(0);
    for round in 0..2 {
        let mut held = hold(&stack, &workers, vec![chat(); ALL]).await?;
        for engine in stack.pool("llama") {
            let there = held.iter().filter(|held| held.engine == engine.name);
            ensure!(
                there.count() == MOST,
                "round {round}: {} is not full",
                engine.name
            );
        }
        in_flight(&stack, ALL as u64).await?;
        let seen = stack.requests_seen();
        for worker in 0..workers.count() {
            let reply = workers.send(worker, chat()).await?;
            ensure_refused(&reply, "3").with_context(|| format!("worker {worker}"))?;
            refused.set(refused.get() + 1);
        }
        ensure!(
            stack.requests_seen() == seen,
            "an engine saw what was refused"
        );
        // Whoever makes room makes it for all workers.
        held.pop();
        for worker in 0..workers.count() {
            eventually("there is room for one", async || {
                let reply = workers.send(worker, chat()).await?;
                match reply.status {
                    200 => Ok(Some(())),
                    _ => {
                        ensure_refused(&reply, "3")?;
                        refused.set(refused.get() + 1);
                        Ok(None)
                    }
                }
            })
            .await?;
        }
        drop(held);
        in_flight(&stack, 0).await?;
    }
    let labels = [("status", "429"), ("cause", "overloaded")];
    counted(&stack, "warmpath_answers_total", &labels, refused.get()).await?;
    let labels = [("pool", "llama"), ("priority", "high")];
    counted(
        &stack,
        "warmpath_shed_requests_total",
        &labels,
        refused.get(),
    )
    .await
}

async fn low_priority_is_refused_first(context: &Context) -> anyhow::Result<()> {
    let spec = spec(json!({"max_requests": 4, "low_priority_percent": 50}));
    let stack = Stack::start(context, spec).await?;
    let workers = Workers::introduced(&stack).await?;
    let _low = hold(&stack, &workers, vec![low(chat())?; 2 * ENGINES]).await?;
    for worker in 0..workers.count() {
        ensure_refused(&workers.send(worker, low(chat())?).await?, "1")?;
        workers.send(worker, chat()).await?.expect_status(200)?;
    }
    let high = hold(&stack, &workers, vec![chat(); 2 * ENGINES]).await?;
    for worker in 0..workers.count() {
        ensure_refused(&workers.send(worker, chat()).await?, "1")?;
        // Whoever stands before the filter adds its word to the client's.
        let claims = chat().header("x-warmpath-priority", "high")?;
        ensure_refused(&workers.send(worker, low(claims)?).await?, "1")?;
    }
    drop(high);
    for worker in 0..workers.count() {
        eventually("there is room for high priority", async || {
            Ok((workers.send(worker, chat()).await?.status == 200).then_some(()))
        })
        .await?;
        ensure_refused(&workers.send(worker, low(chat())?).await?, "1")?;
    }
    let count = workers.count() as u64;
    let labels = [("pool", "llama"), ("priority", "low")];
    counted(&stack, "warmpath_shed_requests_total", &labels, 3 * count).await
}

/// Requests that wait for their answer, until this is dropped, and how many there are.
struct Burst {
    _tasks: JoinSet<anyhow::Result<Reply>>,
    admitted: usize,
}

/// Sends calls through all workers, all at once, to engines that do not answer.
async fn burst(stack: &Stack<'_>, workers: &Workers, calls: Vec<Call>) -> anyhow::Result<Burst> {
    stack.set_fault("llama", Fault::HangBeforeHeaders);
    let total = || stack.requests_seen().iter().sum::<u64>();
    let (before, all) = (total(), calls.len());
    let mut tasks = JoinSet::new();
    for (number, call) in calls.into_iter().enumerate() {
        let client: Client = workers.client(number)?.clone();
        tasks.spawn(async move { client.send(call.over(Transport::Http2)).await });
    }
    let tasks = RefCell::new(tasks);
    let refused = Cell::new(0);
    eventually("each request was refused or is at an engine", async || {
        while let Some(ended) = tasks.borrow_mut().try_join_next() {
            ensure_refused(&ended??, "1")?;
            refused.set(refused.get() + 1);
        }
        let admitted = usize::try_from(total() - before)?;
        Ok((admitted + refused.get() == all).then_some(()))
    })
    .await?;
    stack.set_fault("llama", Fault::None);
    Ok(Burst {
        _tasks: tasks.into_inner(),
        admitted: all - refused.get(),
    })
}

/// Waits until every worker takes requests again.
async fn settled(workers: &Workers) -> anyhow::Result<()> {
    for worker in 0..workers.count() {
        eventually("requests are taken again", async || {
            Ok((workers.send(worker, chat()).await?.status == 200).then_some(()))
        })
        .await?;
    }
    Ok(())
}

async fn a_burst_at_all_workers_is_bounded(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec(json!({"max_requests": MOST}))).await?;
    let workers = Workers::introduced(&stack).await?;
    for round in 0..5 {
        let burst = burst(&stack, &workers, vec![chat(); BURST]).await?;
        // Each worker by itself is exact. What another admitted a moment ago it may not know yet.
        let most = ALL * workers.count();
        let admitted = burst.admitted;
        context.note(&format!("round {round}: {admitted} admitted, bound {ALL}"));
        ensure!(
            (ALL..=most).contains(&admitted),
            "{admitted} of {BURST} admitted"
        );
        // When that moment is over, all agree that there is no room.
        for worker in 0..workers.count() {
            ensure_refused(&workers.send(worker, chat()).await?, "1")?;
        }
        drop(burst);
        settled(&workers).await?;
    }
    Ok(())
}

async fn queued_prefill_is_bounded(context: &Context) -> anyhow::Result<()> {
    let spec = spec(json!({"max_queued_tokens": 1000})).policy("llama", json!("prefix"));
    let stack = Stack::start(context, spec).await?;
    let workers = Workers::introduced(&stack).await?;
    // An idle engine takes any prompt.
    let cold = || Call::chat("llama-3-8b", &text(seed(), 40_000));
    let mut waiting = Vec::new();
    for number in 0..ENGINES {
        let burst = burst(&stack, &workers, vec![cold()]).await?;
        ensure!(burst.admitted == 1, "prompt {number} was refused");
        waiting.push(burst);
    }
    for worker in 0..workers.count() {
        ensure_refused(&workers.send(worker, chat()).await?, "1")?;
    }
    drop(waiting);
    settled(&workers).await
}

async fn a_session_moves_on_when_its_engine_is_full(context: &Context) -> anyhow::Result<()> {
    let spec = spec(json!({"max_requests": MOST})).policy("llama", json!("consistent_hash"));
    let stack = Stack::start(context, spec).await?;
    let workers = Workers::introduced(&stack).await?;
    let call = || chat().header("x-session-id", "s-1");
    let calls: Vec<Call> = (0..MOST).map(|_| call()).collect::<Result<_, _>>()?;
    let held = hold(&stack, &workers, calls).await?;
    let owner = held.first().context("nothing held")?.engine.clone();
    ensure!(held.iter().all(|held| held.engine == owner), "{held:?}");
    for worker in 0..workers.count() {
        let reply = workers.send(worker, call()?).await?.expect_status(200)?;
        ensure!(stack.answered_by(&reply)?.name != owner, "{owner} is full");
        ensure!(reply.decision()?.reason == "preferred_full", "{reply:?}");
    }
    drop(held);
    for worker in 0..workers.count() {
        eventually("the session comes home", async || {
            let reply = workers.send(worker, call()?).await?.expect_status(200)?;
            Ok((stack.answered_by(&reply)?.name == owner).then_some(()))
        })
        .await?;
    }
    Ok(())
}
