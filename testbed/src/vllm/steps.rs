//! What is shown, one function for each promise.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::page::{count, label, sum};
use super::{POOL, Stack, eventually};
use crate::e2e::client::{Call, Reply};

/// How long scraping is watched: twenty intervals.
const WATCHED: Duration = Duration::from_secs(20);
/// A scrape is stale at three intervals.
const STALE_MS: u64 = 3000;
/// Requests that keep engines busy while their load is looked at.
const BUSY: usize = 8;
/// Tokens of each of their answers.
const BUSY_TOKENS: u32 = 600;
/// Tokens of an answer in the conversation.
const ANSWER_TOKENS: u32 = 32;
/// What the last turns of two prompts may differ by where their text is the same: the last block
/// of each, and the template's words around the new turn.
const BLOCKS_LOST: u64 = 3;

/// A text that no other run has sent to these engines.
pub(super) fn fresh(what: &str) -> anyhow::Result<String> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(format!("{what} of run {}.", since.as_nanos()))
}

pub(super) async fn run(stack: &Stack, turns: u32) -> anyhow::Result<()> {
    capacity(stack).await?;
    models(stack).await?;
    let block = scraping(stack).await?;
    load(stack).await?;
    conversation(stack, turns, block).await?;
    together(stack, block).await
}

/// `pool` and `endpoint` of an engine's series.
fn of(engine: SocketAddr) -> [String; 2] {
    [format!("pool=\"{POOL}\""), format!("endpoint=\"{engine}\"")]
}

fn figure(page: &str, name: &str, engine: SocketAddr) -> anyhow::Result<u64> {
    let [pool, endpoint] = of(engine);
    count(page, name, &[&pool, &endpoint])
}

/// Engines are found, usable, and their KV capacity is what they say.
async fn capacity(stack: &Stack) -> anyhow::Result<()> {
    for engine in &stack.engines {
        let own = stack.engine_metrics(*engine).await?;
        let own: u64 = label(&own, "vllm:cache_config_info", "kv_cache_size_tokens")?.parse()?;
        eventually(
            &format!("{engine} is known, with {own} tokens"),
            async || {
                let page = stack.metrics().await?;
                let learned = figure(&page, "warmpath_engine_kv_capacity_tokens", *engine);
                let state = figure(&page, "warmpath_endpoint_state", *engine);
                let usable = matches!(state, Ok(1 | 2));
                Ok((usable && learned.is_ok_and(|learned| learned == own)).then_some(()))
            },
        )
        .await?;
        println!("{engine}: usable, KV capacity {own} tokens, as it says itself");
    }
    Ok(())
}

/// The engines' models are the pool's, and no others.
async fn models(stack: &Stack) -> anyhow::Result<()> {
    let list = stack.client.send(Call::get("/v1/models")).await?;
    let list = list.expect_status(200)?.json()?;
    let data = list.get("data").and_then(Value::as_array);
    let data = data.context("no list of models")?;
    let names: Vec<_> = data
        .iter()
        .filter_map(|model| model.get("id")?.as_str())
        .collect();
    ensure!(
        names == [&stack.model],
        "{names:?} instead of {}",
        stack.model
    );
    let unknown = stack
        .client
        .send(Call::chat("no-such-model", "hello"))
        .await?;
    unknown.expect_status(404)?;
    println!("models: {names:?}, found at the engines; another name is answered with 404");
    Ok(())
}

/// Engines are asked again and again without an error. Returns the size of their blocks.
async fn scraping(stack: &Stack) -> anyhow::Result<u64> {
    let errors = |page: &str| sum(page, "warmpath_scrape_errors_total", &[]).unwrap_or_default();
    let before = stack.metrics().await?;
    let took = |page: &str| {
        let name = "warmpath_scrape_duration_milliseconds";
        let count = sum(page, &format!("{name}_count"), &[]).unwrap_or_default();
        (
            count,
            sum(page, &format!("{name}_sum"), &[]).unwrap_or_default(),
        )
    };
    let deadline = Instant::now() + WATCHED;
    let mut oldest_ms = 0;
    while Instant::now() < deadline {
        tokio::time::sleep(super::POLL_INTERVAL).await;
        let page = stack.metrics().await?;
        for engine in &stack.engines {
            let age = figure(&page, "warmpath_scrape_age_milliseconds", *engine)?;
            oldest_ms = oldest_ms.max(age);
        }
    }
    let after = stack.metrics().await?;
    ensure!(errors(&before) == errors(&after), "a scrape failed");
    ensure!(oldest_ms < STALE_MS, "a scrape was {oldest_ms} ms old");
    let (first, last) = (took(&before), took(&after));
    let scrapes = last.0 - first.0;
    println!(
        "scraping: {scrapes} scrapes of {} engines in {} s, {:.1} ms each, none failed, the oldest was {oldest_ms} ms old",
        stack.engines.len(),
        WATCHED.as_secs(),
        (last.1 - first.1) / scrapes,
    );
    let first = stack.engines.first().context("no engine")?;
    let page = stack.engine_metrics(*first).await?;
    Ok(label(&page, "vllm:cache_config_info", "block_size")?.parse()?)
}

/// What is shown of an engine's load is what it says, while it works and after.
async fn load(stack: &Stack) -> anyhow::Result<()> {
    let fields = json!({"max_tokens": BUSY_TOKENS, "ignore_eos": true});
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..BUSY {
        let text = fresh(&format!("Count the stars. Request {number}"))?;
        let (client, call) = (
            stack.client.clone(),
            Call::chat_with(&stack.model, &text, fields.clone()),
        );
        calls.spawn(async move { client.send(call).await?.expect_status(200) });
    }
    let running = |page: &str| sum(page, "warmpath_engine_running_requests", &[]);
    let most = eventually("all requests run", async || {
        Ok(running(&stack.metrics().await?).filter(|sum| *sum == BUSY as f64))
    })
    .await?;
    let mut by_engine = BTreeMap::<String, usize>::new();
    while let Some(reply) = calls.join_next().await {
        let reply = reply??;
        *by_engine.entry(engine_of(&reply)?).or_default() += 1;
    }
    ensure!(
        by_engine.len() == stack.engines.len(),
        "an engine idled: {by_engine:?}"
    );
    eventually("nothing runs", async || {
        Ok(running(&stack.metrics().await?).filter(|sum| *sum == 0.0))
    })
    .await?;
    println!("load: {most} requests running by the engines' word, {by_engine:?}, then 0");
    Ok(())
}

fn engine_of(reply: &Reply) -> anyhow::Result<String> {
    let told = reply.header("x-warmpath-endpoint");
    Ok(told.context("no engine is told")?.to_owned())
}

/// One conversation: its engine, and what its turns came to.
struct Talk {
    messages: Vec<Value>,
    engine: Option<String>,
    prompt: u64,
    cached: u64,
    last_prompt: u64,
}

impl Talk {
    fn new(what: &str) -> anyhow::Result<Self> {
        let rules = format!(
            "{} Answer briefly, and stay with the subject. ",
            fresh(what)?
        );
        Ok(Self {
            messages: vec![json!({"role": "system", "content": rules.repeat(12)})],
            engine: None,
            prompt: 0,
            cached: 0,
            last_prompt: 0,
        })
    }

    /// Says something, and takes the answer into the conversation.
    ///
    /// # Errors
    /// Another engine than before answered, or one that had less than the turn before in its cache.
    async fn turn(&mut self, stack: &Stack, number: u32, block: u64) -> anyhow::Result<()> {
        let words = format!("Question {number}: what is to be said of it, and of what follows?");
        self.messages
            .push(json!({"role": "user", "content": words}));
        let document = json!({
            "model": stack.model,
            "messages": self.messages,
            "max_tokens": ANSWER_TOKENS,
        });
        let reply = stack
            .client
            .send(Call::post("/v1/chat/completions", &document));
        let reply = reply.await?.expect_status(200)?;
        let engine = engine_of(&reply)?;
        let before = self.engine.get_or_insert_with(|| engine.clone());
        ensure!(
            *before == engine,
            "turn {number} went to {engine}, not to {before}"
        );
        let (prompt, cached) = reply.prompt_tokens()?;
        let want = self.last_prompt.saturating_sub(BLOCKS_LOST * block);
        ensure!(
            cached >= want,
            "turn {number}: {cached} of {prompt} tokens cached, wanted {want}"
        );
        self.prompt += prompt;
        self.cached += cached;
        self.last_prompt = prompt;
        let document = reply.json()?;
        let answer = document.pointer("/choices/0/message/content");
        let answer = answer.and_then(Value::as_str).unwrap_or_default();
        self.messages
            .push(json!({"role": "assistant", "content": answer}));
        Ok(())
    }
}

/// What the filter counted of prompts.
#[derive(Clone, Copy)]
struct Counted {
    predicted: u64,
    prompt: u64,
    cached: u64,
}

async fn counted(stack: &Stack) -> anyhow::Result<Counted> {
    let page = stack.metrics().await?;
    let value = |name: &str| sum(&page, name, &[]).unwrap_or_default() as u64;
    Ok(Counted {
        predicted: value("warmpath_endpoint_predicted_cached_tokens_total"),
        prompt: value("warmpath_reported_prompt_tokens_total"),
        cached: value("warmpath_reported_cached_tokens_total"),
    })
}

/// A conversation stays where its cache is, and what engines report of it is counted.
async fn conversation(stack: &Stack, turns: u32, block: u64) -> anyhow::Result<()> {
    let before = settled(stack).await?;
    let mut talk = Talk::new("A talk of one")?;
    for number in 1..=turns {
        talk.turn(stack, number, block).await?;
    }
    let after = eventually("every answer's usage is counted", async || {
        let now = counted(stack).await?;
        Ok((now.prompt - before.prompt == talk.prompt).then_some(now))
    })
    .await?;
    ensure!(
        after.cached - before.cached == talk.cached,
        "{} cached tokens counted, {} reported",
        after.cached - before.cached,
        talk.cached
    );
    let share = |part: u64| 100.0 * part as f64 / talk.prompt as f64;
    let predicted = after.predicted - before.predicted;
    println!(
        "conversation: {turns} turns at {}, {} of {} prompt tokens cached ({:.1} %), predicted {predicted} ({:+.1} % of what was cached)",
        talk.engine.unwrap_or_default(),
        talk.cached,
        talk.prompt,
        share(talk.cached),
        100.0 * (predicted as f64 / talk.cached as f64 - 1.0),
    );
    Ok(())
}

/// The counters, when all that was answered before is in them.
async fn settled(stack: &Stack) -> anyhow::Result<Counted> {
    let last = std::cell::Cell::new(counted(stack).await?);
    let since = std::cell::Cell::new(Instant::now());
    eventually("the counters come to rest", async || {
        let now = counted(stack).await?;
        if (now.prompt, now.predicted) != (last.get().prompt, last.get().predicted) {
            since.set(Instant::now());
        }
        last.set(now);
        let rested = since.get().elapsed() > Duration::from_secs(2);
        Ok(rested.then_some(now))
    })
    .await
}

/// Conversations that alternate stay apart: no engine has them all, and each keeps its cache.
async fn together(stack: &Stack, block: u64) -> anyhow::Result<()> {
    const TALKS: u32 = 4;
    const TURNS: u32 = 5;
    let mut talks = Vec::new();
    for number in 0..TALKS {
        talks.push(Talk::new(&format!("Talk {number} of several"))?);
    }
    for turn in 1..=TURNS {
        for talk in &mut talks {
            talk.turn(stack, turn, block).await?;
        }
    }
    let mut by_engine = BTreeMap::<String, usize>::new();
    for talk in &talks {
        *by_engine
            .entry(talk.engine.clone().unwrap_or_default())
            .or_default() += 1;
    }
    let (cached, prompt) = talks.iter().fold((0, 0), |sum, talk| {
        (sum.0 + talk.cached, sum.1 + talk.prompt)
    });
    println!(
        "{TALKS} conversations in turn: {by_engine:?}, {:.1} % of {prompt} prompt tokens cached",
        100.0 * cached as f64 / prompt as f64
    );
    Ok(())
}
