//! The `kv-index` verb: the policy `kv_aware` over NVIDIA Dynamo's own KV indexer.
//!
//! The indexer is the real one (`python -m dynamo.indexer`), started beside model engines that publish their
//! KV events over ZMQ as vLLM does. What it says is compared, request by request, with what the engine
//! had cached by its own account: that is what the filter must have used in its decision.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::e2e::client::{Call, Reply};
use crate::e2e::conversation::{Conversation, text};
use crate::e2e::harness::{Context, Stack, StackSpec, eventually, pool_mut};
use crate::engine::KvEventsConfig;
use crate::envoy::{self, port, stats};
use crate::subject::{Subject, Workers};

/// The model of the pool.
const MODEL: &str = "llama-3-8b";
/// Tokens of an engine's block.
const BLOCK_TOKENS: u64 = 16;
/// Conversations, and turns of each.
const CONVERSATIONS: u64 = 6;
const TURNS: u64 = 5;

/// Arguments of the `kv-index` verb.
#[derive(clap::Args)]
pub struct Args {
    /// A Python that has the package `ai-dynamo-runtime`.
    #[arg(long)]
    python: PathBuf,
    #[command(flatten)]
    subject: Subject,
    #[command(flatten)]
    workers: Workers,
}

/// Runs the `kv-index` verb.
///
/// # Errors
/// Something does not start, or the filter used other figures than the engines had.
pub fn run(args: Args) -> anyhow::Result<()> {
    envoy::stop_all_on_signal()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let context = Context::new(args.subject.setting(args.workers.concurrency)?);
    let shown = runtime.block_on(show(&context, &args));
    shown.with_context(|| context.journal())
}

/// The running indexer; it ends when it is dropped.
struct Indexer {
    _child: Child,
    address: SocketAddr,
    client: reqwest::Client,
}

impl Indexer {
    async fn start(python: &PathBuf) -> anyhow::Result<Self> {
        let address = port::reserve()?;
        let child = Command::new(python)
            .args([
                "-m",
                "dynamo.indexer",
                "--port",
                &address.port().to_string(),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", python.display()))?;
        let client = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("http://{address}/health");
        eventually("the indexer serves", async || {
            let answer = client.get(&url).send().await;
            Ok(answer
                .is_ok_and(|answer| answer.status().is_success())
                .then_some(()))
        })
        .await?;
        Ok(Self {
            _child: child,
            address,
            client,
        })
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let url = format!("http://{}{path}", self.address);
        let answer = self.client.post(&url).json(body).send().await?;
        let answer = answer.error_for_status()?;
        Ok(answer.json().await?)
    }

    /// Tokens of a prompt that the instance has, as it says.
    async fn overlap(&self, instance: u64, tokens: &Value) -> anyhow::Result<u64> {
        let query = json!({"token_ids": tokens, "model_name": MODEL});
        let found = self.post("/query", &query).await?;
        let score = found.pointer(&format!("/scores/{instance}/0"));
        Ok(score.and_then(Value::as_u64).unwrap_or_default())
    }
}

async fn show(context: &Context, args: &Args) -> anyhow::Result<()> {
    let indexer = Indexer::start(&args.python).await?;
    let stack = Stack::start(context, spec(indexer.address)).await?;
    introduce(&stack, &indexer).await?;
    println!("the indexer hears {} engines", stack.pool("llama").count());
    let (mut requests, mut matched, mut all) = (0, 0, 0);
    for number in 0..CONVERSATIONS {
        let mut conversation = Conversation::new(&text(1000 + number % 3, 2500));
        for turn in 0..TURNS {
            let call = match number % 2 {
                0 => conversation.ask(&text(2000 + number * TURNS + turn, 900)),
                _ => completion(number, turn),
            };
            let (cached, prompt) = check(&stack, &indexer, call, &mut conversation).await?;
            requests += 1;
            matched += u64::from(cached > 0);
            all += prompt;
        }
    }
    ensure!(
        matched * 2 > requests,
        "{matched} of {requests} requests found anything"
    );
    let page = stack.envoy()?.admin_get("/stats/prometheus").await?;
    let overlap = stats::sum(&page, "warmpath_kv_overlap_tokens_total", &[]);
    println!(
        "{requests} requests, {all} prompt tokens: {overlap} tokens of overlap were used, each request's \
         equal to what its engine had cached"
    );
    Ok(())
}

/// Three engines that publish, and a pool that asks the indexer and believes nobody else.
fn spec(indexer: SocketAddr) -> StackSpec {
    StackSpec::shipped()
        .engine(|config| config.kv_events = Some(KvEventsConfig::default()))
        .plugin(|config| {
            let Some(pool) = pool_mut(config, "llama") else {
                return;
            };
            let listed = pool.get("endpoints").and_then(|it| it.pointer("/static"));
            let listed = listed.and_then(Value::as_array).into_iter().flatten();
            let instances = listed.zip(1_u64..);
            let instances: serde_json::Map<_, _> = instances
                .map(|(endpoint, number)| (number.to_string(), endpoint["address"].clone()))
                .collect();
            let policy = json!({"kv_aware": {
                "index": {"dynamo": {"cluster": "kv_index", "instances": instances}},
                "budget_ms": 1000, "least_tokens": 1, "prediction_ms": 0, "answer_ttl_ms": 0,
            }});
            pool.insert("policy".to_owned(), policy);
        })
        .bootstrap(move |bootstrap| {
            bootstrap.add_cluster_like("prometheus_stats", "kv_index")?;
            bootstrap.set_endpoints("kv_index", &[indexer])
        })
}

/// Registers every engine, and waits until the indexer hears each: what is published before that is lost.
async fn introduce(stack: &Stack<'_>, indexer: &Indexer) -> anyhow::Result<()> {
    for (engine, number) in stack.pool("llama").zip(1_u64..) {
        let endpoint = engine.engine.kv_events().context("no KV events")?;
        let worker = json!({
            "instance_id": number, "endpoint": endpoint, "model_name": MODEL,
            "block_size": BLOCK_TOKENS, "dp_rank": 0,
        });
        indexer.post("/register", &worker).await?;
        let attempt = std::sync::atomic::AtomicU64::new(0);
        eventually("the indexer hears an engine", async || {
            let seed = attempt.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let prompt = text(number * 1_000_000 + seed, 200);
            let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 1});
            let url = format!("http://{}/v1/completions", engine.address);
            let sent = indexer.client.post(url).json(&body).send().await?;
            sent.error_for_status()?;
            let tokens = tokens(engine.address, indexer, &body).await?;
            let heard = indexer.overlap(number, &tokens).await? > 0;
            Ok(heard.then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// A prompt that goes on with every turn, of a length that is no multiple of a block: the last token of a
/// prompt is always computed, so an engine says one block less of one that is.
fn completion(number: u64, turn: u64) -> Call {
    let turns = (0..=turn).map(|turn| text(3000 + number * TURNS + turn, 1100));
    let prompt: String = turns.collect();
    let body = json!({"model": MODEL, "prompt": format!("{prompt}end"), "max_tokens": 8});
    Call::post("/v1/completions", &body)
}

async fn tokens(engine: SocketAddr, indexer: &Indexer, body: &Value) -> anyhow::Result<Value> {
    let url = format!("http://{engine}/tokenize");
    let answer = indexer.client.post(url).json(body).send().await?;
    let answer: Value = answer.error_for_status()?.json().await?;
    answer.get("tokens").cloned().context("no tokens")
}

/// Sends a request and compares; gives the cached and all tokens of its prompt.
async fn check(
    stack: &Stack<'_>,
    indexer: &Indexer,
    call: Call,
    conversation: &mut Conversation,
) -> anyhow::Result<(u64, u64)> {
    let before = used(stack).await?;
    let is_chat = call.path.contains("chat");
    let body: Value = serde_json::from_slice(&call.body)?;
    let reply: Reply = stack.send(call).await?.expect_status(200)?;
    let (prompt, cached) = reply.prompt_tokens()?;
    let told = reply.decision()?;
    ensure!(told.policy == "kv_aware", "{told:?}");
    let engine = stack.answered_by(&reply)?;
    let after = eventually("the lookup is counted", async || {
        let now = used(stack).await?;
        Ok((now.lookups > before.lookups).then_some(now))
    })
    .await?;
    let overlap = after.overlap - before.overlap;
    println!(
        "{:>6} of {prompt:>6} tokens cached at {}, {overlap:>6} used in the decision ({})",
        cached, engine.name, told.reason
    );
    ensure!(
        overlap == cached,
        "{overlap} tokens were used, the engine had {cached} of {prompt}: {told:?}"
    );
    if is_chat {
        conversation.heard(&reply)?;
    }
    // The next request is to find this one in the index.
    let tokens = tokens(engine.address, indexer, &body).await?;
    let number = stack.pool("llama").zip(1_u64..);
    let mut number = number.filter(|(one, _)| one.name == engine.name);
    let (_, number) = number.next().context("no such engine")?;
    let whole = prompt / BLOCK_TOKENS * BLOCK_TOKENS;
    eventually("the indexer knows the prompt", async || {
        let known = indexer.overlap(number, &tokens).await?;
        Ok((known >= whole).then_some(()))
    })
    .await?;
    Ok((cached, prompt))
}

/// What the filter has counted.
struct Used {
    lookups: u64,
    overlap: u64,
}

async fn used(stack: &Stack<'_>) -> anyhow::Result<Used> {
    let page = stack.envoy()?.admin_get("/stats/prometheus").await?;
    Ok(Used {
        lookups: stats::sum(&page, "warmpath_kv_lookups_total", &[]),
        overlap: stats::sum(&page, "warmpath_kv_overlap_tokens_total", &[]),
    })
}
