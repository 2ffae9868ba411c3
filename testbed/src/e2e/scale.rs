//! The `e2e-scale` verb: several Envoys in front of the same engines, with a real Redis and a real Webdis
//! between them.
//!
//! Without the two servers every test is skipped, loudly; with `CI` in the environment that is an error.

mod faults;
mod front;
mod shared;
mod shipped;
mod strangers;

use std::collections::VecDeque;
use std::sync::Arc;

use libtest_mimic::Trial;
use serde_json::json;
use tokio::sync::Mutex;

use super::Case;
use super::client::{Call, Reply};
use super::conversation::text;
use super::harness::{Context, Stack, StackSpec, eventually};
use super::record::Record;
use super::replica::Replica;
use super::workers::seed;
use crate::envoy;
use crate::store::{self, Binaries, Store};
use crate::subject::{Subject, Workers};

/// How often Envoys tell and ask.
const INTERVAL_MS: u64 = 100;
/// Prompts that one Envoy is told before the first of them is asked of another: so many take longer than an
/// interval, and each is asked for once.
const AHEAD: usize = 20;

/// Arguments of the `e2e-scale` verb.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: Subject,
    #[command(flatten)]
    binaries: Binaries,
    #[command(flatten)]
    workers: Workers,
    #[command(flatten)]
    runner: libtest_mimic::Arguments,
}

/// Runs the tests, and exits with an error status if one fails.
///
/// # Errors
/// Something that is needed is not there.
pub fn run(args: Args) -> anyhow::Result<()> {
    envoy::stop_all_on_signal()?;
    let missing = args.binaries.are_missing()?;
    let mut runner = args.runner.clone();
    if args.binaries.are_given() {
        // Tests have the store for themselves, and one after the other.
        runner.test_threads = Some(1);
    }
    let record = Arc::new(Record::default());
    let mut trials = Vec::new();
    for case in cases(&args) {
        let setting = args.subject.setting(args.workers.concurrency)?;
        let (name, record) = (case.name.clone(), Arc::clone(&record));
        let run = move || case.run(case.name.clone(), setting, &record);
        trials.push(Trial::test(name, run).with_ignored_flag(missing));
    }
    let conclusion = libtest_mimic::run(&runner, trials);
    if !runner.list {
        print!("{}\n{}", record.slowest(), record.faults());
    }
    conclusion.exit()
}

/// The tests that can be run with this store.
fn cases(args: &Args) -> Vec<Case> {
    let binaries = &args.binaries;
    let mut cases = front::cases(binaries);
    cases.extend(shared::cases(binaries));
    cases.extend(strangers::cases(binaries));
    if !binaries.are_given() {
        cases.extend(front::breaking_cases(binaries));
        cases.extend(faults::cases(binaries));
        cases.extend(strangers::breaking_cases(binaries));
        cases.extend(shipped::breaking_cases(binaries));
    }
    cases
}

/// A test that is given what the store is made of.
fn case<Test>(name: &str, binaries: &Binaries, test: Test) -> Case
where
    Test: AsyncFn(&Context, &Binaries) -> anyhow::Result<()> + Send + Sync + 'static,
{
    let binaries = binaries.clone();
    Case::new(name, async move |context: &Context| {
        test(context, &binaries).await
    })
}

/// `stored!(binaries, "theme": a, b)` names the tests `theme::a` and `theme::b` after their functions.
macro_rules! stored {
    ($binaries:expr, $theme:literal: $($test:ident),+ $(,)?) => {
        vec![$($crate::e2e::scale::case(concat!($theme, "::", stringify!($test)), $binaries, $test)),+]
    };
}
use stored;

/// Engines, an Envoy that shares through a store, and another one.
struct Pair<'a> {
    store: Store,
    stack: Stack<'a>,
    other: Replica<'a>,
}

impl<'a> Pair<'a> {
    /// Starts all of it; three engines in `llama` by the policy `prefix`, two in `qwen`.
    async fn start(context: &'a Context, binaries: &Binaries) -> anyhow::Result<Self> {
        let store = Store::start(binaries, 2).await?;
        let stack = Stack::start(context, spec(&store)).await?;
        let other = Replica::beside(&stack).await?;
        let pair = Self {
            store,
            stack,
            other,
        };
        pair.acquainted().await?;
        Ok(pair)
    }

    /// Waits until each Envoy knows of the other's prompts.
    async fn acquainted(&self) -> anyhow::Result<()> {
        let (stack, other) = (&self.stack, &self.other);
        learns(
            async |call| stack.send(call).await,
            async |call| other.send(call).await,
        )
        .await?;
        learns(
            async |call| other.send(call).await,
            async |call| stack.send(call).await,
        )
        .await
    }
}

/// As shipped, with `sync` over the fronts of a store. Nobody is scraped: engines tell of load, too.
fn spec(store: &Store) -> StackSpec {
    let fronts = store.addresses();
    let spec = super::prefix::spec().option("scrape", json!("off"));
    spec.bootstrap(move |bootstrap| store::join(bootstrap, &fronts, store::KEY, INTERVAL_MS))
}

/// A prompt that was never sent before.
pub(crate) fn prompt() -> Call {
    Call::chat("llama-3-8b", &text(seed(), 2000))
}

/// Waits until a prompt that was sent through `teller` is warm at `listener`, which must find it where the
/// engine has it.
pub(crate) async fn learns(
    teller: impl AsyncFn(Call) -> anyhow::Result<Reply>,
    listener: impl AsyncFn(Call) -> anyhow::Result<Reply>,
) -> anyhow::Result<()> {
    let told = Mutex::new(VecDeque::new());
    eventually("an Envoy knows of another's prompts", async || {
        let call = prompt();
        teller(call.clone()).await?.expect_status(200)?;
        let mut told = told.lock().await;
        told.push_back(call);
        if told.len() <= AHEAD {
            return Ok(None);
        }
        let Some(call) = told.pop_front() else {
            return Ok(None);
        };
        Ok(is_warm(&listener(call).await?.expect_status(200)?)?.then_some(()))
    })
    .await
}

/// Whether the filter expected a prompt in a cache and the engine had it there.
pub(crate) fn is_warm(reply: &Reply) -> anyhow::Result<bool> {
    let (_, cached) = reply.prompt_tokens()?;
    Ok(reply.decision()?.reason == "longest_prefix" && cached > 0)
}
