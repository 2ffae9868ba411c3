//! The `bench` verb: what routing costs, measured side by side on real routers.
//!
//! All routers of a run are started once. For each load (corpus, body size, concurrency) they take
//! turns in short windows, A B C A B C, so that whatever else the machine does meets all of them
//! alike; only figures of one run are compared. Routers are pinned to one CPU, load and engines to
//! another. The first router is Envoy without the filter; ratios are to it.

pub mod contestant;
pub mod corpus;
pub mod load;
mod memory;
pub mod process;
mod report;
pub mod sync;
pub mod upstream;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::envoy;
use crate::subject::{Subject, existing};
use contestant::{Contestant, Peer, Setup, Variant};
use corpus::{Corpus, Style, Warmth};
use process::Cpus;
use report::{Cell, Round, Row};
use upstream::Upstream;

/// Engines behind every router.
const ENGINES: usize = 4;
/// Connections of the first, unmeasured requests.
const WARM_UP_CONNECTIONS: usize = 8;

/// Arguments of the `bench` verb.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: Subject,
    /// Policies of warmpath; each gets an Envoy of its own.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "round_robin,consistent_hash,prefix"
    )]
    policy: Vec<String>,
    /// Other builds of the module, to compare with: each policy runs with all of them.
    #[arg(long, value_delimiter = ',')]
    against: Vec<PathBuf>,
    /// Other Envoys without the filter.
    #[arg(long, value_delimiter = ',')]
    also: Vec<Also>,
    /// Another router in the same run, NAME=http://IP:PORT[,pid=N]; may be given several times.
    #[arg(long)]
    peer: Vec<Peer>,
    /// Body sizes; k and M are understood.
    #[arg(long, value_delimiter = ',', default_value = "1k,32k,128k,220k,1M", value_parser = parse_bytes)]
    sizes: Vec<usize>,
    /// How often prompts repeat.
    #[arg(long, value_delimiter = ',', default_value = "hot,cold,mixed")]
    corpus: Vec<Warmth>,
    /// Requests under way at a time.
    #[arg(long, value_delimiter = ',', default_value = "1,64")]
    concurrency: Vec<usize>,
    /// Windows of each router under each load.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Length of a window in seconds.
    #[arg(long, default_value_t = 2.0)]
    window_s: f64,
    /// Prompts without JSON escapes, instead of one in about 70 bytes.
    #[arg(long)]
    plain: bool,
    /// Put the model at the end of bodies.
    #[arg(long)]
    model_last: bool,
    /// KV capacity of an engine in tokens, for policies that look at prompts.
    #[arg(long, default_value_t = 400_000)]
    kv_tokens: u64,
    /// Send this many distinct prompts of 32 KB to each router instead, and report its memory.
    #[arg(long)]
    memory: Option<u64>,
    /// Worker threads of each Envoy.
    #[arg(long, default_value_t = 1)]
    envoy_concurrency: u32,
    #[command(flatten)]
    cpus: Cpus,
    /// Ports of the four engines, for peers that must know them [default: free ones].
    #[arg(long, value_delimiter = ',')]
    engine_ports: Vec<u16>,
    /// Write every figure of every round into this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Envoys without the filter, beside the bare one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Also {
    /// Without retries and header mutations too.
    Minimal,
    /// With Envoy's native buffer filter.
    Buffer,
    /// With a native filter that sets the headers which warmpath sets.
    Steered,
}

/// Runs the `bench` verb.
pub fn run(args: Args) -> anyhow::Result<()> {
    check(&args)?;
    envoy::stop_all_on_signal()?;
    // One thread, so that load and engines stay on their CPU.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(bench(&args))
}

fn check(args: &Args) -> anyhow::Result<()> {
    ensure!(args.rounds > 0, "--rounds must be at least 1");
    ensure!(args.window_s >= 0.1, "--window-s must be at least 0.1");
    ensure!(
        args.sizes.iter().all(|size| *size >= 512),
        "bodies have at least 512 bytes"
    );
    ensure!(
        !args.concurrency.contains(&0),
        "--concurrency must be at least 1"
    );
    let ports = args.engine_ports.len();
    ensure!(
        ports == 0 || ports == ENGINES,
        "--engine-ports wants {ENGINES} ports"
    );
    Ok(())
}

async fn bench(args: &Args) -> anyhow::Result<()> {
    let setup = Setup {
        binary: existing(&args.subject.envoy)?,
        config: existing(&args.subject.config)?,
        concurrency: args.envoy_concurrency,
        cpus: cpus(args)?,
    };
    if let Some((_, load_cpu)) = setup.cpus {
        process::pin_this_thread(load_cpu)?;
    }
    let ports = match args.engine_ports.as_slice() {
        [] => &[0; ENGINES],
        ports => ports,
    };
    let upstream = Upstream::start(ports).await?;
    let mut contestants = Vec::new();
    for (name, variant) in variants(args)? {
        let started = Contestant::start(&name, &variant, &setup, &upstream.addresses).await?;
        contestants.push(started);
    }
    for peer in &args.peer {
        contestants.push(Contestant::meet(peer, &setup).await?);
    }
    let results = match args.memory {
        Some(prompts) => measure_memory(&contestants, prompts).await?,
        None => measure_cost(&contestants, args).await?,
    };
    if let Some(file) = &args.json {
        std::fs::write(file, serde_json::to_string_pretty(&results)?)
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

/// The CPU of routers and that of everything else, unless there is only one.
fn cpus(args: &Args) -> anyhow::Result<Option<(usize, usize)>> {
    let pair = args.cpus.pair();
    if pair.is_some() && std::thread::available_parallelism()?.get() < 2 {
        bail!("there is one CPU only: run with --unpinned, and distrust latencies");
    }
    Ok(pair)
}

/// The Envoys, the one that all are compared with first.
fn variants(args: &Args) -> anyhow::Result<Vec<(String, Variant)>> {
    let mut found = vec![("envoy".to_owned(), Variant::Bare)];
    for also in &args.also {
        found.push(match also {
            Also::Minimal => ("envoy minimal".to_owned(), Variant::Minimal),
            Also::Buffer => ("envoy + buffer".to_owned(), Variant::Buffer),
            Also::Steered => ("envoy steered".to_owned(), Variant::Steered),
        });
    }
    for name in &args.policy {
        let options = match name.as_str() {
            "prefix" | "cache_aware" => json!({"kv_tokens": args.kv_tokens}),
            _ => json!({}),
        };
        let warmpath = |module: &Path| -> anyhow::Result<_> {
            Ok(Variant::Warmpath {
                policy: json!({ name: options }),
                module: existing(module)?,
            })
        };
        found.push((name.clone(), warmpath(&args.subject.module)?));
        for module in &args.against {
            let build = module.file_stem().unwrap_or_default().display();
            found.push((format!("{name} ({build})"), warmpath(module)?));
        }
    }
    Ok(found)
}

async fn measure_memory(contestants: &[Contestant], prompts: u64) -> anyhow::Result<Value> {
    let bar = progress(prompts * contestants.len() as u64)?;
    let mut growths = Vec::new();
    for contestant in contestants {
        bar.set_message(contestant.name.clone());
        growths.push(memory::run(contestant, prompts, &bar).await?);
    }
    bar.finish_and_clear();
    print!("{}", memory::table(&growths));
    Ok(json!({ "memory": growths }))
}

async fn measure_cost(contestants: &[Contestant], args: &Args) -> anyhow::Result<Value> {
    let loads = args.corpus.len() * args.sizes.len() * args.concurrency.len();
    let bar = progress((loads * args.rounds * contestants.len()) as u64)?;
    let style = Style {
        plain: args.plain,
        model_last: args.model_last,
    };
    let mut cells = Vec::new();
    for &warmth in &args.corpus {
        for &body_bytes in &args.sizes {
            let corpus = Arc::new(Corpus::shared_prefix(body_bytes, warmth, style));
            for contestant in contestants {
                warm_up(contestant, &corpus).await?;
            }
            for &concurrency in &args.concurrency {
                let rows = measure_load(contestants, &corpus, concurrency, args, &bar).await?;
                let cell = Cell {
                    corpus: warmth.name(),
                    body_bytes,
                    concurrency,
                    rows,
                };
                let table = cell.table()?;
                bar.suspend(|| print!("{table}"));
                cells.push(cell);
            }
        }
    }
    bar.finish_and_clear();
    Ok(json!({
        "rounds": args.rounds,
        "window_s": args.window_s,
        "envoy_concurrency": args.envoy_concurrency,
        "plain": args.plain,
        "model_last": args.model_last,
        "kv_tokens": args.kv_tokens,
        "cells": cells,
    }))
}

/// Every prompt once, so that code is compiled and what can be known is known.
async fn warm_up(contestant: &Contestant, corpus: &Arc<Corpus>) -> anyhow::Result<()> {
    let count = corpus.len() as u64;
    let errors = load::send(contestant.address, corpus, WARM_UP_CONNECTIONS, count).await?;
    let name = &contestant.name;
    ensure!(
        errors == 0,
        "{name} did not answer {errors} of {count} requests with 200"
    );
    Ok(())
}

/// The rounds of one load: each contestant in turn, several times.
async fn measure_load(
    contestants: &[Contestant],
    corpus: &Arc<Corpus>,
    concurrency: usize,
    args: &Args,
    bar: &ProgressBar,
) -> anyhow::Result<Vec<Row>> {
    let length = Duration::from_secs_f64(args.window_s);
    let mut before = Vec::new();
    for contestant in contestants {
        before.push(rss(contestant)?);
    }
    let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); contestants.len()];
    for _ in 0..args.rounds {
        for (contestant, rounds) in contestants.iter().zip(&mut rounds) {
            bar.set_message(contestant.name.clone());
            let (address, process) = (contestant.address, contestant.process);
            let window = load::measure(address, process, corpus, concurrency, length)
                .await
                .with_context(|| format!("measuring {}", contestant.name))?;
            rounds.push(Round::of(&window, rss(contestant)?));
            bar.inc(1);
        }
    }
    let first = rounds.first().cloned().unwrap_or_default();
    let named = contestants.iter().zip(before).zip(rounds);
    Ok(named
        .map(|((contestant, before), rounds)| Row::new(&contestant.name, before, rounds, &first))
        .collect())
}

fn rss(contestant: &Contestant) -> anyhow::Result<Option<u64>> {
    contestant
        .process
        .map(process::Process::rss_bytes)
        .transpose()
}

fn progress(steps: u64) -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {eta} left  {msg}")?;
    Ok(ProgressBar::new(steps).with_style(style))
}

fn parse_bytes(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (text.get(..at), 1 << 10),
        Some((at, 'm' | 'M')) => (text.get(..at), 1 << 20),
        _ => (Some(text), 1),
    };
    let number: Option<usize> = digits.and_then(|digits| digits.parse().ok());
    number
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(|| format!("`{text}` is no size"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_bytes("32k"), Ok(32 << 10));
        assert_eq!(parse_bytes("1M"), Ok(1 << 20));
        assert_eq!(parse_bytes("700"), Ok(700));
        assert!(parse_bytes("k").is_err());
        assert!(parse_bytes("").is_err());
    }
}
