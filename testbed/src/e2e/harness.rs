//! One test's own stack: engines and an Envoy on ports of their own, from the shipped
//! configuration with what the test wants different.
//!
//! ```ignore
//! let stack = Stack::start(context, StackSpec::shipped().engines("llama", 4)).await?;
//! let reply = stack.send(Call::chat("llama-3-8b", "hello")).await?.expect_status(200)?;
//! ensure!(stack.answered_by(&reply)?.pool == "llama");
//! ```

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Map, Value};

use super::Setting;
use super::client::{Call, Client, OpenReply, Reply};
use super::counters::counter;
use super::raw::{self, Pieces};
use super::spec::{PoolSpec, add_pool, labelled_endpoints};
pub use super::spec::{StackSpec, pool_mut, static_endpoints};
use crate::engine::{Engine, EngineConfig, FaultPlan};
use crate::envoy::bootstrap::{Addresses, Bootstrap};
use crate::envoy::{Envoy, Launch};

/// How long [`eventually`] waits.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it looks.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What a test is given.
pub struct Context {
    setting: Setting,
    journal: Mutex<String>,
}

impl Context {
    /// For a run with these binaries.
    pub fn new(setting: Setting) -> Self {
        Self {
            setting,
            journal: Mutex::default(),
        }
    }

    /// What all tests of the run share.
    pub(super) fn setting(&self) -> &Setting {
        &self.setting
    }

    /// Adds to what is printed if the test fails.
    pub(super) fn note(&self, line: &str) {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.push_str(line);
        journal.push('\n');
    }

    /// What was noted: the logs of Envoys that have ended.
    pub fn journal(&self) -> String {
        self.journal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// An engine of a stack.
pub struct StackEngine {
    /// `<pool>-<index>`.
    pub name: String,
    /// The pool it belongs to.
    pub pool: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// The engine itself: its log, its faults.
    pub engine: Engine,
    config: EngineConfig,
}

impl StackEngine {
    /// Starts it anew on its port, its cache empty; it must have been killed.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let mut config = EngineConfig {
            listen: self.address,
            ..self.config.clone()
        };
        if let (Some(setup), Some(addr)) = (&mut config.disaggregation, self.engine.kv_addr()) {
            setup.listen = addr;
        }
        // The dead one holds the port until it is replaced, so that nobody else gets it.
        self.engine = Engine::start(config).await?;
        Ok(())
    }
}

/// A running stack. Everything stops when it is dropped.
pub struct Stack<'a> {
    context: &'a Context,
    bootstrap: Bootstrap,
    /// `None` only while it is being replaced.
    envoy: Option<Envoy>,
    client: Client,
    workers: u32,
    log_level: String,
    checked: bool,
    /// All engines, pool by pool.
    pub engines: Vec<StackEngine>,
}

impl<'a> Stack<'a> {
    /// Starts engines, then Envoy; returns once Envoy serves.
    pub async fn start(context: &'a Context, spec: StackSpec) -> anyhow::Result<Self> {
        let config = &context.setting.config;
        let mut bootstrap = match spec.file {
            Some(file) => Bootstrap::load(&config.with_file_name(file))?,
            None => Bootstrap::load(config)?,
        };
        bootstrap.set_module(match spec.trap {
            true => &context.setting.trap_module,
            false => &context.setting.module,
        });
        bootstrap.set_runtime(&context.setting.runtime);
        bootstrap.set_addresses(Addresses::free_with_status()?)?;
        let mut plugin = bootstrap.plugin()?;
        let mut engines = Vec::new();
        for pool in &spec.pools {
            if let Some(models) = &pool.new_with_models {
                bootstrap.add_cluster_like("llama", &pool.name)?;
                add_pool(&mut plugin, &pool.name, models)?;
            }
            let entry = pool_mut(&mut plugin, &pool.name)
                .with_context(|| format!("no pool {}", pool.name))?;
            let started = start_engines(pool, entry, &spec).await?;
            let addresses: Vec<_> = started.iter().map(|engine| engine.address).collect();
            bootstrap.set_endpoints(&pool.name, &addresses)?;
            entry.insert("endpoints".to_owned(), labelled_endpoints(&started));
            engines.extend(started);
        }
        for edit in &spec.plugin {
            edit(&mut plugin);
        }
        bootstrap.set_plugin_text(&plugin.to_string());
        if !spec.checked {
            bootstrap.stop_active_checks()?;
        }
        for edit in &spec.bootstrap {
            edit(&mut bootstrap)?;
        }
        let mut stack = Self {
            context,
            client: Client::new(bootstrap.addresses()?.listener)?,
            bootstrap,
            envoy: None,
            engines,
            workers: spec.workers.unwrap_or(context.setting.concurrency),
            log_level: spec.log_level,
            checked: spec.checked,
        };
        stack.start_envoy().await?;
        Ok(stack)
    }

    /// Stops Envoy, changes its configuration and starts it again over the same engines.
    pub async fn restart_envoy(
        &mut self,
        edit: impl FnOnce(&mut Bootstrap) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.note_envoy_log();
        self.envoy = None;
        edit(&mut self.bootstrap)?;
        self.bootstrap
            .set_addresses(Addresses::free_with_status()?)?;
        self.client = Client::new(self.bootstrap.addresses()?.listener)?;
        self.start_envoy().await
    }

    /// Changes the listeners, filters included, while Envoy runs; it must read them from a file.
    pub fn change_listeners(
        &mut self,
        edit: impl FnOnce(&mut Bootstrap) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        edit(&mut self.bootstrap)?;
        self.bootstrap.write_listeners()
    }

    /// Changes the filter while Envoy runs; Envoy must read it from a file.
    pub fn change_filter(
        &mut self,
        edit: impl FnOnce(&mut Bootstrap) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        edit(&mut self.bootstrap)?;
        self.bootstrap.write_filter()
    }

    /// The configuration as it was last given to Envoy.
    pub fn bootstrap(&self) -> &Bootstrap {
        &self.bootstrap
    }

    async fn start_envoy(&mut self) -> anyhow::Result<()> {
        self.envoy = Some(Envoy::start(self.launch()).await?);
        if !self.checked {
            return Ok(());
        }
        eventually("all endpoints are fit", async || {
            let count = async |name| counter(self, name, &[]).await;
            let known = count("warmpath_pool_known_endpoints").await?;
            let usable = count("warmpath_pool_usable_endpoints").await?;
            Ok((known > 0 && known == usable).then_some(()))
        })
        .await
    }

    /// How its Envoy is started.
    pub(super) fn launch(&self) -> Launch {
        Launch {
            binary: self.context.setting.envoy.clone(),
            bootstrap: self.bootstrap.clone(),
            concurrency: self.workers,
            component_log_level: self.log_level.clone(),
        }
    }

    /// What its test was given.
    pub(super) fn context(&self) -> &'a Context {
        self.context
    }

    /// The Envoy of this stack.
    pub fn envoy(&self) -> anyhow::Result<&Envoy> {
        self.envoy.as_ref().context("Envoy does not run")
    }

    /// How many worker threads Envoy has.
    pub fn workers(&self) -> usize {
        self.workers as usize
    }

    /// Where the status page is served, if it is.
    pub fn status(&self) -> Option<SocketAddr> {
        self.bootstrap.addresses().ok()?.status
    }

    /// The client of this stack.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Sends a call and waits for its whole answer, whatever its status.
    pub async fn send(&self, call: Call) -> anyhow::Result<Reply> {
        self.client.send(call).await
    }

    /// Sends a call and waits for the headers of its answer.
    pub async fn open(&self, call: Call) -> anyhow::Result<OpenReply> {
        self.client.open(call).await
    }

    /// Sends a call, its body in pieces, and waits for its whole answer.
    pub async fn send_in_pieces(&self, call: Call, pieces: &Pieces) -> anyhow::Result<Reply> {
        raw::send(self.client.target(), call, pieces).await
    }

    /// The engine called `<pool>-<index>`.
    pub fn engine(&self, name: &str) -> anyhow::Result<&StackEngine> {
        self.engines
            .iter()
            .find(|engine| engine.name == name)
            .with_context(|| format!("no engine {name}"))
    }

    /// The engine that answered, by what it says of itself: the filter has no part in this.
    pub fn answered_by(&self, reply: &Reply) -> anyhow::Result<&StackEngine> {
        let name = reply
            .header("x-engine")
            .with_context(|| format!("no engine gave this answer: {reply:?}"))?;
        self.engine(name)
    }

    /// The engines of a pool.
    pub fn pool<'s>(&'s self, pool: &'s str) -> impl Iterator<Item = &'s StackEngine> {
        self.engines
            .iter()
            .filter(move |engine| engine.pool == pool)
    }

    /// Replaces what goes wrong at every engine of a pool.
    pub fn set_fault(&self, pool: &str, plan: impl Into<FaultPlan>) {
        let plan = plan.into();
        for engine in self.pool(pool) {
            engine.engine.set_fault(plan);
        }
    }

    /// How many inference requests each engine has seen, in the order of [`Stack::engines`].
    pub fn requests_seen(&self) -> Vec<u64> {
        self.engines
            .iter()
            .map(|engine| engine.engine.seen_count())
            .collect()
    }

    fn note_envoy_log(&self) {
        if let Some(envoy) = &self.envoy {
            self.context
                .note(&format!("-- Envoy's log\n{}", envoy.log_tail()));
        }
    }
}

impl Drop for Stack<'_> {
    fn drop(&mut self) {
        self.note_envoy_log();
    }
}

/// Waits until `look` finds something. Fails, saying `what`, if it never does.
pub async fn eventually<T>(
    what: &str,
    look: impl AsyncFn() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("still not so after {PATIENCE:?}: {what}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn start_engines(
    pool: &PoolSpec,
    entry: &Map<String, Value>,
    spec: &StackSpec,
) -> anyhow::Result<Vec<StackEngine>> {
    let models: Vec<String> = entry
        .get("models")
        .map(|models| serde_json::from_value(models.clone()))
        .transpose()
        .context("models of the pool")?
        .unwrap_or_default();
    let mut started = Vec::new();
    for index in 0..pool.engines {
        let mut config = EngineConfig {
            name: format!("{}-{index}", pool.name),
            models: models.clone(),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            time_scale: 0.0,
            ..EngineConfig::default()
        };
        for edit in &spec.engine {
            edit(&mut config);
        }
        let name = config.name.clone();
        let engine = Engine::start(config.clone()).await?;
        started.push(StackEngine {
            config,
            name,
            pool: pool.name.clone(),
            address: engine.addr(),
            engine,
        });
    }
    Ok(started)
}
