//! What the filter does not read passes as it is: other paths, compressed bodies, ids.

use anyhow::{Context as _, ensure};

use super::arrival::arrival;
use super::client::{Call, Transport};
use super::counters::counted;
use super::harness::{Context, Stack, StackSpec, eventually};
use super::{Case, named};

pub(super) fn cases() -> Vec<Case> {
    named!("passing":
        other_paths_reach_an_engine,
        a_compressed_body_passes_unread,
        a_request_keeps_its_id,
        a_query_and_a_prefix_of_the_path_stay,
    )
}

async fn other_paths_reach_an_engine(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    for transport in [Transport::Http1, Transport::Http2] {
        let call = Call::get("/version").over(transport);
        let reply = stack.send(call).await?.expect_status(200)?;
        ensure!(stack.answered_by(&reply)?.pool == "llama", "{reply:?}");
        ensure!(reply.json()?.get("version").is_some(), "{}", reply.text());
    }
    // A client may ask another pool's engine.
    let call = Call::get("/version").header("x-warmpath-pool", "qwen")?;
    let reply = stack.send(call).await?.expect_status(200)?;
    ensure!(stack.answered_by(&reply)?.pool == "qwen", "{reply:?}");
    let missing = stack.send(Call::get("/no/such/path")).await?;
    let missing = missing.expect_status(404)?;
    ensure!(stack.answered_by(&missing)?.pool == "llama", "{missing:?}");
    let labels = [("cause", "not_inference")];
    counted(&stack, "warmpath_fallbacks_total", &labels, 4).await?;
    Ok(())
}

async fn a_compressed_body_passes_unread(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    let plain = Call::chat("qwen-2.5-7b", &"tell me more ".repeat(1000));
    let packed = zstd::encode_all(&plain.body[..], 0)?;
    // The filter looks at the name of the encoding only.
    for (encoding, pool) in [("zstd", "qwen"), ("gzip", "qwen"), ("gzip", "")] {
        let call = plain.clone().body(packed.clone());
        let call = call.header("content-encoding", encoding)?;
        let call = call.header("x-warmpath-pool", pool)?;
        // The engine does not unpack it either: its own answer, not the filter's.
        let reply = stack.send(call).await?.expect_status(400)?;
        let (engine, seen) = arrival(&stack, &reply)?;
        let want = if pool.is_empty() { "llama" } else { pool };
        ensure!(engine.pool == want, "{} instead of {want}", engine.name);
        let intact = seen.body_xxh3 == xxhash_rust::xxh3::xxh3_64(&packed);
        ensure!(intact && seen.header("content-encoding") == Some(encoding.as_bytes()));
    }
    let labels = [("cause", "encoded_body")];
    counted(&stack, "warmpath_fallbacks_total", &labels, 3).await?;
    Ok(())
}

async fn a_request_keeps_its_id(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped().log_level("wasm:debug")).await?;
    let own = Call::chat("llama-3-8b", "hello").header("x-request-id", "id-of-the-client")?;
    let reply = stack.send(own).await?.expect_status(200)?;
    ensure!(
        reply.header("x-request-id") == Some("id-of-the-client"),
        "{reply:?}"
    );
    let (_, seen) = arrival(&stack, &reply)?;
    ensure!(
        seen.header("x-request-id") == Some(b"id-of-the-client"),
        "{seen:?}"
    );

    let other = Call::chat("llama-3-8b", "hello").header("x-correlation-id", "id-of-a-trace")?;
    let reply = stack.send(other).await?.expect_status(200)?;
    let (_, seen) = arrival(&stack, &reply)?;
    ensure!(
        seen.header("x-correlation-id") == Some(b"id-of-a-trace"),
        "{seen:?}"
    );

    eventually("the log names the request", async || {
        let log = stack.envoy()?.log()?;
        Ok(log.contains("id-of-the-client").then_some(()))
    })
    .await
}

async fn a_query_and_a_prefix_of_the_path_stay(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    let mut call = Call::chat("qwen-2.5-7b", "hello");
    call.path = "/v1/chat/completions?api-version=1&x=%2F".to_owned();
    let reply = stack.send(call.clone()).await?.expect_status(200)?;
    let (engine, seen) = arrival(&stack, &reply)?;
    ensure!(engine.pool == "qwen" && seen.path == call.path, "{seen:?}");
    // Not a path of the engine, but one that the filter knows behind a gateway's own prefix.
    call.path = "/team-a/v1/chat/completions".to_owned();
    let reply = stack.send(call).await?.expect_status(404)?;
    let engine = stack.answered_by(&reply).context("the filter answered")?;
    ensure!(engine.pool == "qwen", "{}", engine.name);
    Ok(())
}
