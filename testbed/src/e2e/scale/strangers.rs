//! What else may stand in the stream: batches of a fleet with another key, of another version, and rubbish.
//! It is left out and counted, and what an Envoy sends is bounded.

use anyhow::{Context as _, ensure};

use super::super::Case;
use super::super::counters::counter_of;
use super::super::harness::{Context, Stack, eventually};
use super::super::replica::Replica;
use super::{Pair, is_warm, prompt, spec, stored};
use crate::envoy::Envoy;
use crate::store::{self, Binaries, Store};

pub(super) fn cases(binaries: &Binaries) -> Vec<Case> {
    stored!(binaries, "strangers":
        a_fleet_with_another_key_is_not_heard,
        rubbish_in_the_stream_is_left_out,
    )
}

/// Those that halt something.
pub(super) fn breaking_cases(binaries: &Binaries) -> Vec<Case> {
    stored!(binaries, "strangers": a_batch_is_bounded)
}

/// Batches by what became of them.
const BATCHES: &str = "warmpath_peers_batches_total";
/// News that found no room.
const DROPPED: &str = "warmpath_peers_dropped_total";
/// Prompts that are told.
const TOLD: usize = 30;
/// Bytes of news in a batch, of the test with a bound, and what may be around them.
const BATCH_BYTES: u64 = 1024;
const AROUND_BYTES: u64 = 1024;
/// Prompts that do not fit into so small a batch and what waits for the next.
const TOO_MANY: usize = 200;

/// Waits until an Envoy has left out at least so many batches, of whichever cause.
async fn leaves_out(envoy: &Envoy, least: u64) -> anyhow::Result<()> {
    eventually("strange batches are counted", async || {
        let mut all = 0;
        for cause in ["refused", "other_version"] {
            all += counter_of(envoy, BATCHES, &[("cause", cause)]).await?;
        }
        Ok((all >= least).then_some(()))
    })
    .await
}

async fn a_fleet_with_another_key_is_not_heard(
    context: &Context,
    binaries: &Binaries,
) -> anyhow::Result<()> {
    let store = Store::start(binaries, 1).await?;
    let stack = Stack::start(context, spec(&store)).await?;
    let stranger = Replica::other(&stack, |bootstrap| {
        let text = bootstrap.plugin()?.to_string();
        ensure!(text.contains(store::KEY), "no key");
        bootstrap.set_plugin_text(&text.replace(store::KEY, "a key that others do not have"));
        Ok(())
    })
    .await?;
    let mut calls = Vec::new();
    for _ in 0..TOLD {
        let call = prompt();
        stack.send(call.clone()).await?.expect_status(200)?;
        calls.push(call);
    }
    leaves_out(stranger.envoy()?, 1).await?;
    leaves_out(stack.envoy()?, 1).await?;
    for call in calls {
        let reply = stranger.send(call).await?.expect_status(200)?;
        ensure!(!is_warm(&reply)?, "{:?}", reply.decision()?);
    }
    Ok(())
}

async fn rubbish_in_the_stream_is_left_out(
    context: &Context,
    binaries: &Binaries,
) -> anyhow::Result<()> {
    let pair = Pair::start(context, binaries).await?;
    let every: Vec<u8> = (0..=255).collect();
    let rubbish: [&[u8]; 5] = [b"", b"\0", b"\r\n*9\r\n", &[255; 64], &every.repeat(64)];
    for value in rubbish {
        pair.store.append(store::NEWS, "b", value).await?;
    }
    let strange = rubbish.len() as u64;
    leaves_out(pair.stack.envoy()?, strange).await?;
    leaves_out(pair.other.envoy()?, strange).await?;
    pair.acquainted().await
}

async fn a_batch_is_bounded(context: &Context, binaries: &Binaries) -> anyhow::Result<()> {
    let store = Store::start(binaries, 1).await?;
    let small = spec(&store).bootstrap(|bootstrap| {
        let mut plugin = bootstrap.plugin()?;
        let redis = plugin.pointer_mut("/sync/redis").context("no sync")?;
        let redis = redis.as_object_mut().context("not an object")?;
        redis.insert("batch_bytes".to_owned(), BATCH_BYTES.into());
        bootstrap.set_plugin_text(&plugin.to_string());
        Ok(())
    });
    let stack = Stack::start(context, small).await?;
    // While nobody takes them, news wait; those that find no room are dropped and counted.
    store.redis.stall()?;
    for _ in 0..TOO_MANY {
        stack.send(prompt()).await?.expect_status(200)?;
    }
    eventually("what finds no room is counted", async || {
        let dropped = counter_of(stack.envoy()?, DROPPED, &[]).await?;
        Ok((dropped > 0).then_some(()))
    })
    .await?;
    store.redis.resume()?;
    let told = eventually("the rest is told", async || {
        let largest = store.largest(store::NEWS).await?;
        Ok((largest > 0).then_some(largest))
    });
    let largest = told.await?;
    ensure!(largest <= BATCH_BYTES + AROUND_BYTES, "{largest} bytes");
    Ok(())
}
