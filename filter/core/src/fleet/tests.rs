use super::*;
use crate::store::MemoryStore;

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn sample() -> Fleet {
    let mut fleet = Fleet::default();
    let v6: SocketAddr = "[fd00::7]:8000".parse().expect("an address");
    let hosts = [
        (address(1), HostHealth::Healthy, 0),
        (address(2), HostHealth::Draining, 7),
        (v6, HostHealth::Ejected, 1),
    ];
    fleet.tell_cluster("llama", hosts.into_iter(), 9_000);
    fleet.keep_engines([address(1), v6].into_iter());
    fleet.remember_models(&["m".to_owned(), "n".to_owned()]);
    let engine = fleet.engines.get_mut(&v6).expect("kept");
    *engine = Engine {
        told_ms: 5,
        failures: 2,
        running: Some(3),
        foreign: 1,
        kv_usage: Some(0.25),
        kv_capacity_tokens: Some(1 << 40),
        sleeping: true,
        max_loras: Some(4),
        loras: vec![(99, true), (98, false)],
        models: Some(vec!["n".to_owned()]),
        ..Engine::default()
    };
    fleet
}

#[test]
fn the_store_gives_back_what_was_written() {
    let store = MemoryStore::new();
    let fleet = sample();
    fleet.save(&store);
    let (loaded, version) = Fleet::load(&store);
    assert_eq!(loaded, fleet);
    assert_eq!(Fleet::load_newer(&store, version), None);
    fleet.save(&store);
    assert!(Fleet::load_newer(&store, version).is_some());
}

#[test]
fn what_is_cut_or_garbage_is_an_empty_fleet() {
    let store = MemoryStore::new();
    sample().save(&store);
    let bytes = store.get(KEY).bytes;
    for end in 0..bytes.len() {
        store.set(KEY, bytes.get(..end).expect("a beginning"));
        assert_eq!(Fleet::load(&store).0, Fleet::default(), "cut at {end}");
    }
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0xff;
        store.set(KEY, &changed);
        Fleet::load(&store);
    }
}

#[test]
fn who_comes_or_comes_back_is_new_and_who_was_there_is_not() {
    let mut fleet = Fleet::default();
    let tell = |fleet: &mut Fleet, hosts: &[(u16, HostHealth)], now_s: u64| {
        let hosts = hosts
            .iter()
            .map(|(port, health)| (address(*port), *health, 1));
        fleet.tell_cluster("c", hosts, now_s * 1000)
    };
    let since = |fleet: &Fleet, port| {
        let cluster = fleet.clusters.get("c").expect("told");
        cluster.hosts.get(&address(port)).expect("told").since_s
    };
    use HostHealth::{Healthy, Unhealthy};
    assert!(tell(&mut fleet, &[(1, Healthy), (2, Unhealthy)], 10));
    assert_eq!((since(&fleet, 1), since(&fleet, 2)), (0, 0));
    assert!(!tell(&mut fleet, &[(1, Healthy), (2, Healthy)], 20));
    assert_eq!((since(&fleet, 1), since(&fleet, 2)), (0, 20));
    assert!(tell(&mut fleet, &[(2, Healthy), (3, Healthy)], 30));
    assert_eq!((since(&fleet, 2), since(&fleet, 3)), (20, 30));
}

#[test]
fn who_comes_back_to_nobody_is_not_new() {
    use HostHealth::{Ejected, Healthy, Unhealthy};
    let mut fleet = Fleet::default();
    let looks = [
        ([Unhealthy, Unhealthy], [0, 0]),
        ([Healthy, Healthy], [0, 0]),
        ([Unhealthy, Ejected], [0, 0]),
        ([Healthy, Ejected], [0, 0]),
        ([Healthy, Healthy], [0, 50]),
    ];
    for (now_s, (health, since)) in (10..).step_by(10).zip(looks) {
        let hosts = (1..).map(address).zip(health);
        let hosts = hosts.map(|(address, health)| (address, health, 1));
        fleet.tell_cluster("c", hosts, now_s * 1000);
        let cluster = fleet.clusters.get("c").expect("told");
        let found: Vec<u32> = cluster.hosts.values().map(|host| host.since_s).collect();
        assert_eq!(found, since, "at {now_s} s");
    }
}

#[test]
fn everything_that_grows_has_a_bound() {
    let mut fleet = Fleet::default();
    for cluster in 0..MAX_CLUSTERS + 5 {
        let hosts = (0..2000).map(|port| (address(port), HostHealth::Healthy, 1));
        fleet.tell_cluster(&format!("c{cluster}"), hosts, 1);
    }
    assert_eq!(fleet.clusters.len(), MAX_CLUSTERS);
    assert!(
        fleet
            .clusters
            .values()
            .all(|cluster| cluster.hosts.len() == MAX_ENDPOINTS)
    );
    fleet.keep_engines((0..2000).map(address));
    assert_eq!(fleet.engines.len(), MAX_ENDPOINTS);
    let names: Vec<String> = (0..MAX_NAMES + 9).map(|name| name.to_string()).collect();
    fleet.remember_models(&names);
    assert_eq!(fleet.seen_models.len(), MAX_NAMES);
    assert_eq!(fleet.seen_models.first().map(String::as_str), Some("9"));
}
