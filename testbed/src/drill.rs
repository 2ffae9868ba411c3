//! The `drill` verb: what is lost when something breaks.
//!
//! A real Envoy in the shipped configuration routes a steady, mixed load to four engines, and one fault
//! after another strikes. Each gets a row: what became of every request, how long it took until all was
//! well again, and whether the filter's books are balanced and its memory intact. Bounds are of logic, not
//! of speed: what another engine could have answered must have been answered, and what must happen happens
//! before a deadline that no machine misses.

mod clock;
mod corpus;
mod exchange;
mod load;
mod memory;
mod row;
pub mod scale;
mod script;
mod stage;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::json;

use crate::e2e::Setting;
use crate::e2e::client::Transport;
use crate::e2e::harness::Context;
use crate::envoy;
use crate::subject::{Subject, existing};
use exchange::{Tally, recovery};
use load::Load;
use memory::Memory;
use row::Row;
use script::{Drill, Scene};
use stage::{Kind, Stage, until};

/// Requests for each fault, and of the shorter drill.
const REQUESTS: u64 = 2000;
const QUICK_REQUESTS: u64 = 200;
/// The fault that strikes the core alone.
const CLOCK: &str = "clock_jumps";
/// Numbers of a client's requests that belong to one fault.
const NUMBERS: u64 = 1 << 32;

/// Arguments of the `drill` verb.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: Subject,
    /// The wasm module with the feature `trap`.
    #[arg(long)]
    trap_module: PathBuf,
    /// Numbers of Envoy worker threads; every fault strikes with each.
    #[arg(long, value_delimiter = ',', default_values_t = [2])]
    concurrency: Vec<u32>,
    /// Only faults whose name contains this; may be given several times.
    #[arg(long)]
    fault: Vec<String>,
    /// Requests for each fault [default: 2000, or 200 with --quick].
    #[arg(long)]
    requests: Option<u64>,
    /// Clients, with one request each at a time.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Changes every request.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Fewer requests, and shorter cool-downs than the shipped ones.
    #[arg(long)]
    quick: bool,
    /// Write the rows into this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// How much is done for each fault.
struct Plan {
    requests: u64,
    clients: usize,
    seed: u64,
    quick: bool,
}

impl Plan {
    /// Requests before a fault, and after it is over.
    fn margin(&self) -> u64 {
        (self.requests / 5).max(exchange::CLEAN_WINDOW as u64 * 2)
    }

    /// The shortest and the longest cool-down.
    fn cool_down(&self) -> (Duration, Duration) {
        let (shortest, longest) = if self.quick {
            (250, 1000)
        } else {
            (2000, 30_000)
        };
        (
            Duration::from_millis(shortest),
            Duration::from_millis(longest),
        )
    }
}

/// Drills every fault, prints the table, and fails if a bound was missed.
pub fn run(args: Args) -> anyhow::Result<()> {
    envoy::stop_all_on_signal()?;
    let plan = Plan {
        requests: args.requests.unwrap_or(match args.quick {
            true => QUICK_REQUESTS,
            false => REQUESTS,
        }),
        clients: args.clients,
        seed: args.seed,
        quick: args.quick,
    };
    ensure!(
        plan.clients >= 4,
        "clients: got {}, want 4 or more",
        plan.clients
    );
    let mut rows = Vec::new();
    for &concurrency in &args.concurrency {
        let context = Context::new(Setting {
            trap_module: existing(&args.trap_module)?,
            ..args.subject.setting(concurrency)?
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let drilled = runtime.block_on(drill_all(&context, &plan, &args.fault, concurrency));
        rows.extend(drilled.with_context(|| context.journal())?);
    }
    ensure!(!rows.is_empty(), "no fault is called {:?}", args.fault);
    print!("{}", row::table(&rows));
    if let Some(file) = &args.json {
        let document = json!({"seed": plan.seed, "clients": plan.clients, "rows": rows});
        std::fs::write(file, serde_json::to_vec_pretty(&document)?)
            .with_context(|| format!("writing {}", file.display()))?;
    }
    let missed: Vec<_> = rows.iter().filter(|it| !it.missed.is_empty()).collect();
    if let Some(first) = missed.first() {
        let names: Vec<_> = missed.iter().map(|it| it.fault).collect();
        let why = first.missed.first().map_or("", |it| it);
        bail!("missed by {}; the first: {why}", names.join(", "));
    }
    Ok(())
}

async fn drill_all(
    context: &Context,
    plan: &Plan,
    names: &[String],
    workers: u32,
) -> anyhow::Result<Vec<Row>> {
    let wanted = |drill: &Drill| names.is_empty() || names.iter().any(|it| drill.name.contains(it));
    let drills: Vec<_> = script::all().into_iter().filter(wanted).collect();
    let mut rows = Vec::new();
    for kind in [
        Kind::Shipped,
        Kind::Trap,
        Kind::FilterFile,
        Kind::EndpointFile,
    ] {
        let drills: Vec<_> = drills.iter().filter(|it| it.kind == kind).collect();
        if drills.is_empty() {
            continue;
        }
        let mut stage = Stage::start(context, kind, plan).await?;
        for drill in drills {
            let began = Instant::now();
            let number = rows.len();
            let row = strike(&mut stage, drill, plan, number).await;
            let mut row = row.with_context(|| format!("{}, {workers} workers", drill.name))?;
            row.workers = workers;
            eprintln!("{}, {workers} workers: {:.1?}", drill.name, began.elapsed());
            for missed in &row.missed {
                eprintln!("  MISSED: {missed}");
            }
            rows.push(row);
        }
    }
    if names.is_empty() || names.iter().any(|it| CLOCK.contains(it.as_str())) {
        let mut row = clock::jumps(workers, plan.requests, plan.seed)?;
        row.workers = workers;
        rows.push(row);
    }
    Ok(rows)
}

/// The part of the prompt tokens between two looks that the engines had cached, in percent; `None` if an
/// engine has forgotten what it counted.
fn percent(before: (u64, u64), after: (u64, u64)) -> Option<u64> {
    let cached = 100 * after.1.checked_sub(before.1)?;
    cached.checked_div(after.0.checked_sub(before.0)?)
}

/// One fault, from the load before it until all is well again.
async fn strike(
    stage: &mut Stage<'_>,
    drill: &Drill,
    plan: &Plan,
    number: usize,
) -> anyhow::Result<Row> {
    let victim = (plan.seed as usize).wrapping_add(number) % stage::ENGINES;
    let victims: Vec<_> = drill.victims(victim).into_iter().map(stage::name).collect();
    let memory = Memory::begin(stage, &victims).await?;
    let retries = format!("cluster.{}.upstream_rq_retry", stage::POOL);
    let retried = stage.envoys(&retries).await?;
    let leases = async |stage: &Stage<'_>| stage.metric("warmpath_lease_changes_total", &[]).await;
    let (start, lease) = (stage.prompts(), leases(stage).await?);
    let (clients, transport) = match drill.pins_clients() {
        true => (stage.pinned_clients(plan.clients)?, Some(Transport::Http2)),
        false => (stage.clients(plan.clients)?, None),
    };
    let first = number as u64 * NUMBERS;
    let load = Load::start(clients, &stage.corpus, first, transport);
    load.until_sent(plan.margin()).await?;
    let before = stage.prompts();
    let scene = Scene {
        stage: &mut *stage,
        load: &load,
        plan,
        victim,
    };
    let struck = drill.play(scene).await?;
    let after = stage.prompts();
    load.more(plan.margin()).await?;
    let mut exchanges = load.finish(|id| struck.hopeless.contains(id)).await?;
    exchanges.extend(struck.own);
    let idle = until("nothing counts as in flight", async || {
        stage.is_idle().await
    })
    .await;
    let tally = Tally::of(&exchanges, &*struck.excuse);
    let ms = |it: Duration| it.as_millis() as u64;
    let mut row = Row {
        fault: drill.name,
        sent: tally.sent,
        answered: tally.answered,
        left: tally.left,
        retried: stage.envoys(&retries).await? - retried,
        unsaved: tally.unsaved(),
        reasons: tally
            .unsaved
            .iter()
            .map(|(why, count)| (*why, *count))
            .collect(),
        lost: tally.lost.len(),
        recovery_ms: recovery(&exchanges, struck.at).map(ms),
        aside_ms: struck.aside.map(ms),
        back_ms: struck.back.map(ms),
        idle_ms: idle.as_ref().ok().copied().map(ms),
        hits_percent: percent(start, before).zip(percent(after, stage.prompts())),
        note: struck.note,
        missed: struck.missed,
        ..Row::default()
    };
    let (of, gone) = memory.go_on(stage, &victims).await?;
    row.continued = (of > 0).then_some((of - gone.len(), of));
    let leased = leases(stage).await?.saturating_sub(lease);
    row.check(gone.is_empty(), || {
        format!(
            "not at their cache: {}; {leased} lease changes",
            gone.join("; ")
        )
    });
    row.check(tally.adds_up(), || {
        format!("the sum is not that of all: {tally:?}")
    });
    row.check(tally.lost.is_empty(), || {
        let shown: Vec<_> = tally.lost.iter().take(5).map(String::as_str).collect();
        format!(
            "{} should have been saved: {}",
            tally.lost.len(),
            shown.join("; ")
        )
    });
    let unsaved = row.unsaved;
    row.check(unsaved <= struck.most_unsaved, || {
        format!(
            "{unsaved} unsaved, at most {} expected",
            struck.most_unsaved
        )
    });
    row.check(row.recovery_ms.is_some(), || {
        "no clean window of requests".to_owned()
    });
    row.check(idle.is_ok(), || {
        format!(
            "{:#}",
            idle.err().unwrap_or_else(|| anyhow::anyhow!("busy"))
        )
    });
    Ok(row)
}
