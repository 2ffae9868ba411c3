//! Properties of the policies and of the shared state, over arbitrary input.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use proptest::prelude::*;
use std::collections::HashSet;
use warmpath_core::config::PolicyConfig;
use warmpath_core::router::{Ask, Charge, Outcome, Router};
use warmpath_core::store::{MemoryStore, Store};
use warmpath_core::{Answer, Config, Decision, hash};

fn config(endpoints: impl Iterator<Item = u32>, policy: &str, candidates: usize) -> Config {
    let list: Vec<String> = endpoints
        .map(|n| format!(r#"{{"address": "10.1.{}.{}:8000"}}"#, n / 250, n % 250 + 1))
        .collect();
    let json = format!(
        r#"{{"pools": [{{"name": "p", "policy": {policy}, "candidates": {candidates},
            "endpoints": {{"static": [{}]}}}}]}}"#,
        list.join(",")
    );
    Config::parse(json.as_bytes()).expect("a valid config")
}

fn router(config: Config) -> Router<MemoryStore> {
    Router::new(config, MemoryStore::new(), 1_000_000)
}

const SERVED: Outcome = Outcome::Served { output_tokens: 10 };

fn decide<S: Store>(
    router: &mut Router<S>,
    key: Option<u64>,
    now_us: u64,
) -> Result<(Decision, Charge), Answer> {
    let target = router.only_target().cloned().expect("one pool");
    let ask = Ask {
        target: &target,
        key,
        prompt: None,
        priority: Default::default(),
    };
    router.decide(ask, now_us)
}

fn owner(router: &mut Router<MemoryStore>, key: u64) -> String {
    let (decision, charge) = decide(router, Some(key), 2_000_000).expect("endpoints");
    router.end(charge, SERVED, 2_000_000);
    router.address(decision.ranked[0]).to_owned()
}

const HASH: &str = r#""consistent_hash""#;

#[test]
fn consistent_hash_spreads_100k_keys_evenly_over_10_endpoints() {
    let mut router = router(config(0..10, HASH, 3));
    let mut counts = std::collections::HashMap::new();
    for key in 0..100_000_u32 {
        *counts
            .entry(owner(&mut router, hash::hash(&key.to_le_bytes())))
            .or_insert(0_u32) += 1;
    }
    let max = counts.values().max().copied().unwrap_or_default();
    assert_eq!(counts.len(), 10);
    assert!(
        f64::from(max) / 10_000.0 <= 1.10,
        "max/mean {}",
        f64::from(max) / 10_000.0
    );
}

#[test]
fn an_endpoint_that_leaves_moves_only_its_own_keys_each_to_its_next() {
    let mut ten = router(config(0..10, HASH, 3));
    let mut nine = router(config((0..10).filter(|n| *n != 3), HASH, 3));
    for key in 0..20_000_u32 {
        let key = hash::hash(&key.to_le_bytes());
        let (decision, charge) = decide(&mut ten, Some(key), 2_000_000).expect("endpoints");
        ten.end(charge, SERVED, 2_000_000);
        let ranked: Vec<&str> = decision.ranked.iter().map(|at| ten.address(*at)).collect();
        let expected = if ranked[0] == "10.1.0.4:8000" {
            ranked[1]
        } else {
            ranked[0]
        };
        assert_eq!(owner(&mut nine, key), expected);
    }
}

#[test]
fn bounded_load_moves_keys_only_off_busy_owners() {
    let policy = r#"{"consistent_hash": {"bounded_load": 1.25}}"#;
    let mut bounded = router(config(0..10, policy, 3));
    let key = hash::hash(b"hot");
    let mut in_flight = Vec::new();
    for now in 0..1000 {
        let (decision, charge) = decide(&mut bounded, Some(key), now).expect("endpoints");
        in_flight.push((decision.ranked[0], charge));
    }
    let busiest = (0..10)
        .map(|at| bounded.in_flight(at))
        .max()
        .unwrap_or_default();
    assert!(
        busiest <= 126,
        "1000 requests of one key: {busiest} at one endpoint, bound 1.25 * 100"
    );
}

fn policies() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(r#""round_robin""#.to_owned()),
        Just(r#""random""#.to_owned()),
        Just(r#""least_request""#.to_owned()),
        Just(r#""power_of_two""#.to_owned()),
        Just(r#"{"lowest_qps": {"window_s": 5}}"#.to_owned()),
        Just(r#""consistent_hash""#.to_owned()),
        Just(r#"{"consistent_hash": {"bounded_load": 1.1, "without_key": "random"}}"#.to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn ranked_lists_are_distinct_full_and_of_the_pool(
        policy in policies(), endpoints in 1..40_u32, candidates in 1..9_usize,
        keys in proptest::collection::vec(proptest::option::of(any::<u64>()), 1..30),
    ) {
        let mut router = router(config(0..endpoints, &policy, candidates));
            for (round, key) in keys.into_iter().enumerate() {
            let now_us = 5_000_000 + round as u64 * 1000;
            let (decision, _charge) = decide(&mut router, key, now_us).expect("endpoints");
            let distinct: HashSet<usize> = decision.ranked.iter().copied().collect();
            prop_assert_eq!(distinct.len(), decision.ranked.len());
            prop_assert_eq!(decision.ranked.len(), candidates.min(endpoints as usize));
            prop_assert!(decision.ranked.iter().all(|at| *at < endpoints as usize));
        }
    }

    #[test]
    fn every_worker_and_replica_agrees_on_the_owner(key in any::<u64>(), endpoints in 1..50_u32) {
        let mut one = router(config(0..endpoints, HASH, 3));
        let mut other = router(config((0..endpoints).rev(), HASH, 3));
        prop_assert_eq!(owner(&mut one, key), owner(&mut other, key));
    }

    #[test]
    fn in_flight_is_zero_after_everything_ended(
        policy in policies(), steps in proptest::collection::vec((any::<u8>(), any::<u64>()), 1..200),
    ) {
        let mut router = router(config(0..5, &policy, 3));
            let mut open = Vec::new();
        for (round, (action, draw)) in steps.into_iter().enumerate() {
            let now_us = 1_000_000 + round as u64 * 700;
            let at = draw as usize % open.len().max(1);
            match action % 5 {
                0 | 1 => open.push(decide(&mut router, Some(draw), now_us).expect("endpoints").1),
                2 if !open.is_empty() => router.end(open.swap_remove(at), SERVED, now_us),
                3 => if let Some(charge) = open.get_mut(at) { router.first_token(charge, now_us) },
                4 => if let Some(charge) = open.get_mut(at) {
                    let address = format!("10.1.0.{}:8000", draw % 7 + 1);
                    router.served_by(charge, address.as_bytes(), now_us);
                },
                _ => router.tick(now_us),
            }
            let total: u32 = (0..5).map(|position| router.in_flight(position)).sum();
            prop_assert_eq!(total as usize, open.len());
        }
        for charge in open.drain(..) {
            router.end(charge, SERVED, 9_000_000);
        }
        prop_assert!((0..5).all(|position| router.in_flight(position) == 0));
    }

    #[test]
    fn arbitrary_config_text_never_panics(text in any::<Vec<u8>>()) {
        let _refused: bool = Config::parse(&text).is_err();
    }

    #[test]
    fn garbage_in_shared_state_is_discarded(garbage in any::<Vec<u8>>(), policy in policies()) {
        let store = MemoryStore::new();
        for key in ["warmpath/ids", "warmpath/workers", "warmpath/load/0", "warmpath/load/1",
            "warmpath/rate/1", "warmpath/turn/p/0", "warmpath/births"] {
            store.set(key, &garbage);
        }
        let mut router = Router::new(config(0..4, &policy, 2), &store, 1_000_000);
            let (decision, charge) = decide(&mut router, Some(1), 1_000_100).expect("endpoints");
        prop_assert_eq!(decision.ranked.len(), 2);
        router.end(charge, SERVED, 1_000_200);
        router.tick(2_000_000);
    }
}

/// Two workers over one store; each sees what the other has in flight.
#[test]
fn workers_share_load_and_turns() {
    let store = MemoryStore::new();
    let mut workers: Vec<_> = (0..4)
        .map(|_| Router::new(config(0..4, r#""least_request""#, 1), &store, 1_000_000))
        .collect();
    let mut charges = Vec::new();
    for round in 0..400_u64 {
        let now_us = 2_000_000 + round * 1000;
        for worker in &mut workers {
            worker.tick(now_us);
        }
        let worker = &mut workers[(round % 4) as usize];
        charges.push(decide(worker, None, now_us).expect("endpoints").1);
    }
    for (at, worker) in workers.iter_mut().enumerate() {
        worker.tick(3_000_000);
        let _: bool = decide(worker, None, 3_000_000 + at as u64 * 10_000).is_ok();
    }
    let seen: Vec<u32> = (0..4)
        .map(|position| workers[3].in_flight(position))
        .collect();
    assert!(
        seen.iter().all(|count| (100..=102).contains(count)),
        "{seen:?}"
    );
}

#[test]
fn a_dead_workers_load_expires_and_its_slot_is_taken() {
    let store = MemoryStore::new();
    let make = || Router::new(config(0..2, r#""least_request""#, 1), &store, 1_000_000);
    let (mut dead, mut alive) = (make(), make());
    for _ in 0..10 {
        let _lost_with_its_vm = decide(&mut dead, None, 1_000_000);
    }
    dead.tick(1_050_000);
    drop(dead);
    let first = decide(&mut alive, None, 1_100_000).expect("endpoints").1;
    alive.end(first, SERVED, 1_100_000);
    let total = |router: &Router<&MemoryStore>| router.in_flight(0) + router.in_flight(1);
    assert_eq!(total(&alive), 10);
    alive.tick(12_000_000);
    assert_eq!(
        total(&alive),
        0,
        "no heartbeat for more than worker_expiry_ms"
    );
}

#[test]
fn the_number_of_shared_keys_is_fixed() {
    let store = MemoryStore::new();
    let policy = r#"{"consistent_hash": {"without_key": "lowest_qps"}}"#;
    let mut router = Router::new(config(0..8, policy, 3), &store, 1_000_000);
    let mut run = |from: u64| {
        for n in from..from + 5000 {
            let key = (n % 2 == 0).then(|| hash::hash(&n.to_le_bytes()));
            let charge = decide(&mut router, key, 1_000_000 + n * 100)
                .expect("endpoints")
                .1;
            router.end(charge, SERVED, 1_000_000 + n * 100);
        }
        (store.keys(), store.value_bytes())
    };
    assert_eq!(
        run(0),
        run(5000),
        "10^4 distinct sessions leave nothing behind"
    );
}

#[test]
fn policy_names_are_those_of_the_config() {
    for name in [
        "round_robin",
        "random",
        "least_request",
        "power_of_two",
        "lowest_qps",
        "consistent_hash",
    ] {
        let config = config(0..1, &format!("\"{name}\""), 1);
        assert_eq!(config.pools[0].policy.name(), name);
    }
    assert!(matches!(
        config(0..1, HASH, 1).pools[0].policy,
        PolicyConfig::ConsistentHash { .. }
    ));
}
