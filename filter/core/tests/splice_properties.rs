//! Properties of body changes: what is spoken of is changed however it is written, and nothing else is.
#![cfg(not(target_arch = "wasm32"))]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

#[allow(dead_code, reason = "the fuzz target's part")]
mod body_changes;

use body_changes::{changes, check};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// Keys that changes speak of, and others.
const KEYS: [&str; 11] = [
    "kv_transfer_params",
    "vllm_xargs",
    "max_tokens",
    "max_completion_tokens",
    "stream",
    "a",
    "b",
    "c",
    "",
    "messages",
    "kv_transfer_params ",
];

/// Values whose text a parser would not write again as it was.
const SCALARS: [&str; 12] = [
    "1",
    "1.0",
    "-0.0",
    "1E5",
    "12345678901234567890",
    "true",
    "null",
    "\"\"",
    "\"}{,:\\\"\"",
    "\"\\u00e9\\ud83d\\ude00\"",
    "\"kv_transfer_params\"",
    "0.1e-7",
];

const SPACES: [&str; 5] = ["", " ", "\n", "\t  ", "\r\n "];

/// A key as JSON, some of its characters escaped.
fn key() -> impl Strategy<Value = String> {
    (select(&KEYS[..]), any::<u32>()).prop_map(|(key, escaped)| {
        let mut out = String::from("\"");
        for (at, char) in key.chars().enumerate() {
            match escaped >> (at % 32) & 1 == 1 && escaped & 7 == 0 {
                true => out.push_str(&format!("\\u{:04x}", u32::from(char))),
                false => out.push(char),
            }
        }
        out.push('"');
        out
    })
}

fn space() -> impl Strategy<Value = &'static str> {
    select(&SPACES[..])
}

fn object(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let member = (space(), key(), space(), space(), value, space());
    let member = member.prop_map(|(a, key, b, c, value, d)| format!("{a}{key}{b}:{c}{value}{d}"));
    (vec(member, 0..6), space()).prop_map(|(members, space)| match members.is_empty() {
        true => format!("{{{space}}}"),
        false => format!("{{{}}}", members.join(",")),
    })
}

fn value() -> impl Strategy<Value = String> {
    let leaf = select(&SCALARS[..]).prop_map(str::to_owned);
    leaf.prop_recursive(3, 24, 4, |inner| {
        let list = (vec(inner.clone(), 0..4), space());
        let list = list.prop_map(|(items, space)| format!("[{space}{}]", items.join(",")));
        prop_oneof![list, object(inner)]
    })
}

fn body() -> impl Strategy<Value = String> {
    (space(), object(value()), space()).prop_map(|(a, body, b)| format!("{a}{body}{b}"))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn only_what_is_spoken_of_changes(body in body(), byte in any::<u8>()) {
        check(body.as_bytes(), &changes(byte));
    }

    #[test]
    fn broken_bodies_do_no_harm(body in body(), cut in 0..60_usize, byte in any::<u8>()) {
        let cut = body.as_bytes().get(cut..).unwrap_or_default();
        check(cut, &changes(byte));
    }
}
