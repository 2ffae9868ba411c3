//! Command lines from the documentation of other routers: Envoy starts on what `migrate` prints for
//! them, and requests are routed as they were.
//!
//! Only addresses are replaced: an engine of the test's own takes the place of each that is named.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::client::{Call, Client, Reply};
use super::conversation::{Conversation, text};
use super::harness::{Context, eventually};
use super::{Case, named};
use crate::engine::{Connector, Disaggregation, Engine, EngineConfig, Fault, Role};
use crate::envoy::bootstrap::{Addresses, Bootstrap};
use crate::envoy::{Envoy, Launch, stats};
use crate::migrate::Migrated;
use crate::migrate::commands;

/// What clients ask for where the command line names no models.
const MODEL: &str = "llama-3-8b";

pub(super) fn cases() -> Vec<Case> {
    named!("migrate":
        production_stack_s_example_routes_by_model,
        vllm_router_s_retries_reach_another_engine,
        vllm_router_s_breaker_leaves_an_engine_out,
        vllm_router_s_ranks_keep_their_sessions,
        vllm_router_s_prefill_and_decode_share_the_work,
        dynamo_s_frontend_keeps_a_conversation_together,
    )
}

/// A router that has moved: its engines, by what the command line calls them, behind an Envoy.
struct Moved<'a> {
    context: &'a Context,
    engines: BTreeMap<String, Engine>,
    envoy: Envoy,
    client: Client,
}

impl<'a> Moved<'a> {
    /// Starts an engine for each URL of a command line, and Envoy on what is printed.
    async fn start(context: &'a Context, printed: &str) -> anyhow::Result<Self> {
        Self::start_with(context, printed, &[], |_, _| {}).await
    }

    /// The same with engines that are named by `--engine`, and each engine as `edit` makes it, by its URL.
    async fn start_with(
        context: &'a Context,
        printed: &str,
        further: &[&str],
        edit: impl Fn(&str, &mut EngineConfig),
    ) -> anyhow::Result<Self> {
        let mut words = commands::words(printed)?;
        let as_printed = words.clone();
        let mut further: Vec<String> = further.iter().map(|&url| url.to_owned()).collect();
        let mut engines = BTreeMap::new();
        for url in urls(words.iter().chain(&further)) {
            let mut config = EngineConfig {
                name: url.trim_start_matches("http://").replace(':', "-"),
                models: models_of(&as_printed, &url),
                listen: (Ipv4Addr::LOCALHOST, 0).into(),
                time_scale: 0.0,
                ..EngineConfig::default()
            };
            edit(&url, &mut config);
            let engine = Engine::start(config).await?;
            for word in words.iter_mut().chain(&mut further) {
                *word = word.replace(&url, &format!("http://{}", engine.addr()));
            }
            engines.insert(url, engine);
        }
        let bootstrap = bootstrap(context, &words, &further)?;
        let addresses = bootstrap.addresses()?;
        let envoy = Envoy::start(Launch {
            binary: context.setting().envoy.clone(),
            bootstrap,
            concurrency: context.setting().concurrency,
            component_log_level: "wasm:info".to_owned(),
        });
        let moved = Self {
            context,
            engines,
            envoy: envoy.await?,
            client: Client::new(addresses.listener)?,
        };
        moved.wait_until_checked().await?;
        Ok(moved)
    }

    /// Waits until every engine has passed its health check, and the filter knows.
    async fn wait_until_checked(&self) -> anyhow::Result<()> {
        eventually("the filter knows the engines", async || {
            let page = self.envoy.admin_get("/stats/prometheus").await?;
            let count = |name| stats::sum(&page, name, &[]);
            let known = count("warmpath_pool_known_endpoints");
            let usable = count("warmpath_pool_usable_endpoints");
            Ok((known >= self.engines.len() as u64 && known == usable).then_some(()))
        })
        .await
    }

    /// How many engines the filter would choose.
    async fn usable(&self) -> anyhow::Result<u64> {
        let page = self.envoy.admin_get("/stats/prometheus").await?;
        Ok(stats::sum(&page, "warmpath_pool_usable_endpoints", &[]))
    }

    async fn chat(&self, model: &str) -> anyhow::Result<Reply> {
        self.client.send(Call::chat(model, "hello")).await
    }

    fn seen(&self, url: &str) -> anyhow::Result<u64> {
        let engine = self.engines.get(url).context("no such engine")?;
        Ok(engine.seen_count())
    }
}

impl Drop for Moved<'_> {
    fn drop(&mut self) {
        let log = self.envoy.log_tail();
        self.context.note(&format!("-- Envoy's log\n{log}"));
    }
}

/// What is printed for a command line, on addresses of this test.
fn bootstrap(context: &Context, words: &[String], engines: &[String]) -> anyhow::Result<Bootstrap> {
    let made = Migrated::of(None, engines, None, words)?;
    made.check()?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), &made.envoy)?;
    let mut bootstrap = Bootstrap::load(file.path())?;
    bootstrap.set_module(&context.setting().module);
    bootstrap.set_runtime(&context.setting().runtime);
    bootstrap.set_addresses(Addresses::free_with_status()?)?;
    Ok(bootstrap)
}

/// Every URL, once, in the order in which they come.
fn urls<'a>(words: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for url in words.flat_map(|word| word.split(',')) {
        if url.starts_with("http://") && !found.iter().any(|known| known == url) {
            found.push(url.to_owned());
        }
    }
    found
}

/// The model that a command line gives to the engine of this URL.
fn models_of(words: &[String], url: &str) -> Vec<String> {
    let list = |flag: &str| -> Vec<&str> {
        let at = words.iter().position(|word| word == flag);
        let value = at.and_then(|at| words.get(at + 1));
        value.map_or(Vec::new(), |value| value.split(',').collect())
    };
    let backends = list("--static-backends");
    let place = backends.iter().position(|backend| *backend == url);
    let model = place.and_then(|place| list("--static-models").get(place).copied());
    vec![model.unwrap_or(MODEL).to_owned()]
}

fn engine_of(reply: &Reply) -> anyhow::Result<String> {
    let name = reply.header("x-engine");
    Ok(name.context("no engine gave this answer")?.to_owned())
}

async fn production_stack_s_example_routes_by_model(context: &Context) -> anyhow::Result<()> {
    let moved = Moved::start(context, "production-stack.sh").await?;
    let llama = "meta-llama/Llama-3.1-8B-Instruct";
    for name in [llama, "gpt4"] {
        let reply = moved.chat(name).await?.expect_status(200)?;
        ensure!(engine_of(&reply)? == "localhost-9002", "{reply:?}");
        let document = reply.json()?;
        ensure!(
            document.get("model").context("no model")? == llama,
            "{document}"
        );
    }
    for _ in 0..8 {
        moved.chat("facebook/opt-125m").await?.expect_status(200)?;
    }
    for url in ["http://localhost:9001", "http://localhost:9003"] {
        let seen = moved.seen(url)?;
        ensure!(seen > 0, "in turn, and yet {url} has seen nothing");
    }
    ensure!(
        moved.seen("http://localhost:9002")? == 2,
        "others' requests"
    );
    moved.chat("unknown").await?.expect_status(404)?;
    let health = moved
        .client
        .send(Call::get("/health"))
        .await?
        .expect_status(200)?;
    ensure!(
        engine_of(&health).is_err(),
        "an engine answered for the router"
    );
    Ok(())
}

async fn vllm_router_s_retries_reach_another_engine(context: &Context) -> anyhow::Result<()> {
    let moved = Moved::start(context, "vllm-router-retries.sh").await?;
    let ready = || moved.client.send(Call::get("/readiness"));
    ready().await?.expect_status(200)?;
    let dead = moved
        .engines
        .get("http://localhost:8080")
        .context("no engine")?;
    dead.kill().await;
    for _ in 0..12 {
        let reply = moved.chat(MODEL).await?.expect_status(200)?;
        ensure!(engine_of(&reply)? == "localhost-8081", "{reply:?}");
    }
    ready().await?.expect_status(200)?;
    let last = moved
        .engines
        .get("http://localhost:8081")
        .context("no engine")?;
    last.kill().await;
    eventually("nobody is ready any more", async || {
        Ok((ready().await?.expect_status(503).is_ok()).then_some(()))
    })
    .await?;
    moved
        .client
        .send(Call::get("/liveness"))
        .await?
        .expect_status(200)?;
    Ok(())
}

async fn vllm_router_s_breaker_leaves_an_engine_out(context: &Context) -> anyhow::Result<()> {
    let moved = Moved::start(context, "vllm-router-breaker.sh").await?;
    let ill = "http://localhost:8080";
    let engine = moved.engines.get(ill).context("no engine")?;
    engine.set_fault(Fault::Status {
        code: 500,
        retry_after_s: None,
    });
    let asked = AtomicU64::new(0);
    let ask = async || {
        // No two prompts have anything in common that could name an engine.
        let prompt = text(asked.fetch_add(1, Ordering::Relaxed), 2000);
        let call = Call::chat(MODEL, &prompt);
        moved.client.send(call).await?.expect_status(200)
    };
    // Each failure is retried at the other engine, and after five in a row none is asked for.
    eventually("the engine is left out", async || {
        ask().await?;
        Ok((moved.usable().await? == 1).then_some(()))
    })
    .await?;
    let before = moved.seen(ill)?;
    ensure!(
        before >= 5,
        "left out after {before} failures instead of five"
    );
    for _ in 0..6 {
        ask().await?;
    }
    let after = moved.seen(ill)?;
    ensure!(
        after == before,
        "asked {after} times, {before} before the pause"
    );
    Ok(())
}

async fn dynamo_s_frontend_keeps_a_conversation_together(context: &Context) -> anyhow::Result<()> {
    let engines = [
        "http://worker1:8000",
        "http://worker2:8000",
        "http://worker3:8000",
    ];
    let moved = Moved::start_with(context, "dynamo.sh", &engines, |_, _| {}).await?;
    for seed in 0..3 {
        let mut conversation = Conversation::new(&text(seed, 4000));
        let mut homes = Vec::new();
        for question in ["one", "two", "three"] {
            let reply = moved.client.send(conversation.ask(question)).await?;
            let reply = reply.expect_status(200)?;
            conversation.heard(&reply)?;
            homes.push(engine_of(&reply)?);
        }
        let first = homes.first();
        ensure!(homes.iter().all(|home| Some(home) == first), "{homes:?}");
    }
    Ok(())
}

async fn vllm_router_s_ranks_keep_their_sessions(context: &Context) -> anyhow::Result<()> {
    let set_up = |_: &str, config: &mut EngineConfig| config.data_parallel_size = 8;
    let moved = Moved::start_with(context, "vllm-router-dp.sh", &[], set_up).await?;
    let ask = async |session: u64, client: &str| {
        let call = Call::chat(MODEL, "hello")
            .header("x-session-id", format!("s-{session}"))?
            .header("x-data-parallel-rank", client)?;
        let reply = moved.client.send(call).await?.expect_status(200)?;
        let name = engine_of(&reply)?;
        let url = format!("http://{}", name.replace('-', ":"));
        let log = moved.engines.get(&url).context("a stranger")?.log();
        let seen = log.last().context("nothing seen")?;
        let rank = seen.header("x-data-parallel-rank").context("no rank")?;
        Ok::<_, anyhow::Error>((name, String::from_utf8_lossy(rank).parse::<u16>()?))
    };
    let mut places = BTreeSet::new();
    for session in 0..40 {
        let place = ask(session, "0").await?;
        // Again, with another wish of the client's.
        let again = ask(session, "7").await?;
        ensure!(
            place == again,
            "session {session} at {place:?}, then {again:?}"
        );
        ensure!(place.1 < 8, "{place:?}");
        places.insert(place);
    }
    let engines: BTreeSet<_> = places.iter().map(|(name, _)| name).collect();
    ensure!(engines.len() == 2 && places.len() >= 8, "{places:?}");
    Ok(())
}

async fn vllm_router_s_prefill_and_decode_share_the_work(context: &Context) -> anyhow::Result<()> {
    let is_prefill = |url: &str| url.ends_with(":8081") || url.ends_with(":8082");
    let set_up = |url: &str, config: &mut EngineConfig| {
        let role = match is_prefill(url) {
            true => Role::Prefill,
            false => Role::Decode,
        };
        config.disaggregation = Some(Disaggregation::new(Connector::Nixl, role));
    };
    let moved = Moved::start_with(context, "vllm-router-pd.sh", &[], set_up).await?;
    for (seed, stream) in [(1, false), (2, true)] {
        let fields = json!({"max_tokens": 4, "stream": stream});
        // Longer than what a decode engine computes by itself.
        let call = Call::chat_with(MODEL, &text(seed, 8000), fields);
        moved.client.send(call).await?.expect_status(200)?;
    }
    let (mut gave, mut took) = (Vec::new(), Vec::new());
    for (url, engine) in &moved.engines {
        let errors = engine.kv_errors();
        ensure!(errors.is_empty(), "{url}: {errors:?}");
        for seen in engine.log() {
            let part = if is_prefill(url) {
                Role::Prefill
            } else {
                Role::Decode
            };
            ensure!(
                seen.kv.part == Some(part),
                "{url} did otherwise: {:?}",
                seen.kv
            );
            match part {
                Role::Prefill => gave.push(engine.name().to_owned()),
                Role::Decode => took.push(seen.kv.source.context("from nobody")?),
            }
        }
    }
    gave.sort();
    took.sort();
    ensure!(
        gave.len() == 2 && gave == took,
        "given by {gave:?}, taken from {took:?}"
    );
    Ok(())
}
