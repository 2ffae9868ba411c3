//! Pools of which nobody has told yet what endpoints they have: their requests are left to Envoy, and those
//! of a pool that is known to have none are not.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a panic is a failed test"
)]

use serde_json::{Value, json};
use warmpath_core::call::Reply;
use warmpath_core::router::{Outcome, Router};
use warmpath_core::scan::Api;
use warmpath_core::scrape::Call;
use warmpath_core::status::explanation;
use warmpath_core::store::MemoryStore;
use warmpath_core::{Answer, Config, Decision, Exchange, Fallback, Head, Step, splice};

const SECOND: u64 = 1_000_000;
const TICK: u64 = SECOND / 8;
const START_US: u64 = 1_000 * SECOND;
const ENGINES: [&str; 2] = ["10.0.0.1:8000", "10.0.0.2:8000"];
/// More chunks than one, with an alias and with what clients have no say in.
const PROMPT: &str = "the old road to the sea ";

/// One worker, and what it would be answered.
struct World<'a> {
    router: Router<&'a MemoryStore>,
    /// Hosts by cluster, as Envoy tells them; nothing at all while its admin interface does not answer.
    clusters: Option<Vec<(&'static str, Vec<&'static str>)>>,
    /// What every engine says it serves, if it says anything.
    models: Option<Vec<&'static str>>,
    now_us: u64,
}

impl<'a> World<'a> {
    fn new(config: &Value, store: &'a MemoryStore, now_us: u64) -> Self {
        let config = Config::parse(config.to_string().as_bytes()).expect("a configuration");
        World {
            router: Router::new(config, store, now_us),
            clusters: None,
            models: None,
            now_us,
        }
    }

    fn run(&mut self, seconds: u64) {
        let end_us = self.now_us + seconds * SECOND;
        while self.now_us < end_us {
            self.now_us += TICK;
            self.router.tick(self.now_us);
            for (call, _) in self.router.calls(self.now_us) {
                let body = self.said(&call);
                let reply = body.as_ref().map_or(Reply::TimedOut, |body| Reply::Answer {
                    status: 200,
                    body: body.as_bytes(),
                });
                self.router.call_ended(&call, reply, self.now_us);
            }
        }
    }

    fn said(&self, call: &Call) -> Option<String> {
        match call {
            Call::Endpoints => self.clusters.as_ref().map(|clusters| {
                let clusters = clusters.iter().map(|(name, hosts)| {
                    let hosts = hosts.iter().map(|host| {
                        let (ip, port) = host.rsplit_once(':').expect("ip:port");
                        let port: u16 = port.parse().expect("a port");
                        json!({
                            "address": {"socket_address": {"address": ip, "port_value": port}},
                            "health_status": {"eds_health_status": "HEALTHY"},
                        })
                    });
                    json!({"name": name, "host_statuses": hosts.collect::<Vec<_>>()})
                });
                json!({"cluster_statuses": clusters.collect::<Vec<_>>()}).to_string()
            }),
            Call::Metrics(_) => Some("vllm:num_requests_running 0\n".to_owned()),
            Call::Models(_) => self.models.as_ref().map(|names| {
                let data: Vec<Value> = names.iter().map(|name| json!({"id": name})).collect();
                json!({"object": "list", "data": data}).to_string()
            }),
            Call::Metadata | Call::Peers => None,
        }
    }

    /// Sends a request to the first step that does not hold it.
    fn send(&mut self, path: &str, body: &str, more: &[(&str, &str)]) -> (Exchange, Step) {
        let headers: Vec<(String, Vec<u8>)> = [(":method", "POST"), (":path", path)]
            .iter()
            .chain(more)
            .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()))
            .collect();
        let head = Head {
            headers: &headers,
            end_of_stream: false,
        };
        let mut exchange = Exchange::default();
        let mut step = exchange.on_headers(&mut self.router, head, self.now_us);
        if step == Step::Hold {
            step = exchange.on_body(&mut self.router, body.as_bytes(), true, self.now_us);
        }
        (exchange, step)
    }

    fn ask(&mut self, model: &str) -> Step {
        let (mut exchange, step) = self.send("/v1/completions", &body(model), &[]);
        // However it ends, there is nothing to give back but what was counted.
        exchange.end(&mut self.router, Outcome::Failed, self.now_us);
        for position in 0..ENGINES.len() {
            assert_eq!(self.router.in_flight(position), 0);
        }
        step
    }

    fn answer(&mut self, model: &str) -> Answer {
        match self.ask(model) {
            Step::Answer(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn decision(&mut self, model: &str) -> Decision {
        match self.ask(model) {
            Step::Route(decision) => decision,
            other => panic!("{other:?}"),
        }
    }

    fn overdue(&self) -> Vec<usize> {
        self.router.overdue_pools(self.now_us).collect()
    }
}

fn body(model: &str) -> String {
    let prompt = PROMPT.repeat(100);
    json!({"model": model, "prompt": prompt, "kv_transfer_params": {"x": 1}}).to_string()
}

/// A pool of Envoy's cluster `p`, with these fields.
fn pool(fields: Value) -> Value {
    let mut pool = json!({"name": "p", "models": ["m"], "endpoints": "envoy"});
    let all = pool.as_object_mut().expect("an object");
    all.extend(fields.as_object().expect("an object").clone());
    pool
}

fn config(fields: Value) -> Value {
    json!({"pools": [pool(fields)]})
}

/// The pool to whose cluster a request goes on without a decision.
fn left_to(step: &Step) -> usize {
    match step {
        Step::Pass { pool, fallback, .. } => {
            assert_eq!(*fallback, Fallback::EndpointsUnknown);
            pool.expect("a pool")
        }
        other => panic!("{other:?}"),
    }
}

fn is_refused(answer: &Answer) {
    let told = (answer.status, answer.cause, answer.retry_after_s);
    assert_eq!(told, (503, "no_endpoint", Some(1)));
}

#[test]
fn a_request_is_left_to_envoy_until_its_engines_are_known() {
    let store = MemoryStore::new();
    let fields = json!({"aliases": {"alias": "m"}, "policy": "prefix"});
    let mut world = World::new(&config(fields), &store, START_US);
    let step = world.ask("alias");
    assert_eq!(left_to(&step), 0);
    let Step::Pass { changes, .. } = step else {
        panic!("decided");
    };
    // Engines know the model by its own name only.
    let sent = splice::rewrite(body("alias").as_bytes(), &changes).expect("changes that fit");
    let sent: Value = serde_json::from_slice(&sent).expect("JSON");
    let want = json!({"model": "m", "prompt": PROMPT.repeat(100)});
    assert_eq!(sent, want);
    assert_eq!(
        world.answer("other").status,
        404,
        "nobody is known to have it"
    );
    let list = world.router.model_list().expect("all are known").body;
    assert!(
        list.contains("\"m\"") && list.contains("\"alias\""),
        "{list}"
    );

    world.clusters = Some(vec![("p", ENGINES.to_vec())]);
    world.run(2);
    let decision = world.decision("alias");
    assert_eq!((decision.ranked.len(), decision.fallback), (2, None));

    world.clusters = Some(vec![("p", vec![])]);
    world.run(2);
    is_refused(&world.answer("m"));
    let list = world.router.model_list().expect("all are known").body;
    assert!(!list.contains("\"m\""), "{list}");

    // What was known once is not forgotten.
    world.clusters = Some(vec![("p", ENGINES.to_vec())]);
    world.run(2);
    world.clusters = None;
    world.run(600);
    world.decision("m");
}

#[test]
fn who_asks_and_hears_nothing_goes_on_for_ever_and_is_warned() {
    let store = MemoryStore::new();
    let mut world = World::new(&config(json!({})), &store, START_US);
    world.run(9);
    assert!(world.overdue().is_empty());
    world.run(2);
    assert_eq!(world.overdue(), [0]);
    world.run(3600);
    assert_eq!(left_to(&world.ask("m")), 0);
    // Envoy answers, but has no such cluster.
    world.clusters = Some(vec![("another", ENGINES.to_vec())]);
    world.run(20);
    assert_eq!(left_to(&world.ask("m")), 0);
    assert_eq!(world.overdue(), [0]);
    world.clusters = Some(vec![("p", ENGINES.to_vec())]);
    world.run(2);
    world.decision("m");
    assert!(world.overdue().is_empty());
}

#[test]
fn that_a_cluster_has_no_hosts_is_not_believed_from_before_the_start() {
    let store = MemoryStore::new();
    let mut main = World::new(&config(json!({})), &store, START_US);
    // Envoy is not ready: it lists the cluster, and has yet to find out what is in it.
    main.clusters = Some(vec![("p", vec![])]);
    main.run(3);
    let mut worker = World::new(&config(json!({})), &store, main.now_us);
    worker.router.tick(worker.now_us);
    assert_eq!(left_to(&worker.ask("m")), 0);
    // Told again, it is so.
    main.run(2);
    worker.router.tick(main.now_us);
    is_refused(&worker.answer("m"));
    // Hosts are believed from whenever they were told.
    main.clusters = Some(vec![("p", ENGINES.to_vec())]);
    main.run(2);
    let mut late = World::new(&config(json!({})), &store, main.now_us + SECOND);
    assert_eq!(late.decision("m").ranked.len(), 2);
}

#[test]
fn each_pool_is_known_for_itself() {
    let store = MemoryStore::new();
    let mut config = config(json!({}));
    let second = json!({"name": "q", "cluster": "c", "models": ["n"], "endpoints": "envoy"});
    let third = json!({"name": "s", "models": ["o"],
        "endpoints": {"static": [{"address": ENGINES[0]}]}});
    let empty = json!({"name": "e", "models": ["none"], "endpoints": {"static": []}});
    config["pools"] = json!([config["pools"][0], second, third, empty]);
    let mut world = World::new(&config, &store, START_US);
    assert_eq!(left_to(&world.ask("m")), 0);
    assert_eq!(left_to(&world.ask("n")), 1);
    world.decision("o");
    is_refused(&world.answer("none"));
    world.clusters = Some(vec![("c", ENGINES.to_vec())]);
    world.run(2);
    assert_eq!(left_to(&world.ask("m")), 0);
    assert_eq!(world.decision("n").pool, 1);
}

#[test]
fn every_policy_and_every_way_to_a_decision_leaves_it_to_envoy() {
    let index = json!({"dynamo": {"cluster": "dynamo"}});
    for policy in [
        json!("round_robin"),
        json!("least_request"),
        json!({"consistent_hash": {}}),
        json!("prefix"),
        json!("cache_aware"),
        json!({"kv_aware": {"index": index}}),
    ] {
        let store = MemoryStore::new();
        let fields = json!({"policy": policy, "admission": {"max_requests": 1}});
        let mut world = World::new(&config(fields), &store, START_US);
        for _ in 0..3 {
            // Two would be too many, if it were known where they are.
            assert_eq!(left_to(&world.ask("m")), 0, "{policy}");
        }
        assert!(
            world
                .router
                .take_kv_tallies()
                .all(|(_, tally)| tally == Default::default())
        );
        // A body that cannot be read.
        let packed = [("content-encoding", "gzip"), ("x-warmpath-pool", "p")];
        let (_, step) = world.send("/v1/completions", "", &packed);
        assert_eq!(left_to(&step), 0, "{policy}");
    }
    // A pool that takes every model, by the headers alone.
    let store = MemoryStore::new();
    let fields = json!({"models": [], "policy": "round_robin"});
    let mut world = World::new(&config(fields), &store, START_US);
    let (_, step) = world.send("/v1/completions", "not looked at", &[]);
    assert_eq!(left_to(&step), 0);
}

#[test]
fn what_no_host_of_the_cluster_could_serve_alone_is_refused() {
    let by_role = config(json!({"endpoints": {"envoy": {"role": "decode"}}}));
    let store = MemoryStore::new();
    let mut world = World::new(&by_role, &store, START_US);
    is_refused(&world.answer("m"));
    for (connector, alone) in [
        (json!("nixl"), true),
        (json!({"mooncake": {"bootstrap_port": 8998}}), true),
        (json!({"p2p_nccl": {"port": 21001}}), false),
        (json!({"sglang": {"bootstrap_port": 8998}}), false),
    ] {
        let prefill = json!({"name": "f", "endpoints": "envoy", "policy": "prefix"});
        let options = json!({"disaggregation": {"prefill_pool": "f", "connector": connector}});
        let store = MemoryStore::new();
        let config = json!({"pools": [pool(options), prefill]});
        let mut world = World::new(&config, &store, START_US);
        match alone {
            true => assert_eq!(left_to(&world.ask("m")), 0, "{connector}"),
            false => is_refused(&world.answer("m")),
        }
        let list = world.router.model_list().expect("all are known").body;
        assert_eq!(list.contains("\"m\""), alone, "{connector}: {list}");
        assert_eq!(world.router.pending_calls(), 0);
        // The one that decodes is known, the one that prefills is not.
        world.clusters = Some(vec![("p", ENGINES.to_vec())]);
        world.run(2);
        match alone {
            true => assert_eq!(world.decision("m").ranked.len(), 2),
            false => assert_eq!(world.answer("m").cause, "not_prefilled"),
        }
    }
}

#[test]
fn a_model_may_be_that_of_engines_which_have_not_said_what_they_serve() {
    let store = MemoryStore::new();
    let fields = json!({"models": [], "discover_models": true, "aliases": {"alias": "m"}});
    let mut world = World::new(&config(fields), &store, START_US);
    for _ in 0..2 {
        for model in ["m", "alias", "another"] {
            assert_eq!(left_to(&world.ask(model)), 0, "{model}");
        }
        // Where the engines are is known; what they serve is not.
        world.clusters = Some(vec![("p", ENGINES.to_vec())]);
        world.run(2);
    }
    world.models = Some(vec!["m"]);
    world.run(12);
    assert_eq!(world.decision("m").ranked.len(), 2);
    world.decision("alias");
    assert_eq!(world.answer("another").status, 404);
}

#[test]
fn an_explanation_says_that_no_engine_is_named() {
    let store = MemoryStore::new();
    let mut world = World::new(&config(json!({})), &store, START_US);
    let explain = |world: &World| {
        let body = body("m");
        let router = &world.router;
        let told = Exchange::explain(router, Api::Completions, &[], body.as_bytes(), world.now_us);
        let told = told.expect("an explanation");
        serde_json::from_str::<Value>(&explanation(router, &told)).expect("JSON")
    };
    let told = explain(&world);
    assert_eq!(told["fallback"], "endpoints_unknown");
    assert_eq!(
        (&told["pool"], &told["reason"]),
        (&json!("p"), &Value::Null)
    );
    assert_eq!(
        (&told["ranked"], &told["candidates"]),
        (&json!([]), &json!([]))
    );
    world.clusters = Some(vec![("p", ENGINES.to_vec())]);
    world.run(2);
    let told = explain(&world);
    assert_eq!(told["ranked"].as_array().map(Vec::len), Some(2));
    assert_eq!(told["fallback"], Value::Null);
}
