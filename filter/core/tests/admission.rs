//! Admission: a pool answers 429 when every engine has as much to do as it is given, and not before.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a panic is a failed test"
)]

use serde_json::{Value, json};
use warmpath_core::answer::Answer;
use warmpath_core::call::Reply;
use warmpath_core::router::{Outcome, Response, Router};
use warmpath_core::scan::Api;
use warmpath_core::scrape::Call;
use warmpath_core::store::MemoryStore;
use warmpath_core::{Config, Decision, Exchange, Head, Reason, Step};

const SECOND: u64 = 1_000_000;
/// Longer than a column of a peer may be old.
const LATER_US: u64 = 1_000;
/// Bytes that stand for a token.
const BYTES_PER_TOKEN: usize = 4;

/// Workers of one process.
struct World<'a> {
    workers: Vec<Router<&'a MemoryStore>>,
    now_us: u64,
}

/// A request that was sent to an engine and has not ended.
#[derive(Debug)]
struct Sent {
    worker: usize,
    exchange: Exchange,
    decision: Decision,
}

impl<'a> World<'a> {
    fn new(store: &'a MemoryStore, engines: usize, workers: usize, pool: Value) -> Self {
        let list: Vec<Value> = (1..=engines)
            .map(|n| json!({"address": address(n)}))
            .collect();
        let mut entry = json!({"name": "p", "models": ["m"], "endpoints": {"static": list}});
        let fields = entry.as_object_mut().expect("an object");
        fields.extend(pool.as_object().expect("an object").clone());
        let config = json!({"pools": [entry], "health": {"none_usable": "answer"}});
        let config = || Config::parse(config.to_string().as_bytes()).expect("a valid config");
        let now_us = 1_000 * SECOND;
        let routers = (0..workers).map(|_| Router::new(config(), store, now_us));
        let mut world = World {
            workers: routers.collect(),
            now_us,
        };
        if workers > 1 {
            world.introduce();
        }
        world
    }

    /// Lets the workers learn of each other, which they do by heartbeats.
    fn introduce(&mut self) {
        for _ in 0..3 {
            self.now_us += SECOND;
            for router in &mut self.workers {
                router.attend(self.now_us);
                router.tick(self.now_us);
            }
        }
    }

    /// Sends a request at this very moment.
    fn ask_now(
        &mut self,
        worker: usize,
        headers: &[(&str, &str)],
        text: &str,
    ) -> Result<Sent, Answer> {
        let router = &mut self.workers[worker];
        let all = headers_of(headers);
        let mut exchange = Exchange::default();
        let head = Head {
            headers: &all,
            end_of_stream: false,
        };
        let mut step = exchange.on_headers(router, head, self.now_us);
        if step == Step::Hold {
            step = exchange.on_body(router, body(text).as_bytes(), true, self.now_us);
        }
        match step {
            Step::Route(decision) => Ok(Sent {
                worker,
                exchange,
                decision,
            }),
            Step::Answer(answer) => {
                assert!(!exchange.is_charged(), "a refused request is counted");
                Err(answer)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Sends a request when every worker knows of all before it.
    fn ask(&mut self, worker: usize, headers: &[(&str, &str)], text: &str) -> Result<Sent, Answer> {
        self.now_us += LATER_US;
        self.ask_now(worker, headers, text)
    }

    /// Sends requests of high priority until one is refused, in turn through all workers.
    fn fill(&mut self, headers: &[(&str, &str)]) -> Vec<Sent> {
        let mut sent = Vec::new();
        loop {
            match self.ask(sent.len() % self.workers.len(), headers, "hello") {
                Ok(one) => sent.push(one),
                Err(answer) => {
                    assert_eq!(answer.status, 429);
                    return sent;
                }
            }
            assert!(sent.len() <= 1000, "nothing is refused");
        }
    }

    fn end(&mut self, mut sent: Sent) {
        self.now_us += LATER_US;
        let outcome = Outcome::Served { output_tokens: 1 };
        let router = &mut self.workers[sent.worker];
        sent.exchange.end(router, outcome, self.now_us);
    }
}

fn address(number: usize) -> String {
    format!("10.0.0.{number}:8000")
}

fn headers_of(more: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
    let fixed = [(":method", "POST"), (":path", "/v1/chat/completions")];
    let all = fixed.iter().chain(more);
    all.map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()))
        .collect()
}

fn body(text: &str) -> String {
    let message = json!({"role": "user", "content": text});
    json!({"model": "m", "messages": [message], "stream": true}).to_string()
}

const LOW: &[(&str, &str)] = &[("x-warmpath-priority", "low")];

#[test]
fn at_the_bound_of_all_engines_a_request_is_refused_and_below_it_is_not() {
    let store = MemoryStore::new();
    let admission = json!({"admission": {"max_requests": 3, "retry_after_s": 7}});
    let mut world = World::new(&store, 2, 1, admission);
    let mut sent = world.fill(&[]);
    assert_eq!(sent.len(), 6);
    assert_eq!(
        (world.workers[0].in_flight(0), world.workers[0].in_flight(1)),
        (3, 3)
    );
    let answer = world.ask(0, &[], "hello").expect_err("a refusal");
    assert_eq!(
        (answer.status, answer.retry_after_s, answer.cause),
        (429, Some(7), "overloaded")
    );
    let shown: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(shown["error"]["code"], "overloaded");
    assert_eq!(shown["error"]["type"], "rate_limit_error");
    assert_eq!(answer.shed.map(|shed| shed.pool), Some(0));

    let first = sent.pop().expect("a request");
    let freed = first.decision.ranked[0];
    world.end(first);
    let again = world.ask(0, &[], "hello").expect("there is room");
    assert_eq!(again.decision.ranked[0], freed);
    assert!(world.ask(0, &[], "hello").is_err());
    world.end(again);
    sent.into_iter().for_each(|sent| world.end(sent));
    assert_eq!(
        (world.workers[0].in_flight(0), world.workers[0].in_flight(1)),
        (0, 0)
    );
    assert_eq!(world.fill(&[]).len(), 6, "refusals leave nothing behind");
}

#[test]
fn low_priority_is_refused_first() {
    let store = MemoryStore::new();
    let admission = json!({"admission": {"max_requests": 10, "low_priority_percent": 50}});
    let mut world = World::new(&store, 2, 1, admission);
    let low = world.fill(LOW);
    assert_eq!(low.len(), 10, "half of 20");
    let answer = world.ask(0, LOW, "hello").expect_err("a refusal");
    assert!(answer.body.contains("low priority"), "{}", answer.body);
    let high = world.fill(&[("x-warmpath-priority", "high")]);
    assert_eq!(high.len(), 10, "the other half");
    assert!(world.ask(0, LOW, "hello").is_err());
    high.into_iter().for_each(|sent| world.end(sent));
    assert!(world.ask(0, LOW, "hello").is_err(), "still at its share");
    low.into_iter().for_each(|sent| world.end(sent));
    assert!(world.ask(0, LOW, "hello").is_ok());
}

#[test]
fn the_bound_is_that_of_all_workers_together() {
    let store = MemoryStore::new();
    let mut world = World::new(&store, 2, 4, json!({"admission": {"max_requests": 5}}));
    let mut sent = world.fill(&[]);
    assert_eq!(sent.len(), 10);
    (0..4).for_each(|at| assert!(world.ask(at, &[], "hello").is_err(), "worker {at}"));
    // What comes to all workers in the same moment is not known to the others yet.
    let last = sent.pop().expect("a request");
    world.end(last);
    world.now_us += LATER_US;
    let burst: Vec<_> = (0..4).map(|at| world.ask_now(at, &[], "hello")).collect();
    let admitted = burst.iter().filter(|result| result.is_ok()).count();
    assert!((1..=4).contains(&admitted), "{admitted} of one place");
    (0..4).for_each(|at| assert!(world.ask(at, &[], "hello").is_err(), "worker {at}"));
}

#[test]
fn what_engines_say_of_other_requests_counts() {
    let store = MemoryStore::new();
    let mut world = World::new(&store, 1, 1, json!({"admission": {"max_requests": 10}}));
    let page = "vllm:num_requests_running 6\nvllm:num_requests_waiting 2\n";
    for _ in 0..30 {
        world.now_us += SECOND / 8;
        world.workers[0].tick(world.now_us);
        for (call, _) in world.workers[0].calls(world.now_us) {
            let reply = match call {
                Call::Metrics(_) => Reply::Answer {
                    status: 200,
                    body: page.as_bytes(),
                },
                _ => Reply::Failed,
            };
            world.workers[0].call_ended(&call, reply, world.now_us);
        }
    }
    assert_eq!(world.fill(&[]).len(), 2);
}

#[test]
fn queued_prefill_is_bounded_and_a_long_prompt_is_not() {
    let store = MemoryStore::new();
    let pool = json!({"policy": "prefix", "admission": {"max_queued_tokens": 1000}});
    let mut world = World::new(&store, 2, 1, pool);
    let text = |own: usize, tokens: usize| format!("{own}").repeat(tokens * BYTES_PER_TOKEN);
    let long = world
        .ask(0, &[], &text(1, 5000))
        .expect("an idle engine takes any prompt");
    let short = world.ask(0, &[], &text(2, 500)).expect("room");
    let other = world
        .ask(0, &[], &text(3, 600))
        .expect("500 tokens are below the bound");
    assert_ne!(long.decision.ranked[0], short.decision.ranked[0]);
    assert_eq!(short.decision.ranked[0], other.decision.ranked[0]);
    assert_eq!(
        world.ask(0, &[], &text(4, 10)).err().map(|it| it.status),
        Some(429)
    );
    // The first token tells that the prompt is prefilled.
    let mut long = long;
    world.now_us += LATER_US;
    long.exchange
        .first_token(&mut world.workers[0], world.now_us);
    assert!(world.ask(0, &[], &text(5, 10)).is_ok());
}

#[test]
fn a_full_engine_is_passed_by_while_another_has_room() {
    for candidates in [1, 2, 3] {
        let store = MemoryStore::new();
        let pool = json!({
            "policy": "consistent_hash", "candidates": candidates,
            "admission": {"max_requests": 2, "low_priority_percent": 50},
        });
        let mut world = World::new(&store, 3, 1, pool);
        let session = &[("x-session-id", "s")];
        let sent = world.fill(session);
        assert_eq!(sent.len(), 6, "one session, three engines");
        let owner = sent[0].decision.ranked[0];
        for (number, sent) in sent.iter().enumerate() {
            let decision = &sent.decision;
            assert_eq!(decision.ranked.len(), candidates);
            assert_eq!(decision.ranked[0] == owner, number < 2, "{number}");
            let want = match number < 2 {
                true => Reason::SessionOwner,
                false => Reason::PreferredFull,
            };
            assert_eq!(decision.reason, want, "{number}");
        }
        assert_eq!(
            (0..3).map(|at| world.workers[0].in_flight(at)).max(),
            Some(2)
        );
    }
}

#[test]
fn engines_that_may_not_be_used_have_no_room() {
    let store = MemoryStore::new();
    let mut world = World::new(&store, 2, 1, json!({"admission": {"max_requests": 1}}));
    let sent = world.ask(0, &[], "hello").expect("room");
    let mut busy = world.ask(0, &[], "hello").expect("room");
    let address = address(busy.decision.ranked[0] + 1);
    let response = Response {
        status: 503,
        address: address.as_bytes(),
        by_engine: true,
        retry_after_s: Some(60),
    };
    busy.exchange
        .responded(&mut world.workers[0], response, world.now_us);
    world.end(busy);
    assert_eq!(
        world.ask(0, &[], "hello").err().map(|it| it.status),
        Some(429)
    );
    world.end(sent);
    assert!(world.ask(0, &[], "hello").is_ok());

    let empty = MemoryStore::new();
    let mut world = World::new(&empty, 0, 1, json!({"admission": {"max_requests": 1}}));
    let answer = world.ask(0, &[], "hello").expect_err("no endpoint");
    assert_eq!(
        (answer.status, answer.shed),
        (503, None),
        "nobody is there to be full"
    );
}

#[test]
fn what_would_be_decided_is_told_as_it_would_be() {
    let store = MemoryStore::new();
    let pool = json!({"admission": {"max_requests": 10, "low_priority_percent": 10}});
    let mut world = World::new(&store, 1, 1, pool);
    let _sent = world.ask(0, &[], "hello").expect("room");
    let explain = |headers: &[(&str, &str)]| {
        let (router, now_us) = (&world.workers[0], world.now_us);
        let text = body("hello");
        let headers = headers_of(headers);
        Exchange::explain(
            router,
            Api::ChatCompletions,
            &headers,
            text.as_bytes(),
            now_us,
        )
    };
    assert!(explain(&[]).is_ok());
    assert_eq!(explain(LOW).err().map(|it| it.status), Some(429));
}

#[test]
fn without_admission_nothing_is_refused() {
    let store = MemoryStore::new();
    let mut world = World::new(&store, 1, 1, json!({}));
    for _ in 0..500 {
        let sent = world.ask(0, LOW, "hello").expect("no bound");
        assert_ne!(sent.decision.reason, Reason::PreferredFull);
    }
}
