//! Input that is made to hurt: what it may cost in memory and in calls of the host, counted. No clock has
//! a part in it; that every byte is looked at a bounded number of times is how the scan is built, and
//! what the fuzzer's time limit watches.
#![cfg(not(target_arch = "wasm32"))]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a panic is a failed test"
)]

use peak_alloc::PeakAlloc;
use serde_json::json;
use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};
use warmpath_core::hash::hash;
use warmpath_core::router::{Outcome, Router};
use warmpath_core::scan::{
    Api, CHUNK_BYTES, Field, Link, MAX_DEPTH, MAX_VALUE_BYTES, RequestScan, ScanError, ScanPlan,
};
use warmpath_core::session::{self, Key, KeySource};
use warmpath_core::store::{MemoryStore, Store, Versioned};
use warmpath_core::{Config, Exchange, Head, Step};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const KB: usize = 1024;
const MB: usize = 1024 * KB;

/// Memory is counted for the whole process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `run` returns, the most memory it had at a time, and what it keeps.
fn counted<T>(run: impl FnOnce() -> T) -> (T, usize, usize) {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let result = run();
    let most = MEMORY.peak_usage().saturating_sub(before);
    (result, most, MEMORY.current_usage().saturating_sub(before))
}

/// A body that says the same many times.
struct Body<'a> {
    api: Api,
    before: &'a str,
    unit: &'a [u8],
    times: usize,
    after: &'a str,
}

impl Body<'_> {
    fn of<'a>(api: Api, before: &'a str, unit: &'a str, after: &'a str) -> Body<'a> {
        Body {
            api,
            before,
            unit: unit.as_bytes(),
            times: 0,
            after,
        }
    }

    fn bytes(&self) -> usize {
        self.before.len() + self.unit.len() * self.times + self.after.len()
    }

    /// Scans it as it would arrive, about 16 KB at a time.
    fn scan(&self) -> Scanned {
        let plan = plan();
        let together = (16 * KB / self.unit.len()).max(1);
        let piece = self.unit.repeat(together);
        let (full, rest) = (self.times / together, self.times % together);
        let ((scan, result), most_bytes, kept_bytes) = counted(|| {
            let mut scan = RequestScan::new(self.api);
            let mut result = scan.feed(&plan, self.before.as_bytes());
            for _ in 0..full {
                result = result.and_then(|()| scan.feed(&plan, &piece));
            }
            let rest = &piece[..rest * self.unit.len()];
            result = result.and_then(|()| scan.feed(&plan, rest));
            result = result.and_then(|()| scan.feed(&plan, self.after.as_bytes()));
            (scan.clone(), result.and_then(|()| scan.finish()))
        });
        Scanned {
            scan,
            result,
            most_bytes,
            kept_bytes,
        }
    }
}

struct Scanned {
    scan: RequestScan,
    result: Result<(), ScanError>,
    most_bytes: usize,
    kept_bytes: usize,
}

fn plan() -> ScanPlan {
    let pointers = ["/user", "/metadata/user_id"].map(str::to_owned);
    ScanPlan::new(&pointers, true).expect("a plan")
}

fn scan(api: Api, body: &[u8]) -> RequestScan {
    let mut scan = RequestScan::new(api);
    scan.feed(&plan(), body).expect("JSON");
    scan.finish().expect("JSON");
    scan
}

fn links(scan: &RequestScan) -> Vec<Link> {
    scan.prompt().chain(7).collect()
}

/// Beside the chunk hashes: the values kept, a chunk, and what a test allocates itself.
const FIXED_BYTES: usize = 32 * KB;

#[test]
fn no_body_makes_a_scan_keep_more_than_the_hashes_of_its_prompt() {
    let _alone = alone();
    let chat = Api::ChatCompletions;
    let message = r#"{"role":"user","content":"a"},"#;
    let deep = format!("{}{},", "[".repeat(120), "]".repeat(120));
    let long_key = format!(r#""{}":1,"#, "k".repeat(MB));
    let shapes = [
        (
            "tiny messages",
            Body::of(chat, r#"{"messages":["#, message, "{}]}"),
        ),
        (
            "tools",
            Body::of(
                chat,
                r#"{"tools":["#,
                r#"{"function":{"name":"f"}},"#,
                "0]}",
            ),
        ),
        (
            "ids",
            Body::of(Api::Completions, r#"{"prompt":["#, "0,", "0]}"),
        ),
        (
            "ids in lists",
            Body::of(Api::Completions, r#"{"prompt":["#, "[7],", "[7]]}"),
        ),
        (
            "empty texts",
            Body::of(Api::Embeddings, r#"{"input":["#, r#""","#, r#"""]}"#),
        ),
        (
            "empty contents",
            Body::of(chat, r#"{"messages":[{"#, r#""content":"","#, r#""":0}]}"#),
        ),
        (
            "deep lists",
            Body::of(chat, r#"{"messages":["#, &deep, "0]}"),
        ),
        (
            "media",
            Body::of(chat, r#"{"messages":[{"url":"data:"#, "QUJD", r#""}]}"#),
        ),
        (
            "escapes",
            Body::of(Api::Messages, r#"{"system":""#, r"\u0000", r#""}"#),
        ),
        (
            "halves of pairs",
            Body::of(Api::Messages, r#"{"system":""#, r"\udc00\ud800", r#""}"#),
        ),
        (
            "digits",
            Body::of(Api::Completions, r#"{"prompt":["#, "9", "]}"),
        ),
        (
            "a fraction",
            Body::of(chat, r#"{"max_tokens":0."#, "3", "}"),
        ),
        ("keys", Body::of(chat, "{", r#""a":1,"#, r#""b":2}"#)),
        ("long keys", Body::of(chat, "{", &long_key, r#""b":2}"#)),
        (
            "a long key in a prompt",
            Body::of(chat, r#"{"messages":[{""#, "k", r#"":1}]}"#),
        ),
        (
            "a long role",
            Body::of(chat, r#"{"messages":[{"role":""#, "user", r#""}]}"#),
        ),
        (
            "a long salt",
            Body::of(chat, r#"{"cache_salt":""#, "salt", r#""}"#),
        ),
        (
            "a long session key",
            Body::of(chat, r#"{"metadata":{"user_id":""#, "id", r#""}}"#),
        ),
        (
            "one key again",
            Body::of(
                chat,
                "{",
                r#""user":"u","metadata":{"user_id":1},"#,
                r#""user":"v"}"#,
            ),
        ),
        (
            "one section again",
            Body::of(
                chat,
                "{",
                r#""messages":[{"content":"a"}],"#,
                r#""tools":[]}"#,
            ),
        ),
        (
            "models",
            Body::of(chat, "{", r#""model":"m","#, r#""model":"n"}"#),
        ),
        ("spaces", Body::of(chat, "{", " \n\t\r", "}")),
    ];
    for (name, shape) in shapes {
        for bytes in [MB, 4 * MB] {
            let times = bytes / shape.unit.len();
            let body = Body { times, ..shape };
            let scanned = body.scan();
            assert_eq!(scanned.result, Ok(()), "{name}");
            assert_eq!(scanned.scan.scanned(), body.bytes(), "{name}");
            let prompt_bytes = scanned.scan.prompt().bytes();
            assert!(prompt_bytes <= 3 * body.bytes(), "{name}: {prompt_bytes}");
            // While the list of hashes grows the old and the new one are there, then a copy of it.
            let hashes = 8 * prompt_bytes / CHUNK_BYTES;
            let Scanned {
                most_bytes,
                kept_bytes,
                ..
            } = scanned;
            assert!(
                most_bytes <= FIXED_BYTES + 4 * hashes,
                "{name}: {most_bytes}"
            );
            assert!(kept_bytes <= FIXED_BYTES + hashes, "{name}: {kept_bytes}");
        }
    }
}

#[test]
fn a_depth_bomb_is_refused_where_it_gets_too_deep() {
    let _alone = alone();
    for (before, unit) in [
        (r#"{"messages":"#, "["),
        (r#"{"x":"#, "["),
        (r#"{"messages":"#, r#"{"a":"#),
        (r#"{"x":"#, r#"[{"a":"#),
    ] {
        let shape = Body::of(Api::ChatCompletions, before, unit, "");
        let scanned = Body {
            times: 4 * MB / unit.len(),
            ..shape
        }
        .scan();
        let error = scanned.result.expect_err("a bomb");
        let most = before.len() + (MAX_DEPTH + 1) * unit.len();
        assert!(error.offset <= most, "{error} of {most}");
        assert!(scanned.most_bytes <= FIXED_BYTES, "{}", scanned.most_bytes);
    }
}

#[test]
fn of_what_is_said_a_million_times_the_last_counts() {
    let _alone = alone();
    let body = [
        "{",
        &r#""model":"first","user":"u","messages":[{"role":"user","content":"one"}],"#
            .repeat(20_000),
        r#""model":"last","user":5,"messages":[{"role":"user","content":"two"}]}"#,
    ];
    let many = scan(Api::ChatCompletions, body.concat().as_bytes());
    let last = scan(Api::ChatCompletions, [body[0], body[2]].concat().as_bytes());
    assert_eq!(many.model(), Field::Text(b"last"));
    assert_eq!(many.pointer(0), Some(&b"5"[..]));
    assert_eq!(many.prompt().bytes(), last.prompt().bytes());
    assert_eq!(many.prompt().conversation(7), last.prompt().conversation(7));
}

#[test]
fn a_million_token_ids_are_as_many_and_no_others() {
    let _alone = alone();
    let prompt = |ids: String| {
        scan(
            Api::Completions,
            format!(r#"{{"prompt":[{ids}]}}"#).as_bytes(),
        )
    };
    let ids: Vec<String> = (0..1_000_000_u32).map(|id| id.to_string()).collect();
    let many = prompt(ids.join(","));
    assert_eq!(many.prompt().bytes(), 4_000_000);
    assert_eq!(links(&many).len(), 4_000_000 / CHUNK_BYTES);
    // What is out of range is no other id by wrapping, rounding or being cut.
    let of = |id: &str| links(&prompt(vec![id; 1000].join(",")));
    let valid = ["0", "1", "4294967295"].map(of);
    for id in [
        "4294967296",
        "-1",
        "-0",
        "0.0",
        "1.0",
        "1e0",
        "18446744073709551616",
        "1e999",
    ] {
        let found = of(id);
        assert!(!found.is_empty() && !valid.contains(&found), "{id}");
    }
    let huge = ["1", &"0".repeat(MB)].concat();
    assert!(!valid.contains(&links(&prompt(huge))));
}

#[test]
fn numbers_of_any_length_are_cut_or_the_largest() {
    let _alone = alone();
    for (digits, want) in [
        ("9".repeat(MB), Some(u32::MAX)),
        ("4294967296".into(), Some(u32::MAX)),
        ("1e5".into(), None),
        ("-1".into(), None),
    ] {
        let body = format!(r#"{{"max_tokens":{digits},"user":{digits}}}"#);
        let scan = scan(Api::ChatCompletions, body.as_bytes());
        assert_eq!(scan.max_tokens(), want);
        let kept = digits.get(..MAX_VALUE_BYTES).unwrap_or(&digits);
        assert_eq!(scan.pointer(0), Some(kept.as_bytes()));
    }
}

#[test]
fn nul_and_bytes_that_are_no_text_are_kept_apart() {
    let _alone = alone();
    let user = |written: &[u8]| {
        let body = [b"{\"user\":\"".as_slice(), written, b"\"}"].concat();
        let mut scan = RequestScan::new(Api::ChatCompletions);
        let read = scan.feed(&plan(), &body).and_then(|()| scan.finish());
        read.map(|()| scan.pointer(0).map(<[u8]>::to_vec))
    };
    assert!(user(b"a\0b").is_err());
    assert!(user(b"a\x1fb").is_err());
    assert!(user(br"\u12").is_err());
    assert!(user(br"\x41").is_err());
    assert_eq!(user(br"a\u0000b"), Ok(Some(b"a\0b".to_vec())));
    assert_eq!(user(br"a\u0000c"), Ok(Some(b"a\0c".to_vec())));
    assert_eq!(user(br"\ud800"), Ok(Some("\u{fffd}".into())));
    assert_eq!(user(br"\ud83d\ude00"), Ok(Some("\u{1f600}".into())));
    assert_eq!(user(b"\xff\xc0\x80"), Ok(Some(b"\xff\xc0\x80".to_vec())));
    assert_eq!(user(b""), Ok(None));
}

const NOW_US: u64 = 1_790_000_000_000_000;
const SERVED: Outcome = Outcome::Served { output_tokens: 10 };

fn config(policy: &str) -> Config {
    let engines: Vec<_> = (1..=4)
        .map(|n| json!({"address": format!("10.0.0.{n}:80")}))
        .collect();
    let pool =
        json!({"name": "p", "models": ["m"], "endpoints": {"static": engines}, "policy": policy});
    let config =
        json!({"pools": [pool], "limits": {"prefix_table_bytes": MB}, "status": {"recent": 50}});
    Config::parse(config.to_string().as_bytes()).expect("a valid config")
}

fn headers(pairs: &[(&str, &[u8])]) -> Vec<(String, Vec<u8>)> {
    let post: [(&str, &[u8]); 2] = [(":method", b"POST"), (":path", b"/v1/chat/completions")];
    let all = post.iter().chain(pairs);
    all.map(|(name, value)| ((*name).to_owned(), value.to_vec()))
        .collect()
}

/// Sends a request through to its end, or to what it is answered.
fn send<S: Store>(
    router: &mut Router<S>,
    pairs: &[(&str, &[u8])],
    body: &[u8],
    now_us: u64,
) -> Step {
    let headers = headers(pairs);
    let mut exchange = Exchange::default();
    let head = Head {
        headers: &headers,
        end_of_stream: false,
    };
    let mut step = exchange.on_headers(router, head, now_us);
    if step == Step::Hold {
        step = exchange.on_body(router, body, true, now_us);
    }
    exchange.first_token(router, now_us);
    exchange.end(router, SERVED, now_us);
    step
}

#[test]
fn a_name_of_a_megabyte_is_no_model() {
    let _alone = alone();
    let mut router = Router::new(config("prefix"), MemoryStore::new(), NOW_US);
    for name in [
        "m".repeat(MB),
        "m".repeat(MAX_VALUE_BYTES + 1),
        "\\u0000".repeat(100),
        "\u{1f600}".repeat(200),
    ] {
        let body = format!(r#"{{"model":"{name}"}}"#).into_bytes();
        let (step, most_bytes, _) = counted(|| send(&mut router, &[], &body, NOW_US));
        let Step::Answer(answer) = step else {
            panic!("{step:?}");
        };
        assert_eq!(answer.status, 404);
        assert!(answer.body.len() < 2 * KB, "{}", answer.body.len());
        assert!(most_bytes < FIXED_BYTES, "{most_bytes}");
    }
}

#[test]
fn megabytes_of_cookies_are_read_where_they_are() {
    let _alone = alone();
    let sources = [KeySource::Cookie("sid".to_owned())];
    let found = Key::Found(hash(b"mine"));
    let pairs = "a=b; sid=; xsid=no; sidx=no; sid = no; ;;; =; ".repeat(100_000) + "sid=mine";
    let line = vec![("cookie".to_owned(), pairs.into_bytes())];
    let mut lines = vec![("cookie".to_owned(), b"a=1".to_vec()); 100_000];
    lines.push(("cookie".to_owned(), b"sid=\"mine\"".to_vec()));
    let separators = vec![(
        "cookie".to_owned(),
        [&b";".repeat(4 * MB)[..], b"sid=mine"].concat(),
    )];
    let spaces = vec![(
        "cookie".to_owned(),
        [&b" ".repeat(4 * MB)[..], b"sid=mine"].concat(),
    )];
    for headers in [line, lines, separators, spaces] {
        let (key, most_bytes, _) = counted(|| session::from_headers(&sources, &headers));
        assert_eq!(key.with_body(None, true), found);
        assert_eq!(most_bytes, 0, "something was copied");
    }
}

/// Shared data that counts how often it is asked.
#[derive(Default)]
struct Counting {
    store: MemoryStore,
    calls: Cell<u64>,
}

impl Counting {
    fn call(&self) {
        self.calls.set(self.calls.get() + 1);
    }
}

impl Store for Counting {
    fn get(&self, key: &str) -> Versioned {
        self.call();
        self.store.get(key)
    }
    fn set(&self, key: &str, bytes: &[u8]) {
        self.call();
        self.store.set(key, bytes);
    }
    fn compare_and_set(&self, key: &str, bytes: &[u8], version: u32) -> bool {
        self.call();
        self.store.compare_and_set(key, bytes, version)
    }
}

/// Keys, bytes of shared data, bytes of memory, and calls of the host after some requests.
fn after(
    policy: &str,
    from: u64,
    requests: u64,
    router: &mut Router<&Counting>,
    store: &Counting,
) -> (usize, usize, u64) {
    let calls = store.calls.get();
    let body = br#"{"model":"m","messages":[]}"#;
    for n in from..from + requests {
        let now_us = NOW_US + n * 100;
        let session = n.to_string();
        let step = send(
            router,
            &[("x-session-id", session.as_bytes())],
            body,
            now_us,
        );
        assert!(matches!(step, Step::Route(_)), "{policy}: {step:?}");
        if n % 200 == 0 {
            router.tick(now_us);
        }
    }
    (
        store.store.keys(),
        store.store.value_bytes(),
        store.calls.get() - calls,
    )
}

/// The newest page of a log is more or less full.
const PAGE_BYTES: usize = 11 * KB;
/// Sessions until logs have gone round once.
const WARM: u64 = 20_000;

#[test]
fn a_million_sessions_leave_nothing_behind() {
    let _alone = alone();
    for (policy, sessions) in [
        ("consistent_hash", 1_000_000),
        ("prefix", 100_000),
        ("cache_aware", 100_000),
    ] {
        let store = Counting::default();
        let mut router = Router::new(config(policy), &store, NOW_US);
        let (keys, bytes, calls) = after(policy, 0, WARM, &mut router, &store);
        let ((keys_then, bytes_then, calls_then), _, kept_bytes) =
            counted(|| after(policy, WARM, sessions, &mut router, &store));
        assert_eq!(keys_then, keys, "{policy}");
        assert!(
            bytes_then <= bytes + PAGE_BYTES,
            "{policy}: {bytes} became {bytes_then}"
        );
        assert!(kept_bytes <= FIXED_BYTES, "{policy}: {kept_bytes}");
        // As many calls for the last as for the first, but for those of ticks.
        let more = sessions / WARM;
        assert!(
            calls_then <= calls * more + calls,
            "{policy}: {calls}, then {calls_then}"
        );
    }
}
