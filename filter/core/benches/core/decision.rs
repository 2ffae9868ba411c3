//! One decision and its end, by policy and number of endpoints, with 64 requests in flight: of a lone
//! worker, and of two that tell each other.

use std::collections::VecDeque;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion};
use warmpath_core::router::{Ask, Charge, Outcome, PromptFacts, Router, Target};
use warmpath_core::scan::{RequestScan, ScanPlan};
use warmpath_core::store::MemoryStore;

use super::bodies::{Kind, facts, read, worker};

/// Requests under way while deciding.
const IN_FLIGHT: usize = 64;
/// Different conversations, in turn.
const CONVERSATIONS: u64 = 200;
/// Microseconds between two requests.
const GAP_US: u64 = 50;
/// Microseconds between two ticks.
const TICK_US: u64 = 500_000;
/// After this time a worker that sees no other takes itself for alone.
const STARTED_US: u64 = 15_000_000;
/// Sizes of pools.
pub const ENDPOINTS: [usize; 4] = [8, 64, 256, 1024];

const POLICIES: [(&str, &str); 7] = [
    ("round_robin", r#""round_robin""#),
    ("random", r#""random""#),
    ("least_request", r#""least_request""#),
    ("power_of_two", r#""power_of_two""#),
    ("lowest_qps", r#""lowest_qps""#),
    ("consistent_hash", r#""consistent_hash""#),
    ("prefix", r#"{"prefix": {"kv_tokens": 400000}}"#),
];

/// Routers under steady load, asked in turn.
pub struct Traffic {
    workers: Vec<Router<Arc<MemoryStore>>>,
    target: Target,
    under_way: VecDeque<(usize, Charge)>,
    turn: usize,
    now_us: u64,
    tick_us: u64,
}

impl Traffic {
    /// Traffic through new routers over one store.
    pub fn new(endpoints: usize, policy: &str, workers: usize) -> Self {
        let store = Arc::default();
        let workers: Vec<_> = (0..workers)
            .map(|_| worker(endpoints, policy, &store))
            .collect();
        let target = workers.first().and_then(|router| router.target(b"m"));
        let Some(target) = target.cloned() else {
            unreachable!("the pool serves the model");
        };
        Self {
            workers,
            target,
            under_way: VecDeque::new(),
            turn: 0,
            now_us: 2_000_000,
            tick_us: 0,
        }
    }

    /// Lets the time pass in which a worker waits for others to show up.
    pub fn settle(&mut self) {
        let end_us = self.now_us + STARTED_US;
        while self.now_us < end_us {
            self.now_us += TICK_US;
            self.tick();
        }
    }

    fn tick(&mut self) {
        self.tick_us = self.now_us + TICK_US;
        for router in &mut self.workers {
            router.tick(self.now_us);
        }
    }

    /// A request is decided, and the oldest one ends.
    pub fn step(&mut self, key: u64, prompt: Option<PromptFacts>) -> usize {
        self.now_us += GAP_US;
        if self.now_us >= self.tick_us {
            self.tick();
        }
        self.turn = (self.turn + 1) % self.workers.len();
        let Some(router) = self.workers.get_mut(self.turn) else {
            unreachable!("the turn is that of a worker");
        };
        let ask = Ask {
            target: &self.target,
            key: Some(key),
            prompt,
            priority: Default::default(),
        };
        let Ok((decision, charge)) = router.decide(ask, self.now_us) else {
            unreachable!("there are endpoints");
        };
        self.under_way.push_back((self.turn, charge));
        if self.under_way.len() > IN_FLIGHT
            && let Some((turn, charge)) = self.under_way.pop_front()
            && let Some(router) = self.workers.get_mut(turn)
        {
            let served = Outcome::Served { output_tokens: 10 };
            router.end(charge, served, self.now_us);
        }
        decision.ranked.len()
    }
}

/// Time of a decision with everything that belongs to it.
pub fn bench(criterion: &mut Criterion) {
    let Ok(plan) = ScanPlan::new(&[], true) else {
        unreachable!("there is no pointer");
    };
    let scan = read(&plan, Kind::Escaped.api(), &Kind::Escaped.body(4096));
    by_policy(criterion, "decide_and_end", 1, &scan);
    by_policy(criterion, "decide_and_end_shared", 2, &scan);
}

fn by_policy(criterion: &mut Criterion, group: &str, workers: usize, scan: &RequestScan) {
    let mut group = criterion.benchmark_group(group);
    for (name, policy) in POLICIES {
        for endpoints in ENDPOINTS {
            let mut traffic = Traffic::new(endpoints, policy, workers);
            let mut turn = 0;
            let mut next = || {
                turn += 1;
                let conversation = turn % CONVERSATIONS;
                (conversation, facts(scan, conversation))
            };
            for _ in 0..CONVERSATIONS {
                let (key, prompt) = next();
                traffic.step(key, Some(prompt));
            }
            traffic.settle();
            group.bench_function(BenchmarkId::new(name, endpoints), |bencher| {
                bencher.iter_batched(
                    &mut next,
                    |(key, prompt)| traffic.step(key, Some(prompt)),
                    BatchSize::SmallInput,
                );
            });
        }
    }
    group.finish();
}
