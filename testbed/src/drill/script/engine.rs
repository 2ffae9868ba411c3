//! One engine goes wrong: in what it answers, or in what it says of itself.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{FAILURES, Harm, Scene, Struck};
use crate::drill::stage::until;
use crate::engine::{Engine, Fault, FaultPlan};

/// How often the state of an engine is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(25);
/// How long it may take to put an engine aside.
const PATIENCE: Duration = Duration::from_secs(120);

/// When an engine was found to be put aside.
pub(super) struct Aside {
    /// After how long.
    pub(super) after: Duration,
    /// How many requests it had got by then.
    pub(super) had: u64,
}

/// An engine goes wrong, and is well again later.
pub(super) async fn goes_wrong<'a>(
    scene: Scene<'_, '_>,
    fault: FaultPlan,
    harm: Harm,
) -> anyhow::Result<Struck<'a>> {
    let Scene {
        stage,
        load,
        plan,
        victim,
    } = scene;
    let engine = &stage.engine(victim)?.engine;
    let seen = engine.seen_count();
    engine.set_fault(fault);
    let mut struck = Struck::now();
    let scene = Scene {
        stage,
        load,
        plan,
        victim,
    };
    let aside = put_aside(&scene, struck.at, harm != Harm::Nothing).await?;
    let lasted = struck.at.elapsed();
    let engine = &scene.stage.engine(victim)?.engine;
    engine.set_fault(Fault::None);
    let got = engine.seen_count() - seen;
    struck.back = back(&scene, aside.is_some()).await?;
    let hit = hit_by(engine, fault.fault.name());
    if harm != Harm::Nothing && hit.is_empty() {
        struck.missed.push("the fault met no request".to_owned());
    }
    let workers = scene.stage.stack.workers();
    let probes = most_probes(lasted, plan.cool_down());
    match harm {
        Harm::Nothing | Harm::Retried => {}
        Harm::Begun => {
            struck.most_unsaved = FAILURES * workers + plan.clients + probes;
            let hit = hit.clone();
            struck.excuse = Box::new(move |it| {
                (it.begun && hit.contains(&it.id)).then_some("the answer had begun")
            });
        }
        Harm::Hung => {
            let had = aside.as_ref().map_or(got, |it| it.had - seen);
            let probed = got.saturating_sub(had) as usize;
            struck.note =
                format!("it had {had} requests when it was put aside, and {probed} probes");
            if probed > probes + workers {
                struck
                    .missed
                    .push(format!("{probed} probes, at most {probes} expected"));
            }
            struck.most_unsaved = plan.clients + probes;
            struck.hopeless = hit.clone();
            let hit = hit.clone();
            struck.excuse = Box::new(move |it| {
                hit.contains(&it.id)
                    .then_some("in flight when it hung, or a probe of it")
            });
        }
    }
    struck.aside = aside.map(|it| it.after);
    Ok(struck)
}

/// Waits until the requests of the plan were sent, and the engine was put aside if it must be.
pub(super) async fn put_aside(
    scene: &Scene<'_, '_>,
    since: Instant,
    must: bool,
) -> anyhow::Result<Option<Aside>> {
    let Scene {
        stage,
        load,
        plan,
        victim,
    } = scene;
    let target = load.sent() + plan.requests;
    let mut aside = None;
    while load.sent() < target || (must && aside.is_none()) {
        if aside.is_none() && !stage.is_used(*victim).await? {
            aside = Some(Aside {
                after: since.elapsed(),
                had: stage.engine(*victim)?.engine.seen_count(),
            });
        }
        let late = since.elapsed() > PATIENCE && load.sent() >= target;
        ensure!(!late, "the engine is not put aside after {PATIENCE:?}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(aside)
}

/// Waits until an engine that was put aside has its share again, and for a few requests more.
pub(super) async fn back(
    scene: &Scene<'_, '_>,
    was_aside: bool,
) -> anyhow::Result<Option<Duration>> {
    let Scene {
        stage,
        load,
        plan,
        victim,
    } = scene;
    let seen = stage.engine(*victim)?.engine.seen_count();
    let took = until("the engine has its share again", async || {
        let asked = stage.engine(*victim)?.engine.seen_count() > seen;
        Ok(asked && stage.is_used(*victim).await?)
    })
    .await?;
    load.more(plan.margin()).await?;
    Ok(was_aside.then_some(took))
}

/// The requests that met a fault of this name.
fn hit_by(engine: &Engine, fault: &str) -> HashSet<String> {
    let log = engine.log();
    let hit = log.iter().filter(|it| it.fault == Some(fault));
    hit.filter_map(|it| it.header("x-request-id"))
        .map(|id| String::from_utf8_lossy(id).into_owned())
        .collect()
}

/// The most probes in a time: each comes after twice the pause of the one before, up to the longest.
fn most_probes(lasted: Duration, (shortest, longest): (Duration, Duration)) -> usize {
    let (mut at, mut pause, mut probes) = (Duration::ZERO, shortest, 1);
    while at < lasted {
        at += pause;
        pause = longest.min(pause * 2);
        probes += 1;
    }
    probes
}

/// Metrics of engines go wrong, and nobody loses anything by it.
pub(super) async fn scrapes_go_wrong<'a>(
    scene: Scene<'_, '_>,
    fault: FaultPlan,
    engines: usize,
) -> anyhow::Result<Struck<'a>> {
    let Scene {
        stage,
        load,
        plan,
        victim,
    } = scene;
    let numbers: Vec<usize> = (0..engines)
        .map(|it| (victim + it) % super::super::stage::ENGINES)
        .collect();
    for &number in &numbers {
        stage.engine(number)?.engine.set_fault(fault);
    }
    let mut struck = Struck::now();
    load.more(plan.requests).await?;
    for &number in &numbers {
        until("the engine was asked for its metrics", async || {
            let scrapes = stage.engine(number)?.engine.scrapes();
            Ok(scrapes.iter().filter(|&&it| it > struck.at).count() > 1)
        })
        .await?;
        if !stage.is_used(number).await? {
            struck
                .missed
                .push(format!("{number} is put aside for its metrics"));
        }
    }
    for &number in &numbers {
        stage.engine(number)?.engine.set_fault(Fault::None);
    }
    struck.back = Some(
        until("no figures are stale", async || {
            Ok(stage.metric("warmpath_pool_stale_endpoints", &[]).await? == 0)
        })
        .await?,
    );
    load.more(plan.margin()).await?;
    Ok(struck)
}
