//! Prefill on one engine, decode on another: what the engines themselves say of it.
//!
//! The engines refuse wrong use as real ones do ([`crate::engine::Disaggregation`]), and a decode
//! engine knows which engine its KV came from. So a test asks the engines, not the filter: who gave,
//! who took, how many tokens, and whether anybody had anything to complain about.

mod bodies;
mod failures;
mod fields;
mod handshake;
mod limits;

pub(super) use handshake::every_way;

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context as _, bail, ensure};
use serde::de::IgnoredAny;
use serde_json::{Deserializer, Value, json};

use super::Case;
use super::client::{Call, Reply};
use super::harness::{Stack, StackEngine, StackSpec, eventually};
use crate::engine::{Connector, Role, Seen};

pub(super) fn cases() -> Vec<Case> {
    let themes = [
        handshake::cases(),
        failures::cases(),
        bodies::cases(),
        fields::cases(),
        limits::cases(),
    ];
    themes.into_iter().flatten().collect()
}

const MODEL: &str = "llama-3-8b";
pub(super) const ALL: [Connector; 4] = [
    Connector::Nixl,
    Connector::P2pNccl,
    Connector::Mooncake,
    Connector::Sglang,
];

/// The stack of a connector, without anything that depends on the minute.
pub(super) fn spec(connector: Connector) -> StackSpec {
    StackSpec::disaggregated(connector).option("scrape", json!("off"))
}

/// A prompt of more than a thousand tokens that begins like no other of this name.
fn prompt(name: &str) -> String {
    format!("{name}: {}", "the old road to the sea ".repeat(200))
}

/// A completion of a long prompt, with an answer of 4 tokens.
fn ask(name: &str, fields: Value) -> Call {
    let mut document = json!({"model": MODEL, "prompt": prompt(name), "max_tokens": 4});
    if let (Some(document), Value::Object(fields)) = (document.as_object_mut(), fields) {
        document.extend(fields);
    }
    Call::post("/v1/completions", &document)
}

/// Whether prefill and decode request are under way at once.
fn is_concurrent(connector: Connector) -> bool {
    matches!(connector, Connector::Mooncake | Connector::Sglang)
}

/// Whether a decode engine serves requests without KV from elsewhere.
fn decodes_alone(connector: Connector) -> bool {
    matches!(connector, Connector::Nixl | Connector::Mooncake)
}

/// How many requests each engine had seen at some moment.
struct Moment(BTreeMap<String, usize>);

impl Moment {
    fn now(stack: &Stack<'_>) -> Self {
        let seen = |it: &StackEngine| (it.name.clone(), it.engine.log().len());
        Self(stack.engines.iter().map(seen).collect())
    }

    /// What engines of a pool have seen since.
    fn seen<'s>(&self, stack: &'s Stack<'_>, pool: &'s str) -> Vec<(&'s StackEngine, Seen)> {
        let since = |it: &'s StackEngine| {
            let before = self.0.get(&it.name).copied().unwrap_or_default();
            let log = it.engine.log().into_iter().skip(before);
            log.map(move |seen| (it, seen))
        };
        stack.pool(pool).flat_map(since).collect()
    }

    /// The same of the engines that compute prompts.
    fn prefills<'s>(&self, stack: &'s Stack<'_>) -> Vec<(&'s StackEngine, Seen)> {
        self.seen(stack, "llama-prefill")
    }

    /// The same of those that generate.
    fn decodes<'s>(&self, stack: &'s Stack<'_>) -> Vec<(&'s StackEngine, Seen)> {
        self.seen(stack, "llama")
    }

    /// Since then there was one request, and the engines agree that its KV went from one to the other.
    /// Both sides' records.
    async fn handed_over(&self, stack: &Stack<'_>) -> anyhow::Result<(Seen, Seen)> {
        // The prefill engine may still be writing its answer.
        let (gave, took) = eventually("one prefill and one decode", async || {
            let (prefills, decodes) = (self.prefills(stack), self.decodes(stack));
            let ended = |seen: &Seen| seen.status.is_some() || seen.left;
            let all_ended = prefills.iter().chain(&decodes).all(|(_, seen)| ended(seen));
            match (prefills.as_slice(), decodes.as_slice()) {
                ([gave], [took]) if all_ended => Ok(Some((gave.clone(), took.clone()))),
                (gave, took) if gave.len() > 1 || took.len() > 1 => {
                    let kv = |(it, seen): &(&StackEngine, Seen)| (it.name.clone(), seen.kv.clone());
                    let told: Vec<_> = gave.iter().chain(took).map(kv).collect();
                    bail!("more than one prefill and one decode: {told:?}")
                }
                _ => Ok(None),
            }
        })
        .await?;
        no_complaints(stack)?;
        let ((source, gave), (_, took)) = (gave, took);
        ensure!(gave.kv.part == Some(Role::Prefill), "{:?}", gave.kv);
        ensure!(took.kv.part == Some(Role::Decode), "{:?}", took.kv);
        ensure!(
            took.kv.source.as_ref() == Some(&source.name),
            "KV from {:?} instead of {}",
            took.kv.source,
            source.name
        );
        let tokens = gave.kv.tokens;
        ensure!(
            tokens > 0 && tokens == took.kv.tokens,
            "{:?} {:?}",
            gave.kv,
            took.kv
        );
        Ok((gave, took))
    }

    /// Since then there was one request, and a decode engine did all of it.
    fn done_alone(&self, stack: &Stack<'_>) -> anyhow::Result<Seen> {
        no_complaints(stack)?;
        let (prefills, mut decodes) = (self.prefills(stack), self.decodes(stack));
        let computed = prefills.iter().find(|(_, seen)| seen.kv.part.is_some());
        ensure!(
            computed.is_none(),
            "a prefill: {:?}",
            computed.map(|it| &it.1.kv)
        );
        ensure!(decodes.len() == 1, "{} decode requests", decodes.len());
        let (_, took) = decodes.pop().context("no decode")?;
        ensure!(took.kv.part.is_none(), "{:?}", took.kv);
        Ok(took)
    }
}

/// No engine has found anything wrong, and none is down.
fn no_complaints(stack: &Stack<'_>) -> anyhow::Result<()> {
    for it in &stack.engines {
        let errors = it.engine.kv_errors();
        ensure!(errors.is_empty(), "{}: {errors:?}", it.name);
        ensure!(!it.engine.has_crashed(), "{} has crashed", it.name);
    }
    Ok(())
}

/// The answer is whole: as many tokens as the client wanted.
fn is_whole(reply: &Reply, tokens: u64) -> anyhow::Result<()> {
    let document = reply.json()?;
    let given = document.pointer("/usage/completion_tokens");
    ensure!(
        given.and_then(Value::as_u64) == Some(tokens),
        "{given:?} tokens instead of {tokens}: {document}"
    );
    Ok(())
}

/// The body that an engine got.
fn body_of(seen: &Seen) -> anyhow::Result<&str> {
    let body = seen.body.as_ref().context("no body was kept")?;
    Ok(std::str::from_utf8(body)?)
}

/// A member of an object in its text.
struct Member {
    /// Its name, whatever its spelling.
    name: String,
    /// From the quote before its name to the end of its value.
    at: Range<usize>,
}

/// The members of the object that a text is, in order, twins included.
fn members(text: &str) -> anyhow::Result<Vec<Member>> {
    let mut members = Vec::new();
    let open = text.find('{').context("no object")?;
    let mut rest = text.get(open + 1..).unwrap_or_default().trim_start();
    while !rest.starts_with('}') {
        let start = text.len() - rest.len();
        let mut names = Deserializer::from_str(rest).into_iter::<String>();
        let name = names.next().context("no name")??;
        let after = rest.get(names.byte_offset()..).unwrap_or_default();
        let value = after.trim_start().strip_prefix(':').context("no colon")?;
        let mut values = Deserializer::from_str(value).into_iter::<IgnoredAny>();
        values.next().context("no value")??;
        let after = value.get(values.byte_offset()..).unwrap_or_default();
        let at = start..text.len() - after.len();
        members.push(Member { name, at });
        let next = after.trim_start();
        rest = next.strip_prefix(',').unwrap_or(next).trim_start();
    }
    Ok(members)
}
