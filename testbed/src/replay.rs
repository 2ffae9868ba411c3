//! The `replay` verb: a slice of a request trace through a real Envoy with the real module, beside
//! the simulator on exactly the same slice.
//!
//! One idea: both sides are one model. The simulator's engines and those behind Envoy are the same
//! [`crate::model`], fed with the same prompts at the same times; one side runs in simulated time,
//! the other in real time divided by `--speed`. What differs in the figures is what differs between
//! the core in a loop and the module inside Envoy.
//!
//! Requests are streamed: the filter then sees first tokens. For others it estimates them from the
//! clock, which speed would distort.

mod clients;
pub mod fleet;
mod report;
mod slice;
mod stack;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::envoy;
use crate::sim::parse_tokens;
use crate::sim::policy::Spec;
use crate::sim::world::{self, Scenario};
use crate::store::Binaries;
use crate::subject::{Subject, existing};
use clients::Clients;
pub(crate) use clients::{body, client};
use report::{Comparison, Figures};
pub use slice::{Load, Slice};
use stack::Stack;

/// Arguments of the `replay` verb.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: Subject,
    /// Trace to run (.jsonl.zst).
    #[arg(long)]
    trace: PathBuf,
    /// Requests of the trace to leave out at its start.
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// Requests of the trace to send after those; in a closed loop, whole conversations.
    #[arg(long, default_value_t = 1000)]
    requests: usize,
    /// The pool's policy, as `simulate` names it.
    #[arg(long, default_value = "prefix")]
    policy: String,
    /// Give Envoy's pool the policy `kv_aware` instead, over an index that the engines tell.
    #[arg(long)]
    kv_index: bool,
    /// Engines in the pool.
    #[arg(long, default_value_t = 8)]
    engines: usize,
    /// KV capacity of an engine in tokens; k and M are understood.
    #[arg(long, default_value = "400k", value_parser = parse_tokens)]
    kv_tokens: u64,
    /// Load in percent of the trace's calibrated arrival rate.
    #[arg(long, default_value_t = 85.0)]
    load: f64,
    /// Arrival rate per second that is 100 % (requests, or conversations in a closed loop).
    #[arg(long)]
    rate: Option<f64>,
    /// Modelled seconds in a real one.
    #[arg(long, default_value_t = 5.0)]
    speed: f64,
    /// Worker threads of Envoy; the simulator has as many routers.
    #[arg(long, default_value_t = 1)]
    concurrency: u32,
    /// Seed of arrival times and of the simulator.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// What is replayed, and in front of what.
#[derive(Debug)]
pub struct Plan {
    /// The Envoy binary.
    pub envoy: PathBuf,
    /// The wasm module.
    pub module: PathBuf,
    /// The Envoy configuration to start from.
    pub config: PathBuf,
    /// Requests and their times.
    pub slice: Slice,
    /// The pool's policy.
    pub policy: Spec,
    /// Whether Envoy's pool has `kv_aware` instead, over an index that the engines tell.
    pub kv_index: bool,
    /// Engines in the pool.
    pub engines: usize,
    /// KV capacity of an engine.
    pub kv_tokens: u64,
    /// Modelled seconds in a real one.
    pub speed: f64,
    /// Worker threads of each Envoy.
    pub workers: u32,
    /// Envoys; each request meets a random one.
    pub replicas: usize,
    /// How they share what they know; absent, they do not.
    pub sync: Option<Sync>,
    /// Seed of the simulator.
    pub seed: u64,
}

/// How several Envoys share what they know.
#[derive(Clone, Debug)]
pub struct Sync {
    /// What the store is made of; it has a front for each Envoy.
    pub binaries: Binaries,
    /// How often each of them tells and asks, in real milliseconds.
    pub interval_ms: u64,
}

/// Runs the `replay` verb.
///
/// # Errors
/// Something does not start, or a request is not served.
pub fn run(args: Args) -> anyhow::Result<()> {
    let plan = plan(&args)?;
    envoy::stop_all_on_signal()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let comparison = runtime.block_on(compare(&plan))?;
    if args.json {
        println!("{}", report::json(&plan, &comparison)?);
    } else {
        print!("{}", report::table(&plan, &comparison));
    }
    Ok(())
}

pub(crate) fn plan(args: &Args) -> anyhow::Result<Plan> {
    ensure!(args.engines > 0, "--engines: got 0, want at least 1");
    ensure!(
        args.speed > 0.0 && args.speed.is_finite(),
        "--speed: got {}, want more than 0",
        args.speed
    );
    let load = Load {
        percent: args.load,
        rate_per_s: args.rate,
        engines: args.engines,
        kv_tokens: args.kv_tokens,
    };
    Ok(Plan {
        envoy: existing(&args.subject.envoy)?,
        module: existing(&args.subject.module)?,
        config: existing(&args.subject.config)?,
        slice: Slice::cut(&args.trace, args.skip, args.requests, &load, args.seed)?,
        policy: Spec::parse(&args.policy)?,
        kv_index: args.kv_index,
        engines: args.engines,
        kv_tokens: args.kv_tokens,
        speed: args.speed,
        workers: args.concurrency.max(1),
        replicas: 1,
        sync: None,
        seed: args.seed,
    })
}

/// Runs the slice in the simulator, then through Envoy.
///
/// # Errors
/// The filter has no such policy, something does not start, or a request is not served.
pub async fn compare(plan: &Plan) -> anyhow::Result<Comparison> {
    let policy = match plan.kv_index {
        true => None,
        false => Some(plan.policy.in_filter(plan.kv_tokens).with_context(|| {
            let name = &plan.policy;
            format!(
                "--policy: got {name}, want round_robin, least_request, p2c or prefix, streamed"
            )
        })?),
    };
    let params = crate::sim::engine_params(plan.kv_tokens, &plan.slice.workload)?;
    let scenario = Scenario {
        engines: plan.engines,
        params: params.clone(),
        routers: plan.workers as usize * plan.replicas,
        // Of several Envoys that share nothing every worker is taken for one of its own.
        shared: plan.replicas == 1 || plan.sync.is_some(),
        seed: plan.seed,
        time_scale: plan.slice.time_scale,
        sync: None,
        scrape_interval_ms: None,
    };
    let workload = &plan.slice.workload;
    // Requests to real engines say how many tokens they want.
    let spec = plan.policy.clone().with_max_tokens();
    let simulated = world::run(workload, &spec, &scenario, |_| {});
    let stack = Stack::start(plan, policy, params).await?;
    stack.introduce_workers().await?;
    let before = stack.counted();
    let store_before_ns = stack.store_cpu_ns()?;
    let start = Instant::now();
    let sent = Clients::new(plan, stack.urls())?
        .run()
        .await
        .with_context(|| format!("Envoy's log ends with:\n{}", stack.log_tail()))?;
    let took = start.elapsed();
    let store_ns = stack.store_cpu_ns()?.zip(store_before_ns);
    let engines = stack.samples(&sent, plan)?;
    ensure!(
        before.after(&stack.counted()) == engines.whole,
        "the engines' counters and their answers disagree"
    );
    let foretold = stack.foretold(workload.requests.len()).await?;
    ensure!(
        foretold.is_none_or(|foretold| foretold.reported == engines.whole.1),
        "the filter read {foretold:?} in answers that say {}",
        engines.whole.1
    );
    Ok(Comparison {
        foretold,
        simulated: Figures::of(&simulated),
        engines: Figures::of(&engines),
        clients: sent.samples(plan).summary(),
        late_ms: 1000.0 * plan.speed * sent.mean_lateness().as_secs_f64(),
        store_cpu_ms_per_s: store_ns
            .map(|(after, before)| (after - before) as f64 / 1e6 / took.as_secs_f64()),
        took_s: took.as_secs_f64(),
        modelled_s: plan.speed * took.as_secs_f64(),
    })
}

/// Modelled microseconds in real time.
fn real(modelled_us: u64, speed: f64) -> Duration {
    Duration::from_micros(modelled_us).div_f64(speed)
}
