//! The sizes that docs/architecture.md gives for shared state.

use std::net::SocketAddr;

use warmpath_core::board::{MOST_NEWS, Row};
use warmpath_core::fitness::Fitness;
use warmpath_core::fleet::{Engine, Fleet, HostHealth, Metadata};
use warmpath_core::lease::{self, Candidate};
use warmpath_core::load::Load;
use warmpath_core::prefix;
use warmpath_core::prefix::table::{SET_BYTES, SLOT_BYTES};
use warmpath_core::pulse::Pulse;
use warmpath_core::rate::Rate;
use warmpath_core::store::{MemoryStore, Store};

use crate::pages::page;

/// The row of the table of keys that begins with this key.
fn row(key: &str) -> String {
    let table = page("docs/architecture.md").table("State");
    let key = format!("`{key}`");
    let row = table.rows.iter().find(|row| row[0] == key);
    row.expect(&key).join(" | ")
}

/// The sum of the sizes in parentheses, `(8)` or `(8 bytes)`, of a part of a row.
fn sum(text: &str) -> usize {
    let size = |part: &str| {
        part.split_once(')')?
            .0
            .split(' ')
            .next()?
            .parse::<usize>()
            .ok()
    };
    let sizes = text.split('(').skip(1).filter_map(size);
    sizes.sum()
}

fn check_board<R: Row>() {
    let row = row(&format!("{}/SLOT", R::KEY));
    let (_, fields) = row.split_once("since the base: ").expect("fields");
    let (fields, _) = fields.split_once(" | ").expect("a size");
    assert_eq!(sum(fields), 2 + R::BYTES, "{fields}");
    let size = format!("13 + {} bytes", 2 + R::BYTES);
    let most = format!("at most {MOST_NEWS} endpoints");
    for wanted in [&size, &most] {
        assert!(row.contains(wanted), "no {wanted:?} in {row}");
    }
}

#[test]
fn columns_are_as_long_as_the_page_says() {
    check_board::<Load>();
    check_board::<Rate>();
    check_board::<Fitness>();
    check_board::<Pulse>();
}

#[test]
fn lease_generation_and_seed_are_as_long_as_the_page_says() {
    let store = MemoryStore::new();
    let generation = lease::generation(&store, 1);
    let candidate = Candidate {
        owner: 1,
        generation,
    };
    assert!(lease::acquire(&store, candidate, 1000, 0).held);
    prefix::seed(&store, 1);
    for key in ["warmpath/lease", "warmpath/generation", "warmpath/seed"] {
        let length = store.get(key).bytes.len();
        let row = row(key);
        assert_eq!(1 + sum(&row), length, "{row}");
        assert!(row.contains(&format!("| {length} bytes |")), "{row}");
    }
}

/// Length of the fleet's value after a change.
fn fleet_bytes(fleet: &mut Fleet, change: impl FnOnce(&mut Fleet)) -> usize {
    let store = MemoryStore::new();
    change(fleet);
    fleet.save(&store);
    store.get("warmpath/fleet").bytes.len()
}

#[test]
fn parts_of_the_fleet_are_as_long_as_the_page_says() {
    let mut fleet = Fleet::default();
    let at = SocketAddr::from(([10, 0, 0, 1], 8000));
    let hosts = |count: usize| [(at, HostHealth::Healthy, 1)].into_iter().take(count);
    let tell = |count| {
        move |fleet: &mut Fleet| {
            fleet.tell_cluster("abc", hosts(count), 1);
        }
    };
    let empty = fleet_bytes(&mut fleet, |_| {});
    let cluster = fleet_bytes(&mut fleet, tell(0));
    let host = fleet_bytes(&mut fleet, tell(1));
    let name = fleet_bytes(&mut fleet, |fleet| fleet.remember_models(&["m".to_owned()]));
    let engine = fleet_bytes(&mut fleet, |fleet| {
        fleet.engines.insert(at, Engine::default());
    });
    let row = row("warmpath/fleet");
    for wanted in [
        format!("{empty} bytes"),
        format!(
            "{} for each cluster and its names",
            cluster - empty - "abc".len()
        ),
        format!("{} for each host", host - cluster),
        format!(
            "{} for each model name and its text",
            name - host - "m".len()
        ),
        format!("{} for each engine", engine - name),
    ] {
        assert!(row.contains(&wanted), "no {wanted:?} in {row}");
    }
    let rank = fleet_bytes(&mut fleet, |fleet| {
        let engine = fleet.engines.get_mut(&at).expect("an engine");
        engine.ranks.push(Engine::default());
    });
    let wanted = format!("{} for each rank", rank - engine);
    assert!(row.contains(&wanted), "no {wanted:?} in {row}");
    let all = fleet.engines.iter_mut();
    all.for_each(|(_, engine)| engine.ranks.clear());
    let described = fleet_bytes(&mut fleet, |fleet| {
        let cluster = fleet.clusters.get_mut("abc").expect("a cluster");
        cluster.metadata.push((at, Metadata::default()));
    });
    let wanted = format!("{} and its texts for one with metadata", described - engine);
    assert!(row.contains(&wanted), "no {wanted:?} in {row}");
    fleet
        .clusters
        .iter_mut()
        .for_each(|(_, it)| it.metadata.clear());
    let lora = fleet_bytes(&mut fleet, |fleet| {
        let loras = &mut fleet.engines.get_mut(&at).expect("an engine").loras;
        loras.push((1, true));
    });
    let model = fleet_bytes(&mut fleet, |fleet| {
        let engine = fleet.engines.get_mut(&at).expect("an engine");
        engine.models = Some(vec!["m".to_owned()]);
    });
    for wanted in [
        format!("{} for each of its adapters", lora - engine),
        format!("{} for each of its models", model - lora),
    ] {
        assert!(row.contains(&wanted), "no {wanted:?} in {row}");
    }
}

#[test]
fn entries_are_as_long_as_the_pages_say() {
    let below = |heading: &str| page("docs/configuration.md").section(heading).to_owned();
    let text = below("Size of the prefix table");
    for wanted in [
        format!("entry of {SLOT_BYTES} bytes"),
        format!("{SET_BYTES} * (entries / {}", SET_BYTES / SLOT_BYTES),
    ] {
        assert!(text.contains(&wanted), "no {wanted:?}");
    }
}
