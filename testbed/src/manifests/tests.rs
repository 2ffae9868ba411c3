use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use warmpath_core::Config;

use super::assemble::{build_with, files};
use super::*;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../envoy")
}

/// Other values than the shipped ones.
const CHANGED: [(&str, &str); 5] = [
    ("module", "example.net/other@sha256:00"),
    ("model", "other-model"),
    ("engine-image", "other-engine:1"),
    ("namespace", "other-namespace"),
    ("gateway", "other-gateway"),
];

/// Each overlay with its documents: as shipped, and with the values changed.
fn all() -> Vec<(PathBuf, Vec<Value>)> {
    let overlays = overlays(&folder()).unwrap();
    assert_eq!(overlays.len(), 5);
    let shipped = overlays.iter().map(|it| (it.clone(), build(it).unwrap()));
    let changed = overlays.iter().map(|it| (it.clone(), changed(it)));
    shipped.chain(changed).collect()
}

/// The documents of an overlay with other values.
fn changed(overlay: &Path) -> Vec<Value> {
    let change = &mut |document: &mut Value| {
        if document["kind"] == "ConfigMap" && document["metadata"]["name"] == "values" {
            let data = document["data"].as_object_mut().unwrap();
            assert_eq!(data.len(), CHANGED.len());
            for (name, value) in CHANGED {
                assert!(data.insert(name.to_owned(), value.into()).is_some());
            }
        }
    };
    build_with(overlay, change).unwrap()
}

fn one<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    let found: Vec<_> = documents.iter().filter(|it| it["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{kind}");
    found[0]
}

fn named<'a>(documents: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = documents
        .iter()
        .find(|it| it["kind"] == kind && it["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// The plugin configurations of an overlay, wherever its host wants them.
fn plugins(documents: &[Value]) -> Vec<Value> {
    let mut found = Vec::new();
    for document in documents {
        found.extend(document.pointer("/spec/pluginConfig").cloned());
        found.extend(document.pointer("/spec/wasm/0/config").cloned());
        let patches = document["spec"]["configPatches"].as_array();
        for patch in patches.into_iter().flatten() {
            let pointer = "/patch/value/typed_config/config/configuration/value";
            let text = patch.pointer(pointer).and_then(Value::as_str);
            found.extend(text.map(|it| serde_json::from_str(it).unwrap()));
        }
    }
    found
}

#[test]
fn every_field_of_kubernetes_and_gateway_api_is_known() {
    let mut others = BTreeSet::new();
    for (overlay, documents) in all() {
        for document in &documents {
            match fields::mistakes(document) {
                Some(mistakes) => assert_eq!(mistakes, [""; 0], "{}", overlay.display()),
                None => {
                    others.insert(strict::kind(document).1);
                }
            }
        }
    }
    let others: Vec<_> = others.iter().map(String::as_str).collect();
    let known = [
        "BackendTrafficPolicy",
        "ClientTrafficPolicy",
        "DestinationRule",
        "EnvoyExtensionPolicy",
        "EnvoyFilter",
        "EnvoyPatchPolicy",
        "EnvoyProxy",
        "WasmPlugin",
    ];
    assert_eq!(others, known);
}

#[test]
fn every_file_is_part_of_an_overlay() {
    let mut used = BTreeSet::new();
    for overlay in overlays(&folder()).unwrap() {
        used.extend(
            files(&overlay)
                .unwrap()
                .iter()
                .map(|it| it.canonicalize().unwrap()),
        );
    }
    let mut there = BTreeSet::new();
    let mut waiting: Vec<_> = TREES
        .iter()
        .chain(&["engines", "store"])
        .map(|it| folder().join(it))
        .collect();
    while let Some(path) = waiting.pop() {
        match path.is_dir() {
            true => waiting.extend(path.read_dir().unwrap().map(|it| it.unwrap().path())),
            false => drop(there.insert(path.canonicalize().unwrap())),
        }
    }
    assert_eq!(there, used);
}

#[test]
fn the_filter_accepts_every_plugin_configuration() {
    for (overlay, documents) in all() {
        let plugins = plugins(&documents);
        assert_eq!(plugins.len(), 1, "{}", overlay.display());
        let text = plugins[0].to_string();
        let parsed = Config::parse(text.as_bytes());
        assert!(parsed.is_ok(), "{}: {:?}", overlay.display(), parsed.err());
    }
}

/// A name of a document's own kind of reference.
fn text<'a>(document: &'a Value, pointer: &str) -> &'a str {
    let found = document.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("no {pointer} in {document}"))
}

#[test]
fn names_lead_to_what_is_there() {
    for (_, documents) in all() {
        for document in &documents {
            let spec = &document["spec"];
            let targets = spec["targetRefs"].as_array().into_iter().flatten();
            for target in targets.chain(spec.get("targetRef")) {
                named(&documents, text(target, "/kind"), text(target, "/name"));
            }
            for parent in spec["parentRefs"].as_array().into_iter().flatten() {
                named(&documents, "Gateway", text(parent, "/name"));
            }
            let cluster_wide = ["Namespace", "GatewayClass"];
            if !cluster_wide.contains(&text(document, "/kind")) {
                let namespace = text(document, "/metadata/namespace");
                named(&documents, "Namespace", namespace);
            }
        }
        let labels =
            |deployment: &Value| deployment["spec"]["template"]["metadata"]["labels"].clone();
        let deployments = documents.iter().filter(|it| it["kind"] == "Deployment");
        let deployments: Vec<_> = deployments.map(labels).collect();
        let selected = |selector: &Value| {
            let selector = selector.as_object().unwrap();
            assert!(!selector.is_empty());
            let fits =
                |labels: &&Value| selector.iter().all(|(name, value)| labels[name] == *value);
            assert_eq!(deployments.iter().filter(fits).count(), 1, "{selector:?}");
        };
        for document in &documents {
            let selector = match text(document, "/kind") {
                "Service" => "/spec/selector",
                "PodDisruptionBudget" | "Deployment" => "/spec/selector/matchLabels",
                "NetworkPolicy" => "/spec/podSelector/matchLabels",
                _ => continue,
            };
            selected(document.pointer(selector).expect("a selector"));
        }
        let service = named(&documents, "Service", "vllm");
        let backend = &one(&documents, "HTTPRoute")["spec"]["rules"][0]["backendRefs"][0];
        assert_eq!(backend["name"], service["metadata"]["name"]);
        assert_eq!(backend["port"], service["spec"]["ports"][0]["port"]);
    }
}

/// The filter's pool names the cluster that the host makes of route and Service.
#[test]
fn pools_name_the_clusters_of_their_hosts() {
    for (overlay, documents) in all() {
        let service = named(&documents, "Service", "vllm");
        let (name, namespace) = (
            text(service, "/metadata/name"),
            text(service, "/metadata/namespace"),
        );
        let host = format!("{name}.{namespace}.svc.cluster.local");
        let route = one(&documents, "HTTPRoute");
        let cluster = match overlay.parent().unwrap().ends_with("istio/overlays") {
            true => format!("outbound|{}||{host}", service["spec"]["ports"][0]["port"]),
            false => format!(
                "httproute/{namespace}/{}/rule/0",
                text(route, "/metadata/name")
            ),
        };
        assert_eq!(
            plugins(&documents)[0]["pools"][0]["cluster"],
            json!(cluster)
        );
        for filter in documents.iter().filter(|it| it["kind"] == "EnvoyFilter") {
            for patch in filter["spec"]["configPatches"].as_array().unwrap() {
                if let Some(service) = patch.pointer("/match/cluster/service") {
                    assert_eq!(*service, json!(host));
                }
            }
        }
        if let Some(rule) = documents.iter().find(|it| it["kind"] == "DestinationRule") {
            assert_eq!(rule["spec"]["host"], json!(host));
        }
    }
}

/// Patches of listeners name one as Envoy Gateway calls it.
#[test]
fn patches_name_the_listener() {
    for (overlay, documents) in all() {
        let Some(policy) = documents.iter().find(|it| it["kind"] == "EnvoyPatchPolicy") else {
            continue;
        };
        let gateway = one(&documents, "Gateway");
        let listener = &gateway["spec"]["listeners"][0];
        let wanted = match overlay.ends_with("names-v2") {
            true => format!("tcp-{}", listener["port"]),
            false => format!(
                "{}/{}/{}",
                text(gateway, "/metadata/namespace"),
                text(gateway, "/metadata/name"),
                text(listener, "/name")
            ),
        };
        let patches = policy["spec"]["jsonPatches"].as_array().unwrap().iter();
        let listeners = patches.filter(|it| text(it, "/type").ends_with(".Listener"));
        let names: Vec<_> = listeners.map(|it| text(it, "/name")).collect();
        assert_eq!(names, [&wanted; 2], "{}", overlay.display());
    }
}

/// The store of several Envoys is that of the example for Docker Compose, and each part finds the next.
#[test]
fn several_envoys_find_their_store() {
    for (overlay, documents) in all() {
        if !overlay.ends_with("scale") {
            continue;
        }
        for (name, file) in [("redis", "redis.conf"), ("webdis", "webdis.json")] {
            let shipped = std::fs::read_to_string(folder().join("scale").join(file)).unwrap();
            let config = named(&documents, "ConfigMap", name);
            assert_eq!(config["data"][file], json!(shipped), "{file}");
            let pod = &named(&documents, "Deployment", name)["spec"]["template"]["spec"];
            assert_eq!(pod["volumes"][0]["configMap"]["name"], name);
            let mounted = text(pod, "/containers/0/volumeMounts/0/mountPath");
            let command = pod["containers"][0]["command"].to_string();
            assert!(command.contains(&format!("{mounted}/{file}")), "{command}");
        }
        let plugin = plugins(&documents).remove(0);
        let key = plugin["sync"]["redis"]["key"].as_str().unwrap();
        assert!(key.starts_with("change me"), "{key}");
        let patches = one(&documents, "EnvoyPatchPolicy")["spec"]["jsonPatches"].clone();
        let patches = patches.as_array().unwrap();
        let cluster = &plugin["sync"]["redis"]["cluster"];
        let patch = patches.iter().find(|it| it["name"] == *cluster);
        let cluster = &patch.expect("a cluster")["operation"]["value"];
        let endpoint = &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
        let webdis = named(&documents, "Service", "webdis");
        let namespace = text(webdis, "/metadata/namespace");
        let address = json!({
            "address": format!("webdis.{namespace}.svc.cluster.local"),
            "port_value": webdis["spec"]["ports"][0]["port"],
        });
        assert_eq!(endpoint["address"]["socket_address"], address);
        let gateway = text(one(&documents, "Gateway"), "/metadata/name");
        let rules = |name| named(&documents, "NetworkPolicy", name)["spec"]["ingress"].clone();
        let rules = ["webdis-from-gateway", "vllm-from-gateway"].map(rules);
        assert_eq!(rules[0], rules[1]);
        assert!(rules[0].to_string().contains(gateway));
    }
}

/// Nothing of the old values is left when the values change, and each new one arrives.
#[test]
fn the_three_values_stand_in_one_place() {
    for overlay in overlays(&folder()).unwrap() {
        let shown = overlay.display();
        let mut seen = Vec::new();
        changed(&overlay).iter().for_each(|it| words(it, &mut seen));
        let has = |text: &str| seen.iter().any(|it| it.contains(text));
        for (_, value) in CHANGED {
            assert!(has(value), "{shown}: {value}");
        }
        for old in ["registry.example.com", "Qwen", "vllm-openai", ".llm."] {
            assert!(!has(old), "{shown}: {old}");
        }
        // What is left has the name of its own: the filter's pool.
        let mut left = seen
            .iter()
            .filter(|it| it.split('/').any(|part| part == "llm"));
        assert!(left.all(|it| it == "llm"), "{shown}");
    }
}

/// Every text of a document.
fn words(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|it| words(it, found)),
        Value::Object(fields) => fields.values().for_each(|it| words(it, found)),
        _ => {}
    }
}
