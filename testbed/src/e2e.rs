//! The `e2e` verb: every promise of the filter, shown on a real Envoy.
//!
//! A test is a name and an async function; it starts its own Envoy and engines with
//! [`harness::Stack`], on ports of its own, and asserts outcomes: which engine answered, with what.
//! Every test runs once per requested number of Envoy worker threads, because what workers share is
//! what breaks. To add a theme, write `e2e/<theme>.rs` with a `cases()` and name it in [`cases`].

mod admission;
mod answers;
mod arrival;
mod bodies;
mod canned;
pub(crate) mod client;
pub(crate) mod conversation;
mod counters;
mod disaggregation;
pub(crate) mod ecds;
mod failures;
mod feedback;
mod filter_state;
mod fleet;
mod gateways;
pub(crate) mod harness;
mod health;
mod hostile;
mod kv_aware;
mod limits;
mod makers;
mod migrate;
mod models;
mod passing;
mod policies;
mod prefix;
mod pressure;
mod ranks;
mod raw;
mod record;
mod refusals;
mod replay;
pub(crate) mod replica;
mod roles;
mod routing;
pub(crate) mod scale;
mod sessions;
mod spec;
mod spread;
mod stall;
mod status;
mod telemetry;
mod trust;
mod unknown;
mod worked;
pub(crate) mod workers;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use libtest_mimic::{Conclusion, Failed, Trial};

use crate::envoy;
use crate::subject::existing;
use harness::Context;
use record::{Entry, Record};

/// A test that takes longer hangs.
const TEST_DEADLINE: Duration = Duration::from_secs(180);

/// Arguments of the `e2e` verb.
#[derive(clap::Args)]
pub struct Args {
    /// The Envoy binary.
    #[arg(long)]
    envoy: PathBuf,
    /// The engine of Envoy that runs the module.
    #[arg(long, default_value = "v8")]
    runtime: String,
    #[command(flatten)]
    suite: Suite,
}

/// What is run, whatever the Envoy.
#[derive(clap::Args)]
pub struct Suite {
    /// The wasm module.
    #[arg(long)]
    pub(crate) module: PathBuf,
    /// The wasm module with the feature `trap`.
    #[arg(long)]
    trap_module: PathBuf,
    /// The Envoy configuration that tests start from.
    #[arg(long, default_value = "envoy/static.yaml")]
    pub(crate) config: PathBuf,
    /// Numbers of Envoy worker threads; every test runs with each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    concurrency: Vec<u32>,
    #[command(flatten)]
    runner: libtest_mimic::Arguments,
}

/// Runs the tests, and exits with an error status if one fails.
pub fn run(args: Args) -> anyhow::Result<()> {
    envoy::stop_all_on_signal()?;
    let (conclusion, _) = args.suite.run(&args.envoy, &args.runtime)?;
    conclusion.exit()
}

impl Suite {
    /// Runs the tests in an Envoy with one of its runtimes. Gives their number and the names of those
    /// that failed.
    pub fn run(&self, envoy: &Path, runtime: &str) -> anyhow::Result<(Conclusion, Vec<String>)> {
        let record = Arc::new(Record::default());
        let mut trials = Vec::new();
        for &concurrency in &self.concurrency {
            for case in cases() {
                let setting = Setting {
                    envoy: existing(envoy)?,
                    runtime: runtime.to_owned(),
                    module: existing(&self.module)?,
                    trap_module: existing(&self.trap_module)?,
                    config: existing(&self.config)?,
                    concurrency,
                };
                let name = match (case.workers, self.concurrency.first()) {
                    (None, _) => format!("{} [workers={concurrency}]", case.name),
                    (Some(workers), first) if first == Some(&concurrency) => {
                        format!("{} [workers={workers}]", case.name)
                    }
                    _ => continue,
                };
                let record = Arc::clone(&record);
                trials.push(Trial::test(name.clone(), move || {
                    case.run(name, setting, &record)
                }));
            }
        }
        let conclusion = libtest_mimic::run(&self.runner, trials);
        if !self.runner.list {
            print!("{}\n{}", record.slowest(), record.faults());
        }
        Ok((conclusion, record.failed()))
    }
}

/// Every test, theme by theme.
fn cases() -> Vec<Case> {
    [
        routing::cases(),
        sessions::cases(),
        policies::cases(),
        models::cases(),
        limits::cases(),
        passing::cases(),
        refusals::cases(),
        prefix::cases(),
        kv_aware::cases(),
        pressure::cases(),
        replay::cases(),
        answers::cases(),
        bodies::cases(),
        failures::cases(),
        feedback::cases(),
        telemetry::cases(),
        status::cases(),
        makers::cases(),
        migrate::cases(),
        fleet::cases(),
        ranks::cases(),
        roles::cases(),
        health::cases(),
        stall::cases(),
        admission::cases(),
        trust::cases(),
        worked::cases(),
        hostile::cases(),
        disaggregation::cases(),
        ecds::cases(),
        gateways::cases(),
        filter_state::cases(),
        unknown::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What all tests of one run share.
pub(crate) struct Setting {
    /// The Envoy binary.
    pub(crate) envoy: PathBuf,
    /// Name of its wasm runtime.
    pub(crate) runtime: String,
    /// The wasm module.
    pub(crate) module: PathBuf,
    /// The wasm module with the feature `trap`.
    pub(crate) trap_module: PathBuf,
    /// The Envoy configuration to start from.
    pub(crate) config: PathBuf,
    /// Envoy's worker threads.
    pub(crate) concurrency: u32,
}

type Body = Box<dyn Fn(&Context) -> anyhow::Result<()> + Send + Sync>;

/// One test.
struct Case {
    name: String,
    /// What it says of workers if it chooses their numbers itself; it then runs once.
    workers: Option<&'static str>,
    body: Body,
}

impl Case {
    /// A test called `name`.
    fn new<Test>(name: &str, test: Test) -> Self
    where
        Test: AsyncFn(&Context) -> anyhow::Result<()> + Send + Sync + 'static,
    {
        let body = move |context: &Context| {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?;
            runtime.block_on(async {
                tokio::time::timeout(TEST_DEADLINE, test(context))
                    .await
                    .with_context(|| format!("still running after {TEST_DEADLINE:?}"))?
            })
        };
        Self {
            name: name.to_owned(),
            workers: None,
            body: Box::new(body),
        }
    }

    /// The same test, which chooses the numbers of workers itself.
    fn with_own_workers(mut self, workers: &'static str) -> Self {
        self.workers = Some(workers);
        self
    }

    fn run(&self, name: String, setting: Setting, record: &Record) -> Result<(), Failed> {
        let context = Context::new(setting);
        let began = Instant::now();
        let outcome = (self.body)(&context);
        record.add(Entry {
            name,
            took: began.elapsed(),
            fault: outcome.as_ref().err().map(|error| format!("{error:#}")),
        });
        outcome.map_err(|error| Failed::from(format!("{error:#}\n\n{}", context.journal())))
    }
}

/// `named!("theme": a, b)` names the tests `theme::a` and `theme::b` after their functions.
macro_rules! named {
    ($theme:literal: $($test:ident),+ $(,)?) => {
        vec![$($crate::e2e::Case::new(concat!($theme, "::", stringify!($test)), $test)),+]
    };
}
use named;
