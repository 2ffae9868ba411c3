//! Who is asked and who is spared: engines that are ill, ejected, busy, broken or just back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::client::{Call, OpenReply, Reply, Transport};
use super::counters::counter;
use super::harness::{Context, Stack, StackEngine, StackSpec, eventually};
use super::spread::Spread;
use super::workers::{Workers, streamed};
use super::{Case, named};
use crate::engine::{Fault, FaultPlan, Target};
use crate::envoy::bootstrap::Bootstrap;

pub(super) fn cases() -> Vec<Case> {
    named!("health":
        an_unhealthy_engine_is_left_out_until_it_is_well,
        an_ejected_engine_is_left_out_until_it_is_back,
        with_none_usable_all_are_tried,
        with_none_usable_the_client_is_told_when_to_come_back,
        a_busy_engine_is_left_alone_for_as_long_as_it_asks,
        a_busy_engine_that_envoy_passes_by_gets_a_strike,
        a_clients_mistakes_are_not_the_engines,
        an_engine_that_fails_at_once_does_not_attract_everything,
        who_comes_back_gets_some_and_not_all,
    )
}

const INTERVAL_MS: u64 = 250;
/// Requests that show where they go.
const SHOWN: usize = 30;

fn spec() -> StackSpec {
    StackSpec::shipped()
        .engines("qwen", 2)
        .polling(INTERVAL_MS)
        .policy("llama", json!("round_robin"))
}

fn chat() -> Call {
    Call::chat("llama-3-8b", "hello")
}

fn status(code: u16) -> Fault {
    Fault::Status {
        code,
        retry_after_s: None,
    }
}

fn unwell() -> FaultPlan {
    FaultPlan {
        on: Target::Health,
        ..status(503).into()
    }
}

/// No strike of the filter's own: what is seen is Envoy's verdict.
fn envoys_verdict_only() -> StackSpec {
    spec().checked().option("health", json!({"failures": 1000}))
}

fn names(reply: &Reply, engine: &StackEngine) -> anyhow::Result<bool> {
    let address = engine.address.to_string();
    Ok(reply.decision()?.ranked.contains(&address))
}

/// Waits until every worker names the engine, or does not.
async fn all_come_to(workers: &Workers, engine: &StackEngine, want: bool) -> anyhow::Result<()> {
    for worker in 0..workers.count() {
        let what = format!("worker {worker} names {}: {want}", engine.name);
        eventually(&what, async || {
            let reply = workers.send(worker, chat()).await?;
            Ok((names(&reply, engine)? == want).then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// Fails if any of some requests names the engine or reaches it.
async fn ensure_left_out(workers: &Workers, engine: &StackEngine) -> anyhow::Result<()> {
    let seen = engine.engine.seen_count();
    for number in 0..SHOWN {
        let reply = workers.send(number, chat()).await?.expect_status(200)?;
        ensure!(
            !names(&reply, engine)?,
            "{} is named: {reply:?}",
            engine.name
        );
    }
    let asked = engine.engine.seen_count() - seen;
    ensure!(asked == 0, "{} got {asked} requests", engine.name);
    Ok(())
}

async fn an_unhealthy_engine_is_left_out_until_it_is_well(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, envoys_verdict_only()).await?;
    let workers = Workers::reach(&stack).await?;
    let ill = stack.engine("llama-1")?;
    all_come_to(&workers, ill, true).await?;
    ill.engine.set_fault(unwell());
    all_come_to(&workers, ill, false).await?;
    ensure_left_out(&workers, ill).await?;
    ill.engine.set_fault(Fault::None);
    all_come_to(&workers, ill, true).await?;
    eventually("it serves again", async || {
        let reply = workers.send(0, chat()).await?;
        Ok((stack.answered_by(&reply)?.name == ill.name).then_some(()))
    })
    .await
}

async fn an_ejected_engine_is_left_out_until_it_is_back(context: &Context) -> anyhow::Result<()> {
    let spec = envoys_verdict_only().bootstrap(|bootstrap| {
        let cluster = bootstrap.cluster_mut("llama")?;
        let ejection = cluster.pointer_mut("/outlier_detection/base_ejection_time");
        *ejection.context("no ejection time")? = "8s".into();
        Ok(())
    });
    let stack = Stack::start(context, spec).await?;
    let workers = Workers::reach(&stack).await?;
    let broken = stack.engine("llama-1")?;
    broken.engine.set_fault(status(500));
    all_come_to(&workers, broken, false).await?;
    broken.engine.set_fault(Fault::None);
    ensure_left_out(&workers, broken).await?;
    all_come_to(&workers, broken, true).await
}

fn none_usable(answer: &str) -> StackSpec {
    let health = json!({"failures": 1000, "none_usable": answer});
    spec().checked().option("health", health)
}

/// Waits until Envoy itself says that every engine of `llama` fails its health check.
async fn all_unwell(stack: &Stack<'_>) -> anyhow::Result<()> {
    stack.set_fault("llama", unwell());
    eventually("all engines fail their health checks", async || {
        let page = stack.envoy()?.admin_get("/clusters").await?;
        let failed = page.lines().filter(|line| {
            line.starts_with("llama::") && line.contains("health_flags::/failed_active_hc")
        });
        Ok((failed.count() == 3).then_some(()))
    })
    .await
}

async fn with_none_usable_all_are_tried(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, none_usable("route")).await?;
    let workers = Workers::reach(&stack).await?;
    let first = stack.engine("llama-0")?;
    all_unwell(&stack).await?;
    let resorts = async || {
        let labels = [("cause", "last_resort")];
        counter(&stack, "warmpath_fallbacks_total", &labels).await
    };
    eventually("it is counted", async || {
        for worker in 0..workers.count() {
            workers.send(worker, chat()).await?.expect_status(200)?;
        }
        Ok((resorts().await? >= SHOWN as u64).then_some(()))
    })
    .await?;
    for number in 0..SHOWN {
        let reply = workers.send(number, chat()).await?.expect_status(200)?;
        ensure!(reply.decision()?.ranked.len() == 3, "{reply:?}");
    }
    // One is well again: it alone is asked.
    first.engine.set_fault(Fault::None);
    for name in ["llama-1", "llama-2"] {
        all_come_to(&workers, stack.engine(name)?, false).await?;
    }
    ensure_left_out(&workers, stack.engine("llama-1")?).await
}

async fn with_none_usable_the_client_is_told_when_to_come_back(
    context: &Context,
) -> anyhow::Result<()> {
    let stack = Stack::start(context, none_usable("answer")).await?;
    let workers = Workers::reach(&stack).await?;
    all_unwell(&stack).await?;
    let told = async |worker| {
        eventually("it is answered 503", async || {
            let reply = workers.send(worker, chat()).await?;
            Ok((reply.status == 503).then_some(reply))
        })
        .await
    };
    for worker in 0..workers.count() {
        let reply = told(worker).await?;
        let seconds: Option<u32> = reply.header("retry-after").and_then(|it| it.parse().ok());
        ensure!(
            seconds.is_some_and(|it| (1..=30).contains(&it)),
            "{reply:?}"
        );
        let code = reply.json()?.pointer("/error/code").cloned();
        ensure!(code == Some("no_endpoint".into()), "{reply:?}");
    }
    let seen = stack.requests_seen();
    for number in 0..SHOWN {
        workers.send(number, chat()).await?.expect_status(503)?;
    }
    ensure!(stack.requests_seen() == seen, "an engine was asked");
    stack.set_fault("llama", Fault::None);
    eventually("it serves again", async || {
        let reply = workers.send(0, chat()).await?;
        Ok((reply.status == 200).then_some(()))
    })
    .await
}

/// What an engine answers reaches the filter, and the client.
fn without_retries_of_answers(bootstrap: &mut Bootstrap) -> anyhow::Result<()> {
    let host = bootstrap
        .connection_manager_mut()?
        .pointer_mut("/route_config/virtual_hosts/0/retry_policy")
        .and_then(Value::as_object_mut)
        .context("no retry policy")?;
    host.remove("retriable_status_codes");
    host.insert(
        "retry_on".to_owned(),
        "connect-failure,refused-stream,reset".into(),
    );
    Ok(())
}

fn busy(seconds: u32) -> Fault {
    Fault::Status {
        code: 503,
        retry_after_s: Some(seconds),
    }
}

async fn a_busy_engine_is_left_alone_for_as_long_as_it_asks(
    context: &Context,
) -> anyhow::Result<()> {
    const ASKED: Duration = Duration::from_secs(2);
    let spec = spec().bootstrap(without_retries_of_answers);
    let stack = Stack::start(context, spec).await?;
    let workers = Workers::introduced(&stack).await?;
    let engine = stack.engine("llama-1")?;
    engine.engine.set_fault(FaultPlan {
        requests: Some(1),
        ..busy(ASKED.as_secs() as u32).into()
    });
    let before = eventually("it says that it is busy", async || {
        let before = Instant::now();
        let reply = workers.send(0, chat()).await?;
        Ok((reply.status == 503).then_some(before))
    })
    .await?;
    let mut spared = vec![false; workers.count()];
    for number in 0.. {
        let reply = workers.send(number, chat()).await?;
        // The two seconds began later than `before`, so this was decided within them.
        if before.elapsed() >= ASKED {
            break;
        }
        let spared = spared
            .get_mut(number % workers.count())
            .context("no worker")?;
        let named = names(&reply, engine)?;
        // A worker hears of it within milliseconds.
        ensure!(!(*spared && named), "it is asked too early: {reply:?}");
        *spared |= !named;
    }
    ensure!(spared.iter().all(|it| *it), "some worker never spared it");
    all_come_to(&workers, engine, true).await
}

async fn a_busy_engine_that_envoy_passes_by_gets_a_strike(context: &Context) -> anyhow::Result<()> {
    // As shipped, Envoy asks the next engine when one answers 503, and the filter sees who answered.
    let cool_down = json!({"failures": 3, "cool_down_ms": 60_000, "max_cool_down_ms": 60_000});
    let stack = Stack::start(context, spec().option("health", cool_down)).await?;
    let workers = Workers::introduced(&stack).await?;
    let engine = stack.engine("llama-1")?;
    engine.engine.set_fault(busy(1));
    for number in 0..SHOWN {
        workers.send(number, chat()).await?.expect_status(200)?;
    }
    all_come_to(&workers, engine, false).await?;
    let seen = engine.engine.seen_count();
    for number in 0..SHOWN {
        workers.send(number, chat()).await?.expect_status(200)?;
    }
    ensure!(engine.engine.seen_count() == seen, "it is still asked");
    Ok(())
}

async fn a_clients_mistakes_are_not_the_engines(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let workers = Workers::reach(&stack).await?;
    let engine = stack.engine("llama-1")?;
    engine.engine.set_fault(status(400));
    let mut replies = Vec::new();
    for number in 0..SHOWN {
        replies.push(workers.send(number, chat()).await?);
    }
    let spread = Spread::over(&stack, "llama", &replies)?;
    ensure!(spread.of("llama-1") == SHOWN as u64 / 3, "{spread:?}");
    for reply in &replies {
        ensure!(names(reply, engine)?, "{reply:?}");
    }
    Ok(())
}

async fn an_engine_that_fails_at_once_does_not_attract_everything(
    context: &Context,
) -> anyhow::Result<()> {
    const STRIKES: u64 = 3;
    const COOL_DOWN: Duration = Duration::from_millis(500);
    let health = json!({"failures": STRIKES, "cool_down_ms": COOL_DOWN.as_millis() as u64});
    // Its health check is fine, and Envoy must not be the one that ejects it.
    let spec = spec()
        .policy("llama", json!("least_request"))
        .option("health", health)
        .bootstrap(|bootstrap| {
            let cluster = bootstrap.cluster_mut("llama")?.as_object_mut();
            cluster.context("no cluster")?.remove("outlier_detection");
            Ok(())
        });
    let stack = Stack::start(context, spec).await?;
    let workers = Workers::introduced(&stack).await?;
    let broken = stack.engine("llama-1")?;
    let before = broken.engine.seen_count();
    let began = Instant::now();
    broken.engine.set_fault(status(500));
    for number in 0..300 {
        workers.send(number, chat()).await?.expect_status(200)?;
    }
    let took = began.elapsed();
    let asked = broken.engine.seen_count() - before;
    // Each probe that fails doubles the cool-down. Workers hear of each other's strikes within
    // milliseconds, so each may add its own at first.
    let cool_downs = took.as_millis() / COOL_DOWN.as_millis() + 1;
    let most = STRIKES * workers.count() as u64 + u64::from(cool_downs.ilog2()) + 1;
    ensure!(asked >= STRIKES, "it got {asked} requests");
    ensure!(
        asked <= most,
        "it got {asked} requests in {took:?}, not {most}"
    );
    // It is found to be well by a probe.
    broken.engine.set_fault(Fault::None);
    eventually("it serves again", async || {
        let reply = workers.send(0, chat()).await?;
        Ok((stack.answered_by(&reply)?.name == broken.name).then_some(()))
    })
    .await
}

/// Requests that stay in flight, one after the other; who answers each.
async fn held(stack: &Stack<'_>, count: usize) -> anyhow::Result<Vec<(String, OpenReply)>> {
    stack.set_fault("llama", Fault::HangAfter { body_bytes: 1 });
    let mut held = Vec::new();
    for _ in 0..count {
        let call = streamed(chat())?.over(Transport::Http2);
        let open = stack.open(call).await?;
        let engine = open
            .response
            .headers()
            .get("x-engine")
            .context("no engine")?;
        held.push((engine.to_str()?.to_owned(), open));
    }
    stack.set_fault("llama", Fault::None);
    Ok(held)
}

async fn who_comes_back_gets_some_and_not_all(context: &Context) -> anyhow::Result<()> {
    let health = json!({"failures": 1, "cool_down_ms": 1000, "slow_start_ms": 600_000});
    // Only what requests come to is of interest: Envoy's checks must not bring others back meanwhile.
    let spec = spec()
        .policy("llama", json!("least_request"))
        .option("health", health)
        .option("discovery", json!("off"))
        .bootstrap(without_retries_of_answers);
    let stack = Stack::start(context, spec).await?;
    let back = stack.engine("llama-1")?;
    let answers = async |want: u16| {
        eventually("it answers", async || {
            let reply = stack.send(chat().over(Transport::Http2)).await?;
            let by = &stack.answered_by(&reply)?.name;
            Ok((reply.status == want && *by == back.name).then_some(()))
        })
        .await
    };
    back.engine.set_fault(FaultPlan {
        requests: Some(1),
        ..status(500).into()
    });
    answers(500).await?;
    let others = held(&stack, 10).await?;
    ensure!(
        others.iter().all(|(name, _)| *name != back.name),
        "it cools down"
    );
    answers(200).await?;
    let all = held(&stack, SHOWN).await?;
    let own = all.iter().filter(|(name, _)| *name == back.name).count();
    // Without the slow start it would have got the first five and a third of the rest.
    ensure!((1..=6).contains(&own), "{own} of {SHOWN}");
    Ok(())
}
