//! A small replay: workers that share what they know do as well as one.

use anyhow::ensure;
use serde_json::json;

use super::client::Transport;
use super::conversation::{Conversation, text};
use super::harness::{Context, Stack, StackSpec};
use super::workers::Workers;
use super::{Case, named};

pub(super) fn cases() -> Vec<Case> {
    let cases: Vec<Case> = named!("replay": four_workers_find_as_much_as_one);
    let own = |case: Case| case.with_own_workers("1 and 4");
    cases.into_iter().map(own).collect()
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
