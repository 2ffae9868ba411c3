//! A prompt computed by one real engine and answered by another: the KV really moves, over NIXL.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::page::count;
use super::steps::fresh;
use super::{Args, Stack, eventually, model_of};
use crate::e2e::client::Call;
use crate::envoy::bootstrap::{Addresses, Bootstrap};
use crate::subject::existing;

const DECODE: &str = "llama";
const PREFILL: &str = "llama-prefill";
/// Tokens of each answer.
const ANSWER_TOKENS: u32 = 16;
/// Prompts that are handed over, of each kind.
const PROMPTS: usize = 3;

/// The shipped configuration, for these two engines.
pub(super) async fn bootstrap(
    args: &Args,
    prefill: SocketAddr,
    decode: SocketAddr,
) -> anyhow::Result<Bootstrap> {
    let mut bootstrap = Bootstrap::load(&existing(&args.disaggregation)?)?;
    bootstrap.set_addresses(Addresses::free()?)?;
    bootstrap.set_endpoints(PREFILL, &[prefill])?;
    bootstrap.set_endpoints(DECODE, &[decode])?;
    bootstrap.set_module(&existing(&args.subject.module)?);
    let http = reqwest::Client::builder().no_proxy().build()?;
    let model = model_of(&http, decode).await?;
    let endpoints = |address: SocketAddr| json!({"static": [{"address": address.to_string()}]});
    let decoding = json!({
        "name": DECODE,
        "cluster": DECODE,
        "models": [model],
        "endpoints": endpoints(decode),
        "policy": "prefix",
        "disaggregation": {
            "prefill_pool": PREFILL, "connector": "nixl", "min_uncached_tokens": 128,
        },
    });
    let computing = json!({
        "name": PREFILL,
        "cluster": PREFILL,
        "endpoints": endpoints(prefill),
        "policy": "prefix",
    });
    let plugin = json!({
        "pools": [decoding, computing],
        "limits": {"prefix_table_bytes": 1 << 20},
        // The first transfer between two engines may take half a minute on a machine without a GPU.
        "health": {"stall_ms": 300_000},
        "debug_headers": true,
    });
    bootstrap.set_plugin_text(&plugin.to_string());
    Ok(bootstrap)
}

pub(super) async fn run(
    stack: &Stack,
    prefill: SocketAddr,
    decode: SocketAddr,
) -> anyhow::Result<()> {
    let text = format!(
        "{} {}",
        fresh("The first prompt")?,
        "The sea at night. ".repeat(60)
    );
    let first = document(stack, "/v1/completions", &text, false);
    let began = Instant::now();
    let reply = stack
        .client
        .send(Call::post("/v1/completions", &first))
        .await?;
    reply.expect_status(200)?;
    println!(
        "the engines have met, in {} ms",
        began.elapsed().as_millis()
    );
    for (path, stream) in [
        ("/v1/completions", false),
        ("/v1/chat/completions", false),
        ("/v1/completions", true),
        ("/v1/chat/completions", true),
    ] {
        hand_over(stack, prefill, decode, path, stream).await?;
    }
    claims(stack, decode).await
}

/// Prompt tokens that an engine got from another, by both of its counts, and those that it computed.
struct Sources {
    external: u64,
    transferred: u64,
    computed: u64,
}

impl Sources {
    async fn of(stack: &Stack, engine: SocketAddr) -> anyhow::Result<Self> {
        let page = stack.engine_metrics(engine).await?;
        let by_source = |source: &str| {
            let label = format!("source=\"{source}\"");
            count(&page, "vllm:prompt_tokens_by_source_total", &[&label])
        };
        Ok(Self {
            external: count(&page, "vllm:external_prefix_cache_hits_total", &[])?,
            transferred: by_source("external_kv_transfer")?,
            computed: by_source("local_compute")?,
        })
    }
}

fn document(stack: &Stack, path: &str, text: &str, stream: bool) -> Value {
    let (field, prompt) = match path {
        "/v1/completions" => ("prompt", json!(text)),
        _ => ("messages", json!([{"role": "user", "content": text}])),
    };
    json!({
        "model": stack.model,
        field: prompt,
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "ignore_eos": true,
        "stream": stream,
    })
}

/// The text of a whole answer.
fn text_of(answer: &Value) -> anyhow::Result<String> {
    let text = ["/choices/0/text", "/choices/0/message/content"];
    let text = text
        .iter()
        .find_map(|place| answer.pointer(place)?.as_str());
    Ok(text
        .with_context(|| format!("no text: {answer}"))?
        .to_owned())
}

/// The text of a stream, put together.
fn streamed(body: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    for line in body.lines() {
        let Some(data) = line.strip_prefix("data: ").filter(|data| *data != "[DONE]") else {
            continue;
        };
        let chunk: Value = serde_json::from_str(data)?;
        let piece = ["/choices/0/text", "/choices/0/delta/content"];
        let piece = piece
            .iter()
            .find_map(|place| chunk.pointer(place)?.as_str());
        text.push_str(piece.unwrap_or_default());
    }
    Ok(text)
}

/// Answers are those that the prefill engine gives by itself, and the decode engine has computed next to
/// nothing of the prompts.
async fn hand_over(
    stack: &Stack,
    prefill: SocketAddr,
    decode: SocketAddr,
    path: &str,
    stream: bool,
) -> anyhow::Result<()> {
    let before = Sources::of(stack, decode).await?;
    let (mut tokens, mut slowest_ms) = (0, 0);
    for number in 0..PROMPTS {
        let text = fresh(&format!("Prompt {number} for {path}"))?;
        let text = format!(
            "{text} {}",
            "Say what the sea is like at night. ".repeat(30)
        );
        let plain = document(stack, path, &text, false);
        let asked = document(stack, path, &text, stream);
        let began = Instant::now();
        let reply = stack.client.send(Call::post(path, &asked)).await?;
        slowest_ms = slowest_ms.max(began.elapsed().as_millis());
        let reply = reply.expect_status(200)?;
        let told = reply.header("x-warmpath-endpoint");
        ensure!(told == Some(&decode.to_string()), "{told:?} answered");
        let text = match stream {
            true => streamed(&reply.text())?,
            false => text_of(&reply.json()?)?,
        };
        let alone = stack.ask(prefill, path, &plain).await?;
        let want = text_of(&alone)?;
        ensure!(text == want, "{path}: {text:?} instead of {want:?}");
        let own = alone
            .pointer("/usage/prompt_tokens")
            .and_then(Value::as_u64);
        tokens += own.context("no usage")?;
    }
    let after = eventually("the decode engine counts what it got", async || {
        let now = Sources::of(stack, decode).await?;
        Ok((now.external - before.external >= tokens).then_some(now))
    });
    let after = match after.await {
        Ok(after) => after,
        Err(error) => bail!("{error:#}; warmpath says:\n{}", told(stack).await?),
    };
    let (external, transferred) = (
        after.external - before.external,
        after.transferred - before.transferred,
    );
    ensure!(
        external == tokens && transferred == tokens,
        "{external} and {transferred} tokens of {tokens}"
    );
    let how = if stream { "streamed" } else { "whole" };
    println!(
        "{path}, {how}: {PROMPTS} prompts, {external} of {tokens} tokens over NIXL, {} computed at {decode}, \
         the same text as from {prefill} alone, {slowest_ms} ms at most",
        after.computed - before.computed,
    );
    Ok(())
}

/// The filter's metrics of disaggregation.
async fn told(stack: &Stack) -> anyhow::Result<String> {
    let page = stack.metrics().await?;
    let ours = [
        "warmpath_disaggregated",
        "warmpath_undisaggregated",
        "warmpath_prefill",
    ];
    let of_ours = |line: &&str| ours.iter().any(|name| line.starts_with(name));
    let lines: Vec<_> = page.lines().filter(of_ours).collect();
    Ok(lines.join("\n"))
}

/// What kills a decode engine does not reach it.
async fn claims(stack: &Stack, decode: SocketAddr) -> anyhow::Result<()> {
    let long = format!("{} {}", fresh("A claim")?, "The sea at night. ".repeat(60));
    for text in [&long, "hi"] {
        let whole = document(stack, "/v1/completions", text, false).to_string();
        let rest = whole.strip_prefix('{').context("no object")?;
        for name in ["kv_transfer_params", r"kv_tr\u0061nsfer_params"] {
            let body = format!(r#"{{"{name}":{{"do_remote_prefill":true}},{rest}"#);
            let call = Call::post("/v1/completions", &json!({})).body(body);
            stack.client.send(call).await?.expect_status(200)?;
        }
    }
    let healthy = stack.http.get(format!("http://{decode}/health")).send();
    ensure!(healthy.await?.status() == 200, "{decode} is ill");
    println!("a client's kv_transfer_params: answered as if there were none, {decode} is well");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_put_together() {
        let body = "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\n\
                    data: {\"choices\":[]}\n\ndata: [DONE]\n\n";
        assert_eq!(streamed(body).unwrap(), "ab");
    }
}
