//! The Envoy of a gateway as Envoy Gateway configures it, with the patches of the manifests'
//! EnvoyPatchPolicy and EnvoyProxy applied as it applies them.

use anyhow::{Context as _, bail, ensure};
use serde_json::{Map, Value, json};
use serde_json_path::JsonPath;

use super::sample::{MANAGER, Place, WASM, items, one, renamed, routes, set, text};

/// How a version of Envoy Gateway calls its listeners.
#[derive(Clone, Copy, Debug)]
pub(super) enum Names {
    /// `NAMESPACE/GATEWAY/LISTENER`.
    V1,
    /// `tcp-PORT`.
    V2,
}

/// The configuration of an Envoy for these documents.
pub(super) fn lift(documents: &[Value], place: &Place, names: Names) -> anyhow::Result<Value> {
    let mut clusters = clusters(documents, place)?;
    let mut listener = listener(documents, names)?;
    patch(
        one(documents, "EnvoyPatchPolicy")?,
        &mut listener,
        &mut clusters,
    )?;
    let wasm = listener.pointer_mut(WASM_FILTER).context("no filter")?;
    place.bring_module(wasm)?;
    // The one of Envoy Gateway's own tags with a name that warmpath uses, too.
    let own = json!({"regex": "circuit_breakers\\.((.+?)\\.).+", "tag_name": "priority"});
    let mut bootstrap = place.bootstrap(listener, clusters, &[own]);
    let proxy = one(documents, "EnvoyProxy")?;
    let patches = proxy.pointer("/spec/bootstrap/jsonPatches").cloned();
    let patches: json_patch::Patch = serde_json::from_value(patches.context("no patches")?)?;
    json_patch::patch(&mut bootstrap, &patches)?;
    Ok(bootstrap)
}

/// Where the wasm filter is in the listener.
const WASM_FILTER: &str =
    "/default_filter_chain/filters/0/typed_config/http_filters/0/typed_config";

fn filter_name(policy: &Value) -> String {
    let namespace = text(policy, "/metadata/namespace");
    let name = text(policy, "/metadata/name");
    format!("envoyextensionpolicy/{namespace}/{name}/wasm/0")
}

fn wasm(policy: &Value) -> anyhow::Result<Value> {
    let wasm = policy.pointer("/spec/wasm/0").context("no wasm")?;
    let image = text(wasm, "/code/image/url");
    ensure!(!image.is_empty(), "no image");
    let mut config = json!({
        "name": text(wasm, "/name"),
        "vm_config": {
            "vm_id": filter_name(policy),
            "runtime": "envoy.wasm.runtime.v8",
            "code": {"remote": {
                "http_uri": {"uri": image, "cluster": "wasm_cluster", "timeout": "10s"},
                "sha256": "00",
            }},
        },
        "configuration": {
            "@type": "type.googleapis.com/google.protobuf.StringValue",
            "value": wasm.get("config").context("no config")?.to_string(),
        },
    });
    // False is the default, which no message has.
    if wasm.get("failOpen") == Some(&true.into()) {
        set(&mut config, json!({"fail_open": true}));
    }
    Ok(json!({"@type": WASM, "config": config}))
}

fn listener(documents: &[Value], names: Names) -> anyhow::Result<Value> {
    let gateway = one(documents, "Gateway")?;
    let policy = one(documents, "EnvoyExtensionPolicy")?;
    let clients = one(documents, "ClientTrafficPolicy")?;
    let port = gateway
        .pointer("/spec/listeners/0/port")
        .context("no port")?;
    let own = format!(
        "{}/{}/{}",
        text(gateway, "/metadata/namespace"),
        text(gateway, "/metadata/name"),
        text(gateway, "/spec/listeners/0/name"),
    );
    let name = match names {
        Names::V1 => own,
        Names::V2 => format!("tcp-{port}"),
    };
    let filter = format!("envoy.filters.http.wasm/{}", filter_name(policy));
    let removed = items(clients, "/spec/headers/earlyRequestHeaders/remove");
    let removed: Vec<_> = removed.map(|it| json!({"remove": it})).collect();
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": format!("http-{port}"),
        "use_remote_address": true,
        "normalize_path": true,
        "merge_slashes": true,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
        "server_header_transformation": "PASS_THROUGH",
        "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"},
        "stream_idle_timeout": text(clients, "/spec/timeout/http/streamIdleTimeout"),
        "early_header_mutation_extensions": [{
            "name": "envoy.http.early_header_mutation.header_mutation",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
                "mutations": removed,
            },
        }],
        "http_filters": [
            {"name": filter, "disabled": true, "typed_config": wasm(policy)?},
            {"name": "envoy.filters.http.router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                "suppress_envoy_headers": true,
            }},
        ],
        "route_config": {
            "name": name,
            "ignore_port_in_host_matching": true,
            "virtual_hosts": [{
                "name": format!("{name}/*"),
                "domains": ["*"],
                "routes": enabled_routes(documents, &filter)?,
            }],
        },
    });
    Ok(json!({
        "name": name,
        "max_connections_to_accept_per_socket_event": 1,
        "per_connection_buffer_limit_bytes": bytes(text(clients, "/spec/connection/bufferLimit"))?,
        "default_filter_chain": {
            "name": name,
            "filters": [{"name": MANAGER, "typed_config": manager}],
        },
    }))
}

/// The routes, each with the filter switched on and with the retries of the BackendTrafficPolicy.
fn enabled_routes(documents: &[Value], filter: &str) -> anyhow::Result<Vec<Value>> {
    let route = one(documents, "HTTPRoute")?;
    let policy = one(documents, "BackendTrafficPolicy")?;
    let triggers: Vec<_> = items(policy, "/spec/retry/retryOn/triggers").collect();
    let triggers: Vec<_> = triggers.iter().filter_map(|it| it.as_str()).collect();
    let mut retries = renamed(
        policy,
        &[
            ("/spec/retry/numRetries", "num_retries"),
            (
                "/spec/retry/retryOn/httpStatusCodes",
                "retriable_status_codes",
            ),
        ],
    );
    let back_off = |name: &str| {
        seconds(text(
            policy,
            &format!("/spec/retry/perRetry/backOff/{name}"),
        ))
    };
    set(
        &mut retries,
        json!({
            "retry_on": triggers.join(","),
            "retry_back_off": {
                "base_interval": back_off("baseInterval")?, "max_interval": back_off("maxInterval")?,
            },
            "host_selection_retry_max_attempts": "5",
            "retry_host_predicate": [{
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
            }],
        }),
    );
    let mut routes = routes(route, |number, _| cluster_name(route, number))?;
    for route in &mut routes {
        set(
            route,
            json!({"typed_per_filter_config": {filter: {
                "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {},
            }}}),
        );
        set(
            &mut route["route"],
            json!({
                "retry_policy": retries, "upgrade_configs": [{"upgrade_type": "websocket"}],
            }),
        );
    }
    Ok(routes)
}

fn cluster_name(route: &Value, rule: usize) -> String {
    let namespace = text(route, "/metadata/namespace");
    let name = text(route, "/metadata/name");
    format!("httproute/{namespace}/{name}/rule/{rule}")
}

fn clusters(documents: &[Value], place: &Place) -> anyhow::Result<Vec<Value>> {
    let route = one(documents, "HTTPRoute")?;
    let policy = one(documents, "BackendTrafficPolicy")?;
    let sources: Vec<_> =
        items(policy, "/spec/loadBalancer/endpointOverride/extractFrom").collect();
    ensure!(
        text(policy, "/spec/loadBalancer/type") == "LeastRequest",
        "another fallback"
    );
    let rules = items(route, "/spec/rules").count();
    let made = (0..rules).map(|rule| {
        let name = cluster_name(route, rule);
        let endpoints = match rule {
            0 => &place.engines,
            _ => &place.others,
        };
        json!({
            "name": name,
            "type": "STATIC",
            "connect_timeout": "10s",
            "per_connection_buffer_limit_bytes": 32768,
            "common_lb_config": {},
            "ignore_health_on_host_removal": true,
            "load_balancing_policy": {"policies": [{"typed_extension_config": {
                "name": "envoy.load_balancing_policies.override_host",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost",
                    "override_host_sources": sources,
                    "fallback_policy": {"policies": [{"typed_extension_config": {
                        "name": "envoy.load_balancing_policies.least_request",
                        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest"},
                    }}]},
                },
            }}]},
            "circuit_breakers": {"thresholds": [renamed(policy, &[
                ("/spec/circuitBreaker/maxConnections", "max_connections"),
                ("/spec/circuitBreaker/maxPendingRequests", "max_pending_requests"),
                ("/spec/circuitBreaker/maxParallelRequests", "max_requests"),
                ("/spec/circuitBreaker/maxParallelRetries", "max_retries"),
            ])]},
            "outlier_detection": renamed(policy, &[
                ("/spec/healthCheck/passive/consecutive5XxErrors", "consecutive_5xx"),
                ("/spec/healthCheck/passive/interval", "interval"),
                ("/spec/healthCheck/passive/baseEjectionTime", "base_ejection_time"),
                ("/spec/healthCheck/passive/maxEjectionPercent", "max_ejection_percent"),
            ]),
            "health_checks": [renamed(policy, &[
                ("/spec/healthCheck/active/http", "http_health_check"),
                ("/spec/healthCheck/active/interval", "interval"),
                ("/spec/healthCheck/active/timeout", "timeout"),
                ("/spec/healthCheck/active/unhealthyThreshold", "unhealthy_threshold"),
                ("/spec/healthCheck/active/healthyThreshold", "healthy_threshold"),
            ])],
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http_protocol_options": {}},
                    "common_http_protocol_options": renamed(policy, &[
                        ("/spec/timeout/http/connectionIdleTimeout", "idle_timeout"),
                    ]),
                },
            },
            "load_assignment": {"cluster_name": name, "endpoints": endpoints},
        })
    });
    Ok(made.collect())
}

/// Applies the operations of an EnvoyPatchPolicy: each at `path` below every place that its `jsonPath`
/// finds. What finds nothing is an error, as it is in the policy's status.
fn patch(policy: &Value, listener: &mut Value, clusters: &mut Vec<Value>) -> anyhow::Result<()> {
    for patch in items(policy, "/spec/jsonPatches") {
        let (kind, name) = (text(patch, "/type"), text(patch, "/name"));
        let operation = patch.get("operation").context("no operation")?;
        let path = text(operation, "/path");
        match (kind.rsplit('.').next(), operation.get("jsonPath")) {
            (Some("Cluster"), None) if path.is_empty() => {
                ensure!(text(operation, "/op") == "add", "{operation}");
                clusters.push(operation.get("value").context("no value")?.clone());
            }
            (Some("Listener"), Some(found)) => {
                ensure!(name == text(listener, "/name"), "no listener {name}");
                let found = found.as_str().context("jsonPath is a text")?;
                apply(operation, found, path, listener)?;
            }
            _ => bail!("not understood: {patch}"),
        }
    }
    Ok(())
}

fn apply(operation: &Value, found: &str, path: &str, resource: &mut Value) -> anyhow::Result<()> {
    // The root may be left out there.
    let query = JsonPath::parse(&format!("${found}"))?;
    let located = query.query_located(resource);
    let places: Vec<_> = located.locations().map(|it| it.to_json_pointer()).collect();
    ensure!(!places.is_empty(), "{found} finds nothing");
    for place in places {
        let mut single = operation.as_object().cloned().unwrap_or_default();
        single.remove("jsonPath");
        single.insert("path".to_owned(), format!("{place}/{path}").into());
        let single: Map<String, Value> = single;
        let patch: json_patch::Patch = serde_json::from_value(json!([single]))?;
        json_patch::patch(resource, &patch)?;
    }
    Ok(())
}

/// A size in bytes, such as `32Mi`.
fn bytes(size: &str) -> anyhow::Result<u64> {
    let number = size
        .strip_suffix("Mi")
        .with_context(|| format!("{size} has no unit Mi"))?;
    Ok(number.parse::<u64>()? << 20)
}

/// A duration as Envoy writes it: `5ms` is `0.005s`.
fn seconds(duration: &str) -> anyhow::Result<String> {
    let number = duration
        .strip_suffix("ms")
        .with_context(|| format!("{duration} has no unit ms"))?;
    Ok(format!("{}s", number.parse::<f64>()? / 1000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patched(name: &str, found: &str) -> anyhow::Result<Value> {
        let policy = json!({"spec": {"jsonPatches": [{
            "type": "type.googleapis.com/envoy.config.listener.v3.Listener",
            "name": name,
            "operation": {"op": "add", "jsonPath": found, "path": "new", "value": true},
        }]}});
        let mut listener = json!({"name": "tcp-80", "deep": {"list": [
            {"name": "wasm/a/warmpath/0", "config": {}},
            {"name": "wasm/a/other/0", "config": {}},
        ]}});
        patch(&policy, &mut listener, &mut Vec::new())?;
        Ok(listener)
    }

    const FILTER: &str = "..list[?match(@.name, 'wasm/.*/warmpath/.*')].config";

    #[test]
    fn a_patch_is_made_below_each_place_that_is_found() {
        let listener = patched("tcp-80", FILTER).unwrap();
        assert_eq!(listener["deep"]["list"][0]["config"], json!({"new": true}));
        assert_eq!(listener["deep"]["list"][1]["config"], json!({}));
    }

    #[test]
    fn another_name_of_the_listener_or_nothing_found_is_an_error() {
        assert!(patched("llm/inference/http", FILTER).is_err());
        assert!(patched("tcp-80", "..lists[?match(@.name, '.*')].config").is_err());
        assert!(patched("tcp-80", "..list[?match(@.name, 'none')].config").is_err());
    }
}
