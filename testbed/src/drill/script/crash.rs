//! The VM of each worker crashes, one after the other.

use std::time::Instant;

use anyhow::Context as _;

use super::{Scene, Struck};
use crate::drill::exchange::{Ending, Exchange};
use crate::drill::stage::until;
use crate::e2e::client::Call;
use crate::e2e::workers::Workers;

/// A crash: of which worker, and between when.
#[derive(Clone, Copy)]
struct Crash {
    worker: usize,
    from: Instant,
    to: Instant,
}

/// Each worker crashes once.
pub(super) async fn each_worker<'a>(scene: Scene<'_, '_>) -> anyhow::Result<Struck<'a>> {
    let Scene {
        stage, load, plan, ..
    } = scene;
    let stage = &*stage;
    let workers = stage.pinned()?;
    let reloads = async || stage.envoys("wasm.warmpath.vm_reload_success").await;
    // Envoy replaces a VM at once if it is older than a second.
    until("the VMs are old enough", async || {
        Ok(stage.metric("warmpath_uptime_seconds", &[]).await? > 2)
    })
    .await?;
    let mut struck = Struck::now();
    let mut crashes = Vec::new();
    for worker in 0..workers.count() {
        let before = reloads().await?;
        let (crash, exchange) = crash(workers, worker).await?;
        // Service resumes with the next request.
        let again = workers
            .send(worker, Call::chat(crate::bench::corpus::MODEL, "hello"))
            .await;
        if !again.is_ok_and(|reply| reply.status == 200) {
            struck
                .missed
                .push(format!("worker {worker} does not serve the next request"));
        }
        until("the VM is replaced", async || Ok(reloads().await? > before)).await?;
        struck.own.push(exchange);
        crashes.push(crash);
        load.more(plan.requests / workers.count() as u64).await?;
    }
    struck.back = Some(
        until("all workers are known again", async || {
            Ok(stage.metric("warmpath_workers", &[]).await? == workers.count() as u64)
        })
        .await?,
    );
    load.more(plan.margin()).await?;
    // A crash takes what was in flight, and the request that caused it.
    struck.most_unsaved = (plan.clients.div_ceil(workers.count()) + 1) * workers.count();
    let count = workers.count();
    struck.excuse = Box::new(move |it| excuse(it, &crashes, count));
    Ok(struck)
}

fn excuse(it: &Exchange, crashes: &[Crash], workers: usize) -> Option<&'static str> {
    if it.client == usize::MAX {
        return Some("the request that made it crash");
    }
    let hit =
        |crash: &Crash| crash.worker == it.client % workers && it.overlaps(crash.from, crash.to);
    crashes
        .iter()
        .any(hit)
        .then_some("in flight at the worker that crashed")
}

async fn crash(workers: &Workers, worker: usize) -> anyhow::Result<(Crash, Exchange)> {
    let mut call = Call::get("/v1/models").header("x-warmpath-trap", "here")?;
    let id = call.request_id()?;
    let from = Instant::now();
    let answer = workers.send(worker, call).await;
    let to = Instant::now();
    let why = match answer {
        Ok(reply) if reply.status == 200 => None.context("the VM did not crash")?,
        Ok(reply) => format!("status {}", reply.status),
        Err(error) => format!("{error:#}"),
    };
    let crash = Crash { worker, from, to };
    let exchange = Exchange {
        id,
        client: usize::MAX,
        envoy: workers.client(worker)?.target(),
        began: from,
        ended: to,
        engine: None,
        begun: false,
        ending: Ending::Failed { why },
    };
    Ok((crash, exchange))
}
