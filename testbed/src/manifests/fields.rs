//! The fields that the manifests use of kinds which no CRD file describes: those of Kubernetes itself
//! and of the Gateway API.
//!
//! A list of what is there and allowed, written from their references: a field that is not in it is a
//! misspelling, or belongs here. `[]` stands for each item of a list, `*` for any key of a map.

use std::collections::BTreeSet;

use serde_json::Value;

use super::strict;

/// Of every kind.
const METADATA: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata.name",
    "metadata.namespace",
    "metadata.labels.*",
    "metadata.annotations.*",
];

const DEPLOYMENT: &[&str] = &[
    "spec.replicas",
    "spec.selector.matchLabels.*",
    "spec.strategy.rollingUpdate.maxSurge",
    "spec.strategy.rollingUpdate.maxUnavailable",
    "spec.template.metadata.labels.*",
    "spec.template.spec.automountServiceAccountToken",
    "spec.template.spec.terminationGracePeriodSeconds",
    "spec.template.spec.containers[].name",
    "spec.template.spec.containers[].image",
    "spec.template.spec.containers[].command[]",
    "spec.template.spec.containers[].args[]",
    "spec.template.spec.containers[].ports[].name",
    "spec.template.spec.containers[].ports[].containerPort",
    "spec.template.spec.containers[].readinessProbe.tcpSocket.port",
    "spec.template.spec.containers[].livenessProbe.tcpSocket.port",
    "spec.template.spec.containers[].startupProbe.httpGet.path",
    "spec.template.spec.containers[].startupProbe.httpGet.port",
    "spec.template.spec.containers[].startupProbe.periodSeconds",
    "spec.template.spec.containers[].startupProbe.failureThreshold",
    "spec.template.spec.containers[].readinessProbe.httpGet.path",
    "spec.template.spec.containers[].readinessProbe.httpGet.port",
    "spec.template.spec.containers[].readinessProbe.periodSeconds",
    "spec.template.spec.containers[].readinessProbe.timeoutSeconds",
    "spec.template.spec.containers[].readinessProbe.failureThreshold",
    "spec.template.spec.containers[].livenessProbe.httpGet.path",
    "spec.template.spec.containers[].livenessProbe.httpGet.port",
    "spec.template.spec.containers[].livenessProbe.periodSeconds",
    "spec.template.spec.containers[].livenessProbe.timeoutSeconds",
    "spec.template.spec.containers[].livenessProbe.failureThreshold",
    "spec.template.spec.containers[].lifecycle.preStop.exec.command[]",
    "spec.template.spec.containers[].resources.requests.*",
    "spec.template.spec.containers[].resources.limits.*",
    "spec.template.spec.containers[].volumeMounts[].name",
    "spec.template.spec.containers[].volumeMounts[].mountPath",
    "spec.template.spec.volumes[].name",
    "spec.template.spec.volumes[].configMap.name",
    "spec.template.spec.volumes[].emptyDir.medium",
    "spec.template.spec.volumes[].emptyDir.sizeLimit",
];

const SERVICE: &[&str] = &[
    "spec.clusterIP",
    "spec.selector.*",
    "spec.ports[].name",
    "spec.ports[].port",
    "spec.ports[].targetPort",
    "spec.ports[].appProtocol",
];

const NETWORK_POLICY: &[&str] = &[
    "spec.podSelector.matchLabels.*",
    "spec.policyTypes[]",
    "spec.ingress[].from[].namespaceSelector.matchLabels.*",
    "spec.ingress[].from[].podSelector.matchLabels.*",
    "spec.ingress[].ports[].protocol",
    "spec.ingress[].ports[].port",
];

const DISRUPTION_BUDGET: &[&str] = &["spec.maxUnavailable", "spec.selector.matchLabels.*"];

const GATEWAY_CLASS: &[&str] = &[
    "spec.controllerName",
    "spec.parametersRef.group",
    "spec.parametersRef.kind",
    "spec.parametersRef.name",
    "spec.parametersRef.namespace",
];

const GATEWAY: &[&str] = &[
    "spec.gatewayClassName",
    "spec.infrastructure.annotations.*",
    "spec.listeners[].name",
    "spec.listeners[].port",
    "spec.listeners[].protocol",
    "spec.listeners[].allowedRoutes.namespaces.from",
];

const HTTP_ROUTE: &[&str] = &[
    "spec.parentRefs[].name",
    "spec.rules[].matches[].path.type",
    "spec.rules[].matches[].path.value",
    "spec.rules[].matches[].headers[].type",
    "spec.rules[].matches[].headers[].name",
    "spec.rules[].matches[].headers[].value",
    "spec.rules[].timeouts.request",
    "spec.rules[].backendRefs[].name",
    "spec.rules[].backendRefs[].port",
];

/// What is allowed of a kind; nothing if the kind is not known here.
fn allowed(document: &Value) -> Option<&'static [&'static str]> {
    let (version, kind) = strict::kind(document);
    Some(match (version.as_str(), kind.as_str()) {
        ("v1", "Namespace") => &[],
        ("v1", "ConfigMap") => &["data.*"],
        ("v1", "Service") => SERVICE,
        ("apps/v1", "Deployment") => DEPLOYMENT,
        ("networking.k8s.io/v1", "NetworkPolicy") => NETWORK_POLICY,
        ("policy/v1", "PodDisruptionBudget") => DISRUPTION_BUDGET,
        ("gateway.networking.k8s.io/v1", "GatewayClass") => GATEWAY_CLASS,
        ("gateway.networking.k8s.io/v1", "Gateway") => GATEWAY,
        ("gateway.networking.k8s.io/v1", "HTTPRoute") => HTTP_ROUTE,
        _ => return None,
    })
}

/// The fields of a document that its kind does not have; nothing if the kind is not known here.
pub fn mistakes(document: &Value) -> Option<Vec<String>> {
    let allowed = allowed(document)?;
    let mut used = BTreeSet::new();
    collect(document, "", &mut used);
    let is_allowed = |field: &String| METADATA.iter().chain(allowed).any(|it| matches(it, field));
    let unknown = used.into_iter().filter(|field| !is_allowed(field));
    Some(
        unknown
            .map(|field| format!("{field}: no such field"))
            .collect(),
    )
}

/// The paths of all leaves. A key of a map with labels may hold dots, so keys are not split again.
fn collect(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                collect(value, &format!("{path}{dot}{name}"), found);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                collect(item, &format!("{path}[]"), found);
            }
        }
        // An empty object is what it stands for: `emptyDir: {}`.
        Value::Object(_) => {
            found.insert(format!("{path}."));
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

fn matches(allowed: &str, field: &str) -> bool {
    if field.ends_with('.') {
        return allowed.starts_with(field);
    }
    match allowed.strip_suffix('*') {
        Some(map) => field.strip_prefix(map).is_some_and(|key| !key.is_empty()),
        None => allowed == field,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_field_that_the_kind_does_not_have_is_found() {
        let service = |port: Value| {
            json!({"apiVersion": "v1", "kind": "Service",
                   "metadata": {"name": "a", "labels": {"app.kubernetes.io/name": "a"}},
                   "spec": {"ports": [port]}})
        };
        let right = service(json!({"name": "http", "targetPort": "http"}));
        assert_eq!(mistakes(&right), Some(vec![]));
        let wrong = mistakes(&service(json!({"name": "http", "targetport": "http"})));
        assert_eq!(wrong.unwrap(), ["spec.ports[].targetport: no such field"]);
    }

    #[test]
    fn empty_objects_count_and_other_kinds_do_not() {
        let volume = |volume: Value| {
            json!({"apiVersion": "apps/v1", "kind": "Deployment",
                   "spec": {"template": {"spec": {"volumes": [volume]}}}})
        };
        assert_eq!(mistakes(&volume(json!({"emptyDir": {}}))), Some(vec![]));
        assert_eq!(mistakes(&volume(json!({"emtyDir": {}}))).unwrap().len(), 1);
        assert!(mistakes(&json!({"apiVersion": "v2", "kind": "Service"})).is_none());
    }
}
