//! The router: pools and endpoints of one config, and what this worker shares with the others.
//!
//! `decide` ranks the endpoints for a request and counts it ([`decide`]), `account` moves and gives
//! back what was counted, `admit` refuses what is too much, `share` keeps up with the other workers,
//! `watch` finds engines that have stalled, `transfer` serves requests that two engines share, `ranks` tells what there is behind one address,
//! `unknown` leaves to Envoy what nobody has told yet,
//! `survey` speaks for all of them,
//! `explain` tells what `decide` would do, and `recall` what was decided lately.

mod account;
mod admit;
mod decide;
mod explain;
mod judge;
mod kv;
mod layout;
mod peers;
mod ranks;
mod recall;
mod share;
mod survey;
mod transfer;
mod unknown;
mod watch;
mod words;

pub use account::{Charge, Outcome};
pub(crate) use decide::completed;
pub use decide::{Ask, PromptFacts};
pub use explain::{Candidate, Explained};
pub use judge::{Response, State};
pub use kv::INSTANCE_LABEL;
pub(crate) use kv::{Inquiry, Sender};
pub use survey::{Surveyed, Told};
pub(crate) use transfer::Mark;

use crate::address::EngineAddress;
use crate::answer::Answer;
use crate::board::Board;
use crate::call::Pending;
use crate::config::{Config, PolicyConfig, PoolConfig};
use crate::decision::Decision;
use crate::fitness::Fitness;
use crate::hash;
use crate::hash::{Seed, Table};
use crate::ids::EndpointId;
use crate::load::Load;
use crate::order;
use crate::policy::{self, Holders};
use crate::prefix::{self, Replica};
use crate::pulse::Pulse;
use crate::rate::Rate;
use crate::recent::Recent;
use crate::scan::ScanPlan;
use crate::scout::Scout;
use crate::session::KeySource;
use crate::sorted::Sorted;
use crate::store::{Store, update};
use crate::sync::Sync;
use crate::workers::Column;
use account::Drains;
use judge::Members;
use kv::KvPool;
use peers::Affinities;
use std::net::SocketAddr;
use watch::Watch;
use words::Words;

/// How often the count of routers is tried, in rounds of [`UPDATE_TRIES`](crate::store::UPDATE_TRIES).
/// Each lost try is another router's birth, so this is enough for a thousand at once. Two of one
/// name would write to the same column.
const BIRTH_ROUNDS: u32 = 128;

/// One worker's router for one config.
#[derive(Debug)]
pub struct Router<S> {
    store: S,
    config: Config,
    plan: ScanPlan,
    pools: Vec<Pool>,
    /// Every endpoint once, however many pools name it: load belongs to the engine.
    endpoints: Vec<Endpoint>,
    identities: Vec<u64>,
    models: Table<Vec<u8>, Target>,
    any_model: Option<Target>,
    loads: Board<Load>,
    rates: Board<Rate>,
    /// What the engines hold; `None` when no pool asks.
    replica: Option<Replica>,
    /// What the links of prompts begin with.
    chain_seed: u64,
    positions: Table<EndpointId, usize>,
    by_address: Table<EngineAddress, usize>,
    /// Endpoints that left, for the metrics; at most as many as there are endpoints.
    departed: Vec<(usize, String)>,
    changed_pools: Vec<usize>,
    /// What the index was told of the engines' KV memory.
    capacities: Vec<(EndpointId, u64)>,
    /// Size that the prefix table should have for them.
    table_bytes: usize,
    scout: Scout,
    /// When engines last said how many prompt tokens they had looked up, in ms, and how many.
    queried: Sorted<EngineAddress, (u64, u64)>,
    /// Of the fleet that the layout was made of.
    shape: u64,
    fitness: Board<Fitness>,
    /// Signs of life of all workers.
    pulses: Board<Pulse>,
    /// Those of this one, by position.
    watches: Vec<Watch>,
    watched_us: u64,
    /// Changes of the fitness that the judgement knows.
    judged_changes: u64,
    /// Number of the judgement of who is usable; one more whenever it may have changed.
    judged: u64,
    /// When time alone may change it.
    judge_again_us: u64,
    holders: Holders,
    /// What engines said of requests that are not ours, by position.
    words: Words,
    /// Cache taken by the other workers' requests, in tokens, as of their events read last.
    peers_busy: Vec<u64>,
    drains: Drains,
    owner: u64,
    column: Option<Column>,
    /// Whether this worker does what one does for all.
    leads: bool,
    joined: bool,
    joined_us: u64,
    published_us: u64,
    /// Whether a policy looks at request rates.
    counts_rates: bool,
    /// Whether a pool refuses requests when it is full.
    sheds: bool,
    touched_ms: u64,
    random: u64,
    /// When it was made.
    born_us: u64,
    /// Calls that requests wait for.
    pending: Pending,
    /// What engines call themselves, where others must know it; one entry at most for each address.
    names: Sorted<SocketAddr, transfer::Names>,
    /// Empty unless the status page is served.
    recent: Recent,
    /// What is known of the index service of each pool that has one.
    kv: Vec<Option<KvPool>>,
    /// The other Envoys, while this VM speaks with them.
    sync: Option<Box<Sync>>,
    /// Home affinities of pools as configured, and whether they are raised now.
    affinities: Affinities,
}

#[derive(Debug)]
struct Endpoint {
    /// `ip:port`, as Envoy has it.
    address: String,
    /// The same with its rank, if it has one.
    name: String,
    at: EngineAddress,
    id: Option<EndpointId>,
    /// Whether no pool has it any more.
    retired: bool,
    role: Option<String>,
    labels: Vec<(String, String)>,
}

#[derive(Debug)]
struct Pool {
    /// The first group is all endpoints of the pool, the others serve one model each.
    groups: Vec<Members>,
    /// Weights that the config gives, by position of the endpoint; 0 or left out: none.
    weights: Vec<u16>,
    /// Data-parallel ranks of the engine that has most of them.
    most_ranks: u16,
    /// Whether somebody has told which endpoints it has, if only that it has none.
    told: bool,
}

/// Where a model leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Position of the pool.
    pub pool: usize,
    /// The name that the endpoints know, when the client used another.
    pub rename: Option<String>,
    group: usize,
    /// Hash of the model's name, if it may be that of a LoRA adapter.
    adapter: Option<u64>,
}

impl<S: Store> Router<S> {
    /// A router for `config`.
    pub fn new(config: Config, store: S, now_us: u64) -> Self {
        let pointers = KeySource::pointers(&config.session_key);
        let wants_prompt = config.pools.iter().any(|pool| pool.kv_tokens().is_some());
        let transfers = config.pools.iter().any(PoolConfig::transfers);
        // The config reader has compiled each pointer once already.
        let plan = ScanPlan::new(&pointers, wants_prompt).unwrap_or_default();
        let plan = match transfers {
            true => plan.with_shape(),
            false => plan,
        };
        // Workers start within the same microsecond; a shared count keeps their names and draws apart.
        let mut births = (0..BIRTH_ROUNDS).filter_map(|_| count(&store, "warmpath/births"));
        let births = births.next().unwrap_or_default();
        let mut random = hash::mix(births, now_us);
        let owner = policy::next_random(&mut random).max(1);
        // Neither the time to the microsecond nor the configuration is told to clients.
        let chance = hash::mix(random, config.hash);
        // Envoys that read each other's links begin them alike.
        let chain_seed = wants_prompt.then(|| match &config.sync {
            Some(sync) => sync.secret.seed(),
            None => prefix::seed(&store, chance),
        });
        // Engines name models, and clients ask for them.
        let names = Seed(chance);
        let scout = Scout::new(&store, config.hash, owner);
        let mut router = Router {
            store,
            plan,
            pools: Vec::new(),
            positions: Table::default(),
            by_address: Table::default(),
            departed: Vec::new(),
            changed_pools: Vec::new(),
            capacities: Vec::new(),
            table_bytes: config.prefix_table_bytes(),
            queried: Sorted::default(),
            shape: scout.shape(),
            scout,
            fitness: Board::new(Vec::new()),
            pulses: Board::new(Vec::new()),
            watches: Vec::new(),
            watched_us: 0,
            judged_changes: 0,
            judged: 0,
            judge_again_us: 0,
            holders: Holders::new(0),
            drains: Drains::new(0),
            endpoints: Vec::new(),
            identities: Vec::new(),
            peers_busy: Vec::new(),
            words: Words::default(),
            models: Table::with_seed(names),
            any_model: None,
            loads: Board::new(Vec::new()),
            rates: Board::new(Vec::new()),
            replica: None,
            chain_seed: chain_seed.unwrap_or_default(),
            owner,
            column: None,
            leads: false,
            joined: false,
            joined_us: 0,
            published_us: 0,
            sheds: config.pools.iter().any(|pool| pool.admission.is_some()),
            counts_rates: config.pools.iter().any(|pool| pool.policy.counts_rates()),
            touched_ms: now_us / 1000,
            random,
            born_us: now_us,
            pending: Pending::default(),
            names: Sorted::default(),
            recent: Recent::new(config.status.as_ref().map_or(0, |status| status.recent)),
            kv: config
                .pools
                .iter()
                .map(|pool| pool.policy.kv_aware().map(KvPool::new))
                .collect(),
            sync: None,
            affinities: Affinities::default(),
            config,
        };
        router.lay_out(now_us);
        // By what the others have learned of the engines: a snapshot of theirs finds room at once.
        let make = || Replica::new(router.table_bytes, &router.capacities);
        router.replica = wants_prompt.then(make);
        let pools = router.config.pools.iter();
        let predictions = pools.filter_map(|pool| Some(pool.policy.kv_aware()?.prediction_us));
        if let (Some(replica), Some(span_us)) = (router.replica.as_mut(), predictions.max()) {
            replica.remember_lately(span_us);
        }
        router
    }

    /// The config.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What to look for in bodies.
    pub fn plan(&self) -> &ScanPlan {
        &self.plan
    }

    /// Addresses of a decision, best first, joined as `override_host` reads them.
    pub fn destination(&self, decision: &Decision) -> String {
        // The longest form of an IPv6 address and a port.
        let mut list = String::with_capacity(48 * decision.ranked.len());
        for position in &decision.ranked {
            if !list.is_empty() {
                list.push(',');
            }
            list.push_str(self.address(*position));
        }
        list
    }

    /// The name of a pool; empty for a position that is none.
    pub fn pool_name(&self, pool: usize) -> &str {
        let pool = self.config.pools.get(pool);
        pool.map_or("", |pool| pool.name.as_str())
    }

    /// All that is in flight at an endpoint, as this worker knows.
    pub fn load(&self, position: usize) -> Load {
        self.loads.total(position).copied().unwrap_or_default()
    }

    /// Requests in flight at an endpoint, as this worker knows.
    pub fn in_flight(&self, position: usize) -> u32 {
        self.loads.total(position).map_or(0, |load| load.in_flight)
    }

    /// Prefill work in tokens that awaits a first token at an endpoint, as this worker knows.
    pub fn queued_tokens(&self, position: usize) -> u64 {
        self.loads
            .total(position)
            .map_or(0, |load| load.prefill_tokens)
    }

    /// The pool that serves a model.
    pub fn target(&self, model: &[u8]) -> Option<&Target> {
        self.models.get(model).or(self.any_model.as_ref())
    }

    /// The pool for requests whose model is of no importance: the only one, whatever the model.
    pub fn only_target(&self) -> Option<&Target> {
        self.any_model.as_ref().filter(|_| self.models.is_empty())
    }

    /// The pool that takes any model.
    pub fn any_model(&self) -> Option<&Target> {
        self.any_model.as_ref()
    }

    /// The pool that `name` names, else the default pool.
    pub fn default_target(&self, name: Option<&[u8]>) -> Option<Target> {
        let named = name.and_then(|name| {
            let serves = |pool: &PoolConfig| pool.name.as_bytes() == name && !pool.prefills;
            self.config.pools.iter().position(serves)
        });
        let pool = named.or(self.config.default_pool)?;
        Some(Target {
            pool,
            rename: None,
            group: 0,
            adapter: None,
        })
    }

    /// Whether a pool's policy looks at the session key.
    pub fn wants_key(&self, target: &Target) -> bool {
        let pool = self.config.pools.get(target.pool);
        pool.is_some_and(|pool| {
            let by_key = matches!(pool.policy, PolicyConfig::ConsistentHash { .. });
            by_key || pool.kv_tokens().is_some()
        })
    }

    /// Whether it matters to a pool which prompts its engines hold, so that the whole body is read.
    pub fn wants_prompt(&self, target: &Target) -> bool {
        let pool = self.config.pools.get(target.pool);
        pool.is_some_and(|pool| pool.kv_tokens().is_some())
    }

    /// What the links of a prompt begin with, where `seed` tells apart what shares no cache. Workers of
    /// one Envoy agree on it, and clients cannot know it.
    pub(crate) fn chain_seed(&self, seed: u64) -> u64 {
        hash::mix(self.chain_seed, seed)
    }

    /// Whether any endpoint is behind a target, as far as we know.
    fn serves(&self, target: &Target) -> bool {
        let pool = self.pools.get(target.pool);
        let group = pool.and_then(|pool| pool.groups.get(target.group));
        self.leaves_to_envoy(target.pool) || group.is_some_and(|group| !group.all.is_empty())
    }

    /// The merged list of models, unless some pool takes models that we do not know.
    pub fn model_list(&self) -> Option<Answer> {
        if self.any_model.is_some() {
            return None;
        }
        let mut names: Vec<&str> = self
            .models
            .iter()
            .filter(|(_, target)| self.serves(target))
            .filter_map(|(name, _)| std::str::from_utf8(name).ok())
            .collect();
        order::sort(&mut names, |one, other| one.cmp(other));
        Some(Answer::models(names.into_iter()))
    }
}

/// Counts up a shared number and returns what it was.
fn count<S: Store>(store: &S, key: &str) -> Option<u64> {
    update(store, key, |bytes| {
        let turn = bytes
            .first_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes));
        bytes.clear();
        bytes.extend_from_slice(&turn.wrapping_add(1).to_le_bytes());
        (true, turn)
    })
}
