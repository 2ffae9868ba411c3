//! A clock that jumps: forward and back, by milliseconds or by months, while requests are under way.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use proptest::prelude::*;
use serde_json::json;
use std::collections::HashSet;
use warmpath_core::Config;
use warmpath_core::hash;
use warmpath_core::router::{Ask, Charge, Outcome, PromptFacts, Response, Router};
use warmpath_core::scan::{CHUNK_BYTES, Link};
use warmpath_core::store::MemoryStore;

const SECOND: u64 = 1_000_000;
const ENGINES: usize = 4;
/// No jump leads before this time, or beyond twice of it.
const MIDDLE_US: u64 = 1_700_000_000 * SECOND;

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Event {
    Jump(i64),
    Tick(u8),
    Ask(u8, u8),
    End(u8, u16),
}

fn event() -> impl Strategy<Value = Event> {
    let jump = (0..44_u32, any::<bool>(), any::<u32>()).prop_map(|(bits, back, noise)| {
        let length = (1_i64 << bits) + i64::from(noise) % (1 << bits);
        Event::Jump(if back { -length } else { length })
    });
    prop_oneof![
        1 => jump,
        4 => any::<u8>().prop_map(Event::Tick),
        8 => (any::<u8>(), 0..8_u8).prop_map(|(at, prompt)| Event::Ask(at, prompt)),
        8 => (any::<u8>(), prop_oneof![Just(200), Just(500), Just(503), Just(0)])
            .prop_map(|(at, status)| Event::End(at, status)),
    ]
}

struct World<'a> {
    workers: Vec<Router<&'a MemoryStore>>,
    open: Vec<(usize, Charge)>,
    now_us: u64,
}

impl<'a> World<'a> {
    fn new(workers: usize, store: &'a MemoryStore) -> Self {
        let list: Vec<_> = (1..=ENGINES)
            .map(|n| json!({"address": format!("10.0.0.{n}:8000")}))
            .collect();
        let config = json!({"discovery": "off", "scrape": "off", "pools": [
            {"name": "p", "models": ["m"], "policy": "prefix", "endpoints": {"static": list}}]});
        let config = || Config::parse(config.to_string().as_bytes()).expect("a valid config");
        World {
            workers: (0..workers)
                .map(|_| Router::new(config(), store, MIDDLE_US))
                .collect(),
            open: Vec::new(),
            now_us: MIDDLE_US,
        }
    }

    fn happen(&mut self, event: Event) {
        let workers = self.workers.len();
        self.now_us += 1000;
        match event {
            Event::Jump(by) => {
                let range = MIDDLE_US / 2..=2 * MIDDLE_US;
                let to = self.now_us.saturating_add_signed(by);
                self.now_us = to.clamp(*range.start(), *range.end());
            }
            Event::Tick(at) => self.workers[usize::from(at) % workers].tick(self.now_us),
            Event::Ask(at, prompt) => {
                let at = usize::from(at) % workers;
                let charge = self.ask(at, prompt);
                self.open.push((at, charge));
            }
            Event::End(at, status) if !self.open.is_empty() => {
                let (at, charge) = self.open.swap_remove(usize::from(at) % self.open.len());
                self.end(at, charge, status);
            }
            Event::End(..) => {}
        }
    }

    fn ask(&mut self, at: usize, prompt: u8) -> Charge {
        let link = |chunk: usize| Link {
            hash: hash::mix(u64::from(prompt), chunk as u64),
            end: chunk * CHUNK_BYTES,
        };
        let facts = PromptFacts {
            chain: (1..=8).map(link).collect(),
            bytes: 8 * CHUNK_BYTES,
            conversation: u64::from(prompt),
            streamed: prompt.is_multiple_of(2),
            output_tokens: Some(1),
            told: None,
        };
        let router = &mut self.workers[at];
        let target = router.target(b"m").expect("a pool").clone();
        let ask = Ask {
            target: &target,
            key: None,
            prompt: Some(facts),
            priority: Default::default(),
        };
        let (decision, mut charge) = router.decide(ask, self.now_us).expect("an engine");
        let ranked: HashSet<_> = decision.ranked.iter().collect();
        assert!(!ranked.is_empty() && ranked.len() == decision.ranked.len());
        router.sent(&mut charge, None, self.now_us);
        charge
    }

    /// Status 0: the engine never answered.
    fn end(&mut self, at: usize, mut charge: Charge, status: u16) {
        let router = &mut self.workers[at];
        let address = router.address(charge.position()).to_owned();
        let response = Response {
            status,
            address: address.as_bytes(),
            by_engine: true,
            retry_after_s: (status == 503).then_some(7),
        };
        if status > 0 {
            router.responded(&mut charge, response, self.now_us);
        }
        let outcome = match status {
            200 => {
                router.first_token(&mut charge, self.now_us);
                router.heard(&charge);
                router.answered(&charge, self.now_us);
                Outcome::Served { output_tokens: 1 }
            }
            _ => Outcome::Failed,
        };
        router.end(charge, outcome, self.now_us);
    }

    /// Everything is well for this time, as time goes by. Which endpoints were usable at some time of it,
    /// by worker.
    fn calm(&mut self, seconds: u64) -> Vec<HashSet<usize>> {
        let mut used = vec![HashSet::new(); self.workers.len()];
        for step in 0..seconds.div_ceil(4) {
            self.now_us += 4 * SECOND;
            for (at, used) in used.iter_mut().enumerate() {
                self.workers[at].tick(self.now_us);
                let charge = self.ask(at, (step % 8) as u8);
                self.end(at, charge, 200);
                let state = |it| self.workers[at].state(0, it, self.now_us);
                used.extend((0..ENGINES).filter(|it| state(*it).is_usable()));
            }
        }
        used
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn jumps_of_the_clock_are_survived(
        workers in 1..4_usize,
        events in prop::collection::vec(event(), 1..400),
    ) {
        let store = MemoryStore::new();
        let mut world = World::new(workers, &store);
        for event in events {
            world.happen(event);
        }
        for (at, charge) in std::mem::take(&mut world.open) {
            world.end(at, charge, 200);
        }
        // Nothing that an engine did is held against it for longer than ten minutes.
        let used = world.calm(605);
        for (router, used) in world.workers.iter().zip(used) {
            prop_assert_eq!(used.len(), ENGINES);
            for position in 0..ENGINES {
                prop_assert_eq!(router.in_flight(position), 0);
            }
        }
        for at in 0..workers {
            let charge = world.ask(at, 3);
            prop_assert!(charge.cached_tokens() > 0, "its prompt is forgotten");
            world.end(at, charge, 200);
        }
    }
}
