//! When one of the two engines fails: another does its work where there is one, and nobody waits for
//! what does not come.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::super::counters::counter;
use super::super::harness::{Context, Stack, StackEngine, eventually};
use super::super::{Case, named};
use super::{ALL, Moment, ask, decodes_alone, is_concurrent, is_whole, no_complaints, spec};
use crate::engine::{Connector, Fault, FaultPlan, Role};

pub(super) fn cases() -> Vec<Case> {
    named!("disaggregation":
        a_prefill_that_dies_is_taken_over,
        without_prefill_engines_decode_engines_do_what_they_can,
        a_prefill_that_hangs_is_given_up,
        a_busy_prefill_engine_hands_over_to_the_next,
        a_clients_mistake_is_told_once_and_held_against_nobody,
        a_prefill_engine_that_comes_back_is_used_again,
        a_decode_engine_that_dies_is_replaced,
        a_client_that_leaves_early_starts_no_decode,
        an_answer_that_breaks_off_is_not_repeated,
    )
}

/// Waits for the first request that any prefill engine has seen.
async fn first_prefill<'s>(stack: &'s Stack<'_>) -> anyhow::Result<&'s StackEngine> {
    eventually("a prefill engine is asked", async || {
        let mut engines = stack.pool("llama-prefill");
        Ok(engines.find(|it| it.engine.seen_count() > 0))
    })
    .await
}

/// The prefill engine is killed while it computes. Where decode has not begun, another prefill engine
/// takes over; else the client is told at once.
async fn a_prefill_that_dies_is_taken_over(context: &Context) -> anyhow::Result<()> {
    for connector in ALL {
        let stack = Stack::start(context, spec(connector)).await?;
        stack.set_fault("llama-prefill", Fault::HangBeforeHeaders);
        let moment = Moment::now(&stack);
        let client = stack.client().clone();
        let asked = tokio::spawn(async move { client.send(ask("dies", json!({}))).await });
        let first = first_prefill(&stack).await?;
        stack.set_fault("llama-prefill", Fault::None);
        first.engine.kill().await;
        let reply = asked.await??;
        if is_concurrent(connector) {
            ensure!(reply.status == 503, "{connector:?}: {reply:?}");
        } else {
            is_whole(&reply.expect_status(200)?, 4)?;
            let gave: Vec<_> = moment
                .prefills(&stack)
                .into_iter()
                .map(|(it, _)| &it.name)
                .collect();
            ensure!(
                matches!(gave.as_slice(), [one, other] if one != other),
                "{connector:?}: {gave:?}"
            );
            let took = moment.decodes(&stack);
            let source = took.last().and_then(|(_, seen)| seen.kv.source.clone());
            ensure!(
                source.is_some_and(|name| name != first.name),
                "from {}",
                first.name
            );
        }
        // The dead engine is left alone after a while; until then a concurrent pair may meet it.
        eventually("the other prefill engine does the work", async || {
            let moment = Moment::now(&stack);
            let reply = stack.send(ask("dies", json!({}))).await?;
            Ok((reply.status == 200 && moment.prefills(&stack).len() == 1).then_some(()))
        })
        .await?;
    }
    Ok(())
}

async fn without_prefill_engines_decode_engines_do_what_they_can(
    context: &Context,
) -> anyhow::Result<()> {
    for connector in ALL {
        let stack = Stack::start(context, spec(connector)).await?;
        for it in stack.pool("llama-prefill") {
            it.engine.kill().await;
        }
        let want = if decodes_alone(connector) { 200 } else { 503 };
        if !is_concurrent(connector) {
            let moment = Moment::now(&stack);
            let reply = stack.send(ask("at first", json!({}))).await?;
            let reply = reply.expect_status(want)?;
            if decodes_alone(connector) {
                is_whole(&reply, 4)?;
                moment.done_alone(&stack)?;
            } else {
                ensure!(moment.decodes(&stack).is_empty(), "{connector:?}");
            }
        }
        // A decode request that waits for KV is cut when its prefill fails; from then on all is known.
        eventually("all prefill engines are left alone", async || {
            let moment = Moment::now(&stack);
            let reply = stack.send(ask("later", json!({}))).await?;
            ensure!([200, 503].contains(&reply.status), "{reply:?}");
            let took = moment.decodes(&stack);
            let settled = match decodes_alone(connector) {
                true => reply.status == 200 && took.iter().all(|(_, seen)| seen.kv.part.is_none()),
                false => reply.status == 503 && took.is_empty(),
            };
            Ok(settled.then_some(()))
        })
        .await?;
        for it in stack.pool("llama") {
            ensure!(!it.engine.has_crashed(), "{} has crashed", it.name);
        }
    }
    Ok(())
}

async fn a_prefill_that_hangs_is_given_up(context: &Context) -> anyhow::Result<()> {
    for connector in ALL {
        let spec = spec(connector).disaggregation("timeout_ms", json!(300));
        let stack = Stack::start(context, spec).await?;
        let hang = FaultPlan {
            requests: Some(1),
            ..Fault::HangBeforeHeaders.into()
        };
        let moment = Moment::now(&stack);
        // Whichever is asked first hangs; the other is well.
        for it in stack.pool("llama-prefill") {
            it.engine.set_fault(hang);
        }
        let client = stack.client().clone();
        let asked = tokio::spawn(async move { client.send(ask("hangs", json!({}))).await });
        let first = first_prefill(&stack).await?;
        for it in stack
            .pool("llama-prefill")
            .filter(|it| it.name != first.name)
        {
            it.engine.set_fault(Fault::None);
        }
        let reply = asked.await??;
        if is_concurrent(connector) {
            ensure!(reply.status == 503, "{connector:?}: {reply:?}");
            continue;
        }
        is_whole(&reply.expect_status(200)?, 4)?;
        let took = moment.decodes(&stack);
        let source = took.last().and_then(|(_, seen)| seen.kv.source.clone());
        ensure!(
            source.is_some_and(|name| name != first.name),
            "from {}",
            first.name
        );
    }
    Ok(())
}

async fn a_busy_prefill_engine_hands_over_to_the_next(context: &Context) -> anyhow::Result<()> {
    for connector in [Connector::Nixl, Connector::P2pNccl] {
        let stack = Stack::start(context, spec(connector)).await?;
        let busy = stack.engine("llama-prefill-0")?;
        busy.engine.set_fault(Fault::Status {
            code: 503,
            retry_after_s: Some(5),
        });
        for number in 0..4 {
            let call = ask(&format!("busy {number}"), json!({}));
            is_whole(&stack.send(call).await?.expect_status(200)?, 4)?;
        }
        no_complaints(&stack)?;
        let took = stack.pool("llama").flat_map(|it| it.engine.log());
        let sources: Vec<_> = took.map(|seen| seen.kv.source).collect();
        let other = Some("llama-prefill-1".to_owned());
        ensure!(
            sources.len() == 4 && sources.iter().all(|it| *it == other),
            "{sources:?}"
        );
        // It was met once at most: then it is left alone for a while.
        ensure!(
            busy.engine.seen_count() <= 1,
            "{} met it",
            busy.engine.seen_count()
        );
    }
    Ok(())
}

/// An engine refuses what the client has wrong: that is the client's answer, and the engine is none the
/// worse for it.
async fn a_clients_mistake_is_told_once_and_held_against_nobody(
    context: &Context,
) -> anyhow::Result<()> {
    for connector in ALL {
        let stack = Stack::start(context, spec(connector)).await?;
        for number in 0..6 {
            let call = ask(
                &format!("wrong {number}"),
                json!({"max_completion_tokens": "many"}),
            );
            let reply = stack.send(call).await?.expect_status(400)?;
            let message = reply.json()?;
            let message = message.pointer("/error/message").and_then(|it| it.as_str());
            ensure!(
                message.is_some_and(|it| it.contains("max_completion_tokens")),
                "{message:?}"
            );
        }
        let moment = Moment::now(&stack);
        stack
            .send(ask("right", json!({})))
            .await?
            .expect_status(200)?;
        moment.handed_over(&stack).await?;
    }
    Ok(())
}

/// Killed and started anew, an engine has another id among connectors.
async fn a_prefill_engine_that_comes_back_is_used_again(context: &Context) -> anyhow::Result<()> {
    for connector in ALL {
        let mut stack = Stack::start(context, spec(connector)).await?;
        for number in 0..4 {
            let call = ask(&format!("before {number}"), json!({}));
            stack.send(call).await?.expect_status(200)?;
        }
        let name = "llama-prefill-0";
        stack.engine(name)?.engine.kill().await;
        let meanwhile = async |stack: &Stack<'_>, number: u32| {
            let moment = Moment::now(stack);
            let call = ask(&format!("{number}"), json!({}));
            let reply = stack.send(call).await?;
            let took = moment.decodes(stack).pop();
            let source = took.and_then(|(_, seen)| seen.kv.source);
            anyhow::Ok((reply.status, source))
        };
        // Until the other one does it all.
        let mut settled = 0;
        for number in 0..100 {
            let (status, source) = meanwhile(&stack, number).await?;
            settled = match (status, source.as_deref()) {
                (200, Some("llama-prefill-1")) => settled + 1,
                _ => 0,
            };
            if settled == 4 {
                break;
            }
        }
        ensure!(settled == 4, "{connector:?}: no end of failures");
        let dead = stack.engines.iter_mut().find(|it| it.name == name);
        dead.context("no such engine")?.restart().await?;
        let number = std::cell::Cell::new(1000);
        eventually("it is used again", async || {
            number.set(number.get() + 1);
            let (_, source) = meanwhile(&stack, number.get()).await?;
            Ok((source.as_deref() == Some(name)).then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// The decode engine resets the connection before it has begun. With NIXL the next one of the ranking
/// fetches the same KV; with the others only the engine that was told of it can, and nobody else may be
/// asked: it would wait for what never comes.
async fn a_decode_engine_that_dies_is_replaced(context: &Context) -> anyhow::Result<()> {
    for connector in ALL {
        let stack = Stack::start(context, spec(connector)).await?;
        let once = FaultPlan {
            requests: Some(1),
            ..Fault::ResetBeforeHeaders.into()
        };
        let moment = Moment::now(&stack);
        stack.set_fault("llama", once);
        let client = stack.client().clone();
        let asked = tokio::spawn(async move { client.send(ask("dies", json!({}))).await });
        let first = eventually("a decode engine is asked", async || {
            let mut engines = stack.pool("llama");
            Ok(engines.find(|it| it.engine.seen_count() > 0))
        })
        .await?;
        for it in stack.pool("llama").filter(|it| it.name != first.name) {
            it.engine.set_fault(Fault::None);
        }
        let reply = asked.await??;
        if connector != Connector::Nixl {
            ensure!(reply.status >= 500, "{connector:?}: {reply:?}");
            let took = moment.decodes(&stack);
            ensure!(
                took.iter().all(|(it, _)| it.name == first.name),
                "{}",
                took.len()
            );
            continue;
        }
        // The other engine may have been asked before its fault was taken back.
        is_whole(&reply.expect_status(200)?, 4)?;
        let took = moment.decodes(&stack);
        let last = took.iter().find(|(_, seen)| seen.status == Some(200));
        let (_, seen) = last.context("no decode engine served it")?;
        ensure!(seen.kv.part == Some(Role::Decode), "{:?}", seen.kv);
        let gave = moment.prefills(&stack);
        let [(source, _)] = gave.as_slice() else {
            anyhow::bail!("{connector:?}: {} prefills", gave.len());
        };
        ensure!(
            seen.kv.source.as_ref() == Some(&source.name),
            "{:?}",
            seen.kv
        );
    }
    Ok(())
}

async fn a_client_that_leaves_early_starts_no_decode(context: &Context) -> anyhow::Result<()> {
    for connector in [Connector::Nixl, Connector::P2pNccl] {
        let stack = Stack::start(context, spec(connector)).await?;
        stack.set_fault("llama-prefill", Fault::SlowStart { delay_ms: 700 });
        let moment = Moment::now(&stack);
        let client = stack.client().clone();
        let asked = tokio::spawn(async move { client.send(ask("leaves", json!({}))).await });
        first_prefill(&stack).await?;
        asked.abort();
        eventually("an abandoned prefill is counted", async || {
            let abandoned = [("pool", "llama-prefill"), ("cause", "abandoned")];
            let count = counter(&stack, "warmpath_prefill_calls_total", &abandoned);
            Ok((count.await? == 1).then_some(()))
        })
        .await?;
        ensure!(moment.decodes(&stack).is_empty(), "{connector:?}: a decode");
        ensure!(
            moment.prefills(&stack).len() == 1,
            "{connector:?}: a second prefill"
        );
        // Nothing of it is left behind: the next request finds all as it was.
        stack.set_fault("llama-prefill", Fault::None);
        let moment = Moment::now(&stack);
        stack
            .send(ask("stays", json!({})))
            .await?
            .expect_status(200)?;
        moment.handed_over(&stack).await?;
    }
    Ok(())
}

/// What the client has seen cannot be taken back.
async fn an_answer_that_breaks_off_is_not_repeated(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec(Connector::Nixl)).await?;
    stack.set_fault("llama", Fault::ResetAfter { body_bytes: 400 });
    let moment = Moment::now(&stack);
    let call = ask("breaks off", json!({"stream": true, "max_tokens": 40}));
    let mut open = stack.open(call).await?;
    let cut = loop {
        match tokio::time::timeout(Duration::from_secs(20), open.chunk()).await? {
            Ok(Some(_)) => {}
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    ensure!(cut, "a body that ends as if it were whole");
    ensure!(moment.decodes(&stack).len() == 1 && moment.prefills(&stack).len() == 1);
    Ok(())
}
