//! A session stays on its engine: whichever way its key comes, whichever worker it meets, and, but
//! for its fair share, when engines come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::client::{Call, Transport};
use super::harness::{Context, Stack, StackSpec, pool_mut, static_endpoints};
use super::spread::send_all;
use super::workers::Workers;
use super::{Case, named};
use crate::envoy::bootstrap::Bootstrap;

pub(super) fn cases() -> Vec<Case> {
    named!("sessions":
        a_session_stays_on_its_engine,
        the_shipped_sources_need_no_configuration,
        a_key_inside_the_prompt_never_matches,
        a_key_need_not_be_text,
        without_a_key_requests_spread_evenly,
        a_leaving_engine_moves_only_its_own_sessions,
        a_joining_engine_takes_its_share_and_no_more,
        every_envoy_places_a_session_alike,
    )
}

const SESSIONS: usize = 60;
/// So many engines and sessions that two points beyond the share are more than four standard
/// deviations of a fair draw.
const ENGINES: usize = 21;
const MANY_SESSIONS: usize = 2000;

/// A chat whose session key stands in `source`: the name of a header, `cookie`, or a pointer into
/// the body.
fn keyed(source: &str, key: &str) -> anyhow::Result<Call> {
    let call = Call::chat("llama-3-8b", "hello");
    match source.strip_prefix('/') {
        Some(pointer) => {
            let fields = pointer
                .rsplit('/')
                .fold(json!(key), |value, field| json!({field: value}));
            Ok(Call::chat_with("llama-3-8b", "hello", fields))
        }
        None if source == "cookie" => call.header("cookie", format!("a=b; sid={key}; c=d")),
        None => call.header(source, key),
    }
}

/// Every source that is configured unless told otherwise, and a cookie, which must be told.
const SOURCES: [&str; 9] = [
    "x-session-id",
    "x-user-id",
    "x-tenant-id",
    "cookie",
    "/session_params/session_id",
    "/prompt_cache_key",
    "/session_id",
    "/user_id",
    "/user",
];

async fn a_session_stays_on_its_engine(context: &Context) -> anyhow::Result<()> {
    let with_cookie = SOURCES.map(|source| match source.strip_prefix('/') {
        Some(_) => json!({"body": source}),
        None if source == "cookie" => json!({"cookie": "sid"}),
        None => json!({"header": source}),
    });
    let spec = StackSpec::shipped().option("session_key", json!(with_cookie));
    let stack = Stack::start(context, spec).await?;
    let workers = Workers::reach(&stack).await?;
    let mut homes = BTreeMap::<usize, String>::new();
    for source in SOURCES {
        for session in 0..12 {
            // Twice through each worker.
            for number in 0..2 * workers.count() {
                let call = keyed(source, &format!("s-{session}"))?;
                let reply = workers.send(number, call).await?.expect_status(200)?;
                let name = stack.answered_by(&reply)?.name.clone();
                // Where the key stands is not part of it.
                let home = homes.entry(session).or_insert_with(|| name.clone());
                ensure!(*home == name, "{source}, {session}: {home}, then {name}");
                ensure!(reply.decision()?.reason == "session_owner", "{reply:?}");
            }
        }
    }
    let names: BTreeSet<_> = homes.into_values().collect();
    ensure!(names.len() > 1, "all sessions are on {names:?}");
    Ok(())
}

async fn the_shipped_sources_need_no_configuration(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    let by_header = keyed("x-session-id", "s-1")?;
    let reply = stack.send(by_header).await?.expect_status(200)?;
    let home = &stack.answered_by(&reply)?.name;
    for source in SOURCES {
        let reply = stack
            .send(keyed(source, "s-1")?)
            .await?
            .expect_status(200)?;
        let told = reply.decision()?;
        if source == "cookie" {
            ensure!(told.policy == "least_request", "a cookie: {told:?}");
            continue;
        }
        let name = &stack.answered_by(&reply)?.name;
        ensure!(
            name == home && told.reason == "session_owner",
            "{source}: {told:?}"
        );
    }
    // The first source that has a value wins.
    let both = keyed("/user", "s-2")?.header("x-session-id", "s-1")?;
    let reply = stack.send(both).await?.expect_status(200)?;
    ensure!(&stack.answered_by(&reply)?.name == home, "{reply:?}");
    Ok(())
}

async fn a_key_inside_the_prompt_never_matches(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    let quoted = r#"", "user": "alice", "session_id": "alice", "x": ""#;
    let own = json!({"user": "alice", "session_id": "alice", "prompt_cache_key": "alice"});
    let documents = [
        json!({"messages": [{"role": "user", "content": own.to_string()}]}),
        json!({"messages": [{"role": "user", "content": quoted}]}),
        json!({"messages": [{"role": "user", "content": "x", "user": "alice", "user_id": "alice"}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "user": "alice"}]}]}),
        json!({"messages": [{"role": "user", "content": "x"}], "metadata": own}),
        json!({
            "messages": [{"role": "user", "content": "x"}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": own}}],
        }),
        // A key is text; what has no text is no key.
        json!({"messages": [{"role": "user", "content": "x"}], "user": null, "session_id": ""}),
    ];
    for document in documents {
        let text = document.to_string();
        let members = text.strip_prefix('{').and_then(|it| it.strip_suffix('}'));
        let members = members.context("not an object")?;
        let own = r#""model": "llama-3-8b", "max_tokens": 1"#;
        // The prompt is met after the model, and before it.
        for text in [
            format!("{{{own}, {members}}}"),
            format!("{{{members}, {own}}}"),
        ] {
            let call = Call::post("/v1/chat/completions", &document).body(text);
            let reply = stack.send(call).await?.expect_status(200)?;
            let told = reply.decision()?;
            ensure!(told.policy == "least_request", "{document}: {told:?}");
        }
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
    let before = homes(&stack, SESSIONS).await?;
    let stayed = stack.pool("llama").map(|engine| engine.address);
    let addresses: Vec<_> = stayed.take(3).collect();
    stack
        .restart_envoy(|bootstrap| use_engines(bootstrap, &addresses))
        .await?;
    let after = homes(&stack, SESSIONS).await?;
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

async fn a_joining_engine_takes_its_share_and_no_more(context: &Context) -> anyhow::Result<()> {
    let mut stack = Stack::start(context, StackSpec::shipped().engines("llama", ENGINES)).await?;
    let addresses: Vec<_> = stack.pool("llama").map(|engine| engine.address).collect();
    let (_, all_but_one) = addresses.split_last().context("no engines")?;
    let all_but_one = all_but_one.to_vec();
    stack
        .restart_envoy(|bootstrap| use_engines(bootstrap, &all_but_one))
        .await?;
    let before = homes(&stack, MANY_SESSIONS).await?;
    stack
        .restart_envoy(|bootstrap| use_engines(bootstrap, &addresses))
        .await?;
    let after = homes(&stack, MANY_SESSIONS).await?;
    let newcomer = format!("llama-{}", ENGINES - 1);
    let mut moved = 0;
    for (session, (old, new)) in before.iter().zip(&after).enumerate() {
        ensure!(old != &newcomer, "it answered before it was there");
        moved += usize::from(old != new);
        ensure!(
            old == new || new == &newcomer,
            "session {session}: {old}, then {new}"
        );
    }
    let percent = 100.0 * moved as f64 / MANY_SESSIONS as f64;
    let share = 100.0 / ENGINES as f64;
    ensure!(
        percent > 0.0 && percent <= share + 2.0,
        "{percent} % moved; its share is {share} %"
    );
    Ok(())
}

async fn every_envoy_places_a_session_alike(context: &Context) -> anyhow::Result<()> {
    let mut stack = Stack::start(context, StackSpec::shipped()).await?;
    let first = homes(&stack, SESSIONS).await?;
    stack.restart_envoy(|_| Ok(())).await?;
    let second = homes(&stack, SESSIONS).await?;
    ensure!(first == second, "{first:?}, then {second:?}");
    Ok(())
}

/// Lets the pool `llama` be made of these engines, for the filter and for Envoy.
fn use_engines(bootstrap: &mut Bootstrap, addresses: &[SocketAddr]) -> anyhow::Result<()> {
    let mut plugin = bootstrap.plugin()?;
    let pool = pool_mut(&mut plugin, "llama").context("no pool llama")?;
    pool.insert("endpoints".to_owned(), static_endpoints(addresses));
    bootstrap.set_plugin_text(&plugin.to_string());
    bootstrap.set_endpoints("llama", addresses)
}

/// The engine of each of `count` sessions.
async fn homes(stack: &Stack<'_>, count: usize) -> anyhow::Result<Vec<String>> {
    let calls = (0..count).map(|session| keyed("x-session-id", &format!("s-{session}")));
    let calls = calls.collect::<anyhow::Result<Vec<_>>>()?;
    let replies = send_all(stack.client(), calls, 16).await?;
    let name = |reply| Ok(stack.answered_by(reply)?.name.clone());
    replies.iter().map(name).collect()
}
