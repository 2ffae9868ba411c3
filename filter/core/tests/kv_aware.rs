//! The policy `kv_aware`, without Envoy: what is asked, what is made of the answers, and what happens when
//! there are none.
#![cfg(not(target_arch = "wasm32"))]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a panic is a failed test"
)]

use warmpath_core::call::{CallBody, Method, Purpose, Reply, RequestCall};
use warmpath_core::decision::Reason;
use warmpath_core::kv::{Outcome, Skip, Tally};
use warmpath_core::router::Outcome as End;
use warmpath_core::store::MemoryStore;
use warmpath_core::{Config, Decision, Exchange, Head, Router, Step};

const SECOND_US: u64 = 1_000_000;
const START_US: u64 = 1_790_000_000 * SECOND_US;
/// Tokens of the prompts here; the filter would think of 4 bytes a token.
const TOKENS: usize = 700;

/// A router of three engines, with these options of the policy beside the index.
fn router<'a>(store: &'a MemoryStore, index: &str, options: &str) -> Router<&'a MemoryStore> {
    let engines: Vec<String> = (1..=3)
        .map(|at| format!("{{\"address\":\"10.0.0.{at}:8000\"}}"))
        .collect();
    let config = format!(
        r#"{{"discovery":"off","pools":[{{"name":"llama","endpoints":{{"static":[{}]}},
            "policy":{{"kv_aware":{{"index":{index}{options}}}}}}}]}}"#,
        engines.join(",")
    );
    let config = Config::parse(config.as_bytes());
    Router::new(config.unwrap(), store, START_US)
}

const LMCACHE: &str = r#"{"lmcache":{"cluster":"lmcache",
    "instances":{"a":"10.0.0.1:8000","b":"10.0.0.2:8000","c":"10.0.0.3:8000"}}}"#;
const DYNAMO: &str = r#"{"dynamo":{"cluster":"dynamo"}}"#;

fn headers(path: &str) -> Vec<(String, Vec<u8>)> {
    [
        (":method", "POST"),
        (":path", path),
        ("authorization", "Bearer key"),
    ]
    .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
    .to_vec()
}

fn body(prompt: &str) -> String {
    format!(r#"{{"model":"m","prompt":"{prompt}","max_tokens":5}}"#)
}

/// 3000 bytes.
fn prompt(mark: &str) -> String {
    format!("{mark:0>10}").repeat(300)
}

/// Sends a whole request to its first step.
fn begin(
    router: &mut Router<&MemoryStore>,
    path: &str,
    body: &str,
    now_us: u64,
) -> (Exchange, Step) {
    let mut exchange = Exchange::default();
    let headers = headers(path);
    let head = Head {
        headers: &headers,
        end_of_stream: false,
    };
    assert_eq!(exchange.on_headers(router, head, now_us), Step::Hold);
    let step = exchange.on_body(router, body.as_bytes(), true, now_us);
    (exchange, step)
}

fn call(step: Step) -> RequestCall {
    match step {
        Step::Call(call) => *call,
        other => panic!("{other:?}"),
    }
}

fn route(step: Step) -> Decision {
    match step {
        Step::Route(decision) => decision,
        other => panic!("{other:?}"),
    }
}

fn ok(body: &str) -> Reply<'_> {
    Reply::Answer {
        status: 200,
        body: body.as_bytes(),
    }
}

fn tokens() -> String {
    format!("{{\"tokens\":[{}7]}}", "7,".repeat(TOKENS - 1))
}

/// Sends a request whose lookup is answered so.
fn ask(
    router: &mut Router<&MemoryStore>,
    prompt: &str,
    overlaps: &str,
    now_us: u64,
) -> (Exchange, Decision) {
    let (mut exchange, step) = begin(router, "/v1/completions", &body(prompt), now_us);
    call(step);
    call(exchange.on_reply(router, ok(&tokens()), now_us));
    let decision = route(exchange.on_reply(router, ok(overlaps), now_us));
    (exchange, decision)
}

fn tally(router: &mut Router<&MemoryStore>) -> Tally {
    let mut tallies: Vec<_> = router.take_kv_tallies().collect();
    tallies.remove(0).1
}

fn count(tally: &Tally, outcome: Outcome) -> u64 {
    tally.outcomes[outcome as usize]
}

fn first<'a>(router: &'a Router<&MemoryStore>, decision: &Decision) -> &'a str {
    router.address(decision.ranked[0])
}

#[test]
fn tokens_come_from_an_engine_and_overlaps_from_the_index() {
    let store = MemoryStore::new();
    let mut router = router(&store, LMCACHE, "");
    let (mut exchange, step) = begin(
        &mut router,
        "/v1/completions",
        &body(&prompt("x")),
        START_US,
    );
    let asked = call(step);
    assert_eq!(asked.purpose, Purpose::Tokens);
    assert_eq!(
        (asked.http.method, asked.http.path.as_str()),
        (Method::Post, "/tokenize")
    );
    assert_eq!(asked.http.cluster, "warmpath_scrape");
    assert_eq!(asked.http.body, CallBody::Request(Vec::new()));
    assert_eq!(asked.http.timeout_ms, 20);
    let named = |name: &str| {
        let found = asked.http.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone())
    };
    assert_eq!(
        named("x-envoy-original-dst-host"),
        Some(asked.http.authority.clone())
    );
    assert_eq!(named("authorization"), Some("Bearer key".to_owned()));
    let asked = call(exchange.on_reply(&mut router, ok(&tokens()), START_US + 5_000));
    assert_eq!(asked.purpose, Purpose::Overlaps);
    assert_eq!(
        (asked.http.cluster.as_str(), asked.http.path.as_str()),
        ("lmcache", "/lookup")
    );
    assert_eq!(asked.http.timeout_ms, 15, "what is left of the budget");
    assert!(
        asked
            .http
            .headers
            .iter()
            .all(|(name, _)| name != "authorization")
    );
    let expected = format!("{{\"tokens\":[{}7]}}", "7,".repeat(TOKENS - 1));
    assert_eq!(asked.http.body, CallBody::Bytes(expected.into_bytes()));
    let told = r#"{"event_id":"x","layout_info":{"b":["LocalCPUBackend",512],"c":["x",256]}}"#;
    let decision = route(exchange.on_reply(&mut router, ok(told), START_US + 8_000));
    assert_eq!(
        (decision.policy, decision.reason),
        ("kv_aware", Reason::LongestCached)
    );
    assert_eq!(first(&router, &decision), "10.0.0.2:8000");
    let charge = exchange.charge().unwrap();
    assert_eq!(
        (charge.prompt_tokens(), charge.cached_tokens()),
        (TOKENS as u64, 512)
    );
    let tally = tally(&mut router);
    assert_eq!(count(&tally, Outcome::Matched), 1);
    assert_eq!(
        (tally.took_us.as_slice(), tally.overlap_tokens),
        (&[8_000][..], 512)
    );
}

#[test]
fn load_counts_as_much_as_ever() {
    let store = MemoryStore::new();
    let mut router = router(&store, LMCACHE, "");
    let told = r#"{"layout_info":{"b":["x",100]}}"#;
    let mut reasons = Vec::new();
    let mut busy = Vec::new();
    for at in 0..6 {
        let (exchange, decision) = ask(&mut router, &prompt(&at.to_string()), told, START_US);
        reasons.push(decision.reason);
        busy.push(exchange);
    }
    assert_eq!(reasons[0], Reason::LongestCached);
    assert!(reasons.contains(&Reason::LoadOverCached), "{reasons:?}");
}

#[test]
fn what_was_just_routed_counts_beside_what_the_index_says() {
    let store = MemoryStore::new();
    let mut router = router(&store, LMCACHE, r#","answer_ttl_ms":0"#);
    let (_first, decision) = ask(&mut router, &prompt("x"), r#"{"layout_info":{}}"#, START_US);
    assert_eq!(
        (decision.policy, decision.reason),
        ("kv_aware", Reason::ColdPrefix)
    );
    let home = decision.ranked[0];
    // The engine's events have not come yet.
    let soon_us = START_US + SECOND_US;
    let (exchange, decision) = ask(&mut router, &prompt("x"), r#"{"layout_info":{}}"#, soon_us);
    assert_eq!(decision.ranked[0], home);
    assert!(exchange.charge().unwrap().cached_tokens() > 500);
    // They must have come by now: it was evicted.
    let late_us = START_US + 20 * SECOND_US;
    let (exchange, decision) = ask(&mut router, &prompt("x"), r#"{"layout_info":{}}"#, late_us);
    assert_eq!(decision.reason, Reason::ColdPrefix);
    assert_eq!(exchange.charge().unwrap().cached_tokens(), 0);
}

#[test]
fn the_next_turn_of_a_conversation_asks_nobody() {
    let store = MemoryStore::new();
    let mut router = router(&store, LMCACHE, "");
    let turn = |more: &str| {
        let question = prompt("q");
        format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{question}"}}{more}]}}"#)
    };
    let path = "/v1/chat/completions";
    let (mut exchange, step) = begin(&mut router, path, &turn(""), START_US);
    call(step);
    call(exchange.on_reply(&mut router, ok(&tokens()), START_US));
    let told = r#"{"layout_info":{"c":["x",640]}}"#;
    let decision = route(exchange.on_reply(&mut router, ok(told), START_US));
    assert_eq!(first(&router, &decision), "10.0.0.3:8000");
    exchange.end(&mut router, End::Served { output_tokens: 5 }, START_US);
    let more = format!(r#",{{"role":"assistant","content":"{}"}}"#, prompt("a"));
    let (exchange, step) = begin(&mut router, path, &turn(&more), START_US + SECOND_US);
    let decision = route(step);
    assert_eq!(
        (decision.policy, decision.reason),
        ("kv_aware", Reason::LongestCached)
    );
    assert_eq!(first(&router, &decision), "10.0.0.3:8000");
    let charge = exchange.charge().unwrap();
    assert!(charge.cached_tokens() > 500 && charge.prompt_tokens() > 1300);
    let counted = tally(&mut router);
    assert_eq!(count(&counted, Outcome::Remembered), 1);
    // An endpoint that fails takes the answer with it.
    let mut exchange = exchange;
    exchange.end(&mut router, End::Failed, START_US + SECOND_US);
    let (_, step) = begin(&mut router, path, &turn(&more), START_US + SECOND_US);
    call(step);
}

#[test]
fn whatever_goes_wrong_prefix_decides_and_a_dead_index_is_left_alone() {
    let store = MemoryStore::new();
    let mut router = router(&store, LMCACHE, "");
    let wrong = [
        (Reply::Failed, Outcome::Unanswered),
        (Reply::TimedOut, Outcome::Unanswered),
        (ok("nonsense"), Outcome::Unreadable),
    ];
    for (at, (reply, outcome)) in wrong.into_iter().enumerate() {
        let text = body(&prompt(&at.to_string()));
        let (mut exchange, step) = begin(&mut router, "/v1/completions", &text, START_US);
        call(step);
        call(exchange.on_reply(&mut router, ok(&tokens()), START_US));
        let decision = route(exchange.on_reply(&mut router, reply, START_US));
        assert_eq!(
            (decision.policy, decision.reason),
            ("prefix", Reason::ColdPrefix)
        );
        assert_eq!(count(&tally(&mut router), outcome), 1);
    }
    // Three in a row: nobody asks, until a second has passed; then one does.
    for (after_us, asks) in [
        (0, false),
        (SECOND_US - 1, false),
        (SECOND_US, true),
        (SECOND_US + 1, false),
    ] {
        let text = body(&prompt("again"));
        let (_, step) = begin(&mut router, "/v1/completions", &text, START_US + after_us);
        assert_eq!(matches!(step, Step::Call(_)), asks, "{after_us}");
    }
    assert_eq!(tally(&mut router).skips[Skip::Resting as usize], 3);
}

#[test]
fn what_an_engine_refuses_is_the_requests_own_fault() {
    let store = MemoryStore::new();
    let mut router = router(&store, LMCACHE, "");
    for at in 0..10 {
        let text = body(&prompt(&at.to_string()));
        let (mut exchange, step) = begin(&mut router, "/v1/completions", &text, START_US);
        call(step);
        let refused = Reply::Answer {
            status: 400,
            body: b"{}",
        };
        let decision = route(exchange.on_reply(&mut router, refused, START_US));
        assert_eq!(decision.policy, "prefix");
    }
    assert_eq!(count(&tally(&mut router), Outcome::NoTokens), 10);
    let (_, step) = begin(
        &mut router,
        "/v1/completions",
        &body(&prompt("x")),
        START_US,
    );
    call(step);
}

#[test]
fn only_who_gains_by_it_asks() {
    let store = MemoryStore::new();
    let mut router = router(&store, LMCACHE, r#","max_pending":1"#);
    let chat = |content: &str| {
        format!(r#"{{"model":"m","messages":[{{"role":"user","content":{content}}}]}}"#)
    };
    let long = prompt("x");
    let image = format!(
        r#"[{{"type":"text","text":"{long}"}},{{"type":"image_url","image_url":{{"url":"data:x"}}}}]"#
    );
    let silent = [
        ("/v1/completions", body("short"), Skip::Short),
        (
            "/v1/completions",
            format!(r#"{{"model":"m","prompt":["{long}"]}}"#),
            Skip::Form,
        ),
        (
            "/v1/completions",
            format!(r#"{{"model":"m","prompt":"{long}","cache_salt":"s"}}"#),
            Skip::Form,
        ),
        ("/v1/chat/completions", chat(&image), Skip::Form),
        (
            "/v1/embeddings",
            format!(r#"{{"model":"m","input":"{long}"}}"#),
            Skip::Form,
        ),
    ];
    for (path, body, cause) in silent {
        let (_, step) = begin(&mut router, path, &body, START_US);
        assert_eq!(route(step).policy, "prefix", "{body}");
        assert_eq!(
            tally(&mut router).skips[cause as usize],
            1,
            "{path} {cause:?}"
        );
    }
    let (mut waiting, step) = begin(
        &mut router,
        "/v1/chat/completions",
        &chat(&format!("\"{long}\"")),
        START_US,
    );
    call(step);
    let (_, step) = begin(&mut router, "/v1/completions", &body(&long), START_US);
    route(step);
    assert_eq!(tally(&mut router).skips[Skip::Full as usize], 1);
    // Its client leaves: there is room again, and a late reply means nothing.
    waiting.end(&mut router, End::Failed, START_US);
    assert_eq!(
        waiting.on_reply(&mut router, ok(&tokens()), START_US),
        Step::Hold
    );
    let (_, step) = begin(&mut router, "/v1/completions", &body(&long), START_US);
    call(step);
}

#[test]
fn without_a_match_the_fallback_decides() {
    for (fallback, policy) in [
        (r#""lowest_qps""#, "lowest_qps"),
        (r#""round_robin""#, "round_robin"),
        (
            r#"{"consistent_hash":{"without_key":"lowest_qps"}}"#,
            "lowest_qps",
        ),
        (r#""prefix""#, "kv_aware"),
    ] {
        let store = MemoryStore::new();
        let options = format!(r#","fallback":{fallback},"threshold_tokens":300"#);
        let mut router = router(&store, LMCACHE, &options);
        // 700 tokens, of which at most 300 may be left.
        let few = r#"{"layout_info":{"b":["x",399]}}"#;
        let (_, decision) = ask(&mut router, &prompt("x"), few, START_US);
        assert_eq!(decision.policy, policy);
        let enough = r#"{"layout_info":{"b":["x",400]}}"#;
        let (_, decision) = ask(&mut router, &prompt("y"), enough, START_US);
        assert_eq!(decision.policy, "kv_aware");
        let tally = tally(&mut router);
        assert_eq!(
            (
                count(&tally, Outcome::Matched),
                count(&tally, Outcome::Unmatched)
            ),
            (1, 1)
        );
    }
}

#[test]
fn the_index_is_asked_where_an_unknown_instance_is() {
    let store = MemoryStore::new();
    let mut router = router(&store, DYNAMO, "");
    let text = body(&prompt("x"));
    let (mut exchange, step) = begin(&mut router, "/v1/completions", &text, START_US);
    call(step);
    let asked = call(exchange.on_reply(&mut router, ok(&tokens()), START_US));
    assert_eq!(
        (asked.http.cluster.as_str(), asked.http.path.as_str()),
        ("dynamo", "/query")
    );
    let CallBody::Bytes(query) = asked.http.body else {
        panic!("{:?}", asked.http.body);
    };
    assert!(query.ends_with(br#"7],"model_name":"m"}"#));
    let told = r#"{"scores":{"17":{"0":640},"99":{"0":999}}}"#;
    let asked = call(exchange.on_reply(&mut router, ok(told), START_US));
    assert_eq!(
        (asked.http.method, asked.http.path.as_str()),
        (Method::Get, "/workers")
    );
    let workers = r#"[{"instance_id":17,"endpoints":{"0":"tcp://10.0.0.3:5557"}}]"#;
    let decision = route(exchange.on_reply(&mut router, ok(workers), START_US));
    assert_eq!(first(&router, &decision), "10.0.0.3:8000");
    assert_eq!(exchange.charge().unwrap().cached_tokens(), 640);
    // Instance 99 is none of ours, and the list is not asked for again so soon.
    let (_, decision) = ask(&mut router, &prompt("y"), told, START_US);
    assert_eq!(first(&router, &decision), "10.0.0.3:8000");
}

#[test]
fn a_controller_is_asked_address_by_address() {
    let store = MemoryStore::new();
    let index = r#"{"lmcache":{"cluster":"lmcache"}}"#;
    let mut router = router(&store, index, r#","answer_ttl_ms":0"#);
    let told = r#"{"layout_info":{"worker-2":["x",640]}}"#;
    let mut found = None;
    for at in 0..4 {
        let text = body(&prompt(&at.to_string()));
        let (mut exchange, step) = begin(&mut router, "/v1/completions", &text, START_US);
        call(step);
        call(exchange.on_reply(&mut router, ok(&tokens()), START_US));
        let step = exchange.on_reply(&mut router, ok(told), START_US);
        let decision = match step {
            Step::Call(call) => {
                assert_eq!(call.http.path, "/query_instance");
                let CallBody::Bytes(asked) = call.http.body else {
                    panic!("no body");
                };
                let is_it = asked.windows(8).any(|part| part == b"10.0.0.2");
                let answer = match is_it {
                    true => r#"{"res":"worker-2"}"#,
                    false => r#"{"res":"other"}"#,
                };
                route(exchange.on_reply(&mut router, ok(answer), START_US))
            }
            step => route(step),
        };
        if decision.reason == Reason::LongestCached {
            found = Some(first(&router, &decision).to_owned());
        }
    }
    assert_eq!(found.as_deref(), Some("10.0.0.2:8000"));
}

#[test]
fn labels_name_instances_and_ranks_are_told_apart() {
    let store = MemoryStore::new();
    let config = r#"{"discovery":"off","pools":[{"name":"llama","endpoints":{"static":[
        {"address":"10.0.0.1:8000","labels":{"kv_instance":"7"},"data_parallel_size":2},
        {"address":"10.0.0.1:8001","labels":{"kv_instance":"8"},"data_parallel_size":2}]},
        "policy":{"kv_aware":{"index":{"dynamo":{"cluster":"dynamo"}}}}}]}"#;
    let config = Config::parse(config.as_bytes()).unwrap();
    let mut router = Router::new(config, &store, START_US);
    let told = r#"{"scores":{"8":{"1":640,"0":16},"7":{"1":320}}}"#;
    let (exchange, decision) = ask(&mut router, &prompt("x"), told, START_US);
    assert_eq!(router.name(decision.ranked[0]), "10.0.0.1:8001@1");
    assert_eq!(exchange.charge().unwrap().cached_tokens(), 640);
    assert_eq!(tally(&mut router).overlap_tokens, 640);
}

#[test]
fn nonsense_never_breaks_a_request() {
    let answers = [
        "",
        "[",
        "null",
        "{}",
        r#"{"layout_info":[]}"#,
        r#"{"layout_info":{"a":["x",18446744073709551615]}}"#,
        r#"{"layout_info":{"a":["x",-1],"nobody":["x",5]}}"#,
    ];
    for answer in answers {
        let store = MemoryStore::new();
        let mut router = router(&store, LMCACHE, "");
        let text = body(&prompt("x"));
        let (mut exchange, step) = begin(&mut router, "/v1/completions", &text, START_US);
        call(step);
        call(exchange.on_reply(&mut router, ok(&tokens()), START_US));
        let mut step = exchange.on_reply(&mut router, ok(answer), START_US);
        while let Step::Call(_) = step {
            step = exchange.on_reply(&mut router, ok(answer), START_US);
        }
        let decision = route(step);
        assert_eq!(decision.ranked.len(), 3, "{answer}");
        assert!(exchange.charge().unwrap().cached_tokens() <= TOKENS as u64);
    }
}

#[test]
fn a_configuration_says_what_is_wrong_with_it() {
    let errors = |policy: &str, more: &str| {
        let config = format!(
            r#"{{"pools":[{{"name":"p","endpoints":{{"static":[]}},"policy":{policy}}}]{more}}}"#
        );
        let errors = Config::parse(config.as_bytes()).err().unwrap_or_default();
        errors
            .into_iter()
            .map(|error| error.path)
            .collect::<Vec<_>>()
    };
    let kv = |options: &str| format!(r#"{{"kv_aware":{{{options}}}}}"#);
    let index = r#""index":{"lmcache":{"cluster":"x"}}"#;
    assert_eq!(errors(&kv(index), ""), [] as [&str; 0]);
    let at = "config.pools[0].policy";
    assert_eq!(errors(&kv(""), ""), [format!("{at}.kv_aware.index")]);
    assert_eq!(errors("\"kv_aware\"", ""), [format!("{at}.kv_aware.index")]);
    assert_eq!(errors(&kv(index), r#","scrape":"off""#), [at]);
    for (option, path) in [
        (r#","budget_ms":0"#, "budget_ms"),
        (r#","fallback":{"prefix":{"stickiness":1}}"#, "fallback"),
        (
            r#","fallback":{"consistent_hash":{"without_key":"prefix"}}"#,
            "fallback",
        ),
        (r#","nobody":1"#, "nobody"),
    ] {
        let found = errors(&kv(&format!("{index}{option}")), "");
        assert_eq!(found, [format!("{at}.kv_aware.{path}")]);
    }
    let named = r#""index":{"dynamo":{"cluster":"x","instances":{"1":"host:80"}}}"#;
    assert_eq!(
        errors(&kv(named), ""),
        [format!("{at}.kv_aware.index.dynamo.instances.1")]
    );
    let inner = format!(r#"{{"consistent_hash":{{"without_key":{}}}}}"#, kv(index));
    assert_eq!(
        errors(&inner, ""),
        [format!("{at}.consistent_hash.without_key")]
    );
}
