//! A configuration with mistakes: Envoy does not start, and its log names each of them.

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::harness::{Context, Stack, StackSpec};
use super::{Case, named};

pub(super) fn cases() -> Vec<Case> {
    named!("refusals":
        every_mistake_is_named_at_once,
        what_is_no_json_is_refused,
    )
}

/// Why a stack does not start; an error if it does.
async fn refusal(context: &Context, spec: StackSpec) -> anyhow::Result<String> {
    let error = Stack::start(context, spec).await.err();
    Ok(format!(
        "{:#}",
        error.context("Envoy took the configuration")?
    ))
}

async fn every_mistake_is_named_at_once(context: &Context) -> anyhow::Result<()> {
    let spec = StackSpec::shipped().plugin(|config| {
        *config = json!({
            "pools": [
                {
                    "name": "llama",
                    "models": ["llama-3-8b", 7],
                    "endpoints": {"static": [
                        {"address": "127.0.0.1:8001"},
                        {"address": "engine.example:8002"},
                    ]},
                    "policy": "fastest",
                },
                {"name": "llama", "endpoints": {"static": []}, "polcy": "random"},
            ],
            "default_pool": "mistral",
            "limits": {"hold_bytes": -1},
            "session_key": [{"query": "user"}],
        });
    });
    let log = refusal(context, spec).await?;
    for path in [
        "config.pools[0].models[1]",
        "config.pools[0].endpoints.static[1].address",
        "config.pools[0].policy",
        "config.pools[1].polcy",
        "config.limits.hold_bytes",
        "config.session_key[0]",
    ] {
        ensure!(
            log.contains(&format!("refused: {path}: got ")),
            "{path} is not in {log}"
        );
    }
    Ok(())
}

async fn what_is_no_json_is_refused(context: &Context) -> anyhow::Result<()> {
    let spec = StackSpec::shipped().bootstrap(|bootstrap| {
        bootstrap.set_plugin_text(r#"{"pools": [}"#);
        Ok(())
    });
    let log = refusal(context, spec).await?;
    ensure!(log.contains("refused: config: got "), "{log}");
    Ok(())
}
