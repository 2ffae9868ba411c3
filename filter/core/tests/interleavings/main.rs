//! Workers over one store, interleaved at every single operation.
//!
//! Each schedule runs two to four workers through what workers do, in an order that its seed draws:
//! one that vanishes in the middle of anything, one that restarts, one that is not run for seconds,
//! two config generations at once. What must hold is checked with every write ([`inspector`]) and at
//! the end ([`aftermath`]). A failure names its seed; `WARMPATH_SEED` runs that one alone, and
//! `WARMPATH_SCHEDULES` says how many to run.
#![cfg(not(target_arch = "wasm32"))]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod aftermath;
mod inspector;
mod layouts;
#[path = "../prompts/mod.rs"]
mod prompts;
mod turnstile;
mod worker;

use inspector::{Door, Inspector, Vanished};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use turnstile::{Draw, Turnstile};
use warmpath_core::store::Store;
use warmpath_core::{Config, Router, hash};
use worker::{Worker, config, decide};

/// Schedules of one test, unless `WARMPATH_SCHEDULES` says otherwise.
const SCHEDULES: u64 = 120;
/// Slots of the list of workers: room for every life of a schedule.
const SLOTS: usize = 64;
/// Workers that start together.
const CROWD: usize = 48;
/// Beats until each of them surely has a slot.
const BEATS: usize = 8;
/// Expiry of the configs, the least there is.
const EXPIRY_MS: u64 = 3000;

/// Runs a schedule for each seed of a share of all.
fn explore(share: u64, schedule: impl Fn(u64)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = match number("WARMPATH_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("WARMPATH_SCHEDULES").unwrap_or(SCHEDULES) / share,
    };
    for seed in seeds {
        if let Err(failure) = catch_unwind(AssertUnwindSafe(|| schedule(seed))) {
            eprintln!("schedule failed: WARMPATH_SEED={seed}");
            resume_unwind(failure);
        }
    }
}

/// Runs all workers to their end, each in a thread; one may vanish on the way.
fn run<'a>(turnstile: &Turnstile, mut workers: Vec<Worker<'a>>, plan: &Plan) -> Vec<Worker<'a>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .drain(..)
            .enumerate()
            .map(|(me, worker)| scope.spawn(move || live(turnstile, me, worker, plan)))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|failure| resume_unwind(failure))
            })
            .collect()
    })
}

fn live<'a>(turnstile: &Turnstile, me: usize, mut worker: Worker<'a>, plan: &Plan) -> Worker<'a> {
    let _turn = turnstile.enter(me);
    let mut left = plan.steps;
    while left > 0 {
        let rest = catch_unwind(AssertUnwindSafe(|| {
            while left > 0 {
                left -= 1;
                worker.step();
            }
            worker.finish();
        }));
        if let Err(failure) = rest {
            if !failure.is::<Vanished>() {
                resume_unwind(failure);
            }
            worker.vanish();
            if !plan.restarts {
                break;
            }
        }
    }
    worker
}

/// What a schedule consists of.
struct Plan {
    workers: usize,
    steps: usize,
    /// Who vanishes, and after how many operations.
    vanishes: Option<(usize, u64)>,
    restarts: bool,
}

impl Plan {
    fn draw(seed: u64) -> Self {
        let mut draw = Draw(hash::mix(seed, 77));
        let workers = 2 + draw.below(3);
        Plan {
            workers,
            steps: 20 + draw.below(60),
            vanishes: (!draw.once_in(3)).then(|| (draw.below(workers), draw.below(400) as u64)),
            restarts: draw.once_in(2),
        }
    }
}

/// One schedule from its start to the checks after it.
fn schedule(seed: u64, turnstile: &Turnstile, plan: &Plan, configs: [Config; 2], exact: bool) {
    let inspector = Inspector::new(EXPIRY_MS, SLOTS);
    let doors: Vec<Door> = (0..plan.workers)
        .map(|me| Door::new(&inspector, turnstile, me))
        .collect();
    if let Some((who, operations)) = plan.vanishes {
        doors[who].vanish_after(operations);
    }
    let workers = doors.iter().zip(1..);
    let workers = workers
        .map(|(door, number)| Worker::new(door, number, seed, configs.clone()))
        .collect();
    let mut workers = run(turnstile, workers, plan);
    doors.iter().for_each(Door::survive);
    aftermath::settle(&mut workers, &inspector);
    aftermath::nothing_is_in_flight(&mut workers, &inspector);
    if exact {
        inspector.clock.pass(worker::TICK_US);
        let newborn = Door::new(&inspector, turnstile, 0);
        aftermath::replicas_agree(&mut workers, &newborn, &configs[0]);
    }
}

#[test]
fn workers_agree_whatever_the_interleaving() {
    explore(1, |seed| {
        let plan = Plan::draw(seed);
        let turnstile = Turnstile::new(plan.workers, seed);
        schedule(
            seed,
            &turnstile,
            &plan,
            [0, 1].map(|at| config(at, SLOTS)),
            true,
        );
    });
}

/// The generations differ in how many workers they take; not all get a slot.
#[test]
fn a_smaller_list_of_workers_cuts_nobody_off() {
    explore(1, |seed| {
        let plan = Plan::draw(seed);
        let turnstile = Turnstile::new(plan.workers, seed);
        schedule(
            seed,
            &turnstile,
            &plan,
            [config(0, SLOTS), config(1, 2)],
            false,
        );
    });
}

/// Threads run as the machine lets them.
#[test]
fn free_running_workers_agree() {
    explore(1, |seed| {
        let plan = Plan::draw(seed);
        schedule(
            seed,
            &Turnstile::open(),
            &plan,
            [0, 1].map(|at| config(at, SLOTS)),
            true,
        );
    });
}

/// All worker threads of a large Envoy take a new config in the same moment.
#[test]
fn workers_that_start_together_get_names_and_ids() {
    explore(10, |seed| {
        let inspector = Inspector::new(EXPIRY_MS, SLOTS);
        let turnstile = Turnstile::new(CROWD, seed);
        let doors: Vec<Door> = (0..CROWD)
            .map(|me| Door::new(&inspector, &turnstile, me))
            .collect();
        std::thread::scope(|scope| {
            for (me, door) in doors.iter().enumerate() {
                let turnstile = &turnstile;
                scope.spawn(move || {
                    let _turn = turnstile.enter(me);
                    // None sees another time than the others.
                    let mut router = Router::new(config(0, SLOTS), door, 1_000_000_000);
                    let (_, _charge) = decide(&mut router, "turn", None, 1_000_000_000);
                    // Whoever lost every race beats again.
                    (0..BEATS).for_each(|_| router.tick(1_000_000_000));
                });
            }
        });
        assert_eq!(inspector.owners(), CROWD, "two workers of one name");
        for slot in 0..CROWD {
            let column = doors[0].get(&format!("warmpath/load/{slot}"));
            assert!(column.bytes.len() > 9, "slot {slot}: engines without ids");
        }
    });
}
