//! Engines with several data-parallel ranks behind one port, and engines at IPv6 addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr, TcpListener};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::client::{Call, Reply, Transport};
use super::conversation::{Conversation, text};
use super::counters::counter;
use super::harness::{Context, Stack, StackSpec, eventually};
use super::status::{at, facts};
use super::workers::seed;
use super::{Case, named};
use crate::engine::Seen;
use crate::envoy::files::write_endpoints;

pub(super) fn cases() -> Vec<Case> {
    named!("ranks":
        conversations_stick_to_a_rank,
        each_rank_shows_its_own_figures,
        a_retry_keeps_a_rank_that_exists,
        ranks_of_a_dead_engine_are_passed_by,
        ranks_leave_with_their_engine,
        ranks_are_learned_from_metrics,
        engines_that_know_no_ranks_serve_all_the_same,
        a_client_cannot_choose_a_rank,
        engines_at_ipv6_addresses_are_like_others,
    )
}

const RANKS: u32 = 4;
const HEADER: &str = "x-data-parallel-rank";

/// Two engines with four ranks each.
fn ranked() -> StackSpec {
    StackSpec::shipped().engines("llama", 2).engine(|config| {
        if config.name.starts_with("llama") {
            config.data_parallel_size = RANKS;
        }
    })
}

fn configured() -> StackSpec {
    ranked().pool_option("llama", "data_parallel_size", json!(RANKS))
}

/// What the engine that gave an answer saw of its request.
fn seen(stack: &Stack<'_>, reply: &Reply) -> anyhow::Result<(String, Seen)> {
    let engine = stack.answered_by(reply)?;
    let id = reply.request_id.as_bytes();
    let mut log = engine.engine.log().into_iter();
    let found = log.find(|seen| seen.header("x-request-id") == Some(id));
    Ok((engine.name.clone(), found.context("not in the log")?))
}

/// The rank that a request was sent to, which must be the one that ran it.
fn rank_sent(seen: &Seen) -> anyhow::Result<usize> {
    let values: Vec<&[u8]> = seen
        .headers
        .iter()
        .filter(|(name, _)| name == HEADER)
        .map(|(_, value)| value.as_slice())
        .collect();
    let [value] = values.as_slice() else {
        anyhow::bail!("not one rank: {seen:?}");
    };
    let rank: usize = std::str::from_utf8(value)?.parse()?;
    ensure!(seen.rank == Some(rank), "ran elsewhere: {seen:?}");
    Ok(rank)
}

/// The endpoints of a pool on the status page, by their names.
async fn shown(stack: &Stack<'_>, pool: &str) -> anyhow::Result<BTreeMap<String, Value>> {
    let facts = facts(stack).await?;
    let mut pools = at(&facts, "/pools").as_array().into_iter().flatten();
    let found = pools
        .find(|it| at(it, "/name") == pool)
        .context("no pool")?;
    let rows = at(found, "/endpoints").as_array().context("no endpoints")?;
    let name = |row: &Value| at(row, "/address").as_str().unwrap_or_default().to_owned();
    Ok(rows.iter().map(|row| (name(row), row.clone())).collect())
}

fn names(stack: &Stack<'_>) -> BTreeSet<String> {
    let engines = stack.pool("llama");
    engines
        .flat_map(|engine| (0..RANKS).map(move |rank| format!("{}@{rank}", engine.address)))
        .collect()
}

async fn conversations_stick_to_a_rank(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, configured().policy("llama", json!("prefix"))).await?;
    let mut homes = BTreeSet::new();
    for number in 0..24 {
        let mut conversation = Conversation::new(&text(seed(), 4000));
        let mut home = None;
        for turn in 0..4 {
            let call = conversation.ask(&format!("question {number}.{turn}"));
            // One connection: one worker, which knows at once what it routed.
            let reply = stack
                .send(call.over(Transport::Http2))
                .await?
                .expect_status(200)?;
            let (engine, seen) = seen(&stack, &reply)?;
            let here = (engine, rank_sent(&seen)?);
            ensure!(turn == 0 || seen.cached_tokens > Some(500), "{seen:?}");
            let home = home.get_or_insert(here.clone());
            ensure!(*home == here, "{number} moved from {home:?} to {here:?}");
            let address = stack.answered_by(&reply)?.address;
            let name = format!("{address}@{}", here.1);
            ensure!(
                reply.header("x-warmpath-endpoint") == Some(&name),
                "{reply:?}"
            );
            homes.insert(here);
            conversation.heard(&reply)?;
        }
    }
    ensure!(homes.len() >= 4, "only {homes:?} in use");
    Ok(())
}

async fn each_rank_shows_its_own_figures(context: &Context) -> anyhow::Result<()> {
    let spec = configured().policy("llama", json!("prefix")).polling(100);
    let stack = Stack::start(context, spec).await?;
    for number in 0..24_u64 {
        let call = Call::chat("llama-3-8b", &text(number % 12, 4000)).over(Transport::Http2);
        stack.send(call).await?.expect_status(200)?;
    }
    eventually("each rank's own figures are shown", async || {
        let shown = shown(&stack, "llama").await?;
        for engine in stack.pool("llama") {
            for (rank, stats) in engine.engine.rank_stats().iter().enumerate() {
                let row = shown.get(&format!("{}@{rank}", engine.address));
                let row = row.with_context(|| format!("rank {rank} in {shown:?}"))?;
                ensure!(at(row, "/rank") == rank, "{row}");
                let log = engine.engine.log();
                let ran = log.iter().filter(|seen| seen.rank == Some(rank)).count();
                let queried = stats.prefix_queries_tokens;
                let ratio = (queried > 0).then(|| stats.prefix_hits_tokens as f64 / queried as f64);
                let told = at(row, "/engine/hit_ratio").as_f64();
                let close = match (told, ratio) {
                    (Some(told), Some(ratio)) => (told - ratio).abs() < 1e-4,
                    (told, ratio) => told == ratio,
                };
                let capacity = u64::from(stats.kv_blocks) * 16;
                if !close
                    || at(row, "/requests") != ran
                    || at(row, "/engine/kv_capacity_tokens") != capacity
                {
                    return Ok(None);
                }
            }
        }
        Ok((shown.len() == names(&stack).len()).then_some(()))
    })
    .await?;
    let first = names(&stack).into_iter().next().unwrap_or_default();
    eventually("the engine's age is told", async || {
        let page = stack.envoy()?.admin_get("/stats/prometheus").await?;
        let label = format!("endpoint=\"{first}\"");
        let mut lines = page.lines();
        let found = lines.any(|line| {
            line.starts_with("warmpath_engine_uptime_seconds{") && line.contains(&label)
        });
        Ok(found.then_some(()))
    })
    .await
}

async fn a_retry_keeps_a_rank_that_exists(context: &Context) -> anyhow::Result<()> {
    let spec = configured()
        .policy("llama", json!("round_robin"))
        .option("scrape", json!("off"));
    let stack = Stack::start(context, spec).await?;
    let dead = stack.engine("llama-0")?;
    let address = dead.address.to_string();
    dead.engine.kill().await;
    let mut retried = 0;
    for _ in 0..24 {
        let call = Call::chat("llama-3-8b", "hello").over(Transport::Http2);
        let reply = stack.send(call).await?.expect_status(200)?;
        let ranked = reply.decision()?.ranked;
        ensure!(
            ranked.iter().collect::<BTreeSet<_>>().len() == ranked.len(),
            "an address twice: {ranked:?}"
        );
        let (engine, seen) = seen(&stack, &reply)?;
        ensure!(engine == "llama-1", "{engine} is dead");
        rank_sent(&seen)?;
        retried += u32::from(ranked.first() == Some(&address));
    }
    ensure!(retried > 0, "the dead engine was never the first choice");
    // All its ranks are left out after as many failures as an engine with one.
    ensure!(retried <= 3 * stack.workers() as u32, "{retried} times");
    Ok(())
}

async fn ranks_of_a_dead_engine_are_passed_by(context: &Context) -> anyhow::Result<()> {
    let spec = configured()
        .checked()
        .policy("llama", json!("round_robin"))
        .polling(100);
    let stack = Stack::start(context, spec).await?;
    let dead = stack.engine("llama-0")?;
    let address = dead.address.to_string();
    dead.engine.kill().await;
    eventually("Envoy's verdict is on every rank", async || {
        let shown = shown(&stack, "llama").await?;
        let mut ranks = shown.iter().filter(|(name, _)| name.starts_with(&address));
        let all = ranks.all(|(_, row)| at(row, "/state") == "unhealthy");
        Ok((all && shown.len() == names(&stack).len()).then_some(()))
    })
    .await?;
    eventually("no rank of it is named", async || {
        for _ in 0..8 {
            let reply = stack.send(Call::chat("llama-3-8b", "hello")).await?;
            let ranked = reply.expect_status(200)?.decision()?.ranked;
            if ranked.contains(&address) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await
}

async fn ranks_leave_with_their_engine(context: &Context) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("endpoints.json");
    write_endpoints(&file, "llama", &[])?;
    let read_from = file.clone();
    let spec = configured()
        .polling(100)
        .pool_option("llama", "endpoints", json!("envoy"))
        .bootstrap(move |bootstrap| bootstrap.read_endpoints_from("llama", &read_from));
    let stack = Stack::start(context, spec).await?;
    let engines: Vec<SocketAddr> = stack.pool("llama").map(|it| it.address).collect();
    for present in [
        &engines[..],
        engines.get(1..).unwrap_or_default(),
        &engines[..],
    ] {
        write_endpoints(&file, "llama", present)?;
        let want: BTreeSet<String> = names(&stack)
            .into_iter()
            .filter(|name| present.iter().any(|it| name.starts_with(&format!("{it}@"))))
            .collect();
        eventually(&format!("{want:?} are there"), async || {
            let shown = shown(&stack, "llama").await?;
            Ok(shown.keys().eq(&want).then_some(()))
        })
        .await?;
        let known = [("pool", "llama")];
        eventually("the gauge has them", async || {
            let known = counter(&stack, "warmpath_pool_known_endpoints", &known).await?;
            Ok((known == want.len() as u64).then_some(()))
        })
        .await?;
        // Another worker hears of it with its next tick.
        eventually("requests are sent to ranks", async || {
            for _ in 0..8 {
                let reply = stack.send(Call::chat("llama-3-8b", "hello")).await?;
                if !reply.is_decided() {
                    return Ok(None);
                }
                let (_, seen) = seen(&stack, &reply.expect_status(200)?)?;
                rank_sent(&seen)?;
            }
            Ok(Some(()))
        })
        .await?;
    }
    Ok(())
}

async fn ranks_are_learned_from_metrics(context: &Context) -> anyhow::Result<()> {
    let spec = ranked().policy("llama", json!("round_robin")).polling(100);
    let stack = Stack::start(context, spec).await?;
    eventually("the ranks are known", async || {
        let shown = shown(&stack, "llama").await?;
        Ok(shown.keys().eq(&names(&stack)).then_some(()))
    })
    .await?;
    // Another worker hears of it with its next tick.
    eventually("requests are sent to ranks", async || {
        for _ in 0..8 {
            let reply = stack.send(Call::chat("llama-3-8b", "hello")).await?;
            let (_, seen) = seen(&stack, &reply.expect_status(200)?)?;
            if seen.header(HEADER).is_none() {
                return Ok(None);
            }
            rank_sent(&seen)?;
        }
        Ok(Some(()))
    })
    .await?;
    let qwen = shown(&stack, "qwen").await?;
    let rank = qwen.values().map(|row| at(row, "/rank"));
    ensure!(rank.collect::<Vec<_>>() == [&Value::Null], "{qwen:?}");
    Ok(())
}

async fn engines_that_know_no_ranks_serve_all_the_same(context: &Context) -> anyhow::Result<()> {
    let spec = StackSpec::shipped()
        .engines("llama", 2)
        .engine(|config| config.heeds_ranks = false)
        .pool_option("llama", "data_parallel_size", json!(2))
        .policy("llama", json!("round_robin"))
        .polling(100);
    let stack = Stack::start(context, spec).await?;
    let mut sent = BTreeSet::new();
    for _ in 0..12 {
        let call = Call::chat("llama-3-8b", "hello").over(Transport::Http2);
        let reply = stack.send(call).await?.expect_status(200)?;
        let (engine, seen) = seen(&stack, &reply)?;
        ensure!(seen.rank == Some(0), "{seen:?}");
        sent.insert((engine, seen.header(HEADER).map(<[u8]>::to_vec)));
    }
    ensure!(sent.len() == 4, "not each rank in turn: {sent:?}");
    eventually("they are scraped", async || {
        let shown = shown(&stack, "llama").await?;
        let mut rows = shown.values();
        Ok(rows
            .all(|row| at(row, "/engine/age_ms").is_number())
            .then_some(()))
    })
    .await
}

async fn a_client_cannot_choose_a_rank(context: &Context) -> anyhow::Result<()> {
    let spec = configured().policy("llama", json!("consistent_hash"));
    let stack = Stack::start(context, spec).await?;
    let chat = |model: &str| Call::chat(model, "hello").header("x-session-id", "s-1");
    let reply = stack.send(chat("llama-3-8b")?).await?.expect_status(200)?;
    let (engine, own) = seen(&stack, &reply)?;
    let own = (engine, rank_sent(&own)?);
    for (name, value) in [
        (HEADER, "0"),
        ("X-data-parallel-rank", "1"),
        ("X-DATA-PARALLEL-RANK", "2"),
        (HEADER, "3"),
        (HEADER, "99"),
        (HEADER, "x"),
    ] {
        for transport in [Transport::Http1, Transport::Http2] {
            let call = chat("llama-3-8b")?.header(name, value)?.header(name, "1")?;
            let reply = stack.send(call.over(transport)).await?.expect_status(200)?;
            let (engine, seen) = seen(&stack, &reply)?;
            ensure!((engine, rank_sent(&seen)?) == own, "{name}: {value} steers");
        }
        let call = chat("qwen-2.5-7b")?.header(name, value)?;
        let reply = stack.send(call).await?.expect_status(200)?;
        let (_, seen) = seen(&stack, &reply)?;
        ensure!(seen.header(HEADER).is_none(), "{seen:?}");
    }
    Ok(())
}

async fn engines_at_ipv6_addresses_are_like_others(context: &Context) -> anyhow::Result<()> {
    if let Err(error) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        println!("skipped: no IPv6 loopback here: {error}");
        return Ok(());
    }
    let spec = configured()
        .checked()
        .engine(|config| config.listen = (Ipv6Addr::LOCALHOST, 0).into())
        .policy("llama", json!("round_robin"))
        .polling(100);
    let stack = Stack::start(context, spec).await?;
    let mut served = BTreeSet::new();
    for _ in 0..16 {
        let call = Call::chat("llama-3-8b", "hello").over(Transport::Http2);
        let reply = stack.send(call).await?.expect_status(200)?;
        let engine = stack.answered_by(&reply)?;
        let named = reply.decision()?.ranked;
        let address = engine.address.to_string();
        ensure!(address.starts_with("[::1]:"), "{address}");
        ensure!(named.first() == Some(&address), "{named:?} but {address}");
        let (_, seen) = seen(&stack, &reply)?;
        let name = format!("{address}@{}", rank_sent(&seen)?);
        ensure!(
            reply.header("x-warmpath-endpoint") == Some(&name),
            "{reply:?}"
        );
        served.insert(name);
    }
    ensure!(served == names(&stack), "{served:?}");
    let retried = counter(&stack, "warmpath_retried_total", &[]).await?;
    ensure!(
        retried == 0,
        "{retried} answers by another engine than the first"
    );
    eventually(
        "they are scraped and counted by their addresses",
        async || {
            let shown = shown(&stack, "llama").await?;
            let scraped = |row: &Value| at(row, "/engine/running").is_number();
            let all = shown
                .values()
                .all(|row| scraped(row) && at(row, "/requests") == 2);
            Ok((all && shown.keys().eq(&names(&stack))).then_some(()))
        },
    )
    .await
}
