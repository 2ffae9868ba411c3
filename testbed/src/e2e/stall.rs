//! An engine that takes requests, answers its health check and never sends a token.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::client::Call;
use super::harness::{Context, Stack, StackEngine, StackSpec, eventually};
use super::workers::{Held, Workers, streamed};
use super::{Case, named};
use crate::engine::Fault;
use crate::envoy::stats;

pub(super) fn cases() -> Vec<Case> {
    named!("stall":
        a_stalled_engine_costs_what_it_had_and_its_probes,
        a_stream_that_stops_is_a_stall_and_others_bring_it_back,
    )
}

const INTERVAL_MS: u64 = 250;
/// The least that can be set.
const STALL: Duration = Duration::from_secs(1);
const COOL_DOWN: Duration = Duration::from_millis(500);
const ENGINES: usize = 4;
/// Clients that ask at a time, through each worker.
const CLIENTS: usize = 4;
/// How long they wait for an answer of an engine that nobody calls stalled, or of a probe.
const PATIENCE: Duration = Duration::from_secs(5);
/// Requests that show how few of them an engine gets.
const LEAST: usize = 500;
/// The code of the state `stalled`.
const STALLED: u64 = 5;

fn spec(policy: &str) -> StackSpec {
    let health = json!({
        "stall_ms": STALL.as_millis() as u64,
        "cool_down_ms": COOL_DOWN.as_millis() as u64,
        "slow_start_ms": 0,
    });
    StackSpec::shipped()
        .engines("llama", ENGINES)
        .engines("qwen", 2)
        .polling(INTERVAL_MS)
        .policy("llama", json!(policy))
        .option("health", health)
}

fn chat() -> anyhow::Result<Call> {
    streamed(Call::chat("llama-3-8b", "hello"))
}

async fn state(stack: &Stack<'_>, engine: &StackEngine) -> anyhow::Result<u64> {
    let page = stack.envoy()?.admin_get("/stats/prometheus").await?;
    let address = engine.address.to_string();
    let labels = [("endpoint", address.as_str())];
    Ok(stats::sum(&page, "warmpath_endpoint_state", &labels))
}

/// Enough requests that every worker knows what is normal.
async fn learn(workers: &Workers) -> anyhow::Result<()> {
    for number in 0..16 * ENGINES * workers.count() {
        // Not always the same engines to the same worker.
        let worker = number + number / ENGINES;
        workers.send(worker, chat()?).await?.expect_status(200)?;
    }
    Ok(())
}

/// Requests of many clients.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    sent: usize,
    lost: usize,
}

/// Keeps all workers busy for a while, and for [`LEAST`] requests. Nobody loses patience before `found`:
/// however long a busy machine takes to find out, each client has then lost one request.
async fn press(
    workers: &Workers,
    length: Duration,
    found: &CancellationToken,
) -> anyhow::Result<Tally> {
    let end = Instant::now() + length;
    let patience = async || {
        found.cancelled().await;
        sleep(PATIENCE).await;
    };
    let all_sent = Cell::new(0);
    let is_enough = || Instant::now() >= end && all_sent.get() >= LEAST;
    let clients = (0..workers.count() * CLIENTS).map(async |number| {
        let mut tally = Tally::default();
        while !is_enough() {
            all_sent.set(all_sent.get() + 1);
            tally.sent += 1;
            let served = tokio::select! {
                reply = workers.send(number, chat()?) => reply.is_ok_and(|it| it.status == 200),
                () = patience() => false,
            };
            tally.lost += usize::from(!served);
        }
        anyhow::Ok(tally)
    });
    let mut sum = Tally::default();
    for tally in join_all(clients).await {
        let tally = tally?;
        sum.sent += tally.sent;
        sum.lost += tally.lost;
    }
    Ok(sum)
}

/// The most probes in a time: each comes after twice the pause of the one before.
fn most_probes(length: Duration) -> usize {
    let pauses = length.as_millis() / COOL_DOWN.as_millis() + 1;
    pauses.ilog2() as usize + 2
}

async fn a_stalled_engine_costs_what_it_had_and_its_probes(
    context: &Context,
) -> anyhow::Result<()> {
    const PRESSED: Duration = Duration::from_secs(8);
    for policy in ["round_robin", "least_request"] {
        let stack = Stack::start(context, spec(policy)).await?;
        let workers = Workers::introduced(&stack).await?;
        learn(&workers).await?;
        let bad = stack.engine("llama-1")?;
        let seen = bad.engine.seen_count();
        bad.engine.set_fault(Fault::HangBeforeHeaders);
        let began = Instant::now();
        let known = CancellationToken::new();
        let watch = async {
            let _known = known.clone().drop_guard();
            eventually("it counts as stalled", async || {
                let found = state(&stack, bad).await? == STALLED;
                Ok(found.then(|| (began.elapsed(), bad.engine.seen_count() - seen)))
            })
            .await
        };
        let (tally, found) = tokio::join!(press(&workers, PRESSED, &known), watch);
        let (tally, (after, had)) = (tally?, found?);
        let took = began.elapsed();
        let asked = bad.engine.seen_count() - seen;
        println!(
            "{policy}, {} workers: stalled after {after:?}; {tally:?} in {took:?}; it had {had} \
             requests then, {asked} in the end",
            workers.count()
        );
        // Each client has one request under way until it is known.
        let clients = workers.count() * CLIENTS;
        let most = clients + most_probes(took);
        ensure!(tally.lost as u64 == asked, "{tally:?}, {asked} asked");
        ensure!(asked <= most as u64, "{asked} of at most {most} asked");
        ensure!(LEAST > 10 * most, "{most} of {LEAST} are many");
        bad.engine.set_fault(Fault::None);
        eventually("it serves again", async || {
            let reply = workers.send(0, chat()?).await?.expect_status(200)?;
            Ok((stack.answered_by(&reply)?.name == bad.name).then_some(()))
        })
        .await?;
        let tally = press(&workers, 2 * STALL, &known).await?;
        ensure!(tally.lost == 0, "{tally:?}");
    }
    Ok(())
}

/// Streams that have begun and do not go on, the last of them at this engine.
async fn stopped(
    stack: &Stack<'_>,
    workers: &Workers,
    engine: &StackEngine,
) -> anyhow::Result<Vec<Held>> {
    let mut held = Vec::new();
    for _ in 0..2 * ENGINES {
        let call = Call::chat("llama-3-8b", "hello");
        let one = workers.hold(stack, 0, call).await?;
        let found = one.engine == engine.name;
        held.push(one);
        if found {
            return Ok(held);
        }
    }
    anyhow::bail!("{} is not asked", engine.name)
}

async fn a_stream_that_stops_is_a_stall_and_others_bring_it_back(
    context: &Context,
) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec("round_robin")).await?;
    let workers = Workers::introduced(&stack).await?;
    learn(&workers).await?;
    let bad = stack.engine("llama-1")?;
    let mut held = stopped(&stack, &workers, bad).await?;
    let only = held.pop().context("no stream")?;
    drop(held);
    bad.engine.set_fault(Fault::HangBeforeHeaders);
    let seen = bad.engine.seen_count();
    eventually("it counts as stalled", async || {
        Ok((state(&stack, bad).await? == STALLED).then_some(()))
    })
    .await?;
    bad.engine.set_fault(Fault::None);
    ensure!(
        bad.engine.seen_count() == seen,
        "it was not asked meanwhile"
    );
    for worker in 0..workers.count() {
        eventually("it serves again", async || {
            let reply = workers.send(worker, chat()?).await?.expect_status(200)?;
            Ok((stack.answered_by(&reply)?.name == bad.name).then_some(()))
        })
        .await?;
    }
    // The lost stream is still there, and is not held against it twice.
    sleep(3 * STALL).await;
    let found = state(&stack, bad).await?;
    ensure!(found != STALLED, "state {found} for a stream lost before");
    drop(only);
    Ok(())
}
