//! What Envoy's configuration says of single endpoints: roles divide a cluster between pools, labels
//! and models are taken from there.

use std::net::SocketAddr;

use anyhow::ensure;
use serde_json::{Value, json};

use super::client::Call;
use super::harness::{Context, Stack, StackSpec, eventually, pool_mut};
use super::status::{at, facts};
use super::{Case, named};
use crate::envoy::files::write_described_endpoints;

pub(super) fn cases() -> Vec<Case> {
    named!("roles":
        two_pools_share_a_cluster_by_role,
        models_come_with_endpoints,
    )
}

const MODELS: [&str; 2] = ["llama-3-8b", "qwen-2.5-7b"];

/// The names of the engines that answer for a model, in 6 requests; none when nobody can, or when Envoy itself
/// chose among those that the filter does not know yet.
async fn answering(stack: &Stack<'_>, model: &str) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for _ in 0..6 {
        let reply = stack.send(Call::chat(model, "hello")).await?;
        if !reply.is_decided() {
            continue;
        }
        names.push(stack.answered_by(&reply.expect_status(200)?)?.name.clone());
    }
    names.sort();
    names.dedup();
    Ok(names)
}

async fn answers(stack: &Stack<'_>, model: &str, want: &[&str]) -> anyhow::Result<()> {
    eventually(&format!("{model} is served by {want:?}"), async || {
        Ok((answering(stack, model).await? == want).then_some(()))
    })
    .await
}

async fn two_pools_share_a_cluster_by_role(context: &Context) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("endpoints.json");
    let set =
        |endpoints: &[(SocketAddr, Value)]| write_described_endpoints(&file, "llama", endpoints);
    set(&[])?;
    let read_from = file.clone();
    let spec = StackSpec::shipped()
        .polling(100)
        .engine(|config| config.models = MODELS.map(str::to_owned).into())
        .plugin(|config| {
            for (name, role) in [("llama", "decode"), ("qwen", "prefill")] {
                if let Some(pool) = pool_mut(config, name) {
                    pool.insert("cluster".to_owned(), "llama".into());
                    pool.insert("policy".to_owned(), "round_robin".into());
                    pool.insert("endpoints".to_owned(), json!({"envoy": {"role": role}}));
                }
            }
        })
        .bootstrap(move |bootstrap| bootstrap.read_endpoints_from("llama", &read_from));
    let stack = Stack::start(context, spec).await?;
    let engines: Vec<SocketAddr> = stack.pool("llama").map(|it| it.address).collect();
    let described = |roles: [Value; 3]| -> Vec<(SocketAddr, Value)> {
        engines.iter().copied().zip(roles).collect()
    };
    let role = |role: &str| json!({"role": role, "labels": {"kv_addr": "127.0.0.1:9"}});
    set(&described([
        role("decode"),
        role("decode"),
        role("prefill"),
    ]))?;
    answers(&stack, "llama-3-8b", &["llama-0", "llama-1"]).await?;
    answers(&stack, "qwen-2.5-7b", &["llama-2"]).await?;
    let shown = facts(&stack).await?;
    for (pool, role, count) in [(0, "decode", 2), (1, "prefill", 1)] {
        let rows = at(&shown, &format!("/pools/{pool}/endpoints")).as_array();
        let rows = rows.cloned().unwrap_or_default();
        ensure!(rows.len() == count, "{shown}");
        ensure!(rows.iter().all(|row| at(row, "/role") == role), "{shown}");
    }
    set(&described([role("decode"), role("prefill"), Value::Null]))?;
    answers(&stack, "llama-3-8b", &["llama-0"]).await?;
    answers(&stack, "qwen-2.5-7b", &["llama-1"]).await?;
    set(&described([
        role("neither"),
        role("prefill"),
        role("prefill"),
    ]))?;
    answers(&stack, "llama-3-8b", &[]).await?;
    answers(&stack, "qwen-2.5-7b", &["llama-1", "llama-2"]).await
}

async fn models_come_with_endpoints(context: &Context) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("endpoints.json");
    write_described_endpoints(&file, "llama", &[])?;
    let read_from = file.clone();
    let spec = StackSpec::shipped()
        .polling(100)
        .engine(|config| {
            config.models.push("sql-lora".to_owned());
        })
        .plugin(|config| {
            if let Some(pool) = pool_mut(config, "llama") {
                let metadata = json!({"envoy": {"metadata": true}});
                pool.insert("endpoints".to_owned(), metadata);
                pool.insert("policy".to_owned(), "round_robin".into());
            }
        })
        .bootstrap(move |bootstrap| bootstrap.read_endpoints_from("llama", &read_from));
    let stack = Stack::start(context, spec).await?;
    let engines = stack.pool("llama").map(|engine| engine.address);
    let models = [
        json!(["llama-3-8b", "sql-lora"]),
        json!("llama-3-8b"),
        json!("other"),
    ];
    let described = engines.zip(models.map(|models| json!({"models": models})));
    write_described_endpoints(&file, "llama", &described.collect::<Vec<_>>())?;
    answers(&stack, "llama-3-8b", &["llama-0", "llama-1"]).await?;
    answers(&stack, "sql-lora", &["llama-0"]).await
}
