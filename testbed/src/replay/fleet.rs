//! The `replay-fleet` verb: the same slice of a trace through one Envoy, through several that know nothing
//! of each other, and through several that share through a store.
//!
//! Engines, requests and their times are the same in every row; only the Envoys in front differ.

use std::fmt::Write;

use anyhow::ensure;
use serde_json::json;

use super::report::Comparison;
use super::{Plan, Sync, compare};
use crate::envoy;
use crate::store::Binaries;

/// Arguments of the `replay-fleet` verb.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    replay: super::Args,
    /// Envoys in the rows with several.
    #[arg(long, default_value_t = 3)]
    replicas: usize,
    /// Which rows to run.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Row::One, Row::Apart, Row::Sync])]
    rows: Vec<Row>,
    /// How often Envoys that share tell and ask, in real milliseconds.
    #[arg(long, default_value_t = 100)]
    interval_ms: u64,
    #[command(flatten)]
    binaries: Binaries,
}

/// What stands in front of the engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Row {
    /// One Envoy.
    One,
    /// Several that share nothing.
    Apart,
    /// Several that share through a store.
    Sync,
}

/// Runs the `replay-fleet` verb.
///
/// # Errors
/// Something does not start, or a request is not served.
pub fn run(args: Args) -> anyhow::Result<()> {
    ensure!(
        args.replicas > 1,
        "--replicas: got {}, want 2 or more",
        args.replicas
    );
    let mut plan = super::plan(&args.replay)?;
    envoy::stop_all_on_signal()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    if !args.replay.json {
        print!("{}", heading(&plan));
    }
    for &row in &args.rows {
        plan.replicas = match row {
            Row::One => 1,
            Row::Apart | Row::Sync => args.replicas,
        };
        plan.sync = (row == Row::Sync).then(|| Sync {
            binaries: args.binaries.clone(),
            interval_ms: args.interval_ms,
        });
        let found = runtime.block_on(compare(&plan))?;
        let name = row.name(plan.replicas);
        if args.replay.json {
            println!("{}", json(&name, &plan, &found));
        } else {
            print!("{}", line(&name, &found));
        }
    }
    Ok(())
}

impl Row {
    fn name(self, replicas: usize) -> String {
        match self {
            Self::One => "one Envoy".to_owned(),
            Self::Apart => format!("{replicas} Envoys, apart"),
            Self::Sync => format!("{replicas} Envoys, sync"),
        }
    }
}

fn heading(plan: &Plan) -> String {
    format!(
        "{} requests, {} engines of {} KV tokens, {}, {} worker(s) in each Envoy, {} modelled s in a real one\n\
         {:18} {:>9} {:>9} {:>9} {:>7} {:>7} {:>9} {:>8}\n",
        plan.slice.workload.requests.len(),
        plan.engines,
        plan.kv_tokens,
        plan.policy,
        plan.workers,
        plan.speed,
        "",
        "hit %",
        "of all",
        "TTFT mean",
        "p50 s",
        "p99 s",
        "max/mean",
        "late ms",
    )
}

/// What the engines say.
fn line(name: &str, found: &Comparison) -> String {
    let mut out = String::new();
    let summary = &found.engines.summary;
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{name:18} {:>9.2} {:>9.2} {:>9.3} {:>7.3} {:>7.3} {:>9.2} {:>8.1}",
        summary.hit_percent,
        found.engines.whole_hit_percent,
        summary.ttft_mean_s,
        summary.ttft_p50_s,
        summary.ttft_p99_s,
        summary.work_max_over_mean,
        found.late_ms,
    );
    if let Some(ms) = found.store_cpu_ms_per_s {
        let _ = writeln!(out, "{:18} the store: {ms:.1} ms of CPU each second", "");
    }
    out
}

fn json(name: &str, plan: &Plan, found: &Comparison) -> serde_json::Value {
    json!({
        "row": name,
        "replicas": plan.replicas,
        "interval_ms": plan.sync.as_ref().map(|sync| sync.interval_ms),
        "requests": plan.slice.workload.requests.len(),
        "engine_count": plan.engines,
        "kv_tokens": plan.kv_tokens,
        "workers": plan.workers,
        "speed": plan.speed,
        "seed": plan.seed,
        "engines": found.engines,
        "simulated": found.simulated,
        "late_ms": found.late_ms,
        "store_cpu_ms_per_s": found.store_cpu_ms_per_s,
        "took_s": found.took_s,
    })
}
