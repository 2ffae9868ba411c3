//! A clock that jumps, forward and back, by milliseconds or by months, while requests are under way.
//!
//! The clock of a process cannot be moved without privileges, so this fault strikes the filter's core alone:
//! its routers, in this process, one for each worker, with the time that they are told. The property test
//! `filter/core/tests/clock.rs` tries far more orders of events.

use std::collections::HashSet;

use anyhow::{Context as _, anyhow};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use warmpath_core::Config;
use warmpath_core::hash;
use warmpath_core::router::{Ask, Charge, Outcome, PromptFacts, Response, Router};
use warmpath_core::scan::{CHUNK_BYTES, Link};
use warmpath_core::store::MemoryStore;

use super::row::Row;
use super::stage::{ENGINES, POOL};

const SECOND: u64 = 1_000_000;
const MIDDLE_US: u64 = 1_700_000_000 * SECOND;
/// Requests under way at a time.
const OPEN: usize = 16;
const PROMPTS: u64 = 8;
/// One request in so many comes after a jump.
const JUMPS: u32 = 20;
/// The longest that anything an engine did is held against it.
const CALM_S: u64 = 605;

struct World<'a> {
    routers: Vec<Router<&'a MemoryStore>>,
    now_us: u64,
    dice: SmallRng,
}

/// The row of this fault.
pub(super) fn jumps(workers: u32, requests: u64, seed: u64) -> anyhow::Result<Row> {
    let store = MemoryStore::new();
    let mut world = World {
        routers: (0..workers)
            .map(|_| Ok(Router::new(config()?, &store, MIDDLE_US)))
            .collect::<anyhow::Result<_>>()?,
        now_us: MIDDLE_US,
        dice: SmallRng::seed_from_u64(seed),
    };
    let (mut open, mut jumped) = (Vec::new(), 0);
    for _ in 0..requests {
        if world.dice.random_ratio(1, JUMPS) {
            world.jump();
            jumped += 1;
        }
        let at = world.dice.random_range(0..workers as usize);
        let charge = world.ask(at)?;
        open.push((at, charge));
        while open.len() > OPEN {
            let (at, charge) = open.swap_remove(world.dice.random_range(0..open.len()));
            // One request in ten fails.
            let status = if world.dice.random_ratio(1, 10) {
                500
            } else {
                200
            };
            world.end(at, charge, status)?;
        }
    }
    for (at, charge) in open {
        world.end(at, charge, 200)?;
    }
    // By worker, the endpoints that were usable at some time.
    let mut used = vec![HashSet::new(); workers as usize];
    for _ in 0..CALM_S {
        world.now_us += SECOND;
        for (at, used) in used.iter_mut().enumerate() {
            let charge = world.ask(at)?;
            world.end(at, charge, 200)?;
            used.extend(world.usable(at));
        }
    }
    let mut row = Row {
        fault: "clock_jumps (core)",
        sent: requests as usize,
        answered: requests as usize,
        note: format!("{jumped} jumps; the routers alone, with the time that they are told"),
        ..Row::default()
    };
    row.check(used.iter().all(|it| it.len() == ENGINES), || {
        format!("some engine is not used any more: {used:?}")
    });
    world.judge(&mut row)?;
    Ok(row)
}

fn config() -> anyhow::Result<Config> {
    let list: Vec<_> = (1..=ENGINES)
        .map(|n| json!({"address": format!("10.0.0.{n}:8000")}))
        .collect();
    let config = json!({"discovery": "off", "scrape": "off", "pools": [
        {"name": POOL, "models": ["m"], "policy": "prefix", "endpoints": {"static": list}}]});
    Config::parse(config.to_string().as_bytes()).map_err(|errors| anyhow!("{errors:?}"))
}

impl World<'_> {
    fn jump(&mut self) {
        let length = 1_i64 << self.dice.random_range(10..44);
        let by = if self.dice.random() { length } else { -length };
        let to = self.now_us.saturating_add_signed(by);
        self.now_us = to.clamp(MIDDLE_US / 2, 2 * MIDDLE_US);
    }

    fn ask(&mut self, at: usize) -> anyhow::Result<Charge> {
        let prompt = self.dice.random_range(0..PROMPTS);
        let link = |chunk: usize| Link {
            hash: hash::mix(prompt, chunk as u64),
            end: chunk * CHUNK_BYTES,
        };
        let facts = PromptFacts {
            chain: (1..=8).map(link).collect(),
            bytes: 8 * CHUNK_BYTES,
            conversation: prompt,
            streamed: prompt.is_multiple_of(2),
            output_tokens: Some(1),
            told: None,
        };
        self.now_us += 5000;
        let router = self.routers.get_mut(at).context("no worker")?;
        router.tick(self.now_us);
        let target = router.target(b"m").context("no pool")?.clone();
        let ask = Ask {
            target: &target,
            key: None,
            prompt: Some(facts),
            priority: Default::default(),
        };
        let decided = router.decide(ask, self.now_us);
        let (_, mut charge) = decided.map_err(|answer| anyhow!("answered {}", answer.status))?;
        router.sent(&mut charge, None, self.now_us);
        Ok(charge)
    }

    fn end(&mut self, at: usize, mut charge: Charge, status: u16) -> anyhow::Result<()> {
        let router = self.routers.get_mut(at).context("no worker")?;
        let address = router.address(charge.position()).to_owned();
        let response = Response {
            status,
            address: address.as_bytes(),
            by_engine: true,
            retry_after_s: None,
        };
        router.responded(&mut charge, response, self.now_us);
        let mut outcome = Outcome::Failed;
        if status == 200 {
            router.first_token(&mut charge, self.now_us);
            router.heard(&charge);
            router.answered(&charge, self.now_us);
            outcome = Outcome::Served { output_tokens: 1 };
        }
        router.end(charge, outcome, self.now_us);
        Ok(())
    }

    /// The endpoints that a worker would use.
    fn usable(&self, at: usize) -> impl Iterator<Item = usize> {
        let router = self.routers.get(at);
        let is_usable = move |it: &usize| {
            router.is_some_and(|router| router.state(0, *it, self.now_us).is_usable())
        };
        (0..ENGINES).filter(is_usable)
    }

    fn judge(&mut self, row: &mut Row) -> anyhow::Result<()> {
        for (at, router) in self.routers.iter().enumerate() {
            for position in 0..ENGINES {
                let in_flight = router.in_flight(position);
                row.check(in_flight == 0, || {
                    format!("worker {at} counts {in_flight} in flight at engine {position}")
                });
            }
        }
        let mut known = 0;
        for at in 0..self.routers.len() {
            let charge = self.ask(at)?;
            known += usize::from(charge.cached_tokens() > 0);
            self.end(at, charge, 200)?;
        }
        let of = self.routers.len();
        row.continued = Some((known, of));
        row.check(known == of, || format!("{known} of {of} prompts are known"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_cost_nothing() {
        for workers in [1, 3] {
            let row = jumps(workers, 300, 7).unwrap();
            assert_eq!((row.sent, row.answered), (300, 300));
            assert!(row.missed.is_empty(), "{:?}", row.missed);
        }
    }
}
