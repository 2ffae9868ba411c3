//! What a user would want to be told of a configuration that the filter accepts.
//!
//! Each rule looks at the plugin configuration and at what stands around it, and says nothing where that
//! cannot be seen: clusters may come from a control plane, a patch does not show its listener.

use serde_json::Value;
use warmpath_core::Config;
use warmpath_core::config::{PolicyConfig, PoolConfig};
use warmpath_core::session::KeySource;

use super::find::{Holder, Plugin, field};
use super::suggest::alike;

/// What a listener buffers if it does not say.
const LISTENER_BYTES: u64 = 1 << 20;
/// Bodies up to here fit beside it.
const EASY_BYTES: u64 = 512 << 10;
/// By how much bodies may jump from one callback to the next.
const SLACK_BYTES: u64 = 1 << 20;

/// Something that is probably not what was meant.
pub struct Advice {
    /// Name of the rule.
    pub rule: &'static str,
    /// Path in the plugin configuration, if it is about a place there.
    pub path: String,
    /// What is wrong and what it leads to.
    pub text: String,
    /// What may have been meant.
    pub suggestion: Option<String>,
}

/// What is to be said of a plugin; `patched`: some other resource sets `allow_on_headers_stop_iteration`.
pub fn advice(plugin: &Plugin, config: Option<&Config>, patched: bool) -> Vec<Advice> {
    let mut found = Vec::new();
    let mut say = |rule, path: String, text: String, suggestion| {
        found.push(Advice {
            rule,
            path,
            text,
            suggestion,
        });
    };
    let value: Value = serde_json::from_str(&plugin.text).unwrap_or_default();
    let headers_suffice =
        value.get("steer_by").is_some_and(is_filter_state) || config.is_none_or(decides_by_headers);
    if !headers_suffice && !patched && !shows_bodies(plugin) {
        let text = match plugin.holder {
            Holder::Envoy => {
                "no `allow_on_headers_stop_iteration: true`: Envoy never shows the filter the body of a \
                 request, so neither model nor prompt count"
            }
            _ => {
                "this resource has no field for `allow_on_headers_stop_iteration`, so the filter sees no \
                 bodies, and neither model nor prompt count"
            }
        };
        let meant = "set it by a patch, or let headers alone decide";
        let meant = (plugin.holder != Holder::Envoy).then(|| meant.to_owned());
        say("stop-iteration", String::new(), text.to_owned(), meant);
    }
    if let Some(policy) = failure_policy(plugin).filter(|policy| policy != "FAIL_RELOAD") {
        let name = match plugin.holder {
            Holder::Envoy => "failure_policy",
            _ => "failStrategy",
        };
        let text = format!(
            "`{name}` is {policy}: after a crash of the VM the filter never comes back; use FAIL_RELOAD"
        );
        say("failure-policy", String::new(), text, None);
    }
    if plugin.holder == Holder::Envoy {
        let vm = field(plugin.object, "vm_config");
        let id = vm.and_then(|vm| field(vm, "vm_id")).and_then(Value::as_str);
        if id.is_none_or(str::is_empty) {
            let text = "no `vm_config.vm_id`: what workers share is kept under it, and lost or mixed up \
                        with that of other plugins without one";
            say("vm-id", String::new(), text.to_owned(), None);
        }
    }
    if let Some(config) = config {
        found.extend(clusters(plugin, config));
        found.extend(buffer(plugin, config));
        found.extend(early_removal(plugin, config));
    }
    found
}

fn is_filter_state(value: &Value) -> bool {
    let as_object = value.as_object().and_then(|map| map.keys().next());
    value.as_str().or(as_object.map(String::as_str)) == Some("filter_state")
}

/// Whether no decision needs anything of a body: one pool takes every model, no matter what the prompt.
fn decides_by_headers(config: &Config) -> bool {
    let by_headers = |pool: &PoolConfig| {
        let has_key = !matches!(pool.policy, PolicyConfig::ConsistentHash { .. })
            || !config
                .session_key
                .iter()
                .any(|key| matches!(key, KeySource::Body(_)));
        let any_model =
            pool.served_names().is_empty() && !pool.discover_models && !pool.reads_metadata;
        has_key && any_model && pool.kv_tokens().is_none()
    };
    config.pools.iter().all(by_headers)
}

fn shows_bodies(plugin: &Plugin) -> bool {
    match plugin.holder {
        Holder::Alone => true,
        Holder::Envoy => {
            let set = field(plugin.object, "allow_on_headers_stop_iteration");
            set.is_some_and(|set| *set == true || set.get("value") == Some(&Value::Bool(true)))
        }
        Holder::Istio | Holder::Gateway => false,
    }
}

/// What happens after a crash, where the holder can say it.
fn failure_policy(plugin: &Plugin) -> Option<String> {
    let (name, default) = match plugin.holder {
        Holder::Envoy => ("failure_policy", "FAIL_CLOSED"),
        Holder::Istio => ("failStrategy", "FAIL_CLOSE"),
        Holder::Alone | Holder::Gateway => return None,
    };
    let set = field(plugin.object, name).and_then(Value::as_str);
    Some(set.unwrap_or(default).to_owned())
}

/// Clusters that the filter names and Envoy does not have.
fn clusters(plugin: &Plugin, config: &Config) -> Vec<Advice> {
    let Some(bootstrap) = plugin.around.bootstrap else {
        return Vec::new();
    };
    let dynamic = field(bootstrap, "dynamic_resources");
    if dynamic.is_some_and(|dynamic| field(dynamic, "cds_config").is_some()) {
        return Vec::new();
    }
    let listed = field(bootstrap, "static_resources").and_then(|it| it.get("clusters"));
    let listed = listed.and_then(Value::as_array).into_iter().flatten();
    let names: Vec<&str> = listed.filter_map(|it| it.get("name")?.as_str()).collect();
    let mut needed = Vec::new();
    for (index, pool) in config.pools.iter().enumerate() {
        let path = format!("pools[{index}]");
        needed.push((
            format!("{path}.cluster"),
            pool.cluster.clone(),
            "to serve the pool",
        ));
        if let Some(options) = pool.policy.kv_aware() {
            let cluster = options.index.cluster.clone();
            needed.push((
                format!("{path}.policy"),
                cluster,
                "to ask who holds a prompt",
            ));
        }
    }
    if let Some(polling) = &config.discovery {
        let why = "to ask Envoy for its endpoints and their health";
        needed.push(("discovery".to_owned(), polling.cluster.clone(), why));
    }
    if let Some(scrape) = &config.scrape {
        let why = "to ask engines for their figures";
        needed.push(("scrape".to_owned(), scrape.polling.cluster.clone(), why));
    }
    needed.retain(|(_, cluster, _)| !names.contains(&cluster.as_str()));
    let advice = needed.into_iter().map(|(path, cluster, why)| {
        let meant = alike(&cluster, names.iter().copied());
        let suggestion = match (meant, path.as_str()) {
            (Some(meant), _) => Some(format!("did you mean `{meant}`?")),
            (None, "discovery" | "scrape") => Some(format!(
                "define it as envoy/static.yaml does, or set `{path}` to \"off\""
            )),
            _ => None,
        };
        Advice {
            rule: "cluster",
            text: format!("Envoy has no cluster `{cluster}` {why}"),
            path,
            suggestion,
        }
    });
    advice.collect()
}

/// Envoy must be able to hold what the filter wants to see.
fn buffer(plugin: &Plugin, config: &Config) -> Option<Advice> {
    let listener = plugin.around.listener?;
    let hold = config.limits.hold_bytes as u64;
    let own = field(listener, "per_connection_buffer_limit_bytes").and_then(Value::as_u64);
    let limit = own
        .unwrap_or(LISTENER_BYTES)
        .max(largest(listener, "request_body_buffer_limit"));
    let needed = if hold > EASY_BYTES {
        hold + SLACK_BYTES
    } else {
        hold
    };
    (limit < needed && !decides_by_headers(config)).then(|| Advice {
        rule: "buffer",
        path: "limits.hold_bytes".to_owned(),
        text: format!(
            "the filter holds up to {hold} bytes, the listener {limit}: Envoy answers 413 to longer bodies; \
             its `per_connection_buffer_limit_bytes` should be at least {needed}"
        ),
        suggestion: None,
    })
}

/// The largest number of a name in a value.
fn largest(value: &Value, name: &str) -> u64 {
    let own = field(value, name).and_then(Value::as_u64).unwrap_or(0);
    let inner: Vec<&Value> = match value {
        Value::Object(map) => map.values().collect(),
        Value::Array(items) => items.iter().collect(),
        _ => Vec::new(),
    };
    inner
        .into_iter()
        .map(|value| largest(value, name))
        .fold(own, u64::max)
}

/// Clients must not steer, also when the filter has failed.
fn early_removal(plugin: &Plugin, config: &Config) -> Option<Advice> {
    let manager = plugin.around.manager?;
    let chain = plugin
        .around
        .chain
        .and_then(|chain| chain.get("name")?.as_str());
    let page = config
        .status
        .as_ref()
        .map(|status| status.filter_chain.as_str());
    if chain.is_some() && chain == page {
        return None;
    }
    let early = field(manager, "early_header_mutation_extensions");
    let early = early
        .map(Value::to_string)
        .unwrap_or_default()
        .to_ascii_lowercase();
    let steering = [&config.headers.destination, &config.headers.cluster];
    let left: Vec<String> = steering
        .into_iter()
        .filter(|name| !early.contains(&format!("{{\"remove\":\"{name}\"}}")))
        .map(|name| format!("`{name}`"))
        .collect();
    (!left.is_empty()).then(|| Advice {
        rule: "early-removal",
        path: String::new(),
        text: format!(
            "`early_header_mutation_extensions` does not remove {}: if the filter fails, clients choose engines by it",
            left.join(" and ")
        ),
        suggestion: None,
    })
}
