//! Several Envoys whose workers, engines, clocks or store change in the middle of it: nothing is counted
//! twice, lost for long, or believed for ever.
#![allow(clippy::indexing_slicing, reason = "a panic is a failed test")]

mod envoys;

use envoys::Fleet;
use warmpath_core::Reason;

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
fn other_envoys_are_no_workers_of_this_one() {
    let fleet = Fleet::new(3);
    assert_eq!(fleet.envoys[0][0].workers(), 2);
}
