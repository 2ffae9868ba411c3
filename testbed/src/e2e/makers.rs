//! Who asks the engines: of all VMs of an Envoy exactly one, whatever becomes of it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::client::{Call, Transport};
use super::counters::counter;
use super::harness::{Context, Stack, StackSpec, eventually};
use super::workers::Workers;
use super::{Case, named};
use crate::envoy::bootstrap::Bootstrap;

pub(super) fn cases() -> Vec<Case> {
    named!("makers":
        one_scrape_per_engine_and_interval,
        scraping_outlives_who_makes_it,
        a_new_configuration_leaves_one_maker,
    )
}

const INTERVAL_MS: u64 = 250;
const INTERVAL: Duration = Duration::from_millis(INTERVAL_MS);
const INTERVALS: usize = 20;

/// Waits for the scrapes of this many further intervals, and fails if there were more than one in
/// each. A machine that stalls makes scrapes late, never early.
async fn ensure_one_maker(stack: &Stack<'_>, intervals: usize) -> anyhow::Result<()> {
    let before: Vec<_> = stack
        .engines
        .iter()
        .map(|it| it.engine.scrapes().len())
        .collect();
    for (engine, before) in stack.engines.iter().zip(before) {
        let name = &engine.name;
        let scrapes = eventually("every interval has its scrape", async || {
            let scrapes = engine.engine.scrapes();
            Ok((scrapes.len() > before + intervals)
                .then(|| scrapes.into_iter().skip(before).collect::<Vec<_>>()))
        })
        .await
        .with_context(|| name.clone())?;
        let first = scrapes.first().context("no scrapes")?;
        let last = scrapes.get(intervals).context("no scrapes")?;
        // As many gaps as intervals; the first scrape may be late by almost one, and the way to the
        // engine differs.
        let least = INTERVAL * (intervals as u32 - 2);
        let took = last.duration_since(*first);
        ensure!(took >= least, "{name}: {intervals} scrapes in {took:?}");
    }
    Ok(())
}

async fn one_scrape_per_engine_and_interval(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped().polling(INTERVAL_MS)).await?;
    // Every worker has its VM and has served.
    Workers::reach(&stack).await?;
    ensure_one_maker(&stack, INTERVALS).await
}

/// Longer, so that two of them are more than any machine's hiccup.
const LONG_INTERVAL_MS: u64 = 1000;

async fn scraping_outlives_who_makes_it(context: &Context) -> anyhow::Result<()> {
    let spec = StackSpec::shipped().with_trap().polling(LONG_INTERVAL_MS);
    let stack = Stack::start(context, spec).await?;
    let engine = &stack.engine("llama-0")?.engine;
    let scraped = async |more: usize| -> anyhow::Result<()> {
        let before = engine.scrapes().len();
        eventually("there are scrapes", async || {
            Ok((engine.scrapes().len() >= before + more).then_some(()))
        })
        .await
    };
    let changes = async || counter(&stack, "warmpath_lease_changes_total", &[]).await;
    // Whoever is on the main thread stays dead, so in the end only workers are left.
    for death in 1..=3_u64 {
        scraped(2).await?;
        let before = changes().await?;
        let call = Call::get("/v1/models").header("x-warmpath-trap", "1")?;
        stack.send(call.over(Transport::Http1NewConnection)).await?;
        eventually("someone else scrapes", async || {
            // Requests give a worker that died a new VM.
            let call = Call::chat("llama-3-8b", "hello").over(Transport::Http1NewConnection);
            let _may_be_cut = stack.send(call).await;
            Ok((changes().await? > before).then_some(()))
        })
        .await
        .with_context(|| format!("death {death}"))?;
        scraped(2).await?;
    }
    let scrapes = engine.scrapes();
    let gaps = scrapes
        .iter()
        .zip(scrapes.iter().skip(1))
        .map(|(before, after)| after.duration_since(*before));
    let longest = gaps.max().unwrap_or_default();
    // Two intervals, and one for a machine that is busy.
    let most = Duration::from_millis(3 * LONG_INTERVAL_MS);
    ensure!(longest <= most, "no scrape for {longest:?}");
    Ok(())
}

async fn a_new_configuration_leaves_one_maker(context: &Context) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("listeners.json");
    let spec = StackSpec::shipped()
        .polling(INTERVAL_MS)
        .bootstrap(move |bootstrap| bootstrap.read_listeners_from(&file));
    let mut stack = Stack::start(context, spec).await?;
    ensure_one_maker(&stack, 4).await?;
    // The old configuration ticks on until its listener is drained, which takes ten minutes.
    for generation in 1..=3 {
        let name = format!("model-{generation}");
        stack.change_listeners(|bootstrap| add_alias(bootstrap, &name))?;
        eventually("the new configuration serves", async || {
            let call = Call::chat(&name, "hello").over(Transport::Http1NewConnection);
            Ok((stack.send(call).await?.status == 200).then_some(()))
        })
        .await?;
    }
    ensure_one_maker(&stack, INTERVALS).await
}

fn add_alias(bootstrap: &mut Bootstrap, alias: &str) -> anyhow::Result<()> {
    let mut plugin = bootstrap.plugin()?;
    let pool = super::harness::pool_mut(&mut plugin, "llama").context("no pool")?;
    pool.insert("aliases".to_owned(), json!({alias: "llama-3-8b"}));
    bootstrap.set_plugin_text(&plugin.to_string());
    Ok(())
}
