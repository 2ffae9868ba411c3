//! The filter in a file of its own, as shipped in `envoy/ecds`: replaced while Envoy runs, for better and
//! for worse.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use parking_lot::Mutex;
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::client::{Call, Client, Transport};
use super::harness::{Context, Stack, StackSpec, eventually, pool_mut};
use super::{Case, named};
use crate::envoy::bootstrap::Bootstrap;

/// Pool and model of the shipped configuration.
const POOL: &str = "llama";
const MODEL: &str = "llama-3-8b";
/// Envoy's figures of the filter that it reads from a file.
const DISCOVERY: &str = "extension_config_discovery.http_filter.warmpath";
/// New connections that must be served before every worker is believed to have a configuration.
const CONNECTIONS: usize = 12;
/// Changes under load, clients, and the least number of requests between two changes.
const CHANGES: u64 = 50;
const CLIENTS: usize = 4;
const BETWEEN: u64 = 4;
/// Pause of a client before a request, so that changes get a share of a small machine.
const THINKING: Duration = Duration::from_millis(10);

pub(super) fn cases() -> Vec<Case> {
    named!("ecds":
        a_change_is_live_and_a_refused_one_leaves_the_last,
        fifty_changes_under_load_lose_no_request,
    )
}

/// Gives the filter of a stack that reads it from a file a configuration in which the model has this alias,
/// and no other.
pub(crate) fn set_alias(
    stack: &mut Stack<'_>,
    pool: &str,
    alias: &str,
    model: &str,
) -> anyhow::Result<()> {
    stack.change_filter(|bootstrap| {
        let mut plugin = bootstrap.plugin()?;
        let pool = pool_mut(&mut plugin, pool).context("no pool")?;
        pool.insert("aliases".to_owned(), json!({alias: model}));
        bootstrap.set_plugin_text(&plugin.to_string());
        Ok(())
    })
}

/// Whether a model name is known where a new connection ends up.
pub(crate) async fn serves(stack: &Stack<'_>, name: &str) -> anyhow::Result<bool> {
    let call = Call::chat(name, "hello").over(Transport::Http1NewConnection);
    Ok(stack.send(call).await?.status == 200)
}

/// A stack over the shipped files, the filter's in a folder of its own.
async fn start(context: &Context) -> anyhow::Result<(Stack<'_>, TempDir)> {
    let folder = tempfile::tempdir()?;
    let spec = StackSpec::discovered(folder.path().join("warmpath.json"));
    // So that streams are under way while the filter is replaced.
    let spec = spec.engine(|config| config.time_scale = 0.05);
    Ok((Stack::start(context, spec).await?, folder))
}

/// Waits until every worker knows a model name, as far as connections tell.
async fn live(stack: &Stack<'_>, name: &str) -> anyhow::Result<()> {
    eventually(&format!("{name} is served"), async || {
        for _ in 0..CONNECTIONS {
            if !serves(stack, name).await? {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await
}

/// Gives Envoy a filter that it must refuse, and waits until it has counted that. The next change starts
/// from the last good one.
async fn refused(stack: &Stack<'_>, edit: impl Fn(&mut Bootstrap)) -> anyhow::Result<()> {
    let rejected = format!("{DISCOVERY}.update_rejected");
    let before = stack.envoy()?.stat(&rejected).await?;
    let mut bad = stack.bootstrap().clone();
    edit(&mut bad);
    bad.write_filter()?;
    eventually("the change is refused", async || {
        let now = stack.envoy()?.stat(&rejected).await?;
        Ok((now > before).then_some(()))
    })
    .await
}

async fn a_change_is_live_and_a_refused_one_leaves_the_last(
    context: &Context,
) -> anyhow::Result<()> {
    let (mut stack, _folder) = start(context).await?;
    live(&stack, "gpt-4o-mini").await?;
    set_alias(&mut stack, POOL, "live", MODEL)?;
    live(&stack, "live").await?;
    eventually("the old alias is gone", async || {
        Ok((!serves(&stack, "gpt-4o-mini").await?).then_some(()))
    })
    .await?;

    refused(&stack, |bootstrap| {
        bootstrap.set_plugin_text(r#"{"pools": [], "nonsense": 1}"#);
    })
    .await?;
    let log = stack.envoy()?.log()?;
    ensure!(log.contains("config.nonsense"), "the log does not say why");
    live(&stack, "live").await?;
    refused(&stack, |bootstrap| {
        bootstrap.set_module("/nowhere/warmpath.wasm".as_ref());
    })
    .await?;
    live(&stack, "live").await?;

    set_alias(&mut stack, POOL, "mended", MODEL)?;
    live(&stack, "mended").await
}

/// What clients did.
#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    failed: Mutex<Vec<String>>,
    stop: AtomicBool,
}

async fn ask_on(client: Client, tally: Arc<Tally>) {
    while !tally.stop.load(Ordering::Relaxed) {
        tokio::time::sleep(THINKING).await;
        let call = Call::chat_with(MODEL, "hello", json!({"stream": true, "max_tokens": 8}));
        match client.send(call).await {
            Ok(reply) if reply.status == 200 && reply.text().ends_with("data: [DONE]\n\n") => {
                tally.answered.fetch_add(1, Ordering::Relaxed);
            }
            Ok(reply) => tally.failed.lock().push(format!("{reply:?}")),
            Err(error) => tally.failed.lock().push(format!("{error:#}")),
        }
    }
}

async fn fifty_changes_under_load_lose_no_request(context: &Context) -> anyhow::Result<()> {
    let (mut stack, _folder) = start(context).await?;
    let changes = format!("{DISCOVERY}.update_success");
    let before = stack.envoy()?.stat(&changes).await?;
    let tally: Arc<Tally> = Arc::default();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let client = Client::new(stack.client().target())?;
        clients.spawn(ask_on(client, Arc::clone(&tally)));
    }
    for number in 0..CHANGES {
        let alias = format!("change-{number}");
        set_alias(&mut stack, POOL, &alias, MODEL)?;
        let asked = tally.answered.load(Ordering::Relaxed) + BETWEEN;
        eventually("the change serves, and requests are answered", async || {
            let answered = tally.answered.load(Ordering::Relaxed) >= asked;
            let done = answered || !tally.failed.lock().is_empty();
            Ok((done && serves(&stack, &alias).await?).then_some(()))
        })
        .await?;
    }
    tally.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended?;
    }
    let failed = std::mem::take(&mut *tally.failed.lock());
    let answered = tally.answered.load(Ordering::Relaxed);
    ensure!(failed.is_empty(), "{} failed: {failed:?}", failed.len());
    ensure!(answered >= CHANGES * BETWEEN, "only {answered} requests");
    let applied = stack.envoy()?.stat(&changes).await? - before;
    ensure!(applied >= CHANGES, "only {applied} changes");
    Ok(())
}
