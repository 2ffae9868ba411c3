//! The status page on a real Envoy: what it says after known traffic, whichever worker served it, that
//! an explained request is the next decision and changes nothing, and that nobody else can see it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::client::{Call, Client, Transport};
use super::conversation::text;
use super::harness::{Context, Stack, StackSpec, eventually};
use super::workers::Workers;
use super::{Case, named};
use crate::browser::sample;

pub(super) fn cases() -> Vec<Case> {
    named!("status":
        the_page_is_served_as_it_is,
        the_facts_are_right_after_traffic,
        an_explained_request_is_the_next_decision,
        explaining_changes_nothing,
        what_cannot_be_decided_is_answered_as_such,
        nothing_else_is_there,
        the_data_listener_serves_no_page,
        without_the_option_nothing_is_served,
    )
}

/// Requests that each worker gets.
const PER_WORKER: usize = 6;
/// What no document may repeat.
const SESSION: &str = "very-secret-session";

fn spec() -> StackSpec {
    StackSpec::shipped()
        .engines("qwen", 2)
        .policy("llama", json!("prefix"))
}

fn page_address(stack: &Stack<'_>) -> anyhow::Result<SocketAddr> {
    stack.status().context("no listener of the status page")
}

/// What the status page is told.
pub(super) async fn facts(stack: &Stack<'_>) -> anyhow::Result<Value> {
    let call = Call::get("/warmpath/status");
    let client = Client::new(page_address(stack)?)?;
    let reply = client.send(call).await?.expect_status(200)?;
    ensure!(reply.header("content-type") == Some("application/json"));
    ensure!(reply.header("cache-control") == Some("no-store"));
    let text = reply.text();
    ensure!(!text.contains(SESSION), "a session key in {text}");
    reply.json()
}

/// What a JSON pointer leads to; null if nothing is there.
pub(super) fn at<'a>(document: &'a Value, pointer: &str) -> &'a Value {
    document.pointer(pointer).unwrap_or(&Value::Null)
}

/// Fails unless each field is one that the page is tested with in a browser.
fn ensure_known(document: &Value, sample: &Value) -> anyhow::Result<()> {
    match (document, sample) {
        (Value::Object(document), Value::Object(sample)) => {
            for (name, value) in document {
                // What an operator may call anything.
                if !["fallbacks", "aliases", "terms"].contains(&name.as_str()) {
                    let known = sample.get(name);
                    ensure_known(value, known.with_context(|| format!("field {name}"))?)?;
                }
            }
        }
        (Value::Array(document), Value::Array(sample)) => {
            for item in document {
                ensure_known(item, sample.first().unwrap_or(&Value::Null))?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn explain(call: &Call) -> Call {
    let mut question = call.clone();
    question.path = "/warmpath/explain".to_owned();
    question
}

async fn the_page_is_served_as_it_is(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let client = Client::new(page_address(&stack)?)?;
    for transport in [Transport::Http1, Transport::Http2] {
        let call = Call::get("/warmpath/").over(transport);
        let reply = client.send(call).await?.expect_status(200)?;
        ensure!(reply.text() == include_str!("../../../filter/src/status.html"));
        let policy = include_str!("../../../filter/src/status.csp").trim_end();
        ensure!(reply.header("content-security-policy") == Some(policy));
        ensure!(reply.header("content-type") == Some("text/html; charset=utf-8"));
    }
    // The client follows where it is sent.
    let reply = client.send(Call::get("/warmpath")).await?;
    ensure!(reply.expect_status(200)?.text() == include_str!("../../../filter/src/status.html"));
    Ok(())
}

async fn the_facts_are_right_after_traffic(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let workers = Workers::reach(&stack).await?;
    let sent = PER_WORKER * stack.workers();
    for number in 0..sent {
        let call = Call::chat("llama-3-8b", &text(number as u64, 4000));
        let call = call.header("x-session-id", SESSION)?;
        workers.send(number, call).await?.expect_status(200)?;
    }
    // A worker may tell of its last request while that is under way.
    let facts = eventually(
        "all workers have told of their requests' ends",
        async || {
            let facts = facts(&stack).await?;
            let told = at(&facts, "/counters/requests") == sent;
            let recent = at(&facts, "/recent").as_array();
            let ended = recent.map_or(0, |recent| {
                let ended = |entry: &&Value| at(entry, "/status").is_number();
                recent.iter().filter(ended).count()
            });
            let rows = at(&facts, "/pools/0/endpoints").as_array();
            let idle = rows.is_some_and(|rows| rows.iter().all(|row| at(row, "/in_flight") == 0));
            Ok((told && ended == sent && idle).then_some(facts))
        },
    )
    .await?;
    ensure_known(&facts, &sample::status(1))?;
    ensure!(at(&facts, "/worker/workers") == stack.workers(), "{facts}");
    let llama = at(&facts, "/pools/0");
    ensure!(
        at(llama, "/name") == "llama" && at(llama, "/policy") == "prefix",
        "{facts}"
    );
    let told = at(llama, "/endpoints").as_array().context("endpoints")?;
    ensure!(told.len() == 3);
    for engine in stack.pool("llama") {
        let address = engine.address.to_string();
        let row = told
            .iter()
            .find(|row| at(row, "/address") == address.as_str());
        let row = row.with_context(|| format!("{address} in {facts}"))?;
        ensure!(at(row, "/requests") == engine.engine.seen_count(), "{row}");
        ensure!(
            at(row, "/in_flight") == 0 && at(row, "/failures") == 0,
            "{row}"
        );
        ensure!(at(row, "/state") == "healthy", "{row}");
    }
    for entry in at(&facts, "/recent").as_array().into_iter().flatten() {
        ensure!(
            at(entry, "/status") == 200 && at(entry, "/policy") == "prefix",
            "{entry}"
        );
        ensure!(at(entry, "/prompt_tokens").as_u64() > Some(900), "{entry}");
        ensure!(at(entry, "/reason").is_string(), "{entry}");
    }
    eventually("the engines were asked", async || {
        let facts = self::facts(&stack).await?;
        let told = at(&facts, "/pools/0/endpoints").as_array().cloned();
        let mut told = told.into_iter().flatten();
        let all = told.all(|row| at(&row, "/engine/kv_usage").is_number());
        ensure_known(&facts, &sample::status(1))?;
        Ok(all.then_some(()))
    })
    .await
}

async fn an_explained_request_is_the_next_decision(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let client = Client::new(page_address(&stack)?)?;
    let mut reasons = BTreeSet::new();
    for number in 0..12_u64 {
        let call = Call::chat("llama-3-8b", &text(number % 4, 6000));
        // On another worker what was routed last may not be known yet.
        let told = eventually("the prompt is known everywhere", async || {
            let reply = client.send(explain(&call)).await?.expect_status(200)?;
            let told = reply.json()?;
            let known = at(&told, "/candidates/0/held_tokens").is_number()
                && (number < 4 || at(&told, "/reason") != "cold_prefix");
            Ok(known.then_some(told))
        })
        .await?;
        ensure!(
            at(&told, "/pool") == "llama" && at(&told, "/prompt_tokens").as_u64() > Some(1000),
            "{told}"
        );
        ensure_known(&told, &sample::explain())?;
        let candidates = at(&told, "/candidates").as_array().context("candidates")?;
        ensure!(candidates.len() == 3, "{told}");
        for one in candidates {
            for term in ["queue", "work", "requests", "context"] {
                ensure!(
                    at(one, "/terms").get(term).is_some_and(Value::is_number),
                    "{term} in {one}"
                );
            }
        }
        let reply = stack.send(call).await?.expect_status(200)?;
        let decision = reply.decision()?;
        ensure!(
            at(&told, "/reason") == decision.reason.as_str(),
            "{told} but {}",
            decision.reason
        );
        let answered = stack.answered_by(&reply)?.address.to_string();
        ensure!(
            at(&told, "/ranked/0") == answered.as_str(),
            "{told} but {answered}"
        );
        reasons.insert(decision.reason.to_owned());
    }
    ensure!(reasons.contains("longest_prefix"), "only {reasons:?}");
    Ok(())
}

async fn explaining_changes_nothing(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let client = Client::new(page_address(&stack)?)?;
    let call = Call::chat("llama-3-8b", &text(1, 6000)).header("x-session-id", SESSION)?;
    for _ in 0..20 {
        let reply = client.send(explain(&call)).await?.expect_status(200)?;
        let told = reply.json()?;
        ensure!(at(&told, "/reason") == "cold_prefix", "{told}");
        ensure!(!reply.text().contains(SESSION), "{told}");
    }
    ensure!(
        stack.requests_seen().iter().sum::<u64>() == 0,
        "an engine was asked"
    );
    let facts = facts(&stack).await?;
    ensure!(at(&facts, "/counters/requests") == 0, "{facts}");
    ensure!(*at(&facts, "/recent") == json!([]), "{facts}");
    let entries = at(&facts, "/counters/table/entries").as_u64();
    ensure!(entries == Some(0), "the index learned: {facts}");
    let reply = stack.send(call).await?.expect_status(200)?;
    ensure!(reply.decision()?.reason == "cold_prefix");
    Ok(())
}

async fn what_cannot_be_decided_is_answered_as_such(context: &Context) -> anyhow::Result<()> {
    let spec = spec().option("limits", json!({"hold_bytes": 65536}));
    let stack = Stack::start(context, spec).await?;
    let client = Client::new(page_address(&stack)?)?;
    let ask = async |call: Call| -> anyhow::Result<(u16, Value)> {
        let reply = client.send(explain(&call)).await?;
        Ok((reply.status, at(&reply.json()?, "/error/code").clone()))
    };
    let post = |body: &'static str| Call::post("/", &json!({})).body(body);
    ensure!(ask(post("{}")).await? == (400, json!("missing_model")));
    ensure!(ask(post("{\"model\"")).await? == (400, json!("invalid_json")));
    ensure!(ask(post("")).await? == (400, json!("invalid_json")));
    ensure!(ask(Call::chat("unheard-of", "hello")).await? == (404, json!("model_not_found")));
    let long = Call::chat("llama-3-8b", &"a".repeat(70_000));
    ensure!(ask(long.clone()).await? == (413, json!("body_too_long")));
    let trailed = Call::chat("llama-3-8b", "hello").trailer("x-end", "yes");
    ensure!(ask(trailed).await?.0 == 200);
    stack.send(long).await?.expect_status(200)?;
    Ok(())
}

async fn nothing_else_is_there(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let client = Client::new(page_address(&stack)?)?;
    for path in [
        "/",
        "/warmpath/x",
        "/warmpath/status/",
        "/v1/models",
        "/stats",
    ] {
        let reply = client.send(Call::get(path)).await?;
        ensure!(reply.status == 404, "{path}: {}", reply.status);
    }
    let chat = Call::chat("llama-3-8b", "hello");
    ensure!(client.send(chat).await?.status == 404, "a chat was routed");
    let posted = Call::post("/warmpath/status", &json!({}));
    let reply = client.send(posted).await?;
    ensure!((reply.status, reply.header("allow")) == (405, Some("GET")));
    let reply = client.send(Call::get("/warmpath/explain")).await?;
    ensure!((reply.status, reply.header("allow")) == (405, Some("POST")));
    ensure!(
        stack.requests_seen().iter().sum::<u64>() == 0,
        "an engine was asked"
    );
    Ok(())
}

async fn the_data_listener_serves_no_page(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    for call in [
        Call::get("/warmpath/"),
        Call::get("/warmpath/status"),
        Call::post("/warmpath/explain", &json!({"model": "llama-3-8b"})),
    ] {
        let path = call.path.clone();
        let reply = stack.send(call).await?;
        stack
            .answered_by(&reply)
            .with_context(|| format!("{path} went to no engine"))?;
    }
    Ok(())
}

async fn without_the_option_nothing_is_served(context: &Context) -> anyhow::Result<()> {
    let spec = spec().plugin(|config| {
        if let Some(config) = config.as_object_mut() {
            config.remove("status");
        }
    });
    let stack = Stack::start(context, spec).await?;
    let client = Client::new(page_address(&stack)?)?;
    for path in ["/warmpath/", "/warmpath/status", "/warmpath"] {
        let reply = client.send(Call::get(path)).await?;
        ensure!(
            reply.status == 404 && reply.body.is_empty(),
            "{path}: {reply:?}"
        );
    }
    Ok(())
}
