//! Who serves what: pools, endpoints and models, laid out from the config and the fleet.
//!
//! An endpoint keeps its position as long as it is there, because requests in flight name it by that.
//! One that leaves is *retired*: no group has it any more, and its position goes to a new endpoint
//! once nothing of this worker is in flight there. A layout costs O(endpoints * pools); it is made
//! anew only when endpoints or models come or go.

use super::judge::Members;
use super::watch::Watch;
use super::{Endpoint, Pool, Router, Target};
use crate::address::EngineAddress;
use crate::config::{Config, MAX_ENDPOINTS, PoolConfig};
use crate::fleet::{Cluster, Fleet};
use crate::hash;
use crate::ids::{self, EndpointId};
use crate::store::Store;
use std::collections::HashSet;
use std::net::SocketAddr;

/// An endpoint of a pool, and the models it serves; none named: all of its pool.
struct Member {
    at: EngineAddress,
    models: Vec<String>,
}

/// The endpoints of a pool, each rank being one. One whose models are not known yet serves nothing that
/// must be known; one whose role is not known has none.
fn members(config: &Config, pool: &PoolConfig, fleet: &Fleet) -> Vec<Member> {
    let told = |socket: &SocketAddr| {
        let engine = fleet.engines.get(socket);
        engine.and_then(|engine| engine.models.clone())
    };
    let engines: Vec<(SocketAddr, Vec<String>)> = if pool.discovered {
        let cluster = fleet.clusters.get(&pool.cluster);
        let engines = cluster.into_iter().flat_map(|it| cluster_engines(pool, it));
        engines.collect()
    } else {
        let listed = pool.endpoints.iter();
        listed
            .map(|one| (one.address, one.models.clone()))
            .collect()
    };
    let mut members = Vec::new();
    for (socket, models) in engines {
        let models = match pool.discover_models {
            true => told(&socket),
            false => Some(models),
        };
        let Some(models) = models else { continue };
        let given = fleet.given_ranks(config, socket);
        let ranks = given.unwrap_or_else(|| fleet.told_ranks(socket));
        for at in EngineAddress::all(socket, ranks) {
            let models = models.clone();
            members.push(Member { at, models });
        }
    }
    members.truncate(MAX_ENDPOINTS);
    members
}

/// Those of a cluster's endpoints that are of a pool, and the models that their metadata names.
fn cluster_engines(
    pool: &PoolConfig,
    cluster: &Cluster,
) -> impl Iterator<Item = (SocketAddr, Vec<String>)> {
    let hosts = cluster.hosts.keys();
    hosts.filter_map(|socket| {
        let metadata = cluster.metadata_of(socket);
        let metadata = metadata.filter(|_| pool.reads_metadata);
        let role = metadata.and_then(|metadata| metadata.role.as_ref());
        if pool.role.is_some() && pool.role.as_ref() != role {
            return None;
        }
        let models = metadata.map(|metadata| metadata.models.clone());
        Some((*socket, models.unwrap_or_default()))
    })
}

/// Every model name and alias that leads to a pool, each once.
fn served_names(pool: &PoolConfig, members: &[Member]) -> Vec<String> {
    let mut seen = HashSet::new();
    let listed = pool
        .models
        .iter()
        .chain(pool.aliases.iter().map(|(alias, _)| alias));
    let names = listed.chain(members.iter().flat_map(|member| &member.models));
    names.filter(|name| seen.insert(*name)).cloned().collect()
}

impl<S: Store> Router<S> {
    /// Lays everything out anew; requests in flight keep their positions.
    pub(super) fn lay_out(&mut self, now_us: u64) {
        let fleet = self.scout.fleet();
        let pools = self.config.pools.iter();
        let pools: Vec<Vec<Member>> = pools
            .map(|pool| members(&self.config, pool, fleet))
            .collect();
        let mut wanted = Vec::new();
        let mut seen = HashSet::new();
        for member in pools.iter().flatten() {
            if wanted.len() < MAX_ENDPOINTS && seen.insert(member.at) {
                wanted.push(member.at);
            }
        }
        self.note_changes(&pools);
        self.place(&wanted, now_us);
        self.pools.clear();
        self.models.clear();
        self.any_model = None;
        for (index, members) in pools.iter().enumerate() {
            self.lay_out_pool(index, members);
        }
        self.note_told();
        self.index_seen_models();
        self.take_labels();
        self.set_directories();
        self.set_capacities();
        self.judged = self.judged.wrapping_add(1);
        self.judge_again_us = 0;
        self.hear(now_us);
    }

    /// Notes for the metrics who leaves, and which pools change.
    fn note_changes(&mut self, pools: &[Vec<Member>]) {
        for (index, (old, new)) in self.pools.iter().zip(pools).enumerate() {
            let stays: HashSet<&EngineAddress> = new.iter().map(|member| &member.at).collect();
            let all = old.groups.first().map(|group| group.all.as_slice());
            let all = all.unwrap_or_default();
            let before = all
                .iter()
                .filter_map(|position| self.endpoints.get(*position));
            let gone = before.filter(|endpoint| !stays.contains(&endpoint.at));
            let gone: Vec<String> = gone.map(|endpoint| endpoint.name.clone()).collect();
            if (!gone.is_empty() || all.len() != new.len()) && !self.changed_pools.contains(&index)
            {
                self.changed_pools.push(index);
            }
            let room = MAX_ENDPOINTS.saturating_sub(self.departed.len());
            let gone = gone.into_iter().take(room);
            self.departed.extend(gone.map(|address| (index, address)));
        }
    }

    /// Gives every wanted endpoint a position, and retires the others.
    fn place(&mut self, wanted: &[EngineAddress], now_us: u64) {
        let stays: HashSet<&EngineAddress> = wanted.iter().collect();
        for endpoint in &mut self.endpoints {
            endpoint.retired = !stays.contains(&endpoint.at);
        }
        self.by_address.retain(|at, _| stays.contains(at));
        for at in wanted {
            if self.by_address.contains_key(at) {
                continue;
            }
            let endpoint = Endpoint::new(*at);
            let identity = hash::hash(endpoint.name.as_bytes());
            let position = self.free_position();
            match position.and_then(|position| self.endpoints.get_mut(position)) {
                Some(place) => *place = endpoint,
                None => self.endpoints.push(endpoint),
            }
            let position = position.unwrap_or(self.endpoints.len().saturating_sub(1));
            self.identities.resize(self.endpoints.len(), 0);
            if let Some(place) = self.identities.get_mut(position) {
                *place = identity;
            }
            self.watch_anew(position);
            self.by_address.insert(*at, position);
        }
        let ids = ids::resolve(&self.store, &self.identities, now_us / 1000);
        for (endpoint, id) in self.endpoints.iter_mut().zip(&ids) {
            endpoint.id = *id;
        }
        self.positions = self
            .endpoints
            .iter()
            .enumerate()
            .filter(|(_, endpoint)| !endpoint.retired)
            .filter_map(|(at, endpoint)| Some((endpoint.id?, at)))
            .collect();
        self.holders = crate::policy::Holders::new(ids.len());
        self.drains.resize(ids.len());
        self.peers_busy.resize(ids.len(), 0);
        self.loads.set_ids(&ids);
        self.rates.set_ids(&ids);
        self.fitness.set_ids(&ids);
        self.pulses.set_ids(&ids);
        self.watches.resize_with(ids.len(), Watch::default);
    }

    /// A retired endpoint of which nothing is in flight here.
    fn free_position(&self) -> Option<usize> {
        let idle = |position: usize| {
            let own = self.loads.own(position);
            own.is_none_or(|load| load.in_flight == 0)
        };
        let retired = self.endpoints.iter().enumerate();
        let retired = retired.filter(|(_, endpoint)| endpoint.retired);
        retired.map(|(at, _)| at).find(|position| idle(*position))
    }

    fn lay_out_pool(&mut self, index: usize, members: &[Member]) {
        let Some(pool) = self.config.pools.get(index) else {
            return;
        };
        let position = |member: &Member| self.by_address.get(&member.at).copied();
        let all: Vec<usize> = members.iter().filter_map(position).collect();
        let mut groups = vec![Members::new(all, &self.identities)];
        let names = served_names(pool, members);
        if names.is_empty() && !pool.discover_models && !pool.prefills {
            self.any_model = Some(Target {
                pool: index,
                rename: None,
                group: 0,
                adapter: None,
            });
        }
        for name in names {
            let alias = pool.aliases.iter().find(|(alias, _)| *alias == name);
            let model = alias.map_or(name.as_str(), |(_, model)| model.as_str());
            let serves = |member: &&Member| {
                member.models.is_empty() || member.models.iter().any(|one| one == model)
            };
            let group: Vec<usize> = members.iter().filter(serves).filter_map(position).collect();
            let known = groups.iter().position(|other| other.all == group);
            let group = known.unwrap_or_else(|| {
                groups.push(Members::new(group, &self.identities));
                groups.len() - 1
            });
            let rename = (model != name).then(|| model.to_owned());
            let target = Target {
                pool: index,
                rename,
                group,
                adapter: Some(hash::hash(model.as_bytes())),
            };
            // Two pools may discover the same name; the first in the config has it.
            if !self.models.contains_key(name.as_bytes()) {
                self.models.insert(name.into_bytes(), target);
            }
        }
        let mut weights = Vec::new();
        for one in &pool.endpoints {
            let Some(weight) = one.weight else { continue };
            weights.resize(self.endpoints.len(), 0);
            for (given, endpoint) in weights.iter_mut().zip(&self.endpoints) {
                if endpoint.at.socket == one.address {
                    *given = weight;
                }
            }
        }
        let highest = members.iter().filter_map(|member| member.at.rank).max();
        self.pools.push(Pool {
            groups,
            weights,
            most_ranks: highest.map_or(1, |rank| rank + 1),
            told: false,
        });
    }

    /// A model that was once served leads to an empty group: it is known, but nobody has it now.
    fn index_seen_models(&mut self) {
        let discovers = |pool: &PoolConfig| pool.discover_models;
        let Some(index) = self.config.pools.iter().position(discovers) else {
            return;
        };
        let seen = &self.scout.fleet().seen_models;
        let gone = seen
            .iter()
            .filter(|name| !self.models.contains_key(name.as_bytes()));
        let gone: Vec<String> = gone.cloned().collect();
        let Some(pool) = self.pools.get_mut(index) else {
            return;
        };
        if gone.is_empty() {
            return;
        }
        pool.groups.push(Members::new(Vec::new(), &self.identities));
        let target = Target {
            pool: index,
            rename: None,
            group: pool.groups.len() - 1,
            adapter: None,
        };
        for name in gone {
            self.models.insert(name.into_bytes(), target.clone());
        }
    }

    /// Tells the index the KV capacity of every endpoint whose pool looks at prompts: what the engine
    /// says, unless the config says it.
    pub(super) fn set_capacities(&mut self) {
        let mut engines: Vec<(EndpointId, u64)> = Vec::new();
        // One that several pools have keeps one cache: the first of them counts.
        let mut counted = vec![false; self.endpoints.len()];
        for (pool, layout) in self.config.pools.iter().zip(&self.pools) {
            let Some(kv_tokens) = pool.kv_tokens() else {
                continue;
            };
            let all = layout.groups.first().map(|group| group.all.as_slice());
            for position in all.unwrap_or_default() {
                let (Some(endpoint), Some(counted)) =
                    (self.endpoints.get(*position), counted.get_mut(*position))
                else {
                    continue;
                };
                if std::mem::replace(counted, true) {
                    continue;
                }
                let engine = self.scout.fleet().engine(&endpoint.at);
                let told = engine.and_then(|engine| engine.kv_capacity_tokens);
                let told = told.filter(|_| pool.learns_kv_tokens());
                if let Some(id) = endpoint.id {
                    engines.push((id, told.unwrap_or(kv_tokens)));
                }
            }
        }
        if self.capacities != engines {
            if let Some(replica) = self.replica.as_mut() {
                replica.set_engines(&engines);
            }
            let tokens = engines.iter().map(|(_, kv_tokens)| *kv_tokens);
            let tokens = tokens.fold(0, u64::saturating_add);
            // It never gets smaller: who leaves may come back.
            self.table_bytes = self.table_bytes.max(self.config.table_bytes_for(tokens));
            self.capacities = engines;
        }
    }
}
