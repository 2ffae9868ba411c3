//! When something breaks: clients notice as little as can be.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::client::Call;
use super::harness::{Context, Stack, StackEngine, StackSpec};
use super::{Case, named};
use crate::engine::Fault;

pub(super) fn cases() -> Vec<Case> {
    named!("failures":
        an_engine_that_dies_under_load_fails_no_request,
        a_busy_engine_hands_over_to_the_next,
        an_error_is_repeated_elsewhere_unless_it_is_the_clients,
        a_stream_that_falls_silent_ends,
        without_the_filter_envoy_chooses,
    )
}

/// Requests sent before, and again after, the engine is killed.
const REQUESTS_PER_PHASE: u32 = 100;
/// Answers take about a quarter of a second: several are under way when the engine dies.
const ANSWER_TOKENS: u32 = 32;
/// 50 requests a second.
const PERIOD: Duration = Duration::from_millis(20);

async fn an_engine_that_dies_under_load_fails_no_request(context: &Context) -> anyhow::Result<()> {
    let spec = StackSpec::shipped().engine(|config| config.time_scale = 1.0);
    let stack = Stack::start(context, spec).await?;
    let mut clock = interval(PERIOD);
    clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut calls = JoinSet::new();
    for number in 0..2 * REQUESTS_PER_PHASE {
        clock.tick().await;
        if number == REQUESTS_PER_PHASE {
            stack.engine("llama-1")?.engine.kill().await;
        }
        let fields = json!({"max_tokens": ANSWER_TOKENS});
        let call = Call::chat_with("llama-3-8b", &format!("question {number}"), fields)
            .header("x-session-id", format!("session-{}", number % 30))?;
        let client = stack.client().clone();
        calls.spawn(async move { client.send(call).await });
    }
    let mut by_engine = std::collections::BTreeMap::<_, u32>::new();
    for reply in calls.join_all().await {
        let reply = reply?.expect_status(200)?;
        *by_engine
            .entry(stack.answered_by(&reply)?.name.clone())
            .or_default() += 1;
    }
    let dead = by_engine.get("llama-1").copied().unwrap_or_default();
    ensure!(
        dead > 0,
        "the engine was not in use before it died: {by_engine:?}"
    );
    Ok(())
}

/// The engine that session `alice` lives on, so far.
async fn home_of_alice<'a>(stack: &'a Stack<'_>) -> anyhow::Result<&'a StackEngine> {
    let reply = stack.send(chat_of_alice()?).await?.expect_status(200)?;
    stack.answered_by(&reply)
}

fn chat_of_alice() -> anyhow::Result<Call> {
    Call::chat("llama-3-8b", "hello").header("x-session-id", "alice")
}

async fn a_busy_engine_hands_over_to_the_next(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    let home = home_of_alice(&stack).await?;
    home.engine.set_fault(Fault::Status {
        code: 503,
        retry_after_s: Some(5),
    });
    let reply = stack.send(chat_of_alice()?).await?.expect_status(200)?;
    let ranked = reply.header("x-warmpath-decision").unwrap_or_default();
    let second = stack.answered_by(&reply)?;
    ensure!(second.name != home.name, "{} is busy", home.name);
    let order = format!("{},{}", home.address, second.address);
    ensure!(
        ranked.contains(&order),
        "{} is not second in {ranked}",
        second.address
    );
    let told = reply.header("x-warmpath-endpoint");
    ensure!(told == Some(&second.address.to_string()), "told {told:?}");
    Ok(())
}

async fn an_error_is_repeated_elsewhere_unless_it_is_the_clients(
    context: &Context,
) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    let home = home_of_alice(&stack).await?;
    let ask = async |code: u16, want: u16| {
        home.engine.set_fault(Fault::Status {
            code,
            retry_after_s: None,
        });
        let before: u64 = stack.requests_seen().iter().sum();
        let reply = stack.send(chat_of_alice()?).await?.expect_status(want)?;
        let asked: u64 = stack.requests_seen().iter().sum::<u64>() - before;
        anyhow::Ok((stack.answered_by(&reply)?.name == home.name, asked))
    };
    ensure!(ask(500, 200).await? == (false, 2));
    ensure!(ask(400, 400).await? == (true, 1));
    Ok(())
}

async fn a_stream_that_falls_silent_ends(context: &Context) -> anyhow::Result<()> {
    let spec = StackSpec::shipped().bootstrap(|bootstrap| {
        let manager = bootstrap.connection_manager_mut()?.as_object_mut();
        let old = manager.and_then(|it| it.insert("stream_idle_timeout".to_owned(), "1s".into()));
        old.map(drop)
            .context("no stream_idle_timeout in the shipped configuration")
    });
    let stack = Stack::start(context, spec).await?;
    let home = home_of_alice(&stack).await?;
    home.engine.set_fault(Fault::HangAfter { body_bytes: 300 });
    let fields = json!({"stream": true, "max_tokens": 20});
    let call = Call::chat_with("llama-3-8b", "hello", fields).header("x-session-id", "alice")?;
    let mut open = stack.open(call).await?;
    ensure!(open.response.status() == 200, "{:?}", open.response);
    let mut received = 0;
    // The client must learn of it: a body that ends as if it were whole would be a lie.
    let cut = loop {
        match open.chunk().await {
            Ok(Some(piece)) => received += piece.len(),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    ensure!(received > 0 && cut, "{received} bytes, cut: {cut}");
    Ok(())
}

async fn without_the_filter_envoy_chooses(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped().without_filter()).await?;
    let last = stack.engine("llama-2")?.address.to_string();
    for _ in 0..10 {
        let call = Call::chat("llama-3-8b", "hello")
            .header("x-gateway-destination-endpoint", &last)?
            .header("x-warmpath-cluster", "qwen")?;
        let reply = stack.send(call).await?.expect_status(200)?;
        ensure!(stack.answered_by(&reply)?.pool == "llama", "{reply:?}");
    }
    let seen = stack.requests_seen();
    let named = stack.engine("llama-2")?.engine.seen_count();
    let all: u64 = seen.iter().sum();
    ensure!(
        named < all,
        "a client's header chose the engine each time: {seen:?}"
    );
    Ok(())
}
