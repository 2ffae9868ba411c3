//! Engine awareness: endpoints that come and go, health, figures of engines, failures seen by requests.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod prompts;

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::iter::repeat_n;
use warmpath_core::call::Reply;
use warmpath_core::router::{Ask, Charge, Outcome, PromptFacts, Response, Router, State};
use warmpath_core::scrape::Call;
use warmpath_core::store::MemoryStore;
use warmpath_core::wire::orca::OrcaLoad;
use warmpath_core::{Config, Decision, Exchange, Fallback, Head, Reason, Step};

const SECOND: u64 = 1_000_000;
const TICK: u64 = SECOND / 8;

/// One process: a few workers over one store, and what Envoy and the engines would answer them.
struct World<'a> {
    workers: Vec<Router<&'a MemoryStore>>,
    hosts: BTreeMap<String, Value>,
    weights: BTreeMap<String, u32>,
    pages: BTreeMap<String, String>,
    models: BTreeMap<String, Vec<&'static str>>,
    calls: BTreeMap<String, u32>,
    /// Envoy's answer about what is written about endpoints.
    metadata: Option<String>,
    admin_works: bool,
    now_us: u64,
}

impl<'a> World<'a> {
    fn new(config: &Value, workers: usize, store: &'a MemoryStore) -> Self {
        let parsed = || Config::parse(config.to_string().as_bytes()).expect("a valid config");
        let now_us = 1_000 * SECOND;
        World {
            workers: (0..workers)
                .map(|_| Router::new(parsed(), store, now_us))
                .collect(),
            hosts: BTreeMap::new(),
            weights: BTreeMap::new(),
            pages: BTreeMap::new(),
            models: BTreeMap::new(),
            calls: BTreeMap::new(),
            metadata: None,
            admin_works: true,
            now_us,
        }
    }

    fn host(&mut self, address: &str, health: Value) {
        self.hosts.insert(address.to_owned(), health);
    }

    /// Envoy's answer about cluster `p`.
    fn clusters(&self) -> String {
        let hosts: Vec<Value> = self
            .hosts
            .iter()
            .map(|(address, health)| {
                let (ip, port) = address.rsplit_once(':').expect("ip:port");
                let port: u16 = port.parse().expect("a port");
                json!({
                    "address": {"socket_address": {"address": ip, "port_value": port}},
                    "health_status": health,
                    "weight": self.weights.get(address).copied().unwrap_or(1),
                })
            })
            .collect();
        json!({"cluster_statuses": [{"name": "p", "host_statuses": hosts}]}).to_string()
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
        for (call, http) in self.workers[at].calls(self.now_us) {
            *self
                .calls
                .entry(format!("{} {}", http.authority, http.path))
                .or_default() += 1;
            let answer = match &call {
                Call::Peers => None,
                Call::Endpoints if self.admin_works => Some(self.clusters()),
                Call::Endpoints => None,
                Call::Metadata => self.metadata.clone(),
                Call::Metrics(address) => self.pages.get(&address.to_string()).cloned(),
                Call::Models(address) => self.models.get(&address.to_string()).map(|names| {
                    let data: Vec<Value> = names.iter().map(|name| json!({"id": name})).collect();
                    json!({"object": "list", "data": data}).to_string()
                }),
            };
            let reply = match &answer {
                Some(body) => Reply::Answer {
                    status: 200,
                    body: body.as_bytes(),
                },
                None => Reply::Failed,
            };
            self.workers[at].call_ended(&call, reply, self.now_us);
        }
    }

    fn ask(&mut self, at: usize, model: &str) -> Result<(Decision, Charge), u16> {
        self.now_us += 10;
        let router = &mut self.workers[at];
        let target = router.target(model.as_bytes()).cloned().ok_or(404_u16)?;
        let ask = Ask {
            target: &target,
            key: None,
            prompt: None,
            priority: Default::default(),
        };
        router
            .decide(ask, self.now_us)
            .map_err(|answer| answer.status)
    }

    fn named(&mut self, at: usize) -> Vec<String> {
        let (decision, charge) = self.ask(at, "m").expect("endpoints");
        let router = &mut self.workers[at];
        let named = decision
            .ranked
            .iter()
            .map(|it| router.address(*it).to_owned())
            .collect();
        router.end(charge, Outcome::Served { output_tokens: 1 }, self.now_us);
        named
    }

    fn respond(&mut self, at: usize, status: u16, retry_after_s: Option<u64>) -> String {
        let (decision, mut charge) = self.ask(at, "m").expect("endpoints");
        let router = &mut self.workers[at];
        let address = router.address(decision.ranked[0]).to_owned();
        let response = Response {
            status,
            address: address.as_bytes(),
            by_engine: true,
            retry_after_s,
        };
        router.responded(&mut charge, response, self.now_us);
        router.end(charge, Outcome::Failed, self.now_us);
        address
    }

    /// Everybody that anybody is sent to in many requests.
    fn in_use(&mut self) -> BTreeSet<String> {
        let workers = self.workers.len();
        (0..60)
            .map(|number| self.named(number % workers).remove(0))
            .collect()
    }
}

fn discovered() -> Value {
    json!({"pools": [{"name": "p", "models": ["m"], "endpoints": "envoy"}]})
}

fn fixed(engines: usize) -> Value {
    let list: Vec<Value> = (1..=engines)
        .map(|n| json!({"address": address(n)}))
        .collect();
    json!({"pools": [{"name": "p", "models": ["m"], "endpoints": {"static": list}}]})
}

fn address(number: usize) -> String {
    format!("10.0.0.{number}:8000")
}

fn healthy() -> Value {
    json!({"eds_health_status": "HEALTHY"})
}

fn set(numbers: &[usize]) -> BTreeSet<String> {
    numbers.iter().map(|number| address(*number)).collect()
}

#[test]
fn endpoints_come_and_go_with_envoys_cluster() {
    let store = MemoryStore::new();
    let mut world = World::new(&discovered(), 3, &store);
    assert_eq!(world.ask(0, "m").map(|_| ()), Err(503), "none is known yet");
    (1..=3).for_each(|n| world.host(&address(n), healthy()));
    world.run(1.25);
    assert_eq!(world.in_use(), set(&[1, 2, 3]));
    let (decision, charge) = world.ask(1, "m").expect("endpoints");
    let gone = world.workers[1].address(decision.ranked[0]).to_owned();
    world.hosts.remove(&gone);
    world.host(&address(4), healthy());
    world.run(1.25);
    let now = world.in_use();
    assert!(
        !now.contains(&gone) && now.contains(&address(4)) && now.len() == 3,
        "{now:?}"
    );
    let position = charge.position();
    assert_eq!(
        world.workers[1].address(position),
        gone,
        "a request in flight keeps its endpoint"
    );
    let now_us = world.now_us;
    world.workers[1].end(charge, Outcome::Failed, now_us);
    assert_eq!(world.workers[1].in_flight(position), 0);
    world.hosts.clear();
    world.run(1.25);
    assert_eq!(world.ask(2, "m").map(|_| ()), Err(503));
}

#[test]
fn weights_are_the_configs_else_envoys_and_may_change() {
    let store = MemoryStore::new();
    let mut config = fixed(3);
    config["pools"][0]["policy"] = json!("round_robin");
    config["pools"][0]["endpoints"]["static"][2]["weight"] = json!(3);
    let mut world = World::new(&config, 1, &store);
    let shares = |world: &mut World| {
        let mut shares = [0; 3];
        for _ in 0..60 {
            let first = world.named(0).swap_remove(0);
            let of_first = (0..3).find(|at| address(at + 1) == first);
            shares[of_first.expect("one of three")] += 1;
        }
        shares
    };
    assert_eq!(shares(&mut world), [12, 12, 36]);
    (1..=3).for_each(|number| world.host(&address(number), healthy()));
    world.weights.insert(address(2), 6);
    world.weights.insert(address(3), 100);
    world.run(2.0);
    assert_eq!(shares(&mut world), [6, 36, 18]);
    world.weights.insert(address(1), 6);
    world.run(2.0);
    assert_eq!(shares(&mut world), [24, 24, 12]);
}

#[test]
fn positions_of_the_gone_are_used_again() {
    let store = MemoryStore::new();
    let mut world = World::new(&discovered(), 1, &store);
    for round in 0..50 {
        world.hosts.clear();
        (1..=4).for_each(|n| world.host(&address(round * 4 + n), healthy()));
        world.run(1.25);
        let named = world.named(0);
        let highest = named.len();
        assert_eq!(highest, 3);
        let (decision, charge) = world.ask(0, "m").expect("endpoints");
        assert!(
            decision.ranked.iter().all(|position| *position < 8),
            "{:?}",
            decision.ranked
        );
        let now_us = world.now_us;
        world.workers[0].end(charge, Outcome::Failed, now_us);
    }
}

#[test]
fn who_envoy_has_put_aside_is_never_named() {
    for health in [
        json!({"eds_health_status": "HEALTHY", "failed_active_health_check": true}),
        json!({"eds_health_status": "HEALTHY", "failed_outlier_check": true}),
        json!({"eds_health_status": "DRAINING"}),
        json!({"eds_health_status": "UNHEALTHY"}),
    ] {
        for config in [discovered(), fixed(3)] {
            let store = MemoryStore::new();
            let mut world = World::new(&config, 2, &store);
            (1..=3).for_each(|n| world.host(&address(n), healthy()));
            world.run(1.25);
            world.host(&address(2), health.clone());
            world.run(1.25);
            for number in 0..30 {
                let named = world.named(number % 2);
                assert_eq!(
                    named.iter().cloned().collect::<BTreeSet<_>>(),
                    set(&[1, 3]),
                    "{health}"
                );
            }
            world.host(&address(2), healthy());
            world.run(1.25);
            assert_eq!(world.in_use(), set(&[1, 2, 3]), "back after {health}");
        }
    }
}

#[test]
fn when_none_is_usable_all_are_or_the_answer_is_503() {
    let unhealthy = json!({"eds_health_status": "HEALTHY", "failed_active_health_check": true});
    for (none_usable, routed) in [("route", true), ("answer", false)] {
        let store = MemoryStore::new();
        let mut config = fixed(2);
        config["health"] = json!({"none_usable": none_usable});
        let mut world = World::new(&config, 1, &store);
        (1..=2).for_each(|n| world.host(&address(n), unhealthy.clone()));
        world.run(1.25);
        match world.ask(0, "m") {
            Ok((decision, _)) => {
                assert!(routed);
                assert_eq!(decision.fallback, Some(Fallback::LastResort));
            }
            Err(status) => assert!(!routed && status == 503),
        }
    }
}

#[test]
fn the_last_resort_is_who_only_envoy_is_against() {
    let unhealthy = json!({"eds_health_status": "HEALTHY", "failed_active_health_check": true});
    let store = MemoryStore::new();
    let mut world = World::new(&fixed(3), 1, &store);
    (1..=3).for_each(|n| world.host(&address(n), unhealthy.clone()));
    world.run(1.25);
    assert_eq!(world.in_use(), set(&[1, 2, 3]));
    let mut busy = BTreeSet::new();
    busy.insert(world.respond(0, 503, Some(60)));
    assert_eq!(world.in_use(), &set(&[1, 2, 3]) - &busy);
    while busy.len() < 3 {
        busy.insert(world.respond(0, 503, Some(60)));
    }
    assert_eq!(world.in_use(), set(&[1, 2, 3]), "there is nobody else");
}

#[test]
fn health_that_envoy_does_not_confirm_is_forgotten_but_not_the_endpoints() {
    let store = MemoryStore::new();
    let mut world = World::new(&discovered(), 1, &store);
    world.host(&address(1), healthy());
    world.host(&address(2), json!({"failed_active_health_check": true}));
    world.run(1.25);
    assert_eq!(world.in_use(), set(&[1]));
    world.admin_works = false;
    world.run(5.0);
    assert_eq!(world.in_use(), set(&[1]));
    world.run(7.0);
    assert_eq!(world.in_use(), set(&[1, 2]));
}

#[test]
fn one_of_all_workers_scrapes_each_engine_once_an_interval() {
    let store = MemoryStore::new();
    let mut world = World::new(&fixed(5), 4, &store);
    world.run(2.0);
    let before = world.calls.clone();
    world.run(20.0);
    for number in 1..=5 {
        let name = format!("{} /metrics", address(number));
        assert_eq!(world.calls[&name] - before[&name], 20, "{name}");
    }
    let holders = |world: &World| {
        world
            .workers
            .iter()
            .filter(|it| it.scout().holds_lease())
            .count()
    };
    assert_eq!(holders(&world), 1);
    let holder = world
        .workers
        .iter()
        .position(|it| it.scout().holds_lease())
        .expect("one");
    // Its VM traps: nobody tells.
    world.workers.remove(holder);
    let before = world.calls.clone();
    world.run(2.0);
    for number in 1..=5 {
        let name = format!("{} /metrics", address(number));
        assert!(world.calls[&name] > before[&name], "{name}");
    }
}

#[test]
fn a_new_config_scrapes_at_once_and_the_old_one_stops() {
    let store = MemoryStore::new();
    let mut world = World::new(&fixed(2), 2, &store);
    world.run(2.0);
    let mut config = fixed(2);
    config["debug_headers"] = json!(true);
    let mut newer = World::new(&config, 2, &store);
    newer.now_us = world.now_us;
    newer.run(0.25);
    assert_eq!(
        newer
            .workers
            .iter()
            .filter(|it| it.scout().holds_lease())
            .count(),
        1
    );
    world.calls.clear();
    for _ in 0..80 {
        newer.run(0.125);
        world.run(0.125);
    }
    assert_eq!(world.calls, BTreeMap::new());
    assert!(world.workers.iter().all(|it| !it.scout().holds_lease()));
}

#[test]
fn engines_tell_their_models() {
    let store = MemoryStore::new();
    let config = json!({"pools": [{"name": "p", "discover_models": true, "aliases": {"m": "a"},
        "endpoints": {"static": [{"address": address(1)}, {"address": address(2)}]}}]});
    let mut world = World::new(&config, 2, &store);
    assert_eq!(world.ask(0, "a").map(|_| ()), Err(404), "never seen");
    world.models.insert(address(1), vec!["a"]);
    world.models.insert(address(2), vec!["a", "b"]);
    world.run(12.0);
    assert_eq!(world.in_use(), set(&[1, 2]), "by the alias");
    let (decision, _) = world.ask(1, "b").expect("served");
    let router = &world.workers[1];
    assert_eq!(
        decision
            .ranked
            .iter()
            .map(|it| router.address(*it))
            .collect::<Vec<_>>(),
        [address(2)]
    );
    let list = router.model_list().expect("all are known").body;
    assert!(
        list.contains("\"a\"") && list.contains("\"b\"") && list.contains("\"m\""),
        "{list}"
    );
    world.models.insert(address(2), vec!["a"]);
    world.run(12.0);
    assert_eq!(
        world.ask(0, "b").map(|_| ()),
        Err(503),
        "seen, but nobody has it now"
    );
    assert_eq!(world.ask(0, "c").map(|_| ()), Err(404));
    let list = world.workers[0].model_list().expect("all are known").body;
    assert!(!list.contains("\"b\""), "{list}");
}

#[test]
fn sleeping_engines_are_left_alone_while_their_word_is_fresh() {
    let store = MemoryStore::new();
    let mut world = World::new(&fixed(2), 1, &store);
    let page = |awake: u8| {
        format!(
            "vllm:num_requests_running 0\n\
             vllm:engine_sleep_state{{engine=\"0\",sleep_state=\"awake\"}} {awake}.0\n\
             vllm:engine_sleep_state{{engine=\"0\",sleep_state=\"discard_all\"}} {}.0\n",
            1 - awake
        )
    };
    world.pages.insert(address(1), page(1));
    world.pages.insert(address(2), page(0));
    world.run(2.25);
    assert_eq!(world.in_use(), set(&[1]));
    assert_eq!(world.workers[0].state(0, 1, world.now_us), State::Sleeping);
    world.pages.insert(address(2), page(1));
    world.run(2.25);
    assert_eq!(world.in_use(), set(&[1, 2]));
    world.pages.insert(address(2), page(0));
    world.run(2.25);
    world.pages.remove(&address(2));
    world.run(5.0);
    assert_eq!(world.in_use(), set(&[1, 2]), "an old word is not believed");
}

fn counted(queried: u32) -> String {
    format!("vllm:num_requests_running 0\nvllm:prefix_cache_queries_total {queried}\n")
}

/// How much of a prompt a worker believes to be cached where it sends it.
fn cached(world: &mut World, at: usize, prompt: PromptFacts) -> u64 {
    let now_us = world.now_us;
    let router = &mut world.workers[at];
    let target = router.target(b"m").cloned().expect("known");
    let ask = Ask {
        target: &target,
        key: None,
        prompt: Some(prompt),
        priority: Default::default(),
    };
    let (_, charge) = router.decide(ask, now_us).expect("an endpoint");
    let cached = charge.cached_tokens();
    router.end(charge, Outcome::Served { output_tokens: 1 }, now_us);
    cached
}

#[test]
fn an_older_word_of_an_engine_is_no_restart() {
    let store = MemoryStore::new();
    let mut config = fixed(2);
    config["pools"][0]["policy"] = json!("prefix");
    let mut world = World::new(&config, 2, &store);
    for number in [1, 2] {
        world.pages.insert(address(number), counted(5000));
    }
    world.run(2.5);
    let holds = |router: &Router<_>| router.scout().holds_lease();
    let holder = world.workers.iter().position(holds).expect("a holder");
    for own in 0..20 {
        cached(&mut world, holder, prompt(own, 20));
    }
    // It learns more, and is not run for a while before it can tell.
    world.pages.insert(address(1), counted(6000));
    let socket = address(1).parse().expect("an address");
    let learned = |world: &World| {
        let told = world.workers[holder]
            .engine(&socket)
            .next()
            .expect("in the pool");
        told.engine.and_then(|it| it.queried_tokens) == Some(6000)
    };
    while !learned(&world) {
        world.now_us += TICK;
        world.tick(holder);
    }
    world.pages.remove(&address(1));
    world.pages.insert(address(2), counted(7000));
    for _ in 0..40 {
        world.now_us += TICK;
        world.tick(1 - holder);
    }
    (0..2).for_each(|_| world.tick(holder));
    assert!(!holds(&world.workers[holder]) && !learned(&world));
    for own in 0..20 {
        assert!(
            cached(&mut world, holder, prompt(own, 20)) > 0,
            "prompt {own}"
        );
    }
}

#[test]
fn an_engine_that_left_or_restarted_holds_nothing() {
    let store = MemoryStore::new();
    let mut config = discovered();
    config["pools"][0]["policy"] = json!("prefix");
    let mut world = World::new(&config, 1, &store);
    world.host(&address(1), healthy());
    world.pages.insert(address(1), counted(5000));
    world.run(2.5);
    assert_eq!(cached(&mut world, 0, prompt(7, 20)), 0);
    assert_eq!(cached(&mut world, 0, prompt(7, 20)), 20 * 128);
    world.pages.insert(address(1), counted(6000));
    world.run(2.5);
    assert_eq!(cached(&mut world, 0, prompt(7, 20)), 20 * 128);
    world.pages.insert(address(1), counted(10));
    world.run(2.5);
    assert_eq!(
        cached(&mut world, 0, prompt(7, 20)),
        0,
        "its counters began anew"
    );
    assert_eq!(cached(&mut world, 0, prompt(7, 20)), 20 * 128);
    world.hosts.clear();
    world.run(2.5);
    world.host(&address(1), healthy());
    world.run(2.5);
    assert_eq!(
        cached(&mut world, 0, prompt(7, 20)),
        0,
        "it was gone meanwhile"
    );
}

#[test]
fn an_engine_that_fails_fast_gets_its_probes_and_no_more() {
    let store = MemoryStore::new();
    let mut world = World::new(&fixed(3), 4, &store);
    world.run(1.0);
    let bad = address(2);
    let mut hits = 0;
    for number in 0..2400 {
        let worker = number % 4;
        let (decision, mut charge) = world.ask(worker, "m").expect("endpoints");
        let router = &mut world.workers[worker];
        let address = router.address(decision.ranked[0]).to_owned();
        let status = if address == bad { 500 } else { 200 };
        hits += u32::from(address == bad);
        let response = Response {
            status,
            address: address.as_bytes(),
            by_engine: true,
            retry_after_s: None,
        };
        router.responded(&mut charge, response, world.now_us);
        router.end(charge, Outcome::Failed, world.now_us);
        world.now_us += 25_000;
        if number % 5 == 0 {
            (0..4).for_each(|at| world.tick(at));
        }
    }
    // A minute: three strikes, then probes after 2, 4, 8, 16 and 30 s, each by one worker.
    assert!((6..=12).contains(&hits), "{hits} of 2400");
}

/// A request to an engine that gives its head and breaks off, or comes to its end.
fn begun(world: &mut World, at: usize, ends: impl Fn(&str) -> bool) -> String {
    let (decision, mut charge) = world.ask(at, "m").expect("endpoints");
    let router = &mut world.workers[at];
    let address = router.address(decision.ranked[0]).to_owned();
    let response = Response {
        status: 200,
        address: address.as_bytes(),
        by_engine: true,
        retry_after_s: None,
    };
    router.responded(&mut charge, response, world.now_us);
    match ends(&address) {
        true => router.answered(&charge, world.now_us),
        false => router.broke_off(&charge, world.now_us),
    }
    router.end(charge, Outcome::Failed, world.now_us);
    address
}

#[test]
fn an_engine_that_breaks_its_answers_off_is_left_out_until_one_is_whole() {
    for workers in [1, 4] {
        let store = MemoryStore::new();
        let mut world = World::new(&fixed(3), workers, &store);
        world.run(1.0);
        let bad = address(2);
        let mut hits = 0;
        for number in 0..2400 {
            let asked = begun(&mut world, number % workers, |it| it != bad);
            hits += u32::from(asked == bad);
            world.now_us += 25_000;
            if number % 5 == 0 {
                (0..workers).for_each(|at| world.tick(at));
            }
        }
        // As with one that fails fast: its heads, which are fine, do not bring it back.
        assert!((6..=12).contains(&hits), "{hits} of 2400 by {workers}");
        world.run(31.0);
        let back = (0..60).filter(|number| begun(&mut world, number % workers, |_| true) == bad);
        assert!(back.count() > 5, "a whole answer does");
    }
}

#[test]
fn a_page_that_says_nothing_is_none() {
    let store = MemoryStore::new();
    let mut world = World::new(&fixed(1), 2, &store);
    let page = "vllm:num_requests_waiting 3\nvllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"1000\"} 1\n";
    world.pages.insert(address(1), page.to_owned());
    world.run(2.0);
    let socket = address(1).parse().expect("an address");
    let told = |world: &World| {
        let engine = world.workers[1]
            .engine(&socket)
            .next()
            .expect("in the pool");
        let engine = engine.engine.expect("in the fleet");
        (engine.kv_capacity_tokens, engine.waiting, engine.told_ms)
    };
    world
        .pages
        .insert(address(1), "<html>nothing</html>\n".to_owned());
    world.run(1.25);
    let before = told(&world);
    assert_eq!((before.0, before.1), (Some(16_000), Some(3)));
    world.run(2.0);
    assert_eq!(told(&world), before, "and it grows old");
    let page = "vllm:num_requests_waiting 4\n";
    world.pages.insert(address(1), page.to_owned());
    world.run(2.0);
    let after = told(&world);
    assert_eq!((after.0, after.1), (Some(16_000), Some(4)));
}

#[test]
fn backpressure_lasts_as_long_as_it_asks_and_4xx_costs_nothing() {
    let store = MemoryStore::new();
    let mut world = World::new(&fixed(2), 2, &store);
    world.run(1.0);
    for _ in 0..30 {
        world.respond(0, 400, None);
        world.respond(1, 404, None);
    }
    assert_eq!(world.in_use(), set(&[1, 2]));
    let busy = world.respond(0, 503, Some(7));
    world.run(0.25);
    let other: BTreeSet<String> = set(&[1, 2]).into_iter().filter(|it| *it != busy).collect();
    assert_eq!(world.in_use(), other);
    world.run(6.0);
    assert_eq!(world.in_use(), other);
    world.run(1.25);
    assert_eq!(world.in_use(), set(&[1, 2]));
    // All busy: the client is told when to come again.
    let store = MemoryStore::new();
    let mut config = fixed(1);
    config["health"] = json!({"none_usable": "answer"});
    let mut world = World::new(&config, 1, &store);
    world.respond(0, 429, Some(9));
    let router = &mut world.workers[0];
    let target = router.target(b"m").cloned().expect("known");
    let ask = Ask {
        target: &target,
        key: None,
        prompt: None,
        priority: Default::default(),
    };
    let answer = router
        .decide(ask, world.now_us)
        .map(|_| ())
        .expect_err("busy");
    assert_eq!((answer.status, answer.retry_after_s), (503, Some(9)));
}

#[test]
fn who_comes_back_is_brought_up_to_its_share() {
    let store = MemoryStore::new();
    let mut world = World::new(&fixed(4), 1, &store);
    let unhealthy = json!({"failed_active_health_check": true});
    (1..=4).for_each(|n| world.host(&address(n), healthy()));
    world.run(1.25);
    world.host(&address(4), unhealthy);
    world.run(1.25);
    let mut open: Vec<Charge> = (0..60)
        .map(|_| world.ask(0, "m").expect("endpoints").1)
        .collect();
    world.host(&address(4), healthy());
    world.run(1.25);
    let router = &world.workers[0];
    assert_eq!(router.state(0, 3, world.now_us), State::SlowStart);
    // Idle, it is the least loaded, but all at once would be a herd.
    open.extend((0..20).map(|_| world.ask(0, "m").expect("endpoints").1));
    let at = |open: &[Charge]| open.iter().filter(|charge| charge.position() == 3).count();
    assert!((1..=5).contains(&at(&open)), "{} at once", at(&open));
    world.run(11.0);
    assert_eq!(world.workers[0].state(0, 3, world.now_us), State::Healthy);
    open.extend((0..20).map(|_| world.ask(0, "m").expect("endpoints").1));
    assert!(at(&open) >= 18, "{}", at(&open));
}

#[test]
fn load_told_with_an_answer_counts_until_the_next_scrape() {
    let store = MemoryStore::new();
    let mut world = World::new(&fixed(1), 2, &store);
    let page = |running, waiting| {
        format!(
            "vllm:num_requests_running {running}\nvllm:num_requests_waiting {waiting}\nvllm:kv_cache_usage_perc 0.5\n"
        )
    };
    let waiting = OrcaLoad {
        waiting: Some(9),
        kv_usage: Some(0.75),
        ..OrcaLoad::default()
    };
    let socket = address(1).parse().expect("an address");
    let seen = |world: &World, at: usize| {
        let told = world.workers[at]
            .engine(&socket)
            .next()
            .expect("in the pool");
        let engine = told.engine.expect("in the fleet");
        let figures = (engine.running, engine.waiting, engine.foreign);
        (figures, engine.kv_usage, engine.told_ms)
    };
    let tell = |world: &mut World, at: usize, load: &OrcaLoad| {
        let (_, charge) = world.ask(at, "m").expect("an endpoint");
        let now_us = world.now_us;
        world.workers[at].load_told(&charge, load, now_us);
        world.workers[at].end(charge, Outcome::Served { output_tokens: 1 }, now_us);
    };
    tell(&mut world, 0, &waiting);
    let told = world.workers[0]
        .engine(&socket)
        .next()
        .expect("in the pool");
    assert!(told.engine.is_none(), "never scraped");
    world.pages.insert(address(1), page(4, 1));
    world.run(1.25);
    for at in 0..2 {
        let scraped = seen(&world, at);
        assert_eq!((scraped.0, scraped.1), ((Some(4), Some(1), 5), Some(0.5)));
        world.now_us += 2_000;
        tell(&mut world, at, &waiting);
        // The queue alone says that at least so many came another way.
        let fresh = ((Some(4), Some(9), 9), Some(0.75), scraped.2);
        assert_eq!(seen(&world, at), fresh, "and the age is the scrape's");
        // A tick that brings nothing newer leaves it.
        let now_us = world.now_us;
        world.workers[at].tick(now_us);
        assert_eq!(seen(&world, at), fresh);
        let both = OrcaLoad {
            running: Some(1),
            waiting: Some(1),
            kv_usage: None,
        };
        tell(&mut world, at, &both);
        assert_eq!(
            seen(&world, at).0,
            (Some(1), Some(1), 2),
            "no estimate any more"
        );
    }
    world.pages.insert(address(1), page(2, 0));
    world.run(1.25);
    for at in 0..2 {
        assert_eq!(seen(&world, at).0, (Some(2), Some(0), 2));
    }
}

#[test]
fn load_told_with_an_answer_ranks_before_the_next_scrape() {
    for (policy, load) in [
        (
            json!("least_request"),
            OrcaLoad {
                running: Some(160),
                waiting: Some(40),
                kv_usage: None,
            },
        ),
        (
            json!("least_kv"),
            OrcaLoad {
                kv_usage: Some(0.9),
                ..OrcaLoad::default()
            },
        ),
    ] {
        let store = MemoryStore::new();
        let mut config = fixed(2);
        config["pools"][0]["policy"] = policy.clone();
        let mut world = World::new(&config, 2, &store);
        (1..=2).for_each(|n| drop(world.pages.insert(address(n), page(10, 0, 0.1))));
        world.run(3.0);
        assert_eq!(spread(&mut world, 20), [10, 10], "{policy}");
        let scrapes = world.calls.clone();
        for at in 0..2 {
            let now_us = world.now_us + 1_000;
            let mut both: Vec<Charge> = (0..2)
                .map(|_| world.ask(at, "m").expect("endpoints").1)
                .collect();
            let router = &mut world.workers[at];
            both.sort_by_key(Charge::position);
            assert_eq!(both[0].position(), 0);
            router.load_told(&both[0], &load, now_us);
            for charge in both {
                router.end(charge, Outcome::Served { output_tokens: 1 }, now_us);
            }
            router.tick(now_us);
            world.now_us = now_us;
        }
        assert_eq!(world.calls, scrapes, "nobody was scraped meanwhile");
        let counts = spread(&mut world, 20);
        // Load is followed by an eighth, because nothing of it is ours.
        assert!(counts[0] <= 2, "{policy}: {counts:?}");
    }
}

/// A prompt of `chunks` chunks that is like no other.
fn prompt(name: u64, chunks: usize) -> PromptFacts {
    prompts::prompt(name, repeat_n(name, chunks))
}

/// Serves each of the prompts; why it went where it did.
fn serve(router: &mut Router<&MemoryStore>, prompts: u64, now_us: u64) -> Vec<Reason> {
    let target = router.target(b"m").cloned().expect("known");
    let mut reasons = Vec::new();
    for name in 0..prompts {
        let ask = Ask {
            target: &target,
            key: None,
            prompt: Some(prompt(name, 40)),
            priority: Default::default(),
        };
        let (decision, charge) = router.decide(ask, now_us + name).expect("endpoints");
        router.end(charge, Outcome::Served { output_tokens: 1 }, now_us + name);
        reasons.push(decision.reason);
    }
    reasons
}

#[test]
fn the_prefix_table_grows_with_what_is_learned_and_forgets_nothing() {
    let store = MemoryStore::new();
    let mut config = discovered();
    config["pools"][0]["policy"] = json!("prefix");
    let mut world = World::new(&config, 2, &store);
    (1..=4).for_each(|n| world.host(&address(n), healthy()));
    world.run(2.0);
    let bytes = |router: &mut Router<&MemoryStore>| router.table_size().map(|size| size.0);
    let prompts = 60;
    let now_us = world.now_us;
    serve(&mut world.workers[0], prompts, now_us);
    let by_default = world.workers[0].config().table_bytes_for(4 * 400_000);
    assert_eq!(bytes(&mut world.workers[0]), Some(by_default as u64));
    for n in 1..=4 {
        let capacity = "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"250000\"} 1\n";
        world.pages.insert(address(n), page(0, 0, 0.0) + capacity);
    }
    world.run(6.0);
    let learned = world.workers[0].config().table_bytes_for(4 * 4_000_000);
    assert!(learned > 4 * by_default);
    assert_eq!(bytes(&mut world.workers[0]), Some(learned as u64));
    let now_us = world.now_us;
    for worker in &mut world.workers {
        let reasons = serve(worker, prompts, now_us);
        assert_eq!(reasons, vec![Reason::LongestPrefix; prompts as usize]);
        assert_eq!(worker.take_evicted(), 0);
    }
    world.run(10.0);
    // A newborn one has the size at once, another size does not keep it from the snapshot, and
    // what is configured stays.
    config["limits"] = json!({"prefix_table_bytes": 500_000});
    let fixed = config.clone();
    config["limits"] = json!({});
    for (config, size) in [(config, learned), (fixed, 360_448)] {
        let parsed = Config::parse(config.to_string().as_bytes()).expect("a valid config");
        let mut newborn = Router::new(parsed, &store, world.now_us);
        newborn.tick(world.now_us);
        let reasons = serve(&mut newborn, prompts, world.now_us);
        assert_eq!(reasons, vec![Reason::LongestPrefix; prompts as usize]);
        assert_eq!(bytes(&mut newborn), Some(size as u64));
    }
}

/// A page of an engine with so many requests, and its KV usage.
fn page(running: u32, waiting: u32, usage: f64) -> String {
    format!(
        "vllm:num_requests_running{{engine=\"0\"}} {running}\n\
         vllm:num_requests_waiting{{engine=\"0\"}} {waiting}\n\
         vllm:kv_cache_usage_perc{{engine=\"0\"}} {usage}\n"
    )
}

/// How many of `requests` at once each engine gets.
fn spread(world: &mut World, requests: usize) -> Vec<usize> {
    let workers = world.workers.len();
    let mut counts = vec![0; world.workers[0].pool_sizes(0)[0].0];
    let charges: Vec<(usize, Charge)> = (0..requests)
        .map(|number| {
            let (_, charge) = world.ask(number % workers, "m").expect("endpoints");
            counts[charge.position()] += 1;
            (number % workers, charge)
        })
        .collect();
    let now_us = world.now_us;
    for (at, charge) in charges {
        world.workers[at].end(charge, Outcome::Served { output_tokens: 1 }, now_us);
    }
    counts
}

#[test]
fn requests_of_others_count_while_the_engines_word_is_fresh() {
    for policy in [
        json!("least_request"),
        json!("power_of_two"),
        json!("prefix"),
        json!({"consistent_hash": {"bounded_load": 1.25}}),
    ] {
        let store = MemoryStore::new();
        let mut config = fixed(3);
        config["pools"][0]["policy"] = policy.clone();
        let mut world = World::new(&config, 2, &store);
        world.pages.insert(address(1), page(30, 6, 0.5));
        (2..=3).for_each(|n| drop(world.pages.insert(address(n), page(0, 0, 0.0))));
        world.run(3.0);
        let counts = spread(&mut world, 30);
        assert_eq!(world.workers[0].stale_sizes(world.now_us), [0]);
        // Of two drawn by lot the busy one is never the less loaded.
        assert!(counts[0] <= 1, "{policy}: {counts:?}");
        world.pages.clear();
        world.run(6.0);
        assert_eq!(world.workers[0].stale_sizes(world.now_us), [3]);
        let counts = spread(&mut world, 60);
        assert!(counts[0] >= 10, "{policy}: {counts:?}");
    }
}

#[test]
fn our_own_requests_are_not_counted_twice() {
    let store = MemoryStore::new();
    let mut world = World::new(&fixed(2), 2, &store);
    world.run(1.0);
    let open: Vec<(Decision, Charge)> = (0..12)
        .map(|number| world.ask(number % 2, "m").expect("endpoints"))
        .collect();
    let at = |n: usize| open.iter().filter(|it| it.1.position() == n).count();
    assert_eq!((at(0), at(1)), (6, 6));
    world.pages.insert(address(1), page(6, 0, 0.1));
    world.pages.insert(address(2), page(4, 2, 0.1));
    world.run(3.0);
    assert_eq!(spread(&mut world, 20), [10, 10]);
}

#[test]
fn who_uses_the_least_memory_is_asked_and_the_unknown_is_as_the_others() {
    let store = MemoryStore::new();
    let mut config = fixed(4);
    config["pools"][0]["policy"] = json!("least_kv");
    let mut world = World::new(&config, 1, &store);
    assert_eq!(spread(&mut world, 8), [2, 2, 2, 2], "nothing is known");
    for (n, usage) in [(1, 0.8), (2, 0.2), (3, 0.5)] {
        world.pages.insert(address(n), page(10, 0, usage));
    }
    world.run(3.0);
    let order = |decision: &Decision| decision.ranked.clone();
    let (decision, charge) = world.ask(0, "m").expect("endpoints");
    // The fourth is taken for one at 0.5, and has no request.
    assert_eq!(order(&decision), [1, 3, 2]);
    world.workers[0].end(charge, Outcome::Failed, world.now_us);
    // Each request counts with 0.05 while nothing new is told, so nobody is first for long.
    let counts = spread(&mut world, 40);
    assert!(
        counts[1] > counts[2] && counts[2] > counts[0] && counts[0] > 0,
        "{counts:?}"
    );
    assert!((counts[2]..=20).contains(&counts[3]), "{counts:?}");
    // Who tells nothing any more is not empty: our own requests alone decide.
    world.pages.clear();
    world.run(6.0);
    assert_eq!(spread(&mut world, 8), [2, 2, 2, 2]);
}

#[test]
fn requests_go_where_their_adapter_is_loaded() {
    for policy in [json!("least_request"), json!("prefix")] {
        let store = MemoryStore::new();
        let mut config = fixed(3);
        config["pools"][0]["policy"] = policy.clone();
        config["pools"][0]["models"] = json!(["m", "tuned"]);
        let mut world = World::new(&config, 1, &store);
        let adapters = |loaded: &str| {
            format!(
                "{}vllm:lora_requests_info{{max_lora=\"1\",running_lora_adapters=\"{loaded}\",\
                 waiting_lora_adapters=\"\"}} 1.0\n",
                page(0, 0, 0.0)
            )
        };
        world.pages.insert(address(1), adapters("other"));
        world.pages.insert(address(2), adapters(""));
        world.pages.insert(address(3), adapters("tuned"));
        world.run(3.0);
        let exchange = |world: &mut World, model: &str| {
            let body = json!({"model": model, "prompt": "Hi"}).to_string();
            let headers = vec![
                (":method".to_owned(), b"POST".to_vec()),
                (":path".to_owned(), b"/v1/completions".to_vec()),
            ];
            let head = Head {
                headers: &headers,
                end_of_stream: false,
            };
            let mut exchange = Exchange::default();
            let (router, now_us) = (&mut world.workers[0], world.now_us);
            exchange.on_headers(router, head, now_us);
            match exchange.on_body(router, body.as_bytes(), true, now_us) {
                Step::Route(decision) => decision.ranked,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(exchange(&mut world, "tuned"), [2, 1, 0], "{policy}");
        // A preference, not a rule: the engine's queue counts against it.
        let mut firsts = BTreeSet::new();
        for _ in 0..60 {
            firsts.insert(exchange(&mut world, "tuned")[0]);
        }
        assert_eq!(firsts.len(), 3, "{policy}");
    }
}

/// Two Envoys that share nothing and know of each other by scrapes of a second ago.
#[test]
fn routers_that_see_each_other_late_do_not_run_in_herds() {
    let uneven = |scraped: bool| {
        let stores = [MemoryStore::new(), MemoryStore::new()];
        let mut envoys: Vec<World> = stores
            .iter()
            .map(|store| World::new(&fixed(4), 1, store))
            .collect();
        let mut open: Vec<(u64, usize, Charge)> = Vec::new();
        let (mut random, mut most_uneven, mut samples) = (7, 0, 0);
        for step in 0..4000_u64 {
            let now_us = 1_000 * SECOND + step * 25_000;
            let (ended, left) = open.into_iter().partition(|it| it.0 <= now_us);
            open = left;
            for (_, at, charge) in ended {
                let envoy: &mut World = &mut envoys[at];
                envoy.workers[0].end(charge, Outcome::Served { output_tokens: 9 }, now_us);
            }
            let at_engine = |open: &[(u64, usize, Charge)], n: usize| {
                open.iter().filter(|it| it.2.position() == n).count()
            };
            for envoy in &mut envoys {
                for n in 1..=4 {
                    let there = at_engine(&open, n - 1) as u32;
                    envoy.pages.insert(address(n), page(there, 0, 0.1));
                }
                if !scraped {
                    envoy.pages.clear();
                }
                envoy.now_us = now_us;
                if step % 5 == 0 {
                    envoy.tick(0);
                }
            }
            // 40 a second, 0.5 to 4.5 s each: 100 in flight, through either Envoy by lot.
            let at =
                warmpath_core::policy::below(warmpath_core::policy::next_random(&mut random), 2);
            let lasts_us = 500_000 + warmpath_core::policy::next_random(&mut random) % 4_000_000;
            let (_, charge) = envoys[at].ask(0, "m").expect("endpoints");
            open.push((now_us + lasts_us, at, charge));
            if step > 400 {
                let counts: Vec<usize> = (0..4).map(|n| at_engine(&open, n)).collect();
                let (most, least) = (counts.iter().max(), counts.iter().min());
                most_uneven += most.expect("four") - least.expect("four");
                samples += 1;
            }
        }
        f64::from(most_uneven as u32) / f64::from(samples)
    };
    let (alone, knowing) = (uneven(false), uneven(true));
    assert!(
        knowing < alone + 0.5,
        "most minus least: {knowing} with scrapes, {alone} without"
    );
}
