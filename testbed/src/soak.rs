//! The `soak` verb: very many requests through a real Envoy as it is shipped, and then very many
//! sessions, and whether anything grows with them.
//!
//! One idea: length is counted in requests, not in hours. Each part is cut into stretches; after each,
//! Envoy's resident memory, its allocator, its metrics and the filter's own gauges are read. Envoy's
//! shared data cannot be listed from outside: how many keys it has follows from the workers and the
//! size of the prefix table, and is counted in the core's own tests.

mod load;
mod messages;
mod series;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::bench::process::Process;
use crate::bench::upstream::Upstream;
use crate::engine::{Engine, EngineConfig};
use crate::envoy::shipped::{self, Pool};
use crate::envoy::{self, Envoy, Launch, stats};
use crate::subject::{Subject, Workers, existing};
use messages::{Kind, Messages, PREFIX_MODEL};
use series::{Sample, Series};

/// Engines with a cache, behind the policy `prefix`.
const ENGINES: usize = 4;
/// Samples of each part.
const STRETCHES: u64 = 50;
/// How long it may take until every engine is in use.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Metrics of the filter, by the beginning of their names in `/stats`.
const OWN_METRICS: &str = "wasmcustom.";

/// Arguments of the `soak` verb.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: Subject,
    /// Requests of all kinds.
    #[arg(long, default_value_t = 300_000)]
    requests: u64,
    /// Short requests after them, each of a session of its own.
    #[arg(long, default_value_t = 1_000_000)]
    sessions: u64,
    /// Requests under way at a time.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    #[command(flatten)]
    workers: Workers,
    /// Seed of the requests.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write every sample into this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs the `soak` verb.
///
/// # Errors
/// Something does not start, or a request was not answered 200.
pub fn run(args: Args) -> anyhow::Result<()> {
    envoy::stop_all_on_signal()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(soak(&args))
}

async fn soak(args: &Args) -> anyhow::Result<()> {
    let stack = Stack::start(args).await?;
    let parts = [
        ("mixed", Kind::Mixed, args.requests),
        ("sessions", Kind::Sessions, args.sessions),
    ];
    let mut all = Vec::new();
    for (name, kind, requests) in parts {
        let series = stack.part(name, kind, requests, args).await?;
        print!("{}", series.table());
        all.push(series);
    }
    if let Some(file) = &args.json {
        std::fs::write(file, serde_json::to_string_pretty(&all)?)?;
    }
    let errors: u64 = all.iter().map(Series::errors).sum();
    ensure!(
        errors == 0,
        "{errors} requests were not answered 200; Envoy's log ends with:\n{}",
        stack.envoy.log_tail()
    );
    Ok(())
}

/// Engines that answer at once, and Envoy in front of them.
struct Stack {
    envoy: Envoy,
    listener: std::net::SocketAddr,
    _engines: Vec<Engine>,
    _upstream: Upstream,
}

impl Stack {
    async fn start(args: &Args) -> anyhow::Result<Self> {
        let mut engines = Vec::new();
        for number in 0..ENGINES {
            let config = EngineConfig {
                name: format!("engine-{number}"),
                models: vec![PREFIX_MODEL.to_owned()],
                time_scale: 0.0,
                log_limit: 0,
                ..EngineConfig::default()
            };
            engines.push(Engine::start(config).await?);
        }
        let upstream = Upstream::start(&[0, 0]).await?;
        let addresses: Vec<_> = engines.iter().map(Engine::addr).collect();
        let pools = [
            Pool {
                name: "llama",
                engines: &addresses,
                options: json!({"policy": "prefix"}),
            },
            Pool {
                name: "qwen",
                engines: &upstream.addresses,
                options: json!({"policy": "consistent_hash"}),
            },
        ];
        let (config, module) = (
            existing(&args.subject.config)?,
            existing(&args.subject.module)?,
        );
        let bootstrap = shipped::over(&config, &module, &pools)?;
        let listener = bootstrap.addresses()?.listener;
        let envoy = Envoy::start(Launch {
            binary: existing(&args.subject.envoy)?,
            bootstrap,
            concurrency: args.workers.concurrency.max(1),
            component_log_level: String::new(),
        });
        let stack = Self {
            envoy: envoy.await?,
            listener,
            _engines: engines,
            _upstream: upstream,
        };
        stack.fit(ENGINES as u64 + 2).await?;
        Ok(stack)
    }

    /// Waits until so many engines are in use.
    async fn fit(&self, want: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let page = self.envoy.admin_get("/stats/prometheus").await?;
            let found = stats::sum(&page, "warmpath_pool_usable_endpoints", &[]);
            if found == want {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{found} engines of {want} are in use; Envoy's log ends with:\n{}",
                self.envoy.log_tail()
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Sends `requests` messages of a kind and takes a sample after every stretch.
    async fn part(
        &self,
        name: &'static str,
        kind: Kind,
        requests: u64,
        args: &Args,
    ) -> anyhow::Result<Series> {
        let messages = Arc::new(Messages::new(kind, args.seed));
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {eta} left  {msg}")?;
        let bar = ProgressBar::new(requests).with_style(style);
        bar.set_message(name);
        let start = Instant::now();
        let mut samples = Vec::new();
        let mut sent = 0;
        for stretch in 1..=STRETCHES {
            let end = requests * stretch / STRETCHES;
            let connections = args.connections.max(1);
            let mut came = load::send(self.listener, &messages, sent..end, connections).await?;
            sent = end;
            bar.set_position(sent);
            came.latencies_us.sort_unstable();
            let percentile = |percent: usize| {
                let rank = (came.latencies_us.len() * percent).div_ceil(100).max(1);
                came.latencies_us.get(rank - 1).copied().unwrap_or(0)
            };
            let seen = Sample {
                requests: sent,
                errors: came.errors,
                p50_us: percentile(50),
                p99_us: percentile(99),
                ..Sample::default()
            };
            samples.push(self.look(seen).await?);
        }
        bar.finish_and_clear();
        Ok(Series::new(name, start.elapsed().as_secs_f64(), samples))
    }

    /// Adds to a sample what Envoy tells.
    async fn look(&self, sample: Sample) -> anyhow::Result<Sample> {
        let memory: Value = serde_json::from_str(&self.envoy.admin_get("/memory").await?)?;
        let allocated = memory.get("allocated").and_then(Value::as_str);
        let names = self.envoy.admin_get("/stats").await?;
        let own = names.lines().filter(|line| line.starts_with(OWN_METRICS));
        let page = self.envoy.admin_get("/stats/prometheus").await?;
        Ok(Sample {
            rss_bytes: Process::new(self.envoy.process_id()).rss_bytes()?,
            heap_bytes: allocated
                .context("Envoy does not tell its memory")?
                .parse()?,
            metrics: names.lines().count() as u64,
            own_metrics: own.count() as u64,
            table_entries: stats::sum(&page, "warmpath_prefix_table_used_entries", &[]),
            ..sample
        })
    }
}
