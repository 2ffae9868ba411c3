//! Against an answer of Envoy 1.40, whose hosts were brought into each state.

use super::*;

const CAPTURED: &[u8] = include_bytes!("../../../tests/fixtures/envoy/clusters.json");

fn captured(name: &str) -> Cluster {
    let clusters = parse(CAPTURED).unwrap();
    let cluster = clusters.into_iter().find(|cluster| cluster.name == name);
    cluster.unwrap()
}

fn host(cluster: &Cluster, port: u16) -> &Host {
    let mut hosts = cluster.hosts.iter();
    hosts.find(|host| host.address.port() == port).unwrap()
}

#[test]
fn health_is_what_checks_and_ejection_found() {
    let healthy = HostHealth {
        eds: EdsHealth::Healthy,
        ..HostHealth::default()
    };
    let failed = HostHealth {
        failed_active_health_check: true,
        ..healthy
    };
    let cluster = captured("static-engines");
    assert_eq!(host(&cluster, 19201).health, healthy);
    assert_eq!(host(&cluster, 19202).health, failed);
    let timeout = HostHealth {
        active_hc_timeout: true,
        ..failed
    };
    assert_eq!(host(&cluster, 19203).health, timeout);
    let degraded = HostHealth {
        failed_active_degraded_check: true,
        ..healthy
    };
    assert_eq!(host(&cluster, 19204).health, degraded);
    let ejected = HostHealth {
        failed_outlier_check: true,
        ..healthy
    };
    assert_eq!(host(&captured("outlier.engines"), 19209).health, ejected);
    let removed = HostHealth {
        pending_dynamic_removal: true,
        ..healthy
    };
    assert_eq!(host(&captured("eds-checked"), 19207).health, removed);
    let excluded = HostHealth {
        excluded_via_immediate_hc_fail: true,
        ..failed
    };
    assert_eq!(host(&captured("imm"), 19201).health, excluded);
}

#[test]
fn discovery_tells_health_weight_and_place() {
    let cluster = captured("cds-eds");
    assert_eq!(cluster.eds_service_name.as_deref(), Some("eds-engines"));
    let first = &cluster.hosts[0];
    assert_eq!(first.address, "127.0.0.1:19101".parse().unwrap());
    assert_eq!(first.weight, 7);
    assert_eq!(first.hostname.as_deref(), Some("engine-a.example"));
    let locality = Locality {
        region: "eu".to_owned(),
        zone: "eu-1a".to_owned(),
        sub_zone: "rack7".to_owned(),
    };
    assert_eq!(first.locality, locality);
    let eds = |port| host(&cluster, port).health.eds;
    assert_eq!(eds(19101), EdsHealth::Draining);
    assert_eq!(eds(19102), EdsHealth::Unhealthy);
    assert_eq!(eds(19103), EdsHealth::Unhealthy, "discovery said TIMEOUT");
    assert_eq!(eds(19104), EdsHealth::Degraded);
    assert_eq!(eds(19106), EdsHealth::Healthy, "discovery said nothing");
}

#[test]
fn hosts_that_no_list_can_name_are_left_out() {
    let cluster = captured("cds-eds");
    let v6: Vec<_> = cluster
        .hosts
        .iter()
        .filter(|host| host.address.is_ipv6())
        .collect();
    assert_eq!(v6.len(), 1);
    assert_eq!(v6[0].address, "[::1]:19107".parse().unwrap());
    assert_eq!(
        cluster.hosts.len(),
        8,
        "ten less a pipe and a scoped address"
    );
    assert_eq!(captured("odst").hosts, []);
}

#[test]
fn requests_in_flight_are_counted() {
    let cluster = captured("static-engines");
    let mut in_flight: Vec<u64> = cluster.hosts.iter().map(|host| host.rq_active).collect();
    in_flight.sort_unstable();
    assert_eq!(in_flight, [0, 0, 0, 0, 1]);
    assert_eq!(cluster.eds_service_name, None);
    assert_eq!(cluster.hosts[0].hostname, None);
}

#[test]
fn a_waiting_host_is_told_apart() {
    let body = br#"{"cluster_statuses":[{"name":"a","host_statuses":[{
        "address":{"socket_address":{"address":"10.0.0.1","port_value":80}},
        "health_status":{"pending_active_hc":true,"eds_health_status":"NEW_STATE"}}]}]}"#;
    let host = &parse(body).unwrap()[0].hosts[0];
    assert!(host.health.pending_active_hc);
    assert_eq!(host.health.eds, EdsHealth::Unknown);
    assert_eq!((host.weight, host.rq_active), (1, 0));
}

fn answer(clusters: usize, hosts_each: usize) -> String {
    let host = r#"{"address":{"socket_address":{"address":"10.0.0.1","port_value":80}}}"#;
    let hosts = vec![host; hosts_each].join(",");
    let cluster = format!(r#"{{"name":"a","host_statuses":[{hosts}]}}"#);
    let clusters = vec![cluster.as_str(); clusters].join(",");
    format!(r#"{{"cluster_statuses":[{clusters}]}}"#)
}

#[test]
fn clusters_and_hosts_have_a_bound() {
    let refused = |clusters, hosts| parse(answer(clusters, hosts).as_bytes()).unwrap_err();
    let too_many = |what, found, most| WireError::TooMany { what, found, most };
    assert_eq!(
        parse(answer(MAX_CLUSTERS, 1).as_bytes()).unwrap().len(),
        256
    );
    assert_eq!(refused(MAX_CLUSTERS + 2, 1), too_many("clusters", 258, 256));
    assert_eq!(parse(answer(2, MAX_HOSTS / 2).as_bytes()).unwrap().len(), 2);
    assert_eq!(refused(1, MAX_HOSTS + 3), too_many("hosts", 4099, 4096));
    assert_eq!(refused(2, MAX_HOSTS), too_many("hosts", 8192, 4096));
}

#[test]
fn what_is_not_an_answer_is_an_error() {
    for body in [
        "",
        "{",
        "Invalid re2 regex",
        "[1]",
        "{\"cluster_statuses\":7}",
    ] {
        let error = parse(body.as_bytes()).unwrap_err();
        assert!(matches!(error, WireError::Json { line: 1, .. }), "{body}");
    }
    let message = parse(b"{\n !").unwrap_err().to_string();
    assert_eq!(message, "line 2, column 2: not the expected JSON");
}
