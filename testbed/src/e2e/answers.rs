//! What the filter answers by itself, and what it does when Envoy is not set up for it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::client::{Call, Reply};
use super::counters::counted;
use super::harness::{Context, Stack, StackSpec, eventually};
use super::{Case, named};

pub(super) fn cases() -> Vec<Case> {
    named!("answers":
        models_of_all_pools_are_listed,
        errors_have_the_format_of_openai,
        a_further_pool_takes_its_models,
        without_stop_iteration_requests_do_not_hang,
    )
}

async fn models_of_all_pools_are_listed(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    let list = stack
        .send(Call::get("/v1/models"))
        .await?
        .expect_status(200)?
        .json()?;
    let list = list
        .get("data")
        .and_then(Value::as_array)
        .context("no data")?
        .clone();
    for model in ["llama-3-8b", "gpt-4o-mini", "qwen-2.5-7b"] {
        let named = list
            .iter()
            .any(|entry| entry.get("id").is_some_and(|id| id == model));
        ensure!(named, "{model} is missing: {list:?}");
    }
    Ok(())
}

async fn errors_have_the_format_of_openai(context: &Context) -> anyhow::Result<()> {
    let spec = StackSpec::shipped().pool("empty", &["nobody-runs-this"], 0);
    let stack = Stack::start(context, spec).await?;
    let chat = "/v1/chat/completions";
    let cases = [
        (Call::chat("no-such-model", "hello"), 404),
        (Call::chat("nobody-runs-this", "hello"), 503),
        (
            Call::post(chat, &Value::Null).body(r#"{"model": "llama-3-8b", "messages"#),
            400,
        ),
        (Call::post(chat, &serde_json::json!({"messages": []})), 400),
    ];
    for (call, status) in cases {
        let sent = call.body.clone();
        let reply = stack.send(call).await?.expect_status(status)?;
        ensure!(is_openai_error(&reply)?, "{sent:?}: {}", reply.text());
        let retry_after: Option<u32> = reply.header("retry-after").and_then(|it| it.parse().ok());
        let expected = if status == 503 {
            retry_after > Some(0)
        } else {
            retry_after.is_none()
        };
        ensure!(expected, "{status} with retry-after {retry_after:?}");
    }
    ensure!(
        stack.requests_seen().iter().sum::<u64>() == 0,
        "an engine was asked"
    );
    stack
        .send(Call::chat("llama-3-8b", "hello"))
        .await?
        .expect_status(200)?;
    Ok(())
}

fn is_openai_error(reply: &Reply) -> anyhow::Result<bool> {
    let document = reply.json()?;
    let text = |field| document.pointer(field).is_some_and(Value::is_string);
    let json = reply
        .header("content-type")
        .is_some_and(|it| it.starts_with("application/json"));
    Ok(json && text("/error/message") && text("/error/type"))
}

async fn a_further_pool_takes_its_models(context: &Context) -> anyhow::Result<()> {
    let spec = StackSpec::shipped().pool("code", &["coder", "coder-large"], 2);
    let stack = Stack::start(context, spec).await?;
    for model in ["coder", "coder-large"] {
        let reply = stack
            .send(Call::chat(model, "hello"))
            .await?
            .expect_status(200)?;
        ensure!(stack.answered_by(&reply)?.pool == "code", "{reply:?}");
    }
    Ok(())
}

async fn without_stop_iteration_requests_do_not_hang(context: &Context) -> anyhow::Result<()> {
    const FIELD: &str = "allow_on_headers_stop_iteration";
    let spec = StackSpec::shipped().bootstrap(|bootstrap| {
        let config = bootstrap.plugin_config_mut()?.as_object_mut();
        let removed = config.and_then(|config| config.remove(FIELD));
        removed
            .map(drop)
            .context("the field is not in the shipped configuration")
    });
    let stack = Stack::start(context, spec).await?;
    let start = Instant::now();
    stack
        .send(Call::chat("llama-3-8b", "hello"))
        .await?
        .expect_status(200)?;
    // The promise is two seconds; the rest is for a busy machine. Without it, nothing ever comes.
    ensure!(
        start.elapsed() < Duration::from_secs(10),
        "answered after {:?}",
        start.elapsed()
    );
    eventually(
        "the log names the missing field, and what to do without",
        async || {
            let log = stack.envoy()?.log()?;
            let mut lines = log.lines().filter(|line| line.contains(FIELD));
            Ok(lines.any(|it| it.contains("`steer_by`")).then_some(()))
        },
    )
    .await?;
    let cause = [("cause", "stop_iteration_missing")];
    counted(&stack, "warmpath_fallbacks_total", &cause, 1).await
}
