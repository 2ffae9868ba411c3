//! What waits for a body, and for how much of it.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::super::arrival::whole;
use super::super::client::{Call, Client, Transport};
use super::super::counters::{counted, counter};
use super::super::harness::{Context, Stack, StackSpec, eventually};
use super::super::raw::{Framing, Pieces};
use super::super::{Case, named};
use super::{BUFFER, MODEL, ensure_first, spec};

pub(super) fn cases() -> Vec<Case> {
    named!("filter_state":
        a_long_body_is_decided_early_and_passes_whole,
        a_body_over_the_buffer_is_refused,
        what_headers_decide_waits_for_no_body,
        an_explanation_waits_for_its_body,
    )
}

/// Limits what the `buffer` filter takes.
fn buffer(spec: StackSpec, bytes: u32) -> StackSpec {
    spec.bootstrap(move |bootstrap| {
        let filters = bootstrap.connection_manager_mut()?.get_mut("http_filters");
        let mut filters = filters.and_then(Value::as_array_mut).into_iter().flatten();
        let found = filters.find(|it| it.get("name").is_some_and(|name| name == BUFFER));
        let limit = found.and_then(|it| it.pointer_mut("/typed_config/max_request_bytes"));
        *limit.context("no buffer filter")? = bytes.into();
        Ok(())
    })
}

async fn a_long_body_is_decided_early_and_passes_whole(context: &Context) -> anyhow::Result<()> {
    let limits = json!({"hold_bytes": 65_536});
    let stack = Stack::start(context, spec().with_room().option("limits", limits)).await?;
    let filler = "tell me more ".repeat(230_000);
    let body = |first: &str, last: &str| {
        let text = format!(r#"{{{first}"max_tokens":1,"prompt":"{filler}"{last}}}"#);
        Call::post("/v1/completions", &Value::Null).body(text)
    };
    let early = body(
        r#""session_params":{"session_id":"alice"},"model":"gpt-4o-mini","#,
        "",
    );
    let want = body(
        r#""session_params":{"session_id":"alice"},"model":"llama-3-8b","#,
        "",
    );
    let late = body("", r#","model":"llama-3-8b""#);
    let mut sent = 0;
    for framing in [Framing::Length, Framing::Chunked] {
        let pieces = Pieces::of(30_000, early.body.len(), framing);
        let reply = stack.send_in_pieces(early.clone(), &pieces).await?;
        ensure_first(&stack, &reply)?;
        whole(&stack, reply, &want.body)?;
        let reply = stack.send_in_pieces(late.clone(), &pieces).await?;
        // The model is not seen, so it goes to the default pool.
        ensure_first(&stack, &reply)?;
        whole(&stack, reply, &late.body)?;
        sent += 1;
    }
    let cause = [("cause", "model_beyond_limit")];
    counted(&stack, "warmpath_fallbacks_total", &cause, sent).await
}

async fn a_body_over_the_buffer_is_refused(context: &Context) -> anyhow::Result<()> {
    const LIMIT: u32 = 100_000;
    let stack = Stack::start(context, buffer(spec().with_room(), LIMIT)).await?;
    let chat = |bytes: u32| Call::chat(MODEL, &"x".repeat(bytes as usize));
    for transport in [Transport::Http1, Transport::Http2] {
        let reply = stack.send(chat(LIMIT - 1000).over(transport)).await?;
        reply.expect_status(200)?;
        let reply = stack.send(chat(2 * LIMIT).over(transport)).await?;
        reply.expect_status(413)?;
    }
    // Nobody counts what was refused as in flight.
    eventually("nothing is in flight", async || {
        let in_flight = counter(&stack, "warmpath_endpoint_requests_in_flight", &[]).await?;
        Ok((in_flight == 0).then_some(()))
    })
    .await
}

async fn what_headers_decide_waits_for_no_body(context: &Context) -> anyhow::Result<()> {
    const LIMIT: u32 = 10_000;
    // One pool that takes every model: a session in a header is all that is needed.
    let spec = buffer(spec().with_room(), LIMIT).plugin(|config| {
        let pools = config.get_mut("pools").and_then(Value::as_array_mut);
        if let Some(pools) = pools {
            pools.truncate(1);
            let pool = pools.first_mut().and_then(Value::as_object_mut);
            pool.map(|pool| (pool.remove("models"), pool.remove("aliases")));
        }
    });
    let stack = Stack::start(context, spec).await?;
    let chat = Call::chat(MODEL, &"x".repeat(10 * LIMIT as usize));
    stack.send(chat.clone()).await?.expect_status(413)?;
    let call = chat.header("x-session-id", "alice")?;
    for transport in [Transport::Http1, Transport::Http2] {
        let reply = stack.send(call.clone().over(transport)).await?;
        ensure_first(&stack, &reply)?;
        whole(&stack, reply, &call.body)?;
    }
    // What the filter does not read goes to the pool's own balancing, also with a body.
    let other = Call::post(
        "/v1/audio/speech",
        &json!({"input": "x".repeat(10 * LIMIT as usize)}),
    );
    let reply = stack.send(other).await?;
    ensure!(reply.header("x-engine").is_some(), "{reply:?}");
    Ok(())
}

async fn an_explanation_waits_for_its_body(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let page = Client::new(stack.status().context("no status page")?)?;
    let chat = Call::chat(MODEL, "hello");
    let call = Call::post("/warmpath/explain", &Value::Null).body(chat.body);
    let reply = page.send(call).await?.expect_status(200)?;
    ensure!(reply.json()?.get("ranked").is_some(), "{}", reply.text());
    Ok(())
}
