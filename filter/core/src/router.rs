//! The router: pools and endpoints of one config, and what this worker shares with the others.
//!
//! `decide` ranks the endpoints for a request and counts it ([`decide`]), `account` moves and gives
//! back what was counted, `share` keeps up with the other workers, `survey` speaks for all of them.

mod account;
mod decide;
mod share;
mod survey;

pub use account::{Charge, Outcome};
pub(crate) use decide::completed;
pub use decide::{Ask, PromptFacts};
pub use survey::Surveyed;

use crate::answer::Answer;
use crate::board::Board;
use crate::config::{Config, PolicyConfig, PoolConfig};
use crate::decision::Decision;
use crate::hash;
use crate::ids::{self, EndpointId};
use crate::load::Load;
use crate::policy::{self, Group, Holders};
use crate::prefix::Replica;
use crate::rate::Rate;
use crate::scan::ScanPlan;
use crate::session::KeySource;
use crate::store::{Store, update};
use crate::workers::Column;
use account::Drains;
use ahash::AHashMap;

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
    models: AHashMap<Vec<u8>, Target>,
    any_model: Option<Target>,
    loads: Board<Load>,
    rates: Board<Rate>,
    /// What the engines hold; `None` when no pool asks.
    replica: Option<Replica>,
    positions: AHashMap<EndpointId, usize>,
    holders: Holders,
    /// Cache taken by the other workers' requests, in tokens, as of their events read last.
    peers_busy: Vec<u64>,
    drains: Drains,
    owner: u64,
    column: Option<Column>,
    joined: bool,
    joined_us: u64,
    published_us: u64,
    /// Whether a policy looks at request rates.
    counts_rates: bool,
    touched_ms: u64,
    random: u64,
}

#[derive(Debug)]
struct Endpoint {
    address: String,
    id: Option<EndpointId>,
}

#[derive(Debug)]
struct Pool {
    /// The first group is all endpoints of the pool, the others serve one model each.
    groups: Vec<Group>,
}

/// Where a model leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Position of the pool.
    pub pool: usize,
    /// The name that the endpoints know, when the client used another.
    pub rename: Option<String>,
    group: usize,
}

impl<S: Store> Router<S> {
    /// A router for `config`.
    pub fn new(config: Config, store: S, now_us: u64) -> Self {
        let pointers = KeySource::pointers(&config.session_key);
        let wants_prompt = config
            .pools
            .iter()
            .any(|pool| pool.policy.kv_tokens().is_some());
        // The config reader has compiled each pointer once already.
        let plan = ScanPlan::new(&pointers, wants_prompt).unwrap_or_default();
        let (mut endpoints, members) = lay_out(&config);
        let identities: Vec<u64> = endpoints
            .iter()
            .map(|endpoint| hash::hash(endpoint.address.as_bytes()))
            .collect();
        let pools: Vec<Pool> = members
            .into_iter()
            .map(|members| Pool {
                groups: vec![Group::new(members, &identities)],
            })
            .collect();
        let ids = ids::resolve(&store, &identities, now_us / 1000);
        for (endpoint, id) in endpoints.iter_mut().zip(&ids) {
            endpoint.id = *id;
        }
        // Workers start within the same microsecond; a shared count keeps their names and draws apart.
        let mut births = (0..BIRTH_ROUNDS).filter_map(|_| count(&store, "warmpath/births"));
        let births = births.next().unwrap_or_default();
        let mut random = hash::mix(births, now_us);
        let owner = policy::next_random(&mut random).max(1);
        let replica = wants_prompt.then(|| {
            let engines = capacities(&config, &pools, &endpoints);
            Replica::new(config.prefix_table_bytes(), &engines)
        });
        let ids_of = endpoints.iter().enumerate();
        let mut router = Router {
            store,
            plan,
            pools,
            positions: ids_of
                .filter_map(|(at, endpoint)| Some((endpoint.id?, at)))
                .collect(),
            holders: Holders::new(endpoints.len()),
            peers_busy: vec![0; endpoints.len()],
            drains: Drains::new(endpoints.len()),
            endpoints,
            identities,
            models: AHashMap::new(),
            any_model: None,
            loads: Board::new(ids.clone()),
            rates: Board::new(ids),
            replica,
            owner,
            column: None,
            joined: false,
            joined_us: 0,
            published_us: 0,
            counts_rates: config.pools.iter().any(|pool| pool.policy.counts_rates()),
            touched_ms: now_us / 1000,
            random,
            config,
        };
        router.index_models();
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

    /// The `ip:port` of an endpoint.
    pub fn address(&self, position: usize) -> &str {
        self.endpoints
            .get(position)
            .map_or("", |endpoint| endpoint.address.as_str())
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
            self.config
                .pools
                .iter()
                .position(|pool| pool.name.as_bytes() == name)
        });
        let pool = named.or(self.config.default_pool)?;
        Some(Target {
            pool,
            rename: None,
            group: 0,
        })
    }

    /// Whether a pool's policy looks at the session key.
    pub fn wants_key(&self, target: &Target) -> bool {
        let pool = self.config.pools.get(target.pool);
        pool.is_some_and(|pool| {
            let by_key = matches!(pool.policy, PolicyConfig::ConsistentHash { .. });
            by_key || pool.policy.kv_tokens().is_some()
        })
    }

    /// Whether a pool's policy looks at the prompt, and so at the whole body.
    pub fn wants_prompt(&self, target: &Target) -> bool {
        let pool = self.config.pools.get(target.pool);
        pool.is_some_and(|pool| pool.policy.kv_tokens().is_some())
    }

    /// The merged list of models, unless some pool takes models that we do not know.
    pub fn model_list(&self) -> Option<Answer> {
        if self.any_model.is_some() {
            return None;
        }
        Some(Answer::models(
            self.config.pools.iter().flat_map(PoolConfig::served_names),
        ))
    }

    fn index_models(&mut self) {
        for (index, pool) in self.config.pools.iter().enumerate() {
            let groups = self.pools.get_mut(index).map(|pool| &mut pool.groups);
            let Some(groups) = groups else { continue };
            if pool.served_names().is_empty() {
                self.any_model = Some(Target {
                    pool: index,
                    rename: None,
                    group: 0,
                });
                continue;
            }
            let all = groups.first().map(|group| group.members().to_vec());
            let all = all.unwrap_or_default();
            for name in pool.served_names() {
                let model = pool.aliases.iter().find(|(alias, _)| alias == name);
                let model = model.map_or(name, |(_, model)| model.as_str());
                let serving = pool.endpoints.iter().zip(&all).filter(|(endpoint, _)| {
                    endpoint.models.is_empty() || endpoint.models.iter().any(|one| one == model)
                });
                let group: Vec<usize> = serving.map(|(_, position)| *position).collect();
                let known = groups.iter().position(|other| other.members() == group);
                let group = known.unwrap_or_else(|| {
                    groups.push(Group::new(group, &self.identities));
                    groups.len() - 1
                });
                let rename = (model != name).then(|| model.to_owned());
                let target = Target {
                    pool: index,
                    rename,
                    group,
                };
                self.models.insert(name.as_bytes().to_vec(), target);
            }
        }
    }
}

fn lay_out(config: &Config) -> (Vec<Endpoint>, Vec<Vec<usize>>) {
    let mut endpoints: Vec<Endpoint> = Vec::new();
    let mut known: AHashMap<String, usize> = AHashMap::new();
    let pools = config.pools.iter().map(|pool| {
        let all = pool.endpoints.iter().map(|endpoint| {
            let address = endpoint.address.to_string();
            *known.entry(address.clone()).or_insert_with(|| {
                endpoints.push(Endpoint { address, id: None });
                endpoints.len() - 1
            })
        });
        all.collect()
    });
    let pools = pools.collect();
    (endpoints, pools)
}

/// The KV capacity of every endpoint whose pool looks at prompts.
fn capacities(config: &Config, pools: &[Pool], endpoints: &[Endpoint]) -> Vec<(EndpointId, u64)> {
    let of_pool = |(pool, lists): (&PoolConfig, &Pool)| {
        let kv_tokens = pool.policy.kv_tokens()?;
        let members = lists.groups.first()?.members().iter();
        let ids = members.filter_map(|position| endpoints.get(*position)?.id);
        Some(ids.map(move |id| (id, kv_tokens)).collect::<Vec<_>>())
    };
    config
        .pools
        .iter()
        .zip(pools)
        .filter_map(of_pool)
        .flatten()
        .collect()
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
