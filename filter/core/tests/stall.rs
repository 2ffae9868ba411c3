//! Engines that take requests and give no token: who finds out, when, and who must not be taken for one.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a panic is a failed test"
)]

use serde_json::{Value, json};
use std::collections::BTreeSet;
use warmpath_core::Config;
use warmpath_core::call::Reply;
use warmpath_core::router::{Ask, Charge, Outcome, PromptFacts, Response, Router, State};
use warmpath_core::scan::{CHUNK_BYTES, Link};
use warmpath_core::scrape::Call;
use warmpath_core::store::MemoryStore;

const SECOND: u64 = 1_000_000;
const TICK: u64 = SECOND / 8;
/// The engine that stalls in these tests.
const BAD: usize = 1;

/// One process: a few workers over one store, and the requests they have in flight.
struct World<'a> {
    workers: Vec<Router<&'a MemoryStore>>,
    /// What the bad engine says in its metrics, if it is asked.
    page: Option<Box<dyn Fn(u64) -> String>>,
    now_us: u64,
}

/// A request in flight: its worker, and how it is counted.
struct Flight(usize, Charge);

fn config(policy: &str) -> Value {
    let list: Vec<Value> = (0..4).map(|n| json!({"address": address(n)})).collect();
    json!({"discovery": "off", "scrape": "off",
        "pools": [{"name": "p", "models": ["m"], "policy": policy, "endpoints": {"static": list}}]})
}

fn address(number: usize) -> String {
    format!("10.0.0.{}:8000", number + 1)
}

fn prompt(tokens: usize, streamed: bool) -> PromptFacts {
    let bytes = tokens * 4;
    PromptFacts {
        chain: (1..=bytes / CHUNK_BYTES)
            .map(|chunk| Link {
                // Never seen before.
                hash: warmpath_core::hash::mix(tokens as u64, chunk as u64),
                end: chunk * CHUNK_BYTES,
            })
            .collect(),
        bytes,
        conversation: tokens as u64,
        streamed,
        output_tokens: Some(1),
        told: None,
    }
}

impl<'a> World<'a> {
    fn new(config: &Value, workers: usize, store: &'a MemoryStore) -> Self {
        let parsed = || Config::parse(config.to_string().as_bytes()).expect("a valid config");
        let now_us = 1_000 * SECOND;
        let mut world = World {
            workers: (0..workers)
                .map(|_| Router::new(parsed(), store, now_us))
                .collect(),
            page: None,
            now_us,
        };
        // Everybody has joined and knows the others.
        for at in 0..workers {
            let flight = world.ask(at, None);
            world.answer(flight);
        }
        world.run(1.0);
        world
    }

    fn run(&mut self, seconds: f64) {
        let end_us = self.now_us + (seconds * SECOND as f64) as u64;
        while self.now_us < end_us {
            self.now_us += TICK;
            for at in 0..self.workers.len() {
                self.tick(at);
            }
        }
    }

    fn tick(&mut self, at: usize) {
        self.workers[at].tick(self.now_us);
        for (call, _) in self.workers[at].calls(self.now_us) {
            let page = match (&call, &self.page) {
                (Call::Metrics(socket), Some(page)) if socket.to_string() == address(BAD) => {
                    Some(page(self.now_us))
                }
                _ => None,
            };
            let reply = match &page {
                Some(page) => Reply::Answer {
                    status: 200,
                    body: page.as_bytes(),
                },
                None => Reply::Failed,
            };
            self.workers[at].call_ended(&call, reply, self.now_us);
        }
    }

    /// Sends a request; to whom is up to the policy.
    fn ask(&mut self, at: usize, prompt: Option<PromptFacts>) -> Flight {
        self.now_us += 10;
        let router = &mut self.workers[at];
        let target = router.target(b"m").expect("a pool").clone();
        let ask = Ask {
            target: &target,
            key: None,
            prompt,
            priority: Default::default(),
        };
        let (_, mut charge) = router.decide(ask, self.now_us).expect("endpoints");
        router.sent(&mut charge, None, self.now_us);
        Flight(at, charge)
    }

    /// Sends requests, and answers them all, until one went to the bad engine.
    fn ask_bad(&mut self, at: usize, tokens: Option<usize>, streamed: bool) -> Flight {
        for number in 0..100 {
            let prompt = tokens.map(|tokens| prompt(tokens + number, streamed));
            let flight = self.ask(at, prompt);
            if self.is_bad(&flight) {
                return flight;
            }
            self.answer(flight);
        }
        panic!("the bad engine is not asked");
    }

    fn is_bad(&self, Flight(at, charge): &Flight) -> bool {
        self.workers[*at].address(charge.position()) == address(BAD)
    }

    fn headers(&mut self, Flight(at, charge): &mut Flight) {
        let router = &mut self.workers[*at];
        let address = router.address(charge.position()).to_owned();
        let response = Response {
            status: 200,
            address: address.as_bytes(),
            by_engine: true,
            retry_after_s: None,
        };
        router.responded(charge, response, self.now_us);
    }

    fn token(&mut self, flight: &mut Flight) {
        let Flight(at, charge) = flight;
        self.workers[*at].first_token(charge, self.now_us);
        self.workers[*at].heard(charge);
    }

    fn answer(&mut self, mut flight: Flight) {
        self.headers(&mut flight);
        self.token(&mut flight);
        self.end(flight, Outcome::Served { output_tokens: 1 });
    }

    fn end(&mut self, Flight(at, charge): Flight, outcome: Outcome) {
        self.workers[at].end(charge, outcome, self.now_us);
    }

    /// A request each tick and worker for this time, all answered but those to the bad engine.
    fn serve(&mut self, seconds: f64, lost: &mut Vec<Flight>) {
        for _ in 0..(seconds * 8.0) as usize {
            for at in 0..self.workers.len() {
                let flight = self.ask(at, None);
                match self.is_bad(&flight) {
                    true => lost.push(flight),
                    false => self.answer(flight),
                }
            }
            self.run(0.125);
        }
    }

    fn states(&self) -> BTreeSet<&'static str> {
        let bad = |router: &Router<_>| {
            let position = (0..4).find(|at| router.address(*at) == address(BAD));
            router
                .state(0, position.expect("an endpoint"), self.now_us)
                .name()
        };
        self.workers.iter().map(bad).collect()
    }

    fn is_stalled(&self) -> bool {
        self.states() == BTreeSet::from([State::Stalled.name()])
    }

    fn is_healthy(&self) -> bool {
        self.states() == BTreeSet::from([State::Healthy.name()])
    }
}

/// Waits of a tenth of a second, so that the measure is known.
fn learn(world: &mut World, prompt: impl Fn() -> Option<PromptFacts>) {
    for _ in 0..40 {
        for at in 0..world.workers.len() {
            let flight = world.ask(at, prompt());
            world.now_us += SECOND / 10;
            world.answer(flight);
            world.run(0.125);
        }
    }
}

#[test]
fn all_workers_put_a_stalled_engine_aside_and_probe_it() {
    for policy in ["round_robin", "least_request"] {
        let store = MemoryStore::new();
        let mut world = World::new(&config(policy), 3, &store);
        learn(&mut world, || None);
        let mut lost = Vec::new();
        world.serve(9.5, &mut lost);
        assert!(world.is_healthy(), "{policy}: {:?}", world.states());
        world.serve(1.0, &mut lost);
        assert!(world.is_stalled(), "{policy}: {:?}", world.states());
        let in_flight = lost.len();
        world.serve(1.0, &mut lost);
        assert_eq!(lost.len(), in_flight, "{policy}: it is left alone");
        // Probes after 2, 2, 4, 8 and 16 seconds; each may be that of several workers at once.
        world.serve(40.0, &mut lost);
        let probes = lost.len() - in_flight;
        assert!((4..=6).contains(&probes), "{policy}: {probes} probes");
        assert_ne!(world.states(), BTreeSet::from(["healthy"]), "{policy}");
        // Headers are no token.
        let mut probe = lost.pop().expect("probes");
        world.headers(&mut probe);
        world.run(0.25);
        assert!(world.is_stalled(), "{policy}: {:?}", world.states());
        world.token(&mut probe);
        world.run(0.25);
        let states = world.states();
        assert_eq!(states, BTreeSet::from(["slow_start"]), "{policy}");
        // What was lost before says nothing of the time after.
        world.run(30.0);
        assert!(world.is_healthy(), "{policy}: {:?}", world.states());
        for flight in lost {
            world.end(flight, Outcome::Failed);
        }
        world.end(probe, Outcome::Served { output_tokens: 1 });
        let mut served = Vec::new();
        world.serve(2.0, &mut served);
        assert!(!served.is_empty(), "{policy}: it is used again");
        for router in &world.workers {
            assert!(
                (0..4).all(|at| at == BAD || router.in_flight(at) == 0),
                "{policy}"
            );
        }
    }
}

#[test]
fn a_sign_of_life_that_another_worker_sees_counts() {
    let store = MemoryStore::new();
    let mut world = World::new(&config("round_robin"), 2, &store);
    learn(&mut world, || None);
    let silent = world.ask_bad(0, None, true);
    let mut stream = world.ask_bad(1, None, true);
    for _ in 0..30 {
        world.token(&mut stream);
        world.run(1.0);
        assert!(world.is_healthy(), "{:?}", world.states());
    }
    world.end(stream, Outcome::Served { output_tokens: 30 });
    world.run(9.0);
    assert!(world.is_healthy());
    world.run(2.0);
    assert!(world.is_stalled(), "now there is only the silent one");
    world.end(silent, Outcome::Failed);
}

#[test]
fn a_stream_that_stops_in_the_middle_is_silence_too() {
    let store = MemoryStore::new();
    let mut world = World::new(&config("round_robin"), 2, &store);
    learn(&mut world, || None);
    let mut stream = world.ask_bad(0, None, true);
    world.headers(&mut stream);
    world.token(&mut stream);
    world.run(9.0);
    assert!(world.is_healthy());
    world.run(2.0);
    assert!(world.is_stalled());
    // It goes on: that is as good as a probe.
    world.token(&mut stream);
    world.run(0.25);
    assert_eq!(world.states(), BTreeSet::from(["slow_start"]));
}

#[test]
fn a_long_prefill_is_no_stall() {
    let store = MemoryStore::new();
    let mut world = World::new(&config("prefix"), 2, &store);
    // Ten thousand tokens a second, however they are spread.
    for number in 0..60 {
        let flight = world.ask(number % 2, Some(prompt(2000 + number, true)));
        world.now_us += SECOND / 5;
        world.answer(flight);
        world.run(0.125);
    }
    let short = world.ask_bad(0, Some(4000), true);
    world.run(9.5);
    assert!(world.is_healthy());
    world.run(2.5);
    assert!(world.is_stalled(), "a short prompt: {:?}", world.states());
    world.answer(short);
    world.run(12.0);
    assert!(world.is_healthy(), "{:?}", world.states());
    let long = world.ask_bad(0, Some(200_000), true);
    // Behind it others wait, which must not shorten the measure, nor lengthen it without end.
    let behind = world.ask(1, Some(prompt(1000, true)));
    for _ in 0..40 {
        world.run(1.0);
        assert!(world.is_healthy(), "{:?}", world.states());
    }
    world.answer(long);
    world.end(behind, Outcome::Failed);
}

#[test]
fn a_whole_answer_may_take_as_long_as_others_did() {
    let store = MemoryStore::new();
    let mut world = World::new(&config("prefix"), 2, &store);
    for number in 0..80 {
        let flight = world.ask(number % 2, Some(prompt(100 + number, false)));
        for _ in 0..16 {
            world.run(0.5);
        }
        world.answer(flight);
        assert!(world.is_healthy(), "{:?}", world.states());
    }
    // Eight seconds are normal, four times that is not.
    let whole = world.ask_bad(0, Some(1001), false);
    for _ in 0..30 {
        world.run(1.0);
        assert!(world.is_healthy(), "{:?}", world.states());
    }
    world.run(6.0);
    assert!(world.is_stalled());
    world.end(whole, Outcome::Failed);
}

#[test]
fn what_the_engine_says_that_it_generates_is_a_sign_of_life() {
    for grows in [true, false] {
        let store = MemoryStore::new();
        let mut config = config("round_robin");
        config["scrape"] = json!("metrics");
        let mut world = World::new(&config, 2, &store);
        learn(&mut world, || None);
        world.page = Some(Box::new(move |now_us| {
            let tokens = if grows { now_us / SECOND } else { 7 };
            format!("vllm:generation_tokens_total {tokens}\nvllm:request_success_total 3\n")
        }));
        world.run(3.0);
        let silent = world.ask_bad(0, None, true);
        world.run(11.5);
        assert_eq!(world.is_stalled(), !grows, "{:?}", world.states());
        world.end(silent, Outcome::Failed);
    }
}

#[test]
fn a_time_that_nobody_watched_is_no_silence() {
    let store = MemoryStore::new();
    let mut world = World::new(&config("round_robin"), 2, &store);
    learn(&mut world, || None);
    let flight = world.ask_bad(0, None, true);
    world.run(2.0);
    world.now_us += 3600 * SECOND;
    world.run(9.0);
    assert!(world.is_healthy(), "{:?}", world.states());
    world.now_us -= 3600 * SECOND;
    world.run(9.0);
    assert!(world.is_healthy(), "{:?}", world.states());
    world.run(2.0);
    assert!(world.is_stalled());
    world.end(flight, Outcome::Failed);
}

#[test]
fn an_engine_is_not_to_blame_for_what_it_was_not_sent() {
    let store = MemoryStore::new();
    let mut world = World::new(&config("round_robin"), 1, &store);
    learn(&mut world, || None);
    let router = &mut world.workers[0];
    let target = router.target(b"m").expect("a pool").clone();
    for _ in 0..4 {
        let ask = Ask {
            target: &target,
            key: None,
            prompt: None,
            priority: Default::default(),
        };
        // Its body is still on its way from the client.
        assert!(router.decide(ask, world.now_us).is_ok());
    }
    world.run(60.0);
    assert!(world.is_healthy(), "{:?}", world.states());
}

#[test]
fn the_least_silence_can_be_set_and_turned_off() {
    for (stall_ms, quiet_s, late_s) in [(1000, 0.75, 0.5), (30_000, 29.0, 2.0), (0, 1.0, 600.0)] {
        let store = MemoryStore::new();
        let mut config = config("round_robin");
        config["health"] = json!({"stall_ms": stall_ms});
        let mut world = World::new(&config, 2, &store);
        learn(&mut world, || None);
        let flight = world.ask_bad(1, None, true);
        world.run(quiet_s);
        assert!(world.is_healthy(), "{stall_ms}: {:?}", world.states());
        world.run(late_s);
        assert_eq!(world.is_stalled(), stall_ms > 0, "{stall_ms}");
        world.end(flight, Outcome::Failed);
    }
    for wrong in [json!(999), json!(-1), json!(600_001), json!("off")] {
        let mut config = config("round_robin");
        config["health"] = json!({"stall_ms": wrong});
        let errors = Config::parse(config.to_string().as_bytes()).expect_err("refused");
        assert_eq!(errors[0].path, "config.health.stall_ms");
    }
}
