//! Whatever happens to the store, requests notice nothing, and what was shared before is shared again after.

use anyhow::ensure;

use super::super::Case;
use super::super::client::Call;
use super::super::harness::{Context, eventually};
use super::{Pair, prompt, stored};
use crate::store::Binaries;

pub(super) fn cases(binaries: &Binaries) -> Vec<Case> {
    stored!(binaries, "faults":
        requests_outlive_a_killed_redis,
        requests_outlive_a_halted_redis,
        requests_outlive_a_flushed_redis,
        requests_outlive_a_full_redis,
        requests_outlive_killed_fronts,
        one_front_of_two_is_enough,
        requests_outlive_a_killed_envoy,
    )
}

/// Requests through each Envoy while something is broken.
const REQUESTS: usize = 40;

/// Sends requests through both Envoys, all of which must be answered.
async fn both_serve(pair: &Pair<'_>) -> anyhow::Result<()> {
    for _ in 0..REQUESTS {
        pair.stack.send(prompt()).await?.expect_status(200)?;
        pair.other.send(prompt()).await?.expect_status(200)?;
    }
    Ok(())
}

async fn requests_outlive_a_killed_redis(
    context: &Context,
    binaries: &Binaries,
) -> anyhow::Result<()> {
    let mut pair = Pair::start(context, binaries).await?;
    pair.store.redis.kill()?;
    both_serve(&pair).await?;
    pair.store.redis.start().await?;
    both_serve(&pair).await?;
    pair.acquainted().await
}

async fn requests_outlive_a_halted_redis(
    context: &Context,
    binaries: &Binaries,
) -> anyhow::Result<()> {
    let pair = Pair::start(context, binaries).await?;
    pair.store.redis.stall()?;
    both_serve(&pair).await?;
    pair.store.redis.resume()?;
    both_serve(&pair).await?;
    pair.acquainted().await
}

async fn requests_outlive_a_flushed_redis(
    context: &Context,
    binaries: &Binaries,
) -> anyhow::Result<()> {
    let pair = Pair::start(context, binaries).await?;
    pair.store.flush().await?;
    both_serve(&pair).await?;
    pair.acquainted().await
}

/// A full store still answers what is read.
async fn requests_outlive_a_full_redis(
    context: &Context,
    binaries: &Binaries,
) -> anyhow::Result<()> {
    let pair = Pair::start(context, binaries).await?;
    let limit = async |bytes: &[u8]| {
        let words: [&[u8]; 4] = [b"CONFIG", b"SET", b"maxmemory", bytes];
        pair.store.command(&words).await
    };
    limit(b"1").await?;
    both_serve(&pair).await?;
    limit(b"0").await?;
    pair.acquainted().await
}

async fn requests_outlive_killed_fronts(
    context: &Context,
    binaries: &Binaries,
) -> anyhow::Result<()> {
    let mut pair = Pair::start(context, binaries).await?;
    for front in &mut pair.store.fronts {
        front.kill()?;
    }
    both_serve(&pair).await?;
    for front in &mut pair.store.fronts {
        front.start().await?;
    }
    pair.acquainted().await
}

async fn one_front_of_two_is_enough(context: &Context, binaries: &Binaries) -> anyhow::Result<()> {
    let mut pair = Pair::start(context, binaries).await?;
    if let Some(front) = pair.store.fronts.first_mut() {
        front.kill()?;
    }
    both_serve(&pair).await?;
    pair.acquainted().await
}

async fn requests_outlive_a_killed_envoy(
    context: &Context,
    binaries: &Binaries,
) -> anyhow::Result<()> {
    let mut pair = Pair::start(context, binaries).await?;
    pair.other.kill()?;
    ensure!(pair.other.envoy().is_err());
    for _ in 0..REQUESTS {
        pair.stack.send(prompt()).await?.expect_status(200)?;
    }
    pair.other.start().await?;
    eventually("the restarted Envoy serves", async || {
        Ok(pair.other.send(Call::get("/v1/models")).await.ok())
    })
    .await?;
    pair.acquainted().await
}
