//! Values that two Envoys, two releases and two processors must agree on, computed by the core and
//! held against `fixed.txt`. A change of that file is a breaking change of the format.

use std::fmt::Write;
use warmpath_core::router::Router;
use warmpath_core::scan::{Api, Prompt, RequestScan, ScanPlan};
use warmpath_core::store::MemoryStore;
use warmpath_core::{Config, Exchange, Head, Step, hash};

const BODY: &str = r#"{"messages": [{"role": "system", "content": "You are \"terse\".\n"},
    {"role": "user", "content": [{"type": "text", "text": "caf\u00e9 PADDING"}]}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"n": 1.50}}}],
    "model": "llama-3-8b", "session_params": {"session_id": "s-1"}, "stream": true}"#;

fn body() -> String {
    BODY.replace("PADDING", &"the quick brown fox ".repeat(100))
}

fn scan(text: &str) -> RequestScan {
    let plan = ScanPlan::new(&["/session_params/session_id".to_owned()], true).expect("pointers");
    let mut scan = RequestScan::new(Api::ChatCompletions);
    for slice in text.as_bytes().chunks(333) {
        scan.feed(&plan, slice).expect("valid JSON");
    }
    scan.finish().expect("complete JSON");
    scan
}

fn prompt_lines(out: &mut String, prompt: &Prompt) {
    writeln!(out, "prompt bytes {}", prompt.bytes()).expect("text");
    writeln!(out, "conversation {:016x}", prompt.conversation(7)).expect("text");
    for link in prompt.chain(7) {
        writeln!(out, "link {:016x} {}", link.hash, link.end).expect("text");
    }
}

fn decisions(out: &mut String, policy: &str) {
    let list: Vec<String> = (1..=5)
        .map(|n| format!(r#"{{"address": "10.0.0.{n}:8000"}}"#))
        .collect();
    let json = format!(
        r#"{{"pools": [{{"name": "p", "models": ["llama-3-8b"], "policy": {policy},
            "endpoints": {{"static": [{}]}}}}]}}"#,
        list.join(",")
    );
    let config = Config::parse(json.as_bytes()).expect("a valid config");
    let mut router = Router::new(config, MemoryStore::new(), 1_000_000);
    for n in 0..6_u64 {
        let session = format!("user-{n}");
        let headers = vec![
            (":method".to_owned(), b"POST".to_vec()),
            (":path".to_owned(), b"/v1/chat/completions".to_vec()),
            ("x-session-id".to_owned(), session.into_bytes()),
        ];
        let now_us = 2_000_000 + n * 1000;
        let mut exchange = Exchange::default();
        let head = Head {
            headers: &headers,
            end_of_stream: false,
        };
        exchange.on_headers(&mut router, head, now_us);
        match exchange.on_body(&mut router, body().as_bytes(), true, now_us) {
            Step::Route(decision) => {
                let to = router.destination(&decision);
                writeln!(out, "{policy} {n}: {} {to}", decision.reason.name()).expect("text");
            }
            other => writeln!(out, "{policy} {n}: {other:?}").expect("text"),
        }
    }
}

/// The vectors as this build computes them.
pub fn computed() -> String {
    let mut out = String::new();
    for text in ["", "a", "warmpath", &"x".repeat(512)] {
        writeln!(
            out,
            "hash {:016x} of {} bytes",
            hash::hash(text.as_bytes()),
            text.len()
        )
        .expect("text");
    }
    writeln!(out, "mix {:016x}", hash::mix(1, u64::MAX)).expect("text");
    writeln!(out, "chain {:016x}", hash::chain(1, u64::MAX)).expect("text");
    let scan = scan(&body());
    writeln!(out, "model {:?} at {:?}", scan.model(), scan.model_span()).expect("text");
    writeln!(
        out,
        "session {:?} stream {}",
        scan.pointer(0),
        scan.stream()
    )
    .expect("text");
    prompt_lines(&mut out, scan.prompt());
    for policy in [
        r#""round_robin""#,
        r#""least_request""#,
        r#""lowest_qps""#,
        r#""random""#,
        r#""power_of_two""#,
        r#""consistent_hash""#,
        r#""prefix""#,
        r#"{"prefix": {"home_affinity": 0.9}}"#,
        r#""cache_aware""#,
    ] {
        decisions(&mut out, policy);
    }
    out
}

/// The vectors as they were fixed.
pub const FIXED: &str = include_str!("fixed.txt");
