use super::*;
use crate::exchange::{Exchange, Head, Step};
use crate::router::Response;
use crate::scan::Api;
use crate::store::MemoryStore;
use crate::telemetry::Kind;
use serde_json::{Value, json};
use std::cell::RefCell;

/// Envoy's counters, shared by all recorders that write to it.
#[derive(Default)]
struct Counters(RefCell<Vec<(String, u64)>>);

impl Sink for &Counters {
    fn define(&self, _: Kind, name: &str) -> Option<u32> {
        let mut all = self.0.borrow_mut();
        let known = all.iter().position(|(known, _)| known == name);
        let at = known.unwrap_or_else(|| {
            all.push((name.to_owned(), 0));
            all.len() - 1
        });
        Some(at as u32)
    }
    fn add(&self, id: u32, amount: u64) {
        self.0.borrow_mut()[id as usize].1 += amount;
    }
    fn set(&self, id: u32, value: u64) {
        self.0.borrow_mut()[id as usize].1 = value;
    }
    fn record(&self, _: u32, _: u64) {}
    fn total(&self, id: u32) -> Option<u64> {
        Some(self.0.borrow()[id as usize].1)
    }
}

fn config(policy: &str) -> Config {
    let text = format!(
        r#"{{"discovery": "off", "scrape": "off", "status": {{"recent": 2}}, "pools": [
            {{"name": "p", "models": ["m"], "aliases": {{"n": "m"}}, "policy": {policy},
              "endpoints": {{"static": [{{"address": "10.0.0.1:1"}}, {{"address": "10.0.0.2:1"}},
                {{"address": "10.0.0.3:1"}}, {{"address": "10.0.0.4:1"}}]}}}}]}}"#
    );
    Config::parse(text.as_bytes()).unwrap()
}

fn read(document: &str) -> Value {
    serde_json::from_str(document).unwrap()
}

fn headers(session: Option<&str>) -> Vec<(String, Vec<u8>)> {
    let mut headers = vec![
        (":method".to_owned(), b"POST".to_vec()),
        (":path".to_owned(), b"/v1/chat/completions".to_vec()),
    ];
    headers.extend(session.map(|id| ("x-session-id".to_owned(), id.as_bytes().to_vec())));
    headers
}

fn body(text: &str) -> Vec<u8> {
    let messages = json!([{"role": "user", "content": text}]);
    json!({"model": "n", "messages": messages, "stream": true})
        .to_string()
        .into_bytes()
}

fn route(
    router: &mut Router<&MemoryStore>,
    session: Option<&str>,
    body: &[u8],
    now_us: u64,
) -> (Exchange, crate::Decision) {
    let headers = headers(session);
    let mut exchange = Exchange::default();
    let head = Head {
        headers: &headers,
        end_of_stream: false,
    };
    let mut step = exchange.on_headers(router, head, now_us);
    if step == Step::Hold {
        step = exchange.on_body(router, body, true, now_us);
    }
    match step {
        Step::Route(decision) => (exchange, decision),
        other => panic!("{other:?}"),
    }
}

const POLICIES: [&str; 10] = [
    r#""round_robin""#,
    r#""random""#,
    r#""least_request""#,
    r#""power_of_two""#,
    r#"{"lowest_qps": {"window_s": 60}}"#,
    r#"{"consistent_hash": {"without_key": "round_robin"}}"#,
    r#"{"consistent_hash": {"bounded_load": 1.25}}"#,
    r#""cache_aware""#,
    r#""prefix""#,
    r#"{"prefix": {"home_affinity": 0.5}}"#,
];

#[test]
fn explain_tells_the_next_decision_and_changes_nothing() {
    for policy in POLICIES {
        let store = MemoryStore::new();
        let mut router = Router::new(config(policy), &store, 1_000_000);
        let mut open = Vec::new();
        for at in 0..60_u64 {
            let now_us = 2_000_000 + at * 300_000;
            let session = ["a", "b", "c"].get(at as usize % 4).copied();
            let text = format!("{} turn ", at % 5).repeat(300 + at as usize * 20);
            let body = body(&text);
            router.attend(now_us);
            let before = format!("{router:?}");
            let told = Exchange::explain(
                &router,
                Api::ChatCompletions,
                &headers(session),
                &body,
                now_us,
            )
            .unwrap();
            let document = read(&explanation(&router, &told));
            assert_eq!(format!("{router:?}"), before, "{policy}");
            let (exchange, decision) = route(&mut router, session, &body, now_us);
            assert_eq!(told.ranked, decision.ranked, "{policy} {at}");
            assert_eq!(
                (told.policy, told.reason, told.fallback),
                (decision.policy, Some(decision.reason), decision.fallback),
                "{policy} {at}"
            );
            let charge = exchange.charge().unwrap();
            if let Some(prompt_tokens) = told.prompt_tokens {
                assert_eq!(prompt_tokens, charge.prompt_tokens());
            }
            let first = told.candidates.iter();
            let first = first
                .clone()
                .find(|it| it.position == told.ranked[0])
                .unwrap();
            assert_eq!(first.held_tokens, charge.cached_tokens(), "{policy} {at}");
            check_costs(&document);
            open.push(exchange);
            if at % 3 == 0 {
                let mut done: Exchange = open.remove(0);
                let outcome = crate::router::Outcome::Served { output_tokens: 5 };
                done.end(&mut router, outcome, now_us);
            }
        }
    }
}

/// A cost is the sum of its terms, and nobody is cheaper than who is asked first.
fn check_costs(document: &Value) {
    let candidates = document["candidates"].as_array().unwrap();
    assert_eq!(candidates.len(), 4);
    let cost = |one: &Value| one["cost"].as_f64();
    for one in candidates.iter().filter(|one| cost(one).is_some()) {
        let terms = one["terms"].as_object().unwrap().values();
        let sum: f64 = terms.filter_map(Value::as_f64).sum();
        assert!((sum - cost(one).unwrap()).abs() < 1e-5, "{one}");
        let first = candidates
            .iter()
            .find(|it| it["address"] == document["ranked"][0]);
        assert!(cost(first.unwrap()) <= cost(one), "{document}");
    }
}

#[test]
fn explain_answers_what_the_request_would_be_answered() {
    let store = MemoryStore::new();
    let router = Router::new(config(r#""prefix""#), &store, 0);
    let explain = |body: &[u8]| {
        Exchange::explain(&router, Api::ChatCompletions, &headers(None), body, 0)
            .map_err(|answer| (answer.status, answer.cause))
    };
    assert_eq!(explain(b""), Err((400, "bad_json")));
    assert_eq!(explain(b"{\"model\":"), Err((400, "bad_json")));
    assert_eq!(explain(b"{}"), Err((400, "missing_model")));
    assert_eq!(explain(br#"{"model": "x"}"#), Err((404, "unknown_model")));
    assert!(explain(&body("hello")).is_ok());
}

#[test]
fn the_facts_are_those_of_all_workers() {
    let (store, counters) = (MemoryStore::new(), Counters::default());
    let worker = || {
        let router = Router::new(config(r#""prefix""#), &store, 0);
        (router, Recorder::new(&counters, ["p"], 0))
    };
    let (mut ours, mut our_recorder) = worker();
    let (mut theirs, mut their_recorder) = worker();
    let mut reporter = Reporter::default();
    let mut open = Vec::new();
    for at in 1..=3 {
        for (router, recorder) in [
            (&mut ours, &mut our_recorder),
            (&mut theirs, &mut their_recorder),
        ] {
            let now_us = at * 1_000_000;
            let (mut exchange, decision) =
                route(router, None, &body(&"secret words ".repeat(400)), now_us);
            let address = router.address(decision.ranked[0]).to_owned();
            let charge = exchange.charge().unwrap();
            recorder.routed(&decision, charge, &address, now_us);
            recorder.flush();
            let response = Response {
                status: 200,
                address: address.as_bytes(),
                by_engine: true,
                retry_after_s: None,
            };
            exchange.responded(router, response, now_us);
            exchange.first_token(router, now_us + 70_000);
            open.push(exchange);
            router.tick(now_us + 100_000);
        }
    }
    let mut ask = |now_us| read(&reporter.report("1.2.3", &mut ours, &mut our_recorder, now_us));
    let report = ask(4_000_000);
    assert_eq!(report["version"], "1.2.3");
    assert_eq!(
        report["worker"],
        json!({"id": 0, "workers": 2, "scraper": false})
    );
    assert_eq!(report["counters"]["requests"], 6);
    assert!(report["counters"]["predicted_cached_tokens"].as_u64() > Some(0));
    assert!(report["counters"]["table"]["bytes"].as_u64() > Some(0));
    assert_eq!(report["counters"]["fallbacks"]["no_pool"], 0);
    let pool = &report["pools"][0];
    assert_eq!(
        (&pool["name"], &pool["policy"], &pool["aliases"]),
        (&json!("p"), &json!("prefix"), &json!({"n": "m"}))
    );
    let endpoints = pool["endpoints"].as_array().unwrap();
    let sum = |field: &str| -> u64 { endpoints.iter().filter_map(|it| it[field].as_u64()).sum() };
    assert_eq!(
        (sum("in_flight"), sum("requests"), sum("failures")),
        (6, 6, 0)
    );
    assert!(endpoints.iter().all(|it| it["state"] == "healthy"));
    let recent = report["recent"].as_array().unwrap();
    assert_eq!(recent.len(), 2, "as many as the ring holds");
    assert_eq!(recent[0]["reason"], "longest_prefix");
    assert_eq!(
        (&recent[0]["status"], &recent[0]["ttft_ms"]),
        (&json!(200), &json!(70))
    );
    assert_eq!(
        (&recent[0]["age_ms"], &recent[1]["age_ms"]),
        (&json!(1000), &json!(1000)),
        "one of each worker"
    );
    let again = ask(5_000_000);
    let busiest = again["pools"][0]["endpoints"].as_array().unwrap();
    assert!(busiest.iter().all(|it| it["qps"] == 0.0), "{again}");
    assert!(!again.to_string().contains("secret"));
}
