//! Several Envoys with a store between them: what one learns the others know, and no fault of the store
//! changes more than that.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a panic is a failed test"
)]

mod envoys;

use envoys::{Fault, Fleet, KEY, Redis, config};
use warmpath_core::Reason;
use warmpath_core::router::{Outcome, Response};
use warmpath_core::sync::View;
use warmpath_core::sync::batch::{Batch, News};
use warmpath_core::sync::secret::Secret;

#[test]
fn what_one_envoy_routed_the_others_find() {
    let mut fleet = Fleet::new(3);
    assert_eq!(fleet.view(0), View::Whole);
    assert_eq!(fleet.tally(0).peers, 2);
    for own in 0..20 {
        let (engine, reason) = fleet.serve(0, own as usize % 2, own);
        assert_eq!(reason, Reason::ColdPrefix);
        fleet.pass(800);
        for envoy in [1, 2] {
            for worker in [0, 1] {
                let found = fleet.serve(envoy, worker, own);
                assert_eq!(found, (engine.clone(), Reason::LongestPrefix), "{own}");
            }
        }
    }
}

#[test]
fn what_a_request_in_flight_keeps_the_others_do_not_forget() {
    let mut fleet = Fleet::new(2);
    // As many at each engine, so that none is spared what comes.
    let mut held: Vec<_> = (0..8).map(|own| fleet.send(0, 0, own)).collect();
    for (_, charge) in &mut held {
        fleet.envoys[0][0].first_token(charge, fleet.now_us);
    }
    fleet.serve(0, 0, 50);
    let others = |fleet: &mut Fleet, names: std::ops::Range<u64>| {
        for own in names {
            fleet.serve(0, (own % 2) as usize, own);
            fleet.pass(if own.is_multiple_of(8) { 100 } else { 0 });
        }
        fleet.pass(1000);
    };
    // More than all engines have room for.
    others(&mut fleet, 100..900);
    assert_eq!(fleet.serve(1, 1, 50).1, Reason::ColdPrefix, "long gone");
    for (own, (decision, charge)) in held.into_iter().enumerate() {
        let engine = fleet.envoys[0][0].address(decision.ranked[0]).to_owned();
        let found = fleet.serve(1, 1, own as u64);
        assert_eq!(found, (engine, Reason::LongestPrefix), "{own}");
        let served = Outcome::Served { output_tokens: 5 };
        fleet.envoys[0][0].end(charge, served, fleet.now_us);
    }
    others(&mut fleet, 1000..1800);
    for own in 0..8 {
        let found = fleet.serve(1, 0, own).1;
        assert_eq!(found, Reason::ColdPrefix, "{own} was let go");
    }
}

#[test]
fn load_is_seen_by_all_and_goes_with_who_had_it() {
    let mut fleet = Fleet::new(2);
    let held: Vec<_> = (0..8).map(|own| fleet.send(0, 0, own)).collect();
    fleet.pass(1000);
    let in_flight = |fleet: &Fleet, envoy: usize, worker: usize| -> u32 {
        let router = &fleet.envoys[envoy][worker];
        (0..4).map(|position| router.in_flight(position)).sum()
    };
    for worker in [0, 1] {
        fleet.envoys[1][worker].attend(fleet.now_us);
        assert_eq!(in_flight(&fleet, 1, worker), 8);
    }
    // Not its own back again.
    assert_eq!(in_flight(&fleet, 0, 0), 8);
    drop(held);
    let gone = fleet.envoys.remove(0);
    fleet.pass(1500);
    for worker in [0, 1] {
        fleet.envoys[0][worker].attend(fleet.now_us);
        assert_eq!(in_flight(&fleet, 0, worker), 0, "who is silent has nothing");
    }
    assert_eq!(fleet.view(0), View::Unseen);
    assert!(fleet.envoys[0][1].is_out_of_sight());
    drop(gone);
    fleet.pass(61_000);
    assert_eq!(fleet.view(0), View::Whole, "nobody waits for the dead");
    assert!(!fleet.envoys[0][1].is_out_of_sight());
}

#[test]
fn a_failing_engine_is_left_out_by_all() {
    let mut fleet = Fleet::new(2);
    let address = "10.2.0.3:80";
    for own in 0.. {
        let (decision, mut charge) = fleet.send(0, 0, own);
        let now_us = fleet.now_us;
        let router = &mut fleet.envoys[0][0];
        let asked = router.address(decision.ranked[0]).to_owned();
        let response = Response {
            status: if asked == address { 500 } else { 200 },
            address: asked.as_bytes(),
            by_engine: true,
            retry_after_s: None,
        };
        router.responded(&mut charge, response, now_us);
        router.end(charge, Outcome::Failed, now_us);
        let left_out = |position: usize| router.address(position) == address;
        if !decision.ranked.iter().any(|position| left_out(*position)) {
            break;
        }
        assert!(own < 100, "it is never left out");
    }
    fleet.pass(600);
    for own in 0..40 {
        let (found, _) = fleet.serve(1, 1, own);
        assert_ne!(found, address, "request {own}");
    }
}

#[test]
fn a_new_envoy_starts_warm() {
    let mut fleet = Fleet::new(1);
    let homes: Vec<_> = (0..80)
        .map(|own| {
            let home = fleet.serve(0, 0, own).0;
            fleet.pass(50);
            home
        })
        .collect();
    let new = fleet.start(config(&[1, 2, 3, 4], KEY));
    fleet.pass(12_000);
    let found = |own: &u64| {
        fleet.serve(new, 1, *own) == (homes[*own as usize].clone(), Reason::LongestPrefix)
    };
    let warm = (0..80)
        .filter({
            let mut found = found;
            move |own| found(own)
        })
        .count();
    assert_eq!(warm, 80);
}

#[test]
fn the_store_may_do_what_it_likes() {
    for fault in [
        Fault::Dead,
        Fault::Full,
        Fault::Loading,
        Fault::Mixed,
        Fault::Rubbish,
        Fault::Unavailable,
    ] {
        let mut fleet = Fleet::new(2);
        fleet.redis.fault = Some(fault);
        for own in 0..50 {
            fleet.serve(0, 0, own);
            fleet.pass(100);
        }
        // Nobody can write to a full one, and all can read it.
        let view = match fault {
            Fault::Full => View::Unseen,
            _ => View::Blind,
        };
        assert_eq!(fleet.view(0), view);
        assert!(fleet.envoys[0][1].is_out_of_sight() && fleet.tally(0).failed > 3);
        fleet.redis.fault = None;
        fleet.pass(3000);
        assert_eq!((fleet.view(0), fleet.tally(0).peers), (View::Whole, 1));
        // What was learned meanwhile had room.
        let homes: Vec<_> = (0..50).map(|own| fleet.serve(0, 0, own).0).collect();
        fleet.pass(1000);
        for own in 0..50 {
            assert_eq!(fleet.serve(1, 1, own).0, homes[own as usize]);
        }
    }
}

#[test]
fn a_store_that_lost_all_is_used_again() {
    let mut fleet = Fleet::new(2);
    fleet.redis = Redis::default();
    fleet.pass(5000);
    assert_eq!((fleet.view(0), fleet.tally(0).peers), (View::Whole, 1));
    let home = fleet.serve(0, 0, 7).0;
    fleet.pass(1000);
    assert_eq!(fleet.serve(1, 0, 7), (home, Reason::LongestPrefix));
}

#[test]
fn strangers_and_damage_are_counted_and_ignored() {
    let mut fleet = Fleet::new(2);
    let stranger = Batch {
        sender: 99,
        number: 1,
        ..Batch::default()
    };
    fleet
        .redis
        .append(stranger.encode(&Secret::new(b"another key altogether")));
    let mut newer = stranger.encode(&Secret::new(KEY.as_bytes()));
    newer[0] = 200;
    fleet.redis.append(newer);
    fleet.redis.append(Vec::new());
    fleet.redis.append(b"garbage".to_vec());
    let again = stranger.encode(&Secret::new(KEY.as_bytes()));
    fleet.redis.append(again.clone());
    fleet.redis.append(again);
    fleet.pass(400);
    let tally = fleet.tally(0);
    assert_eq!(
        (tally.refused, tally.other_version, tally.repeated),
        (1, 3, 1)
    );
    assert_eq!(tally.peers, 2, "the other Envoy, and who has the key");
}

#[test]
fn news_of_an_engine_wait_until_it_is_known() {
    let mut fleet = Fleet::new(0);
    let full = fleet.start(config(&[1, 2, 3], KEY));
    let less = fleet.start(config(&[1, 2], KEY));
    fleet.pass(3000);
    for own in 0..9 {
        fleet.serve(full, 0, own);
    }
    fleet.pass(1000);
    assert_eq!(fleet.tally(less).unknown, 0, "they wait");
    fleet.pass(11_000);
    assert!(fleet.tally(less).unknown > 0, "not for ever");
}

#[test]
fn a_batch_has_a_bound_and_the_oldest_news_go_first() {
    let mut fleet = Fleet::new(2);
    fleet.redis.fault = Some(Fault::Dead);
    for own in 0..3000 {
        fleet.serve(0, 0, own);
        if own % 50 == 0 {
            fleet.pass(50);
        }
    }
    fleet.pass(1000);
    fleet.redis.fault = None;
    fleet.pass(5000);
    assert!(fleet.tally(0).unsent > 0);
    let largest = fleet.redis.streams[0]
        .iter()
        .map(|(_, bytes)| bytes.len())
        .max();
    assert!(largest.expect("batches") <= 64 * 1024 + 1024, "{largest:?}");
    let newest = fleet.serve(0, 0, 2999).0;
    fleet.pass(500);
    assert_eq!(fleet.serve(1, 0, 2999).0, newest);
}

#[test]
fn links_are_not_readable_in_the_store() {
    let mut fleet = Fleet::new(2);
    fleet.serve(0, 0, 5);
    fleet.pass(1000);
    let secret = Secret::new(KEY.as_bytes());
    let batches = fleet.redis.streams[0].iter();
    let news: Vec<News> = batches
        .flat_map(|(_, bytes)| Batch::decode(bytes, &secret).expect("ours").news)
        .collect();
    let links: Vec<u64> = news
        .iter()
        .flat_map(|news| &news.marks)
        .map(|mark| mark.link)
        .collect();
    assert!(!links.is_empty());
    for (_, bytes) in &fleet.redis.streams[0] {
        for link in &links {
            assert!(!bytes.windows(8).any(|window| window == link.to_le_bytes()));
        }
    }
}
