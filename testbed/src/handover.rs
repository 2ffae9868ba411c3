//! The `handover` verb: what it costs to have a prompt computed by one engine and answered by another,
//! beside the two calls that this takes anyway.
//!
//! One client, one prefill and one decode engine. The client makes the two calls itself, through an Envoy
//! without the filter, and is timed while it waits for them and not while it writes the second from the
//! answer to the first; then it makes one call through warmpath, which makes the two. Both ways take turns
//! request by request, with prompts of their own, so that whatever else the machine does meets both alike.

mod calls;
mod stack;

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde::Serialize;

use crate::bench::process::{Cpus, pin_this_thread};
use crate::engine::Connector;
use crate::envoy;
use crate::subject::Subject;
use calls::{Direct, warmpath};
use stack::Stack;

/// Requests of each way before the clock counts.
const WARM_UP: u32 = 50;

/// Arguments of the `handover` verb.
#[derive(clap::Args)]
#[command(mut_arg("config", |it| it.default_value("envoy/disaggregation.yaml")))]
pub struct Args {
    #[command(flatten)]
    subject: Subject,
    /// How KV travels; each has engines and Envoys of its own.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "nixl")]
    connector: Vec<Connector>,
    /// Bytes of a prompt.
    #[arg(long, value_delimiter = ',', default_value = "32768")]
    sizes: Vec<usize>,
    /// Requests of each way in a round.
    #[arg(long, default_value_t = 200)]
    requests: u32,
    /// Rounds; what is reported is their median.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    #[command(flatten)]
    cpus: Cpus,
    /// Write the figures of every round into this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Figures of one round, in microseconds.
#[derive(Debug, Clone, Serialize)]
struct Round {
    connector: String,
    prompt_bytes: usize,
    direct_p50_us: f64,
    direct_p99_us: f64,
    warmpath_p50_us: f64,
    warmpath_p99_us: f64,
}

/// Runs the `handover` verb.
///
/// # Errors
/// Something does not start, or a request was not served by both engines.
pub fn run(args: Args) -> anyhow::Result<()> {
    ensure!(
        args.requests > 0 && args.rounds > 0,
        "want requests and rounds"
    );
    envoy::stop_all_on_signal()?;
    // One thread, so that client and engines stay on their CPU.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(&args))
}

async fn measure(args: &Args) -> anyhow::Result<()> {
    if let Some((_, load_cpu)) = args.cpus.pair() {
        pin_this_thread(load_cpu)?;
    }
    let mut rounds = Vec::new();
    print!("{}", heading());
    for &connector in &args.connector {
        let stack = Stack::start(args, connector).await?;
        for &prompt_bytes in &args.sizes {
            let of_size = of_size(args, &stack, connector, prompt_bytes).await?;
            print!("{}", row(&of_size)?);
            rounds.extend(of_size);
        }
        stack.confirm()?;
    }
    if let Some(file) = &args.json {
        std::fs::write(file, serde_json::to_string_pretty(&rounds)?)
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

async fn of_size(
    args: &Args,
    stack: &Stack,
    connector: Connector,
    prompt_bytes: usize,
) -> anyhow::Result<Vec<Round>> {
    let direct = Direct::new(stack, connector).await?;
    let name = connector.to_possible_value();
    let mut rounds = Vec::new();
    for round in 0..=args.rounds {
        let (mut alone, mut routed) = (Vec::new(), Vec::new());
        let requests = if round == 0 { WARM_UP } else { args.requests };
        for _ in 0..requests {
            alone.push(direct.send(prompt_bytes).await?);
            routed.push(warmpath(stack, prompt_bytes).await?);
        }
        if round == 0 {
            continue;
        }
        alone.sort_unstable();
        routed.sort_unstable();
        rounds.push(Round {
            connector: name.as_ref().map_or("", |name| name.get_name()).to_owned(),
            prompt_bytes,
            direct_p50_us: quantile_us(&alone, 0.5),
            direct_p99_us: quantile_us(&alone, 0.99),
            warmpath_p50_us: quantile_us(&routed, 0.5),
            warmpath_p99_us: quantile_us(&routed, 0.99),
        });
    }
    Ok(rounds)
}

fn quantile_us(sorted: &[Duration], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = (last as f64 * share).round() as usize;
    sorted.get(at).map_or(0.0, |it| it.as_secs_f64() * 1e6)
}

fn heading() -> String {
    format!(
        "{:<10} {:>9} {:>12} {:>12} {:>12} {:>12} {:>12}\n",
        "connector", "prompt B", "two calls", "warmpath", "added p50", "two p99", "warmpath p99"
    )
}

/// Medians over rounds; what is added is the median of what each round added.
fn row(rounds: &[Round]) -> anyhow::Result<String> {
    let first = rounds.first().context("no round")?;
    let median = |of: fn(&Round) -> f64| {
        let mut values: Vec<_> = rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    let mut out = String::new();
    writeln!(
        out,
        "{:<10} {:>9} {:>9.0} us {:>9.0} us {:>+9.0} us {:>9.0} us {:>9.0} us",
        first.connector,
        first.prompt_bytes,
        median(|it| it.direct_p50_us),
        median(|it| it.warmpath_p50_us),
        median(|it| it.warmpath_p50_us - it.direct_p50_us),
        median(|it| it.direct_p99_us),
        median(|it| it.warmpath_p99_us),
    )?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_median_of_what_was_added() {
        let round = |direct: f64, routed: f64| Round {
            connector: "nixl".to_owned(),
            prompt_bytes: 1000,
            direct_p50_us: direct,
            direct_p99_us: 9.0,
            warmpath_p50_us: routed,
            warmpath_p99_us: 9.0,
        };
        let row = row(&[round(10.0, 20.0), round(100.0, 107.0), round(50.0, 80.0)]).unwrap();
        assert!(row.contains("+10 us"), "{row}");
        let times: Vec<_> = (0..=100).map(Duration::from_micros).collect();
        assert_eq!(quantile_us(&times, 0.99).round(), 99.0);
    }
}
