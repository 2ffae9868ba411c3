//! A model engine with vLLM's HTTP surface, as the `engine` verb and as a library.
//!
//! One idea: everything above the sockets is real (requests, streaming, a paged prefix cache over
//! the real prompt text, metrics), and only the arithmetic of the model is replaced by its
//! duration. What it does wrong can be set at any time ([`Engine::set_fault`]).
//!
//! An engine costs a listener, one task for its steps and one for each connection; its memory is
//! bounded by its requests and by the limit of its log.
//!
//! ```text
//! let engine = Engine::start(EngineConfig { time_scale: 0.0, ..EngineConfig::default() }).await?;
//! client.post(format!("http://{}/v1/completions", engine.addr())).json(&body).send().await?;
//! assert_eq!(engine.log()[0].cached_tokens, Some(0));
//! engine.kill().await;
//! ```

mod answer;
mod clock;
mod cut;
mod error;
mod exposition;
mod fault;
mod histogram;
mod http;
mod infer;
mod kv;
mod kv_events;
mod listen;
mod metrics;
mod plain;
mod pooling;
mod prompt;
mod ranks;
mod seen;
mod sse;
#[cfg(test)]
mod tests;
mod tokens;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use hyper::header::HeaderValue;
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::AbortHandle;
use tokio_util::task::TaskTracker;

pub use fault::{Fault, FaultPlan, Target};
pub use kv::{Connector, Disaggregation, Role};
pub use kv_events::{KvEvent, KvEventsConfig, Tap};
pub use seen::Seen;

use crate::model::{ModelParams, Stats};
use clock::Clock;
use fault::Faults;
use http::App;
use kv::Kv;
use kv_events::KvEvents;
use listen::{Port, Server};
use ranks::Ranks;
use seen::SeenLog;

/// How long [`Engine::shutdown`] waits for requests before it resets them.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// What an engine is.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Name in the `x-engine` header and in `system_fingerprint`.
    pub name: String,
    /// Names of the model, the first one being the real one.
    pub models: Vec<String>,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Size and speed; of each rank.
    pub params: ModelParams,
    /// Data-parallel ranks behind the port; 0 counts as 1.
    pub data_parallel_size: u32,
    /// Whether requests may name their rank; engines that know no ranks ignore the header.
    pub heeds_ranks: bool,
    /// Real seconds per modelled second; 0: answers come at once.
    pub time_scale: f64,
    /// Longest prompt and output together.
    pub max_model_tokens: u32,
    /// Output of a request that sets no limit; it then ends with `stop`.
    pub default_output_tokens: u32,
    /// Requests in the engine beyond which it answers 503; absent, without limit.
    pub max_queued: Option<u32>,
    /// What goes wrong from the start.
    pub fault: FaultPlan,
    /// Entries that the log keeps; 0 keeps none.
    pub log_limit: usize,
    /// Who is told what its prefix cache holds; absent, nobody.
    pub kv_events: Option<KvEventsConfig>,
    /// Whether they have the bodies of the requests.
    pub log_bodies: bool,
    /// Its side of prefill/decode disaggregation, if it has one.
    pub disaggregation: Option<Disaggregation>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            name: "engine".to_owned(),
            models: vec!["llama-3-8b".to_owned()],
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            params: ModelParams::default(),
            data_parallel_size: 1,
            heeds_ranks: true,
            time_scale: 1.0,
            max_model_tokens: 131_072,
            default_output_tokens: prompt::DEFAULT_OUTPUT_TOKENS,
            max_queued: None,
            fault: FaultPlan::default(),
            log_limit: 100_000,
            kv_events: None,
            log_bodies: false,
            disaggregation: None,
        }
    }
}

/// A running engine. Dropping it resets its connections, like [`Engine::kill`].
#[derive(Debug)]
pub struct Engine {
    app: Arc<App>,
    port: Arc<Port>,
    server: Server,
    /// The side channel's tasks.
    side: TaskTracker,
    stepping: Vec<AbortHandle>,
}

impl Engine {
    /// Starts an engine on the current tokio runtime; it answers when this returns.
    ///
    /// # Errors
    /// The address is not free, or the configuration makes no sense.
    pub async fn start(config: EngineConfig) -> anyhow::Result<Self> {
        ensure!(!config.models.is_empty(), "an engine needs a model name");
        let scale = config.time_scale;
        ensure!(
            scale.is_finite() && scale >= 0.0,
            "time scale: got {scale}, want 0 or more"
        );
        let faults = Arc::new(Faults::new(config.fault));
        let port = Arc::new(Port::reserve(config.listen)?);
        let listener = if faults.refuses() {
            None
        } else {
            Some(port.listen()?)
        };
        let block_tokens = config.params.block_tokens.max(1);
        let mut clocks: Vec<Arc<Clock>> = Vec::new();
        for rank in 0..config.data_parallel_size.max(1) {
            let kv_events = match &config.kv_events {
                Some(told) => Some(KvEvents::start(told, block_tokens, rank).await?),
                None => None,
            };
            let (params, most) = (config.params.clone(), config.max_queued);
            clocks.push(Clock::new(
                params,
                scale,
                most,
                Arc::clone(&faults),
                kv_events,
            ));
        }
        let (server, side) = (Server::default(), TaskTracker::new());
        let kv = config
            .disaggregation
            .map(|setup| Kv::start(setup, &config.name, clocks.len(), &side, &server.kill));
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let app = Arc::new(App {
            name_header: HeaderValue::try_from(&config.name).context("name is no header value")?,
            name: config.name,
            models: config.models,
            unloaded: Mutex::default(),
            ranks: Ranks::new(clocks.clone(), config.heeds_ranks),
            faults: Arc::clone(&faults),
            seen: SeenLog::new(config.log_limit, config.log_bodies),
            block_tokens,
            max_model_tokens: config.max_model_tokens,
            default_output_tokens: config.default_output_tokens,
            created_unix_s: now.as_secs(),
            requests: AtomicU64::new(0),
            kv: kv.transpose()?,
            dying: AtomicBool::new(false),
            kill: server.kill.clone(),
        });
        let run = |clock: Arc<Clock>| tokio::spawn(clock.run()).abort_handle();
        let stepping = clocks.into_iter().map(run).collect();
        let serving = server
            .clone()
            .serve(Arc::clone(&app), faults, Arc::clone(&port), listener);
        server.tasks.spawn(serving);
        Ok(Self {
            app,
            port,
            server,
            side,
            stepping,
        })
    }

    /// Where it listens. The port stays its own until the value is dropped, even when killed.
    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// Where engines fetch KV from it or push it to, if it has a connector.
    pub fn kv_addr(&self) -> Option<SocketAddr> {
        self.app.kv.as_ref().map(|kv| kv.addr())
    }

    /// What went against the protocol of its connector, oldest first.
    pub fn kv_errors(&self) -> Vec<String> {
        self.app.kv.as_ref().map_or_else(Vec::new, |kv| kv.errors())
    }

    /// Whether a request has brought it down.
    pub fn has_crashed(&self) -> bool {
        self.app.dying.load(Ordering::Relaxed)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.app.name
    }

    /// Where the KV events of its first rank are published, as `tcp://ip:port`.
    pub fn kv_events(&self) -> Option<&str> {
        self.app.ranks.clocks().first()?.kv_events()?.endpoint()
    }

    /// The inference requests seen, in order of arrival; the newest up to the limit.
    pub fn log(&self) -> Vec<Seen> {
        self.app.seen.entries()
    }

    /// How many inference requests were seen.
    pub fn seen_count(&self) -> u64 {
        self.app.seen.count()
    }

    /// When its metrics page was asked for, oldest first; the newest up to the limit of the log.
    pub fn scrapes(&self) -> Vec<Instant> {
        self.app.seen.scrapes()
    }

    /// Serves one of its models, such as a LoRA adapter, no more, or again.
    pub fn set_loaded(&self, model: &str, loaded: bool) {
        let mut unloaded = self.app.unloaded.lock();
        match loaded {
            true => unloaded.remove(model),
            false => unloaded.insert(model.to_owned()),
        };
    }

    /// Gauges and counters of the model, of all ranks together.
    pub fn stats(&self) -> Stats {
        self.app.stats()
    }

    /// The same of each rank.
    pub fn rank_stats(&self) -> Vec<Stats> {
        let clocks = self.app.ranks.clocks().iter();
        clocks.map(|clock| clock.snapshot().stats).collect()
    }

    /// Replaces what goes wrong, from the next request (or, for `refuse` and `slow`, from now) on.
    pub fn set_fault(&self, plan: impl Into<FaultPlan>) {
        self.app.faults.set(plan.into());
    }

    /// Dies like a killed process: when this returns, the port refuses and every connection has
    /// been reset. Does nothing the second time. The log can still be read.
    pub async fn kill(&self) {
        self.server.kill.cancel();
        self.server.tasks.close();
        self.server.tasks.wait().await;
        self.side.close();
        self.side.wait().await;
        self.stepping.iter().for_each(AbortHandle::abort);
    }

    /// Ends in good order: the port refuses at once, requests get up to ten seconds.
    pub async fn shutdown(&self) {
        self.server.stop.cancel();
        self.server.tasks.close();
        // On a timeout the requests that are left are reset.
        let _ = tokio::time::timeout(SHUTDOWN_GRACE, self.server.tasks.wait()).await;
        self.kill().await;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.server.kill.cancel();
        self.stepping.iter().for_each(AbortHandle::abort);
    }
}

/// Arguments of the `engine` verb.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Port to listen on; give it again for further engines in this process
    #[arg(long, default_values_t = [8001_u16])]
    port: Vec<u16>,
    /// Address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Name of the model; give it again for aliases
    #[arg(long, default_values_t = ["llama-3-8b".to_owned()])]
    model: Vec<String>,
    /// Capacity of the KV cache
    #[arg(long, value_name = "TOKENS", default_value_t = 400_000)]
    kv_tokens: u32,
    /// Tokens in a KV block
    #[arg(long, value_name = "TOKENS", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    block_tokens: u32,
    /// Data-parallel ranks behind each port, each with a KV cache of its own
    #[arg(long, value_name = "RANKS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    data_parallel_size: u32,
    /// Most requests running at a time
    #[arg(long, default_value_t = 256)]
    max_num_seqs: u32,
    /// Most tokens that one step computes
    #[arg(long, default_value_t = 8192)]
    max_num_batched_tokens: u32,
    /// Longest prompt and output together
    #[arg(long, value_name = "TOKENS", default_value_t = 131_072)]
    max_model_len: u32,
    /// Requests in the engine beyond which it answers 503
    #[arg(long, value_name = "REQUESTS")]
    max_num_queued_reqs: Option<u32>,
    /// Real seconds per modelled second; 0 answers at once
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    time_scale: f64,
    /// How KV travels between engines that share the work
    #[arg(long, value_enum, requires = "kv_role")]
    kv_connector: Option<Connector>,
    /// What the engine does of the work
    #[arg(long, value_enum, requires = "kv_connector")]
    kv_role: Option<Role>,
    /// Port for other engines; further engines take those after it
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 0,
        requires = "kv_connector"
    )]
    kv_port: u16,
    /// Fault from the start, as JSON, e.g. '{"fault":{"status":{"code":503}},"requests":3}'
    #[arg(long, value_name = "JSON", value_parser = parse_fault)]
    fault: Option<FaultPlan>,
}

fn parse_fault(json: &str) -> Result<FaultPlan, String> {
    FaultPlan::parse(json.as_bytes())
}

impl Args {
    /// Of the engine at this place among all.
    fn disaggregation(&self, at: u16) -> Option<Disaggregation> {
        let kv_port = match self.kv_port {
            0 => 0,
            first => first.saturating_add(at),
        };
        Some(Disaggregation {
            listen: SocketAddr::new(self.host, kv_port),
            ..Disaggregation::new(self.kv_connector?, self.kv_role?)
        })
    }

    fn config(&self, at: u16, port: u16) -> EngineConfig {
        EngineConfig {
            name: format!("engine-{port}"),
            models: self.model.clone(),
            listen: SocketAddr::new(self.host, port),
            params: ModelParams {
                block_tokens: self.block_tokens,
                kv_blocks: self.kv_tokens / self.block_tokens.max(1),
                token_budget: self.max_num_batched_tokens,
                max_num_seqs: self.max_num_seqs,
                ..ModelParams::default()
            },
            data_parallel_size: self.data_parallel_size,
            time_scale: self.time_scale,
            max_model_tokens: self.max_model_len,
            max_queued: self.max_num_queued_reqs,
            fault: self.fault.unwrap_or_default(),
            log_limit: 0,
            disaggregation: self.disaggregation(at),
            ..EngineConfig::default()
        }
    }
}

/// Runs the `engine` verb: engines until Ctrl-C (which resets what is open) or SIGTERM (which lets
/// requests finish).
///
/// # Errors
/// A port is not free.
pub fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut engines = Vec::new();
        for (at, &port) in (0..).zip(&args.port) {
            let engine = Engine::start(args.config(at, port)).await?;
            println!("{} listening on http://{}", engine.name(), engine.addr());
            if let Some(kv) = engine.kv_addr() {
                println!("{} gives and takes KV at {kv}", engine.name());
            }
            engines.push(engine);
        }
        tokio::select! {
            result = tokio::signal::ctrl_c() => {
                result?;
                join_all(engines.iter().map(Engine::kill)).await;
            }
            _ = terminate.recv() => {
                join_all(engines.iter().map(Engine::shutdown)).await;
            }
        }
        engines.iter().for_each(sum_up);
        Ok(())
    })
}

/// Says what an engine did.
fn sum_up(engine: &Engine) {
    let stats = engine.stats();
    println!(
        "{}: {} requests, {} prompt tokens ({} from the prefix cache), {} output tokens",
        engine.name(),
        engine.seen_count(),
        stats.prompt_tokens,
        stats.prefix_hits_tokens,
        stats.generation_tokens,
    );
}
