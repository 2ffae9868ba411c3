//! What there is behind one address: data-parallel ranks, roles and labels.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use warmpath_core::call::Reply;
use warmpath_core::router::{Ask, Charge, Outcome, PromptFacts, Response, Router, State};
use warmpath_core::scan::{CHUNK_BYTES, Link};
use warmpath_core::scrape::Call;
use warmpath_core::store::MemoryStore;
use warmpath_core::wire::orca::OrcaLoad;
use warmpath_core::{Config, Decision};

const SECOND: u64 = 1_000_000;

/// One router, and what Envoy and the engines would answer it.
struct World<'a> {
    router: Router<&'a MemoryStore>,
    hosts: Vec<String>,
    metadata: Option<String>,
    pages: BTreeMap<String, String>,
    scraped: Vec<String>,
    metadata_asked: usize,
    now_us: u64,
}

impl<'a> World<'a> {
    fn new(config: &Value, store: &'a MemoryStore) -> Self {
        let parsed = Config::parse(config.to_string().as_bytes()).expect("a valid config");
        let now_us = 1_000 * SECOND;
        World {
            router: Router::new(parsed, store, now_us),
            hosts: Vec::new(),
            metadata: None,
            pages: BTreeMap::new(),
            scraped: Vec::new(),
            metadata_asked: 0,
            now_us,
        }
    }

    fn clusters(&self) -> String {
        let hosts: Vec<Value> = self.hosts.iter().map(|host| lb_endpoint(host)).collect();
        json!({"cluster_statuses": [
            {"name": "p", "eds_service_name": "p-service", "host_statuses": hosts},
        ]})
        .to_string()
    }

    fn run(&mut self, seconds: u64) {
        let end_us = self.now_us + seconds * SECOND;
        while self.now_us < end_us {
            self.now_us += SECOND / 8;
            self.router.tick(self.now_us);
            for (call, http) in self.router.calls(self.now_us) {
                let answer = match &call {
                    Call::Peers => None,
                    Call::Endpoints => Some(self.clusters()),
                    Call::Metadata => {
                        assert!(http.path.contains("p-service"), "{}", http.path);
                        self.metadata_asked += 1;
                        self.metadata.clone()
                    }
                    Call::Metrics(address) => {
                        self.scraped.push(address.to_string());
                        self.pages.get(&address.to_string()).cloned()
                    }
                    Call::Models(_) => None,
                };
                let reply = match &answer {
                    Some(body) => Reply::Answer {
                        status: 200,
                        body: body.as_bytes(),
                    },
                    None => Reply::Failed,
                };
                self.router.call_ended(&call, reply, self.now_us);
            }
        }
    }

    fn ask(&mut self, model: &str, prompt: Option<PromptFacts>) -> (Decision, Charge) {
        self.now_us += 10;
        let target = self.router.target(model.as_bytes()).cloned();
        let ask = Ask {
            target: &target.expect("a known model"),
            key: None,
            prompt,
            priority: Default::default(),
        };
        self.router.decide(ask, self.now_us).expect("an endpoint")
    }

    fn end(&mut self, charge: Charge) {
        let outcome = Outcome::Served { output_tokens: 1 };
        self.router.end(charge, outcome, self.now_us);
    }

    /// The names of all endpoints of a pool.
    fn names(&self, pool: usize) -> Vec<String> {
        let members = self.router.pool_members(pool, self.now_us);
        members.map(|it| it.address.to_owned()).collect()
    }

    fn state(&self, name: &str) -> State {
        let mut members = self.router.pool_members(0, self.now_us);
        members.find(|it| it.address == name).expect(name).state
    }

    fn position(&self, name: &str) -> usize {
        let mut all = 0..64;
        all.find(|at| self.router.name(*at) == name).expect(name)
    }
}

fn lb_endpoint(host: &str) -> Value {
    let (ip, port) = host.rsplit_once(':').expect("ip:port");
    let port: u16 = port.parse().expect("a port");
    json!({
        "address": {"socket_address": {"address": ip, "port_value": port}},
        "health_status": {"eds_health_status": "HEALTHY"}, "weight": 1,
    })
}

/// Envoy's page about what is written about these endpoints.
fn dump(endpoints: &[(&str, Value)]) -> String {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(host, metadata)| {
            json!({
                "endpoint": {"address": lb_endpoint(host)["address"]},
                "metadata": {"filter_metadata": {"warmpath": metadata}},
            })
        })
        .collect();
    json!({"configs": [{"dynamic_endpoint_configs": [{"endpoint_config": {
        "cluster_name": "p-service", "endpoints": [{"lb_endpoints": endpoints}],
    }}]}]})
    .to_string()
}

/// The page of an engine whose ranks run so many requests each.
fn page(running: &[(u32, u32)]) -> String {
    let series = running.iter().map(|(rank, running)| {
        format!(
            "vllm:num_requests_running{{engine=\"{rank}\"}} {running}\n\
             vllm:prefix_cache_queries_total{{engine=\"{rank}\"}} {}\n\
             vllm:cache_config_info{{engine=\"{rank}\",kv_cache_size_tokens=\"{}\"}} 1\n",
            1000 + rank,
            50_000 + rank,
        )
    });
    series.collect::<String>() + "process_start_time_seconds 900.5\n"
}

fn pool(policy: Value, endpoints: Value) -> Value {
    json!({"pools": [{"name": "p", "models": ["m"], "policy": policy, "endpoints": endpoints}]})
}

fn listed(count: usize, ranks: u16) -> Value {
    let one = |n| json!({"address": format!("10.0.0.{n}:80"), "data_parallel_size": ranks});
    json!({"static": (1..=count).map(one).collect::<Vec<_>>()})
}

fn prompt(number: u64) -> PromptFacts {
    let chain = (1..=20)
        .map(|chunk: usize| Link {
            hash: warmpath_core::hash::mix(number, chunk as u64),
            end: chunk * CHUNK_BYTES,
        })
        .collect();
    PromptFacts {
        chain,
        bytes: 20 * CHUNK_BYTES,
        conversation: number,
        streamed: true,
        output_tokens: Some(8),
        told: None,
    }
}

#[test]
fn conversations_stick_to_a_rank_and_lists_hold_one_rank() {
    let store = MemoryStore::new();
    let mut world = World::new(&pool(json!("prefix"), listed(2, 4)), &store);
    let mut homes = BTreeMap::new();
    let mut firsts = BTreeSet::new();
    for turn in 0..3 {
        let mut open = Vec::new();
        for number in 0..32 {
            let (decision, mut charge) = world.ask("m", Some(prompt(number)));
            let first = decision.ranked[0];
            let home = *homes.entry(number).or_insert(first);
            assert_eq!(first, home, "turn {turn} of conversation {number}");
            firsts.insert(world.router.name(first).to_owned());
            let [one, other] = decision.ranked[..] else {
                panic!("one of each engine: {:?}", decision.ranked);
            };
            assert_eq!(world.router.rank(one), world.router.rank(other));
            let list = world.router.destination(&decision);
            let addresses: BTreeSet<&str> = list.split(',').collect();
            assert_eq!(addresses, BTreeSet::from(["10.0.0.1:80", "10.0.0.2:80"]));
            world.router.first_token(&mut charge, world.now_us);
            open.push(charge);
        }
        open.into_iter().for_each(|charge| world.end(charge));
    }
    assert_eq!(firsts.len(), 8, "{firsts:?}");
}

#[test]
fn every_policy_leaves_another_engine_with_the_same_rank() {
    for policy in [
        json!("round_robin"),
        json!("random"),
        json!("least_request"),
        json!("least_kv"),
        json!("power_of_two"),
        json!("lowest_qps"),
        json!("cache_aware"),
        json!({"consistent_hash": {}}),
    ] {
        let store = MemoryStore::new();
        let mut world = World::new(&pool(policy.clone(), listed(9, 7)), &store);
        for number in 0..40 {
            let (decision, charge) = world.ask("m", Some(prompt(number)));
            let ranks = decision.ranked.iter().map(|it| world.router.rank(*it));
            let ranks: BTreeSet<_> = ranks.collect();
            let addresses = decision.ranked.iter().map(|it| world.router.address(*it));
            let addresses: BTreeSet<_> = addresses.collect();
            assert_eq!((ranks.len(), addresses.len()), (1, 3), "{policy}");
            world.end(charge);
        }
    }
}

#[test]
fn ranks_are_learned_with_the_figures_of_each() {
    let store = MemoryStore::new();
    let given = json!({"static": [{"address": "10.0.0.1:80"}, {"address": "10.0.0.2:80"}]});
    let mut world = World::new(&pool(json!("prefix"), given), &store);
    let one = |name: &str| vec![format!("10.0.0.1:80{name}"), "10.0.0.2:80".to_owned()];
    for strange in [
        page(&[(0, 1)]),
        page(&[(1, 1), (2, 1)]),
        page(&[(0, 1), (2, 1)]),
        page(&(0..65).map(|rank| (rank, 1)).collect::<Vec<_>>()),
    ] {
        world.pages.insert("10.0.0.1:80".to_owned(), strange);
        world.run(3);
        assert_eq!(world.names(0), one(""));
    }
    world
        .pages
        .insert("10.0.0.1:80".to_owned(), page(&[(1, 7), (0, 4)]));
    world.scraped.clear();
    world.run(4);
    let scraped = world.scraped.iter().filter(|it| **it == "10.0.0.1:80");
    let scrapes = scraped.count();
    assert!((3..=5).contains(&scrapes), "one for both ranks: {scrapes}");
    assert_eq!(
        world.names(0),
        ["10.0.0.1:80@0", "10.0.0.1:80@1", "10.0.0.2:80"]
    );
    let figures: Vec<_> = world
        .router
        .pool_members(0, world.now_us)
        .filter_map(|it| it.rank.zip(it.engine))
        .map(|(rank, it)| {
            (
                rank,
                it.running,
                it.foreign,
                it.kv_capacity_tokens,
                it.started_s,
            )
        })
        .collect();
    let want = |rank: u16, running| {
        let capacity = Some(50_000 + u64::from(rank));
        (rank, Some(running), running, capacity, Some(900))
    };
    assert_eq!(figures, [want(0, 4), want(1, 7)]);
    // What an engine says in answers is of none of its ranks for sure.
    let load = OrcaLoad {
        waiting: Some(50),
        ..OrcaLoad::default()
    };
    for _ in 0..8 {
        let (_, charge) = world.ask("m", None);
        if world.router.rank(charge.position()).is_some() {
            world.router.load_told(&charge, &load, world.now_us);
        }
        world.end(charge);
    }
    let told = world.router.pool_members(0, world.now_us);
    let waiting: Vec<_> = told.filter_map(|it| it.engine?.waiting).collect();
    assert!(waiting.is_empty(), "{waiting:?}");
    // An engine that is silent for a while is not taken for another one.
    world.pages.remove("10.0.0.1:80");
    world.run(20);
    assert_eq!(world.names(0).len(), 3);
    world
        .pages
        .insert("10.0.0.1:80".to_owned(), page(&[(0, 1)]));
    world.run(3);
    assert_eq!(world.names(0), one(""));
}

#[test]
fn an_engine_that_tells_no_ranks_has_those_of_the_configuration() {
    let store = MemoryStore::new();
    let mut world = World::new(&pool(json!("prefix"), listed(1, 2)), &store);
    world
        .pages
        .insert("10.0.0.1:80".to_owned(), page(&[(0, 9)]));
    world.run(3);
    let told: Vec<_> = world
        .router
        .pool_members(0, world.now_us)
        .filter_map(|it| it.engine)
        .map(|it| (it.running, it.foreign, it.kv_capacity_tokens))
        .collect();
    assert_eq!(told, [(None, 0, Some(25_000)); 2]);
}

#[test]
fn a_dead_engine_is_dead_with_all_its_ranks() {
    let store = MemoryStore::new();
    let mut world = World::new(&pool(json!("round_robin"), listed(2, 4)), &store);
    let mut retried = 0;
    while retried < 3 {
        let (decision, mut charge) = world.ask("m", Some(prompt(1)));
        let first = decision.ranked[0];
        if world.router.address(first) == "10.0.0.1:80" {
            retried += 1;
            let response = Response {
                status: 200,
                address: b"10.0.0.2:80",
                by_engine: true,
                retry_after_s: None,
            };
            let rank = world.router.rank(first);
            world
                .router
                .served_by(&mut charge, response.address, world.now_us);
            world.router.responded(&mut charge, response, world.now_us);
            let served = charge.position();
            assert_eq!(world.router.address(served), "10.0.0.2:80");
            assert_eq!(world.router.rank(served), rank);
            assert_eq!(world.router.in_flight(first), 0);
        }
        world.end(charge);
    }
    for name in world.names(0) {
        let want = match name.starts_with("10.0.0.1:") {
            true => State::CoolingDown,
            false => State::Healthy,
        };
        assert_eq!(world.state(&name), want, "{name}");
    }
}

#[test]
fn what_a_rank_itself_answers_is_its_own() {
    let store = MemoryStore::new();
    let mut world = World::new(&pool(json!("least_request"), listed(1, 2)), &store);
    let sick = world.position("10.0.0.1:80@1");
    for _ in 0..20 {
        let (decision, mut charge) = world.ask("m", None);
        let response = Response {
            status: if decision.ranked[0] == sick { 500 } else { 200 },
            address: b"10.0.0.1:80",
            by_engine: true,
            retry_after_s: None,
        };
        world.router.responded(&mut charge, response, world.now_us);
        world.end(charge);
    }
    assert_eq!(world.state("10.0.0.1:80@0"), State::Healthy);
    assert_eq!(world.state("10.0.0.1:80@1"), State::CoolingDown);
}

#[test]
fn a_retry_beyond_the_list_is_the_engine_as_a_whole() {
    let store = MemoryStore::new();
    let endpoints = json!({"static": [
        {"address": "10.0.0.1:80", "data_parallel_size": 2},
        {"address": "[fd00::2]:80", "data_parallel_size": 1},
    ]});
    let mut world = World::new(&pool(json!("round_robin"), endpoints), &store);
    assert_eq!(
        world.names(0),
        ["10.0.0.1:80@0", "10.0.0.1:80@1", "[fd00::2]:80"]
    );
    let mut ranked = loop {
        let (decision, charge) = world.ask("m", None);
        if world.router.rank(decision.ranked[0]).is_some() {
            break (decision, charge);
        }
        assert_eq!(decision.ranked.len(), 1, "no other is without rank");
        world.end(charge);
    };
    assert_eq!(ranked.0.ranked.len(), 1, "no other has this rank");
    world
        .router
        .served_by(&mut ranked.1, b"[fd00::2]:80", world.now_us);
    assert_eq!(world.router.name(ranked.1.position()), "[fd00::2]:80");
}

#[test]
fn ranks_share_the_weight_of_their_engine_if_any_is_meant() {
    let shares = |weights: [Option<u16>; 2]| {
        let one = |(n, weight): (usize, &Option<u16>)| {
            let mut one = json!({"address": format!("10.0.0.{n}:80")});
            if n == 0 {
                one["data_parallel_size"] = json!(3);
            }
            if let Some(weight) = weight {
                one["weight"] = json!(weight);
            }
            one
        };
        let list: Vec<Value> = weights.iter().enumerate().map(one).collect();
        let store = MemoryStore::new();
        let mut world = World::new(&pool(json!("round_robin"), json!({"static": list})), &store);
        let mut counts = BTreeMap::new();
        for _ in 0..120 {
            let (decision, charge) = world.ask("m", None);
            let name = world.router.name(decision.ranked[0]).to_owned();
            *counts.entry(name).or_insert(0) += 1;
            world.end(charge);
        }
        counts.into_values().collect::<Vec<i32>>()
    };
    assert_eq!(shares([None, None]), [30; 4]);
    assert_eq!(shares([Some(5), Some(5)]), [30; 4]);
    for (share, want) in shares([Some(3), Some(2)]).into_iter().zip([24, 24, 24, 48]) {
        assert!((want - 1..=want + 1).contains(&share), "{share} for {want}");
    }
}

fn by_role() -> Value {
    let pool = |name: &str, role: &str, models: Value| {
        json!({"name": name, "cluster": "p", "models": models, "policy": "round_robin",
               "endpoints": {"envoy": {"role": role}}})
    };
    json!({"pools": [pool("a", "decode", json!(["m"])), pool("b", "prefill", json!(["n"]))]})
}

#[test]
fn pools_share_a_cluster_by_role() {
    let store = MemoryStore::new();
    let mut world = World::new(&by_role(), &store);
    world.hosts = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]
        .map(str::to_owned)
        .into();
    world.run(2);
    assert_eq!(
        (world.names(0), world.names(1)),
        (vec![], vec![]),
        "nothing is known of them"
    );
    let roles = dump(&[
        (
            "10.0.0.1:80",
            json!({"role": "decode", "labels": {"kv_addr": "10.0.0.1:21001"}}),
        ),
        (
            "10.0.0.2:80",
            json!({"role": "prefill", "labels": {"zone": "b"}}),
        ),
        ("10.9.9.9:80", json!({"role": "decode"})),
    ]);
    world.metadata = Some(roles.clone());
    world.run(12);
    assert_eq!(world.names(0), ["10.0.0.1:80"]);
    assert_eq!(world.names(1), ["10.0.0.2:80"]);
    let label = |world: &World, name: &str, label: &str| {
        let label = world.router.label(world.position(name), label);
        label.map(str::to_owned)
    };
    assert_eq!(
        label(&world, "10.0.0.1:80", "kv_addr").as_deref(),
        Some("10.0.0.1:21001")
    );
    assert_eq!(label(&world, "10.0.0.2:80", "kv_addr"), None);
    let (decision, charge) = world.ask("n", None);
    assert_eq!(world.router.address(decision.ranked[0]), "10.0.0.2:80");
    assert_eq!(world.router.role(decision.ranked[0]), Some("prefill"));
    world.end(charge);
    // What does not read, or does not speak of the cluster, changes nothing.
    for broken in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"configs": 7}"#,
        r#"{"configs": [{}]}"#,
    ] {
        world.metadata = Some(broken.to_owned());
        world.run(11);
        assert_eq!(
            (world.names(0).len(), world.names(1).len()),
            (1, 1),
            "{broken}"
        );
    }
    world.metadata = None;
    world.run(60);
    assert_eq!(world.names(0), ["10.0.0.1:80"]);
    // It is asked for a tenth as often as the endpoints, but at once when one comes.
    world.metadata = Some(roles.replace("decode", "x").replace("prefill", "decode"));
    world.run(11);
    assert_eq!(
        (world.names(0), world.names(1)),
        (vec!["10.0.0.2:80".to_owned()], vec![])
    );
    world.metadata_asked = 0;
    world.run(100);
    assert!(
        (9..=11).contains(&world.metadata_asked),
        "{}",
        world.metadata_asked
    );
    world.metadata = Some(dump(&[("10.0.0.4:80", json!({"role": "prefill"}))]));
    world.hosts.push("10.0.0.4:80".to_owned());
    world.run(3);
    assert_eq!(
        (world.names(0), world.names(1)),
        (vec![], vec!["10.0.0.4:80".to_owned()])
    );
}

#[test]
fn metadata_names_models_and_weights() {
    let store = MemoryStore::new();
    let mut config = pool(json!("round_robin"), json!({"envoy": {"metadata": true}}));
    config["pools"][0]["models"] = json!([]);
    let mut world = World::new(&config, &store);
    world.hosts = ["10.0.0.1:80", "10.0.0.2:80"].map(str::to_owned).into();
    world.metadata = Some(dump(&[
        ("10.0.0.1:80", json!({"models": ["m", "n"], "weight": 1.5})),
        ("10.0.0.2:80", json!({"models": "m", "weight": 0.5})),
    ]));
    world.run(3);
    let mut counts = BTreeMap::new();
    for _ in 0..40 {
        let (decision, charge) = world.ask("m", None);
        *counts.entry(decision.ranked[0]).or_insert(0) += 1;
        world.end(charge);
    }
    assert_eq!(counts.into_values().collect::<Vec<i32>>(), [30, 10]);
    let (decision, charge) = world.ask("n", None);
    assert_eq!(world.router.destination(&decision), "10.0.0.1:80");
    world.end(charge);
}

#[test]
fn nobody_asks_for_metadata_that_nobody_wants() {
    let store = MemoryStore::new();
    let mut world = World::new(&pool(json!("round_robin"), json!("envoy")), &store);
    world.hosts = vec!["10.0.0.1:80".to_owned()];
    world.run(40);
    assert_eq!(world.names(0), ["10.0.0.1:80"]);
    assert_eq!(world.metadata_asked, 0);
}

#[test]
fn labels_of_a_list_are_told() {
    let store = MemoryStore::new();
    let endpoints = json!({"static": [
        {"address": "10.0.0.1:80", "labels": {"kv_addr": "10.0.0.1:9", "role": "decode"}},
    ]});
    let world = World::new(&pool(json!("random"), endpoints), &store);
    assert_eq!(world.router.label(0, "kv_addr"), Some("10.0.0.1:9"));
    assert_eq!(world.router.label(0, "other"), None);
    assert_eq!(world.router.label(7, "kv_addr"), None);
    assert_eq!(world.router.role(0), Some("decode"));
}

#[test]
fn ranks_and_labels_have_bounds() {
    let wrong = |pools: Value| {
        let config = json!({"pools": pools}).to_string();
        let errors = Config::parse(config.as_bytes()).expect_err("it is wrong");
        errors.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let one = |field: &str, value: Value| {
        let mut one = json!({"address": "10.0.0.1:80"});
        one[field] = value;
        wrong(json!([{"name": "p", "endpoints": {"static": [one]}}])).join("\n")
    };
    for size in [json!(0), json!(65), json!("4")] {
        let error = one("data_parallel_size", size);
        assert!(error.contains("a whole number in 1..=64"), "{error}");
    }
    let many: BTreeMap<String, &str> = (0..17).map(|n| (n.to_string(), "x")).collect();
    assert!(one("labels", json!(many)).contains("at most 16"));
    assert!(one("labels", json!({"a": "x".repeat(257)})).contains("at most 256 bytes"));
    assert!(one("labels", json!({"a": 1})).contains("a non-empty string"));
    let pool = |name: &str, size: u16| json!({"name": name, "models": [name], "endpoints": listed(1, size)});
    let error = wrong(json!([pool("a", 2), pool("b", 3)])).join("\n");
    assert!(
        error.contains("config.pools[1].endpoints.static[0].data_parallel_size"),
        "{error}"
    );
    let error = wrong(json!([{"name": "p", "endpoints": listed(17, 64)}])).join("\n");
    assert!(error.contains("at most 1024 endpoints in all"), "{error}");
    let envoy = json!({"envoy": {"role": ""}});
    let error = wrong(json!([{"name": "p", "endpoints": envoy}])).join("\n");
    assert!(error.contains("endpoints.envoy.role"), "{error}");
}

#[test]
fn a_pool_beside_one_with_ranks_is_as_ever() {
    for policy in [
        json!("least_request"),
        json!("prefix"),
        json!({"consistent_hash": {}}),
    ] {
        let store = MemoryStore::new();
        let config = json!({"pools": [
            {"name": "a", "models": ["m"], "endpoints": listed(2, 4)},
            {"name": "b", "models": ["n"], "policy": policy, "endpoints": {"static": [
                {"address": "10.0.1.1:80"}]}},
        ]});
        let mut world = World::new(&config, &store);
        for number in [1, 2] {
            let ranks: Vec<_> = (0..4).map(|rank| (rank, 1)).collect();
            world
                .pages
                .insert(format!("10.0.0.{number}:80"), page(&ranks));
        }
        world
            .pages
            .insert("10.0.1.1:80".to_owned(), page(&[(0, 0)]));
        for _ in 0..8 {
            let (_, charge) = world.ask("m", Some(prompt(1)));
            world.end(charge);
            let (decision, charge) = world.ask("n", Some(prompt(1)));
            assert_eq!(world.router.destination(&decision), "10.0.1.1:80");
            assert_eq!(world.router.rank(decision.ranked[0]), None);
            world.end(charge);
            world.run(2);
        }
    }
}
