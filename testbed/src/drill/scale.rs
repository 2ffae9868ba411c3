//! The `drill-scale` verb: what is lost when the store of several Envoys breaks, or one of them.
//!
//! Real Envoys share through a real Redis behind real Webdis and route a steady load of conversations, each
//! of whose turns goes to any of them, to the engines of the [drill](super). One fault after another
//! strikes for a while. As there, bounds are of logic and not of speed: no request fails but those that a
//! killed Envoy had, every Envoy notices what it must, says so once, and shares again afterwards.

mod conversations;
mod fault;
mod fleet;
mod journal;
mod row;
mod strike;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum as _;
use serde_json::json;

use crate::e2e::harness::Context;
use crate::envoy;
use crate::store::Binaries;
use crate::subject::{Subject, Workers};
use fault::Fault;
use fleet::Fleet;

/// Arguments of the `drill-scale` verb.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: Subject,
    /// Envoys that share.
    #[arg(long, default_value_t = 3)]
    envoys: usize,
    /// Which faults.
    #[arg(long, value_enum, value_delimiter = ',')]
    fault: Vec<Fault>,
    /// Seconds that a fault lasts, and longer if it is not noticed before [default: 30, or 3 with --quick].
    #[arg(long)]
    outage_s: Option<u64>,
    /// Clients, with one conversation each at a time.
    #[arg(long, default_value_t = 48)]
    clients: usize,
    /// Changes every request.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Shorter outages, and shorter load before and after them.
    #[arg(long)]
    quick: bool,
    /// Write the rows into this file.
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(flatten)]
    binaries: Binaries,
    #[command(flatten)]
    workers: Workers,
}

/// How much is done for each fault.
struct Plan {
    clients: usize,
    seed: u64,
    /// How long a fault lasts.
    outage: Duration,
    /// Load before a fault and after it.
    margin: Duration,
    /// The first part of the load after it, of which the hits are told.
    soon: Duration,
}

/// Drills every fault, prints the table, and fails if a bound was missed.
///
/// # Errors
/// The same, or something does not start.
pub fn run(args: Args) -> anyhow::Result<()> {
    envoy::stop_all_on_signal()?;
    if args.binaries.are_missing()? {
        return Ok(());
    }
    ensure!(
        !args.binaries.are_given(),
        "the drill breaks the store, so it must be its own: name binaries"
    );
    ensure!(
        args.envoys > 1,
        "--envoys: got {}, want 2 or more",
        args.envoys
    );
    let seconds = |quick, long| Duration::from_secs(if args.quick { quick } else { long });
    let plan = Plan {
        clients: args.clients,
        seed: args.seed,
        outage: args.outage_s.map_or(seconds(3, 30), Duration::from_secs),
        margin: seconds(1, 10),
        soon: seconds(1, 5),
    };
    let context = Context::new(args.subject.setting(args.workers.concurrency)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let rows = runtime.block_on(drill_all(&context, &args, &plan));
    let rows = rows.with_context(|| context.journal())?;
    print!("{}", row::table(&rows));
    if let Some(file) = &args.json {
        let document = json!({
            "seed": plan.seed,
            "clients": plan.clients,
            "envoys": args.envoys,
            "workers": args.workers.concurrency,
            "rows": rows,
        });
        std::fs::write(file, serde_json::to_vec_pretty(&document)?)
            .with_context(|| format!("writing {}", file.display()))?;
    }
    let missed: Vec<_> = rows.iter().flat_map(|it| &it.missed).collect();
    match missed.first() {
        Some(first) => bail!("{} bounds were missed; the first: {first}", missed.len()),
        None => Ok(()),
    }
}

async fn drill_all(context: &Context, args: &Args, plan: &Plan) -> anyhow::Result<Vec<row::Row>> {
    let faults = match args.fault.as_slice() {
        [] => Fault::value_variants(),
        some => some,
    };
    let mut fleet = Fleet::start(context, &args.binaries, args.envoys).await?;
    let mut rows = Vec::new();
    for &fault in faults {
        let began = Instant::now();
        let row = strike::strike(&mut fleet, fault, plan, rows.len()).await;
        let row = row.with_context(|| fault.name())?;
        eprintln!("{}: {:.1?}", row.fault, began.elapsed());
        for missed in &row.missed {
            eprintln!("  MISSED: {missed}");
        }
        rows.push(row);
    }
    Ok(rows)
}
