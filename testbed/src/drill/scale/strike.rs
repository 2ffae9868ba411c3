//! One fault, from the load before it until the Envoys share again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::Plan;
use super::conversations::Conversations;
use super::fault::Fault;
use super::fleet::Fleet;
use super::journal::{self, Entry};
use super::row::Row;
use crate::drill::NUMBERS;
use crate::drill::exchange::Tally;
use crate::drill::load::Load;
use crate::drill::stage::until;
use crate::e2e::client::{Call, Client};
use crate::e2e::scale::{is_warm, prompt};

/// Prompts that are told before an Envoy is killed.
const TOLD: usize = 400;
/// How many of them in a row must be warm when it is back.
const WARM: usize = 5;

/// Strikes, and waits until all is well again.
pub(super) async fn strike(
    fleet: &mut Fleet<'_>,
    fault: Fault,
    plan: &Plan,
    number: usize,
) -> anyhow::Result<Row> {
    let envoys = fleet.clients().len();
    fleet.are_whole(envoys).await?;
    let told = match fault {
        Fault::EnvoyKilled => tell(fleet).await?,
        _ => Vec::new(),
    };
    let logged: Vec<_> = fleet.journals()?.iter().map(Vec::len).collect();
    let leases = fleet.lease_changes().await?;
    let asking = Arc::new(Conversations::new(plan.seed, fleet.clients()));
    let load = Load::of(
        Arc::clone(&asking) as _,
        plan.clients,
        number as u64 * NUMBERS,
    );
    // Until conversations are at any of their turns.
    tokio::time::sleep(plan.margin).await;
    let start = fleet.prompts();
    tokio::time::sleep(plan.margin).await;
    let before = fleet.prompts();
    let lost = begin(fleet, fault, &asking).await?;
    let noticed = outlast(fleet, fault, plan, envoys).await?;
    let during = fleet.prompts();
    let warnings = changes(fleet, &logged)?;
    fault.end(fleet).await?;
    let over = Instant::now();
    if fault == Fault::EnvoyKilled {
        asking.open(fleet.clients());
    }
    let fleet = &*fleet;
    let soon = async {
        tokio::time::sleep(plan.soon).await;
        Ok(fleet.prompts())
    };
    let warm = is_warm_again(fleet, told, over);
    let (whole, warm, soon) = tokio::try_join!(fleet.are_whole(envoys), warm, soon)?;
    tokio::time::sleep(plan.margin).await;
    fleet.are_acquainted().await?;
    let exchanges = load.finish(|_| false).await?;
    let tally = Tally::of(&exchanges, &|it| {
        let (envoy, until) = lost.as_ref()?;
        (it.envoy == envoy.target() && it.began <= *until)
            .then_some("in flight at the killed Envoy")
    });
    let ms = |it: Duration| it.as_millis() as u64;
    let all = changes(fleet, &logged)?;
    let mut row = Row {
        fault: fault.name(),
        sent: tally.sent,
        in_flight: tally.unsaved(),
        failed: tally.lost.len(),
        noticed_ms: noticed.map(ms),
        whole_ms: Some(ms(whole)),
        warm_ms: warm.map(ms),
        hits_percent: [
            percent(start, before),
            fault.lasts().then(|| percent(before, during)).flatten(),
            percent(during, soon),
        ],
        warnings: all
            .iter()
            .map(|it| journal::warnings(it))
            .max()
            .unwrap_or(0),
        missed: Vec::new(),
    };
    row.check(tally.adds_up(), || {
        format!("the sum is not that of all: {tally:?}")
    });
    row.check(tally.lost.is_empty(), || {
        let shown: Vec<_> = tally.lost.iter().take(5).map(String::as_str).collect();
        format!("{} requests failed: {}", tally.lost.len(), shown.join("; "))
    });
    row.check(tally.unsaved() <= plan.clients, || {
        format!("{} failed at the killed Envoy", tally.unsaved())
    });
    // Whoever takes the lease over says anew what it sees.
    let leases = fleet.lease_changes().await?.saturating_sub(leases) as usize;
    said_once(&mut row, fault, &warnings, &all, leases);
    Ok(row)
}

/// Lets a fault begin. Returns the Envoy that was killed, if one was, and when it was gone: requests
/// that began later are none of its.
async fn begin(
    fleet: &mut Fleet<'_>,
    fault: Fault,
    asking: &Conversations,
) -> anyhow::Result<Option<(Client, Instant)>> {
    if fault != Fault::EnvoyKilled {
        fault.begin(fleet).await?;
        return Ok(None);
    }
    // As a load balancer does that sees its connections break: nothing new comes here.
    let mut clients = fleet.clients();
    let dead = clients.pop().context("no replica")?;
    asking.open(clients);
    fault.begin(fleet).await?;
    Ok(Some((dead, Instant::now())))
}

/// Waits until the Envoys show the fault, and until it has lasted as planned. Returns how long the first
/// took; `None` if there is nothing to show.
async fn outlast(
    fleet: &Fleet<'_>,
    fault: Fault,
    plan: &Plan,
    envoys: usize,
) -> anyhow::Result<Option<Duration>> {
    if !fault.lasts() {
        return Ok(None);
    }
    let began = Instant::now();
    let noticed = until("every Envoy notices", async || {
        let sights = fleet.sights().await?;
        Ok(sights.iter().all(|it| !it.is_whole(envoys - 1)))
    })
    .await?;
    if fault.blinds() {
        until(
            "every Envoy knows that the store does not answer",
            async || {
                let sights = fleet.sights().await?;
                Ok(sights.iter().all(|it| it.is_blind()))
            },
        )
        .await?;
    }
    tokio::time::sleep(plan.outage.saturating_sub(began.elapsed())).await;
    Ok(Some(noticed))
}

/// Tells prompts to the first Envoy, and waits until all know them.
async fn tell(fleet: &Fleet<'_>) -> anyhow::Result<Vec<Call>> {
    let mut told = Vec::with_capacity(TOLD);
    for _ in 0..TOLD {
        let call = prompt();
        fleet.send(call.clone()).await?.expect_status(200)?;
        told.push(call);
    }
    fleet.are_acquainted().await?;
    Ok(told)
}

/// Waits until the restarted Envoy finds what was told before it began; says how long after `served`.
async fn is_warm_again(
    fleet: &Fleet<'_>,
    told: Vec<Call>,
    served: Instant,
) -> anyhow::Result<Option<Duration>> {
    if told.is_empty() {
        return Ok(None);
    }
    let clients = fleet.clients();
    let client = clients.last().context("no replica")?;
    let next = AtomicUsize::new(0);
    // Each is asked once: after that this Envoy knows it by itself.
    until("a restarted Envoy is warm", async || {
        for _ in 0..WARM {
            let call = told.get(next.fetch_add(1, Ordering::Relaxed));
            let call = call.context("no prompt that was told is warm")?;
            if !is_warm(&client.send(call.clone()).await?.expect_status(200)?)? {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await?;
    Ok(Some(served.elapsed()))
}

/// What each Envoy has logged since. One that was killed and started again has logged nothing before.
fn changes(fleet: &Fleet<'_>, logged: &[usize]) -> anyhow::Result<Vec<Vec<Entry>>> {
    let journals = fleet.journals()?.into_iter().zip(logged);
    let since = |(all, before): (Vec<Entry>, &usize)| match all.get(*before..) {
        Some(since) => since.to_vec(),
        None => all,
    };
    Ok(journals.map(since).collect())
}

/// Every change is said once: at each Envoy that the store does not answer, and that it hears the others.
fn said_once(
    row: &mut Row,
    fault: Fault,
    meanwhile: &[Vec<Entry>],
    all: &[Vec<Entry>],
    leases: usize,
) {
    let repeated: usize = all.iter().map(|it| journal::repeated(it)).sum();
    row.check(repeated <= leases, || {
        format!("said more than once: {all:?}")
    });
    let blind = |it: &Vec<Entry>| it.iter().filter(|it| **it == Entry::Blind).count();
    for (meanwhile, all) in meanwhile.iter().zip(all) {
        let (want, then, ever) = (usize::from(fault.blinds()), blind(meanwhile), blind(all));
        let met = (want..=want + leases).contains(&then) && (want..=want + leases).contains(&ever);
        row.check(met, || {
            format!("said {ever} times that the store does not answer: {all:?}")
        });
        let last = all.last().is_none_or(|it| *it == Entry::Whole);
        row.check(last, || {
            format!("does not say that it hears the others: {all:?}")
        });
    }
}

/// The part of the prompt tokens between two looks that the engines had cached, in percent.
fn percent(before: (u64, u64), after: (u64, u64)) -> Option<f64> {
    let all = after.0.checked_sub(before.0).filter(|it| *it > 0)?;
    Some(100.0 * after.1.checked_sub(before.1)? as f64 / all as f64)
}
