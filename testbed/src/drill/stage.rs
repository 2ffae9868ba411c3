//! Where faults are drilled: four engines of a fast model behind an Envoy as it is shipped.
//!
//! One idea: most faults strike one stage after the other, as they would a long running router. Those
//! that need another way to configure Envoy (endpoints or the filter in a file, the module that can
//! crash) have a stage of their own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Plan;
use super::corpus::Corpus;

use crate::e2e::client::{Call, Client};
use crate::e2e::harness::{Context, Stack, StackEngine, StackSpec, eventually};
use crate::e2e::workers::Workers;
use crate::engine::EngineConfig;
use crate::envoy::files::write_endpoints;
use crate::envoy::stats;
use crate::relay::Relay;

/// Engines of the pool that is drilled.
pub(super) const ENGINES: usize = 4;
/// The pool and its cluster.
pub(super) const POOL: &str = "llama";
/// Real seconds per modelled second: a step takes half a millisecond.
const TIME_SCALE: f64 = 0.05;
/// Requests that an engine's log keeps.
const LOGGED: usize = 20_000;
/// How long something may take that must happen.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// How Envoy is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// As shipped.
    Shipped,
    /// As shipped, with the module that crashes on request.
    Trap,
    /// The filter is read from a file (ECDS).
    FilterFile,
    /// Endpoints are read from a file (EDS), and the filter learns them from Envoy.
    EndpointFile,
}

/// A running stage.
pub(super) struct Stage<'a> {
    /// Engines and Envoy.
    pub(super) stack: Stack<'a>,
    /// Between the filter and Envoy's admin interface.
    pub(super) admin: Relay,
    /// What clients ask.
    pub(super) corpus: Arc<Corpus>,
    folder: TempDir,
    pinned: Option<Workers>,
}

impl<'a> Stage<'a> {
    /// Starts engines and Envoy, and fills the engines' caches.
    pub(super) async fn start(
        context: &'a Context,
        kind: Kind,
        plan: &Plan,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let admin = Relay::start().await?;
        let (address, target) = (admin.address(), admin.target());
        let mut spec = StackSpec::shipped()
            .engines(POOL, ENGINES)
            .policy(POOL, json!("prefix"))
            .checked()
            .engine(fast)
            .bootstrap(move |bootstrap| {
                *target.lock() = Some(bootstrap.addresses()?.admin);
                bootstrap.set_endpoints("prometheus_stats", &[address])
            });
        if plan.quick {
            spec = hurried(spec);
        }
        let file = folder.path().join("resource.json");
        spec = match kind {
            Kind::Shipped => spec,
            Kind::Trap => spec.with_trap(),
            Kind::FilterFile => spec.bootstrap(move |it| it.read_filter_from(&file)),
            Kind::EndpointFile => {
                write_endpoints(&file, POOL, &[])?;
                spec.pool_option(POOL, "endpoints", json!("envoy"))
                    .bootstrap(move |bootstrap| {
                        let assigned = bootstrap.cluster_mut(POOL)?.get("load_assignment");
                        let engines = addresses(assigned)?;
                        write_endpoints(&file, POOL, &engines)?;
                        bootstrap.read_endpoints_from(POOL, &file)
                    })
            }
        };
        let mut stage = Self {
            stack: Stack::start(context, spec).await?,
            admin,
            corpus: Arc::new(Corpus::new(plan.seed)),
            folder,
            pinned: None,
        };
        if kind == Kind::Trap {
            stage.pinned = Some(Workers::reach(&stage.stack).await?);
        }
        for number in 0..stage.corpus.len() {
            let call = stage.corpus.document(number)?;
            stage.stack.send(call).await?.expect_status(200)?;
        }
        Ok(stage)
    }

    /// The file of what this kind of stage reads from a file.
    pub(super) fn file(&self) -> PathBuf {
        self.folder.path().join("resource.json")
    }

    /// Clients with connections of their own.
    pub(super) fn clients(&self, count: usize) -> anyhow::Result<Vec<Client>> {
        let target = self.stack.client().target();
        (0..count).map(|_| Client::new(target)).collect()
    }

    /// A client of each worker, where workers crash.
    pub(super) fn pinned(&self) -> anyhow::Result<&Workers> {
        self.pinned.as_ref().context("no clients of workers here")
    }

    /// Clients that stay each with one worker: that of its number, modulo the number of workers.
    pub(super) fn pinned_clients(&self, count: usize) -> anyhow::Result<Vec<Client>> {
        let workers = self.pinned()?;
        (0..count).map(|it| workers.client(it).cloned()).collect()
    }

    /// The engine of this number.
    pub(super) fn engine(&self, number: usize) -> anyhow::Result<&StackEngine> {
        self.stack.engine(&name(number))
    }

    /// Kills an engine.
    pub(super) async fn kill(&self, number: usize) -> anyhow::Result<()> {
        self.engine(number)?.engine.kill().await;
        Ok(())
    }

    /// Starts an engine that was killed.
    pub(super) async fn restart(&mut self, number: usize) -> anyhow::Result<()> {
        let name = name(number);
        let mut engines = self.stack.engines.iter_mut();
        let engine = engines.find(|it| it.name == name);
        engine.context("no such engine")?.restart().await
    }

    /// A gauge or counter of the filter, summed over these labels.
    pub(super) async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<u64> {
        let page = self.stack.envoy()?.filter_stats().await?;
        Ok(stats::sum(&page, name, labels))
    }

    /// What the filter makes of an engine: the code of its state.
    pub(super) async fn state(&self, number: usize) -> anyhow::Result<u64> {
        let address = self.engine(number)?.address.to_string();
        let labels = [("endpoint", address.as_str())];
        self.metric("warmpath_endpoint_state", &labels).await
    }

    /// Whether the filter uses an engine.
    pub(super) async fn is_used(&self, number: usize) -> anyhow::Result<bool> {
        Ok(matches!(self.state(number).await?, 1 | 2))
    }

    /// What the filter makes of each engine.
    pub(super) async fn states(&self) -> anyhow::Result<Vec<u64>> {
        let mut states = Vec::with_capacity(ENGINES);
        for number in 0..ENGINES {
            states.push(self.state(number).await?);
        }
        Ok(states)
    }

    /// Waits until the filter uses all engines.
    pub(super) async fn all_usable(&self) -> anyhow::Result<()> {
        eventually("all engines are used", async || {
            let usable = "warmpath_pool_usable_endpoints";
            let usable = self.metric(usable, &[("pool", POOL)]).await?;
            Ok((usable == ENGINES as u64).then_some(()))
        })
        .await
    }

    /// What [`prompts`] says of its engines.
    pub(super) fn prompts(&self) -> (u64, u64) {
        prompts(&self.stack)
    }

    /// One of Envoy's own statistics; 0 if there is none of this name.
    pub(super) async fn envoys(&self, name: &str) -> anyhow::Result<u64> {
        self.stack.envoy()?.stat(name).await
    }

    /// What the status page says.
    pub(super) async fn status(&self) -> anyhow::Result<Value> {
        let address = self.stack.status().context("no status page")?;
        let client = Client::new(address)?;
        let reply = client.send(Call::get("/warmpath/status")).await?;
        reply.expect_status(200)?.json()
    }

    /// Whether everything that counts what is in flight says that nothing is.
    pub(super) async fn is_idle(&self) -> anyhow::Result<bool> {
        for name in [
            "in_flight_requests",
            "waiting_requests",
            "queued_tokens",
            "context_tokens",
        ] {
            let gauge = format!("warmpath_endpoint_{name}");
            if self.metric(&gauge, &[]).await? != 0 {
                return Ok(false);
            }
        }
        let status = self.status().await?;
        let pools = status.pointer("/pools").and_then(Value::as_array);
        let endpoints = pools.into_iter().flatten();
        let mut endpoints = endpoints
            .filter_map(|it| it.get("endpoints")?.as_array())
            .flatten();
        Ok(endpoints.all(|it| it.get("in_flight").and_then(Value::as_u64) == Some(0)))
    }
}

/// Makes an engine one of a fast model, from whose cache nothing is evicted: what is lost is lost by a fault.
pub(super) fn fast(config: &mut EngineConfig) {
    config.time_scale = TIME_SCALE;
    config.params.kv_blocks = 200_000;
    config.log_limit = LOGGED;
}

/// Prompt tokens that the engines have worked on, and the part of them that they had cached.
pub(super) fn prompts(stack: &Stack<'_>) -> (u64, u64) {
    let stats = stack.pool(POOL).map(|it| it.engine.stats());
    stats.fold((0, 0), |(all, cached), it| {
        (
            all + it.prefix_queries_tokens,
            cached + it.prefix_hits_tokens,
        )
    })
}

/// The name of an engine.
pub(super) fn name(number: usize) -> String {
    format!("{POOL}-{number}")
}

/// Waits until `look` finds something; says how long that took.
pub(super) async fn until(
    what: &str,
    look: impl AsyncFn() -> anyhow::Result<bool>,
) -> anyhow::Result<Duration> {
    let began = Instant::now();
    loop {
        if look().await? {
            return Ok(began.elapsed());
        }
        if began.elapsed() > PATIENCE {
            bail!("still not so after {PATIENCE:?}: {what}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The same machinery with shorter waits, so that a drill does not take minutes.
fn hurried(spec: StackSpec) -> StackSpec {
    spec.option(
        "health",
        json!({"stall_ms": 1000, "cool_down_ms": 250, "max_cool_down_ms": 1000, "slow_start_ms": 500}),
    )
    .bootstrap(|bootstrap| {
        let ejection = bootstrap.cluster_mut(POOL)?.get_mut("outlier_detection");
        ejection.context("no outlier detection")?["base_ejection_time"] = "1s".into();
        Ok(())
    })
    .plugin(|config| {
        if let Some(limits) = config.get_mut("limits").and_then(Value::as_object_mut) {
            limits.insert("worker_expiry_ms".to_owned(), 3000.into());
        }
    })
}

/// The addresses of a static cluster.
fn addresses(assignment: Option<&Value>) -> anyhow::Result<Vec<std::net::SocketAddr>> {
    let endpoints = assignment.and_then(|it| it.pointer("/endpoints/0/lb_endpoints"));
    let endpoints = endpoints
        .and_then(Value::as_array)
        .context("no endpoints")?;
    endpoints
        .iter()
        .map(|it| {
            let at = it.pointer("/endpoint/address/socket_address");
            let at = at.context("no address")?;
            let host = at
                .get("address")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let port = at
                .get("port_value")
                .and_then(Value::as_u64)
                .unwrap_or_default();
            Ok(format!("{host}:{port}").parse()?)
        })
        .collect()
}
