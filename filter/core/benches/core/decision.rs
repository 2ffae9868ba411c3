//! One decision and its end, by policy and number of endpoints, with 64 requests in flight.

use std::collections::VecDeque;

use criterion::{BatchSize, BenchmarkId, Criterion};
use warmpath_core::router::{Ask, Charge, Outcome, PromptFacts, Router, Target};
use warmpath_core::scan::ScanPlan;
use warmpath_core::store::MemoryStore;

use super::bodies::{Kind, facts, read, router};

/// Requests under way while deciding.
const IN_FLIGHT: usize = 64;
/// Different conversations, in turn.
const CONVERSATIONS: u64 = 200;
/// Microseconds between two requests.
const GAP_US: u64 = 50;

const POLICIES: [(&str, &str); 7] = [
    ("round_robin", r#""round_robin""#),
    ("random", r#""random""#),
    ("least_request", r#""least_request""#),
    ("power_of_two", r#""power_of_two""#),
    ("lowest_qps", r#""lowest_qps""#),
    ("consistent_hash", r#""consistent_hash""#),
    ("prefix", r#"{"prefix": {"kv_tokens": 400000}}"#),
];

/// A router under steady load.
pub struct Traffic {
    router: Router<MemoryStore>,
    target: Target,
    under_way: VecDeque<Charge>,
    now_us: u64,
}

impl Traffic {
    /// Traffic through a new router.
    pub fn new(endpoints: usize, policy: &str) -> Self {
        let router = router(endpoints, policy);
        let Some(target) = router.target(b"m").cloned() else {
            unreachable!("the pool serves the model");
        };
        Self {
            router,
            target,
            under_way: VecDeque::new(),
            now_us: 2_000_000,
        }
    }

    /// A request is decided, and the oldest one ends.
    pub fn step(&mut self, key: u64, prompt: Option<PromptFacts>) -> usize {
        self.now_us += GAP_US;
        let ask = Ask {
            target: &self.target,
            key: Some(key),
            prompt,
        };
        let Ok((decision, charge)) = self.router.decide(ask, self.now_us) else {
            unreachable!("there are endpoints");
        };
        self.under_way.push_back(charge);
        if self.under_way.len() > IN_FLIGHT
            && let Some(charge) = self.under_way.pop_front()
        {
            let served = Outcome::Served { output_tokens: 10 };
            self.router.end(charge, served, self.now_us);
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
    let mut group = criterion.benchmark_group("decide_and_end");
    for (name, policy) in POLICIES {
        for endpoints in [8, 64, 256, 1024] {
            let mut traffic = Traffic::new(endpoints, policy);
            let mut turn = 0;
            let mut next = || {
                turn += 1;
                let conversation = turn % CONVERSATIONS;
                (conversation, facts(&scan, conversation))
            };
            for _ in 0..CONVERSATIONS {
                let (key, prompt) = next();
                traffic.step(key, Some(prompt));
            }
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
