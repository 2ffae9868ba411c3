//! The Envoy of a gateway as Istio configures it, with the patches of the manifests' EnvoyFilters and
//! with the filter of their WasmPlugin.
//!
//! Only the conditions and operations that the manifests use are understood; any other is an error.

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use super::sample::{MANAGER, Place, WASM, items, merge, one, renamed, routes, set, text};
use crate::envoy::files;

const ROUTER: &str = "envoy.filters.http.router";

/// The configuration of an Envoy for these documents.
pub(super) fn lift(documents: &[Value], place: &Place) -> anyhow::Result<Value> {
    let mut listener = listener(documents)?;
    let mut clusters = clusters(documents, place)?;
    let mut extensions = Vec::new();
    for plugin in documents
        .iter()
        .filter(|it| text(it, "/kind") == "WasmPlugin")
    {
        let filter = wasm_plugin(plugin, &mut extensions)?;
        insert_before_router(&mut listener, &filter)?;
    }
    for filter in documents
        .iter()
        .filter(|it| text(it, "/kind") == "EnvoyFilter")
    {
        for patch in items(filter, "/spec/configPatches") {
            apply(patch, &mut listener, &mut clusters, &mut extensions)
                .with_context(|| text(patch, "/applyTo").to_owned())?;
        }
    }
    resolve(&mut listener, extensions, place)?;
    let tags = "/spec/infrastructure/annotations/sidecar.istio.io~1extraStatTags";
    let tags: Vec<_> = text(one(documents, "Gateway")?, tags)
        .split(',')
        .map(|tag| json!({"tag_name": tag, "regex": format!("({tag}=\\.=(.*?);\\.;)")}))
        .collect();
    Ok(place.bootstrap(listener, clusters, &tags))
}

fn host(service: &str, namespace: &str) -> String {
    format!("{service}.{namespace}.svc.cluster.local")
}

fn listener(documents: &[Value]) -> anyhow::Result<Value> {
    let route = one(documents, "HTTPRoute")?;
    let namespace = text(route, "/metadata/namespace");
    let mut routes = routes(route, |_, backend| {
        let host = host(text(backend, "/name"), namespace);
        format!("outbound|{}||{host}", backend["port"])
    })?;
    for route in &mut routes {
        set(
            &mut route["route"],
            json!({"retry_policy": {
                "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
                "num_retries": 2,
                "host_selection_retry_max_attempts": "5",
                "retry_host_predicate": [{
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
                }],
            }}),
        );
    }
    let filter = |name: &str, kind: &str| {
        let kind = format!("type.googleapis.com/envoy.extensions.filters.http.{kind}");
        json!({"name": name, "typed_config": {"@type": kind}})
    };
    Ok(json!({
        "name": "0.0.0.0_80",
        "filter_chains": [{"filters": [{
            "name": MANAGER,
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "outbound_0.0.0.0_80",
                "use_remote_address": true,
                "normalize_path": true,
                "server_name": "istio-envoy",
                "forward_client_cert_details": "SANITIZE_SET",
                "http_filters": [
                    filter("envoy.filters.http.grpc_stats", "grpc_stats.v3.FilterConfig"),
                    filter("envoy.filters.http.fault", "fault.v3.HTTPFault"),
                    filter("envoy.filters.http.cors", "cors.v3.Cors"),
                    filter(ROUTER, "router.v3.Router"),
                ],
                "route_config": {
                    "name": "http.80",
                    "virtual_hosts": [{"name": "*:80", "domains": ["*"], "routes": routes}],
                },
            },
        }]}],
    }))
}

/// The clusters of all Services that a rule leads to, as Istio makes them, with the DestinationRule's
/// settings.
fn clusters(documents: &[Value], place: &Place) -> anyhow::Result<Vec<Value>> {
    let route = one(documents, "HTTPRoute")?;
    let namespace = text(route, "/metadata/namespace");
    let policy = one(documents, "DestinationRule")?.pointer("/spec/trafficPolicy");
    let policy = policy.context("no trafficPolicy")?;
    // With it Istio writes what Envoy refuses beside a `load_balancing_policy`.
    ensure!(
        policy.pointer("/loadBalancer/localityLbSetting/enabled") == Some(&false.into()),
        "localityLbSetting is on"
    );
    let mut made: Vec<Value> = Vec::new();
    for rule in items(route, "/spec/rules") {
        let backend = rule.pointer("/backendRefs/0").context("no backend")?;
        let host = host(text(backend, "/name"), namespace);
        let name = format!("outbound|{}||{host}", backend["port"]);
        let endpoints = match made.is_empty() {
            true => &place.engines,
            false => &place.others,
        };
        made.push(json!({
            "name": name,
            "type": "STATIC",
            "connect_timeout": "10s",
            "lb_policy": "LEAST_REQUEST",
            "common_lb_config": {},
            "circuit_breakers": {"thresholds": [renamed(policy, &[
                ("/connectionPool/tcp/maxConnections", "max_connections"),
                ("/connectionPool/http/http1MaxPendingRequests", "max_pending_requests"),
                ("/connectionPool/http/http2MaxRequests", "max_requests"),
                ("/connectionPool/http/maxRetries", "max_retries"),
            ])]},
            "outlier_detection": renamed(policy, &[
                ("/outlierDetection/consecutive5xxErrors", "consecutive_5xx"),
                ("/outlierDetection/interval", "interval"),
                ("/outlierDetection/baseEjectionTime", "base_ejection_time"),
                ("/outlierDetection/maxEjectionPercent", "max_ejection_percent"),
            ]),
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http_protocol_options": {}},
                    "common_http_protocol_options": renamed(policy, &[
                        ("/connectionPool/http/idleTimeout", "idle_timeout"),
                    ]),
                },
            },
            "load_assignment": {"cluster_name": name, "endpoints": endpoints},
        }));
    }
    Ok(made)
}

/// The filter of a WasmPlugin in the chain; its configuration is added to the extensions.
fn wasm_plugin(plugin: &Value, extensions: &mut Vec<Value>) -> anyhow::Result<Value> {
    let name = format!(
        "{}.{}",
        text(plugin, "/metadata/namespace"),
        text(plugin, "/metadata/name")
    );
    let config = plugin
        .pointer("/spec/pluginConfig")
        .context("no pluginConfig")?;
    extensions.push(json!({
        "name": name,
        "typed_config": {"@type": WASM, "config": {
            "name": name,
            "root_id": text(plugin, "/spec/pluginName"),
            "failure_policy": text(plugin, "/spec/failStrategy"),
            "vm_config": {
                "runtime": "envoy.wasm.runtime.v8",
                "code": {"remote": {"http_uri": {"uri": text(plugin, "/spec/url")}}},
            },
            "configuration": {
                "@type": "type.googleapis.com/google.protobuf.StringValue",
                "value": config.to_string(),
            },
        }},
    }));
    Ok(json!({"name": name, "config_discovery": {
        "config_source": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
        "type_urls": [WASM, "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"],
    }}))
}

fn apply(
    patch: &Value,
    listener: &mut Value,
    clusters: &mut Vec<Value>,
    extensions: &mut Vec<Value>,
) -> anyhow::Result<()> {
    let value = patch.pointer("/patch/value").context("no value")?;
    let condition = patch.get("match").context("no condition")?;
    let mut left = condition.clone();
    let mut takes = |name: &str| left.as_object_mut().and_then(|it| it.remove(name));
    ensure!(takes("context") == Some("GATEWAY".into()), "{condition}");
    let found = match (text(patch, "/applyTo"), text(patch, "/patch/operation")) {
        ("EXTENSION_CONFIG", "ADD") => {
            extensions.push(value.clone());
            1
        }
        ("CLUSTER", "ADD") => {
            clusters.push(value.clone());
            1
        }
        ("CLUSTER", "MERGE") => {
            let wanted = takes("cluster").context("for all clusters?")?;
            let port = wanted.get("portNumber").context("no port")?;
            let tail = format!("|{port}||{}", text(&wanted, "/service"));
            let named = clusters
                .iter_mut()
                .filter(|it| text(it, "/name").ends_with(&tail));
            named.map(|it| merge(it, value)).count()
        }
        ("LISTENER", "MERGE") => {
            merge(listener, value);
            1
        }
        ("NETWORK_FILTER", "MERGE") => {
            let filter = json!({"filterChain": {"filter": {"name": MANAGER}}});
            ensure!(takes("listener") == Some(filter), "{condition}");
            merge(
                manager(listener)?,
                value.get("typed_config").context("no typed_config")?,
            );
            1
        }
        ("HTTP_FILTER", "INSERT_BEFORE") => {
            let filter = json!({"filterChain": {"filter": {
                "name": MANAGER, "subFilter": {"name": ROUTER},
            }}});
            ensure!(takes("listener") == Some(filter), "{condition}");
            insert_before_router(listener, value)?;
            1
        }
        ("HTTP_ROUTE", "MERGE") => {
            let action = json!({"vhost": {"route": {"action": "ROUTE"}}});
            ensure!(takes("routeConfiguration") == Some(action), "{condition}");
            let routes = manager(listener)?.pointer_mut("/route_config/virtual_hosts/0/routes");
            let routes = routes.and_then(Value::as_array_mut).into_iter().flatten();
            routes.map(|route| merge(route, value)).count()
        }
        (place, operation) => bail!("{operation} {place} is not understood"),
    };
    ensure!(left == json!({}), "not understood: {left}");
    ensure!(found > 0, "nothing is meant by {condition}");
    Ok(())
}

fn manager(listener: &mut Value) -> anyhow::Result<&mut Value> {
    let manager = listener.pointer_mut("/filter_chains/0/filters/0/typed_config");
    manager.context("no connection manager")
}

fn filters(listener: &mut Value) -> anyhow::Result<&mut Vec<Value>> {
    let filters = manager(listener)?.get_mut("http_filters");
    filters.and_then(Value::as_array_mut).context("no filters")
}

fn insert_before_router(listener: &mut Value, filter: &Value) -> anyhow::Result<()> {
    let filters = filters(listener)?;
    let at = filters.iter().position(|it| text(it, "/name") == ROUTER);
    filters.insert(at.context("no router")?, filter.clone());
    Ok(())
}

/// What istiod and its agent do: each extension reaches Envoy by discovery, with the module as a file.
fn resolve(listener: &mut Value, extensions: Vec<Value>, place: &Place) -> anyhow::Result<()> {
    for mut extension in extensions {
        let name = text(&extension, "/name").to_owned();
        place.bring_module(
            extension
                .get_mut("typed_config")
                .context("no typed_config")?,
        )?;
        let file = place.folder.join(format!("{name}.json"));
        files::write(&file, files::EXTENSION, &[extension])?;
        let named = filters(listener)?
            .iter_mut()
            .find(|it| text(it, "/name") == name);
        let source = named.and_then(|it| it.pointer_mut("/config_discovery/config_source"));
        *source.with_context(|| format!("no filter {name}"))? = files::source(&file);
    }
    Ok(())
}
