//! The real side: model engines in this process and one Envoy with the module in front of them, or several.
//!
//! What a request got is read from the engines: their counters, and their logs for single requests.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::Plan;
use super::clients::{REQUEST_ID, Sent};
use super::report::Foretold;
use crate::bench::contestant::{Setup, Variant, configure};
use crate::bench::corpus::MODEL;
use crate::engine::{Engine, EngineConfig, KvEventsConfig};
use crate::envoy::{Envoy, Launch, stats};
use crate::lmcache::Controller;
use crate::model::ModelParams;
use crate::sim::statistics::{Sample, Samples};
use crate::store::{self, Store};

/// Requests for each worker before the clock runs. Connections fall to workers by chance, but
/// so many leave none out.
const INTRODUCTIONS: u32 = 64;
/// Workers beat twice a second; after two beats each knows all others.
const TWO_BEATS: Duration = Duration::from_millis(1200);
/// Workers hand over what they counted twice a second.
const COUNTED_WITHIN: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The cluster of the KV index.
const INDEX: &str = "kv_index";

/// A running stack. Everything stops when it is dropped.
pub(super) struct Stack {
    engines: Vec<Engine>,
    index: Option<Controller>,
    envoys: Vec<Envoy>,
    store: Option<Store>,
    urls: Vec<String>,
    workers: u32,
}

/// Prompt tokens that engines have counted, and those from cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted(u64, u64);

impl Counted {
    /// What was counted since.
    pub(super) fn after(self, later: &Self) -> (u64, u64) {
        (later.0 - self.0, later.1 - self.1)
    }
}

impl Stack {
    /// Starts engines, then every Envoy with one pool of them under `policy`, or with `kv_aware`.
    pub(super) async fn start(
        plan: &Plan,
        policy: Option<Value>,
        params: ModelParams,
    ) -> anyhow::Result<Self> {
        let mut engines = Vec::new();
        let index = match policy {
            None => Some(Controller::start().await?),
            Some(_) => None,
        };
        for number in 0..plan.engines {
            let name = format!("engine-{number}");
            let config = EngineConfig {
                kv_events: index.as_ref().map(|index| KvEventsConfig {
                    listen: None,
                    tap: Some(index.tap(&name, Ipv4Addr::LOCALHOST.into())),
                    ..KvEventsConfig::default()
                }),
                name,
                models: vec![MODEL.to_owned()],
                params: params.clone(),
                time_scale: plan.speed.recip(),
                max_model_tokens: u32::MAX,
                log_limit: usize::MAX,
                ..EngineConfig::default()
            };
            engines.push(Engine::start(config).await?);
        }
        let policy = policy.unwrap_or_else(|| kv_aware(&engines, plan));
        let store = match &plan.sync {
            Some(sync) => Some(Store::start(&sync.binaries, plan.replicas).await?),
            None => None,
        };
        let mut stack = Self {
            engines,
            index,
            envoys: Vec::new(),
            store,
            urls: Vec::new(),
            workers: plan.workers,
        };
        for _ in 0..plan.replicas {
            stack.add_envoy(plan, &policy).await?;
        }
        Ok(stack)
    }

    async fn add_envoy(&mut self, plan: &Plan, policy: &Value) -> anyhow::Result<()> {
        let setup = Setup {
            binary: plan.envoy.clone(),
            config: plan.config.clone(),
            concurrency: plan.workers,
            cpus: None,
        };
        let variant = Variant::Warmpath {
            policy: policy.clone(),
            module: plan.module.clone(),
        };
        let addresses: Vec<_> = self.engines.iter().map(Engine::addr).collect();
        let mut bootstrap = configure(&variant, &setup, &addresses)?;
        if let Some(index) = &self.index {
            bootstrap.add_cluster_like("prometheus_stats", INDEX)?;
            bootstrap.set_endpoints(INDEX, &[index.address()])?;
        }
        if let (Some(store), Some(sync)) = (&self.store, &plan.sync) {
            store::join(
                &mut bootstrap,
                &store.addresses(),
                store::KEY,
                sync.interval_ms,
            )?;
        }
        let listener = bootstrap.addresses()?.listener;
        let envoy = Envoy::start(Launch {
            binary: setup.binary,
            bootstrap,
            concurrency: setup.concurrency,
            component_log_level: "wasm:info".to_owned(),
        });
        self.envoys.push(envoy.await?);
        self.urls.push(format!("http://{listener}/v1/completions"));
        Ok(())
    }

    /// Where requests go.
    pub(super) fn urls(&self) -> &[String] {
        &self.urls
    }

    /// The ends of the Envoys' logs.
    pub(super) fn log_tail(&self) -> String {
        let tails: Vec<_> = self.envoys.iter().map(Envoy::log_tail).collect();
        tails.join("\n--\n")
    }

    /// Lets every worker route something, so that code is compiled and all know each other. The
    /// prompt is too short to be remembered by filter or engines.
    pub(super) async fn introduce_workers(&self) -> anyhow::Result<()> {
        let client = super::clients::client()?;
        let body = json!({"model": MODEL, "prompt": "hi", "max_tokens": 1}).to_string();
        for url in &self.urls {
            for _ in 0..INTRODUCTIONS * self.workers {
                let answer = client.post(url).body(body.clone()).send().await?;
                answer.error_for_status()?.bytes().await?;
            }
        }
        tokio::time::sleep(TWO_BEATS).await;
        Ok(())
    }

    /// CPU time of the store so far, if there is one, in nanoseconds.
    pub(super) fn store_cpu_ns(&self) -> anyhow::Result<Option<u64>> {
        self.store.as_ref().map(Store::cpu_ns).transpose()
    }

    /// What all engines have counted so far.
    pub(super) fn counted(&self) -> Counted {
        let stats = self.engines.iter().map(Engine::stats);
        stats.fold(Counted(0, 0), |sum, stats| {
            Counted(
                sum.0 + stats.prefix_queries_tokens,
                sum.1 + stats.prefix_hits_tokens,
            )
        })
    }

    /// What the filter foretold, and what it read of it in the answers, of so many requests beside the
    /// introductions. `None` if the policy foretells nothing.
    ///
    /// # Errors
    /// Envoy does not answer, or the filter has not counted that many requests.
    pub(super) async fn foretold(&self, requests: usize) -> anyhow::Result<Option<Foretold>> {
        let introduced = u64::from(INTRODUCTIONS * self.workers) * self.envoys.len() as u64;
        let want = requests as u64 + introduced;
        let deadline = Instant::now() + COUNTED_WITHIN;
        loop {
            let mut pages = Vec::new();
            for envoy in &self.envoys {
                pages.push(envoy.admin_get("/stats/prometheus").await?);
            }
            let count = |name| -> u64 { pages.iter().map(|it| stats::sum(it, name, &[])).sum() };
            let seen = count("warmpath_endpoint_finished_total");
            if seen == want {
                let foretold = Foretold {
                    predicted: count("warmpath_endpoint_predicted_cached_tokens_total"),
                    reported: count("warmpath_endpoint_reported_cached_tokens_total"),
                };
                return Ok((count("warmpath_prompt_tokens_total") > 0).then_some(foretold));
            }
            ensure!(
                Instant::now() < deadline,
                "the filter counted {seen} requests of {want}"
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// What the engines say of the requests that count, in modelled time.
    ///
    /// # Errors
    /// A request reached no engine, or none gave it a token.
    pub(super) fn samples(&self, sent: &Sent, plan: &Plan) -> anyhow::Result<Samples> {
        let mut logs = HashMap::new();
        for (number, engine) in self.engines.iter().enumerate() {
            for seen in engine.log() {
                let id = seen.header(REQUEST_ID).map(<[u8]>::to_vec);
                let id = id.and_then(|id| String::from_utf8(id).ok()?.parse::<usize>().ok());
                if let Some(id) = id {
                    logs.insert(id, (number, seen));
                }
            }
        }
        let mut samples = Samples::new(self.engines.len());
        for (request, counts) in sent.counting() {
            let (engine, seen) = logs
                .get(&request)
                .with_context(|| format!("no engine has seen request {request}"))?;
            let (Some(cached_tokens), Some(first_token_us)) =
                (seen.cached_tokens, seen.first_token_us)
            else {
                anyhow::bail!("engine {engine} gave no token for request {request}: {seen:?}");
            };
            samples.whole.0 += u64::from(seen.prompt_tokens);
            samples.whole.1 += u64::from(cached_tokens);
            if counts {
                samples.add(Sample {
                    engine: *engine,
                    ttft_us: (first_token_us as f64 * plan.speed) as u64,
                    prompt_tokens: seen.prompt_tokens,
                    cached_tokens,
                });
            }
        }
        Ok(samples)
    }
}

/// The policy over the index. Modelled time is fast, so what lasts a while in real time lasts long here:
/// the index tells the truth at once, and nothing else need be believed for long.
fn kv_aware(engines: &[Engine], plan: &Plan) -> Value {
    let instances = engines.iter().map(|engine| {
        let address = engine.addr().to_string();
        (engine.name().to_owned(), address.into())
    });
    let instances: serde_json::Map<String, Value> = instances.collect();
    json!({"kv_aware": {
        "index": {"dynamo": {"cluster": INDEX, "instances": instances}},
        "kv_tokens": plan.kv_tokens,
        "budget_ms": 1000,
        "prediction_ms": 100,
        "answer_ttl_ms": 0,
    }})
}
