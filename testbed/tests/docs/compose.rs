//! The files of `envoy/compose` and `envoy/scale`, whose containers no test can start: that they fit together, and that
//! what is a copy is one.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::pages::root;

const FOLDER: &str = "envoy/compose";
/// Several Envoys, and what they share through.
const SCALE: &str = "envoy/scale";
const FOLDERS: [&str; 2] = [FOLDER, SCALE];

fn yaml(path: &str) -> Value {
    let text = std::fs::read_to_string(root().join(path)).expect(path);
    let mut value: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).expect(path);
    value.apply_merge().unwrap();
    serde_json::to_value(value).unwrap()
}

/// The compose file of a folder, with the services that it takes over from another.
fn compose_of(folder: &str) -> Value {
    let mut compose = yaml(&format!("{folder}/compose.yaml"));
    for service in compose["services"].as_object_mut().unwrap().values_mut() {
        if let Some(extended) = service.get("extends") {
            let file = extended["file"].as_str().unwrap();
            assert_eq!(
                format!("{folder}/{file}"),
                format!("{SCALE}/../compose/compose.yaml")
            );
            let name = extended["service"].as_str().unwrap();
            *service = yaml(&format!("{FOLDER}/compose.yaml"))["services"][name].clone();
        }
    }
    compose
}

fn compose() -> Value {
    compose_of(FOLDER)
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items.map(|it| it.as_str().unwrap().to_owned()).collect()
}

/// A text with the defaults of the variables in it.
fn with_defaults(text: &str) -> String {
    let mut parts = text.split("${");
    let mut filled = parts.next().unwrap().to_owned();
    for part in parts {
        let (variable, rest) = part.split_once('}').expect("a closed variable");
        let (_, default) = variable.split_once(":-").expect("a default");
        filled.push_str(default);
        filled.push_str(rest);
    }
    filled
}

/// What is mounted into a service: path in the container to path from the root.
fn mounted(folder: &str, service: &Value) -> BTreeMap<String, String> {
    let mounts = texts(&service["volumes"]).into_iter();
    let mounts = mounts.map(|mount| {
        let mount = with_defaults(&mount);
        let mut parts = mount.split(':');
        let source = parts.next().unwrap().to_owned();
        (parts.next().unwrap().to_owned(), source)
    });
    mounts
        .filter(|(_, source)| source.starts_with('.'))
        .map(|(target, source)| (target, format!("{folder}/{source}")))
        .collect()
}

/// The cluster that is written into the compose file.
fn engines() -> Value {
    let content = compose()["configs"]["engines"]["content"].clone();
    let content = with_defaults(content.as_str().unwrap());
    let response: Value = serde_yaml_ng::from_str(&content).unwrap();
    response["resources"][0].clone()
}

/// Every text and number of a tree, by its place.
fn leaves(value: &Value, place: String, found: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) => map
            .iter()
            .for_each(|(key, it)| leaves(it, format!("{place}/{key}"), found)),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(at, it)| leaves(it, format!("{place}/{at}"), found)),
        leaf => {
            found.insert(place, leaf.clone());
        }
    }
}

#[test]
fn images_are_pinned_and_envoys_is_a_tested_one() {
    let files = FOLDERS.map(compose_of);
    let services = files.iter().map(|it| it["services"].as_object().unwrap());
    for (name, service) in services.flatten() {
        let image = service["image"].as_str().expect(name);
        let (_, tag) = image.rsplit_once(':').expect("a tag");
        let digits = tag.trim_start_matches('v').split('.');
        assert!(digits.clone().count() == 3, "{image}");
        assert!(
            digits.clone().all(|it| it.parse::<u32>().is_ok()),
            "{image}"
        );
        if name == "envoy" {
            let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
            let tested = makefile
                .lines()
                .find(|it| it.starts_with("ENVOY_VERSIONS ?="));
            let mut tested = tested.unwrap().split(' ');
            assert!(tested.any(|it| tag == format!("v{it}")), "{image}");
        }
    }
}

#[test]
fn every_mounted_file_exists_and_every_named_volume_is_declared() {
    let mut seen = 0;
    for folder in FOLDERS {
        let compose = compose_of(folder);
        for (name, service) in compose["services"].as_object().unwrap() {
            for (target, source) in mounted(folder, service) {
                seen += 1;
                assert!(target.starts_with('/'), "{name}: {target}");
                let built = source.contains("/target/");
                assert!(built || root().join(&source).is_file(), "{name}: {source}");
            }
            for mount in texts(&service["volumes"]) {
                let source = mount.split(':').next().unwrap();
                let named = source.chars().all(|char| char.is_ascii_lowercase());
                let declared = compose["volumes"].get(source).is_some();
                assert!(!named || declared, "{mount}");
            }
        }
    }
    assert!(seen >= 11, "only {seen} mounts");
}

#[test]
fn what_envoy_reads_is_mounted_and_what_is_published_is_served() {
    for (folder, reads) in [(FOLDER, 2), (SCALE, 1)] {
        let (compose, envoy) = (compose_of(folder), yaml(&format!("{folder}/envoy.yaml")));
        let service = &compose["services"]["envoy"];
        let mut there: BTreeSet<String> = mounted(folder, service).into_keys().collect();
        let configs = service["configs"].as_array().into_iter().flatten();
        there.extend(configs.map(|it| it["target"].as_str().unwrap().to_owned()));
        let mut all = BTreeMap::new();
        leaves(&envoy, String::new(), &mut all);
        let read = all
            .iter()
            .filter(|(place, _)| place.ends_with("/path") || place.ends_with("/filename"));
        let read = read.filter_map(|(_, it)| it.as_str().filter(|it| it.starts_with("/etc/")));
        let read: BTreeSet<_> = read.map(str::to_owned).collect();
        assert_eq!(read.len(), reads, "{read:?}");
        assert!(read.is_subset(&there), "{read:?} of {there:?}");
        let command = texts(&service["command"]);
        let at = command.iter().position(|it| it == "-c").unwrap();
        assert!(there.contains(&command[at + 1]));

        let listeners = envoy["static_resources"]["listeners"].as_array().unwrap();
        let served: BTreeSet<_> = listeners
            .iter()
            .map(|it| it["address"]["socket_address"]["port_value"].to_string())
            .collect();
        for port in texts(&service["ports"]) {
            let (published, inside) = port.rsplit_once(':').unwrap();
            assert!(served.contains(inside), "{port}");
            assert!(published.starts_with("127.0.0.1:"), "{port}");
        }
        let admin = &envoy["admin"]["address"]["socket_address"]["address"];
        assert_eq!(admin, "127.0.0.1", "the admin interface");
    }
}

#[test]
fn listeners_and_routes_are_those_of_static() {
    let settings = |path: &str| {
        let file = yaml(path);
        let mut found = BTreeMap::new();
        leaves(
            &file["static_resources"]["listeners"][0],
            String::new(),
            &mut found,
        );
        leaves(&file["stats_config"], "/stats".to_owned(), &mut found);
        leaves(
            &file["overload_manager"],
            "/overload".to_owned(),
            &mut found,
        );
        found
    };
    let shipped = settings("envoy/static.yaml");
    for (folder, more) in [(FOLDER, Some("validate_clusters")), (SCALE, None)] {
        let own = settings(&format!("{folder}/envoy.yaml"));
        let places: BTreeSet<_> = own.keys().chain(shipped.keys()).collect();
        let differ = places
            .into_iter()
            .filter(|it| own.get(*it) != shipped.get(*it));
        let differ: Vec<_> = differ.map(|it| it.rsplit('/').next().unwrap()).collect();
        let mut wanted = BTreeSet::from(["address", "value", "filename", "cluster"]);
        wanted.extend(more);
        assert_eq!(differ.iter().copied().collect::<BTreeSet<_>>(), wanted);
        assert_eq!(differ.len(), wanted.len(), "{folder}: {differ:?}");
    }
}

#[test]
fn the_cluster_of_the_engines_is_that_of_static() {
    let shipped = yaml("envoy/static.yaml");
    let shipped = &shipped["static_resources"]["clusters"][0];
    let scale = yaml(&format!("{SCALE}/envoy.yaml"));
    let scale = scale["static_resources"]["clusters"][0].clone();
    for (folder, engines) in [(FOLDER, engines()), (SCALE, scale)] {
        for field in [
            "load_balancing_policy",
            "health_checks",
            "outlier_detection",
            "circuit_breakers",
            "typed_extension_protocol_options",
        ] {
            assert!(shipped[field].is_object() || shipped[field].is_array());
            assert_eq!(engines[field], shipped[field], "{field}");
        }
        let engine = json!({"address": "engine", "port_value": 8000});
        assert_eq!(*address(&engines), engine);
        assert!(compose_of(folder)["services"]["engine"].is_object());
        assert_eq!(plugin(folder).pools.len(), 1);
        assert_eq!(engines["name"], plugin(folder).pools[0].cluster.as_str());
    }
}

/// Where the one endpoint of a cluster is.
fn address(cluster: &Value) -> &Value {
    let endpoint = &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
    &endpoint["address"]["socket_address"]
}

/// What the filter of a folder's Envoy is configured with.
fn plugin(folder: &str) -> warmpath_core::Config {
    let envoy = yaml(&format!("{folder}/envoy.yaml"));
    let filter = &envoy["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0];
    let filter = &filter["typed_config"]["http_filters"][0]["typed_config"]["config"];
    let plugin = filter["configuration"]["value"].as_str().unwrap();
    warmpath_core::Config::parse(plugin.as_bytes()).unwrap()
}

#[test]
fn several_envoys_reach_webdis_and_webdis_reaches_redis() {
    let (compose, envoy) = (compose_of(SCALE), yaml(&format!("{SCALE}/envoy.yaml")));
    let replicas = |name: &str| compose["services"][name]["deploy"]["replicas"].as_u64();
    assert_eq!((replicas("envoy"), replicas("webdis")), (Some(3), Some(2)));
    for store in ["redis", "webdis"] {
        assert_eq!(compose["services"][store]["ports"], Value::Null, "{store}");
    }
    let sync = plugin(SCALE).sync.expect("sync");
    let clusters = envoy["static_resources"]["clusters"].as_array().unwrap();
    let fronts = clusters
        .iter()
        .find(|it| it["name"] == sync.cluster.as_str());
    let webdis = yaml(&format!("{SCALE}/webdis.json"));
    let port = &webdis["http_port"];
    let service = json!({"address": "webdis", "port_value": port});
    assert_eq!(*address(fronts.expect("a cluster of the fronts")), service);
    assert!(compose["services"][webdis["redis_host"].as_str().unwrap()].is_object());
    // Room for the largest batch and what is around it.
    let room = webdis["http_max_request_size"].as_u64().unwrap();
    assert!(room >= 2 * 512 * 1024);
    let allowed = json!([{"disabled": ["*"]}, {"enabled": ["EVAL"]}]);
    assert_eq!(webdis["acl"], allowed);

    let redis = std::fs::read_to_string(root().join(SCALE).join("redis.conf")).unwrap();
    let user = redis.lines().find(|line| line.starts_with("user default "));
    let words: Vec<_> = user.expect("a user").split(' ').collect();
    let streams = format!("~{{{}}}:*", sync.stream);
    let commands: Vec<_> = words
        .iter()
        .filter(|it| it.starts_with(['+', '-']))
        .collect();
    assert!(words.contains(&streams.as_str()), "{words:?}");
    assert_eq!(
        commands,
        [&"-@all", &"+eval", &"+xadd", &"+xrange", &"+xrevrange"]
    );
}

#[test]
fn prometheus_and_grafana_find_what_they_ask_for() {
    let compose = compose();
    let prometheus = yaml(&format!("{FOLDER}/prometheus.yaml"));
    let job = &prometheus["scrape_configs"][0];
    let target = job["static_configs"][0]["targets"][0].as_str().unwrap();
    let (host, port) = target.split_once(':').unwrap();
    let port: u16 = port.parse().unwrap();
    assert!(compose["services"][host].is_object(), "{target}");
    let envoy = yaml(&format!("{FOLDER}/envoy.yaml"));
    let listeners = envoy["static_resources"]["listeners"].as_array().unwrap();
    let listener = listeners
        .iter()
        .find(|it| it["address"]["socket_address"]["port_value"] == port);
    let routes = listener.expect("a listener for Prometheus").to_string();
    let path = job["metrics_path"].as_str().unwrap();
    assert!(routes.contains(&format!("\"path\":\"{path}\"")), "{routes}");

    let beside = mounted(FOLDER, &compose["services"]["prometheus"]);
    for file in texts(&prometheus["rule_files"]) {
        assert!(
            beside.contains_key(&format!("/etc/prometheus/{file}")),
            "{file}"
        );
    }
    let source = yaml(&format!("{FOLDER}/grafana/datasource.yaml"));
    let url = source["datasources"][0]["url"].as_str().unwrap();
    assert_eq!(url, "http://prometheus:9090");
    let boards = yaml(&format!("{FOLDER}/grafana/dashboards.yaml"));
    let folder = boards["providers"][0]["options"]["path"].as_str().unwrap();
    let there = mounted(FOLDER, &compose["services"]["grafana"]);
    let board = there.iter().find(|(target, _)| target.starts_with(folder));
    let (target, file) = board.expect("a dashboard");
    assert!(file.ends_with("dashboards/warmpath.json"), "{file}");
    let home = &compose["services"]["grafana"]["environment"];
    assert_eq!(
        home["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"],
        target.as_str()
    );
}
