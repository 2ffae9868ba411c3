//! Small replays: workers that share what they know do as well as one, and Envoy with the module
//! does as well as the simulator.

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::client::Transport;
use super::conversation::{Conversation, text};
use super::harness::{Context, Stack, StackSpec};
use super::workers::Workers;
use super::{Case, named};
use crate::replay::{self, Load, Plan, Slice};
use crate::sim::policy::Spec;
use crate::trace::generate::conversations;

pub(super) fn cases() -> Vec<Case> {
    let cases: Vec<Case> = named!("replay": four_workers_find_as_much_as_one);
    let own = |case: Case| case.with_own_workers("1 and 4");
    let mut cases: Vec<Case> = cases.into_iter().map(own).collect();
    cases.extend(named!("replay": a_trace_hits_as_much_as_in_the_simulator));
    cases
}

/// Conversations under way at a time, how many follow each other there, and their turns.
const CLIENTS: u64 = 12;
const ROUNDS: u64 = 3;
const TURNS: u64 = 6;
/// System prompts that conversations share.
const SYSTEMS: u64 = 4;
/// Less than the conversations would fill.
const KV_TOKENS: u32 = 48_000;
/// Hit ratios may differ by this much: clients do not run in step. Workers that share nothing differ by
/// more than 0.04.
const NOISE: f64 = 0.025;

async fn four_workers_find_as_much_as_one(context: &Context) -> anyhow::Result<()> {
    let one = hit_ratio(context, 1).await?;
    let four = hit_ratio(context, 4).await?;
    ensure!(one > 0.5, "one worker finds {one:.3} only");
    ensure!(
        (one - four).abs() <= NOISE,
        "one worker {one:.3}, four {four:.3}"
    );
    Ok(())
}

/// The share of prompt tokens that the engines had cached, by their own count.
async fn hit_ratio(context: &Context, workers: u32) -> anyhow::Result<f64> {
    let spec = StackSpec::shipped()
        .engines("llama", 4)
        .engines("qwen", 2)
        .workers(workers)
        .policy("llama", json!({"prefix": {"kv_tokens": KV_TOKENS}}))
        .engine(|config| {
            config.params.kv_blocks = KV_TOKENS / config.params.block_tokens;
            config.time_scale = 0.05;
        });
    let stack = Stack::start(context, spec).await?;
    Workers::introduced(&stack).await?;
    let clients = (0..CLIENTS).map(|client| converse(&stack, client));
    futures_util::future::try_join_all(clients).await?;
    let stats: Vec<_> = stack.pool("llama").map(|it| it.engine.stats()).collect();
    let hits: u64 = stats.iter().map(|it| it.prefix_hits_tokens).sum();
    let all: u64 = stats.iter().map(|it| it.prefix_queries_tokens).sum();
    Ok(hits as f64 / all.max(1) as f64)
}

/// What one client says, each request over a connection of its own.
async fn converse(stack: &Stack<'_>, client: u64) -> anyhow::Result<()> {
    for round in 0..ROUNDS {
        let number = client * ROUNDS + round;
        let mut conversation = Conversation::new(&text(number % SYSTEMS, 8000));
        for turn in 0..TURNS {
            let question = text(100 + number * TURNS + turn, 3000);
            let call = conversation.ask(&question);
            let reply = stack.send(call.over(Transport::Http1NewConnection)).await?;
            conversation.heard(&reply.expect_status(200)?)?;
        }
    }
    Ok(())
}

/// Requests of the trace, and their conversations.
const REQUESTS: usize = 120;
const SESSIONS: usize = 24;
/// In points of the hit ratio: the two do not run in step. Round robin is 13 points below.
const POINTS: f64 = 3.0;
/// Cached tokens as predicted and as the engines had them differ by no more.
const PREDICTION_PERCENT: f64 = 5.0;

async fn a_trace_hits_as_much_as_in_the_simulator(context: &Context) -> anyhow::Result<()> {
    let setting = context.setting();
    let load = Load {
        percent: 100.0,
        rate_per_s: Some(1.5),
        engines: 2,
        kv_tokens: 200_000,
    };
    let records = conversations(REQUESTS, SESSIONS, 1)?;
    let plan = Plan {
        envoy: setting.envoy.clone(),
        module: setting.module.clone(),
        config: setting.config.clone(),
        slice: Slice::of(&records, None, 0, REQUESTS, &load, 1)?,
        policy: Spec::parse("prefix")?,
        kv_index: false,
        engines: load.engines,
        kv_tokens: load.kv_tokens,
        speed: 60.0,
        workers: setting.concurrency,
        replicas: 1,
        sync: None,
        seed: 1,
    };
    let found = replay::compare(&plan).await?;
    let (real, simulated) = (found.engines, found.simulated);
    let counted = real.summary.requests;
    ensure!(
        counted == REQUESTS - REQUESTS / 10,
        "{counted} requests count"
    );
    ensure!(
        simulated.whole_hit_percent > 75.0,
        "the simulator finds {:.1} % only",
        simulated.whole_hit_percent
    );
    ensure!(
        (real.whole_hit_percent - simulated.whole_hit_percent).abs() <= POINTS,
        "engines {:.1} %, simulator {:.1} %",
        real.whole_hit_percent,
        simulated.whole_hit_percent
    );
    let foretold = found.foretold.context("no prediction")?;
    ensure!(
        foretold.excess_percent().abs() <= PREDICTION_PERCENT,
        "{foretold:?}"
    );
    Ok(())
}
