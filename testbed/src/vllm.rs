//! The `vllm` verb: what the filter learns of real engines, and what they make of its routing.
//!
//! The engines are vLLM servers that already run, alone: their pages are read before and after, so
//! other traffic would be taken for ours. Nothing of them is configured but their addresses. Each
//! step prints what it saw, and fails if that is not what the engines themselves say.
//!
//! There are three kinds of engines to show it on, and each may be left out: some of equal rank, a
//! prefill and a decode engine, and one with data-parallel ranks.

mod disaggregation;
mod page;
mod ranks;
mod steps;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::e2e::client::Client;
use crate::envoy::bootstrap::{Addresses, Bootstrap};
use crate::envoy::{self, Envoy, Launch};
use crate::subject::{Subject, Workers, existing};

/// The pool, and its cluster in the shipped configuration.
const POOL: &str = "llama";
/// What the engines have to show takes a few of their steps.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often that is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Arguments of the `vllm` verb.
#[derive(clap::Args)]
pub struct Args {
    /// Running engines, at least two, as `ip:port,ip:port`.
    #[arg(long, value_delimiter = ',', required_unless_present_any = ["prefill", "ranked"])]
    engines: Vec<SocketAddr>,
    /// A running engine with NixlConnector, which computes prompts for the other.
    #[arg(long, requires = "decode")]
    prefill: Option<SocketAddr>,
    /// The other.
    #[arg(long, requires = "prefill")]
    decode: Option<SocketAddr>,
    /// A running engine with data-parallel ranks.
    #[arg(long)]
    ranked: Option<SocketAddr>,
    #[command(flatten)]
    subject: Subject,
    /// The one for a prefill and a decode engine.
    #[arg(long, default_value = "envoy/disaggregation.yaml")]
    disaggregation: PathBuf,
    #[command(flatten)]
    workers: Workers,
    /// Turns of the conversation.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..))]
    turns: u32,
}

/// Envoy in front of the engines.
struct Stack {
    engines: Vec<SocketAddr>,
    envoy: Envoy,
    client: Client,
    http: reqwest::Client,
    model: String,
}

/// Runs the `vllm` verb.
///
/// # Errors
/// Something does not start, or a step saw what it should not.
pub fn run(args: Args) -> anyhow::Result<()> {
    envoy::stop_all_on_signal()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        if !args.engines.is_empty() {
            ensure!(
                args.engines.len() > 1,
                "--engines: got one, want at least two"
            );
            let bootstrap = bootstrap(&args, &args.engines, json!("envoy"))?;
            let stack = Stack::start(&args, bootstrap, args.engines.clone()).await?;
            stack.show(steps::run(&stack, args.turns).await)?;
        }
        if let (Some(prefill), Some(decode)) = (args.prefill, args.decode) {
            let bootstrap = disaggregation::bootstrap(&args, prefill, decode).await?;
            let stack = Stack::start(&args, bootstrap, vec![prefill, decode]).await?;
            stack.show(disaggregation::run(&stack, prefill, decode).await)?;
        }
        if let Some(engine) = args.ranked {
            let listed = json!({"static": [{"address": engine.to_string()}]});
            let bootstrap = bootstrap(&args, &[engine], listed)?;
            let stack = Stack::start(&args, bootstrap, vec![engine]).await?;
            stack.show(ranks::run(&stack, engine).await)?;
        }
        Ok(())
    })
}

/// The first model that an engine names.
async fn model_of(http: &reqwest::Client, engine: SocketAddr) -> anyhow::Result<String> {
    let asked = http.get(format!("http://{engine}/v1/models")).send().await;
    let asked = asked.with_context(|| format!("asking {engine} for its models"))?;
    let models: Value = asked.json().await?;
    let model = models.pointer("/data/0/id").and_then(Value::as_str);
    let model = model.with_context(|| format!("{engine} names no model: {models}"))?;
    Ok(model.to_owned())
}

impl Stack {
    async fn start(
        args: &Args,
        bootstrap: Bootstrap,
        engines: Vec<SocketAddr>,
    ) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        let first = engines.first().context("no engine")?;
        let model = model_of(&http, *first).await?;
        let listener = bootstrap.addresses()?.listener;
        let envoy = Envoy::start(Launch {
            binary: existing(&args.subject.envoy)?,
            bootstrap,
            concurrency: args.workers.concurrency,
            component_log_level: "wasm:info".to_owned(),
        });
        Ok(Self {
            envoy: envoy.await?,
            client: Client::new(listener)?,
            http,
            model,
            engines,
        })
    }

    /// What the steps came to, with Envoy's last words if they failed.
    fn show(&self, steps: anyhow::Result<()>) -> anyhow::Result<()> {
        steps.with_context(|| format!("Envoy's log ends with:\n{}", self.envoy.log_tail()))
    }

    /// The filter's metrics.
    async fn metrics(&self) -> anyhow::Result<String> {
        self.envoy.admin_get("/stats/prometheus").await
    }

    /// Sends a request to an engine itself.
    async fn ask(&self, engine: SocketAddr, path: &str, body: &Value) -> anyhow::Result<Value> {
        let url = format!("http://{engine}{path}");
        let answer = self.http.post(url).json(body).send().await?;
        Ok(answer.error_for_status()?.json().await?)
    }

    /// An engine's own metrics.
    async fn engine_metrics(&self, engine: SocketAddr) -> anyhow::Result<String> {
        let answer = self.http.get(format!("http://{engine}/metrics")).send();
        Ok(answer.await?.error_for_status()?.text().await?)
    }
}

/// The shipped configuration, with a pool that is told nothing of its engines but where they are.
fn bootstrap(args: &Args, engines: &[SocketAddr], endpoints: Value) -> anyhow::Result<Bootstrap> {
    let mut bootstrap = Bootstrap::load(&existing(&args.subject.config)?)?;
    bootstrap.set_addresses(Addresses::free()?)?;
    bootstrap.set_endpoints(POOL, engines)?;
    bootstrap.set_module(&existing(&args.subject.module)?);
    let plugin = json!({
        "pools": [{
            "name": POOL,
            "endpoints": endpoints,
            "discover_models": true,
            "policy": "prefix",
        }],
        "limits": {"prefix_table_bytes": 1 << 20},
        "debug_headers": true,
    });
    bootstrap.set_plugin_text(&plugin.to_string());
    Ok(bootstrap)
}

/// Looks until there is something to see.
///
/// # Errors
/// A look fails, or nothing is seen in time.
async fn eventually<T>(
    what: &str,
    look: impl AsyncFn() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("still not so after {PATIENCE:?}: {what}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
