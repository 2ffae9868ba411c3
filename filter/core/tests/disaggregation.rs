//! Requests between an engine that computes the prompt and one that decodes, reply by reply.
#![cfg(not(target_arch = "wasm32"))]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a panic is a failed test"
)]

use serde_json::{Value, json};
use warmpath_core::call::{CallBody, HttpCall, Method, Purpose, Reply, RequestCall};
use warmpath_core::disaggregation::{CallEnd, Note, Outcome as Fate, Skip};
use warmpath_core::router::{Outcome, Response, Router, State};
use warmpath_core::splice;
use warmpath_core::store::MemoryStore;
use warmpath_core::{Answer, Config, Decision, Exchange, Head, Step};

const NOW_US: u64 = 1_000_000_000;
const DECODE: [&str; 2] = ["10.0.1.1:8000", "10.0.1.2:8000"];
const PREFILL: [&str; 3] = ["10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"];
const HANDLE: &str = r#"{"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":[[1, 2]],"remote_engine_id":"p-1","tp_size":1}"#;

/// A router for a pool that this connector joins with three engines that prefill.
fn router(connector: &Value, edit: impl Fn(&mut Value)) -> Router<MemoryStore> {
    let listed = |all: &[&str]| -> Value {
        all.iter()
            .map(|one| json!({ "address": one }))
            .collect::<Vec<_>>()
            .into()
    };
    let mut config = json!({
        "pools": [
            {"name": "llama", "cluster": "decode", "models": ["m"], "aliases": {"alias": "m"},
             "endpoints": {"static": listed(&DECODE)},
             "disaggregation": {"prefill_pool": "p", "connector": connector, "max_pending": 2}},
            {"name": "p", "cluster": "prefill", "endpoints": {"static": listed(&PREFILL)},
             "policy": "prefix"}
        ],
        "discovery": "off", "scrape": "off"
    });
    edit(&mut config);
    let config = Config::parse(config.to_string().as_bytes()).expect("a configuration");
    Router::new(config, MemoryStore::default(), NOW_US)
}

fn nixl() -> Router<MemoryStore> {
    router(&json!("nixl"), |_| {})
}

/// A body whose prompt has so many words, with more members.
fn body(words: usize, more: &str) -> String {
    let text = "word ".repeat(words);
    format!(
        r#"{{ "model":"m",{more}"messages":[{{"role":"user","content":"{text}"}}],"temperature":0.70 }}"#
    )
}

/// Long enough to be worth it.
fn long(more: &str) -> String {
    body(2000, more)
}

struct Client {
    exchange: Exchange,
    body: String,
}

impl Client {
    fn post(router: &mut Router<MemoryStore>, path: &str, body: String) -> (Client, Step) {
        let headers: Vec<(String, Vec<u8>)> = [
            (":method", "POST"),
            (":path", path),
            ("content-type", "application/json"),
            ("authorization", "Bearer key"),
            ("x-request-id", "request-1"),
            ("traceparent", "00-1-2-01"),
            ("cookie", "not for engines"),
        ]
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
        .to_vec();
        let head = Head {
            headers: &headers,
            end_of_stream: false,
        };
        let mut exchange = Exchange::default();
        let mut step = exchange.on_headers(router, head, NOW_US);
        if step == Step::Hold {
            step = exchange.on_body(router, body.as_bytes(), true, NOW_US);
        }
        (Client { exchange, body }, step)
    }

    fn chat(router: &mut Router<MemoryStore>, body: String) -> (Client, Step) {
        Client::post(router, "/v1/chat/completions?x=1", body)
    }

    fn reply(&mut self, router: &mut Router<MemoryStore>, reply: Reply) -> Step {
        self.exchange.on_reply(router, reply, NOW_US + 5000)
    }

    fn end(&mut self, router: &mut Router<MemoryStore>) {
        self.exchange.end(router, Outcome::Failed, NOW_US + 9000);
        nothing_counts(router);
    }

    /// The body as the engine that decodes gets it.
    fn sent(&self, decision: &Decision) -> Value {
        let body = splice::rewrite(self.body.as_bytes(), &decision.changes).unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    /// The body of a call.
    fn called(&self, http: &HttpCall) -> Value {
        let CallBody::Request(changes) = &http.body else {
            panic!("no changed body: {http:?}");
        };
        let body = splice::rewrite(self.body.as_bytes(), changes).unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    fn notes(&mut self) -> Vec<Note> {
        self.exchange.take_notes()
    }
}

fn nothing_counts(router: &Router<MemoryStore>) {
    for position in 0..DECODE.len() + PREFILL.len() {
        assert_eq!(
            router.in_flight(position),
            0,
            "{}",
            router.address(position)
        );
        assert_eq!(router.queued_tokens(position), 0);
    }
    assert_eq!(router.pending_calls(), 0);
}

fn call(step: Step) -> RequestCall {
    match step {
        Step::Call(call) => *call,
        other => panic!("no call: {other:?}"),
    }
}

fn route(step: Step) -> Decision {
    match step {
        Step::Route(decision) => decision,
        other => panic!("not sent on: {other:?}"),
    }
}

fn answer(step: Step) -> Answer {
    match step {
        Step::Answer(answer) => answer,
        other => panic!("not answered: {other:?}"),
    }
}

fn header<'a>(call: &'a HttpCall, name: &str) -> Option<&'a str> {
    let found = call.headers.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value.as_str())
}

fn set<'a>(decision: &'a Decision, name: &str) -> Option<&'a str> {
    let found = decision.headers.iter().find(|(key, _)| *key == name);
    found.map(|(_, value)| value.as_str())
}

fn ok(body: &[u8]) -> Reply<'_> {
    Reply::Answer { status: 200, body }
}

fn status(status: u16) -> Reply<'static> {
    Reply::Answer {
        status,
        body: b"{}",
    }
}

fn prefilled() -> Vec<u8> {
    format!(r#"{{"id":"x","choices":[],"kv_transfer_params":{HANDLE}}}"#).into_bytes()
}

fn ends(notes: &[Note]) -> Vec<CallEnd> {
    let ends = notes.iter().filter_map(|note| match note {
        Note::Prefilled { end, .. } => Some(*end),
        _ => None,
    });
    ends.collect()
}

fn fates(notes: &[Note]) -> Vec<Fate> {
    let fates = notes.iter().filter_map(|note| match note {
        Note::Disaggregated { pool: 0, outcome } => Some(*outcome),
        _ => None,
    });
    fates.collect()
}

#[test]
fn nixl_prefills_first_and_hands_over_what_the_engine_says() {
    let mut router = nixl();
    let more = r#""stream":true,"stream_options":{"include_usage":true},"max_tokens":50,"x":1.50,"#;
    let (mut client, step) = Client::chat(&mut router, long(more));
    let RequestCall { http, purpose } = call(step);
    assert_eq!(purpose, Purpose::Prefill);
    assert_eq!(http.method, Method::Post);
    assert_eq!(http.path, "/v1/chat/completions?x=1");
    assert_eq!(http.cluster, "warmpath_scrape");
    let engine = header(&http, "x-envoy-original-dst-host")
        .unwrap()
        .to_owned();
    assert!(PREFILL.contains(&engine.as_str()) && http.authority == engine);
    assert_eq!(header(&http, "authorization"), Some("Bearer key"));
    assert_eq!(header(&http, "x-request-id"), Some("request-1"));
    assert_eq!(header(&http, "traceparent"), Some("00-1-2-01"));
    assert_eq!(header(&http, "cookie"), None);
    assert_eq!(http.timeout_ms, 120_000);
    let sent = client.called(&http);
    let expected = json!({"do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null,
        "remote_block_ids": null, "remote_host": null, "remote_port": null});
    assert_eq!(sent["kv_transfer_params"], expected);
    assert_eq!(
        (&sent["max_tokens"], &sent["stream"]),
        (&json!(1), &json!(false))
    );
    assert_eq!(sent.get("stream_options"), None);
    // While it waits it counts where the prompt is computed.
    let at = (0..5).find(|at| router.in_flight(*at) == 1).unwrap();
    assert_eq!(router.address(at), engine);
    assert!(router.queued_tokens(at) > 1000);

    let decision = route(client.reply(&mut router, ok(&prefilled())));
    assert_eq!((decision.pool, decision.ranked.len()), (0, 2));
    assert_eq!(set(&decision, "x-envoy-max-retries"), None);
    let sent = splice::rewrite(client.body.as_bytes(), &decision.changes).unwrap();
    let sent = String::from_utf8(sent).unwrap();
    // Every byte of the client's, and the engine's own words.
    let end = format!(r#","kv_transfer_params":{HANDLE} }}"#);
    assert_eq!(
        sent,
        client.body.strip_suffix(" }").unwrap().to_owned() + &end
    );
    assert_eq!(client.exchange.prefill_engine(), Some(at));
    assert_eq!(router.in_flight(at), 0);
    let decode = decision.ranked[0];
    assert_eq!(
        (router.in_flight(decode), router.queued_tokens(decode)),
        (1, 0)
    );
    assert_eq!(router.pending_calls(), 0);
    let notes = client.notes();
    assert_eq!(
        (ends(&notes), fates(&notes)),
        (vec![CallEnd::Ok], vec![Fate::Transferred])
    );
    client.end(&mut router);
}

#[test]
fn both_engines_are_known_to_hold_what_was_handed_over() {
    let mut router = nixl();
    let (mut first, step) = Client::chat(&mut router, long(""));
    let http = call(step).http;
    let decode = route(first.reply(&mut router, ok(&prefilled()))).ranked[0];
    let answered = Response {
        status: 200,
        address: DECODE[decode].as_bytes(),
        by_engine: true,
        retry_after_s: None,
    };
    first.exchange.responded(&mut router, answered, NOW_US);
    first
        .exchange
        .end(&mut router, Outcome::Served { output_tokens: 9 }, NOW_US);
    // The same prompt again is not worth a second transfer: one engine that decodes has it.
    let (mut second, step) = Client::chat(&mut router, long(""));
    let decision = route(step);
    assert_eq!(
        second.notes(),
        [Note::Skipped {
            pool: 0,
            skip: Skip::TooShort
        }]
    );
    assert!(decision.changes.is_empty());
    second.end(&mut router);
    // A longer one is, at the engine that computed the beginning.
    let longer = long("").replace("word \"", &format!("word {}\"", "more ".repeat(2000)));
    let (mut third, step) = Client::chat(&mut router, longer);
    assert_eq!(call(step).http.authority, http.authority);
    third.end(&mut router);
}

#[test]
fn a_failed_prefill_is_tried_elsewhere_and_then_nowhere() {
    let mut router = nixl();
    let (mut client, step) = Client::chat(&mut router, long(""));
    let mut asked = vec![call(step).http.authority];
    asked.push(
        call(client.reply(&mut router, Reply::Failed))
            .http
            .authority,
    );
    let third = call(client.reply(&mut router, Reply::TimedOut)).http;
    asked.push(third.authority.clone());
    asked.sort();
    assert_eq!(asked, PREFILL);
    assert_eq!((0..5).map(|at| router.in_flight(at)).sum::<u32>(), 1);
    // The last one fails as well: who decodes does it all, with the body as it came.
    let decision = route(client.reply(&mut router, status(500)));
    assert!(decision.changes.is_empty() && decision.ranked.len() == 2);
    assert!(router.queued_tokens(decision.ranked[0]) > 1000);
    assert_eq!(client.exchange.prefill_engine(), None);
    let notes = client.notes();
    let failed = [CallEnd::Failed, CallEnd::TimedOut, CallEnd::Failed];
    assert_eq!(
        (ends(&notes), fates(&notes)),
        (failed.to_vec(), vec![Fate::DecodedAlone])
    );
    client.end(&mut router);
}

#[test]
fn an_engine_that_fails_is_left_out() {
    let mut router = router(&json!("nixl"), |config| {
        config["health"] = json!({"failures": 1});
    });
    let (mut client, step) = Client::chat(&mut router, long(""));
    let failed = call(step).http.authority;
    call(client.reply(&mut router, Reply::Failed));
    client.end(&mut router);
    let at = (2..5).find(|at| router.address(*at) == failed).unwrap();
    assert_eq!(router.state(1, at, NOW_US + 6000), State::CoolingDown);
    for seed in 0..5 {
        let (mut client, step) = Client::chat(&mut router, long(&format!(r#""seed":{seed},"#)));
        assert_ne!(call(step).http.authority, failed);
        client.end(&mut router);
    }
}

#[test]
fn answers_that_tell_no_way_to_the_prompt_are_not_passed_on() {
    for answer in [
        &br#"{"choices":[]}"#[..],
        b"",
        br#"{"kv_transfer_params":{"do_remote_prefill":true}}"#,
    ] {
        let mut router = nixl();
        let (mut client, step) = Client::chat(&mut router, long(""));
        call(step);
        let decision = route(client.reply(&mut router, ok(answer)));
        assert!(client.sent(&decision).get("kv_transfer_params").is_none());
        let notes = client.notes();
        assert_eq!(
            (ends(&notes), fates(&notes)),
            (vec![CallEnd::NoHandle], vec![Fate::DecodedAlone])
        );
        client.end(&mut router);
    }
    let mut router = nixl();
    let (mut client, step) = Client::chat(&mut router, long(""));
    call(step);
    route(client.reply(&mut router, Reply::TooLong));
    assert_eq!(ends(&client.notes()), [CallEnd::NoHandle]);
    client.end(&mut router);
}

#[test]
fn a_clients_mistake_and_a_want_of_room_are_held_against_nobody() {
    for (reply, end) in [
        (status(400), CallEnd::Rejected),
        (Reply::NoRoom, CallEnd::NoRoom),
        (Reply::NoCluster, CallEnd::NoRoom),
    ] {
        let mut router = nixl();
        let (mut client, step) = Client::chat(&mut router, long(""));
        call(step);
        route(client.reply(&mut router, reply));
        assert_eq!(ends(&client.notes()), [end]);
        for position in 2..5 {
            assert_eq!(router.state(1, position, NOW_US), State::Healthy);
        }
        client.end(&mut router);
    }
    // A busy engine is passed by for a moment.
    let mut router = nixl();
    let (mut client, step) = Client::chat(&mut router, long(""));
    let busy = call(step).http.authority;
    call(client.reply(&mut router, status(503)));
    let at = (2..5).find(|at| router.address(*at) == busy).unwrap();
    assert_eq!(router.state(1, at, NOW_US + 6000), State::Backpressure);
    client.end(&mut router);
}

#[test]
fn a_client_that_goes_leaves_nothing_behind() {
    let mut router = nixl();
    let (mut client, step) = Client::chat(&mut router, long(""));
    call(step);
    client.end(&mut router);
    assert_eq!(ends(&client.notes()), [CallEnd::Abandoned]);
    // What comes later is nobody's.
    assert_eq!(client.reply(&mut router, ok(&prefilled())), Step::Hold);
    client.end(&mut router);
    assert!(client.notes().is_empty());
}

#[test]
fn a_reply_that_nobody_waits_for_does_nothing() {
    let mut router = nixl();
    let (mut client, step) = Client::chat(&mut router, body(3, ""));
    route(step);
    assert_eq!(client.reply(&mut router, ok(b"{}")), Step::Hold);
    client.end(&mut router);
}

#[test]
fn what_does_not_fit_is_not_handed_over() {
    let skipped = |path: &str, body: String| {
        let mut router = nixl();
        let (mut client, step) = Client::post(&mut router, path, body);
        route(step);
        let notes = client.notes();
        client.end(&mut router);
        match notes.as_slice() {
            [Note::Skipped { pool: 0, skip }] => *skip,
            other => panic!("{other:?}"),
        }
    };
    let chat = "/v1/chat/completions";
    let text = "word ".repeat(2000);
    assert_eq!(skipped(chat, body(10, "")), Skip::TooShort);
    assert_eq!(skipped(chat, long(r#""n":2,"#)), Skip::SeveralChoices);
    assert_eq!(skipped(chat, long(r#""n":"2","#)), Skip::SeveralChoices);
    assert_eq!(
        skipped(chat, long(r#""prompt_logprobs":0,"#)),
        Skip::PromptBack
    );
    let completion = "/v1/completions";
    let prompt = |prompt: &str| format!(r#"{{"model":"m","prompt":{prompt}}}"#);
    let batch = prompt(&format!(r#"["{text}","b"]"#));
    assert_eq!(skipped(completion, batch), Skip::Batch);
    let ids = (0..4000)
        .map(|id| id.to_string())
        .collect::<Vec<_>>()
        .join(",");
    assert_eq!(
        skipped(completion, prompt(&format!("[[{ids}],[1]]"))),
        Skip::Batch
    );
    let echo = prompt(&format!(r#""{text}","echo":true"#));
    assert_eq!(skipped(completion, echo), Skip::PromptBack);
    let input = format!(r#"{{"model":"m","input":"{text}"}}"#);
    assert_eq!(skipped("/v1/responses", input.clone()), Skip::Api);
    assert_eq!(skipped("/v1/embeddings", input), Skip::Api);
    // One prompt of token ids, and one answer, are what is wanted.
    let mut router = nixl();
    let one =
        format!(r#"{{"model":"m","n":1,"echo":false,"prompt_logprobs":null,"prompt":[{ids}]}}"#);
    let (mut client, step) = Client::post(&mut router, completion, one);
    call(step);
    client.end(&mut router);
}

#[test]
fn calls_that_wait_are_bounded() {
    let mut router = nixl();
    let mut waiting: Vec<Client> = (0..2)
        .map(|_| {
            let (client, step) = Client::chat(&mut router, long(""));
            call(step);
            client
        })
        .collect();
    let (mut third, step) = Client::chat(&mut router, long(""));
    route(step);
    let skip = Skip::TooManyPending;
    assert_eq!(third.notes(), [Note::Skipped { pool: 0, skip }]);
    third.exchange.end(&mut router, Outcome::Failed, NOW_US);
    waiting[0]
        .exchange
        .end(&mut router, Outcome::Failed, NOW_US);
    let (mut fourth, step) = Client::chat(&mut router, long(""));
    call(step);
    fourth.exchange.end(&mut router, Outcome::Failed, NOW_US);
    waiting[1].end(&mut router);
}

#[test]
fn clients_have_no_say() {
    let mut router = nixl();
    let more = r#""kv_transfer_params":{"do_remote_prefill":true},"\u0062ootstrap_room":7,
        "vllm_xargs":{"kv_transfer_params":"x","a":1},"#;
    // Whether it is handed over or not.
    let (mut client, step) = Client::chat(&mut router, body(3, more));
    let sent = client.sent(&route(step));
    let expected = json!({"model": "m", "vllm_xargs": {"a": 1}, "temperature": 0.7, "messages": sent["messages"]});
    assert_eq!(sent, expected);
    client.end(&mut router);
    let (mut client, step) = Client::chat(&mut router, long(more));
    let sent = client.called(&call(step).http);
    assert_eq!(sent["kv_transfer_params"]["do_remote_decode"], true);
    assert_eq!(sent.get("bootstrap_room"), None);
    let decision = route(client.reply(&mut router, ok(&prefilled())));
    let sent = client.sent(&decision);
    assert_eq!(
        sent["kv_transfer_params"],
        serde_json::from_str::<Value>(HANDLE).unwrap()
    );
    client.end(&mut router);
}

#[test]
fn an_alias_is_renamed_on_both_sides() {
    let mut router = nixl();
    let alias = long("").replace(r#""model":"m""#, r#""model":"alias""#);
    let (mut client, step) = Client::chat(&mut router, alias);
    assert_eq!(client.called(&call(step).http)["model"], "m");
    let decision = route(client.reply(&mut router, ok(&prefilled())));
    assert_eq!(client.sent(&decision)["model"], "m");
    client.end(&mut router);
}

#[test]
fn p2p_nccl_has_one_id_with_both_addresses() {
    let mut router = router(&json!({"p2p_nccl": {"port": 21001}}), |config| {
        config["pools"][1]["endpoints"]["static"][0]["labels"] = json!({"kv_addr": "kv-1:14579"});
    });
    // However short: who decodes cannot do without.
    let (mut client, step) = Client::chat(&mut router, body(3, r#""n":2,"stream":true,"#));
    let http = call(step).http;
    let id = header(&http, "x-request-id").unwrap().to_owned();
    let prefill = match http.authority.as_str() {
        "10.0.0.1:8000" => "kv-1:14579".to_owned(),
        other => other.replace(":8000", ":21001"),
    };
    assert!(
        id.starts_with(&format!("___prefill_addr_{prefill}___decode_addr_10.0.1.")),
        "{id}"
    );
    let sent = client.called(&http);
    assert_eq!(
        (&sent["stream"], sent.get("kv_transfer_params")),
        (&json!(false), None)
    );
    // The engine fails; the next one gets an id of its own.
    let http = call(client.reply(&mut router, Reply::Failed)).http;
    let id = header(&http, "x-request-id").unwrap().to_owned();
    let ids = http
        .headers
        .iter()
        .filter(|(name, _)| name == "x-request-id");
    assert_eq!(ids.count(), 1);
    let decision = route(client.reply(&mut router, ok(b"{}")));
    assert_eq!(decision.ranked.len(), 1);
    assert_eq!(set(&decision, "x-request-id"), Some(id.as_str()));
    assert_eq!(set(&decision, "x-envoy-max-retries"), Some("0"));
    let decode = router
        .address(decision.ranked[0])
        .replace(":8000", ":21001");
    assert!(
        id.contains(&format!("___decode_addr_{decode}_")),
        "{id} {decode}"
    );
    assert!(decision.changes.is_empty());
    client.end(&mut router);
}

#[test]
fn p2p_nccl_never_sends_what_would_end_an_engine() {
    let connector = json!("p2p_nccl");
    let mut router = router(&connector, |_| {});
    let (mut client, mut step) = Client::chat(&mut router, long(""));
    while let Step::Call(_) = step {
        step = client.reply(&mut router, Reply::Failed);
    }
    let refused = answer(step);
    assert_eq!((refused.status, refused.cause), (503, "not_prefilled"));
    assert_eq!(fates(&client.notes()), [Fate::Refused]);
    client.end(&mut router);
    let input = format!(r#"{{"model":"m","input":"{}"}}"#, "word ".repeat(2000));
    let (mut client, step) = Client::post(&mut router, "/v1/responses", input);
    assert_eq!(answer(step).status, 400);
    client.end(&mut router);
    let mut router = self::router(&connector, |_| {});
    let (mut client, step) = Client::chat(&mut router, long(""));
    call(step);
    // What the engine says of a client's mistake is passed on.
    let mistake = Reply::Answer {
        status: 400,
        body: b"{\"error\":1}",
    };
    let refused = answer(client.reply(&mut router, mistake));
    assert_eq!(
        (refused.status, refused.body.as_str()),
        (400, "{\"error\":1}")
    );
    client.end(&mut router);
}

#[test]
fn mooncake_asks_for_the_engines_name_once() {
    let mut router = router(&json!({"mooncake": {"bootstrap_port": 9001}}), |config| {
        config["pools"][1]["endpoints"] = json!({"static": [{"address": PREFILL[0]}]});
    });
    let (mut client, step) = Client::chat(&mut router, long(r#""stream":true,"#));
    let RequestCall { http, purpose } = call(step);
    assert_eq!(
        (purpose, http.method, http.path.as_str()),
        (Purpose::EngineIds, Method::Get, "/query")
    );
    assert_eq!(http.authority, "10.0.0.1:9001");
    assert_eq!(
        header(&http, "x-envoy-original-dst-host"),
        Some("10.0.0.1:9001")
    );
    assert_eq!(header(&http, "authorization"), None);
    let names = br#"{"0":{"engine_id":"engine-0","worker_addr":{}}}"#;
    let decision = route(client.reply(&mut router, ok(names)));
    assert_eq!(decision.ranked.len(), 1);
    assert_eq!(set(&decision, "x-envoy-max-retries"), Some("0"));
    let beside = decision.beside.clone().unwrap();
    assert_eq!(header(&beside.http, "x-data-parallel-rank"), Some("0"));
    let prefill = client.called(&beside.http);
    let decode = client.sent(&decision);
    let transfer = &prefill["kv_transfer_params"]["transfer_id"];
    assert!(transfer.as_str().unwrap().starts_with("xfer-"));
    let expected =
        json!({"do_remote_decode": true, "do_remote_prefill": false, "transfer_id": transfer});
    assert_eq!(prefill["kv_transfer_params"], expected);
    let expected = json!({"do_remote_decode": false, "do_remote_prefill": true, "transfer_id": transfer,
        "remote_engine_id": "engine-0", "remote_bootstrap_addr": "http://10.0.0.1:9001"});
    assert_eq!(decode["kv_transfer_params"], expected);
    assert_eq!(
        (&prefill["stream"], &decode["stream"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(router.pending_calls(), 1);
    assert_eq!(client.reply(&mut router, ok(b"{}")), Step::Hold);
    let notes = client.notes();
    assert_eq!(
        (ends(&notes), fates(&notes)),
        (vec![CallEnd::Ok], vec![Fate::Transferred])
    );
    client.end(&mut router);
    // It is known now.
    let (mut client, step) = Client::chat(&mut router, long(r#""seed":1,"#));
    assert!(route(step).beside.is_some());
    // The engine fails before there is an answer: the client need not wait for nothing.
    let refused = answer(client.reply(&mut router, status(500)));
    assert_eq!((refused.status, refused.cause), (503, "not_prefilled"));
    assert_eq!(fates(&client.notes()), [Fate::Refused]);
    client.end(&mut router);
    // Who failed may have started anew, under another name.
    let (mut client, step) = Client::chat(&mut router, long(r#""seed":2,"#));
    assert_eq!(call(step).purpose, Purpose::EngineIds);
    // Nobody tells the name: who decodes does it all.
    let decision = route(client.reply(&mut router, ok(b"{}")));
    assert!(decision.beside.is_none() && decision.changes.is_empty());
    assert_eq!(decision.ranked.len(), 2);
    assert_eq!(fates(&client.notes()), [Fate::DecodedAlone]);
    client.end(&mut router);
}

#[test]
fn sglang_meets_in_a_room() {
    let mut router = router(&json!("sglang"), |config| {
        for index in 0..3 {
            let labels = json!({"bootstrap_host": "prefill-host", "bootstrap_port": "7001"});
            config["pools"][1]["endpoints"]["static"][index]["labels"] = labels;
        }
    });
    let (mut client, step) = Client::chat(&mut router, body(3, r#""stream":true,"n":3,"#));
    let decision = route(step);
    let decode = client.sent(&decision);
    let prefill = client.called(&decision.beside.as_ref().unwrap().http);
    // One and the same request.
    assert_eq!(prefill, decode);
    assert_eq!(
        decode["bootstrap_host"],
        json!(["prefill-host", "prefill-host", "prefill-host"])
    );
    assert_eq!(decode["bootstrap_port"], json!([7001, 7001, 7001]));
    let rooms = decode["bootstrap_room"].as_array().unwrap();
    assert!(rooms.len() == 3 && rooms[0] != rooms[1] && rooms.iter().all(Value::is_i64));
    // The engine that decodes was first; its answer shows that it has the prompt.
    let address = router.address(decision.ranked[0]).to_owned();
    let answered = Response {
        status: 200,
        address: address.as_bytes(),
        by_engine: true,
        retry_after_s: None,
    };
    client.exchange.responded(&mut router, answered, NOW_US);
    assert_eq!(client.reply(&mut router, Reply::Failed), Step::Hold);
    assert_eq!(fates(&client.notes()), [Fate::Transferred]);
    client.end(&mut router);
    // The same where the request ends before the prefill's answer has come.
    let (mut client, step) = Client::chat(&mut router, body(3, ""));
    let address = router.address(route(step).ranked[0]).to_owned();
    let answered = Response {
        address: address.as_bytes(),
        ..answered
    };
    client.exchange.responded(&mut router, answered, NOW_US);
    client.end(&mut router);
    let notes = client.notes();
    assert_eq!(
        (ends(&notes), fates(&notes)),
        (vec![CallEnd::Ok], vec![Fate::Transferred])
    );
    // A batch has a room for each prompt, and one for a list of ids.
    let batch = r#"{"model":"m","prompt":["a","b"]}"#.to_owned();
    let (mut client, step) = Client::post(&mut router, "/v1/completions", batch);
    let sent = client.sent(&route(step));
    assert_eq!(sent["bootstrap_room"].as_array().map(Vec::len), Some(2));
    client.end(&mut router);
    let ids = r#"{"model":"m","input_ids":[1,2,3]}"#.to_owned();
    let (mut client, step) = Client::post(&mut router, "/generate", ids);
    assert!(client.sent(&route(step))["bootstrap_room"].is_i64());
    // Nobody listens, and nothing has been answered.
    assert_eq!(answer(client.reply(&mut router, Reply::Failed)).status, 503);
    client.end(&mut router);
}

#[test]
fn a_body_that_cannot_be_read_is_not_sent_where_it_does_harm() {
    let headers = |encoding: &str| -> Vec<(String, Vec<u8>)> {
        [
            (":method", "POST"),
            (":path", "/v1/completions"),
            ("content-encoding", encoding),
        ]
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
        .to_vec()
    };
    for (connector, harm) in [
        ("nixl", false),
        ("mooncake", false),
        ("p2p_nccl", true),
        ("sglang", true),
    ] {
        let mut router = router(&json!(connector), |_| {});
        let head = Head {
            headers: &headers("gzip"),
            end_of_stream: false,
        };
        let step = Exchange::default().on_headers(&mut router, head, NOW_US);
        assert_eq!(matches!(step, Step::Answer(_)), harm, "{connector}");
    }
}

#[test]
fn nothing_is_sent_to_a_pool_that_prefills() {
    let router = nixl();
    assert_eq!(router.config().default_pool, Some(0));
    assert!(router.any_model().is_none());
    let target = router.default_target(Some(b"p")).unwrap();
    assert_eq!(target.pool, 0);
}

#[test]
fn no_prefill_engine_is_no_reason_to_refuse() {
    let empty = |config: &mut Value| config["pools"][1]["endpoints"] = json!({"static": []});
    let mut alone = router(&json!("nixl"), empty);
    let (mut client, step) = Client::chat(&mut alone, long(""));
    route(step);
    let skip = Skip::NoPrefillEngine;
    assert_eq!(client.notes(), [Note::Skipped { pool: 0, skip }]);
    client.end(&mut alone);
    let mut router = router(&json!("sglang"), empty);
    let (mut client, step) = Client::chat(&mut router, long(""));
    assert_eq!(answer(step).status, 503);
    client.end(&mut router);
}

#[test]
fn what_pools_may_be_joined() {
    let errors = |edit: &dyn Fn(&mut Value)| {
        let mut config = json!({
            "pools": [
                {"name": "a", "models": ["m"], "endpoints": {"static": []},
                 "disaggregation": {"prefill_pool": "b", "connector": "nixl"}},
                {"name": "b", "endpoints": {"static": []}},
                {"name": "c", "models": ["x"], "endpoints": {"static": []}}
            ]
        });
        edit(&mut config);
        let parsed = Config::parse(config.to_string().as_bytes());
        parsed
            .err()
            .unwrap_or_default()
            .iter()
            .map(|it| it.path.clone())
            .collect::<Vec<_>>()
    };
    assert!(errors(&|_| {}).is_empty());
    let prefill = "config.pools[0].disaggregation.prefill_pool";
    assert_eq!(
        errors(&|it| it["pools"][0]["disaggregation"]["prefill_pool"] = json!("a")),
        [prefill]
    );
    assert_eq!(
        errors(&|it| it["pools"][0]["disaggregation"]["prefill_pool"] = json!("z")),
        [prefill]
    );
    assert_eq!(
        errors(&|it| it["pools"][1]["models"] = json!(["y"])),
        ["config.pools[1].models"]
    );
    assert_eq!(
        errors(&|it| it["default_pool"] = json!("b")),
        ["config.default_pool"]
    );
    let nested = |it: &mut Value| {
        it["pools"][1]["disaggregation"] = json!({"prefill_pool": "c", "connector": "nixl"});
        it["pools"][2].as_object_mut().unwrap().remove("models");
    };
    assert_eq!(errors(&nested), ["config.pools[1].disaggregation"]);
    let bad = |it: &mut Value| {
        it["pools"][0]["disaggregation"]["connector"] = json!({"p2p_nccl": {"port": 0}})
    };
    assert_eq!(
        errors(&bad),
        ["config.pools[0].disaggregation.connector.p2p_nccl.port"]
    );
}

#[test]
fn no_decode_engine_waits_for_engines_that_are_known_to_fail() {
    for (connector, status) in [("sglang", 503), ("nixl", 200)] {
        let mut router = router(&json!(connector), |config| {
            config["health"] = json!({"failures": 1});
            config["pools"][1]["endpoints"]["static"] = json!([{"address": PREFILL[0]}]);
        });
        let (mut client, step) = Client::chat(&mut router, long(""));
        assert!(!matches!(step, Step::Answer(_)));
        client.reply(&mut router, Reply::Failed);
        client.end(&mut router);
        let (mut client, step) = Client::chat(&mut router, long(r#""seed":1,"#));
        match step {
            Step::Answer(answer) => assert_eq!((answer.status, status), (503, 503)),
            step => assert_eq!((route(step).beside, status), (None, 200)),
        }
        let skip = Skip::NoPrefillEngine;
        assert_eq!(client.notes(), [Note::Skipped { pool: 0, skip }]);
        client.end(&mut router);
    }
}
