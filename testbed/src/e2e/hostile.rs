//! Input that is made to hurt, through a real Envoy: it is refused or served, and then all is as before.
//! What it costs the filter is counted in `filter/core/tests/hostile.rs`.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::client::{Call, Transport};
use super::counters::counter;
use super::harness::{Context, Stack, StackSpec, eventually};
use super::{Case, named};
use crate::envoy::stats;

pub(super) fn cases() -> Vec<Case> {
    named!("hostile":
        bodies_are_refused_or_served_and_nothing_stays,
        heads_are_read_as_far_as_envoy_lets_them_through,
    )
}

const MB: usize = 1024 * 1024;
const IN_FLIGHT: &str = "warmpath_endpoint_in_flight_requests";

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// The filter, with this status.
    Filter(u16),
    /// An engine, whatever it thinks of the request.
    Engine,
}

fn bytes(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// Bodies for `/v1/chat/completions`, each with who answers it.
fn chats() -> Vec<(&'static str, Vec<u8>, By)> {
    let chat = |members: &str| {
        format!(r#"{{"model":"llama-3-8b","max_tokens":1,{members}}}"#).into_bytes()
    };
    let said = r#""messages":[{"role":"user","content":"hello"}]"#;
    let many = |unit: &str, times: usize| vec![unit; times].join(",");
    vec![
        (
            "lists in lists",
            chat(&format!(r#""messages":{}"#, "[".repeat(MB))),
            By::Filter(400),
        ),
        (
            "objects in objects",
            chat(&format!(r#""messages":{}"#, r#"{"a":"#.repeat(MB / 5))),
            By::Filter(400),
        ),
        (
            "NUL",
            chat("\"messages\":[{\"role\":\"user\",\"content\":\"a\0b\"}]"),
            By::Filter(400),
        ),
        (
            "half an escape",
            chat(r#""user":"\u00","messages":[]"#),
            By::Filter(400),
        ),
        (
            "a model of a megabyte",
            format!(r#"{{"model":"{}",{said}}}"#, "m".repeat(MB)).into_bytes(),
            By::Filter(404),
        ),
        (
            "a model that is a number",
            format!(r#"{{"model":1e999,{said}}}"#).into_bytes(),
            By::Filter(400),
        ),
        (
            "no UTF-8",
            bytes(&[
                br#"{"model":"llama-3-8b","messages":[{"role":"user","content":""#,
                &[0xff, 0xc0, 0x80].repeat(1000),
                br#""}]}"#,
            ]),
            By::Engine,
        ),
        (
            "halves of pairs",
            chat(&format!(
                r#""messages":[{{"role":"user","content":"{}"}}]"#,
                r"\ud800".repeat(10_000)
            )),
            By::Engine,
        ),
        (
            "keys again",
            chat(&format!(
                r#"{},{said}"#,
                many(r#""model":"llama-3-8b","messages":[]"#, 20_000)
            )),
            By::Engine,
        ),
        (
            "tiny messages",
            chat(&format!(
                r#""messages":[{}]"#,
                many(r#"{"role":"user","content":"a"}"#, 100_000)
            )),
            By::Engine,
        ),
        (
            "tools",
            chat(&format!(
                r#"{said},"tools":[{}]"#,
                many(r#"{"type":"function","function":{"name":"f"}}"#, 50_000)
            )),
            By::Engine,
        ),
        (
            "digits",
            chat(&format!(r#"{said},"max_tokens":{}"#, "9".repeat(MB))),
            By::Engine,
        ),
        (
            "a salt and a session key of a megabyte",
            chat(&format!(
                r#"{said},"cache_salt":"{0}","user":"{0}""#,
                "x".repeat(MB)
            )),
            By::Engine,
        ),
    ]
}

/// Bodies for `/v1/completions`; engines answer all of them.
fn completions() -> Vec<(&'static str, Vec<u8>, By)> {
    let of = |ids: &[&str], times: usize| {
        let ids = vec![ids.join(","); times].join(",");
        let body = format!(r#"{{"model":"llama-3-8b","max_tokens":1,"prompt":[{ids}]}}"#);
        body.into_bytes()
    };
    vec![
        ("a million ids", of(&["17"], 1_000_000), By::Engine),
        (
            "ids that are none",
            of(&["4294967296", "-1", "1.5", "18446744073709551616"], 1000),
            By::Engine,
        ),
    ]
}

async fn bodies_are_refused_or_served_and_nothing_stays(context: &Context) -> anyhow::Result<()> {
    let spec = StackSpec::shipped()
        .with_room()
        .policy("llama", json!("prefix"));
    let stack = Stack::start(context, spec).await?;
    let vms = born(&stack).await?;
    let chats = chats().into_iter();
    let chats = chats.map(|case| ("/v1/chat/completions", case));
    let completions = completions().into_iter();
    let completions = completions.map(|case| ("/v1/completions", case));
    for (path, (what, body, by)) in chats.chain(completions) {
        for transport in [Transport::Http1, Transport::Http2] {
            let call = Call::post(path, &Value::Null).body(body.clone());
            let reply = stack.send(call.over(transport)).await.context(what)?;
            match by {
                By::Filter(status) => {
                    let own = reply.header("x-engine").is_none();
                    ensure!(own && reply.status == status, "{what}: {reply:?}");
                    ensure!(
                        reply.body.len() < 2048,
                        "{what}: {} bytes",
                        reply.body.len()
                    );
                }
                By::Engine => {
                    stack.answered_by(&reply).context(what)?;
                }
            }
            // Whoever comes next meets nothing of it.
            let next = Call::chat("llama-3-8b", "hello").over(transport);
            stack.send(next).await.context(what)?.expect_status(200)?;
        }
    }
    settled(&stack, vms).await
}

/// VMs that took the configuration: one more after each crash. Waits for all that there are at first.
async fn born(stack: &Stack<'_>) -> anyhow::Result<u64> {
    let all = stack.workers() as u64 + 1;
    eventually("every VM has started", async || {
        let born = counter(stack, "warmpath_vm_starts_total", &[]).await?;
        Ok((born >= all).then_some(born))
    })
    .await
}

/// Waits until nothing is counted as in flight; no VM may have crashed on the way.
async fn settled(stack: &Stack<'_>, before: u64) -> anyhow::Result<()> {
    let envoy = stack.envoy()?;
    eventually("nothing is in flight", async || {
        let page = envoy.admin_get("/stats/prometheus").await?;
        let left = stats::sum(&page, IN_FLIGHT, &[]);
        Ok((page.contains(IN_FLIGHT) && left == 0).then_some(()))
    })
    .await?;
    let after = born(stack).await?;
    ensure!(after == before, "{} VMs crashed", after - before);
    Ok(())
}

/// Cookies of about this size, the one that counts last.
fn cookies(bytes: usize) -> String {
    "a=b; sid=; xsid=no; ".repeat(bytes / 20) + "sid=alice"
}

async fn heads_are_read_as_far_as_envoy_lets_them_through(context: &Context) -> anyhow::Result<()> {
    let spec = StackSpec::shipped()
        .policy("llama", json!("consistent_hash"))
        .option("session_key", json!([{"cookie": "sid"}]));
    let stack = Stack::start(context, spec).await?;
    let vms = born(&stack).await?;
    let chat = || Call::chat("llama-3-8b", "hello");
    let first = stack.send(chat().header("cookie", "sid=alice")?).await?;
    let own = stack.answered_by(&first.expect_status(200)?)?.name.clone();
    for transport in [Transport::Http1, Transport::Http2] {
        let one = chat().header("cookie", cookies(50_000))?;
        let mut many = chat();
        for n in 0..80 {
            many = many.header("cookie", format!("n{n}=x; sid={}", " ".repeat(n)))?;
        }
        let many = many.header("cookie", "\u{e9}; =; sid=\"alice\"")?;
        let bytes = chat()
            .header(
                "cookie",
                [b"\xff\xfe=\x80; sid=alice".as_slice(), b";=\xc0"].concat(),
            )?
            .header("x-warmpath-priority", b"\xff,\xfe")?
            .header("x-warmpath-pool", b"\xf0\x28\x8c\x28")?;
        for call in [one, many, bytes] {
            let reply = stack.send(call.over(transport)).await?.expect_status(200)?;
            let engine = &stack.answered_by(&reply)?.name;
            ensure!(*engine == own, "{transport:?}: {engine} instead of {own}");
            ensure!(reply.decision()?.reason == "session_owner", "{reply:?}");
        }
    }
    // Beyond that Envoy answers; the filter and the engines see nothing of it.
    let seen = stack.requests_seen();
    let reply = stack
        .send(chat().header("cookie", cookies(100_000))?)
        .await?;
    reply.expect_status(431)?;
    ensure!(stack.requests_seen() == seen, "an engine saw it");
    settled(&stack, vms).await
}
