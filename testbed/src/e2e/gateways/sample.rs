//! What every gateway's Envoy has, whoever configures it, and what Kubernetes's own objects become
//! there.
//!
//! Written after what Istio's and Envoy Gateway's control planes send. What cannot be there without a
//! cluster is replaced: endpoints stand in the clusters instead of EDS, and the module is a local file.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use crate::envoy::bootstrap::{Addresses, Bootstrap};

/// Type of a wasm filter.
pub(super) const WASM: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
/// Name of the HTTP connection manager.
pub(super) const MANAGER: &str = "envoy.filters.network.http_connection_manager";

/// What a run brings along: where Envoy listens, its engines and the module.
pub(super) struct Place {
    pub(super) addresses: Addresses,
    /// The `endpoints` of the engines' cluster.
    pub(super) engines: Value,
    /// The same of a second pool.
    pub(super) others: Value,
    module: Value,
    runtime: Value,
    /// A folder for files that Envoy reads.
    pub(super) folder: PathBuf,
}

impl Place {
    /// From the shipped configuration of a run, with its pools `llama` and `qwen`.
    pub(super) fn of(bootstrap: &mut Bootstrap, folder: PathBuf) -> anyhow::Result<Self> {
        let addresses = bootstrap.addresses()?;
        let plugin = bootstrap.plugin_config_mut()?;
        let vm = plugin.get("vm_config").context("no vm_config")?;
        let module = vm.pointer("/code/local").context("no module")?.clone();
        let runtime = vm.get("runtime").context("no runtime")?.clone();
        let mut endpoints = |cluster: &str| -> anyhow::Result<Value> {
            let cluster = bootstrap.cluster_mut(cluster)?;
            let found = cluster.pointer("/load_assignment/endpoints");
            Ok(found.context("no endpoints")?.clone())
        };
        Ok(Self {
            engines: endpoints("llama")?,
            others: endpoints("qwen")?,
            addresses,
            module,
            runtime,
            folder,
        })
    }

    /// Puts the module of the run in the place of one that would be downloaded.
    pub(super) fn bring_module(&self, wasm: &mut Value) -> anyhow::Result<()> {
        let vm = wasm.pointer_mut("/config/vm_config");
        let vm = vm.and_then(Value::as_object_mut).context("no vm_config")?;
        vm.get("code")
            .and_then(|code| code.pointer("/remote/http_uri/uri"))
            .context("the module is not downloaded")?;
        vm.insert("code".to_owned(), json!({"local": self.module}));
        vm.insert("runtime".to_owned(), self.runtime.clone());
        Ok(())
    }

    /// A complete bootstrap of one listener, whose address is set, and these clusters; the cluster of
    /// the admin interface is added, as every one of these gateways has it.
    pub(super) fn bootstrap(
        &self,
        mut listener: Value,
        mut clusters: Vec<Value>,
        tags: &[Value],
    ) -> Value {
        let address = |at: std::net::SocketAddr| json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}});
        let admin = address(self.addresses.admin);
        if let Some(listener) = listener.as_object_mut() {
            listener.insert("address".to_owned(), address(self.addresses.listener));
        }
        clusters.push(json!({
            "name": "prometheus_stats",
            "type": "STATIC",
            "connect_timeout": "0.250s",
            "lb_policy": "ROUND_ROBIN",
            "load_assignment": {
                "cluster_name": "prometheus_stats",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": admin}}]}],
            },
        }));
        json!({
            "node": {"id": "gateway", "cluster": "gateway"},
            "admin": {"address": admin},
            "stats_config": {"use_all_default_tags": true, "stats_tags": tags},
            "static_resources": {"listeners": [listener], "clusters": clusters},
        })
    }
}

/// The one document of a kind.
pub(super) fn one<'a>(documents: &'a [Value], kind: &str) -> anyhow::Result<&'a Value> {
    let mut found = documents.iter().filter(|it| text(it, "/kind") == kind);
    let first = found.next().with_context(|| format!("no {kind}"))?;
    anyhow::ensure!(found.next().is_none(), "more than one {kind}");
    Ok(first)
}

/// A text within a value; empty if there is none.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The items of a list within a value; none if there is no list.
pub(super) fn items<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    let list = value.pointer(pointer).and_then(Value::as_array);
    list.into_iter().flatten()
}

/// Puts `fields` into an object, in place of those of the same name.
pub(super) fn set(value: &mut Value, fields: Value) {
    if let (Value::Object(value), Value::Object(fields)) = (value, fields) {
        value.extend(fields);
    }
}

/// Envoy's routes for an HTTPRoute, those with more conditions first, as the Gateway API demands. The
/// cluster of a rule is named by its number and its backend.
pub(super) fn routes(
    route: &Value,
    cluster: impl Fn(usize, &Value) -> String,
) -> anyhow::Result<Vec<Value>> {
    let mut found = Vec::new();
    for (number, rule) in items(route, "/spec/rules").enumerate() {
        let backend = rule.pointer("/backendRefs/0").context("no backend")?;
        for matched in items(rule, "/matches") {
            let headers: Vec<_> = items(matched, "/headers")
                .map(|it| json!({"name": it["name"], "string_match": {"exact": it["value"]}}))
                .collect();
            let entry = json!({
                "name": format!("{}.{number}", text(route, "/metadata/name")),
                "match": {"prefix": text(matched, "/path/value"), "headers": headers},
                "route": {
                    "cluster": cluster(number, backend),
                    "timeout": text(rule, "/timeouts/request"),
                },
            });
            found.push((headers_of(&entry), entry));
        }
    }
    found.sort_by_key(|(headers, _)| std::cmp::Reverse(*headers));
    Ok(found.into_iter().map(|(_, entry)| entry).collect())
}

fn headers_of(route: &Value) -> usize {
    items(route, "/match/headers").count()
}

/// Merges `patch` into `target` as protocol buffers do: objects field by field, lists one after the
/// other, all else replaced.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (name, value) in patch {
                match target.get_mut(name) {
                    Some(own) => merge(own, value),
                    None => drop(target.insert(name.clone(), value.clone())),
                }
            }
        }
        (Value::Array(target), Value::Array(patch)) => target.extend(patch.iter().cloned()),
        (target, patch) => *target = patch.clone(),
    }
}

/// Fields of an object under other names, those that are there.
pub(super) fn renamed(from: &Value, names: &[(&str, &str)]) -> Value {
    let found = names.iter().filter_map(|(pointer, name)| {
        let value = from.pointer(pointer)?;
        Some(((*name).to_owned(), value.clone()))
    });
    Value::Object(found.collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_like_protocol_buffers() {
        let mut target = json!({"a": {"b": 1, "list": [1]}, "text": "old"});
        merge(
            &mut target,
            &json!({"a": {"c": 2, "list": [2]}, "text": "new"}),
        );
        assert_eq!(
            target,
            json!({"a": {"b": 1, "c": 2, "list": [1, 2]}, "text": "new"})
        );
    }

    #[test]
    fn a_rule_with_a_header_comes_first() {
        let rule = |headers: Value| {
            json!({"matches": [{"path": {"type": "PathPrefix", "value": "/"}, "headers": headers}],
                   "backendRefs": [{"name": "vllm"}]})
        };
        let header = json!([{"type": "Exact", "name": "x", "value": "y"}]);
        let route = json!({"metadata": {"name": "r"},
                           "spec": {"rules": [rule(json!([])), rule(header)]}});
        let routes = routes(&route, |number, _| format!("rule/{number}")).unwrap();
        let clusters: Vec<_> = routes.iter().map(|it| text(it, "/route/cluster")).collect();
        assert_eq!(clusters, ["rule/1", "rule/0"]);
    }
}
