//! The `simulate` verb: routing policies compared on a request trace, by discrete-event simulation
//! of a fleet of [`crate::model`] engines. All results are simulated, none are measured.
//!
//! A cell is one policy at one load; its figures are means over the seeds. Cells are independent
//! and run on all cores; the order of results, and the results, do not depend on that.

pub mod batch;
pub mod calibrate;
pub mod fleet;
pub mod plot;
pub mod policy;
pub mod rates;
pub mod report;
pub mod request;
pub mod statistics;
pub mod text;
pub mod workload;
pub mod world;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::ValueEnum;

use crate::model::ModelParams;
use crate::trace::format;
use policy::Spec;
use rates::Calibration;
use report::Cell;
use statistics::Summary;
use workload::Workload;
use world::Scenario;

/// What routers share with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shared {
    /// Each has a state of its own.
    None,
    /// All act on one state.
    All,
    /// Those of the `prefix` policy tell each other what they learn, as Envoys with `sync` do.
    Sync,
}

/// Arguments of the `simulate` verb.
#[derive(clap::Args)]
pub struct Args {
    /// Trace to run (.jsonl.zst).
    #[arg(long)]
    trace: PathBuf,
    /// Policies to compare, NAME or NAME=PARAMETERS.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "round_robin,least_request,cache_aware,gie,ours_reference,oracle_best"
    )]
    policy: Vec<String>,
    /// Engines in the fleet.
    #[arg(long, default_value_t = 8)]
    engines: usize,
    /// KV capacity of an engine in tokens; k and M are understood.
    #[arg(long, default_value = "400k", value_parser = parse_tokens)]
    kv_tokens: u64,
    /// Loads in percent of the trace's calibrated arrival rate.
    #[arg(long, value_delimiter = ',', default_value = "85")]
    load: Vec<f64>,
    /// Arrival rate per second that is 100 % (requests, or conversations in a closed loop).
    #[arg(long)]
    rate: Option<f64>,
    /// Routers, each of which gets a random part of the requests.
    #[arg(long, default_value_t = 1)]
    routers: usize,
    /// What routers share.
    #[arg(long, value_enum, default_value_t = Shared::None)]
    shared: Shared,
    /// Milliseconds between two batches that a router sends to the others.
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(50..=10_000))]
    sync_interval: u64,
    /// Percent of these batches that are lost.
    #[arg(long, value_name = "PCT", default_value_t = 0.0)]
    sync_loss: f64,
    /// Milliseconds between two scrapes of an engine by each router of the `prefix` policy [default:
    /// never].
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(100..=600_000))]
    scrape_interval: Option<u64>,
    /// Seeds; figures are means over them.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    seed: Vec<u64>,
    /// Copies of the trace run together, with prompts of their own [default: as calibrated].
    #[arg(long)]
    copies: Option<u32>,
    /// Tokens in a KV block, a multiple of the trace's [default: as calibrated].
    #[arg(long)]
    block_tokens: Option<u32>,
    /// Find the arrival rate that is 100 % load, print it and stop.
    #[arg(long)]
    calibrate: bool,
    /// Print one JSON object per cell instead of a table.
    #[arg(long)]
    json: bool,
    /// Draw mean time to first token against load into this file.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Runs at a time [default: the machine's cores].
    #[arg(long)]
    jobs: Option<usize>,
}

/// Runs the `simulate` verb.
pub fn run(args: Args) -> anyhow::Result<()> {
    ensure!(args.engines > 0, "--engines: got 0, want at least 1");
    let specs = parse_policies(&args.policy)?;
    let known = Calibration::find(&args.trace, args.kv_tokens);
    let workloads = load_workloads(&args, known)?;
    let Some(workload) = workloads.first() else {
        anyhow::bail!("--seed: got none, want at least one");
    };
    let scenario = base_scenario(&args, workload)?;
    if args.calibrate {
        return print_calibration(workload, &scenario, args.engines);
    }
    let rate_per_s = args
        .rate
        .or(known.map(|line| line.rate_per_s(args.engines)))
        .context("no calibrated rate for this trace and KV size: give --rate, or --calibrate")?;
    ensure!(
        rate_per_s > 0.0,
        "--rate: got {rate_per_s}, want more than 0"
    );
    let mut cells = empty_cells(&args, &specs, rate_per_s)?;
    batch::run(&mut cells, &args.seed, &workloads, &scenario, args.jobs)?;
    let cells: Vec<Cell> = cells.into_iter().map(|(cell, _)| cell).collect();
    if args.json {
        report::json(&cells, &mut std::io::stdout().lock())?;
    } else {
        report::table(&cells, &mut std::io::stdout().lock())?;
    }
    if let Some(path) = &args.plot {
        let title = format!(
            "{}: {} engines of {} KV tokens (simulated)",
            args.trace
                .file_stem()
                .and_then(|s| s.to_str())
                .unwrap_or("trace"),
            args.engines,
            args.kv_tokens
        );
        std::fs::write(path, plot::svg(&title, &cells)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// The policies, with the names they were given by.
fn parse_policies(names: &[String]) -> anyhow::Result<Vec<(String, Spec)>> {
    names
        .iter()
        .map(|name| Ok((name.clone(), Spec::parse(name)?)))
        .collect()
}

/// `400000`, `400k` or `2M`.
pub fn parse_tokens(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'M']) {
        Some(digits) if text.ends_with('k') => (digits, 1_000),
        Some(digits) => (digits, 1_000_000),
        None => (text, 1),
    };
    digits
        .parse()
        .map(|n: u64| n * unit)
        .map_err(|_| format!("got {text}, want a number of tokens such as 400k or 2M"))
}

/// One workload per seed; they differ only where copies are placed at random.
fn load_workloads(args: &Args, known: Option<&Calibration>) -> anyhow::Result<Vec<Workload>> {
    let records = format::read(&args.trace)?;
    let block_tokens = args.block_tokens.or(known.map(|line| line.block_tokens));
    let default_copies = known.map_or(1, |line| {
        line.copies * u32::try_from(args.engines / 8).unwrap_or(1).max(1)
    });
    let copies = args.copies.unwrap_or(default_copies);
    args.seed
        .iter()
        .map(|seed| Workload::new(&records, block_tokens, copies, *seed))
        .collect()
}

fn base_scenario(args: &Args, workload: &Workload) -> anyhow::Result<Scenario> {
    Ok(Scenario {
        engines: args.engines,
        params: engine_params(args.kv_tokens, workload)?,
        routers: args.routers,
        shared: args.shared == Shared::All,
        sync: (args.shared == Shared::Sync).then_some(world::Sync {
            interval_ms: args.sync_interval,
            loss_percent: args.sync_loss,
        }),
        seed: args.seed.first().copied().unwrap_or(1),
        time_scale: 1.0,
        scrape_interval_ms: args.scrape_interval,
    })
}

/// Engines with `kv_tokens` in blocks of the workload's size.
pub fn engine_params(kv_tokens: u64, workload: &Workload) -> anyhow::Result<ModelParams> {
    let kv_blocks = u32::try_from(kv_tokens / u64::from(workload.block_tokens))
        .context("--kv-tokens: more than 2^32 blocks")?;
    Ok(ModelParams {
        block_tokens: workload.block_tokens,
        kv_blocks,
        ..ModelParams::default()
    })
}

fn print_calibration(
    workload: &Workload,
    scenario: &Scenario,
    engines: usize,
) -> anyhow::Result<()> {
    let rate = calibrate::calibrate(workload, scenario, |rate, mean_s| {
        eprintln!("{rate:.4} /s: mean TTFT {mean_s:.3} s");
    })?;
    let unit = if workload.is_closed_loop() {
        "conversations"
    } else {
        "requests"
    };
    println!("100 % load on {engines} engines: {rate:.3} {unit} per second");
    Ok(())
}

/// Every policy at every load, without figures.
fn empty_cells(
    args: &Args,
    specs: &[(String, Spec)],
    rate_per_s: f64,
) -> anyhow::Result<Vec<(Cell, Spec)>> {
    let mut cells = Vec::new();
    for (name, spec) in specs {
        for &load_percent in &args.load {
            ensure!(
                load_percent > 0.0,
                "--load: got {load_percent}, want more than 0"
            );
            let cell = Cell {
                policy: name.clone(),
                load_percent,
                rate_per_s: rate_per_s * load_percent / 100.0,
                seeds: args.seed.len(),
                chosen: None,
                run_s: 0.0,
                summary: Summary::default(),
            };
            cells.push((cell, spec.clone()));
        }
    }
    Ok(cells)
}
