//! Workers over shared data that somebody damages: what is read back is discarded or bounded, never
//! trusted. The input is a script of requests, ticks and damages, so the same bytes do the same.

use serde_json::json;
use std::cell::RefCell;
use std::collections::BTreeSet;
use warmpath_core::router::{Outcome, Router};
use warmpath_core::scan::Api;
use warmpath_core::store::{MemoryStore, Store, Versioned};
use warmpath_core::{Config, Exchange, Fallback, Head, Step};

const SECOND: u64 = 1_000_000;
const WORKERS: usize = 2;
const ENGINES: usize = 3;
/// Longer scripts say no more, and take long.
const MOST_STEPS: usize = 200;

/// Shared data that tells its keys, which Envoy's does not.
#[derive(Default)]
struct Told {
    store: MemoryStore,
    keys: RefCell<BTreeSet<String>>,
}

impl Told {
    fn note(&self, key: &str) {
        if !self.keys.borrow().contains(key) {
            self.keys.borrow_mut().insert(key.to_owned());
        }
    }

    /// The key with this number; numbers beyond the last begin again with the first.
    fn key(&self, number: u8) -> Option<String> {
        let keys = self.keys.borrow();
        let at = usize::from(number) % keys.len().max(1);
        keys.iter().nth(at).cloned()
    }
}

impl Store for Told {
    fn get(&self, key: &str) -> Versioned {
        self.note(key);
        self.store.get(key)
    }

    fn set(&self, key: &str, bytes: &[u8]) {
        self.note(key);
        self.store.set(key, bytes);
    }

    fn compare_and_set(&self, key: &str, bytes: &[u8], version: u32) -> bool {
        self.note(key);
        self.store.compare_and_set(key, bytes, version)
    }
}

fn config() -> Config {
    let engines: Vec<_> = (1..=ENGINES)
        .map(|n| json!({"address": format!("10.0.0.{n}:8000")}))
        .collect();
    let config = json!({
        "pools": [
            {
                "name": "p", "models": ["m"], "endpoints": {"static": engines}, "policy": "prefix",
                "admission": {"max_requests": 1000, "max_queued_tokens": 1_000_000},
            },
            {"name": "q", "models": ["n"], "endpoints": "envoy", "discover_models": true,
             "policy": {"lowest_qps": {"window_s": 1}}},
            {"name": "r", "models": ["o"], "endpoints": {"static": engines}, "policy": "round_robin"},
        ],
        "limits": {"prefix_table_bytes": 65536},
        "status": {"recent": 4},
    });
    Config::parse(config.to_string().as_bytes()).expect("a valid config")
}

struct World<'a> {
    store: &'a Told,
    workers: Vec<Router<&'a Told>>,
    open: Vec<(usize, Exchange)>,
    now_us: u64,
}

impl<'a> World<'a> {
    fn new(store: &'a Told) -> Self {
        let now_us = 1_000 * SECOND;
        World {
            store,
            workers: (0..WORKERS)
                .map(|_| Router::new(config(), store, now_us))
                .collect(),
            open: Vec::new(),
            now_us,
        }
    }

    fn request(&mut self, word: u8) {
        let worker = usize::from(word) % WORKERS;
        let model = ["m", "n", "o"][usize::from(word / 2) % 3];
        let text = "hello there ".repeat(50 * usize::from(word / 8));
        let body = json!({
            "model": model, "messages": [{"role": "user", "content": text}], "stream": true,
        });
        let body = body.to_string();
        let head = [(":method", "POST"), (":path", "/v1/chat/completions")];
        let headers = head.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
        let router = &mut self.workers[worker];
        let explained = Exchange::explain(
            router,
            Api::ChatCompletions,
            &headers,
            body.as_bytes(),
            self.now_us,
        );
        if let Ok(explained) = explained {
            assert!(explained.candidates.len() <= warmpath_core::config::MAX_ENDPOINTS);
        }
        let mut exchange = Exchange::default();
        let head = Head {
            headers: &headers,
            end_of_stream: false,
        };
        let mut step = exchange.on_headers(router, head, self.now_us);
        if step == Step::Hold {
            step = exchange.on_body(router, body.as_bytes(), true, self.now_us);
        }
        match step {
            Step::Route(decision) => {
                let distinct: BTreeSet<usize> = decision.ranked.iter().copied().collect();
                assert_eq!(distinct.len(), decision.ranked.len(), "an engine twice");
                let known = |at: &usize| !router.address(*at).is_empty();
                assert!(decision.ranked.iter().all(known), "an engine that is none");
                self.open.push((worker, exchange));
            }
            // Damaged counts may look like full engines, damaged health like none.
            Step::Answer(answer) => assert!([404, 429, 503].contains(&answer.status)),
            // Nobody may have told the engines of the only pool that does not list them.
            Step::Pass { pool, fallback, .. } => {
                assert_eq!((pool, fallback), (Some(1), Fallback::EndpointsUnknown));
            }
            other => panic!("{other:?}"),
        }
    }

    fn end(&mut self, word: u8) {
        if self.open.is_empty() {
            return;
        }
        let at = usize::from(word) % self.open.len();
        let (worker, mut exchange) = self.open.swap_remove(at);
        let router = &mut self.workers[worker];
        exchange.first_token(router, self.now_us);
        let outcome = match word % 2 {
            0 => Outcome::Served { output_tokens: 9 },
            _ => Outcome::Failed,
        };
        exchange.end(router, outcome, self.now_us);
    }

    fn tick(&mut self, word: u8) {
        self.now_us += u64::from(word) * SECOND / 16;
        for router in &mut self.workers {
            router.tick(self.now_us);
            router.attend(self.now_us);
            let _calls = router.calls(self.now_us);
            let _sizes = (
                router.pool_sizes(self.now_us),
                router.stale_sizes(self.now_us),
            );
            assert!(router.survey(self.now_us).count() <= 3 * warmpath_core::config::MAX_ENDPOINTS);
        }
    }

    fn damage(&mut self, kind: u8, word: u8, rest: &mut &[u8]) {
        let Some(key) = self.store.key(word) else {
            return;
        };
        let mut value = self.store.store.get(&key).bytes;
        let (&size, after) = rest.split_first().unwrap_or((&0, &[]));
        match kind {
            // Other bytes behind the byte of the version, which every value begins with.
            0 => {
                let (bytes, after) = after.split_at(after.len().min(usize::from(size)));
                value.truncate(1);
                value.extend_from_slice(bytes);
                *rest = after;
            }
            1 => {
                let (bytes, after) = after.split_at(after.len().min(3));
                let at = usize::from(size) * 256 + usize::from(*bytes.first().unwrap_or(&0));
                let length = value.len().max(1);
                for (byte, new) in value.iter_mut().skip(at % length).zip(bytes) {
                    *byte = *new;
                }
                *rest = after;
            }
            2 => {
                value.truncate(value.len() * usize::from(size) / 255);
                *rest = after;
            }
            _ => {
                let count = usize::from(size);
                value.extend(std::iter::repeat_n(size, count * 16));
                *rest = after;
            }
        }
        self.store.store.set(&key, &value);
    }
}

/// Runs a script. Panics where a promise is broken.
pub fn check(script: &[u8]) {
    let store = Told::default();
    let mut world = World::new(&store);
    world.tick(16);
    let mut rest = script;
    for _ in 0..MOST_STEPS {
        let Some(([kind, word], after)) = rest.split_first_chunk() else {
            break;
        };
        rest = after;
        match kind % 8 {
            0 | 1 => world.request(*word),
            2 => world.end(*word),
            3 => world.tick(*word),
            kind => world.damage(kind - 4, *word, &mut rest),
        }
    }
    // Whatever happened, what is in flight can be given back and the workers can go.
    while !world.open.is_empty() {
        world.end(0);
    }
    world.tick(255);
    world.workers.iter_mut().for_each(Router::leave);
}
