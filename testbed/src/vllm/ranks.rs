//! Data-parallel ranks of one real engine: each conversation stays at its rank, and the engine says so.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::page::{count, sum};
use super::steps::fresh;
use super::{Stack, eventually};
use crate::e2e::client::Call;

/// Conversations, and turns of each.
const TALKS: usize = 6;
const TURNS: usize = 4;

/// How many ranks the engine has, by its own word.
async fn ranks_of(stack: &Stack, engine: SocketAddr) -> anyhow::Result<usize> {
    let page = stack.engine_metrics(engine).await?;
    // Gauges of a rank are there only once it has worked, where there are several front processes.
    let name = "vllm:prefix_cache_queries_total";
    let has = |rank: &usize| sum(&page, name, &[&format!("engine=\"{rank}\"")]).is_some();
    Ok((0..).take_while(has).count())
}

/// Prompt tokens that each rank has looked up in its cache.
async fn lookups(stack: &Stack, engine: SocketAddr, ranks: usize) -> anyhow::Result<Vec<u64>> {
    let page = stack.engine_metrics(engine).await?;
    let of = |rank: usize| {
        let label = format!("engine=\"{rank}\"");
        count(&page, "vllm:prefix_cache_queries_total", &[&label])
    };
    (0..ranks).map(of).collect()
}

pub(super) async fn run(stack: &Stack, engine: SocketAddr) -> anyhow::Result<()> {
    let ranks = ranks_of(stack, engine).await?;
    ensure!(ranks > 1, "{engine} has {ranks} ranks");
    eventually("every rank is an endpoint", async || {
        let page = stack.metrics().await?;
        let known = sum(&page, "warmpath_pool_known_endpoints", &[]);
        Ok((known == Some(ranks as f64)).then_some(()))
    })
    .await?;
    println!("{engine}: {ranks} ranks, each an endpoint");
    let mut used = BTreeSet::new();
    let (mut prompt, mut cached) = (0, 0);
    for number in 0..TALKS {
        let talk = talk(stack, engine, ranks, number).await?;
        used.insert(talk.rank);
        prompt += talk.prompt;
        cached += talk.cached;
    }
    ensure!(
        used.len() == ranks,
        "only {used:?} of {ranks} ranks were used"
    );
    println!(
        "{TALKS} conversations of {TURNS} turns: each at one rank, all of {used:?} in use, {:.1} % of {prompt} \
         prompt tokens cached",
        100.0 * cached as f64 / prompt as f64
    );
    Ok(())
}

struct Talk {
    rank: usize,
    prompt: u64,
    cached: u64,
}

/// All turns are served by one rank, though the client names others.
async fn talk(
    stack: &Stack,
    engine: SocketAddr,
    ranks: usize,
    number: usize,
) -> anyhow::Result<Talk> {
    let rules = fresh(&format!("Conversation {number}"))?.repeat(12);
    let mut messages = vec![json!({"role": "system", "content": rules})];
    let (mut seen, mut prompt, mut cached) = (BTreeSet::new(), 0, 0);
    for turn in 0..TURNS {
        messages.push(json!({"role": "user", "content": format!("Question {turn}?")}));
        let before = lookups(stack, engine, ranks).await?;
        let document = json!({"model": stack.model, "messages": messages, "max_tokens": 8});
        let call = Call::post("/v1/chat/completions", &document);
        let call = call.header("x-data-parallel-rank", (turn % ranks).to_string())?;
        let reply = stack.client.send(call).await?.expect_status(200)?;
        let (own, hits) = reply.prompt_tokens()?;
        prompt += own;
        cached += hits;
        let after = eventually("a rank counts the prompt", async || {
            let now = lookups(stack, engine, ranks).await?;
            Ok((now.iter().sum::<u64>() >= before.iter().sum::<u64>() + own).then_some(now))
        })
        .await?;
        let grown = before
            .iter()
            .zip(&after)
            .map(|(before, after)| after > before);
        seen.extend(
            grown
                .enumerate()
                .filter(|(_, grown)| *grown)
                .map(|(rank, _)| rank),
        );
        let document = reply.json()?;
        let text = document.pointer("/choices/0/message/content");
        let text = text.and_then(Value::as_str).unwrap_or_default();
        messages.push(json!({"role": "assistant", "content": text}));
    }
    ensure!(
        seen.len() == 1,
        "conversation {number} was at ranks {seen:?}"
    );
    let rank = seen.first().copied().context("no rank")?;
    Ok(Talk {
        rank,
        prompt,
        cached,
    })
}
