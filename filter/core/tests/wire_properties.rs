//! Properties of the wire parsers: no input panics, cuts do not matter, `serde_json` agrees.
#![cfg(not(target_arch = "wasm32"))]

#[allow(dead_code, reason = "the fuzz target's part")]
mod answer;

use answer::{check, event_stream, finding, pass, scan};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};
use warmpath_core::wire::usage::{Framing, Usage, in_tail};
use warmpath_core::wire::{clusters, endpoint_metadata, models, orca, retry_after};
use warmpath_core::wire::{kv_index, tokens};

/// Names that the parsers look for, and names that resemble them.
const NAMES: [&str; 14] = [
    "usage",
    "\"usage",
    "usage\"",
    "\\usage",
    "prompt_tokens",
    "input_tokens",
    "completion_tokens",
    "prompt_tokens_details",
    "cached_tokens",
    "cache_read_input_tokens",
    "data",
    "id",
    "parent",
    "max_model_len",
];

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        select(&NAMES[..]).prop_map(Value::from),
        Just(Value::from("\",\"usage\":{\"prompt_tokens\":7},\"")),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((select(&NAMES[..]), inner), 0..6)
                .prop_map(|members| members.into_iter().collect::<Value>()),
        ]
    })
}

fn counts() -> impl Strategy<Value = Value> {
    let count = || prop_oneof![any::<u64>().prop_map(Value::from), Just(Value::Null)];
    let details = prop_oneof![
        count().prop_map(|cached| json!({"cached_tokens": cached, "x": [1]})),
        Just(Value::Null),
    ];
    (count(), count(), details).prop_map(|(prompt, completion, details)| {
        json!({"prompt_tokens": prompt, "completion_tokens": completion,
            "prompt_tokens_details": details})
    })
}

/// A body that may have counts at its top, among others further down.
fn body() -> impl Strategy<Value = Value> {
    let member = prop_oneof![
        3 => (select(&NAMES[..]).prop_filter("decoy", |name| *name != "usage"), value()),
        1 => (select(&["message", "warm"][..]), counts().prop_map(|counts| json!([{"usage": counts}]))),
        1 => (Just("usage"), counts()),
    ];
    vec(member, 0..6).prop_map(|members| members.into_iter().collect::<Value>())
}

/// The counts of an object by way of a tree; `None` when it has none.
fn reference(usage: &Value) -> Option<Usage> {
    let usage = Usage {
        prompt_tokens: usage["prompt_tokens"].as_u64(),
        completion_tokens: usage["completion_tokens"].as_u64(),
        cached_tokens: usage
            .pointer("/prompt_tokens_details/cached_tokens")
            .and_then(Value::as_u64),
    };
    (usage != Usage::default()).then_some(usage)
}

fn pieces<'a>(bytes: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let (mut start, mut rest) = (0, bytes);
    let cut = |end: usize| {
        let (piece, tail) = rest.split_at(end - start);
        (start, rest) = (end, tail);
        piece
    };
    ends.into_iter().map(cut).collect()
}

/// Bytes made of what the parsers react to.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let token = select(
        &[
            "\"usage\"",
            ":",
            "{",
            "}",
            "[",
            "]",
            ",",
            "\"",
            "\\",
            "\n",
            "data: ",
            "prompt_tokens",
            "1",
            "\"prompt_tokens\":3",
            " ",
            "x",
            "TEXT ",
            "JSON ",
            "=",
            "GMT",
            "null",
            "1e999",
            "num_requests_waiting",
            "\"cluster_statuses\"",
            "\"host_statuses\"",
            "\"data\"",
            "\"id\"",
            "\"configs\"",
            "\"address\"",
            "\u{e9}",
        ][..],
    );
    let tokens = vec(token, 0..60).prop_map(|tokens| tokens.concat().into_bytes());
    prop_oneof![tokens, vec(any::<u8>(), 0..200)]
}

proptest! {
    #[test]
    fn nothing_panics(bytes in noise(), now_unix_s in any::<u64>()) {
        let _ = clusters::parse(&bytes);
        let _ = endpoint_metadata::parse(&bytes);
        let _ = models::parse(&bytes);
        let _ = kv_index::lmcache_overlaps(&bytes);
        let _ = kv_index::dynamo_overlaps(&bytes);
        let _ = kv_index::dynamo_workers(&bytes);
        let _ = tokens::parse(&bytes);
        let _ = orca::parse(&bytes);
        let seconds = retry_after::parse(&bytes, now_unix_s);
        prop_assert!(seconds.is_none_or(|seconds| seconds <= retry_after::MAX_SECONDS));
        let _ = in_tail(&bytes);
        let _ = scan(Framing::EventStream, &[&bytes]);
    }

    #[test]
    fn cuts_do_not_matter(
        bytes in noise(),
        before in prop_oneof![Just(0), 0..10_000_usize],
        cuts in vec(any::<Index>(), 0..8),
    ) {
        let body = [" ".repeat(before).as_bytes(), &bytes].concat();
        check(&pieces(&body, &cuts));
    }

    #[test]
    fn counts_of_a_body_are_those_of_a_tree(
        body in body(),
        pretty in any::<bool>(),
        cuts in vec(any::<Index>(), 0..8),
    ) {
        let text = match pretty {
            true => serde_json::to_string_pretty(&body).unwrap(),
            false => body.to_string(),
        };
        let expected = reference(&body["usage"]);
        prop_assert_eq!(in_tail(text.as_bytes()), expected);
        check(&pieces(text.as_bytes(), &cuts));
        prop_assert_eq!(scan(Framing::Json, &pieces(text.as_bytes(), &cuts)), expected);
    }

    #[test]
    fn counts_of_events_are_those_of_trees(
        bodies in vec((prop_oneof![counts(), Just(Value::Null)], body()), 0..5),
        crlf in any::<bool>(),
        cuts in vec(any::<Index>(), 0..8),
    ) {
        let end = if crlf { "\r\n\r\n" } else { "\n\n" };
        let mut text = String::new();
        let mut expected: Option<Usage> = None;
        for (usage, body) in &bodies {
            // One object down counts in an event, so decoys stand two down.
            let body = json!({"choices": [body], "usage": usage, "warm": [body]});
            text.push_str(&format!("event: x\ndata: {body}{end}"));
            if let Some(later) = reference(usage) {
                let earlier = expected.unwrap_or_default();
                expected = Some(Usage {
                    prompt_tokens: later.prompt_tokens.or(earlier.prompt_tokens),
                    completion_tokens: later.completion_tokens.or(earlier.completion_tokens),
                    cached_tokens: later.cached_tokens.or(earlier.cached_tokens),
                });
            }
        }
        text.push_str("data: [DONE]");
        prop_assert_eq!(scan(Framing::EventStream, &pieces(text.as_bytes(), &cuts)), expected);
    }

    #[test]
    fn the_counts_of_a_stream_are_found_whatever_is_left_out(
        words in vec(0..6000_usize, 0..4),
        counts in counts(),
        cuts in vec(any::<Index>(), 0..8),
    ) {
        let mut text = String::new();
        for word in words {
            let word = "x\\\"usage\\\":{".repeat(word / 10);
            text.push_str(&format!("data: {{\"choices\":[{{\"text\":\"{word}\"}}],\"usage\":null}}\n\n"));
        }
        let last = format!("data: {{\"choices\":[],\"usage\":{counts}}}\n\ndata: [DONE]\n\n");
        // Cut only before the last event: what is over the limit of a piece is left out.
        let mut parts = pieces(text.as_bytes(), &cuts);
        parts.push(last.as_bytes());
        let (found, _) = pass(&[event_stream()], &parts);
        prop_assert_eq!(found, finding(reference(&counts)));
    }

    #[test]
    fn models_are_those_of_a_tree(entries in vec(
        vec((select(&["id", "parent", "max_model_len", "x"][..]), value()), 0..4), 0..6)
    ) {
        let entries: Vec<Value> = entries.into_iter().map(|e| e.into_iter().collect()).collect();
        let entries: Vec<Value> = entries
            .into_iter()
            .map(|entry| if entry.is_object() { entry } else { json!({}) })
            .collect();
        let read = models::parse(json!({"data": entries}).to_string().as_bytes()).unwrap();
        let named: Vec<&Value> = entries.iter().filter(|e| e["id"].is_string()).collect();
        prop_assert_eq!(read.len(), named.len());
        for (read, entry) in read.iter().zip(named) {
            prop_assert_eq!(Some(read.id.as_str()), entry["id"].as_str());
            prop_assert_eq!(read.parent.as_deref(), entry["parent"].as_str());
            let longest = entry["max_model_len"].as_u64().and_then(|n| u32::try_from(n).ok());
            prop_assert_eq!(read.max_model_len, longest);
        }
    }

    #[test]
    fn overlaps_are_those_of_a_tree(
        told in vec(("[a-z]{0,3}", vec((any::<u16>(), value()), 0..4)), 0..6)
    ) {
        let scores: std::collections::BTreeMap<&String, std::collections::BTreeMap<String, &Value>> =
            told.iter().map(|(name, ranks)| {
                let ranks = ranks.iter().map(|(rank, value)| (rank.to_string(), value));
                (name, ranks.collect())
            }).collect();
        let read = kv_index::dynamo_overlaps(json!({"scores": scores}).to_string().as_bytes());
        let mut read: Vec<_> = read.unwrap().into_iter()
            .map(|it| (it.instance, it.rank.unwrap(), it.tokens)).collect();
        read.sort();
        let mut expected: Vec<_> = scores.iter().filter(|(name, _)| !name.is_empty())
            .flat_map(|(name, ranks)| ranks.iter().filter_map(|(rank, value)| {
                Some(((*name).clone(), rank.parse().unwrap(), value.as_u64()?))
            })).collect();
        expected.sort();
        prop_assert_eq!(read, expected);
        let layout: serde_json::Map<String, Value> = told.iter().map(|(name, ranks)| {
            let info: Vec<&Value> = ranks.iter().map(|(_, value)| value).collect();
            (name.clone(), json!(info))
        }).collect();
        let read = kv_index::lmcache_overlaps(json!({"layout_info": layout}).to_string().as_bytes());
        let expected: Vec<_> = layout.iter().filter(|(name, _)| !name.is_empty())
            .filter_map(|(name, info)| Some((name.clone(), info.get(1)?.as_u64()?))).collect();
        let read: Vec<_> = read.unwrap().into_iter().map(|it| (it.instance, it.tokens)).collect();
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn clusters_are_those_of_a_tree(hosts in vec((any::<[u8; 4]>(), any::<u16>(),
        any::<Option<u32>>(), vec(any::<bool>(), 3), any::<u64>()), 0..20)
    ) {
        let statuses: Vec<Value> = hosts.iter().map(|(ip, port, weight, flags, active)| json!({
            "address": {"socket_address": {
                "address": std::net::Ipv4Addr::from(*ip).to_string(), "port_value": port}},
            "stats": [{"name": "rq_total", "value": "9"},
                {"type": "GAUGE", "name": "rq_active", "value": active.to_string()}],
            "health_status": {"failed_active_health_check": flags[0],
                "failed_outlier_check": flags[1], "pending_dynamic_removal": flags[2]},
            "weight": weight,
        })).collect();
        let answer = json!({"cluster_statuses": [{"name": "a", "host_statuses": statuses}]});
        let text = serde_json::to_string_pretty(&answer).unwrap();
        let read = clusters::parse(text.as_bytes()).unwrap();
        prop_assert_eq!(read[0].hosts.len(), hosts.len());
        for (read, (ip, port, weight, flags, active)) in read[0].hosts.iter().zip(hosts) {
            prop_assert_eq!(read.address, (ip, port).into());
            prop_assert_eq!(read.weight, weight.unwrap_or(1));
            prop_assert_eq!(read.rq_active, active);
            let health = [read.health.failed_active_health_check,
                read.health.failed_outlier_check, read.health.pending_dynamic_removal];
            prop_assert_eq!(health.as_slice(), flags.as_slice());
        }
    }

    #[test]
    fn a_cut_or_changed_page_does_not_panic(cut in any::<Index>(), at in any::<Index>(),
        byte in any::<u8>()
    ) {
        for page in [&include_bytes!("fixtures/envoy/clusters.json")[..],
            include_bytes!("fixtures/envoy/endpoint_dump.json")] {
            let mut page = page.to_vec();
            let at = at.index(page.len());
            page[at] = byte;
            page.truncate(cut.index(page.len() * 2).min(page.len()));
            let _ = clusters::parse(&page);
            let _ = endpoint_metadata::parse(&page);
        }
    }
}
