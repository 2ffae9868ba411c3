//! A session stays on its engine: whichever way its key comes, whichever worker it meets, and, but
//! for its fair share, when engines come and go.

use std::collections::BTreeMap;

use anyhow::ensure;
use serde_json::json;

use super::client::{Call, Transport};
use super::harness::{Context, Stack, StackSpec, pool_mut, static_endpoints};
use super::{Case, named};

pub(super) fn cases() -> Vec<Case> {
    named!("sessions":
        a_session_stays_on_its_engine,
        a_key_need_not_be_text,
        without_a_key_requests_spread_evenly,
        a_leaving_engine_moves_only_its_own_sessions,
        every_envoy_places_a_session_alike,
    )
}

const SESSIONS: usize = 60;

async fn a_session_stays_on_its_engine(context: &Context) -> anyhow::Result<()> {
    let sources = json!([{"header": "x-session-id"}, {"cookie": "sid"}, {"body": "/user"}]);
    let spec = StackSpec::shipped().plugin(move |config| {
        if let Some(config) = config.as_object_mut() {
            config.insert("session_key".to_owned(), sources.clone());
        }
    });
    let stack = Stack::start(context, spec).await?;
    let chat = |key: &str, source: &str| {
        let call = Call::chat("llama-3-8b", "hello");
        match source {
            "header" => call.header("x-session-id", key),
            "cookie" => call.header("cookie", format!("a=b; sid={key}; c=d")),
            _ => Ok(Call::chat_with("llama-3-8b", "hello", json!({"user": key}))),
        }
    };
    for source in ["header", "cookie", "body"] {
        let mut homes = BTreeMap::<usize, String>::new();
        for round in 0..4 {
            for session in 0..SESSIONS / 3 {
                let call = chat(&format!("s-{session}"), source)?;
                // New connections meet all workers.
                let call = call.over(Transport::Http1NewConnection);
                let reply = stack.send(call).await?.expect_status(200)?;
                let name = stack.answered_by(&reply)?.name.clone();
                let home = homes.entry(session).or_insert_with(|| name.clone());
                ensure!(
                    *home == name,
                    "{source}, round {round}: {home}, then {name}"
                );
            }
        }
        let mut names: Vec<_> = homes.into_values().collect();
        names.sort();
        names.dedup();
        ensure!(names.len() == 3, "{source}: all sessions are on {names:?}");
    }
    Ok(())
}

async fn a_key_need_not_be_text(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    let mut names = Vec::new();
    for _ in 0..10 {
        let call = Call::chat("llama-3-8b", "hello").header("x-session-id", b"\xff\xfe\x80")?;
        let reply = stack.send(call).await?.expect_status(200)?;
        names.push(stack.answered_by(&reply)?.name.clone());
    }
    names.dedup();
    ensure!(names.len() == 1, "{names:?}");
    Ok(())
}

async fn without_a_key_requests_spread_evenly(context: &Context) -> anyhow::Result<()> {
    let spec = StackSpec::shipped().policy("llama", json!("round_robin"));
    let stack = Stack::start(context, spec).await?;
    for _ in 0..SESSIONS {
        let call = Call::chat("llama-3-8b", "hello").over(Transport::Http1NewConnection);
        stack.send(call).await?.expect_status(200)?;
    }
    let seen = stack.requests_seen();
    let share = SESSIONS as u64 / 3;
    ensure!(seen == [share, share, share, 0], "{seen:?}");
    Ok(())
}

async fn a_leaving_engine_moves_only_its_own_sessions(context: &Context) -> anyhow::Result<()> {
    let mut stack = Stack::start(context, StackSpec::shipped().engines("llama", 4)).await?;
    let before = homes(&stack).await?;
    let stayed = stack.engines.iter().filter(|engine| engine.pool == "llama");
    let addresses: Vec<_> = stayed.map(|engine| engine.address).take(3).collect();
    stack
        .restart_envoy(|bootstrap| {
            let mut plugin = bootstrap.plugin()?;
            if let Some(pool) = pool_mut(&mut plugin, "llama") {
                pool.insert("endpoints".to_owned(), static_endpoints(&addresses));
            }
            bootstrap.set_plugin_text(&plugin.to_string());
            bootstrap.set_endpoints("llama", &addresses)
        })
        .await?;
    let after = homes(&stack).await?;
    for (session, (old, new)) in before.iter().zip(&after).enumerate() {
        let moved = old != new;
        ensure!(
            moved == (old == "llama-3"),
            "session {session}: {old}, then {new}"
        );
    }
    ensure!(before != after, "no session lived on the engine that left");
    Ok(())
}

async fn every_envoy_places_a_session_alike(context: &Context) -> anyhow::Result<()> {
    let mut stack = Stack::start(context, StackSpec::shipped()).await?;
    let first = homes(&stack).await?;
    stack.restart_envoy(|_| Ok(())).await?;
    let second = homes(&stack).await?;
    ensure!(first == second, "{first:?}, then {second:?}");
    Ok(())
}

/// The engine of each of [`SESSIONS`] sessions.
async fn homes(stack: &Stack<'_>) -> anyhow::Result<Vec<String>> {
    let mut homes = Vec::new();
    for session in 0..SESSIONS {
        let call =
            Call::chat("llama-3-8b", "hello").header("x-session-id", format!("s-{session}"))?;
        let reply = stack.send(call).await?.expect_status(200)?;
        homes.push(stack.answered_by(&reply)?.name.clone());
    }
    Ok(homes)
}
