//! The router: pools and endpoints of one config, and what this worker shares with the others.

use crate::answer::Answer;
use crate::board::Board;
use crate::config::{Config, PolicyConfig, PoolConfig};
use crate::decision::{Decision, Fallback};
use crate::hash;
use crate::ids::{self, EndpointId};
use crate::load::Load;
use crate::policy::{self, View};
use crate::rate::{self, Rate};
use crate::scan::ScanPlan;
use crate::session::KeySource;
use crate::store::{Store, update};
use crate::workers::{self, Column};
use ahash::AHashMap;

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
    owner: u64,
    column: Option<Column>,
    joined: bool,
    touched_ms: u64,
    random: u64,
}

#[derive(Debug)]
struct Endpoint {
    address: String,
}

#[derive(Debug)]
struct Pool {
    /// Positions of endpoints; the first group is all of them, the others serve one model each.
    groups: Vec<Vec<usize>>,
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

/// Work that is counted as in flight at an endpoint until it is given back.
#[derive(Debug, PartialEq, Eq)]
pub struct Charge {
    position: usize,
    waiting: bool,
}

impl<S: Store> Router<S> {
    /// A router for `config`.
    pub fn new(config: Config, store: S, now_us: u64) -> Self {
        let pointers = KeySource::pointers(&config.session_key);
        // The config reader has compiled each pointer once already.
        let plan = ScanPlan::new(&pointers, false).unwrap_or_default();
        let (endpoints, pools) = lay_out(&config);
        let identities: Vec<u64> = endpoints
            .iter()
            .map(|endpoint| hash::hash(endpoint.address.as_bytes()))
            .collect();
        let ids = ids::resolve(&store, &identities, now_us / 1000);
        // Workers start within the same microsecond; a shared count keeps their draws apart.
        let births = count(&store, "warmpath/births").unwrap_or_default();
        let mut random = hash::mix(births, now_us);
        let owner = policy::next_random(&mut random).max(1);
        let mut router = Router {
            store,
            plan,
            pools,
            endpoints,
            identities,
            models: AHashMap::new(),
            any_model: None,
            loads: Board::new(ids.clone()),
            rates: Board::new(ids),
            owner,
            column: None,
            joined: false,
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
        let addresses: Vec<&str> = decision
            .ranked
            .iter()
            .map(|position| self.address(*position))
            .collect();
        addresses.join(",")
    }

    /// Requests in flight at an endpoint, as this worker knows.
    pub fn in_flight(&self, position: usize) -> u32 {
        self.loads.total(position).map_or(0, |load| load.in_flight)
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
        pool.is_some_and(|pool| matches!(pool.policy, PolicyConfig::ConsistentHash { .. }))
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

    /// Ranks the endpoints of a target and counts the request as in flight at the first.
    ///
    /// # Errors
    /// The answer to give when no endpoint can take the request.
    pub fn decide(
        &mut self,
        target: &Target,
        key: Option<u64>,
        now_us: u64,
    ) -> Result<(Decision, Charge), Answer> {
        self.join(now_us);
        self.loads.refresh(&self.store, now_us);
        let members = self
            .pools
            .get(target.pool)
            .and_then(|pool| pool.groups.get(target.group));
        let (Some(pool), Some(members)) = (self.config.pools.get(target.pool), members) else {
            return Err(Answer::no_endpoint(""));
        };
        let deciding = policy::effective(&pool.policy, key.is_some());
        let window_us = match deciding {
            PolicyConfig::LowestQps { window_us } => Some(*window_us),
            _ => None,
        };
        if window_us.is_some() {
            self.rates.refresh(&self.store, now_us);
        }
        let turn = match deciding {
            PolicyConfig::RoundRobin => next_turn(&self.store, &pool.name, target.group),
            _ => None,
        };
        let draw = policy::next_random(&mut self.random);
        let ranking = policy::rank(
            &pool.policy,
            &View {
                members,
                identities: &self.identities,
                loads: &self.loads,
                rates: &self.rates,
                key,
                turn: turn.unwrap_or(draw),
                draw,
                now_us,
                candidates: pool.candidates,
            },
        );
        let Some(position) = ranking.ranked.first().copied() else {
            return Err(Answer::no_endpoint(&pool.name));
        };
        if let Some(window_us) = window_us {
            let bucket = rate::bucket(now_us, window_us);
            self.rates.change(position, |rate| rate.count(bucket));
            self.publish_rates(now_us);
        }
        let charge = self.charge(position, now_us);
        let decision = Decision {
            pool: target.pool,
            policy: ranking.policy,
            reason: ranking.reason,
            ranked: ranking.ranked,
            rewrite: None,
            fallback: None,
        };
        Ok((decision, charge))
    }

    fn charge(&mut self, position: usize, now_us: u64) -> Charge {
        self.loads.change(position, |load| {
            load.in_flight = load.in_flight.saturating_add(1);
            load.waiting = load.waiting.saturating_add(1);
            // Two decisions within one microsecond still have an order.
            load.last_used_us = now_us.max(load.last_used_us.saturating_add(1));
        });
        self.publish_loads(now_us);
        Charge {
            position,
            waiting: true,
        }
    }

    /// Moves a charge to the endpoint that really answers, when it is not the one charged.
    pub fn served_by(&mut self, charge: &mut Charge, address: &[u8], now_us: u64) {
        if self.address(charge.position).as_bytes() == address {
            return;
        }
        let Some(served) = self
            .endpoints
            .iter()
            .position(|endpoint| endpoint.address.as_bytes() == address)
        else {
            return;
        };
        let waiting = u32::from(charge.waiting);
        self.loads
            .change(charge.position, |load| give_back(load, 1, waiting));
        self.loads.change(served, |load| {
            load.in_flight = load.in_flight.saturating_add(1);
            load.waiting = load.waiting.saturating_add(waiting);
            load.last_used_us = now_us.max(load.last_used_us.saturating_add(1));
        });
        charge.position = served;
        self.publish_loads(now_us);
    }

    /// The first token came: the prompt is prefilled.
    pub fn first_token(&mut self, charge: &mut Charge, now_us: u64) {
        if std::mem::take(&mut charge.waiting) {
            self.loads
                .change(charge.position, |load| give_back(load, 0, 1));
            self.publish_loads(now_us);
        }
    }

    /// The request ended, one way or another.
    pub fn end(&mut self, charge: Charge, now_us: u64) {
        let waiting = u32::from(charge.waiting);
        self.loads
            .change(charge.position, |load| give_back(load, 1, waiting));
        self.publish_loads(now_us);
    }

    /// Renews what must be renewed while time passes; about once a second.
    pub fn tick(&mut self, now_us: u64) {
        if !self.joined {
            return;
        }
        self.beat(now_us);
        let now_ms = now_us / 1000;
        if now_ms.saturating_sub(self.touched_ms) >= ids::TOUCH_MS {
            self.touched_ms = now_ms;
            // The answer is what we have: an id does not change while it is in use.
            let _: Vec<Option<EndpointId>> = ids::resolve(&self.store, &self.identities, now_ms);
        }
    }

    /// Takes this worker's figures out of the sum; nothing of it is in flight any more.
    pub fn leave(&mut self) {
        if self.joined {
            workers::leave(&self.store, self.owner);
            self.joined = false;
            self.column = None;
        }
    }

    /// Takes a column with the first request: the main thread's VM never needs one.
    fn join(&mut self, now_us: u64) {
        if !self.joined {
            self.joined = true;
            self.beat(now_us);
        }
    }

    fn beat(&mut self, now_us: u64) {
        let limits = &self.config.limits;
        let now_ms = now_us / 1000;
        let roll = workers::beat(
            &self.store,
            self.owner,
            limits.workers,
            limits.worker_expiry_ms,
            now_ms,
        );
        let Some(roll) = roll else { return };
        self.loads.set_peers(&roll.peers);
        self.rates.set_peers(&roll.peers);
        self.column = roll.own;
        self.publish_loads(now_us);
    }

    fn publish_loads(&mut self, now_us: u64) {
        if let Some(column) = self.column {
            self.loads.publish(&self.store, column, now_us);
        }
    }

    fn publish_rates(&mut self, now_us: u64) {
        if let Some(column) = self.column {
            self.rates.publish(&self.store, column, now_us);
        }
    }

    fn index_models(&mut self) {
        for (index, pool) in self.config.pools.iter().enumerate() {
            let groups = self.pools.get_mut(index).map(|pool| &mut pool.groups);
            let Some(groups) = groups else { continue };
            if pool.served_names().next().is_none() {
                self.any_model = Some(Target {
                    pool: index,
                    rename: None,
                    group: 0,
                });
                continue;
            }
            let all = groups.first().cloned().unwrap_or_default();
            for name in pool.served_names() {
                let model = pool.aliases.iter().find(|(alias, _)| alias == name);
                let model = model.map_or(name, |(_, model)| model.as_str());
                let serving = pool.endpoints.iter().zip(&all).filter(|(endpoint, _)| {
                    endpoint.models.is_empty() || endpoint.models.iter().any(|one| one == model)
                });
                let group: Vec<usize> = serving.map(|(_, position)| *position).collect();
                let known = groups.iter().position(|other| *other == group);
                let group = known.unwrap_or_else(|| {
                    groups.push(group);
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

fn give_back(load: &mut Load, in_flight: u32, waiting: u32) {
    load.in_flight = load.in_flight.saturating_sub(in_flight);
    load.waiting = load.waiting.saturating_sub(waiting);
}

fn lay_out(config: &Config) -> (Vec<Endpoint>, Vec<Pool>) {
    let mut endpoints: Vec<Endpoint> = Vec::new();
    let mut known: AHashMap<String, usize> = AHashMap::new();
    let pools = config.pools.iter().map(|pool| {
        let all = pool.endpoints.iter().map(|endpoint| {
            let address = endpoint.address.to_string();
            *known.entry(address.clone()).or_insert_with(|| {
                endpoints.push(Endpoint { address });
                endpoints.len() - 1
            })
        });
        Pool {
            groups: vec![all.collect()],
        }
    });
    let pools = pools.collect();
    (endpoints, pools)
}

/// The number of the next request of a group of endpoints; `None` when the race was lost.
fn next_turn<S: Store>(store: &S, pool: &str, group: usize) -> Option<u64> {
    count(store, &format!("warmpath/turn/{pool}/{group}"))
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

/// Whether a decision was made with less than it could have known.
pub fn with_fallback(mut decision: Decision, fallback: Option<Fallback>) -> Decision {
    decision.fallback = fallback;
    decision
}
