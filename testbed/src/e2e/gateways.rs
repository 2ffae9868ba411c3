//! The manifests for Istio and Envoy Gateway route: what their hosts make of them runs in a real Envoy,
//! in front of engines.
//!
//! No cluster and no control plane is needed. [`istio`] and [`envoy_gateway`] do what the control planes
//! do with the objects of an overlay; what they write is what Envoy is started with.

mod envoy_gateway;
mod istio;
mod prompts;
mod sample;
mod second_pool;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::client::{Call, Reply, Transport};
use super::conversation::text;
use super::counters::counter;
use super::harness::{Context, Stack, StackSpec, eventually};
use super::workers::seed;
use super::{Case, named};
use crate::envoy::bootstrap::Bootstrap;
use crate::manifests;
use envoy_gateway::Names;
use prompts::follows_prompts;
use sample::Place;
use second_pool::routes_to_a_second_pool;

pub(super) fn cases() -> Vec<Case> {
    named!("gateways":
        istio_follows_prompts,
        istio_keeps_sessions_without_bodies,
        istio_routes_to_a_second_pool,
        envoy_gateway_follows_prompts,
        envoy_gateway_follows_prompts_by_its_newer_names,
        envoy_gateway_routes_to_a_second_pool,
    )
    .into_iter()
    .chain([Case::new(
        "gateways::envoy_accepts_every_overlay",
        envoy_accepts_every_overlay,
    )
    .with_own_workers("none")])
    .collect()
}

/// The model of the shipped values, and another.
const MODEL: &str = "Qwen/Qwen2.5-7B-Instruct";
const OTHER: &str = "other-model";

/// An overlay, and the host that reads it.
#[derive(Clone, Copy)]
enum Overlay {
    Istio(&'static str),
    EnvoyGateway(&'static str, Names),
}

const ISTIO: Overlay = Overlay::Istio("full");
const ENVOY_GATEWAY: Overlay = Overlay::EnvoyGateway("names-v1", Names::V1);

impl Overlay {
    fn documents(self, envoy: &Path) -> anyhow::Result<Vec<Value>> {
        let (tree, name) = match self {
            Self::Istio(name) => ("istio", name),
            Self::EnvoyGateway(name, _) => ("envoy-gateway", name),
        };
        manifests::build(&envoy.join(tree).join("overlays").join(name))
    }

    fn lift(self, documents: &[Value], place: &Place) -> anyhow::Result<Value> {
        match self {
            Self::Istio(_) => istio::lift(documents, place),
            Self::EnvoyGateway(_, names) => envoy_gateway::lift(documents, place, names),
        }
    }
}

/// A stack with what the host makes of an overlay, its documents changed by `edit`. Pool `llama` of the
/// shipped configuration becomes the overlay's pool, `qwen` a second one. The folder must live as long.
async fn start<'a>(
    context: &'a Context,
    overlay: Overlay,
    edit: impl Fn(&mut [Value]) -> anyhow::Result<()>,
) -> anyhow::Result<(Stack<'a>, TempDir)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().to_owned();
    let envoy = context.setting().config.parent().context("no folder")?;
    let mut documents = overlay.documents(envoy)?;
    edit(&mut documents)?;
    let spec = StackSpec::shipped()
        .engine(|config| {
            config.models = vec![match config.name.starts_with("llama") {
                true => MODEL.to_owned(),
                false => OTHER.to_owned(),
            }];
        })
        .bootstrap(move |bootstrap| {
            let place = Place::of(bootstrap, path.clone())?;
            *bootstrap = Bootstrap::from_tree(overlay.lift(&documents, &place)?);
            // On a busy machine the first verdict would be chance.
            bootstrap.stop_active_checks()
        });
    let stack = Stack::start(context, spec).await?;
    ready(&stack, MODEL, &[]).await?;
    Ok((stack, folder))
}

/// Waits until the worker of [`send`] knows the engines of a model's pool, which routes no request before
/// and has these labels.
async fn ready(stack: &Stack<'_>, model: &str, pool: &[(&str, &str)]) -> anyhow::Result<()> {
    eventually("the filter has found the engines", async || {
        send(stack, Call::chat(model, "hello")).await?;
        let routed = counter(stack, "warmpath_requests_total", pool).await?;
        Ok((routed > 0).then_some(()))
    })
    .await
}

async fn send(stack: &Stack<'_>, call: Call) -> anyhow::Result<Reply> {
    // One connection, so one worker.
    stack
        .send(call.over(Transport::Http2))
        .await?
        .expect_status(200)
}

async fn istio_follows_prompts(context: &Context) -> anyhow::Result<()> {
    follows_prompts(context, ISTIO).await
}

async fn envoy_gateway_follows_prompts(context: &Context) -> anyhow::Result<()> {
    follows_prompts(context, ENVOY_GATEWAY).await
}

async fn envoy_gateway_follows_prompts_by_its_newer_names(context: &Context) -> anyhow::Result<()> {
    follows_prompts(context, Overlay::EnvoyGateway("names-v2", Names::V2)).await
}

/// WasmPlugin has no field for the stop iteration. Requests with bodies flow all the same, and sessions
/// stay.
async fn istio_keeps_sessions_without_bodies(context: &Context) -> anyhow::Result<()> {
    let (stack, _folder) = start(context, Overlay::Istio("headers-only"), |_| Ok(())).await?;
    let written = stack
        .envoy()?
        .admin_get("/config_dump?resource=ecds_filters")
        .await?;
    ensure!(
        written.contains("warmpath") && !written.contains("stop_iteration"),
        "{written}"
    );
    let before = stack.requests_seen().iter().sum::<u64>();
    let mut homes = BTreeSet::new();
    for session in 0..12 {
        let mut home = None;
        for _ in 0..4 {
            let call = Call::chat(MODEL, &text(seed(), 2000));
            let call = call.header("x-session-id", format!("s-{session}"))?;
            let reply = send(&stack, call).await?;
            let name = stack.answered_by(&reply)?.name.clone();
            ensure!(
                *home.get_or_insert(name.clone()) == name,
                "{home:?} and {name}"
            );
        }
        homes.extend(home);
    }
    ensure!(homes.len() > 1, "all sessions are at {homes:?}");
    let seen = stack.requests_seen().iter().sum::<u64>();
    ensure!(seen == before + 48, "{seen} requests at the engines");
    for _ in 0..6 {
        send(&stack, Call::chat(MODEL, "without a session")).await?;
    }
    eventually("every request was decided", async || {
        let count = counter(&stack, "warmpath_requests_total", &[("pool", "llm")]).await?;
        // Those that came before the engines were known.
        let labels = [("cause", "endpoints_unknown")];
        let early = counter(&stack, "warmpath_fallbacks_total", &labels).await?;
        Ok((count > 54 && count + early == before + 54).then_some(()))
    })
    .await
}

async fn istio_routes_to_a_second_pool(context: &Context) -> anyhow::Result<()> {
    routes_to_a_second_pool(context, ISTIO).await
}

async fn envoy_gateway_routes_to_a_second_pool(context: &Context) -> anyhow::Result<()> {
    routes_to_a_second_pool(context, ENVOY_GATEWAY).await
}

/// As `envoy --mode validate` sees it, active health checks included.
async fn envoy_accepts_every_overlay(context: &Context) -> anyhow::Result<()> {
    let setting = context.setting();
    let envoy = setting.config.parent().context("no folder")?;
    let headers_only = Overlay::Istio("headers-only");
    let newer_names = Overlay::EnvoyGateway("names-v2", Names::V2);
    let scale = Overlay::EnvoyGateway("scale", Names::V1);
    for overlay in [ISTIO, headers_only, ENVOY_GATEWAY, newer_names, scale] {
        let folder = tempfile::tempdir()?;
        let mut bootstrap = Bootstrap::load(&setting.config)?;
        bootstrap.set_module(&setting.module);
        bootstrap.set_runtime(&setting.runtime);
        let place = Place::of(&mut bootstrap, folder.path().to_owned())?;
        let lifted = overlay.lift(&overlay.documents(envoy)?, &place)?;
        let file = folder.path().join("envoy.json");
        std::fs::write(&file, lifted.to_string())?;
        let output = tokio::process::Command::new(&setting.envoy)
            .args(["--mode", "validate", "--log-level", "warn", "--config-path"])
            .arg(&file)
            .output()
            .await?;
        let log = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{log}");
    }
    Ok(())
}
