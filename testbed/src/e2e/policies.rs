//! Every policy, by whom it asks: what it promises of a few hundred requests over real Envoy.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::client::{Call, Reply, Transport};
use super::harness::{Context, Stack, StackSpec, eventually};
use super::spread::{Spread, ensure_share, send_all};
use super::workers::Workers;
use super::{Case, named};

pub(super) fn cases() -> Vec<Case> {
    named!("policies":
        round_robin_takes_turns,
        envoys_weights_count,
        random_draws_evenly,
        power_of_two_avoids_the_busiest,
        least_request_avoids_the_busy,
        lowest_qps_evens_out,
        consistent_hash_spreads_sessions,
        a_hot_session_overflows_within_its_bound,
        requests_without_a_session_have_their_own_policy,
    )
}

const REQUESTS: usize = 600;
/// Requests under way at a time, where their order is of no importance.
const PARALLEL: usize = 8;

fn chat() -> Call {
    Call::chat("llama-3-8b", "hello")
}

fn session(number: usize) -> anyhow::Result<Call> {
    chat().header("x-session-id", format!("session-{number}"))
}

/// Two engines in `qwen`, so that workers can be introduced to each other. Nobody is scraped: a request of
/// ours that an engine counts and that is over when it tells so is taken for somebody else's.
fn spec(policy: Value) -> StackSpec {
    StackSpec::shipped()
        .engines("qwen", 2)
        .policy("llama", policy)
        .option("scrape", json!("off"))
}

/// `count` requests without a session, each over a connection of its own.
async fn over_new_connections(stack: &Stack<'_>, count: usize) -> anyhow::Result<Vec<Reply>> {
    let calls = (0..count).map(|_| chat().over(Transport::Http1NewConnection));
    send_all(stack.client(), calls, PARALLEL).await
}

/// `count` requests one after the other, through each worker in turn.
async fn in_turn(workers: &Workers, count: usize) -> anyhow::Result<Vec<Reply>> {
    let mut replies = Vec::new();
    for number in 0..count {
        replies.push(workers.send(number, chat()).await?.expect_status(200)?);
    }
    Ok(replies)
}

/// Fails unless each decision gave this policy and reason.
fn ensure_told(replies: &[Reply], policy: &str, reason: &str) -> anyhow::Result<()> {
    for reply in replies {
        let told = reply.decision()?;
        ensure!(told.policy == policy && told.reason == reason, "{told:?}");
    }
    Ok(())
}

async fn round_robin_takes_turns(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec(json!("round_robin"))).await?;
    let workers = Workers::reach(&stack).await?;
    let replies = in_turn(&workers, 12).await?;
    let names = replies
        .iter()
        .map(|reply| Ok(&stack.answered_by(reply)?.name));
    let names: Vec<_> = names.collect::<anyhow::Result<_>>()?;
    for round in names.windows(3) {
        let distinct: BTreeSet<_> = round.iter().collect();
        ensure!(distinct.len() == 3, "out of turn: {names:?}");
    }
    let replies = over_new_connections(&stack, REQUESTS).await?;
    ensure_told(&replies, "round_robin", "turn")?;
    let spread = Spread::over(&stack, "llama", &replies)?;
    ensure!(spread.difference() <= 1, "{spread:?}");
    Ok(())
}

/// One engine has twice the weight of each of the others, and so half of the turns.
async fn envoys_weights_count(context: &Context) -> anyhow::Result<()> {
    let spec = StackSpec::shipped().bootstrap(|bootstrap| {
        let cluster = bootstrap.cluster_mut("llama")?;
        let endpoint = cluster.pointer_mut("/load_assignment/endpoints/0/lb_endpoints/1");
        let endpoint = endpoint.context("a second endpoint")?.as_object_mut();
        let weight = ("load_balancing_weight".to_owned(), 2.into());
        endpoint.context("not an object")?.extend([weight]);
        Ok(())
    });
    let stack = Stack::start(context, spec.policy("llama", json!("round_robin"))).await?;
    let workers = Workers::reach(&stack).await?;
    let shares = async || {
        let replies = in_turn(&workers, 12).await?;
        let spread = Spread::over(&stack, "llama", &replies)?;
        anyhow::Ok(["llama-0", "llama-1", "llama-2"].map(|name| spread.of(name)))
    };
    eventually("each worker has heard of the weights", async || {
        Ok((shares().await? == [3, 6, 3]).then_some(()))
    })
    .await
}

async fn random_draws_evenly(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec(json!("random"))).await?;
    let workers = Workers::reach(&stack).await?;
    let replies = in_turn(&workers, REQUESTS).await?;
    ensure_told(&replies, "random", "draw")?;
    Spread::over(&stack, "llama", &replies)?.ensure_fair()?;
    // Taking turns would be as even; a draw repeats itself once in three times.
    let mut repeated = 0;
    for pair in replies.windows(2) {
        if let [first, second] = pair {
            let same = stack.answered_by(first)?.name == stack.answered_by(second)?.name;
            repeated += u64::from(same);
        }
    }
    ensure_share("repeated", repeated, REQUESTS as u64 - 1, 3)
}

async fn power_of_two_avoids_the_busiest(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec(json!("power_of_two"))).await?;
    let workers = Workers::introduced(&stack).await?;
    let replies = in_turn(&workers, REQUESTS).await?;
    ensure_told(&replies, "power_of_two", "lesser_of_two")?;
    Spread::over(&stack, "llama", &replies)?.ensure_fair()?;
    // Whichever other one is drawn beside it, that one has less to do.
    let held = workers.hold(&stack, 0, chat()).await?;
    let spread = Spread::over(&stack, "llama", &in_turn(&workers, 60).await?)?;
    ensure!(spread.of(&held.engine) == 0, "{held:?}: {spread:?}");
    Ok(())
}

async fn least_request_avoids_the_busy(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec(json!("least_request"))).await?;
    let workers = Workers::introduced(&stack).await?;
    let replies = in_turn(&workers, 60).await?;
    ensure_told(&replies, "least_request", "least_in_flight")?;
    let spread = Spread::over(&stack, "llama", &replies)?;
    ensure!(spread.difference() <= 1, "idle: {spread:?}");

    let first = workers.hold(&stack, 0, chat()).await?;
    let spread = Spread::over(&stack, "llama", &in_turn(&workers, 60).await?)?;
    ensure!(spread.of(&first.engine) == 0, "{first:?}: {spread:?}");
    ensure!(spread.difference() <= 31, "the other two: {spread:?}");

    let second = workers.hold(&stack, 1, chat()).await?;
    ensure!(second.engine != first.engine, "{first:?}, {second:?}");
    let spread = Spread::over(&stack, "llama", &in_turn(&workers, 20).await?)?;
    let busy = spread.of(&first.engine) + spread.of(&second.engine);
    ensure!(busy == 0, "{first:?}, {second:?}: {spread:?}");

    drop((first, second));
    eventually(
        "an engine whose requests ended gets its share",
        async || {
            let spread = Spread::over(&stack, "llama", &in_turn(&workers, 6).await?)?;
            Ok((spread.difference() == 0).then_some(()))
        },
    )
    .await
}

async fn lowest_qps_evens_out(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec(json!({"lowest_qps": {"window_s": 600}}))).await?;
    // Before the workers know of each other each one evens out its own requests only.
    let mut replies = over_new_connections(&stack, 50).await?;
    let workers = Workers::introduced(&stack).await?;
    replies.extend(in_turn(&workers, 70).await?);
    ensure_told(&replies, "lowest_qps", "lowest_rate")?;
    let spread = Spread::over(&stack, "llama", &replies)?;
    ensure!(spread.difference() <= 1, "{spread:?}");
    Ok(())
}

async fn consistent_hash_spreads_sessions(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec(json!("consistent_hash"))).await?;
    let calls = (0..REQUESTS)
        .map(session)
        .collect::<anyhow::Result<Vec<_>>>()?;
    let replies = send_all(stack.client(), calls, PARALLEL).await?;
    ensure_told(&replies, "consistent_hash", "session_owner")?;
    Spread::over(&stack, "llama", &replies)?.ensure_fair()
}

async fn a_hot_session_overflows_within_its_bound(context: &Context) -> anyhow::Result<()> {
    const BOUND: f64 = 1.25;
    let policy = json!({"consistent_hash": {"bounded_load": BOUND}});
    let stack = Stack::start(context, spec(policy)).await?;
    let workers = Workers::introduced(&stack).await?;
    let reply = workers.send(0, session(0)?).await?.expect_status(200)?;
    let owner = stack.answered_by(&reply)?.name.clone();
    let mut held = Vec::new();
    for number in 0..12 {
        held.push(workers.hold(&stack, number, session(0)?).await?);
        let bound = (BOUND * held.len() as f64 / 3.0).ceil() as usize;
        for engine in stack.pool("llama") {
            let open = held.iter().filter(|one| one.engine == engine.name).count();
            ensure!(
                open <= bound,
                "{} has {open} of {}",
                engine.name,
                held.len()
            );
        }
    }
    let first = held.first().context("nothing is held")?;
    ensure!(
        first.engine == owner,
        "{first:?}, but {owner} owns the session"
    );
    let engines: BTreeSet<_> = held.iter().map(|one| &one.engine).collect();
    ensure!(engines.len() == 3, "only {engines:?} took the overflow");

    drop(held);
    eventually("the session returns to its owner", async || {
        let mut home = true;
        for number in 0..workers.count() {
            let reply = workers
                .send(number, session(0)?)
                .await?
                .expect_status(200)?;
            home &= stack.answered_by(&reply)?.name == owner;
        }
        Ok(home.then_some(()))
    })
    .await
}

async fn requests_without_a_session_have_their_own_policy(context: &Context) -> anyhow::Result<()> {
    let policy = json!({"consistent_hash": {"without_key": "round_robin"}});
    let stack = Stack::start(context, spec(policy)).await?;
    let (mut keyed, mut keyless) = (Vec::new(), Vec::new());
    for _ in 0..30 {
        for (call, replies) in [(session(1)?, &mut keyed), (chat(), &mut keyless)] {
            let call = call.over(Transport::Http1NewConnection);
            replies.push(stack.send(call).await?.expect_status(200)?);
        }
    }
    ensure_told(&keyed, "consistent_hash", "session_owner")?;
    ensure_told(&keyless, "round_robin", "turn")?;
    ensure!(Spread::over(&stack, "llama", &keyed)?.difference() == 30);
    let spread = Spread::over(&stack, "llama", &keyless)?;
    ensure!(spread.difference() == 0, "{spread:?}");
    Ok(())
}
