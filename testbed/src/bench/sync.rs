//! The `bench-sync` verb: what it costs several Envoys to share what they learn.
//!
//! Two fleets of the same Envoys stand before the same engines, one with `sync` and a real Redis and Webdis
//! and one without. They take turns in windows, the first in one round being the second in the next, under a
//! load that comes at a fixed rate; the fleet whose turn it is not is halted, so that what it would do
//! unasked is in nobody's figures. Envoys run on one CPU; load, engines and the store on another.

mod fleet;
mod rate;
mod report;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use super::contestant::Setup;
use super::corpus::{Corpus, Style, Warmth};
use super::process::Cpus;
use super::upstream::Upstream;
use super::{ENGINES, parse_bytes, process, progress};
use crate::envoy;
use crate::store::Binaries;
use crate::subject::{Subject, existing};
use fleet::Fleet;
use report::Round;

/// Arguments of the `bench-sync` verb.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: Subject,
    /// Requests per second of each Envoy; as many Envoys as figures.
    #[arg(long, value_delimiter = ',', default_value = "1000,1000,1000")]
    rates: Vec<u32>,
    /// How often Envoys tell and ask, in milliseconds.
    #[arg(long, default_value_t = 100)]
    interval_ms: u64,
    /// Bytes of a body; k and M are understood.
    #[arg(long, default_value = "4k", value_parser = parse_bytes)]
    size: usize,
    /// How often prompts repeat.
    #[arg(long, value_enum, default_value_t = Warmth::Mixed)]
    corpus: Warmth,
    /// Windows of each fleet.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of a window in seconds.
    #[arg(long, default_value_t = 5.0)]
    window_s: f64,
    /// KV capacity of an engine in tokens.
    #[arg(long, default_value_t = 400_000)]
    kv_tokens: u64,
    /// Worker threads of each Envoy.
    #[arg(long, default_value_t = 1)]
    envoy_concurrency: u32,
    #[command(flatten)]
    cpus: Cpus,
    /// Write every figure of every round into this file.
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(flatten)]
    binaries: Binaries,
}

/// Measures, and prints the table.
///
/// # Errors
/// Something does not start, or the Envoys that should share do not.
pub fn run(args: Args) -> anyhow::Result<()> {
    ensure!(args.rounds > 0, "--rounds must be at least 1");
    ensure!(args.window_s >= 0.1, "--window-s must be at least 0.1");
    ensure!(args.size >= 512, "bodies have at least 512 bytes");
    ensure!(!args.rates.is_empty(), "--rates wants a figure");
    envoy::stop_all_on_signal()?;
    if args.binaries.are_missing()? {
        return Ok(());
    }
    // One thread, so that load and engines stay on their CPU.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(bench(&args))
}

async fn bench(args: &Args) -> anyhow::Result<()> {
    let setup = Setup {
        binary: existing(&args.subject.envoy)?,
        config: existing(&args.subject.config)?,
        concurrency: args.envoy_concurrency,
        cpus: args.cpus.pair(),
    };
    if let Some((_, load_cpu)) = setup.cpus {
        process::pin_this_thread(load_cpu)?;
    }
    let upstream = Upstream::start(&[0; ENGINES]).await?;
    let style = Style {
        plain: false,
        model_last: false,
    };
    let corpus = Arc::new(Corpus::shared_prefix(args.size, args.corpus, style));
    let mut fleets = Vec::new();
    for shares in [false, true] {
        let fleet = Fleet::start(args, &setup, &upstream.addresses, shares).await?;
        fleet.warm_up(&corpus).await?;
        fleet.halt()?;
        fleets.push(fleet);
    }
    let bar = progress((args.rounds * fleets.len()) as u64)?;
    let length = Duration::from_secs_f64(args.window_s);
    let mut rounds: [Vec<Round>; 2] = Default::default();
    for number in 0..args.rounds {
        let mut turns: Vec<_> = fleets.iter().zip(&mut rounds).collect();
        if number % 2 == 1 {
            turns.reverse();
        }
        for (fleet, rounds) in turns {
            fleet.go_on().await?;
            rounds.push(fleet.measure(&args.rates, &corpus, length).await?);
            fleet.halt()?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let [apart, sync] = &rounds;
    print!("{}", report::table(&args.rates, apart, sync));
    if let Some(file) = &args.json {
        let document = json!({
            "rates": args.rates,
            "interval_ms": args.interval_ms,
            "body_bytes": args.size,
            "corpus": args.corpus.name(),
            "window_s": args.window_s,
            "workers": args.envoy_concurrency,
            "apart": apart,
            "sync": sync,
        });
        std::fs::write(file, serde_json::to_vec_pretty(&document)?)
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}
