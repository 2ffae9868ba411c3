//! The `overload` verb: what a pool still does when it is offered several times what it can do, with
//! admission and without.
//!
//! One idea: goodput, the requests a second that have their first token in time, is what an overload
//! must not lower. Clients come in an open loop, as users do, at multiples of the pool's capacity,
//! through a real Envoy as it is shipped; the engines are models, and what they can do is asked from
//! the simulator first. A part of the requests is of low priority. All times are modelled ones.

mod capacity;
mod clients;
mod mix;
mod report;
mod stack;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use clap::ValueEnum;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::envoy;
use crate::model::ModelParams;
use crate::subject::{Subject, Workers, existing};
use capacity::Fleet;
use clients::Offer;
use report::{Run, Window};
use stack::Stack;

/// Tokens in a block of prompts, and so in one of an engine's KV cache.
const BLOCK_TOKENS: u32 = 64;
const KV_TOKENS: u32 = 400_000;
/// Requests of each run of the simulator.
const CALIBRATION_REQUESTS: usize = 8000;
/// The part of the time to a first token that the queue may take; the rest is for the step that is
/// under way, the prompt itself, and steps in which others decode.
const QUEUE_SHARE: f64 = 0.5;

/// Whether a pool may refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Admission {
    /// It refuses what is above its bounds.
    On,
    /// It takes everything.
    Off,
}

/// Arguments of the `overload` verb.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: Subject,
    /// Engines in the pool.
    #[arg(long, default_value_t = 4)]
    engines: usize,
    #[command(flatten)]
    workers: Workers,
    /// What is offered, in multiples of the pool's capacity.
    #[arg(long, value_delimiter = ',', default_value = "1,3")]
    loads: Vec<f64>,
    /// Which pools are compared.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "on,off")]
    admission: Vec<Admission>,
    /// Modelled seconds of arrivals that count.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Seconds of arrivals before those.
    #[arg(long, default_value_t = 15.0)]
    warm_up: f64,
    /// When a first token is late, in seconds.
    #[arg(long, default_value_t = 2.0)]
    ttft: f64,
    /// Modelled seconds in a real one: less than 1 where the machine is busy with other work, which else
    /// slows the engines down.
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Requests a second that are the pool's capacity [default: by the simulator].
    #[arg(long)]
    capacity: Option<f64>,
    /// Share of requests of low priority.
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u64).range(0..=100))]
    low_percent: u64,
    /// The bound `max_requests` [default: what an engine runs at a time].
    #[arg(long)]
    max_requests: Option<u32>,
    /// The bound `max_queued_tokens` [default: what an engine prefills in half of --ttft].
    #[arg(long)]
    max_queued_tokens: Option<u64>,
    /// Seed of requests and times.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write every figure into this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What all runs have in common.
#[derive(Debug)]
struct Plan {
    envoy: PathBuf,
    module: PathBuf,
    config: PathBuf,
    workers: u32,
    fleet: Fleet,
    max_requests: u32,
    max_queued_tokens: u64,
    low_percent: u64,
    speed: f64,
    window: Window,
}

impl Plan {
    fn of(args: &Args) -> anyhow::Result<Self> {
        ensure!(args.engines > 0, "--engines: got 0, want at least 1");
        let positive = [args.seconds, args.ttft, args.speed];
        ensure!(
            positive.iter().all(|it| it.is_finite() && *it > 0.0),
            "--seconds, --ttft and --speed must be more than 0"
        );
        ensure!(
            args.loads
                .iter()
                .all(|load| load.is_finite() && *load > 0.0),
            "--loads must be more than 0"
        );
        let params = ModelParams {
            block_tokens: BLOCK_TOKENS,
            kv_blocks: KV_TOKENS / BLOCK_TOKENS,
            ..ModelParams::default()
        };
        let queue_s = QUEUE_SHARE * args.ttft;
        Ok(Self {
            envoy: existing(&args.subject.envoy)?,
            module: existing(&args.subject.module)?,
            config: existing(&args.subject.config)?,
            workers: args.workers.concurrency.max(1),
            max_requests: args.max_requests.unwrap_or(params.max_num_seqs),
            max_queued_tokens: args
                .max_queued_tokens
                .unwrap_or((queue_s * prefill_tokens_per_s(&params)) as u64),
            low_percent: args.low_percent,
            speed: args.speed,
            window: Window {
                warm_up: Duration::from_secs_f64(args.warm_up.max(0.0)),
                length: Duration::from_secs_f64(args.seconds),
                ttft: Duration::from_secs_f64(args.ttft),
            },
            fleet: Fleet {
                engines: args.engines,
                params,
                workers: args.workers.concurrency.max(1) as usize,
                ttft_s: args.ttft,
                requests: CALIBRATION_REQUESTS,
                seed: args.seed,
            },
        })
    }

    /// The pool's `admission`.
    fn admission(&self) -> Value {
        json!({
            "max_requests": self.max_requests,
            "max_queued_tokens": self.max_queued_tokens,
        })
    }
}

/// What an engine prefills in a second when it does nothing else.
fn prefill_tokens_per_s(params: &ModelParams) -> f64 {
    let base_us = params.step_base_us / f64::from(params.token_budget);
    1e6 / (params.prefill_token_us + base_us)
}

/// Runs the `overload` verb.
///
/// # Errors
/// Something does not start, or a refusal is not what it should be.
pub fn run(args: Args) -> anyhow::Result<()> {
    let plan = Plan::of(&args)?;
    envoy::stop_all_on_signal()?;
    let capacity_per_s = match args.capacity {
        Some(per_s) => per_s,
        None => capacity::per_s(&plan.fleet)?,
    };
    print!("{}", report::head(&plan, capacity_per_s));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let mut runs = Vec::new();
    for &admission in &args.admission {
        for &load in &args.loads {
            let run = runtime.block_on(offer(&plan, admission, load, capacity_per_s))?;
            print!("{}", run.rows());
            runs.push(run);
        }
    }
    print!("{}", report::ratios(&runs));
    if let Some(file) = &args.json {
        let json = report::json(&plan, capacity_per_s, &runs);
        std::fs::write(file, serde_json::to_string_pretty(&json)?)?;
    }
    Ok(())
}

/// One run: a fresh stack, and clients that come at `load` times its capacity.
async fn offer(
    plan: &Plan,
    admission: Admission,
    load: f64,
    capacity_per_s: f64,
) -> anyhow::Result<Run> {
    let stack = Stack::start(plan, admission == Admission::On).await?;
    let rate_per_s = load * capacity_per_s;
    let requests = (rate_per_s * plan.window.end().as_secs_f64()).ceil() as usize;
    let workload = mix::workload(requests, plan.fleet.seed)?;
    let time_scale = workload.rate_per_s() / rate_per_s;
    let watch = stack.watch();
    let offer = Arc::new(Offer {
        workload,
        time_scale,
        low_percent: plan.low_percent,
        speed: plan.speed,
        url: stack.url().to_owned(),
        first_failure: Mutex::default(),
    });
    let outcomes = offer.send().await?;
    let queues = watch.end().await?;
    let run = Run::of(
        admission == Admission::On,
        load,
        &outcomes,
        plan.window,
        queues,
    );
    if let Some(why) = offer.first_failure.lock().take() {
        eprintln!("the first request that failed: {why}");
    }
    // Nothing is refused in silence.
    let refused = run.refused_in_all..=run.refused_in_all + run.failed_in_all;
    stack
        .counted("warmpath_shed_requests_total", refused)
        .await?;
    Ok(run)
}
