//! What an operator's Prometheus reads: every metric with its labels, and the right numbers after a
//! known number of requests, whichever worker served them.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use serde_json::json;
use warmpath_core::telemetry::{Kind, table};

use super::client::{Call, Transport};
use super::conversation::text;
use super::counters::{counted, counter};
use super::harness::{Context, Stack, StackSpec, eventually};
use super::workers::Workers;
use super::{Case, named};
use crate::engine::Fault;

pub(super) fn cases() -> Vec<Case> {
    named!("telemetry":
        requests_are_told_with_their_labels,
        streams_are_timed,
        what_is_in_flight_is_told,
        a_retry_is_told,
        a_client_that_leaves_is_told,
    )
}

/// Requests that each worker gets.
const PER_WORKER: usize = 12;

fn spec() -> StackSpec {
    StackSpec::shipped()
        .engines("qwen", 2)
        .policy("llama", json!("prefix"))
}

fn stream(tokens: u32) -> Call {
    let fields = json!({"stream": true, "max_tokens": tokens});
    Call::chat_with("llama-3-8b", &text(7, 4000), fields)
}

/// Sends as many requests to each worker; returns how many in all.
async fn send(stack: &Stack<'_>, workers: &Workers, tokens: u32) -> anyhow::Result<u64> {
    for number in 0..PER_WORKER * stack.workers() {
        workers
            .send(number, stream(tokens))
            .await?
            .expect_status(200)?;
    }
    Ok((PER_WORKER * stack.workers()) as u64)
}

async fn requests_are_told_with_their_labels(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let workers = Workers::reach(&stack).await?;
    let sent = send(&stack, &workers, 4).await?;
    stack
        .send(Call::post("/v1/chat/completions", &json!({})))
        .await?
        .expect_status(400)?;
    stack.send(Call::get("/somewhere")).await?;

    let llama = [("pool", "llama")];
    let policy = [("pool", "llama"), ("policy", "prefix")];
    counted(&stack, "warmpath_requests_total", &policy, sent).await?;
    for engine in stack.pool("llama") {
        let address = engine.address.to_string();
        let labels = [("pool", "llama"), ("endpoint", address.as_str())];
        // The passed request above went wherever Envoy chose; it was no inference.
        let seen = engine.engine.seen_count();
        let decided = counter(&stack, "warmpath_decisions_total", &labels).await?;
        ensure!(
            decided <= seen,
            "{address}: {decided} decisions, {seen} requests"
        );
        counted(&stack, "warmpath_endpoint_finished_total", &labels, decided).await?;
        counted(
            &stack,
            "warmpath_endpoint_first_tokens_total",
            &labels,
            decided,
        )
        .await?;
    }
    counted(&stack, "warmpath_decisions_total", &llama, sent).await?;
    counted(&stack, "warmpath_endpoint_failed_total", &[], 0).await?;
    counted(
        &stack,
        "warmpath_answers_total",
        &[("status", "400"), ("cause", "missing_model")],
        1,
    )
    .await?;
    counted(
        &stack,
        "warmpath_fallbacks_total",
        &[("cause", "not_inference")],
        1,
    )
    .await?;

    let prompt = counter(&stack, "warmpath_prompt_tokens_total", &llama).await?;
    let cached = counter(&stack, "warmpath_predicted_cached_tokens_total", &llama).await?;
    ensure!(prompt >= 900 * sent, "{prompt} tokens of {sent} prompts");
    ensure!(
        2 * cached > prompt && cached < prompt,
        "{cached} of {prompt} tokens cached"
    );

    let workers = stack.workers() as u64;
    counted(&stack, "warmpath_workers", &[], workers).await?;
    counted(&stack, "warmpath_vm_starts_total", &[], workers + 1).await?;
    counted(&stack, "warmpath_pool_known_endpoints", &llama, 3).await?;
    counted(&stack, "warmpath_pool_usable_endpoints", &[], 5).await?;
    ensure_contract(&stack.envoy()?.admin_get("/stats/prometheus").await?)
}

/// Fails unless every metric of ours is in the table, with its type and exactly its labels.
fn ensure_contract(page: &str) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    for line in page.lines() {
        let line = line.strip_prefix("# TYPE ").unwrap_or(line);
        if !line.starts_with("warmpath_") {
            continue;
        }
        let (own, rest) = line.split_once(['{', ' ']).context("a name")?;
        let ends = ["_bucket", "_sum", "_count"];
        let stem = ends.iter().find_map(|end| own.strip_suffix(end));
        let known = |name: &str| table::ALL.iter().find(|metric| metric.name == name);
        let metric = known(own)
            .or_else(|| known(stem?).filter(|metric| metric.kind == Kind::Histogram))
            .with_context(|| format!("not in the table: {line}"))?;
        seen.insert(metric.name);
        let Some((labels, _)) = rest.split_once("} ") else {
            ensure!(rest == metric.kind.name(), "another type: {line}");
            continue;
        };
        let pairs = labels.split(',').filter_map(|pair| pair.split_once('='));
        let names: BTreeSet<_> = pairs
            .map(|(name, _)| name)
            .filter(|name| *name != "le")
            .collect();
        let want = metric.labels.iter().map(|label| label.name()).collect();
        ensure!(names == want, "other labels than {want:?}: {line}");
        ensure!(!labels.contains("=\"\""), "an empty label: {line}");
    }
    ensure!(seen.len() > 20, "only {seen:?}");
    Ok(())
}

async fn streams_are_timed(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec().engine(|config| config.time_scale = 1.0)).await?;
    let workers = Workers::reach(&stack).await?;
    let sent = send(&stack, &workers, 32).await?;
    let llama = [("pool", "llama")];
    for metric in [&table::TTFT, &table::LATENCY] {
        counted(&stack, &format!("{}_count", metric.name), &llama, sent).await?;
        let sum = format!("{}_sum", metric.name);
        ensure!(counter(&stack, &sum, &llama).await? > 0, "{sum} is 0");
    }
    // On a busy machine several events of a stream may arrive as one part, so some streams may have
    // too few of them.
    let timed = eventually("streams of 8 parts and more", async || {
        let count = format!("{}_count", table::ITL.name);
        let timed = counter(&stack, &count, &llama).await?;
        ensure!(timed <= sent, "{timed} values of {sent} streams");
        Ok((timed > 0).then_some(timed))
    })
    .await?;
    // The buckets are those of the shipped configuration, and the largest holds all.
    let bucket = format!("{}_bucket", table::TTFT.name);
    counted(&stack, &bucket, &[("pool", "llama"), ("le", "60000")], sent).await?;
    let sum = |name: &'static str| counter(&stack, name, &llama);
    let first = sum("warmpath_endpoint_first_token_milliseconds_total").await?;
    let latency = sum("warmpath_endpoint_latency_milliseconds_total").await?;
    let decode = sum("warmpath_endpoint_decode_milliseconds_total").await?;
    let parts = sum("warmpath_endpoint_decode_parts_total").await?;
    ensure!(
        first < latency && decode < latency,
        "{first} {decode} {latency}"
    );
    ensure!(parts >= 7 * timed, "{parts} parts of {timed} streams");
    Ok(())
}

async fn what_is_in_flight_is_told(context: &Context) -> anyhow::Result<()> {
    let spec = spec().engine(|config| config.time_scale = 1.0);
    let stack = Stack::start(context, spec).await?;
    let mut open = stack.open(stream(100_000)).await?;
    open.chunk().await?.context("a first chunk")?;
    let address = open
        .response
        .headers()
        .get("x-warmpath-endpoint")
        .context("who answers")?
        .to_str()?
        .to_owned();
    let labels = [("pool", "llama"), ("endpoint", address.as_str())];
    told(&stack, "warmpath_endpoint_in_flight_requests", &labels, 1).await?;
    told(&stack, "warmpath_endpoint_waiting_requests", &labels, 0).await?;
    told(&stack, "warmpath_endpoint_queued_tokens", &labels, 0).await?;
    told(&stack, "warmpath_endpoint_in_flight_requests", &[], 1).await?;
    let tokens = counter(&stack, "warmpath_endpoint_context_tokens", &labels).await?;
    ensure!(tokens > 900, "{tokens} context tokens of a prompt of 1000");
    drop(open);
    told(&stack, "warmpath_endpoint_in_flight_requests", &labels, 0).await
}

/// Waits until a gauge, which unlike a counter may have been higher, has this value.
async fn told(
    stack: &Stack<'_>,
    name: &str,
    labels: &[(&str, &str)],
    want: u64,
) -> anyhow::Result<()> {
    eventually(&format!("{name} {labels:?} is {want}"), async || {
        Ok((counter(stack, name, labels).await? == want).then_some(()))
    })
    .await
}

async fn a_retry_is_told(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    let call = || Call::chat("llama-3-8b", "hello").header("x-session-id", "alice");
    let reply = stack.send(call()?).await?.expect_status(200)?;
    let (home, name) = {
        let home = stack.answered_by(&reply)?;
        (home.address.to_string(), home.name.clone())
    };
    stack.engine(&name)?.engine.set_fault(Fault::Status {
        code: 503,
        retry_after_s: None,
    });
    let reply = stack.send(call()?).await?.expect_status(200)?;
    let next = stack.answered_by(&reply)?.address.to_string();
    ensure!(next != home, "no retry");
    let at = |address| [("pool", "llama"), ("endpoint", address)];
    counted(&stack, "warmpath_retried_total", &[("pool", "llama")], 1).await?;
    counted(&stack, "warmpath_decisions_total", &at(&home), 2).await?;
    counted(&stack, "warmpath_endpoint_finished_total", &at(&home), 1).await?;
    counted(&stack, "warmpath_endpoint_finished_total", &at(&next), 1).await
}

async fn a_client_that_leaves_is_told(context: &Context) -> anyhow::Result<()> {
    let spec = spec().engine(|config| config.time_scale = 1.0);
    let stack = Stack::start(context, spec).await?;
    for (left, transport) in [Transport::Http1NewConnection, Transport::Http2]
        .into_iter()
        .enumerate()
    {
        let mut open = stack.open(stream(100_000).over(transport)).await?;
        open.chunk().await?.context("a first chunk")?;
        drop(open);
        let left = left as u64 + 1;
        counted(
            &stack,
            "warmpath_client_disconnects_total",
            &[("pool", "llama")],
            left,
        )
        .await?;
    }
    stack.send(stream(4)).await?.expect_status(200)?;
    counted(&stack, "warmpath_endpoint_finished_total", &[], 3).await?;
    counted(&stack, "warmpath_client_disconnects_total", &[], 2).await
}
