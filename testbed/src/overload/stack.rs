//! What the clients meet: model engines, one Envoy as it is shipped in front of them, and somebody
//! who looks how long the engines' queues become.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::Plan;
use crate::bench::corpus::MODEL;
use crate::engine::{Engine, EngineConfig};
use crate::envoy::shipped::{self, Pool};
use crate::envoy::{Envoy, Launch, stats};
use crate::replay::client;

const POOL: &str = "llama";
/// Requests for each worker before the clock runs. Connections fall to workers by chance, but so
/// many leave none out.
const INTRODUCTIONS: u32 = 64;
/// Workers beat twice a second; after two beats each knows all others.
const TWO_BEATS: Duration = Duration::from_millis(1200);
/// How often engines are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Workers hand over what they counted twice a second, and Envoy's checks take a second or two.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest that queues became at one engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct HighWater {
    /// Requests that were not begun.
    pub(super) waiting: u32,
    /// Requests being worked on.
    pub(super) running: u32,
}

/// A running stack. Everything stops when it is dropped.
pub(super) struct Stack {
    engines: Arc<Vec<Engine>>,
    envoy: Envoy,
    url: String,
}

impl Stack {
    /// Starts it, and lets every worker route something.
    pub(super) async fn start(plan: &Plan, admission: bool) -> anyhow::Result<Self> {
        let mut engines = Vec::new();
        for number in 0..plan.fleet.engines {
            let config = EngineConfig {
                name: format!("engine-{number}"),
                models: vec![MODEL.to_owned()],
                params: plan.fleet.params.clone(),
                time_scale: plan.speed.recip(),
                log_limit: 0,
                ..EngineConfig::default()
            };
            engines.push(Engine::start(config).await?);
        }
        let addresses: Vec<_> = engines.iter().map(Engine::addr).collect();
        let mut options = json!({"policy": "prefix"});
        if let (true, Some(options)) = (admission, options.as_object_mut()) {
            options.insert("admission".to_owned(), plan.admission());
        }
        let pool = Pool {
            name: POOL,
            engines: &addresses,
            options,
        };
        let bootstrap = shipped::over(&plan.config, &plan.module, &[pool])?;
        let url = format!("http://{}/v1/completions", bootstrap.addresses()?.listener);
        let envoy = Envoy::start(Launch {
            binary: plan.envoy.clone(),
            bootstrap,
            concurrency: plan.workers,
            component_log_level: "wasm:info".to_owned(),
        });
        let stack = Self {
            envoy: envoy.await?,
            engines: Arc::new(engines),
            url,
        };
        stack.introduce(plan.workers).await?;
        Ok(stack)
    }

    /// Where requests go.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Waits until all engines are in use and every worker has compiled its code and knows the others.
    async fn introduce(&self, workers: u32) -> anyhow::Result<()> {
        let engines = self.engines.len() as u64;
        self.counted("warmpath_pool_usable_endpoints", engines..=engines)
            .await?;
        let client = client()?;
        let body: Value = json!({"model": MODEL, "prompt": "hi", "max_tokens": 1});
        for _ in 0..INTRODUCTIONS * workers {
            let call = client.post(&self.url).body(body.to_string());
            call.send().await?.error_for_status()?.bytes().await?;
        }
        tokio::time::sleep(TWO_BEATS).await;
        Ok(())
    }

    /// Waits until a metric of the filter has one of these values.
    ///
    /// # Errors
    /// It does not in half a minute.
    pub(super) async fn counted(
        &self,
        name: &str,
        want: RangeInclusive<u64>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let page = self.envoy.admin_get("/stats/prometheus").await?;
            let found = stats::sum(&page, name, &[]);
            if want.contains(&found) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{name} is {found}, want {want:?}; Envoy's log ends with:\n{}",
                self.envoy.log_tail()
            );
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Looks at the engines until it is told to stop.
    pub(super) fn watch(&self) -> Watch {
        let engines = Arc::clone(&self.engines);
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let mut most = HighWater::default();
            let mut clock = tokio::time::interval(LOOK_INTERVAL);
            loop {
                tokio::select! {
                    _ = &mut stopped => return most,
                    _ = clock.tick() => {}
                }
                for stats in engines.iter().map(Engine::stats) {
                    most.waiting = most.waiting.max(stats.waiting);
                    most.running = most.running.max(stats.running);
                }
            }
        });
        Watch { stop, task }
    }
}

/// Somebody who looks at engines.
pub(super) struct Watch {
    stop: tokio::sync::oneshot::Sender<()>,
    task: JoinHandle<HighWater>,
}

impl Watch {
    /// What was seen.
    pub(super) async fn end(self) -> anyhow::Result<HighWater> {
        // If nobody listens any more the task has ended, and says why.
        let _heard = self.stop.send(());
        Ok(self.task.await?)
    }
}
