//! Routing policies under comparison, and how they are named.
//!
//! `NAME` or `NAME=PARAMETERS`; the parameters' form is the policy's own. One instance stands for
//! one router: it sees the requests it routed, their first tokens and ends, and scraped stats.

mod cache_aware;
mod consistent_hash;
mod dynamo;
mod gie;
mod least_request;
mod oracle;
mod ours;
mod prefix;
mod round_robin;
mod scraping;

use std::fmt;
use std::rc::Rc;

use anyhow::bail;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::fleet::FleetView;
use super::request::SimRequest;

/// A router's view of the world, one event at a time.
pub trait Policy {
    /// Chooses an engine, below `fleet.len()`, and accounts for the request there.
    fn route(&mut self, req: &SimRequest, fleet: &FleetView<'_>, now_us: u64) -> usize;
    /// The engine's first token for a request that this router sent there.
    fn first_token(&mut self, _req: &SimRequest, _engine: usize, _now_us: u64) {}
    /// The last token.
    fn done(&mut self, _req: &SimRequest, _engine: usize, _now_us: u64) {}
    /// Time passes; called in the policy's [`tick_period_us`](Self::tick_period_us).
    fn tick(&mut self, _fleet: &FleetView<'_>, _now_us: u64) {}
    /// How often it is told that time passes; `None` if it does not care.
    fn tick_period_us(&self) -> Option<u64> {
        None
    }
    /// When it is time, takes the batches of other routers and makes one for them.
    fn exchange(&mut self, _arrived: &mut Vec<Rc<[u8]>>, _now_us: u64) -> Option<Vec<u8>> {
        None
    }
    /// How often the engines are scraped for this policy; `None` if it does not look.
    fn scrape_period_us(&self) -> Option<u64> {
        None
    }
}

/// What a policy may know before the first request.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Engines in the fleet.
    pub engines: usize,
    /// KV capacity of each in tokens.
    pub kv_tokens: u64,
    /// Seed of this router's random choices.
    pub seed: u64,
    /// How often routers of the `prefix` policy scrape the engines; `None`: never.
    pub scrape_interval_ms: Option<u64>,
    /// How often routers of the `prefix` policy tell each other what they learn; `None`: never.
    pub sync_interval_ms: Option<u64>,
}

impl Setup {
    /// This router's source of random choices.
    pub fn rng(&self) -> SmallRng {
        SmallRng::seed_from_u64(self.seed)
    }
}

/// A policy by name, ready to be built once per router.
#[derive(Debug, Clone, PartialEq)]
pub enum Spec {
    /// Engines in turn.
    RoundRobin,
    /// Fewest requests in flight.
    LeastRequest,
    /// The better of two random engines.
    PowerOfTwo,
    /// A hash ring over the conversation's key.
    ConsistentHash,
    /// vllm-project/router's policy of that name.
    CacheAware(cache_aware::Options),
    /// The scorers of the Gateway API Inference Extension.
    Gie(gie::Options),
    /// Dynamo's router without engine events.
    DynamoApprox,
    /// True caches and queues.
    Oracle(oracle::Alpha),
    /// The oracle that is best in the cell.
    OracleBest,
    /// The `prefix` policy itself: the code that runs inside Envoy.
    Prefix(prefix::Options),
    /// The cost formula of this project on an idealised table.
    OursReference(ours::Options),
}

impl Spec {
    /// Reads a policy as it is given on the command line.
    ///
    /// # Errors
    /// Unknown name, or parameters the policy does not have.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let (name, parameters) = match text.split_once('=') {
            Some((name, parameters)) => (name, Some(parameters)),
            None => (text, None),
        };
        Ok(match (name, parameters) {
            ("round_robin", None) => Self::RoundRobin,
            ("least_request", None) => Self::LeastRequest,
            ("p2c", None) => Self::PowerOfTwo,
            ("consistent_hash", None) => Self::ConsistentHash,
            ("cache_aware", p) => Self::CacheAware(cache_aware::Options::parse(p)?),
            ("gie", None) => Self::Gie(gie::Options { capped: false }),
            ("gie_capped", None) => Self::Gie(gie::Options { capped: true }),
            ("dynamo_approx", None) => Self::DynamoApprox,
            ("oracle", p) => Self::Oracle(oracle::Alpha::parse(p)?),
            ("oracle_best", None) => Self::OracleBest,
            ("prefix", p) => Self::Prefix(prefix::Options::parse(p)?),
            ("ours_reference", p) => Self::OursReference(ours::Options::parse(p)?),
            _ => bail!(
                "policy: got {text}, want round_robin, least_request, p2c, consistent_hash, \
                 cache_aware[=THRESHOLD/ABS/REL], gie, gie_capped, dynamo_approx, \
                 oracle[=ALPHA|load], oracle_best, prefix[=NAME:VALUE/...][/unary][/max_tokens][/learned] or ours_reference[=true_cache][=home]"
            ),
        })
    }

    /// The policy as a pool's entry in the filter's configuration; `None` for those it has not.
    pub fn in_filter(&self, kv_tokens: u64) -> Option<serde_json::Value> {
        match self {
            Self::RoundRobin => Some("round_robin".into()),
            Self::LeastRequest => Some("least_request".into()),
            Self::PowerOfTwo => Some("power_of_two".into()),
            Self::Prefix(options) if options.is_streamed() => {
                Some(serde_json::json!({"prefix": options.members(kv_tokens)}))
            }
            _ => None,
        }
    }

    /// The same policy for requests that say how long their answers may become.
    pub fn with_max_tokens(self) -> Self {
        match self {
            Self::Prefix(options) => Self::Prefix(options.with_max_tokens()),
            other => other,
        }
    }

    /// The policies whose best result is this one's; itself for all but `oracle_best`.
    pub fn candidates(&self) -> Vec<Self> {
        match self {
            Self::OracleBest => oracle::Alpha::ALL.map(Self::Oracle).to_vec(),
            other => vec![other.clone()],
        }
    }

    /// The routers of a run. Workers of the `prefix` policy share a store and keep their own views
    /// of it; of the other policies a state that all share is one router.
    pub fn routers(&self, setup: &Setup, routers: usize, shared: bool) -> Vec<Box<dyn Policy>> {
        let is_prefix = matches!(self, Self::Prefix(_));
        let instances = if shared && !is_prefix {
            1
        } else {
            routers.max(1)
        };
        let common = prefix::Shared::default();
        (0..instances as u64)
            .map(|router| {
                let setup = Setup {
                    seed: setup.seed.wrapping_mul(1000).wrapping_add(router),
                    ..*setup
                };
                let state = if shared {
                    common.clone()
                } else {
                    common.apart()
                };
                self.build(&setup, &state)
            })
            .collect()
    }

    /// One router.
    fn build(&self, setup: &Setup, shared: &prefix::Shared) -> Box<dyn Policy> {
        match self {
            Self::RoundRobin => Box::new(round_robin::RoundRobin::default()),
            Self::LeastRequest => Box::new(least_request::LeastRequest::new(setup)),
            Self::PowerOfTwo => Box::new(least_request::PowerOfTwo::new(setup)),
            Self::ConsistentHash => Box::new(consistent_hash::ConsistentHash::new(setup)),
            Self::CacheAware(options) => Box::new(cache_aware::CacheAware::new(options, setup)),
            Self::Gie(options) => Box::new(gie::Gie::new(options, setup)),
            Self::DynamoApprox => Box::new(dynamo::Dynamo::new(setup)),
            Self::Oracle(alpha) => Box::new(oracle::Oracle::new(*alpha, setup)),
            Self::OracleBest => Box::new(oracle::Oracle::new(oracle::Alpha::GREEDY, setup)),
            Self::Prefix(options) => Box::new(prefix::Prefix::new(options, setup, shared)),
            Self::OursReference(options) => Box::new(ours::Ours::new(options, setup)),
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RoundRobin => f.write_str("round_robin"),
            Self::LeastRequest => f.write_str("least_request"),
            Self::PowerOfTwo => f.write_str("p2c"),
            Self::ConsistentHash => f.write_str("consistent_hash"),
            Self::CacheAware(options) => write!(f, "cache_aware={options}"),
            Self::Gie(options) if options.capped => f.write_str("gie_capped"),
            Self::Gie(_) => f.write_str("gie"),
            Self::DynamoApprox => f.write_str("dynamo_approx"),
            Self::Oracle(alpha) => write!(f, "oracle={alpha}"),
            Self::OracleBest => f.write_str("oracle_best"),
            Self::Prefix(options) => write!(f, "prefix{options}"),
            Self::OursReference(options) => write!(f, "ours_reference{options}"),
        }
    }
}

/// The engine with the least cost; ties fall at random.
fn cheapest(costs: impl Iterator<Item = f64>, rng: &mut SmallRng) -> usize {
    use rand::Rng;
    let (mut best, mut ties, mut least) = (0, 0_u32, f64::INFINITY);
    for (engine, cost) in costs.enumerate() {
        if cost < least {
            (best, ties, least) = (engine, 1, cost);
        } else if cost == least {
            ties += 1;
            if rng.random_ratio(1, ties) {
                best = engine;
            }
        }
    }
    best
}
