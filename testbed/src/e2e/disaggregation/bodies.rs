//! What the filter writes into a body, and that it changes nothing else in it.

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use serde_json::json;

use super::super::client::Call;
use super::super::harness::{Context, Stack};
use super::super::raw::{Framing, Pieces};
use super::super::{Case, named};
use super::{ALL, Moment, ask, body_of, members, prompt, spec};
use crate::engine::Connector;

pub(super) fn cases() -> Vec<Case> {
    named!("disaggregation":
        every_other_byte_of_a_body_survives,
        a_body_of_a_megabyte_is_handed_over,
        a_body_in_pieces_is_handed_over,
    )
}

/// Fields that the filter adds for a connector; all else is the client's.
fn added(connector: Connector) -> &'static [&'static str] {
    match connector {
        Connector::Nixl | Connector::Mooncake => &["kv_transfer_params"],
        Connector::P2pNccl => &[],
        Connector::Sglang => &["bootstrap_host", "bootstrap_port", "bootstrap_room"],
    }
}

/// A body without one of its top-level members, and without the comma that came with it. The rest is
/// left as it is.
fn without(body: &str, field: &str) -> anyhow::Result<String> {
    let members = members(body)?;
    let member = members.iter().find(|member| member.name == field);
    let at = &member.with_context(|| format!("no {field}: {body}"))?.at;
    let (head, tail) = (&body[..at.start], &body[at.end..]);
    // What is added brings its comma along and nothing else.
    Ok(match (head.strip_suffix(','), tail.strip_prefix(',')) {
        (Some(head), _) => format!("{head}{tail}"),
        (None, Some(tail)) => format!("{head}{tail}"),
        (None, None) => format!("{head}{tail}"),
    })
}

/// Bodies that a parser which writes JSON anew would change: spaces, the order of keys, escapes, twins,
/// and numbers that have other spellings.
fn odd_bodies() -> Vec<String> {
    let text = prompt("odd");
    let odd = r#""odd":{"z":1.0,"a":1e2,"n":-0.0,"i":12345678901234567890,"s":"\u00e9\/\ud83d\ude00","e":1E+3,"d":0.10}"#;
    vec![
        format!(r#"{{"max_tokens":4,{odd},"prompt":"{text}","model":"llama-3-8b"}}"#),
        format!(
            "  {{ \"model\" :\t\"llama-3-8b\" ,\r\n\"prompt\": \"{text}\",\n {odd} , \"max_tokens\" : 4 }}\n"
        ),
        format!(
            r#"{{"vendor":null,"vendor":[{{}}, [ ],""],"model":"llama-3-8b","temperature":0.70,{odd},"stream":false,"prompt":"{text}","max_tokens":4,"seed":9007199254740993}}"#
        ),
        // No limit at all: one is added for the prefill, and for it alone.
        format!(r#"{{"model":"llama-3-8b","prompt":"{text}",{odd}}}"#),
        format!(
            r#"{{"nested":{{"kv_transfer_params":{{"x":1}},"bootstrap_room":[7]}},"model":"llama-3-8b","prompt":"{text}","max_tokens":4,{odd}}}"#
        ),
    ]
}

async fn every_other_byte_of_a_body_survives(context: &Context) -> anyhow::Result<()> {
    for connector in ALL {
        let stack = Stack::start(context, spec(connector)).await?;
        for body in odd_bodies() {
            let call = Call::post("/v1/completions", &json!({})).body(body.clone());
            let moment = Moment::now(&stack);
            stack.send(call).await?.expect_status(200)?;
            let (gave, took) = moment.handed_over(&stack).await?;
            let mut decoded = body_of(&took)?.to_owned();
            for field in added(connector) {
                decoded = without(&decoded, field)?;
            }
            ensure!(
                decoded == body,
                "{connector:?}: decode got\n{decoded}\nfor\n{body}"
            );
            // The prefill's limits are others; the rest of it is the same text.
            let prefill = body_of(&gave)?;
            let odd = body.split_once(r#""odd":"#).context("no odd part")?.1;
            let odd = odd.split_once('}').context("no odd part")?.0;
            ensure!(
                prefill.contains(odd),
                "{connector:?}: prefill got\n{prefill}"
            );
            if connector == Connector::Sglang {
                let mut prefill = prefill.to_owned();
                for field in added(connector) {
                    prefill = without(&prefill, field)?;
                }
                ensure!(prefill == body, "prefill got\n{prefill}\nfor\n{body}");
            }
        }
    }
    Ok(())
}

async fn a_body_of_a_megabyte_is_handed_over(context: &Context) -> anyhow::Result<()> {
    for connector in ALL {
        let stack = Stack::start(context, spec(connector).with_room()).await?;
        let text = "a prompt that is very long indeed ".repeat(32_000);
        let call = ask("", json!({"prompt": text}));
        ensure!(call.body.len() > 1 << 20);
        let moment = Moment::now(&stack);
        stack.send(call).await?.expect_status(200)?;
        let (gave, _) = moment.handed_over(&stack).await?;
        ensure!(gave.kv.tokens as usize == text.len() / 4, "{:?}", gave.kv);
    }
    Ok(())
}

async fn a_body_in_pieces_is_handed_over(context: &Context) -> anyhow::Result<()> {
    for connector in [Connector::Nixl, Connector::Sglang] {
        let stack = Stack::start(context, spec(connector)).await?;
        for framing in [Framing::Length, Framing::Chunked] {
            let call = ask("in pieces", json!({"n": 1}));
            let whole: Bytes = call.body.clone();
            let moment = Moment::now(&stack);
            let reply = stack
                .send_in_pieces(call, &Pieces::of(997, whole.len(), framing))
                .await?;
            reply.expect_status(200)?;
            let (_, took) = moment.handed_over(&stack).await?;
            let mut decoded = body_of(&took)?.to_owned();
            for field in added(connector) {
                decoded = without(&decoded, field)?;
            }
            ensure!(
                decoded.as_bytes() == whole,
                "{connector:?} {framing:?}: {decoded}"
            );
        }
    }
    Ok(())
}
