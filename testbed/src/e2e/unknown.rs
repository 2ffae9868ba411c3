//! Before the filter knows which engines Envoy has: requests go where Envoy's own load balancing sends
//! them, for as long as it takes.
//!
//! Between the filter and Envoy's admin interface stands a [`Relay`] that lets nothing pass until a test
//! says so. Nothing here depends on how fast anything is.

use anyhow::ensure;
use serde_json::json;

use super::arrival::whole;
use super::client::{Call, Reply};
use super::counters::{counted, counter};
use super::harness::{Context, Stack, StackSpec, eventually, pool_mut};
use super::workers::Workers;
use super::{Case, named};
use crate::engine::Fault;
use crate::relay::{Passage, Relay};

pub(super) fn cases() -> Vec<Case> {
    named!("unknown":
        requests_flow_before_engines_are_known,
        requests_flow_before_engines_are_known_by_filter_state,
        requests_flow_before_engines_are_known_by_headers_alone,
        who_needs_two_engines_is_told_to_come_back,
    )
}

const POLLING_MS: u64 = 100;
const MODEL: &str = "llama-3-8b";
const WARNING: &str = "nobody has told yet which endpoints these pools have";

/// Lets the filter ask Envoy by way of a relay, for the engines of `llama`.
fn asking_by(relay: &Relay, spec: StackSpec) -> StackSpec {
    let address = relay.address();
    spec.polling(POLLING_MS)
        .pool_option("llama", "endpoints", json!("envoy"))
        .bootstrap(move |bootstrap| bootstrap.set_endpoints("prometheus_stats", &[address]))
}

/// A relay through which nothing is heard.
async fn silent() -> anyhow::Result<Relay> {
    let relay = Relay::start().await?;
    relay.set(Passage::Hang);
    Ok(relay)
}

fn open(relay: &Relay, stack: &Stack<'_>) -> anyhow::Result<()> {
    *relay.target().lock() = Some(stack.bootstrap().addresses()?.admin);
    relay.set(Passage::Open);
    Ok(())
}

/// Fails unless an engine of `llama` answered, and the filter had no part in the choice.
fn ensure_envoys_choice(stack: &Stack<'_>, reply: &Reply) -> anyhow::Result<()> {
    ensure!(stack.answered_by(reply)?.pool == "llama", "{reply:?}");
    ensure!(!reply.is_decided(), "{reply:?}");
    Ok(())
}

async fn left_to_envoy(stack: &Stack<'_>, want: u64) -> anyhow::Result<()> {
    let labels = [("cause", "endpoints_unknown")];
    counted(stack, "warmpath_fallbacks_total", &labels, want).await
}

/// Waits until every worker names all engines of `llama`; how many requests that took which none named.
async fn all_decide(stack: &Stack<'_>, workers: &Workers) -> anyhow::Result<u64> {
    let mut undecided = 0;
    let mut want: Vec<String> = stack
        .pool("llama")
        .map(|it| it.address.to_string())
        .collect();
    want.sort();
    for worker in 0..workers.count() {
        let passed = std::cell::Cell::new(0);
        eventually("a worker names the engines", async || {
            let reply = workers.send(worker, Call::chat(MODEL, "hello")).await?;
            let reply = reply.expect_status(200)?;
            if !reply.is_decided() {
                passed.set(passed.get() + 1);
                return Ok(None);
            }
            let mut ranked = reply.decision()?.ranked;
            ranked.sort();
            ensure!(ranked == want, "{ranked:?} instead of {want:?}");
            Ok(Some(()))
        })
        .await?;
        undecided += passed.get();
    }
    Ok(undecided)
}

async fn flow(context: &Context, spec: StackSpec, aliases: bool) -> anyhow::Result<()> {
    let relay = silent().await?;
    let stack = Stack::start(context, asking_by(&relay, spec)).await?;
    let workers = Workers::reach(&stack).await?;
    let call = Call::chat(MODEL, "hello");
    let mut sent = 0;
    for number in 0..6 {
        let reply = workers.send(number, call.clone()).await?;
        let reply = reply.expect_status(200)?;
        ensure_envoys_choice(&stack, &reply)?;
        whole(&stack, reply, &call.body)?;
        sent += 1;
        if aliases {
            // No engine knows the alias.
            let alias = Call::chat("gpt-4o-mini", "hello");
            let reply = workers.send(number, alias).await?.expect_status(200)?;
            ensure_envoys_choice(&stack, &reply)?;
            whole(&stack, reply, &call.body)?;
            sent += 1;
            // A pool whose engines are listed is none of this.
            let other = workers.send(number, Call::chat("qwen-2.5-7b", "hello"));
            ensure!(other.await?.expect_status(200)?.is_decided(), "not decided");
        }
    }
    // Envoy tries another engine, as ever.
    let broken = &stack.engine("llama-0")?.engine;
    broken.set_fault(Fault::Status {
        code: 503,
        retry_after_s: None,
    });
    for number in 0..6 {
        let reply = workers.send(number, call.clone()).await?;
        ensure_envoys_choice(&stack, &reply.expect_status(200)?)?;
        sent += 1;
    }
    broken.set_fault(Fault::None);
    left_to_envoy(&stack, sent).await?;
    eventually("it is warned of", async || {
        Ok(stack.envoy()?.log()?.contains(WARNING).then_some(()))
    })
    .await?;
    open(&relay, &stack)?;
    sent += all_decide(&stack, &workers).await?;
    for number in 0..6 {
        let reply = workers.send(number, call.clone()).await?;
        ensure!(reply.expect_status(200)?.is_decided(), "not decided");
    }
    left_to_envoy(&stack, sent).await?;
    let answers = counter(&stack, "warmpath_answers_total", &[("status", "503")]).await?;
    ensure!(answers == 0, "{answers} requests were refused");
    // At most once by each VM, those of the workers and that of the main thread.
    let log = stack.envoy()?.log()?;
    let warnings = log.matches(WARNING).count();
    ensure!(warnings <= workers.count() + 1, "{warnings} warnings");
    Ok(())
}

async fn requests_flow_before_engines_are_known(context: &Context) -> anyhow::Result<()> {
    let spec = StackSpec::shipped().policy("llama", json!("prefix"));
    flow(context, spec, true).await
}

async fn requests_flow_before_engines_are_known_by_filter_state(
    context: &Context,
) -> anyhow::Result<()> {
    let spec = StackSpec::shipped().with_file("filter-state.yaml");
    flow(context, spec.policy("llama", json!("prefix")), true).await
}

async fn requests_flow_before_engines_are_known_by_headers_alone(
    context: &Context,
) -> anyhow::Result<()> {
    let spec = StackSpec::shipped().plugin(|config| {
        if let Some(pool) = pool_mut(config, "llama") {
            pool.remove("models");
            pool.remove("aliases");
            pool.insert("policy".to_owned(), json!("least_request"));
            let pool = pool.clone();
            config["pools"] = json!([pool]);
        }
    });
    flow(context, spec, false).await
}

/// The engines of these connectors need each other, and only the filter can bring them together.
async fn who_needs_two_engines_is_told_to_come_back(context: &Context) -> anyhow::Result<()> {
    use crate::engine::Connector::{Nixl, P2pNccl};
    for (connector, alone) in [(Nixl, true), (P2pNccl, false)] {
        let relay = silent().await?;
        let spec = StackSpec::disaggregated(connector);
        let stack = Stack::start(context, asking_by(&relay, spec)).await?;
        let long = Call::chat(MODEL, &"the old road to the sea ".repeat(50));
        let reply = stack.send(long).await?;
        if alone {
            ensure_envoys_choice(&stack, &reply.expect_status(200)?)?;
            left_to_envoy(&stack, 1).await?;
            continue;
        }
        let reply = reply.expect_status(503)?;
        ensure!(reply.header("retry-after") == Some("1"), "{reply:?}");
        let code = reply.json()?.pointer("/error/code").cloned();
        ensure!(code == Some("no_endpoint".into()), "{reply:?}");
        left_to_envoy(&stack, 0).await?;
    }
    Ok(())
}
