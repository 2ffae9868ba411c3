//! The product itself: the `prefix` policy of warmpath's core, with its real table, logs and
//! columns over the in-memory store. Nothing is re-implemented here.
//!
//! The prompt's 512-byte chunks are hashed from real text once and remembered; what follows (chain,
//! lookup, cost, insertion, sharing) is the code that runs inside Envoy.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};
use hashlink::DefaultHashBuilder;
use warmpath_core::router::{Ask, Charge, Outcome, PromptFacts, Router};
use warmpath_core::scan::{CHUNK_BYTES, Link};
use warmpath_core::store::MemoryStore;
use warmpath_core::{Config, hash};

use super::{FleetView, Policy, Setup, SimRequest, scraping};
use crate::sim::text::ChunkCache;

/// How often Envoy ticks the filter: so often in the interval of its scrapes, within bounds.
const TICKS_PER_INTERVAL: u64 = 8;
const TICK_MS: std::ops::RangeInclusive<u64> = 25..=500;
/// Simulated time starts at 0; a clock that reads 0 would look unset.
const EPOCH_US: u64 = 1_000_000_000;
/// Seed of every chain: one model, no salt.
const SEED: u64 = 1;

/// Fields of the policy's configuration, as JSON members: `"stickiness": 2, "home_affinity": 0.9`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Options {
    members: Vec<(String, f64)>,
    /// Requests whose answers are not streamed.
    unary: bool,
    /// Requests that say how long their answers may become, and use it up.
    max_tokens: bool,
    /// The capacity of an engine is not configured but learned from its metrics.
    learned: bool,
}

impl Options {
    /// `NAME:VALUE` pairs separated by `/`, and the words `unary`, `max_tokens` and `learned`.
    ///
    /// # Errors
    /// A pair that is none. Unknown names are refused when the router is built.
    pub fn parse(text: Option<&str>) -> anyhow::Result<Self> {
        let mut options = Self::default();
        for part in text
            .unwrap_or_default()
            .split('/')
            .filter(|part| !part.is_empty())
        {
            match part.split_once(':') {
                Some((name, value)) => {
                    let value = value.parse().with_context(|| format!("prefix: {part}"))?;
                    options.members.push((name.to_owned(), value));
                }
                None if part == "unary" => options.unary = true,
                None if part == "max_tokens" => options.max_tokens = true,
                None if part == "learned" => options.learned = true,
                None => bail!("prefix: got {part}, want NAME:VALUE, unary, max_tokens or learned"),
            }
        }
        // A wrong name is an error of the command line, not of the first cell.
        options.config(2, 100_000, None, None).map(|_| options)
    }

    /// The members of the policy's entry in a configuration.
    pub fn members(&self, kv_tokens: u64) -> serde_json::Map<String, serde_json::Value> {
        let mut policy = serde_json::Map::new();
        if !self.learned {
            policy.insert("kv_tokens".to_owned(), kv_tokens.into());
        }
        for (name, value) in &self.members {
            // JSON knows whole numbers apart, and so does the config.
            let whole = (value.fract() == 0.0).then_some(*value as u64);
            policy.insert(name.clone(), whole.map_or((*value).into(), Into::into));
        }
        policy
    }

    /// Whether answers are streamed.
    pub fn is_streamed(&self) -> bool {
        !self.unary
    }

    /// The same policy for requests that say how long their answers may become.
    pub fn with_max_tokens(mut self) -> Self {
        self.max_tokens = true;
        self
    }

    fn config(
        &self,
        engines: usize,
        kv_tokens: u64,
        scrape_interval_ms: Option<u64>,
        sync_interval_ms: Option<u64>,
    ) -> anyhow::Result<Config> {
        let endpoint = |n| serde_json::json!({ "address": address(n) });
        let endpoints: Vec<_> = (0..engines).map(endpoint).collect();
        let scrape = scrape_interval_ms.map_or(
            "off".into(),
            |interval_ms| serde_json::json!({"metrics": {"interval_ms": interval_ms}}),
        );
        let policy = self.members(kv_tokens);
        let mut json = serde_json::json!({"discovery": "off", "scrape": scrape, "pools": [{
            "name": "sim", "candidates": 1, "policy": {"prefix": policy},
            "endpoints": {"static": endpoints},
        }]});
        if let (Some(interval_ms), Some(fields)) = (sync_interval_ms, json.as_object_mut()) {
            let redis = serde_json::json!({
                "cluster": "none", "key": "known to the simulation", "interval_ms": interval_ms,
            });
            fields.insert("sync".to_owned(), serde_json::json!({ "redis": redis }));
        }
        Config::parse(json.to_string().as_bytes()).map_err(|errors| {
            let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("prefix: {}", lines.join("; "))
        })
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = self
            .members
            .iter()
            .map(|(name, value)| format!("{name}:{value}"));
        let parts: Vec<String> = members
            .chain(self.unary.then(|| "unary".to_owned()))
            .chain(self.max_tokens.then(|| "max_tokens".to_owned()))
            .chain(self.learned.then(|| "learned".to_owned()))
            .collect();
        match parts.is_empty() {
            true => Ok(()),
            false => write!(f, "={}", parts.join("/")),
        }
    }
}

/// The address of an engine.
fn address(engine: usize) -> SocketAddr {
    let (high, low) = ((engine / 250) as u8, (engine % 250 + 1) as u8);
    SocketAddr::from(([10, 0, high, low], 8000))
}

/// What the routers of one run have in common.
#[derive(Debug, Clone)]
pub struct Shared {
    store: Arc<MemoryStore>,
    chunks: Arc<Mutex<ChunkCache>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            store: Arc::new(MemoryStore::new()),
            chunks: Arc::new(Mutex::new(ChunkCache::new(CHUNK_BYTES))),
        }
    }
}

impl Shared {
    /// State of its own, but the same memory of chunk hashes, which is no state.
    pub fn apart(&self) -> Self {
        Self {
            store: Arc::new(MemoryStore::new()),
            chunks: Arc::clone(&self.chunks),
        }
    }
}

/// One worker.
#[derive(Debug)]
pub struct Prefix {
    router: Option<Router<Arc<MemoryStore>>>,
    chunks: Arc<Mutex<ChunkCache>>,
    charges: HashMap<u64, Charge, DefaultHashBuilder>,
    unary: bool,
    max_tokens: bool,
    scrape_interval_ms: Option<u64>,
    engines: HashMap<SocketAddr, usize>,
}

impl Prefix {
    /// One router over `shared`.
    pub fn new(options: &Options, setup: &Setup, shared: &Shared) -> Self {
        let interval_ms = setup.scrape_interval_ms;
        let sync_ms = setup.sync_interval_ms;
        let config = options.config(setup.engines, setup.kv_tokens, interval_ms, sync_ms);
        let config = config.ok();
        Self {
            router: config.map(|config| Router::new(config, Arc::clone(&shared.store), EPOCH_US)),
            chunks: Arc::clone(&shared.chunks),
            charges: HashMap::default(),
            unary: options.unary,
            max_tokens: options.max_tokens,
            scrape_interval_ms: interval_ms,
            engines: (0..setup.engines).map(|n| (address(n), n)).collect(),
        }
    }

    fn facts(&self, req: &SimRequest) -> PromptFacts {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut link = Link { hash: SEED, end: 0 };
        let links = chunks.hashes(req, hash::hash).into_iter().map(|chunk| {
            link.hash = hash::chain(link.hash, chunk);
            link.end += CHUNK_BYTES;
            link
        });
        PromptFacts {
            chain: links.collect(),
            bytes: req.text_len(),
            conversation: hash::hash(&req.key.to_le_bytes()),
            streamed: !self.unary,
            output_tokens: self.max_tokens.then_some(req.output_tokens),
            told: None,
        }
    }
}

impl Policy for Prefix {
    fn route(&mut self, req: &SimRequest, _fleet: &FleetView<'_>, now_us: u64) -> usize {
        let now_us = EPOCH_US + now_us;
        let prompt = self.facts(req);
        let Some(router) = self.router.as_mut() else {
            return 0;
        };
        let Some(target) = router.only_target().cloned() else {
            return 0;
        };
        let ask = Ask {
            target: &target,
            key: None,
            prompt: Some(prompt),
            priority: Default::default(),
        };
        let Ok((_, charge)) = router.decide(ask, now_us) else {
            return 0;
        };
        let engine = charge.position();
        self.charges.insert(req.id, charge);
        engine
    }

    fn tick(&mut self, fleet: &FleetView<'_>, now_us: u64) {
        let now_us = EPOCH_US + now_us;
        if let Some(router) = self.router.as_mut() {
            router.tick(now_us);
            let engines = &self.engines;
            scraping::answer_calls(router, fleet, |at| engines.get(at).copied(), now_us);
        }
    }

    fn exchange(&mut self, arrived: &mut Vec<Rc<[u8]>>, now_us: u64) -> Option<Vec<u8>> {
        let router = self.router.as_mut()?;
        router.exchange_directly(arrived, EPOCH_US + now_us)
    }

    fn tick_period_us(&self) -> Option<u64> {
        let period_ms = self.scrape_interval_ms.map(|it| it / TICKS_PER_INTERVAL);
        let (least, most) = TICK_MS.into_inner();
        Some(period_ms.unwrap_or(most).clamp(least, most) * 1000)
    }

    fn first_token(&mut self, req: &SimRequest, _engine: usize, now_us: u64) {
        if !self.unary
            && let (Some(router), Some(charge)) =
                (self.router.as_mut(), self.charges.get_mut(&req.id))
        {
            router.first_token(charge, EPOCH_US + now_us);
        }
    }

    fn done(&mut self, req: &SimRequest, _engine: usize, now_us: u64) {
        if let (Some(router), Some(charge)) = (self.router.as_mut(), self.charges.remove(&req.id)) {
            let outcome = Outcome::Served {
                output_tokens: req.output_tokens,
            };
            router.end(charge, outcome, EPOCH_US + now_us);
        }
    }
}
