//! The main way: a request is answered by an engine of the pool that has its model, as it comes, and
//! nobody but the filter chooses.

use anyhow::{Context as _, ensure};

use serde_json::json;

use super::client::{Call, Transport};
use super::harness::{Context, Stack, StackSpec};
use super::{Case, named};

pub(super) fn cases() -> Vec<Case> {
    named!("routing":
        a_model_is_answered_by_its_pool,
        a_stream_arrives_chunk_by_chunk,
        clients_cannot_steer,
        engines_see_none_of_our_headers,
    )
}

async fn a_model_is_answered_by_its_pool(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    for transport in [Transport::Http1, Transport::Http2] {
        for (model, pool) in [("llama-3-8b", "llama"), ("qwen-2.5-7b", "qwen")] {
            let reply = stack
                .send(Call::chat(model, "hello").over(transport))
                .await?;
            let reply = reply.expect_status(200)?;
            let engine = stack.answered_by(&reply)?;
            ensure!(
                engine.pool == pool,
                "{model} was answered by {}",
                engine.name
            );
            let told = reply.header("x-warmpath-endpoint");
            ensure!(told == Some(&engine.address.to_string()), "told {told:?}");
            let document = reply.json()?;
            ensure!(
                document.get("model").context("no model")? == model,
                "{document}"
            );
        }
    }
    Ok(())
}

async fn a_stream_arrives_chunk_by_chunk(context: &Context) -> anyhow::Result<()> {
    let spec = StackSpec::shipped().engine(|config| config.time_scale = 1.0);
    let stack = Stack::start(context, spec).await?;
    let mut open = stack
        .open(Call::chat_with(
            "llama-3-8b",
            "hello",
            json!({"stream": true, "max_tokens": 20}),
        ))
        .await?;
    ensure!(open.response.status() == 200, "{:?}", open.response);
    let (mut pieces, mut text) = (0, String::new());
    while let Some(piece) = open.chunk().await? {
        pieces += 1;
        text.push_str(&String::from_utf8_lossy(&piece));
    }
    ensure!(text.trim_end().ends_with("data: [DONE]"), "{text}");
    // An answer that was held back somewhere arrives in one or two pieces.
    ensure!(pieces >= 10, "{pieces} pieces: {text}");
    Ok(())
}

async fn clients_cannot_steer(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    let qwen = stack.engine("qwen-0")?.address.to_string();
    let last = stack.engine("llama-2")?.address.to_string();
    // Sent to one session, whose engine does not depend on what the client asks for.
    let asked = |endpoint: &str, cluster: &str| {
        Call::chat("llama-3-8b", "hello")
            .header("x-session-id", "s-1")?
            .header("x-gateway-destination-endpoint", endpoint)?
            .header("x-warmpath-cluster", cluster)
    };
    let mut names = Vec::new();
    for endpoint in [&qwen, &last, "127.0.0.1:1"] {
        for cluster in ["qwen", "prometheus_stats", "nowhere"] {
            let reply = stack
                .send(asked(endpoint, cluster)?)
                .await?
                .expect_status(200)?;
            names.push(stack.answered_by(&reply)?.name.clone());
        }
    }
    let plain = Call::chat("llama-3-8b", "hello").header("x-session-id", "s-1")?;
    let plain = stack.send(plain).await?.expect_status(200)?;
    let own = &stack.answered_by(&plain)?.name;
    ensure!(
        names.iter().all(|name| name == own),
        "{names:?} instead of {own}"
    );
    Ok(())
}

async fn engines_see_none_of_our_headers(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    let call = Call::chat("llama-3-8b", "hello").header("x-custom", b"\xff!")?;
    let reply = stack.send(call).await?.expect_status(200)?;
    let seen = stack.answered_by(&reply)?.engine.log();
    let seen = seen.last().context("nothing seen")?;
    ensure!(
        seen.header("x-custom") == Some(b"\xff!"),
        "{:?}",
        seen.headers
    );
    for (name, value) in &seen.headers {
        let ours = name.starts_with("x-warmpath") || name.starts_with("x-gateway");
        ensure!(!ours, "{name}: {}", String::from_utf8_lossy(value));
    }
    Ok(())
}
