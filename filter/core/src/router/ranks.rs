//! What there is behind one address: the data-parallel ranks of an engine, and what is written about it.
//!
//! To policies each rank is an endpoint like any other. Envoy knows addresses alone, and its retries
//! change nothing but the address, so a ranked list holds one rank only: that of its first entry.
//! O(members) where the pool has ranks; nothing else costs anything where it has none.

use super::{Endpoint, Router, Target};
use crate::address::EngineAddress;
use crate::fleet::Metadata;
use crate::policy::{Group, Weights, least};
use crate::store::Store;
use std::net::SocketAddr;

/// What weights are multiplied by before they become whole numbers, unless they are too large: halves to
/// eighths stay exact.
const WEIGHT_STEPS: f64 = 840.0;
/// Most endpoints that a policy ranks for the sake of those with the same rank.
const MOST_RANKED: usize = 64;

impl Endpoint {
    pub(super) fn new(at: EngineAddress) -> Self {
        Endpoint {
            address: at.socket.to_string(),
            name: at.to_string(),
            at,
            id: None,
            retired: false,
            role: None,
            labels: Vec::new(),
        }
    }
}

impl<S: Store> Router<S> {
    /// The `ip:port` of an endpoint, as Envoy knows it.
    pub fn address(&self, position: usize) -> &str {
        let endpoint = self.endpoints.get(position);
        endpoint.map_or("", |endpoint| endpoint.address.as_str())
    }

    /// The name of an endpoint in metrics and on the status page: `ip:port`, or `ip:port@rank`.
    pub fn name(&self, position: usize) -> &str {
        let endpoint = self.endpoints.get(position);
        endpoint.map_or("", |endpoint| endpoint.name.as_str())
    }

    /// The data-parallel rank of an endpoint, to be sent with a request as
    /// [`RANK_HEADER`](crate::address::RANK_HEADER).
    pub fn rank(&self, position: usize) -> Option<u16> {
        self.endpoints.get(position)?.at.rank
    }

    /// What the configuration or its metadata says of an endpoint under a name.
    pub fn label(&self, position: usize, name: &str) -> Option<&str> {
        let labels = self.endpoints.get(position)?.labels.iter();
        let mut found = labels.filter(|(label, _)| label == name);
        found.next().map(|(_, value)| value.as_str())
    }

    /// What an endpoint is for, by its metadata or its label `role`.
    pub fn role(&self, position: usize) -> Option<&str> {
        let told = self.endpoints.get(position)?.role.as_deref();
        told.or_else(|| self.label(position, "role"))
    }

    /// Where the ranks of an engine are that some pool has.
    pub(super) fn positions_at(&self, socket: SocketAddr) -> impl Iterator<Item = usize> {
        let all = self.endpoints.iter().enumerate();
        let here = all.filter(move |(_, it)| it.at.socket == socket && !it.retired);
        here.map(|(position, _)| position)
    }

    /// Who answers at an address a request that was sent with this rank: where there is no such rank,
    /// the engine as a whole.
    pub(super) fn position_of(&self, address: &[u8], rank: Option<u16>) -> Option<usize> {
        let find = |rank: Option<u16>| {
            let is = |it: &Endpoint| it.at.rank == rank && it.address.as_bytes() == address;
            let known = |retired| {
                self.endpoints
                    .iter()
                    .position(|it| it.retired == retired && is(it))
            };
            known(false).or_else(|| known(true))
        };
        find(rank).or_else(|| find(None))
    }

    /// Takes over what is written about the endpoints. One that several pools have is as the first of
    /// them says.
    pub(super) fn take_labels(&mut self) {
        let fleet = self.scout.fleet();
        for endpoint in &mut self.endpoints {
            let socket = endpoint.at.socket;
            let listed = self.config.pools.iter();
            let mut listed = listed.flat_map(|pool| pool.endpoints.iter());
            let listed = listed.find(|one| one.address == socket);
            let mut told = self.config.pools.iter().filter_map(|pool| {
                let cluster = fleet.clusters.get(&pool.cluster);
                let cluster = cluster.filter(|_| pool.reads_metadata)?;
                cluster.metadata_of(&socket)
            });
            let told: Option<&Metadata> = told.next();
            endpoint.role = told.and_then(|told| told.role.clone());
            let labels = listed.map(|one| &one.labels);
            let labels = labels.or_else(|| told.map(|told| &told.labels));
            endpoint.labels = labels.cloned().unwrap_or_default();
        }
    }

    /// How many endpoints a policy is to rank, so that mostly enough are left when only one rank of each
    /// engine is.
    pub(super) fn wanted_candidates(&self, target: &Target, candidates: usize) -> usize {
        let ranks = self.most_ranks(target);
        match ranks > 1 {
            true => (candidates * ranks).min(MOST_RANKED).max(candidates),
            false => candidates,
        }
    }

    /// Leaves of a ranking its first endpoint and, of every other engine, the one with the same rank.
    pub(super) fn keep_one_rank(&self, target: &Target, ranked: &mut Vec<usize>, group: &Group) {
        if self.most_ranks(target) < 2 {
            return;
        }
        let first = ranked.first().and_then(|first| self.endpoints.get(*first));
        let (Some(first), Some(pool)) = (first, self.config.pools.get(target.pool)) else {
            return;
        };
        let first = first.at;
        let fits = |position: &usize| {
            let other = self.endpoints.get(*position).map(|other| other.at);
            other == Some(first)
                || other.is_some_and(|it| it.rank == first.rank && it.socket != first.socket)
        };
        ranked.retain(fits);
        if ranked.len() < pool.candidates {
            let members = group.members().iter().copied();
            let others = members.filter(|it| fits(it) && !ranked.contains(it));
            let others = others.map(|position| (self.in_flight(position), position));
            let others = least(others, pool.candidates - ranked.len());
            ranked.extend(others.into_iter().map(|(_, position)| position));
        }
        ranked.truncate(pool.candidates);
    }

    fn most_ranks(&self, target: &Target) -> usize {
        let pool = self.pools.get(target.pool);
        pool.map_or(1, |pool| usize::from(pool.most_ranks))
    }

    /// Weight of a pool's endpoint, which is that of its whole engine: as the config gives it, else as
    /// its metadata does, else as Envoy balances by it.
    pub(super) fn weight(&self, pool: usize, position: usize) -> f64 {
        let layout = self.pools.get(pool);
        let given = layout.and_then(|layout| layout.weights.get(position).copied());
        let given = given.filter(|weight| *weight > 0).map(f64::from);
        let host = || self.host(pool, position).map(|host| f64::from(host.weight));
        let written = || {
            let config = self.config.pools.get(pool).filter(|it| it.reads_metadata)?;
            let cluster = self.scout.fleet().clusters.get(&config.cluster)?;
            let socket = self.endpoints.get(position)?.at.socket;
            cluster.metadata_of(&socket)?.weight.map(f64::from)
        };
        given.or_else(written).or_else(host).unwrap_or(1.0)
    }

    /// The weights of a pool's endpoints, if they differ. Where all engines have the same weight none is
    /// meant, and each rank counts as one; else the ranks of an engine share its weight.
    pub(super) fn weights(&self, pool: usize, positions: &[usize]) -> Option<Weights> {
        let layout = self.pools.get(pool)?;
        let all = layout.groups.first()?.all.iter();
        let mut all = all.map(|it| self.weight(pool, *it));
        let first = all.next()?;
        if all.all(|weight| weight == first) {
            return None;
        }
        let weights = positions.iter().map(|it| self.weight(pool, *it));
        let mut weights: Vec<f64> = weights.collect();
        for (weight, position) in weights.iter_mut().zip(positions) {
            let endpoint = self.endpoints.get(*position);
            if let Some(at) = endpoint.map(|it| it.at).filter(|at| at.rank.is_some()) {
                *weight /= self.positions_at(at.socket).count().max(1) as f64;
            }
        }
        let most = weights
            .iter()
            .fold(1.0, |most: f64, weight| most.max(*weight));
        let is_whole = |weight: &f64| weight.fract() == 0.0;
        let scale = match weights.iter().all(is_whole) {
            true => 1.0,
            false => WEIGHT_STEPS,
        };
        let scale = scale.min(f64::from(u16::MAX) / most);
        let whole = weights.iter().map(|weight| (weight * scale).round() as u16);
        Weights::new(whole.collect())
    }
}
