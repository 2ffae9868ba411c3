//! What the filter learns from Envoy and from the engines: endpoints that come and go, the models
//! they serve, the prompts they have room for.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{Call, Reply, Transport};
use super::conversation::text;
use super::harness::{Context, Stack, StackSpec, eventually, pool_mut};
use super::workers::{Workers, seed};
use super::{Case, named};
use crate::envoy::files::write_endpoints;

pub(super) fn cases() -> Vec<Case> {
    named!("fleet":
        endpoints_come_and_go_with_envoys,
        who_leaves_is_spared_though_envoy_still_lists_it,
        hundreds_of_endpoints_are_known,
        engines_say_what_they_serve,
        engines_say_how_much_they_hold,
    )
}

const INTERVAL_MS: u64 = 250;
/// Longer where intervals are counted: what a test itself takes must not matter.
const FOLLOWED_MS: u64 = 1000;

/// The endpoints of the cluster `llama`, in a file that Envoy follows.
struct Endpoints {
    folder: TempDir,
}

impl Endpoints {
    fn new() -> anyhow::Result<Self> {
        let endpoints = Self {
            folder: tempfile::tempdir()?,
        };
        endpoints.set(&[])?;
        Ok(endpoints)
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("endpoints.json")
    }

    fn set(&self, addresses: &[SocketAddr]) -> anyhow::Result<()> {
        write_endpoints(&self.file(), "llama", addresses)
    }

    /// Lets both Envoy and the filter find the engines of `llama` there.
    fn of(&self, spec: StackSpec) -> StackSpec {
        let file = self.file();
        spec.pool_option("llama", "endpoints", json!("envoy"))
            .bootstrap(move |bootstrap| bootstrap.read_endpoints_from("llama", &file))
    }
}

fn chat() -> Call {
    Call::chat("llama-3-8b", "hello")
}

/// The engines that a decision names, sorted; none when there is none to name.
fn named_engines(reply: &Reply) -> anyhow::Result<Vec<String>> {
    if !reply.is_decided() {
        return Ok(Vec::new());
    }
    let mut ranked = reply.decision()?.ranked;
    ranked.sort();
    Ok(ranked)
}

/// Waits until every worker names these engines and no other, and is answered by one of them; without any
/// by the filter, which says when to come back.
async fn all_name(workers: &Workers, want: &[SocketAddr]) -> anyhow::Result<()> {
    let mut want: Vec<_> = want.iter().map(SocketAddr::to_string).collect();
    want.sort();
    let status = if want.is_empty() { 503 } else { 200 };
    for worker in 0..workers.count() {
        // Twice in a row: a health check may fail at any time on a busy machine.
        eventually(&format!("worker {worker} names {want:?}"), async || {
            for _ in 0..2 {
                let reply = workers.send(worker, chat()).await?;
                let by_filter = reply.header("retry-after").is_some();
                let named = named_engines(&reply)? == want && by_filter == want.is_empty();
                if !named || reply.status != status {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await?;
    }
    Ok(())
}

/// Waits until Envoy itself would use these engines of `llama` and no other.
async fn envoy_has(stack: &Stack<'_>, want: &[SocketAddr]) -> anyhow::Result<()> {
    let mut want: Vec<_> = want.iter().map(SocketAddr::to_string).collect();
    want.sort();
    eventually(&format!("Envoy has {want:?}"), async || {
        let page = stack.envoy()?.admin_get("/clusters").await?;
        let healthy = page.lines().filter_map(|line| {
            let host = line.strip_prefix("llama::")?;
            host.strip_suffix("::health_flags::healthy")
        });
        let mut healthy: Vec<_> = healthy.collect();
        healthy.sort_unstable();
        Ok((healthy == want).then_some(()))
    })
    .await
}

/// How often Envoy was asked for its endpoints.
async fn times_asked(stack: &Stack<'_>) -> anyhow::Result<u64> {
    let name = "cluster.prometheus_stats.upstream_rq_total";
    let path = format!("/stats?filter={name}");
    let page = stack.envoy()?.admin_get(&path).await?;
    let value = page.lines().find_map(|line| line.strip_prefix(name));
    let value = value.and_then(|it| it.strip_prefix(": "));
    Ok(value.context("no such statistic")?.parse()?)
}

/// Fails unless the workers follow while each of these sets of engines is put in the place of the
/// last.
async fn follow(stack: &Stack<'_>, endpoints: &Endpoints, sets: &[&[usize]]) -> anyhow::Result<()> {
    // An answer that was under way, the one that tells, and one while the last worker hears of it.
    const MOST_QUESTIONS: u64 = 3;
    let workers = Workers::reach(stack).await?;
    let addresses: Vec<_> = stack.pool("llama").map(|engine| engine.address).collect();
    for set in sets {
        let present: Vec<_> = set
            .iter()
            .filter_map(|&at| addresses.get(at).copied())
            .collect();
        endpoints.set(&present)?;
        envoy_has(stack, &present).await?;
        let before = times_asked(stack).await?;
        all_name(&workers, &present).await?;
        let asked = times_asked(stack).await? - before;
        ensure!(asked <= MOST_QUESTIONS, "{set:?} took {asked} questions");
    }
    Ok(())
}

async fn endpoints_come_and_go_with_envoys(context: &Context) -> anyhow::Result<()> {
    let endpoints = Endpoints::new()?;
    let spec = endpoints
        .of(StackSpec::shipped().checked().polling(FOLLOWED_MS))
        .policy("llama", json!("round_robin"))
        .bootstrap(|bootstrap| {
            // Who has left is gone at once, even if it still passes its health checks.
            bootstrap.cluster_mut("llama")?["ignore_health_on_host_removal"] = true.into();
            Ok(())
        });
    let stack = Stack::start(context, spec).await?;
    let sets: [&[usize]; 7] = [&[], &[0], &[0, 1, 2], &[1, 2], &[2], &[], &[0, 2]];
    follow(&stack, &endpoints, &sets).await
}

async fn who_leaves_is_spared_though_envoy_still_lists_it(context: &Context) -> anyhow::Result<()> {
    let endpoints = Endpoints::new()?;
    let spec = endpoints
        .of(StackSpec::shipped().checked().polling(FOLLOWED_MS))
        .policy("llama", json!("round_robin"));
    let stack = Stack::start(context, spec).await?;
    follow(&stack, &endpoints, &[&[0, 1, 2], &[1, 2], &[2], &[0, 2]]).await?;
    let still_listed = stack.envoy()?.admin_get("/clusters").await?;
    let removed = stack.engine("llama-1")?.address;
    let line = format!("llama::{removed}::health_flags::");
    let line = still_listed.lines().find(|it| it.starts_with(&line));
    let flags = line.context("Envoy has dropped it: this shows nothing")?;
    ensure!(flags.contains("/pending_dynamic_removal"), "{flags}");
    Ok(())
}

async fn hundreds_of_endpoints_are_known(context: &Context) -> anyhow::Result<()> {
    const SILENT: u8 = 250;
    let endpoints = Endpoints::new()?;
    let spec = endpoints
        .of(StackSpec::shipped().checked().polling(INTERVAL_MS))
        .policy("llama", json!("least_request"));
    let stack = Stack::start(context, spec).await?;
    let workers = Workers::reach(&stack).await?;
    let live: Vec<_> = stack.pool("llama").map(|engine| engine.address).collect();
    // Nobody listens there.
    let silent = (1..=SILENT).map(|last| SocketAddr::from((Ipv4Addr::new(127, 0, 1, last), 9)));
    let all: Vec<_> = live.iter().copied().chain(silent).collect();
    endpoints.set(&all)?;
    let gauge = format!(
        "warmpath_pool_known_endpoints{{pool=\"llama\"}} {}",
        all.len()
    );
    eventually("all endpoints are known", async || {
        let page = stack.envoy()?.admin_get("/stats/prometheus").await?;
        Ok(page.lines().any(|line| line == gauge).then_some(()))
    })
    .await?;
    all_name(&workers, &live).await?;
    for number in 0..50 {
        workers.send(number, chat()).await?.expect_status(200)?;
    }
    Ok(())
}

/// How many times each name is in the list of models.
async fn listed(stack: &Stack<'_>, name: &str) -> anyhow::Result<usize> {
    let list = stack.send(Call::get("/v1/models")).await?;
    let list = list.expect_status(200)?.json()?;
    let data = list.get("data").and_then(Value::as_array);
    let data = data.context("no data")?.iter();
    Ok(data
        .filter(|it| it.get("id").is_some_and(|id| id == name))
        .count())
}

async fn engines_say_what_they_serve(context: &Context) -> anyhow::Result<()> {
    let spec = StackSpec::shipped()
        .polling(100)
        .engine(|config| {
            if config.name == "llama-0" {
                config.models.push("sql-lora".to_owned());
            }
        })
        .policy("llama", json!("round_robin"))
        .plugin(|config| {
            if let Some(pool) = pool_mut(config, "llama") {
                pool.remove("models");
                pool.remove("aliases");
                pool.insert("discover_models".to_owned(), true.into());
            }
        });
    let stack = Stack::start(context, spec).await?;
    let workers = Workers::reach(&stack).await?;
    let comes_to = async |model: &str, status: u16| {
        for worker in 0..workers.count() {
            eventually(&format!("{model} comes to {status}"), async || {
                let reply = workers.send(worker, Call::chat(model, "hello")).await?;
                Ok((reply.status == status).then_some(()))
            })
            .await?;
        }
        anyhow::Ok(())
    };
    comes_to("llama-3-8b", 200).await?;
    comes_to("sql-lora", 200).await?;
    for number in 0..10 {
        let reply = workers
            .send(number, Call::chat("sql-lora", "hello"))
            .await?;
        let reply = reply.expect_status(200)?;
        ensure!(stack.answered_by(&reply)?.name == "llama-0", "{reply:?}");
    }
    for name in ["llama-3-8b", "sql-lora", "qwen-2.5-7b"] {
        ensure!(listed(&stack, name).await? == 1, "{name} is listed once");
    }
    comes_to("never-seen", 404).await?;
    let engine = &stack.engine("llama-0")?.engine;
    engine.set_loaded("sql-lora", false);
    comes_to("sql-lora", 503).await?;
    ensure!(listed(&stack, "sql-lora").await? == 0, "it is gone");
    let reply = workers.send(0, Call::chat("sql-lora", "hello")).await?;
    ensure!(reply.header("retry-after").is_some(), "{reply:?}");
    comes_to("llama-3-8b", 200).await?;
    comes_to("never-seen", 404).await?;
    engine.set_loaded("sql-lora", true);
    comes_to("sql-lora", 200).await
}

/// Whether a prompt is still believed to be held after others came to its engine.
async fn is_believed_in(stack: &Stack<'_>) -> anyhow::Result<bool> {
    const PROMPT_BYTES: usize = 8000;
    let send = async |call: Call| {
        let call = call.over(Transport::Http2);
        stack.send(call).await?.expect_status(200)
    };
    let call = Call::chat("llama-3-8b", &text(seed(), PROMPT_BYTES));
    send(call.clone()).await?;
    ensure!(
        send(call.clone()).await?.decision()?.reason == "longest_prefix",
        "it is not believed in at once"
    );
    for _ in 0..24 {
        send(Call::chat("llama-3-8b", &text(seed(), PROMPT_BYTES))).await?;
    }
    let reply = send(call).await?;
    let believed = reply.decision()?.reason == "longest_prefix";
    let (_, cached) = reply.prompt_tokens()?;
    ensure!(cached < 100, "the engine still has it: {cached} tokens");
    Ok(believed)
}

async fn engines_say_how_much_they_hold(context: &Context) -> anyhow::Result<()> {
    let spec = || {
        StackSpec::shipped()
            .polling(INTERVAL_MS)
            .engines("llama", 1)
            // 32,000 tokens: room for about 16 of the prompts.
            .engine(|config| config.params.kv_blocks = 2000)
    };
    let told = spec().policy("llama", json!("prefix"));
    let stack = Stack::start(context, told).await?;
    eventually("what was evicted is not believed in", async || {
        Ok((!is_believed_in(&stack).await?).then_some(()))
    })
    .await?;
    let given = spec().policy("llama", json!({"prefix": {"kv_tokens": 1_000_000}}));
    let stack = Stack::start(context, given).await?;
    eventually("the engine was scraped", async || {
        Ok((stack.engine("llama-0")?.engine.scrapes().len() > 4).then_some(()))
    })
    .await?;
    ensure!(
        is_believed_in(&stack).await?,
        "what the configuration says does not count"
    );
    Ok(())
}
