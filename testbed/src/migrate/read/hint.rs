//! What to do where Kubernetes finds the engines: text, since the cluster's objects are not ours to make.

use crate::migrate::flag::Given;

/// For `--service-discovery k8s` of production-stack.
pub fn of_production_stack(given: &Given) -> String {
    let namespace = given.text_or_default("k8s-namespace");
    let port = whole(given, "k8s-port");
    let selector = given.text_or_default("k8s-label-selector");
    let selector = selector.split(',').map(str::to_owned).collect::<Vec<_>>();
    hint(namespace, &port, &[("vllm-engines", selector)], "--engine")
}

/// For `--service-discovery` of vllm-project/router.
pub fn of_vllm_router(given: &Given) -> String {
    let namespace = given
        .text("service-discovery-namespace")
        .unwrap_or("default");
    let port = whole(given, "service-discovery-port");
    if !given.has("vllm-pd-disaggregation") {
        let services = [("vllm-engines", given.texts("selector"))];
        return hint(namespace, &port, &services, "--engine");
    }
    let services = [
        ("vllm-prefill", given.texts("prefill-selector")),
        ("vllm-decode", given.texts("decode-selector")),
    ];
    hint(
        namespace,
        &port,
        &services,
        "--prefill and --decode of the command line",
    )
}

fn whole(given: &Given, name: &str) -> String {
    let default = given.text_or_default(name);
    given
        .whole(name)
        .map_or(default.to_owned(), |port| port.to_string())
}

fn hint(namespace: &str, port: &str, services: &[(&str, Vec<String>)], option: &str) -> String {
    let mut text = String::from(
        "engines are found in Kubernetes. The filter does not ask it: Envoy does, by DNS, or by EDS from \
         Istio or Envoy Gateway (docs/migrate.md, Kubernetes). For DNS make a headless service",
    );
    text.push_str(":\n");
    for (name, selector) in services {
        let labels = selector.iter().filter_map(|label| label.split_once('='));
        let labels: Vec<_> = labels
            .map(|(key, value)| format!("{}: {:?}", key.trim(), value.trim()))
            .collect();
        text.push_str(&format!(
            "\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
             clusterIP: None\n  selector: {{{}}}\n  ports: [{{port: {port}}}]\n",
            labels.join(", ")
        ));
    }
    text.push_str(&format!("\nand name it by {option}:\n"));
    for (name, _) in services {
        text.push_str(&format!(
            "\n  http://{name}.{namespace}.svc.cluster.local:{port}"
        ));
    }
    text
}
