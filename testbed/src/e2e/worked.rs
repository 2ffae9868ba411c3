//! The worked configuration of docs/operations.md, which stands for the retries and circuit breakers of
//! another router: Envoy takes it as it is printed, and it does what the page says.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::client::Call;
use super::counters::counted;
use super::harness::{Context, Stack, StackEngine, StackSpec, eventually, pool_mut};
use super::{Case, named};
use crate::engine::Fault;

pub(super) fn cases() -> Vec<Case> {
    let cases: Vec<Case> = named!("worked":
        every_named_status_is_retried_on_another_engine,
        ten_failures_in_a_row_open_the_breaker,
    );
    let own = |case: Case| case.with_own_workers("1");
    cases.into_iter().map(own).collect()
}

const HEADING: &str = "### Retries and circuit breakers of vllm-project/router\n";
const CLUSTER_PARTS: [&str; 2] = ["outlier_detection", "circuit_breakers"];

/// The examples of the page's section.
struct Worked {
    /// Parts of Envoy's configuration, by name.
    envoy: Value,
    /// The filter's configuration.
    filter: Value,
}

impl Worked {
    fn read(context: &Context) -> anyhow::Result<Self> {
        let config: PathBuf = context.setting().config.clone();
        let root = config.parent().and_then(|envoy| envoy.parent());
        let page = root.context("no root")?.join("docs/operations.md");
        let text = std::fs::read_to_string(&page)
            .with_context(|| format!("reading {}", page.display()))?;
        let (_, section) = text.split_once(HEADING).context("no such section")?;
        let block = |language: &str| {
            let (_, rest) = section.split_once(&format!("```{language}\n"))?;
            rest.split_once("```").map(|(text, _)| text)
        };
        Ok(Self {
            envoy: serde_yaml_ng::from_str(block("yaml").context("no example for Envoy")?)?,
            filter: serde_json::from_str(block("json").context("no example for the filter")?)?,
        })
    }

    /// The statuses that are retried.
    fn statuses(&self) -> anyhow::Result<Vec<u16>> {
        let codes = self.envoy.pointer("/retry_policy/retriable_status_codes");
        Ok(serde_json::from_value(codes.cloned().unwrap_or_default())?)
    }

    fn number(&self, pointer: &str) -> anyhow::Result<usize> {
        let found = self.filter.pointer(pointer).or(self.envoy.pointer(pointer));
        let number = found.and_then(Value::as_u64).context("no such number");
        Ok(usize::try_from(
            number.with_context(|| pointer.to_owned())?,
        )?)
    }

    /// The shipped stack with both examples in it, and as many engines as one request may ask. One worker:
    /// which of several counts a failure is chance.
    fn spec(&self) -> anyhow::Result<StackSpec> {
        let candidates = self.number("/pools/0/candidates")?;
        let (envoy, filter) = (self.envoy.clone(), self.filter.clone());
        let spec = StackSpec::shipped()
            .engines("llama", candidates)
            .workers(1)
            .policy("llama", json!("round_robin"))
            .plugin(move |plugin| {
                if let Some(pool) = pool_mut(plugin, "llama") {
                    pool.insert("candidates".to_owned(), candidates.into());
                }
                if let (Some(plugin), Some(health)) = (plugin.as_object_mut(), filter.get("health"))
                {
                    plugin.insert("health".to_owned(), health.clone());
                }
            });
        Ok(spec.bootstrap(move |bootstrap| {
            let part = |name: &str| envoy.get(name).cloned().context("not in the example");
            let host = bootstrap
                .connection_manager_mut()?
                .pointer_mut("/route_config/virtual_hosts/0/retry_policy");
            *host.context("no retry policy")? = part("retry_policy")?;
            for cluster in ["llama", "qwen"] {
                let cluster = bootstrap.cluster_mut(cluster)?;
                for name in CLUSTER_PARTS {
                    *cluster.get_mut(name).context("not in the cluster")? = part(name)?;
                }
            }
            Ok(())
        }))
    }
}

fn chat() -> Call {
    Call::chat("llama-3-8b", "hello")
}

fn fails_with(code: u16) -> Fault {
    Fault::Status {
        code,
        retry_after_s: None,
    }
}

async fn every_named_status_is_retried_on_another_engine(context: &Context) -> anyhow::Result<()> {
    let worked = Worked::read(context)?;
    let attempts = worked.number("/retry_policy/num_retries")? + 1;
    ensure!(
        attempts == worked.number("/pools/0/candidates")?,
        "see there"
    );
    let stack = Stack::start(context, worked.spec()?).await?;
    let engines: Vec<_> = stack.pool("llama").collect();
    let (well, unwell) = engines.split_first().context("no engines")?;
    for status in worked.statuses()? {
        for engine in unwell {
            engine.engine.set_fault(fails_with(status));
        }
        let reply = stack.send(chat()).await?;
        let reply = reply.expect_status(200).context(status)?;
        ensure!(stack.answered_by(&reply)?.name == well.name, "{reply:?}");
        well.engine.set_fault(fails_with(status));
        let seen = || stack.requests_seen().iter().sum::<u64>();
        let before = seen();
        stack.send(chat()).await?.expect_status(status)?;
        let asked = seen() - before;
        ensure!(asked == attempts as u64, "{status}: {asked} were asked");
        recovered(&stack, &engines).await?;
    }
    Ok(())
}

/// Ends all faults, and waits until each engine has answered a request again.
async fn recovered(stack: &Stack<'_>, engines: &[&StackEngine]) -> anyhow::Result<()> {
    stack.set_fault("llama", Fault::None);
    for engine in engines {
        eventually(&format!("{} is back", engine.name), async || {
            let reply = stack.send(chat()).await?.expect_status(200)?;
            let found = stack.answered_by(&reply)?.name == engine.name;
            Ok(found.then_some(()))
        })
        .await?;
    }
    Ok(())
}

async fn ten_failures_in_a_row_open_the_breaker(context: &Context) -> anyhow::Result<()> {
    let worked = Worked::read(context)?;
    let failures = worked.number("/health/failures")? as u64;
    let stack = Stack::start(context, worked.spec()?).await?;
    let broken = stack.engine("llama-0")?;
    broken.engine.set_fault(fails_with(500));
    while broken.engine.seen_count() < failures {
        stack.send(chat()).await?.expect_status(200)?;
    }
    for _ in 0..4 * stack.engines.len() {
        stack.send(chat()).await?.expect_status(200)?;
    }
    let seen = broken.engine.seen_count();
    ensure!(seen == failures, "asked {seen} times, want {failures}");
    let labels = [
        ("pool", "llama"),
        ("endpoint", &*broken.address.to_string()),
    ];
    // Code 3 is `cooling_down`.
    counted(&stack, "warmpath_endpoint_state", &labels, 3).await
}
