//! A second pool behind the same gateway, as the pages on deployment have it: a rule of the route that
//! matches the header with which the filter names a cluster.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::sample::{items, one};
use super::{MODEL, OTHER, Overlay, ready, send, start};
use crate::e2e::client::Call;
use crate::e2e::conversation::text;
use crate::e2e::harness::Context;
use crate::e2e::workers::seed;

/// A second pool, by a rule with a header, as the pages on deployment have it.
pub(super) async fn routes_to_a_second_pool(
    context: &Context,
    overlay: Overlay,
) -> anyhow::Result<()> {
    let (stack, _folder) = start(context, overlay, |documents| {
        second_pool(overlay, documents)
    })
    .await?;
    ready(&stack, OTHER, &[("pool", "second")]).await?;
    for number in 0..6 {
        let (model, pool) = match number % 2 {
            0 => (MODEL, "llama"),
            _ => (OTHER, "qwen"),
        };
        let reply = send(&stack, Call::chat(model, &text(seed(), 1000))).await?;
        let name = stack.answered_by(&reply)?;
        ensure!(name.pool == pool, "{model} is answered by {}", name.name);
    }
    Ok(())
}

/// Adds a Service `second` for another model: a rule of the route, and a pool of the filter.
fn second_pool(overlay: Overlay, documents: &mut [Value]) -> anyhow::Result<()> {
    let namespace = one(documents, "Namespace")?
        .pointer("/metadata/name")
        .cloned();
    let namespace = namespace.and_then(|it| it.as_str().map(str::to_owned));
    let namespace = namespace.context("no namespace")?;
    let cluster = match overlay {
        Overlay::Istio(_) => format!("outbound|8000||second.{namespace}.svc.cluster.local"),
        Overlay::EnvoyGateway(..) => format!("httproute/{namespace}/inference/rule/1"),
    };
    let rule = json!({
        "matches": [{
            "path": {"type": "PathPrefix", "value": "/"},
            "headers": [{"type": "Exact", "name": "x-warmpath-cluster", "value": cluster}],
        }],
        "timeouts": {"request": "0s"},
        "backendRefs": [{"name": "second", "port": 8000}],
    });
    let pool = json!({
        "name": "second", "cluster": cluster, "models": [OTHER], "endpoints": "envoy", "policy": "prefix",
    });
    let mut pools = 0;
    for document in documents.iter_mut() {
        if let Some(rules) = document
            .pointer_mut("/spec/rules")
            .and_then(Value::as_array_mut)
        {
            rules.push(rule.clone());
        }
        pools += usize::from(add_pool(document, &pool)?);
        repeat_cluster_patch(document, &namespace);
    }
    ensure!(pools == 1, "{pools} plugin configurations");
    Ok(())
}

/// Adds a pool to a plugin configuration, wherever it stands in a document; says whether there is one.
fn add_pool(document: &mut Value, pool: &Value) -> anyhow::Result<bool> {
    let add = |config: &mut Value| {
        let pools = config.get_mut("pools").and_then(Value::as_array_mut);
        pools.context("no pools")?.push(pool.clone());
        anyhow::Ok(())
    };
    if let Some(config) = document.pointer_mut("/spec/wasm/0/config") {
        add(config)?;
        return Ok(true);
    }
    let pointer = "/spec/configPatches/0/patch/value/typed_config/config/configuration/value";
    let Some(text) = document.pointer_mut(pointer) else {
        return Ok(false);
    };
    let mut config = serde_json::from_str(text.as_str().context("no text")?)?;
    add(&mut config)?;
    *text = config.to_string().into();
    Ok(true)
}

/// In Istio the cluster of each Service is patched by itself.
fn repeat_cluster_patch(document: &mut Value, namespace: &str) {
    let first =
        items(document, "/spec/configPatches").find(|it| it.pointer("/match/cluster").is_some());
    let Some(mut repeated) = first.cloned() else {
        return;
    };
    if let Some(service) = repeated.pointer_mut("/match/cluster/service") {
        *service = format!("second.{namespace}.svc.cluster.local").into();
    }
    let patches = document
        .pointer_mut("/spec/configPatches")
        .and_then(Value::as_array_mut);
    if let Some(patches) = patches {
        patches.push(repeated);
    }
}
