//! Several Envoys whose workers, engines, clocks or store change in the middle of it: nothing is counted
//! twice, lost for long, or believed for ever.
#![allow(clippy::indexing_slicing, reason = "a panic is a failed test")]

mod envoys;

use envoys::{Fault, Fleet, KEY, config, discovering};
use warmpath_core::Reason;
use warmpath_core::sync::View;

/// Where the prompts went, each sent to an Envoy once.
fn served(fleet: &mut Fleet, envoy: usize, prompts: u64) -> Vec<String> {
    let mut homes = Vec::new();
    for own in 0..prompts {
        homes.push(fleet.serve(envoy, 0, own).0);
        fleet.pass(50);
    }
    homes
}

/// How many of the prompts an Envoy knows the home of.
fn known(fleet: &mut Fleet, envoy: usize, homes: &[String]) -> usize {
    let mut known = 0;
    for (own, home) in homes.iter().enumerate() {
        let found = fleet.serve(envoy, 0, own as u64);
        known += usize::from(found == (home.clone(), Reason::LongestPrefix));
    }
    known
}

#[test]
fn news_are_not_lost_when_newer_load_is_read_first() {
    let mut fleet = Fleet::new(2);
    fleet.halted = Some(1);
    let homes = served(&mut fleet, 0, 1);
    // A batch without news: of the other stream, which is read first.
    fleet.pass(400);
    fleet.halted = None;
    fleet.pass(200);
    assert_eq!(known(&mut fleet, 1, &homes), 1);
}

#[test]
fn an_envoy_is_no_peer_of_itself_when_its_lease_moves() {
    let mut fleet = Fleet::new(2);
    let held: Vec<_> = (0..8).map(|own| fleet.send(0, 1, own)).collect();
    fleet.pass(400);
    assert_eq!(fleet.in_flight(1, 0), 8);
    let speaker = fleet.envoys[0].iter();
    let at = speaker.take_while(|it| it.sync_tally().is_none()).count();
    assert_eq!(at, 0, "the first worker speaks");
    fleet.envoys[0].remove(0).leave();
    for _ in 0..60 {
        fleet.pass(25);
        assert_eq!(fleet.in_flight(0, 0), 8);
        assert_eq!(fleet.in_flight(1, 0), 8);
    }
    assert_eq!((fleet.tally(0).peers, fleet.tally(1).peers), (1, 1));
    drop(held);
}

#[test]
fn who_is_alone_misses_nobody_when_its_lease_moves() {
    let mut fleet = Fleet::new(1);
    fleet.envoys[0].remove(0).leave();
    for _ in 0..60 {
        fleet.pass(25);
        assert_ne!(fleet.view(0), View::Unseen);
    }
    assert!(!fleet.envoys[0][0].is_out_of_sight());
}

#[test]
fn who_takes_over_from_a_cold_one_starts_warm() {
    for ms in [25, 100, 150] {
        let mut fleet = Fleet::new(1);
        let homes = served(&mut fleet, 0, 30);
        let new = fleet.start(config(&[1, 2, 3, 4], KEY));
        fleet.pass(ms);
        fleet.envoys[new].remove(0).leave();
        fleet.pass(3000);
        assert_eq!(fleet.view(new), View::Whole, "after {ms} ms");
        assert_eq!(known(&mut fleet, new, &homes), 30, "after {ms} ms");
    }
}

#[test]
fn what_was_read_back_waits_for_its_engines() {
    let mut fleet = Fleet::new(1);
    let homes = served(&mut fleet, 0, 30);
    let new = fleet.start(discovering());
    fleet.pass(3000);
    fleet.engines = vec![1, 2, 3, 4];
    fleet.pass(3000);
    assert_eq!(fleet.tally(new).unknown, 0);
    assert_eq!(known(&mut fleet, new, &homes), 30);
}

#[test]
fn what_was_read_back_does_not_wait_for_ever() {
    let mut fleet = Fleet::new(1);
    served(&mut fleet, 0, 30);
    let new = fleet.start(discovering());
    fleet.pass(13_000);
    assert!(fleet.tally(new).unknown >= 30);
}

#[test]
fn what_is_told_again_ages_nothing() {
    let mut fleet = Fleet::new(2);
    let homes = served(&mut fleet, 0, 20);
    fleet.pass(500);
    fleet.redis.fault = Some(Fault::Silent);
    // A twelfth of an engine's cache, told with every call.
    fleet.serve_long(0, 0, 1000, 32_000);
    fleet.pass(30_000);
    fleet.redis.fault = None;
    fleet.pass(3000);
    assert_eq!(known(&mut fleet, 1, &homes), 20);
}

#[test]
fn a_slow_way_to_the_store_is_used_in_small_parts() {
    let mut fleet = Fleet::new(1);
    let homes = served(&mut fleet, 0, 40);
    fleet.redis.fault = Some(Fault::Slow(3000));
    let new = fleet.start(config(&[1, 2, 3, 4], KEY));
    fleet.pass(60_000);
    assert_eq!(fleet.view(new), View::Whole);
    assert_eq!(known(&mut fleet, new, &homes), 40);
}

#[test]
fn the_load_of_the_dead_does_not_stay_when_clocks_are_set_back() {
    let mut fleet = Fleet::new(2);
    let held: Vec<_> = (0..8).map(|own| fleet.send(0, 0, own)).collect();
    fleet.pass(1000);
    assert_eq!(fleet.in_flight(1, 0), 8);
    fleet.envoys.remove(0);
    fleet.now_us -= 3_600_000_000;
    fleet.pass(8000);
    assert_eq!((fleet.in_flight(0, 0), fleet.view(0)), (0, View::Unseen));
    fleet.redis.fault = Some(Fault::Dead);
    fleet.now_us -= 3_600_000_000;
    fleet.pass(8000);
    assert_eq!(fleet.view(0), View::Blind);
    drop(held);
}

#[test]
fn a_call_that_never_ends_is_not_the_last() {
    let mut fleet = Fleet::new(2);
    fleet.redis.fault = Some(Fault::Lost);
    fleet.pass(2000);
    fleet.redis.fault = None;
    fleet.pass(6000);
    assert_eq!((fleet.view(0), fleet.tally(0).peers), (View::Whole, 1));
}

#[test]
fn other_envoys_are_no_workers_of_this_one() {
    let fleet = Fleet::new(3);
    assert_eq!(fleet.envoys[0][0].workers(), 2);
}
