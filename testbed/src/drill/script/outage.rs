//! What is gone: one engine, all of them, Envoy's admin interface.

use std::time::Instant;

use super::engine::{back, put_aside};
use super::{Scene, Struck};
use crate::drill::stage::{ENGINES, name, until};
use crate::relay::Passage;

/// An engine is killed, and starts again with an empty cache.
pub(super) async fn one<'a>(scene: Scene<'_, '_>) -> anyhow::Result<Struck<'a>> {
    let Scene {
        stage,
        load,
        plan,
        victim,
    } = scene;
    stage.kill(victim).await?;
    let mut struck = Struck::now();
    let (dead, killed) = (name(victim), struck.at);
    struck.most_unsaved = plan.clients;
    struck.excuse = Box::new(move |it| {
        let there = it.begun && it.engine.as_deref() == Some(&dead);
        (there && it.began < killed).then_some("the answer had begun")
    });
    let scene = Scene {
        stage,
        load,
        plan,
        victim,
    };
    let aside = put_aside(&scene, struck.at, true).await?;
    struck.aside = aside.map(|it| it.after);
    scene.stage.restart(victim).await?;
    struck.back = back(&scene, true).await?;
    Ok(struck)
}

/// All engines are killed, and start again.
pub(super) async fn all<'a>(scene: Scene<'_, '_>) -> anyhow::Result<Struck<'a>> {
    let Scene {
        stage, load, plan, ..
    } = scene;
    let down = Instant::now();
    for number in 0..ENGINES {
        stage.kill(number).await?;
    }
    load.more(plan.requests / 5).await?;
    for number in 0..ENGINES {
        stage.restart(number).await?;
    }
    let mut struck = Struck::now();
    let up = struck.at;
    struck.most_unsaved = usize::MAX;
    struck.excuse = Box::new(move |it| it.overlaps(down, up).then_some("no engine was up"));
    let stage = &*stage;
    struck.back = Some(
        until("all engines have their share again", async || {
            for number in 0..ENGINES {
                let asked = stage.engine(number)?.engine.seen_count() > 0;
                if !asked || !stage.is_used(number).await? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await?,
    );
    load.more(plan.requests).await?;
    Ok(struck)
}

/// Nobody can ask Envoy for its endpoints.
pub(super) async fn admin<'a>(scene: Scene<'_, '_>) -> anyhow::Result<Struck<'a>> {
    let Scene {
        stage, load, plan, ..
    } = scene;
    let stage = &*stage;
    let mut struck = Struck::now();
    for passage in [Passage::Reset, Passage::Hang] {
        let errors = async || stage.metric("warmpath_discovery_errors_total", &[]).await;
        let before = errors().await?;
        stage.admin.set(passage);
        load.more(plan.requests / 2).await?;
        until("it is noticed", async || Ok(errors().await? > before)).await?;
    }
    stage.admin.set(Passage::Open);
    for number in 0..ENGINES {
        if !stage.is_used(number).await? {
            struck.missed.push(format!("{} is put aside", name(number)));
        }
    }
    let asked = async || {
        stage
            .envoys("cluster.prometheus_stats.upstream_rq_2xx")
            .await
    };
    let before = asked().await?;
    struck.back = Some(until("it answers again", async || Ok(asked().await? > before)).await?);
    load.more(plan.margin()).await?;
    Ok(struck)
}
