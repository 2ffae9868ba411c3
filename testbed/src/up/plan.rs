//! Which engines to run, read from the plugin configuration.
//!
//! Only what the stack needs is read; whether the configuration is right is the filter's to say.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::engine::EngineConfig;

/// The stack that a plugin configuration describes.
#[derive(Debug)]
pub struct Plan {
    /// Engines, pool by pool.
    pub engines: Vec<PlannedEngine>,
    /// The first model of each pool, in order.
    pub models: Vec<String>,
    /// The first alias and the model it stands for.
    pub alias: Option<(String, String)>,
}

/// An engine to be started.
#[derive(Debug)]
pub struct PlannedEngine {
    /// `<pool>-<index>`.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    models: Vec<String>,
}

impl PlannedEngine {
    /// How to start it.
    pub fn config(&self, time_scale: f64) -> EngineConfig {
        EngineConfig {
            name: self.name.clone(),
            models: self.models.clone(),
            listen: self.address,
            time_scale,
            ..EngineConfig::default()
        }
    }
}

#[derive(Deserialize)]
struct Plugin {
    pools: Vec<Pool>,
}

#[derive(Deserialize)]
struct Pool {
    name: String,
    #[serde(default)]
    models: Vec<String>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    endpoints: Endpoints,
}

#[derive(Deserialize)]
struct Endpoints {
    #[serde(rename = "static")]
    list: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    address: SocketAddr,
}

impl Plan {
    /// Reads a plugin configuration. Fails if a pool has no static endpoints on this machine.
    pub fn of(plugin: &Value) -> anyhow::Result<Self> {
        let plugin = Plugin::deserialize(plugin)
            .context("this stack needs pools with static endpoints in the plugin configuration")?;
        let mut plan = Self {
            engines: Vec::new(),
            models: Vec::new(),
            alias: None,
        };
        for pool in plugin.pools {
            plan.models.extend(pool.models.first().cloned());
            plan.alias = plan.alias.or_else(|| pool.aliases.into_iter().next());
            for (index, endpoint) in pool.endpoints.list.iter().enumerate() {
                let address = endpoint.address;
                ensure!(
                    address.ip().is_loopback(),
                    "{address} of pool {} is not on this machine: engines can be started on 127.0.0.1 only",
                    pool.name
                );
                plan.engines.push(PlannedEngine {
                    name: format!("{}-{index}", pool.name),
                    address,
                    models: pool.models.clone(),
                });
            }
        }
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_endpoint_becomes_an_engine_with_the_models_of_its_pool() {
        let plan = Plan::of(&json!({"pools": [
            {"name": "a", "models": ["m", "n"], "aliases": {"x": "m"},
             "endpoints": {"static": [{"address": "127.0.0.1:1"}, {"address": "127.0.0.1:2"}]}},
            {"name": "b", "models": ["o"], "endpoints": {"static": [{"address": "127.0.0.1:3"}]}},
        ]}))
        .unwrap();
        let engines: Vec<_> = plan
            .engines
            .iter()
            .map(|engine| {
                (
                    engine.name.as_str(),
                    engine.address.port(),
                    engine.models.len(),
                )
            })
            .collect();
        assert_eq!(engines, [("a-0", 1, 2), ("a-1", 2, 2), ("b-0", 3, 1)]);
        assert_eq!(plan.models, ["m", "o"]);
        assert_eq!(plan.alias, Some(("x".to_owned(), "m".to_owned())));
    }

    #[test]
    fn engines_of_other_machines_are_refused() {
        let elsewhere = json!({"pools": [
            {"name": "a", "endpoints": {"static": [{"address": "192.0.2.7:1"}]}},
        ]});
        assert!(
            Plan::of(&elsewhere)
                .unwrap_err()
                .to_string()
                .contains("192.0.2.7:1")
        );
    }
}
