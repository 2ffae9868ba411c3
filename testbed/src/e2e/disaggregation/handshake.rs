//! With every connector the KV comes from the prefill engine that was asked, whatever the request.

use std::collections::BTreeSet;

use anyhow::ensure;
use serde_json::{Value, json};

use super::super::client::{Call, Transport};
use super::super::counters::counted;
use super::super::harness::{Context, Stack, StackSpec};
use super::super::{Case, named};
use super::{ALL, MODEL, Moment, ask, decodes_alone, is_whole, prompt, spec};
use crate::engine::Connector;

pub(super) fn cases() -> Vec<Case> {
    named!("disaggregation":
        nixl_kv_comes_from_the_named_engine,
        p2p_nccl_kv_comes_from_the_named_engine,
        mooncake_kv_comes_from_the_named_engine,
        sglang_kv_comes_from_the_named_engine,
        several_sequences_are_served,
        both_engines_know_whose_request_it_is,
        all_engines_share_the_work,
        ranks_hand_over_to_ranks,
    )
}

async fn nixl_kv_comes_from_the_named_engine(context: &Context) -> anyhow::Result<()> {
    every_way(context, spec(Connector::Nixl)).await
}

async fn p2p_nccl_kv_comes_from_the_named_engine(context: &Context) -> anyhow::Result<()> {
    every_way(context, spec(Connector::P2pNccl)).await
}

async fn mooncake_kv_comes_from_the_named_engine(context: &Context) -> anyhow::Result<()> {
    every_way(context, spec(Connector::Mooncake)).await
}

async fn sglang_kv_comes_from_the_named_engine(context: &Context) -> anyhow::Result<()> {
    every_way(context, spec(Connector::Sglang)).await
}

/// Chats and completions, streamed and whole, over both versions of HTTP.
pub(in super::super) async fn every_way(context: &Context, spec: StackSpec) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec).await?;
    let ways = [
        (false, Transport::Http1),
        (true, Transport::Http1),
        (false, Transport::Http2),
        (true, Transport::Http2),
    ];
    for (number, (stream, transport)) in ways.into_iter().enumerate() {
        let fields = json!({
            "stream": stream, "max_tokens": 5, "stream_options": {"include_usage": true},
            "min_tokens": 3,
        });
        let calls = [
            Call::chat_with(MODEL, &prompt(&format!("chat {number}")), fields.clone()),
            ask(&format!("text {number}"), fields),
        ];
        for call in calls {
            let moment = Moment::now(&stack);
            let reply = stack.send(call.over(transport)).await?.expect_status(200)?;
            let (gave, took) = moment.handed_over(&stack).await?;
            ensure!(gave.prompt_tokens == gave.kv.tokens, "{gave:?}");
            let decoder = stack.answered_by(&reply)?;
            ensure!(decoder.pool == "llama", "{} answered", decoder.name);
            let told = reply.header("x-warmpath-prefill").unwrap_or_default();
            let source = stack
                .pool("llama-prefill")
                .find(|it| it.address.to_string() == told);
            let source = source.map(|it| it.name.clone());
            ensure!(
                source == took.kv.source,
                "{told} instead of {:?}",
                took.kv.source
            );
            ensure!(took.first_token_us.is_some() == stream, "{took:?}");
            match stream {
                true => ensure!(
                    reply.text().ends_with("data: [DONE]\n\n"),
                    "{}",
                    reply.text()
                ),
                false => is_whole(&reply, 5)?,
            }
        }
    }
    let transferred = [("pool", "llama"), ("cause", "transferred")];
    counted(
        &stack,
        "warmpath_disaggregated_requests_total",
        &transferred,
        8,
    )
    .await?;
    let ok = [("pool", "llama-prefill"), ("cause", "ok")];
    counted(&stack, "warmpath_prefill_calls_total", &ok, 8).await?;
    let sent: u64 = stack
        .pool("llama")
        .map(|it| it.engine.stats().external_hits_tokens)
        .sum();
    ensure!(sent > 8 * 1000, "{sent} tokens");
    Ok(())
}

/// Batches of prompts and several answers to one: by rooms of their own or by ids of their own where the
/// connector has such, else by the decode engine alone.
async fn several_sequences_are_served(context: &Context) -> anyhow::Result<()> {
    for connector in ALL {
        let stack = Stack::start(context, spec(connector)).await?;
        let pair = json!([prompt("one"), prompt("another")]);
        let ids = json!([vec![7; 72], vec![9; 64]]);
        let cases = [
            (json!({"prompt": pair}), 2),
            (json!({"prompt": prompt("three answers"), "n": 3}), 3),
            (json!({"prompt": [prompt("alone in a list")]}), 1),
            (json!({"prompt": ids}), 2),
        ];
        for (fields, sequences) in cases {
            let moment = Moment::now(&stack);
            let reply = stack.send(ask("", fields)).await?.expect_status(200)?;
            let choices = reply
                .json()?
                .pointer("/choices")
                .and_then(Value::as_array)
                .cloned();
            let choices = choices.unwrap_or_default().len();
            ensure!(
                choices == sequences,
                "{connector:?}: {choices} of {sequences}"
            );
            if decodes_alone(connector) && sequences > 1 {
                moment.done_alone(&stack)?;
            } else {
                moment.handed_over(&stack).await?;
            }
        }
    }
    Ok(())
}

async fn both_engines_know_whose_request_it_is(context: &Context) -> anyhow::Result<()> {
    for connector in ALL {
        let stack = Stack::start(context, spec(connector)).await?;
        let trace = "00-0af7651916cd43dd8448eb211c80319c";
        let call = ask("whose", json!({}))
            .header("x-request-id", "mine-42")?
            .header("authorization", "Bearer secret")?
            .header("traceparent", format!("{trace}-b7ad6b7169203331-01"))?
            .header("tracestate", "a=b")?
            .header("baggage", "c=d")?;
        let moment = Moment::now(&stack);
        let reply = stack.send(call).await?.expect_status(200)?;
        let (gave, took) = moment.handed_over(&stack).await?;
        for name in [
            "authorization",
            "tracestate",
            "baggage",
            "x-request-id",
            "content-type",
        ] {
            let (one, other) = (gave.header(name), took.header(name));
            ensure!(one.is_some() && one == other, "{name}: {one:?} {other:?}");
        }
        // Envoy may give the decode request a span of its own in the same trace.
        for seen in [&gave, &took] {
            let parent = seen.header("traceparent").unwrap_or_default();
            ensure!(parent.starts_with(trace.as_bytes()), "{seen:?}");
        }
        if connector != Connector::P2pNccl {
            ensure!(took.header("x-request-id") == Some(b"mine-42"), "{took:?}");
            ensure!(reply.header("x-request-id") == Some("mine-42"), "{reply:?}");
        }
        let leaked = gave.headers.iter().chain(&took.headers);
        let mut leaked = leaked.filter(|(name, _)| {
            name.starts_with("x-warmpath") || name.starts_with("x-gateway-destination")
        });
        ensure!(
            leaked.next().is_none(),
            "our headers reach engines: {gave:?} {took:?}"
        );
    }
    Ok(())
}

/// Conversations that have nothing in common are spread over both sides' engines.
async fn all_engines_share_the_work(context: &Context) -> anyhow::Result<()> {
    for connector in [Connector::Nixl, Connector::Sglang] {
        let stack = Stack::start(context, spec(connector)).await?;
        for number in 0..12 {
            let moment = Moment::now(&stack);
            let call = ask(&format!("talk {number}"), json!({}));
            stack.send(call).await?.expect_status(200)?;
            moment.handed_over(&stack).await?;
        }
        let seen = stack.requests_seen();
        ensure!(
            seen.iter().all(|&count| count > 0),
            "{connector:?}: {seen:?}"
        );
        ensure!(seen.iter().sum::<u64>() == 24, "{seen:?}");
    }
    Ok(())
}

/// Each side's engines have data-parallel ranks: the rank that is named computes, and its KV is found.
/// SGLang's prefill engines choose their ranks by the room.
async fn ranks_hand_over_to_ranks(context: &Context) -> anyhow::Result<()> {
    for connector in [Connector::Nixl, Connector::Mooncake] {
        let spec = spec(connector)
            .engine(|config| config.data_parallel_size = 2)
            .pool_option("llama", "data_parallel_size", json!(2))
            .pool_option("llama-prefill", "data_parallel_size", json!(2));
        let stack = Stack::start(context, spec).await?;
        let mut used = BTreeSet::new();
        for number in 0..16 {
            let moment = Moment::now(&stack);
            let call = ask(&format!("talk {number}"), json!({}));
            stack.send(call).await?.expect_status(200)?;
            let (gave, took) = moment.handed_over(&stack).await?;
            for seen in [&gave, &took] {
                let named = seen.header("x-data-parallel-rank").unwrap_or_default();
                let named = std::str::from_utf8(named)?.parse::<usize>();
                ensure!(named.ok() == seen.rank, "{connector:?}: {seen:?}");
                used.insert((seen.kv.part == gave.kv.part, seen.rank));
            }
        }
        ensure!(
            used.len() == 4,
            "{connector:?}: of two ranks on each side only {used:?}"
        );
    }
    Ok(())
}
