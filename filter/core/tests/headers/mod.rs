//! What must hold for a request with any headers, and for any headers of its answer: they are read
//! alike by a plain second reading, steer nothing that is not theirs, and leave nothing counted.
//! Property tests and the fuzz target call it.

use serde_json::json;
use std::sync::LazyLock;
use warmpath_core::admission::Priority;
use warmpath_core::router::{Outcome, Response, Router};
use warmpath_core::scan::Api;
use warmpath_core::session::{self, Key, KeySource};
use warmpath_core::status::Question;
use warmpath_core::store::MemoryStore;
use warmpath_core::wire::orca;
use warmpath_core::{Config, Exchange, Head, Step, hash};

type Headers = Vec<(String, Vec<u8>)>;

/// Names that the core reads in requests, and one that it does not.
const REQUEST: [&str; 10] = [
    ":path",
    ":method",
    "cookie",
    "x-session-id",
    "x-warmpath-pool",
    "x-warmpath-priority",
    "content-encoding",
    "endpoint-load-metrics-format",
    "x-gateway-destination-endpoint",
    "authorization",
];

/// Names that it reads in answers, and one that it does not.
const ANSWER: [&str; 5] = [
    "content-type",
    "content-length",
    "content-encoding",
    "endpoint-load-metrics",
    "server",
];

const COOKIE: &str = "sid";
const NOW_US: u64 = 1_790_000_000_000_000;

/// The configuration with one pool, and that with two.
fn config(one_pool: bool) -> Config {
    static CONFIGS: LazyLock<[Config; 2]> = LazyLock::new(|| [false, true].map(parsed));
    CONFIGS[usize::from(one_pool)].clone()
}

/// Pools of each kind that headers matter to; with `one_pool` the decision may be made on them alone.
fn parsed(one_pool: bool) -> Config {
    let engines = json!({"static": [{"address": "10.0.0.1:80"}, {"address": "10.0.0.2:80"}]});
    let hashed = json!({
        "name": "p", "endpoints": engines, "policy": "consistent_hash",
        "admission": {"max_requests": 1},
    });
    let prefix = json!({
        "name": "q", "models": ["m"], "endpoints": engines, "policy": "prefix",
    });
    let config = json!({
        "pools": if one_pool { json!([hashed]) } else { json!([hashed, prefix]) },
        "default_pool": "p",
        "session_key": [{"header": "x-session-id"}, {"cookie": COOKIE}, {"body": "/user"}],
        "feedback": {"orca": true},
        "limits": {"prefix_table_bytes": 65536},
    });
    Config::parse(config.to_string().as_bytes()).expect("a valid config")
}

/// An input of the fuzzer: a byte of choices, then headers as a name by number, the length of the value
/// and the value. Those of the request come first; number 15 begins those of the answer.
pub fn check(input: &[u8]) {
    let Some((choices, mut rest)) = input.split_first() else {
        return;
    };
    let (mut request, mut answer) = (Headers::new(), Headers::new());
    let mut is_answer = false;
    while let Some(([name, length], after)) = rest.split_first_chunk() {
        let (value, after) = after.split_at(after.len().min(usize::from(*length)));
        rest = after;
        let name = usize::from(name % 16);
        match is_answer {
            _ if name == 15 => is_answer = true,
            true => answer.push((ANSWER[name % ANSWER.len()].to_owned(), value.to_vec())),
            false => request.push((REQUEST[name % REQUEST.len()].to_owned(), value.to_vec())),
        }
    }
    if choices & 1 == 0 {
        // Most requests are of interest only as these.
        request.insert(0, (":method".to_owned(), b"POST".to_vec()));
        request.insert(0, (":path".to_owned(), b"/v1/chat/completions".to_vec()));
    }
    words(&request);
    let config = config(choices & 2 != 0);
    exchange(config, &request, &answer, choices & 4 != 0);
    for (_, value) in &answer {
        if let Some(load) = orca::parse(value) {
            assert!(load.kv_usage.is_none_or(|part| (0.0..=1.0).contains(&part)));
            assert_ne!(load, orca::OrcaLoad::default());
        }
    }
}

/// The values of one name.
fn values<'a>(headers: &'a Headers, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let named = headers.iter().filter(move |(key, _)| key == name);
    named.map(|(_, value)| value.as_slice())
}

/// The cookie, read byte by byte: the first pair of this name whose value is not empty.
fn cookie(headers: &Headers) -> Option<Vec<u8>> {
    let space = |byte: &u8| byte.is_ascii_whitespace();
    for line in values(headers, "cookie") {
        for pair in line.split(|byte| *byte == b';') {
            let start = pair.iter().take_while(|byte| space(byte)).count();
            let end = pair.len() - pair.iter().rev().take_while(|byte| space(byte)).count();
            let pair = pair.get(start..end).unwrap_or_default();
            let Some(at) = pair.iter().position(|byte| *byte == b'=') else {
                continue;
            };
            let (name, mut value) = (&pair[..at], &pair[at + 1..]);
            while let [b'\t' | b'\n' | b'\x0c' | b'\r' | b' ', rest @ ..] = value {
                value = rest;
            }
            if let [b'"', inside @ .., b'"'] = value {
                value = inside;
            }
            if name == COOKIE.as_bytes() && !value.is_empty() {
                return Some(value.to_vec());
            }
        }
    }
    None
}

/// What single headers say.
fn words(headers: &Headers) {
    let sources = [
        KeySource::Header("x-session-id".to_owned()),
        KeySource::Cookie(COOKIE.to_owned()),
    ];
    let in_header = values(headers, "x-session-id").find(|value| !value.is_empty());
    let want = in_header.map(<[u8]>::to_vec).or_else(|| cookie(headers));
    let want = want.map_or(Key::Absent, |key| Key::Found(hash::hash(&key)));
    let key = session::from_headers(&sources, headers);
    assert_eq!(key.with_body(None, true), want);

    let joined: Vec<String> = values(headers, "x-warmpath-priority")
        .map(|value| String::from_utf8_lossy(value).to_ascii_lowercase())
        .collect();
    let joined = joined.join(",");
    let space = |c: char| c.is_ascii_whitespace();
    let is_low = joined
        .split(',')
        .any(|word| word.trim_matches(space) == "low");
    let priority = Priority::of(headers, "x-warmpath-priority");
    assert_eq!(priority == Priority::Low, is_low);

    for path in values(headers, ":path") {
        let end = path.iter().position(|byte| b"?#".contains(byte));
        let plain = &path[..end.unwrap_or(path.len())];
        let api = Api::from_path(path);
        assert_eq!(api, Api::from_path(plain));
        if api.is_some() {
            assert_eq!(Api::from_path(&[b"/any/mount", path].concat()), api);
        }
        for method in [&b"GET"[..], b"POST", path] {
            let question = Question::read(method, path, "/warmpath/");
            if let Question::Answered(reply) = question {
                assert!([308, 400, 404, 405].contains(&reply.status));
            }
        }
    }
}

/// A request with these headers, from its beginning to its end.
fn exchange(config: Config, request: &Headers, answer: &Headers, end_of_stream: bool) {
    let mut router = Router::new(config, MemoryStore::new(), NOW_US);
    let mut exchange = Exchange::default();
    let head = Head {
        headers: request,
        end_of_stream,
    };
    let mut step = exchange.on_headers(&mut router, head, NOW_US);
    if step == Step::Hold {
        let body = br#"{"model":"m","user":"u","messages":[{"role":"user","content":"hello"}]}"#;
        step = exchange.on_body(&mut router, body, true, NOW_US);
    }
    match step {
        Step::Route(decision) => {
            assert_eq!(decision.ranked.len(), 2);
            let destination = router.destination(&decision);
            let engines = ["10.0.0.1:80", "10.0.0.2:80"];
            assert!(destination.split(',').all(|one| engines.contains(&one)));
        }
        Step::Pass { pool, .. } => assert!(router.config().pools.len() > pool.unwrap_or(0)),
        Step::Answer(answer) => assert!([200, 400, 404].contains(&answer.status)),
        Step::Hold | Step::Call(_) => panic!("held after its end"),
    }
    // Whoever claims to have answered.
    let addresses = answer.iter().map(|(_, value)| value.as_slice());
    for address in addresses.chain([&b"10.0.0.2:80"[..]]) {
        let response = Response {
            status: 200,
            address,
            by_engine: true,
            retry_after_s: None,
        };
        exchange.responded(&mut router, response, NOW_US + 1);
    }
    let told = exchange.on_answer_headers(&mut router, 200, answer, NOW_US + 1);
    if values(request, "endpoint-load-metrics-format").any(|value| !value.is_empty()) {
        assert!(!told.is_ours, "the client asked for it");
    }
    exchange.first_token(&mut router, NOW_US + 2);
    let _found = exchange.reported(&mut router, true);
    exchange.end(
        &mut router,
        Outcome::Served { output_tokens: 1 },
        NOW_US + 3,
    );
    for position in 0..2 {
        assert_eq!(router.load(position).in_flight, 0);
        assert_eq!(router.queued_tokens(position), 0);
    }
}
