//! Configuration that changes under load: the filter's, good and bad, and the endpoints.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Scene, Struck};
use crate::bench::corpus::MODEL;
use crate::drill::stage::{ENGINES, POOL, Stage, until};
use crate::e2e::ecds::{serves, set_alias};
use crate::envoy::files::write_endpoints;

/// Changes of the configuration.
const RELOADS: usize = 50;
/// Pause between two changes of the endpoints.
const CHURN: Duration = Duration::from_millis(100);
/// Least number of them.
const LEAST_CHANGES: usize = 30;
/// Envoy's figures of the filter that it reads from a file.
const DISCOVERY: &str = "extension_config_discovery.http_filter.warmpath";

/// A new configuration, 50 times.
pub(super) async fn reloads<'a>(scene: Scene<'_, '_>) -> anyhow::Result<Struck<'a>> {
    let Scene {
        stage, load, plan, ..
    } = scene;
    let struck = Struck::now();
    for number in 0..RELOADS {
        reload(stage, &format!("good-{number}")).await?;
        load.more(plan.requests / RELOADS as u64).await?;
    }
    load.more(plan.margin()).await?;
    Ok(struck)
}

/// A configuration that Envoy or the filter refuses, 50 times.
pub(super) async fn bad_reloads<'a>(scene: Scene<'_, '_>) -> anyhow::Result<Struck<'a>> {
    let Scene {
        stage, load, plan, ..
    } = scene;
    reload(stage, "last-good").await?;
    let mut struck = Struck::now();
    let refused = async |stage: &Stage<'_>| -> anyhow::Result<u64> {
        let rejected = stage
            .envoys(&format!("{DISCOVERY}.update_rejected"))
            .await?;
        Ok(rejected + stage.envoys(&format!("{DISCOVERY}.update_failure")).await?)
    };
    let good = std::fs::read_to_string(stage.file())?;
    for number in 0..RELOADS {
        let before = refused(stage).await?;
        write_bad(stage, &good, number)?;
        until("it is refused", async || Ok(refused(stage).await? > before)).await?;
        load.more(plan.requests / RELOADS as u64).await?;
        if !serves(&stage.stack, "last-good").await? {
            struck.missed.push(format!(
                "the last good one does not serve after bad one {number}"
            ));
        }
    }
    load.more(plan.margin()).await?;
    Ok(struck)
}

/// Gives the filter a configuration in which the model has this alias, and waits until it counts.
async fn reload(stage: &mut Stage<'_>, alias: &str) -> anyhow::Result<()> {
    set_alias(&mut stage.stack, POOL, alias, MODEL)?;
    let stage = &*stage;
    until("the new configuration serves", async || {
        serves(&stage.stack, alias).await
    })
    .await?;
    Ok(())
}

/// Puts something in the place of the filter's configuration that is none; each time another.
fn write_bad(stage: &Stage<'_>, good: &str, number: usize) -> anyhow::Result<()> {
    let bad = match number % 5 {
        // An option that the filter does not know.
        0 => good.replace(
            "\\\"default_pool\\\"",
            &format!("\\\"nonsense_{number}\\\""),
        ),
        // No such module.
        1 => good.replace("warmpath.wasm", &format!("warmpath-{number}.wasm")),
        // Half a file.
        2 => good
            .get(..good.len() / 2 + number)
            .unwrap_or_default()
            .to_owned(),
        // Not a filter.
        3 => good.replace(
            "filters.http.wasm.v3.Wasm",
            &format!("filters.http.nothing{number}"),
        ),
        // Configuration of the filter that is no JSON.
        _ => good.replace("\\\"pools\\\":", &format!("{number}")),
    };
    anyhow::ensure!(bad != good, "bad configuration {number} is a good one");
    let (file, written) = (stage.file(), stage.file().with_extension("bad.json"));
    std::fs::write(&written, bad)?;
    std::fs::rename(&written, file)?;
    Ok(())
}

/// Endpoints leave and come back, one after the other.
pub(super) async fn churn<'a>(scene: Scene<'_, '_>) -> anyhow::Result<Struck<'a>> {
    let Scene {
        stage, load, plan, ..
    } = scene;
    let mut struck = Struck::now();
    let addresses: Vec<SocketAddr> = stage.stack.pool(POOL).map(|it| it.address).collect();
    let end = load.sent() + plan.requests;
    let mut changes = 0;
    while load.sent() < end || changes < LEAST_CHANGES {
        let gone = changes % (ENGINES + 1);
        let present = addresses.iter().enumerate().filter(|(at, _)| *at != gone);
        let present: Vec<_> = present.map(|(_, address)| *address).collect();
        write_endpoints(&stage.file(), POOL, &present)?;
        changes += 1;
        tokio::time::sleep(CHURN).await;
    }
    write_endpoints(&stage.file(), POOL, &addresses)?;
    let stage = &*stage;
    struck.back = Some(
        until("all engines are used", async || {
            let usable = stage
                .metric("warmpath_pool_usable_endpoints", &[("pool", POOL)])
                .await?;
            Ok(usable == ENGINES as u64)
        })
        .await?,
    );
    load.more(plan.margin()).await?;
    struck.note = format!("{changes} changes");
    Ok(struck)
}
