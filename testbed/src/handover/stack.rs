//! A prefill engine, a decode engine, and two Envoys in front of them: one with the filter, one without.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::Args;
use crate::bench::process::pin_this_thread;
use crate::e2e::client::Client;
use crate::engine::{Connector, Disaggregation, Engine, EngineConfig, Role};
use crate::envoy::bootstrap::{Addresses, Bootstrap};
use crate::envoy::{Envoy, Launch};
use crate::subject::existing;

/// Their clusters, and warmpath's pools.
pub(super) const DECODE: &str = "llama";
pub(super) const PREFILL: &str = "llama-prefill";
/// The header that names a cluster, as the filter sets it.
pub(super) const CLUSTER: &str = "x-warmpath-cluster";

/// See the module documentation.
pub(super) struct Stack {
    pub(super) prefill: Engine,
    pub(super) decode: Engine,
    /// A client of the Envoy with the filter.
    pub(super) routed: Client,
    /// A client of the other.
    pub(super) bare: Client,
    _envoys: [Envoy; 2],
}

impl Stack {
    pub(super) async fn start(args: &Args, connector: Connector) -> anyhow::Result<Self> {
        let prefill = engine(PREFILL, connector, Role::Prefill).await?;
        let decode = engine(DECODE, connector, Role::Decode).await?;
        let config = existing(&args.subject.config)?;
        let configure = || -> anyhow::Result<Bootstrap> {
            let mut bootstrap = Bootstrap::load(&config)?;
            bootstrap.set_addresses(Addresses::free()?)?;
            bootstrap.stop_health_checks()?;
            bootstrap.set_endpoints(PREFILL, &[prefill.addr()])?;
            bootstrap.set_endpoints(DECODE, &[decode.addr()])?;
            Ok(bootstrap)
        };
        let mut routed = configure()?;
        routed.set_module(&existing(&args.subject.module)?);
        let plugin = plugin(connector, &prefill, &decode).to_string();
        routed.set_plugin_text(&plugin);
        let mut bare = configure()?;
        bare.remove_plugin()?;
        // There the client names the cluster, by the header that is the filter's otherwise.
        let manager = bare.connection_manager_mut()?.as_object_mut();
        let manager = manager.context("no connection manager")?;
        manager.remove("early_header_mutation_extensions");
        Ok(Self {
            routed: Client::new(routed.addresses()?.listener)?,
            bare: Client::new(bare.addresses()?.listener)?,
            _envoys: [launch(args, routed).await?, launch(args, bare).await?],
            prefill,
            decode,
        })
    }

    /// Where the prefill engine's connector is found.
    pub(super) fn bootstrap(&self) -> anyhow::Result<SocketAddr> {
        self.prefill.kv_addr().context("no connector")
    }

    /// Every prompt went from the one engine to the other.
    pub(super) fn confirm(&self) -> anyhow::Result<()> {
        for engine in [&self.prefill, &self.decode] {
            let errors = engine.kv_errors();
            ensure!(errors.is_empty(), "{}: {errors:?}", engine.name());
            let log = engine.log();
            let alone = log.iter().filter(|seen| seen.kv.part.is_none()).count();
            ensure!(alone == 0, "{}: {alone} requests without KV", engine.name());
        }
        Ok(())
    }
}

async fn engine(name: &str, connector: Connector, role: Role) -> anyhow::Result<Engine> {
    Engine::start(EngineConfig {
        name: name.to_owned(),
        time_scale: 0.0,
        disaggregation: Some(Disaggregation::new(connector, role)),
        ..EngineConfig::default()
    })
    .await
}

async fn launch(args: &Args, bootstrap: Bootstrap) -> anyhow::Result<Envoy> {
    let launch = Launch {
        binary: existing(&args.subject.envoy)?,
        bootstrap,
        concurrency: 1,
        component_log_level: String::new(),
    };
    // Envoy inherits the CPU of the thread that starts it, for all its threads.
    let cpus = args.cpus.pair();
    if let Some((router_cpu, _)) = cpus {
        pin_this_thread(router_cpu)?;
    }
    let envoy = Envoy::start(launch).await;
    if let Some((_, load_cpu)) = cpus {
        pin_this_thread(load_cpu)?;
    }
    envoy
}

fn plugin(connector: Connector, prefill: &Engine, decode: &Engine) -> Value {
    let endpoint = |engine: &Engine| {
        let kv = engine.kv_addr().map(|kv| {
            json!({
                "kv_addr": kv.to_string(),
                "bootstrap_host": kv.ip().to_string(),
                "bootstrap_port": kv.port().to_string(),
            })
        });
        json!({"static": [{"address": engine.addr().to_string(), "labels": kv}]})
    };
    let connector = match connector {
        Connector::Nixl => json!("nixl"),
        Connector::P2pNccl => json!({"p2p_nccl": {}}),
        Connector::Mooncake => json!({"mooncake": {}}),
        Connector::Sglang => json!({"sglang": {}}),
    };
    let policy = json!({"prefix": {"kv_tokens": 400_000}});
    json!({
        "pools": [
            {
                "name": DECODE,
                "cluster": DECODE,
                "models": ["llama-3-8b"],
                "endpoints": endpoint(decode),
                "policy": policy,
                "disaggregation": {"prefill_pool": PREFILL, "connector": connector},
            },
            {
                "name": PREFILL,
                "cluster": PREFILL,
                "endpoints": endpoint(prefill),
                "policy": policy,
            },
        ],
    })
}
