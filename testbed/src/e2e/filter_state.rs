//! Steering without the stop-iteration field, as `envoy/filter-state.yaml` ships it: the filter decides on
//! the body, its headers already gone, and other filters set what it decided.
//!
//! The file is the only thing that is different, so any theme can be run over it: `--config
//! envoy/filter-state.yaml`. Here is what only this way of steering can get wrong.

mod chain;
mod waiting;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::arrival::{arrival, whole};
use super::client::{Call, Reply, Transport};
use super::conversation::{Conversation, text};
use super::counters::counted;
use super::harness::{Context, Stack, StackSpec, eventually};
use super::prefix::ensure_warm;
use super::raw::{Framing, Pieces};
use super::workers::{Workers, seed, streamed};
use super::{Case, named};
use crate::engine::Fault;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = own();
    cases.extend(waiting::cases());
    cases.extend(chain::cases());
    cases
}

fn own() -> Vec<Case> {
    named!("filter_state":
        a_conversation_stays_with_its_cache,
        a_body_decides_in_whatever_pieces_it_comes,
        an_alias_is_replaced_with_its_length,
        what_no_engine_can_serve_is_answered,
        no_client_steers,
        the_next_of_the_ranking_is_tried,
        a_stream_passes_piece_by_piece,
    )
}

const FILE: &str = "filter-state.yaml";
const MODEL: &str = "llama-3-8b";
const BUFFER: &str = "envoy.filters.http.buffer";
/// How long a request is waited for that may hang.
const PATIENCE: Duration = Duration::from_secs(1);

fn spec() -> StackSpec {
    StackSpec::shipped().with_file(FILE)
}

/// A chat whose model and session stand at the end of the body.
fn late(model: &str, session: &str) -> Call {
    let text = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4});
    let text = text.to_string();
    let end = format!(r#","user":{session:?},"model":{model:?}}}"#);
    let text = text.trim_end_matches('}').to_owned() + &end;
    Call::post("/v1/chat/completions", &Value::Null).body(text)
}

async fn a_conversation_stays_with_its_cache(context: &Context) -> anyhow::Result<()> {
    let spec = spec().engines("qwen", 2).policy("llama", json!("prefix"));
    let stack = Stack::start(context, spec).await?;
    let workers = Workers::introduced(&stack).await?;
    for number in 0..6 {
        let mut conversation = Conversation::new(&text(seed(), 3000));
        let mut home = String::new();
        for turn in 0..3 {
            let call = conversation.ask(&text(seed(), 2000));
            let reply = workers
                .send(turn + number, call)
                .await?
                .expect_status(200)?;
            match turn {
                0 => home.clone_from(&stack.answered_by(&reply)?.name),
                _ => ensure_warm(&stack, &reply, &home).with_context(|| format!("turn {turn}"))?,
            }
            conversation.heard(&reply)?;
            workers.catch_up().await?;
        }
    }
    Ok(())
}

/// Fails unless the engine that answered is the first of the ranking.
fn ensure_first<'s>(stack: &'s Stack<'_>, reply: &Reply) -> anyhow::Result<&'s str> {
    let engine = stack.answered_by(reply)?;
    let told = reply.decision()?;
    ensure!(
        told.ranked.first() == Some(&engine.address.to_string()),
        "{} answered: {told:?}",
        engine.address
    );
    Ok(&engine.name)
}

async fn a_body_decides_in_whatever_pieces_it_comes(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    for (model, pool) in [(MODEL, "llama"), ("qwen-2.5-7b", "qwen")] {
        for session in ["alice", "bob", "carol", "dave"] {
            let call = late(model, session);
            let size = call.body.len();
            let first = stack.send(call.clone()).await?.expect_status(200)?;
            let home = ensure_first(&stack, &first)?;
            ensure!(stack.engine(home)?.pool == pool, "{model} at {home}");
            let mut replies = vec![
                stack.send(call.clone().over(Transport::Http2)).await?,
                stack
                    .send(call.clone().trailer("x-checksum", "abc"))
                    .await?,
            ];
            for framing in [Framing::Length, Framing::Chunked] {
                for pieces in [
                    Pieces::of(1, size, framing),
                    Pieces::split_at(size - 1, framing),
                ] {
                    replies.push(stack.send_in_pieces(call.clone(), &pieces).await?);
                }
            }
            for reply in replies {
                let name = whole(&stack, reply, &call.body)?;
                ensure!(name == home, "{session}: {name} instead of {home}");
            }
        }
    }
    Ok(())
}

async fn an_alias_is_replaced_with_its_length(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let call = late("gpt-4o-mini", "alice");
    let want = late(MODEL, "alice").body;
    let cut = |framing| Pieces::of(call.body.len() / 3, call.body.len(), framing);
    let replies = [
        stack.send(call.clone()).await?,
        stack.send(call.clone().over(Transport::Http2)).await?,
        stack
            .send(call.clone().trailer("x-checksum", "abc"))
            .await?,
        stack
            .send_in_pieces(call.clone(), &cut(Framing::Length))
            .await?,
        stack
            .send_in_pieces(call.clone(), &cut(Framing::Chunked))
            .await?,
    ];
    for (number, reply) in replies.into_iter().enumerate() {
        let (_, seen) = arrival(&stack, &reply)?;
        let length = seen.header("content-length");
        ensure!(
            length == Some(want.len().to_string().as_bytes()),
            "way {number}: {seen:?}"
        );
        ensure_first(&stack, &reply)?;
        whole(&stack, reply, &want).with_context(|| format!("way {number}"))?;
    }
    Ok(())
}

async fn what_no_engine_can_serve_is_answered(context: &Context) -> anyhow::Result<()> {
    let spec =
        spec()
            .engines("qwen", 0)
            .pool_option("llama", "admission", json!({"max_requests": 1}));
    let stack = Stack::start(context, spec.engines("llama", 1)).await?;
    let ask = async |call: Call, status, code: &str| {
        let reply = stack.send(call).await?.expect_status(status)?;
        let document = reply.json()?;
        let found = document.pointer("/error/code").and_then(Value::as_str);
        ensure!(found == Some(code), "{document}");
        anyhow::Ok(())
    };
    for transport in [Transport::Http1, Transport::Http2] {
        let post = |body: &str| {
            let call = Call::post("/v1/chat/completions", &Value::Null);
            call.body(body.to_owned()).over(transport)
        };
        ask(late("unknown", "a").over(transport), 404, "model_not_found").await?;
        ask(
            post(r#"{"model": "llama-3-8b", "x" 1}"#),
            400,
            "invalid_json",
        )
        .await?;
        ask(post(r#"{"messages": []}"#), 400, "missing_model").await?;
        let reply = stack.send(late("qwen-2.5-7b", "a").over(transport)).await?;
        reply.expect_status(503)?;
    }
    // One request has the only engine, the next finds no room.
    stack.set_fault("llama", Fault::HangBeforeHeaders);
    let client = stack.client().clone();
    let held = tokio::spawn(async move { client.send(late(MODEL, "a")).await });
    eventually("the engine has a request", async || {
        Ok((stack.requests_seen().iter().sum::<u64>() > 0).then_some(()))
    })
    .await?;
    eventually("there is no more room", async || {
        let call = late(MODEL, "b");
        let reply = timeout(PATIENCE, stack.send(call)).await;
        Ok(reply
            .is_ok_and(|it| it.is_ok_and(|it| it.status == 429))
            .then_some(()))
    })
    .await?;
    held.abort();
    Ok(())
}

async fn no_client_steers(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let call = late(MODEL, "alice");
    let reply = stack.send(call.clone()).await?.expect_status(200)?;
    let home = ensure_first(&stack, &reply)?;
    let others = stack.engines.iter().filter(|it| it.name != home);
    for other in others {
        let address = other.address.to_string();
        for transport in [Transport::Http1, Transport::Http2] {
            let mut lured = call.clone().over(transport);
            for (name, value) in [
                ("x-gateway-destination-endpoint", address.as_str()),
                ("x-warmpath-cluster", "qwen"),
                ("x-data-parallel-rank", "3"),
                ("wasm.warmpath.x-warmpath-cluster", "qwen"),
                ("warmpath.x-gateway-destination-endpoint", &address),
            ] {
                lured = lured.header(name, value)?.header(name, value)?;
            }
            let reply = stack.send(lured).await?.expect_status(200)?;
            let name = ensure_first(&stack, &reply)?;
            ensure!(name == home, "{transport:?}: {name} instead of {home}");
            let (_, seen) = arrival(&stack, &reply)?;
            for gone in [
                "x-gateway-destination-endpoint",
                "x-warmpath-cluster",
                "x-data-parallel-rank",
            ] {
                ensure!(seen.header(gone).is_none(), "{gone} in {seen:?}");
            }
        }
    }
    Ok(())
}

async fn the_next_of_the_ranking_is_tried(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec().with_room()).await?;
    // Long enough not to fit into Envoy's default buffer.
    let mut call = late(MODEL, "alice");
    let filler = format!(r#"{{"x":"{}","#, "tell me more ".repeat(230_000));
    let body = String::from_utf8(call.body.to_vec())?.replacen('{', &filler, 1);
    call = call.body(body);
    let reply = stack.send(call.clone()).await?.expect_status(200)?;
    let home = ensure_first(&stack, &reply)?.to_owned();
    stack.engine(&home)?.engine.set_fault(Fault::Status {
        code: 503,
        retry_after_s: Some(5),
    });
    let reply = stack.send(call.clone()).await?.expect_status(200)?;
    let second = stack.answered_by(&reply)?.address.to_string();
    let ranked = reply.decision()?.ranked;
    ensure!(ranked.get(1) == Some(&second), "{second} of {ranked:?}");
    whole(&stack, reply, &call.body).map(drop)
}

async fn a_stream_passes_piece_by_piece(context: &Context) -> anyhow::Result<()> {
    let spec = spec().engine(|config| config.time_scale = 1.0);
    let stack = Stack::start(context, spec).await?;
    let call = Call::chat_with(MODEL, "hello", json!({"max_tokens": 16, "user": "alice"}));
    let mut reply = stack.open(streamed(call)?).await?;
    let mut pieces = 0;
    while reply.chunk().await?.is_some() {
        pieces += 1;
    }
    ensure!(pieces > 4, "an answer of 16 tokens in {pieces} pieces");
    let pool = [("pool", "llama")];
    counted(&stack, "warmpath_requests_total", &pool, 1).await?;
    let waits = "warmpath_time_to_first_token_milliseconds_count";
    counted(&stack, waits, &pool, 1).await
}
