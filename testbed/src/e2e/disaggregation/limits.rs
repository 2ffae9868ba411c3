//! When a prompt is not handed over although it could be: it is short, the decode engine has it, its
//! path has no connector, or too many wait already.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::super::client::Call;
use super::super::counters::counted;
use super::super::harness::{Context, Stack, eventually};
use super::super::workers::Workers;
use super::super::{Case, named};
use super::{MODEL, Moment, ask, is_whole, prompt, spec};
use crate::engine::{Connector, Fault};

pub(super) fn cases() -> Vec<Case> {
    named!("disaggregation":
        a_short_prompt_stays_with_the_decode_engine,
        what_the_decode_engine_has_is_not_computed_elsewhere,
        what_only_the_whole_prompt_can_tell_stays_with_the_decode_engine,
        other_paths_go_to_decode_engines,
        too_many_prefills_are_not_waited_for,
        prefill_engines_serve_nobody_else,
    )
}

async fn a_short_prompt_stays_with_the_decode_engine(context: &Context) -> anyhow::Result<()> {
    let spec = spec(Connector::Nixl).disaggregation("min_uncached_tokens", json!(256));
    let stack = Stack::start(context, spec).await?;
    let text = "the old road to the sea ".repeat(20);
    for stream in [false, true] {
        let fields = json!({"stream": stream, "max_tokens": 4});
        let moment = Moment::now(&stack);
        let call = Call::chat_with(MODEL, &text, fields.clone());
        stack.send(call).await?.expect_status(200)?;
        moment.done_alone(&stack)?;
        let moment = Moment::now(&stack);
        // Another one each time: by then a decode engine has the first, and maybe not every worker knows it.
        let long = prompt(if stream { "long and streamed" } else { "long" });
        let call = Call::chat_with(MODEL, &long, fields);
        stack.send(call).await?.expect_status(200)?;
        moment.handed_over(&stack).await?;
    }
    let reason = [("reason", "too_short")];
    counted(
        &stack,
        "warmpath_undisaggregated_requests_total",
        &reason,
        2,
    )
    .await
}

/// A conversation is handed over once; its next turns go to the engine that has it, until much is new.
async fn what_the_decode_engine_has_is_not_computed_elsewhere(
    context: &Context,
) -> anyhow::Result<()> {
    for connector in [Connector::Nixl, Connector::Mooncake] {
        let spec = spec(connector).disaggregation("min_uncached_tokens", json!(512));
        let stack = Stack::start(context, spec).await?;
        let mut messages = vec![json!({"role": "user", "content": prompt("talk")})];
        // By one worker: another hears of a turn a little later than the next may come.
        let workers = Workers::reach(&stack).await?;
        let turn = async |messages: &[Value]| {
            let document = json!({"model": MODEL, "messages": messages, "max_tokens": 4});
            let call = Call::post("/v1/chat/completions", &document);
            let reply = workers.send(0, call).await?.expect_status(200)?;
            anyhow::Ok(stack.answered_by(&reply)?.name.clone())
        };
        let moment = Moment::now(&stack);
        let home = turn(&messages).await?;
        moment.handed_over(&stack).await?;
        for number in 0..3 {
            messages.push(json!({"role": "assistant", "content": "so it is"}));
            messages.push(json!({"role": "user", "content": format!("and then {number}?")}));
            let moment = Moment::now(&stack);
            ensure!(turn(&messages).await? == home, "{connector:?}: left {home}");
            let took = moment.done_alone(&stack)?;
            // The decode engine really has what was sent to it.
            let cached = took.cached_tokens.context("no token")?;
            ensure!(
                cached * 10 > took.prompt_tokens * 9,
                "{cached} of {}",
                took.prompt_tokens
            );
        }
        messages.push(json!({"role": "user", "content": prompt("much that is new")}));
        let moment = Moment::now(&stack);
        turn(&messages).await?;
        moment.handed_over(&stack).await?;
    }
    Ok(())
}

/// The prefill engine would tell it, and the decode engine could not.
async fn what_only_the_whole_prompt_can_tell_stays_with_the_decode_engine(
    context: &Context,
) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec(Connector::Nixl)).await?;
    let cases = [json!({"echo": true}), json!({"prompt_logprobs": 2})];
    for (number, fields) in cases.into_iter().enumerate() {
        let moment = Moment::now(&stack);
        let call = ask(&format!("told {number}"), fields);
        stack.send(call).await?.expect_status(200)?;
        moment.done_alone(&stack)?;
    }
    let reason = [("reason", "prompt_back")];
    counted(
        &stack,
        "warmpath_undisaggregated_requests_total",
        &reason,
        2,
    )
    .await?;
    for (number, fields) in [json!({"echo": false}), json!({"logprobs": 2})]
        .into_iter()
        .enumerate()
    {
        let moment = Moment::now(&stack);
        let call = ask(&format!("untold {number}"), fields);
        stack.send(call).await?.expect_status(200)?;
        moment.handed_over(&stack).await?;
    }
    Ok(())
}

async fn other_paths_go_to_decode_engines(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec(Connector::Nixl)).await?;
    let text = prompt("path");
    let calls = [
        ("/v1/embeddings", json!({"model": MODEL, "input": text})),
        (
            "/v1/responses",
            json!({"model": MODEL, "input": text, "max_output_tokens": 4}),
        ),
        (
            "/v1/rerank",
            json!({"model": MODEL, "query": text, "documents": [text, text]}),
        ),
        (
            "/v1/messages",
            json!({"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": text}]}),
        ),
    ];
    for (path, document) in calls {
        let moment = Moment::now(&stack);
        let reply = stack.send(Call::post(path, &document)).await?;
        reply.expect_status(200)?;
        moment.done_alone(&stack)?;
    }
    let reason = [("reason", "api")];
    counted(
        &stack,
        "warmpath_undisaggregated_requests_total",
        &reason,
        4,
    )
    .await
}

/// Above the bound a request does not wait: the decode engine does it all.
async fn too_many_prefills_are_not_waited_for(context: &Context) -> anyhow::Result<()> {
    let spec = spec(Connector::Nixl)
        .disaggregation("max_pending", json!(1))
        .workers(1);
    let stack = Stack::start(context, spec).await?;
    stack.set_fault("llama-prefill", Fault::HangBeforeHeaders);
    let moment = Moment::now(&stack);
    let client = stack.client().clone();
    let waits = tokio::spawn(async move { client.send(ask("waits", json!({}))).await });
    eventually("a prefill is under way", async || {
        Ok((moment.prefills(&stack).len() == 1).then_some(()))
    })
    .await?;
    for number in 0..3 {
        let call = ask(&format!("does not wait {number}"), json!({}));
        is_whole(&stack.send(call).await?.expect_status(200)?, 4)?;
    }
    ensure!(
        moment.prefills(&stack).len() == 1,
        "more than one prefill was asked for"
    );
    ensure!(
        moment
            .decodes(&stack)
            .iter()
            .all(|(_, seen)| seen.kv.part.is_none())
    );
    let reason = [("reason", "too_many_pending")];
    counted(
        &stack,
        "warmpath_undisaggregated_requests_total",
        &reason,
        3,
    )
    .await?;
    waits.abort();
    stack.set_fault("llama-prefill", Fault::None);
    // The place of the client that left is free again.
    eventually("prefills are asked for again", async || {
        let moment = Moment::now(&stack);
        let call = ask("waits again", json!({}));
        stack.send(call).await?.expect_status(200)?;
        Ok((moment.prefills(&stack).len() == 1).then_some(()))
    })
    .await
}

/// Neither a model's name nor a path that is not known nor a header leads a client to them.
async fn prefill_engines_serve_nobody_else(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec(Connector::Nixl)).await?;
    let calls = [
        Call::get("/v1/models"),
        Call::get("/version"),
        Call::get("/version").header("x-warmpath-pool", "llama-prefill")?,
        Call::chat("llama-prefill", "hello"),
        Call::chat(MODEL, "hello").header("x-warmpath-pool", "llama-prefill")?,
        Call::chat(MODEL, "hello").header("x-warmpath-cluster", "llama-prefill")?,
        Call::post("/tokenize", &json!({"prompt": "hello"})),
    ];
    for call in calls {
        let path = call.path.clone();
        let reply = stack.send(call).await?;
        if reply.header("x-engine").is_some() {
            let engine = stack.answered_by(&reply)?;
            ensure!(engine.pool == "llama", "{path}: {}", engine.name);
        }
    }
    ensure!(
        stack
            .pool("llama-prefill")
            .all(|it| it.engine.seen_count() == 0)
    );
    Ok(())
}
