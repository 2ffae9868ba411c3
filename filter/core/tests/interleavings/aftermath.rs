//! What must hold when all requests have ended and all logs were read.

use crate::inspector::{Door, Inspector};
use crate::worker::{ENGINES, Life, Record, TICK_US, Worker, decide, facts};
use std::collections::{BTreeMap, BTreeSet};
use warmpath_core::router::{Outcome, Router};
use warmpath_core::{Config, Reason};

/// Ticks until a vanished worker has expired, and the snapshot was written since.
const TICKS: u64 = 12;

/// Time passes, and nothing else happens.
pub fn settle(workers: &mut [Worker], inspector: &Inspector) {
    for _ in 0..TICKS {
        inspector.clock.pass(TICK_US);
        workers.iter_mut().for_each(Worker::tick_if_due);
    }
}

/// Every survivor sees no load anywhere.
pub fn nothing_is_in_flight(workers: &mut [Worker], inspector: &Inspector) {
    for life in workers.iter_mut().flat_map(|worker| &mut worker.lives) {
        inspector.clock.pass(TICK_US / 10);
        // A decision reads what the others have in flight.
        let now_us = inspector.clock.now_us();
        let (_, charge) = decide(&mut life.router, "rate", None, now_us);
        let served = Outcome::Served { output_tokens: 0 };
        life.router.end(charge, served, now_us);
        for at in 0..ENGINES {
            let left = (life.router.in_flight(at), life.router.queued_tokens(at));
            assert_eq!(left, (0, 0), "life {} engine {at}", life.name);
        }
    }
}

/// What requests with one prompt left behind: the longest part served by each engine.
type Served<'a> = BTreeMap<&'a str, usize>;

/// What one router must know, and what it may know.
#[derive(Default)]
struct Reference<'a> {
    must: BTreeMap<u64, Served<'a>>,
    may: BTreeMap<u64, Served<'a>>,
    /// Prompts of which anything may be believed.
    unsure: BTreeSet<u64>,
}

impl<'a> Reference<'a> {
    fn new(
        records: &'a [Record],
        unsure: &BTreeSet<u64>,
        engines: &BTreeSet<String>,
        must: impl Fn(&Record) -> bool,
    ) -> Self {
        let mut reference = Reference {
            unsure: unsure.clone(),
            ..Reference::default()
        };
        for record in records {
            let (name, chunks) = record.prompt;
            if !must(record) {
                // A failure that was not learned of leaves the prompt taken for held.
                reference.unsure.insert(name);
            }
            let may = reference.may.entry(name).or_default();
            if record.served && engines.contains(&record.address) {
                let longest = may.entry(&record.address).or_default();
                *longest = chunks.max(*longest);
                if must(record) {
                    let must = reference.must.entry(name).or_default();
                    let longest = must.entry(&record.address).or_default();
                    *longest = chunks.max(*longest);
                }
            }
        }
        reference
    }

    /// Asks the router about every prompt.
    fn check(&self, router: &mut Router<&Door>, now_us: u64, who: &str) {
        for (name, may) in &self.may {
            let must = self.must.get(name).and_then(|must| must.values().max());
            let chunks = must.copied().unwrap_or(9);
            let (decision, charge) = decide(router, "prefix", Some(facts(*name, chunks)), now_us);
            let chosen = router.address(decision.ranked[0]).to_owned();
            router.end(charge, Outcome::Failed, now_us);
            let found = decision.reason == Reason::LongestPrefix;
            let holds = may.get(chosen.as_str()).is_some_and(|held| *held >= chunks);
            let what = format!("{who}, prompt {name} of {chunks}: {decision:?} {chosen}, {may:?}");
            if must.is_some() {
                assert!(found, "{what} must be known");
            }
            if !self.unsure.contains(name) {
                assert_eq!(found, !may.is_empty(), "{what}");
                assert!(holds || may.is_empty(), "{what}");
            }
        }
    }
}

/// Every survivor, and a newborn, knows what the others learned, and nothing else.
///
/// A router must know what it entered itself and what others entered after it joined, unless either
/// of them was not run for so long that it missed beats.
pub fn replicas_agree(workers: &mut [Worker], newborn: &Door, config: &Config) {
    let records = workers.iter().flat_map(|worker| worker.records.clone());
    let records: Vec<Record> = records.collect();
    let unsure = workers.iter().flat_map(|worker| &worker.unsure);
    let unsure: BTreeSet<u64> = unsure.map(|prompt| prompt.0).collect();
    let knows = |life: &Life, record: &Record| {
        let joined = life.joined_us.is_some_and(|at_us| at_us < record.at_us);
        record.life == life.name || (joined && life.calm && record.told)
    };
    // From here on time stands still, so that nobody reads what the questions of others leave behind.
    let now_us = newborn.now_us();
    let mut router = Router::new(config.clone(), newborn, now_us);
    for life in workers.iter_mut().flat_map(|worker| &mut worker.lives) {
        catch_up(&mut life.router, now_us);
    }
    catch_up(&mut router, now_us);
    let mut known_to_all: Vec<bool> = vec![true; records.len()];
    let mut common = engines(config);
    let mut survivors = 0;
    for life in workers.iter_mut().flat_map(|worker| &mut worker.lives) {
        survivors += 1;
        let own: BTreeSet<String> = addresses(&life.router);
        common.retain(|address| own.contains(address));
        let reference = Reference::new(&records, &unsure, &own, |record| knows(life, record));
        let who = format!("life {}", life.name);
        reference.check(&mut life.router, now_us, &who);
        for (known, record) in known_to_all.iter_mut().zip(&records) {
            *known &= knows(life, record);
        }
    }
    if survivors == 0 {
        return;
    }
    let sure: BTreeSet<(u64, String)> = records
        .iter()
        .zip(&known_to_all)
        .filter(|(_, known)| **known)
        .map(|(record, _)| (record.at_us, record.address.clone()))
        .collect();
    let reference = Reference::new(&records, &unsure, &addresses(&router), |record| {
        let at = (record.at_us, record.address.clone());
        sure.contains(&at) && common.contains(&record.address)
    });
    reference.check(&mut router, now_us, "the newborn");
}

/// A request makes a router read what is new.
fn catch_up(router: &mut Router<&Door>, now_us: u64) {
    let (_, charge) = decide(router, "prefix", Some(facts(u64::MAX, 9)), now_us);
    router.end(charge, Outcome::Served { output_tokens: 0 }, now_us);
}

fn addresses<'a>(router: &Router<&Door<'a>>) -> BTreeSet<String> {
    (0..ENGINES)
        .map(|at| router.address(at).to_owned())
        .collect()
}

fn engines(config: &Config) -> BTreeSet<String> {
    let pools = config.pools.iter().flat_map(|pool| &pool.endpoints);
    pools.map(|endpoint| endpoint.address.to_string()).collect()
}
