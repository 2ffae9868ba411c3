//! The `microbench` verb: the core's micro benchmarks natively and inside the V8 of a real Envoy.
//!
//! Both run the same code of `warmpath-bench`. A case runs until a run takes long enough to be timed
//! and everything is compiled; then both take turns, and each figure is the median of its runs. Inside
//! Envoy time is taken by the module itself, around all iterations of a run, so neither HTTP nor the
//! border of the VM is in it.

use std::time::Instant;

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use warmpath_bench::{Case, Work, all};

use crate::envoy::bootstrap::{Addresses, Bootstrap};
use crate::envoy::{self, Envoy, Launch};
use crate::subject::Subject;

/// Runs before the length of a run is settled: V8 compiles in the background what is called often.
const LEAST_WARM_UPS: usize = 3;
/// Most runs to find the length.
const MOST_WARM_UPS: usize = 40;

/// Arguments of the `microbench` verb.
#[derive(clap::Args)]
#[command(mut_arg("module", |it| it.help("The wasm module of `warmpath-bench`")))]
pub struct Args {
    #[command(flatten)]
    subject: Subject,
    /// Only the cases whose name contains this.
    #[arg(long, default_value = "")]
    case: String,
    /// Runs of each case on each side.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Least length of a run in milliseconds.
    #[arg(long, default_value_t = 100)]
    run_ms: u64,
}

/// Runs the `microbench` verb.
pub fn run(args: Args) -> anyhow::Result<()> {
    ensure!(args.rounds > 0, "--rounds must be at least 1");
    ensure!(args.run_ms > 0, "--run-ms must be at least 1");
    envoy::stop_all_on_signal()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure_all(&args))
}

async fn measure_all(args: &Args) -> anyhow::Result<()> {
    let named = |case: &Case| case.to_string().contains(&args.case);
    let cases: Vec<Case> = all().into_iter().filter(named).collect();
    ensure!(!cases.is_empty(), "no case is called `{}`", args.case);
    let inside = Inside::start(&args.subject).await?;
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {eta} left  {msg}")?;
    let bar = ProgressBar::new(cases.len() as u64).with_style(style);
    let mut table = vec![HEADING.map(str::to_owned)];
    let mut step_ns = u64::MAX;
    for case in cases {
        bar.set_message(case.to_string());
        let figures = measure(case, &inside, args)
            .await
            .with_context(|| format!("measuring {case}"))?;
        step_ns = step_ns.min(figures.step_ns);
        table.push(figures.row(case));
        bar.inc(1);
    }
    bar.finish_and_clear();
    print!("{}", aligned(&table));
    println!("clock inside Envoy: steps of {step_ns} ns, reading it included");
    Ok(())
}

/// What was measured of one case.
struct Figures {
    /// Nanoseconds per iteration.
    native: f64,
    inside: f64,
    step_ns: u64,
}

async fn measure(case: Case, inside: &Inside, args: &Args) -> anyhow::Result<Figures> {
    let least_ns = args.run_ms as f64 * 1e6;
    let mut native = Native(case.prepare());
    let native_length = settle(least_ns, async |length| Ok(native.run(length))).await?;
    let inside_run = async |length| Ok(inside.run(case, length).await?.took_ns);
    let inside_length = settle(least_ns, inside_run).await?;
    let (mut natives, mut insides, mut step_ns) = (Vec::new(), Vec::new(), u64::MAX);
    for _ in 0..args.rounds {
        natives.push(native.run(native_length) / native_length as f64);
        let run = inside.run(case, inside_length).await?;
        insides.push(run.took_ns / inside_length as f64);
        step_ns = step_ns.min(run.step_ns);
    }
    Ok(Figures {
        native: median(natives)?,
        inside: median(insides)?,
        step_ns,
    })
}

/// Finds how many iterations take `least_ns`, warming everything up.
async fn settle(
    least_ns: f64,
    mut run: impl AsyncFnMut(u64) -> anyhow::Result<f64>,
) -> anyhow::Result<u64> {
    let mut length = 1;
    for warm_up in 0..MOST_WARM_UPS {
        let took_ns = run(length).await?.max(1.0);
        if took_ns >= least_ns && warm_up >= LEAST_WARM_UPS {
            return Ok(length);
        }
        // Not more than ten times as long: the first runs are slower than all others.
        let factor = (1.2 * least_ns / took_ns).clamp(1.0, 10.0);
        length = (length as f64 * factor).ceil() as u64;
    }
    Ok(length)
}

/// A case in this process.
struct Native(Work);

impl Native {
    fn run(&mut self, iterations: u64) -> f64 {
        let start = Instant::now();
        std::hint::black_box(self.0(iterations));
        start.elapsed().as_secs_f64() * 1e9
    }
}

/// An Envoy with the module that runs cases.
struct Inside {
    envoy: Envoy,
    client: reqwest::Client,
    url: String,
}

/// What the module answers.
#[derive(Debug, PartialEq)]
struct Run {
    took_ns: f64,
    step_ns: u64,
}

impl Inside {
    async fn start(subject: &Subject) -> anyhow::Result<Self> {
        let mut bootstrap = Bootstrap::load(&subject.config)?;
        let addresses = Addresses::free()?;
        bootstrap.set_addresses(addresses)?;
        bootstrap.stop_health_checks()?;
        bootstrap.set_module(
            &subject
                .module
                .canonicalize()
                .with_context(|| format!("finding the module {}", subject.module.display()))?,
        );
        let launch = Launch {
            binary: subject.envoy.clone(),
            bootstrap,
            concurrency: 1,
            component_log_level: String::new(),
        };
        Ok(Self {
            envoy: Envoy::start(launch).await?,
            client: reqwest::Client::builder().no_proxy().build()?,
            url: format!("http://{}", addresses.listener),
        })
    }

    async fn run(&self, case: Case, iterations: u64) -> anyhow::Result<Run> {
        let url = format!("{}/{case}?{iterations}", self.url);
        let answer = self.client.get(url).send().await?;
        let status = answer.status();
        ensure!(
            status.is_success(),
            "the module answered {status}:\n{}",
            self.envoy.log_tail()
        );
        parse(&answer.text().await?)
    }
}

fn parse(line: &str) -> anyhow::Result<Run> {
    let mut numbers = line.split_whitespace().map(str::parse::<u64>);
    let mut next = || numbers.next().context("a number is missing");
    Ok(Run {
        took_ns: next()?? as f64,
        step_ns: next()??,
    })
}

fn median(mut figures: Vec<f64>) -> anyhow::Result<f64> {
    figures.sort_by(f64::total_cmp);
    let middle = figures.get(figures.len() / 2);
    middle.copied().context("nothing was measured")
}

const HEADING: [&str; 5] = ["case", "native", "in V8", "x", "in V8 per KB"];

impl Figures {
    fn row(&self, case: Case) -> [String; 5] {
        let per_kilobyte = |size: usize| time(self.inside / size as f64);
        [
            case.to_string(),
            time(self.native),
            time(self.inside),
            format!("{:.2}", self.inside / self.native),
            case.kilobytes().map(per_kilobyte).unwrap_or_default(),
        ]
    }
}

/// Nanoseconds in the unit that leaves few digits.
fn time(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{ns:.1} ns"),
        ns if ns < 1e6 => format!("{:.2} us", ns / 1e3),
        ns => format!("{:.2} ms", ns / 1e6),
    }
}

/// Names to the left, figures to the right.
fn aligned(table: &[[String; 5]]) -> String {
    let width = |column: usize| {
        let cells = table.iter().filter_map(|row| row.get(column));
        cells.map(String::len).max().unwrap_or_default()
    };
    let mut text = String::new();
    for [name, figures @ ..] in table {
        text.push_str(&format!("{name:<0$}", width(0)));
        for (at, figure) in figures.iter().enumerate() {
            text.push_str(&format!("  {figure:>0$}", width(at + 1)));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_line_is_understood() {
        let run = Run {
            took_ns: 1500.0,
            step_ns: 32,
        };
        assert_eq!(parse("1500 32 77\n").unwrap(), run);
        assert!(parse("1500").is_err());
        assert!(parse("1500 a 7").is_err());
    }

    #[test]
    fn columns_are_aligned_and_times_have_units() {
        let row = |name: &str, ns: f64| {
            let time = time(ns);
            [
                name.to_owned(),
                time.clone(),
                time,
                String::new(),
                String::new(),
            ]
        };
        let text = aligned(&[row("a", 12.34), row("long", 12_340_000.0)]);
        assert_eq!(text, "a      12.3 ns   12.3 ns\nlong  12.34 ms  12.34 ms\n");
    }

    #[tokio::test]
    async fn a_run_is_made_long_enough() {
        let mut runs = 0;
        let slow_at_first = async |length: u64| {
            runs += 1;
            Ok(length as f64 * if runs < 3 { 5000.0 } else { 10.0 })
        };
        let length = settle(1e6, slow_at_first).await.unwrap();
        assert!((100_000..200_000).contains(&length), "{length}");
    }
}
