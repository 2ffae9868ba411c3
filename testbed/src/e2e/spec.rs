//! What a test's stack is made of: the shipped configuration, and the test's changes to it.
//!
//! Changes are kept as closures and made in a fixed order (engines, plugin, Envoy), because the
//! engines' addresses are known only once they run.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use super::harness::StackEngine;
use crate::engine::{Connector, Disaggregation, EngineConfig, Role};
use crate::envoy::bootstrap::Bootstrap;

type EditEngine = Box<dyn Fn(&mut EngineConfig) + Send + Sync>;
type EditPlugin = Box<dyn Fn(&mut Value) + Send + Sync>;
type EditBootstrap = Box<dyn Fn(&mut Bootstrap) -> anyhow::Result<()> + Send + Sync>;

/// What a test's stack is made of.
pub struct StackSpec {
    /// The shipped configuration to start from, beside the one that the run names; absent, that one.
    pub(super) file: Option<&'static str>,
    pub(super) pools: Vec<PoolSpec>,
    pub(super) workers: Option<u32>,
    pub(super) log_level: String,
    pub(super) trap: bool,
    pub(super) checked: bool,
    pub(super) engine: Vec<EditEngine>,
    pub(super) plugin: Vec<EditPlugin>,
    pub(super) bootstrap: Vec<EditBootstrap>,
}

/// One pool of a stack.
pub(super) struct PoolSpec {
    pub(super) name: String,
    pub(super) engines: usize,
    /// Models of a pool that the shipped configuration does not have.
    pub(super) new_with_models: Option<Vec<String>>,
}

impl StackSpec {
    /// As shipped but for active health checks: pool `llama` with 3 engines, pool `qwen` with 1, answers
    /// without delay.
    pub fn shipped() -> Self {
        let pool = |name: &str, engines| PoolSpec {
            name: name.to_owned(),
            engines,
            new_with_models: None,
        };
        Self {
            file: None,
            pools: vec![pool("llama", 3), pool("qwen", 1)],
            workers: None,
            log_level: "wasm:info".to_owned(),
            trap: false,
            checked: false,
            engine: Vec::new(),
            plugin: Vec::new(),
            bootstrap: Vec::new(),
        }
    }

    /// As shipped for a filter that Envoy reads from a file: from this one, which is written before Envoy
    /// starts.
    pub fn discovered(file: PathBuf) -> Self {
        let spec = Self {
            file: Some("ecds/envoy.yaml"),
            ..Self::shipped()
        };
        spec.bootstrap(move |bootstrap| bootstrap.read_filter_from(&file))
    }

    /// From another of the shipped configurations.
    pub fn with_file(mut self, file: &'static str) -> Self {
        self.file = Some(file);
        self
    }

    /// As shipped for disaggregation but for active health checks: pool `llama-prefill` with 2 engines
    /// and pool `llama`, which decodes, with 2, all with this connector. Prompts of 16 tokens and more
    /// are disaggregated.
    pub fn disaggregated(connector: Connector) -> Self {
        let pool = |name: &str| PoolSpec {
            name: name.to_owned(),
            engines: 2,
            new_with_models: None,
        };
        let shipped = Self::shipped();
        let spec = Self {
            file: Some("disaggregation.yaml"),
            pools: vec![pool("llama"), pool("llama-prefill")],
            ..shipped
        };
        let told = match connector {
            Connector::Nixl => json!("nixl"),
            Connector::P2pNccl => json!({"p2p_nccl": {"port": 21001}}),
            Connector::Mooncake => json!({"mooncake": {"bootstrap_port": 8998}}),
            Connector::Sglang => json!({"sglang": {"bootstrap_port": 8998}}),
        };
        spec.disaggregation("connector", told)
            .disaggregation("min_uncached_tokens", json!(16))
            .engine(move |config| {
                let role = match config.name.starts_with("llama-prefill-") {
                    true => Role::Prefill,
                    false => Role::Decode,
                };
                config.models = vec!["llama-3-8b".to_owned()];
                config.disaggregation = Some(Disaggregation::new(connector, role));
                config.log_bodies = true;
            })
    }

    /// Sets a field of `disaggregation` of pool `llama`.
    pub fn disaggregation(self, field: &str, value: Value) -> Self {
        let field = field.to_owned();
        self.plugin(move |config| {
            let entry = pool_mut(config, "llama").and_then(|pool| pool.get_mut("disaggregation"));
            if let Some(entry) = entry.and_then(Value::as_object_mut) {
                entry.insert(field.clone(), value.clone());
            }
        })
    }

    /// Gives a pool another number of engines.
    pub fn engines(mut self, pool: &str, engines: usize) -> Self {
        for spec in self.pools.iter_mut().filter(|spec| spec.name == pool) {
            spec.engines = engines;
        }
        self
    }

    /// Adds a pool, with a cluster of the same name and policy `least_request`.
    pub fn pool(mut self, name: &str, models: &[&str], engines: usize) -> Self {
        self.pools.push(PoolSpec {
            name: name.to_owned(),
            engines,
            new_with_models: Some(models.iter().map(|&model| model.to_owned()).collect()),
        });
        self
    }

    /// Gives a pool another policy, written as in the configuration.
    pub fn policy(self, pool: &str, policy: Value) -> Self {
        let pool = pool.to_owned();
        self.plugin(move |config| {
            if let Some(entry) = pool_mut(config, &pool) {
                entry.insert("policy".to_owned(), policy.clone());
            }
        })
    }

    /// Runs Envoy with this number of worker threads instead of the one that the run asks for.
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Replaces Envoy's `--component-log-level`.
    pub fn log_level(mut self, level: &str) -> Self {
        self.log_level = level.to_owned();
        self
    }

    /// Changes the configuration of every engine; its `name` is `<pool>-<index>`.
    pub fn engine(mut self, edit: impl Fn(&mut EngineConfig) + Send + Sync + 'static) -> Self {
        self.engine.push(Box::new(edit));
        self
    }

    /// Gives every engine room for prompts of megabytes.
    pub fn with_room(self) -> Self {
        self.engine(|config| {
            config.max_model_tokens = u32::MAX;
            config.params.kv_blocks = 200_000;
        })
    }

    /// Changes the plugin configuration, after the engines' addresses are in it.
    pub fn plugin(mut self, edit: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        self.plugin.push(Box::new(edit));
        self
    }

    /// Sets a field of the plugin configuration.
    pub fn option(self, name: &str, value: Value) -> Self {
        let name = name.to_owned();
        self.plugin(move |config| {
            if let Some(config) = config.as_object_mut() {
                config.insert(name.clone(), value.clone());
            }
        })
    }

    /// Changes Envoy's configuration, as the last step.
    pub fn bootstrap(
        mut self,
        edit: impl Fn(&mut Bootstrap) -> anyhow::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.bootstrap.push(Box::new(edit));
        self
    }

    /// Keeps the shipped active health checks. Without this there are none: on a busy machine their
    /// first verdict would be chance.
    pub fn checked(mut self) -> Self {
        self.checked = true;
        self
    }

    /// Runs the module that crashes when a request asks for it, by the header `x-warmpath-trap`.
    pub fn with_trap(mut self) -> Self {
        self.trap = true;
        self
    }

    /// Sets an option of a pool.
    pub fn pool_option(self, pool: &str, name: &str, value: Value) -> Self {
        let (pool, name) = (pool.to_owned(), name.to_owned());
        self.plugin(move |config| {
            if let Some(entry) = pool_mut(config, &pool) {
                entry.insert(name.clone(), value.clone());
            }
        })
    }

    /// Asks engines and Envoy what they know at this interval.
    pub fn polling(self, interval_ms: u64) -> Self {
        self.option("discovery", json!({"admin": {"interval_ms": interval_ms}}))
            .option("scrape", json!({"metrics": {"interval_ms": interval_ms}}))
    }

    /// Takes the filter out: the stack is plain Envoy.
    pub fn without_filter(self) -> Self {
        self.bootstrap(Bootstrap::remove_plugin)
    }
}

/// The entry of a pool in a plugin configuration.
pub fn pool_mut<'a>(config: &'a mut Value, pool: &str) -> Option<&'a mut Map<String, Value>> {
    config
        .get_mut("pools")?
        .as_array_mut()?
        .iter_mut()
        .find(|entry| entry.get("name").and_then(Value::as_str) == Some(pool))?
        .as_object_mut()
}

/// Adds a pool without endpoints to a plugin configuration.
pub(super) fn add_pool(plugin: &mut Value, name: &str, models: &[String]) -> anyhow::Result<()> {
    let pools = plugin.get_mut("pools").and_then(Value::as_array_mut);
    pools
        .context("no pools in the plugin configuration")?
        .push(json!({
            "name": name, "cluster": name, "models": models, "policy": "least_request",
        }));
    Ok(())
}

/// The same of engines, with the labels that say how to reach their connectors.
pub(super) fn labelled_endpoints(engines: &[StackEngine]) -> Value {
    let list: Vec<_> = engines
        .iter()
        .map(|it| match it.engine.kv_addr() {
            None => json!({"address": it.address.to_string()}),
            Some(kv) => json!({
                "address": it.address.to_string(),
                "labels": {
                    "kv_addr": kv.to_string(),
                    "bootstrap_host": kv.ip().to_string(),
                    "bootstrap_port": kv.port().to_string(),
                },
            }),
        })
        .collect();
    json!({ "static": list })
}

/// The `endpoints` entry of a pool.
pub fn static_endpoints(addresses: &[SocketAddr]) -> Value {
    let list: Vec<_> = addresses
        .iter()
        .map(|address| json!({"address": address.to_string()}))
        .collect();
    json!({ "static": list })
}
