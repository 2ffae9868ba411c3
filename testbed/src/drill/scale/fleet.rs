//! Several Envoys that share, and what each says of how it sees the others.

use anyhow::Context as _;
use serde_json::json;

use super::journal;
use crate::drill::stage::{ENGINES, POOL, fast, until};
use crate::e2e::client::{Call, Client, Reply};
use crate::e2e::harness::{Context, Stack, StackSpec};
use crate::e2e::replica::Replica;
use crate::e2e::scale::learns;
use crate::envoy::{Envoy, stats};
use crate::store::{self, Binaries, Store};

/// How often Envoys tell and ask.
const INTERVAL_MS: u64 = 100;
/// Webdis processes.
const FRONTS: usize = 2;
/// Codes of `warmpath_peers_view`.
const WHOLE: u64 = 2;
const BLIND: u64 = 4;

/// A store, engines, an Envoy that shares through the store, and replicas of it.
pub(super) struct Fleet<'a> {
    /// What they share through.
    pub(super) store: Store,
    stack: Stack<'a>,
    replicas: Vec<Replica<'a>>,
}

/// How an Envoy sees the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sight {
    view: u64,
    peers: u64,
}

impl Sight {
    /// Whether it hears so many others.
    pub(super) fn is_whole(self, others: usize) -> bool {
        self.view == WHOLE && self.peers == others as u64
    }

    /// Whether it knows that the store does not answer.
    pub(super) fn is_blind(self) -> bool {
        self.view == BLIND
    }
}

impl<'a> Fleet<'a> {
    /// Starts all of it; returns once every Envoy knows of every other's prompts.
    pub(super) async fn start(
        context: &'a Context,
        binaries: &Binaries,
        envoys: usize,
    ) -> anyhow::Result<Self> {
        let store = Store::start(binaries, FRONTS).await?;
        let fronts = store.addresses();
        let spec = StackSpec::shipped()
            .engines(POOL, ENGINES)
            .policy(POOL, json!("prefix"))
            .engine(fast)
            .bootstrap(move |bootstrap| store::join(bootstrap, &fronts, store::KEY, INTERVAL_MS));
        let stack = Stack::start(context, spec).await?;
        let mut replicas = Vec::new();
        for _ in 1..envoys {
            replicas.push(Replica::beside(&stack).await?);
        }
        let fleet = Self {
            store,
            stack,
            replicas,
        };
        fleet.are_whole(envoys).await?;
        fleet.are_acquainted().await?;
        Ok(fleet)
    }

    /// The Envoys that run.
    pub(super) fn envoys(&self) -> anyhow::Result<Vec<&Envoy>> {
        let replicas = self.replicas.iter().filter_map(|it| it.envoy().ok());
        Ok([self.stack.envoy()?].into_iter().chain(replicas).collect())
    }

    /// A client of each Envoy that runs.
    pub(super) fn clients(&self) -> Vec<Client> {
        let running = self.replicas.iter().filter(|it| it.envoy().is_ok());
        let replicas = running.map(|it| it.client().clone());
        [self.stack.client().clone()]
            .into_iter()
            .chain(replicas)
            .collect()
    }

    /// The Envoy that is killed.
    pub(super) fn last(&mut self) -> anyhow::Result<&mut Replica<'a>> {
        self.replicas.last_mut().context("no replica")
    }

    /// Sends a call through the first Envoy.
    pub(super) async fn send(&self, call: Call) -> anyhow::Result<Reply> {
        self.stack.send(call).await
    }

    /// Prompt tokens that the engines have worked on, and the part of them that they had cached.
    pub(super) fn prompts(&self) -> (u64, u64) {
        crate::drill::stage::prompts(&self.stack)
    }

    /// The logs of the Envoys that run, about the others.
    pub(super) fn journals(&self) -> anyhow::Result<Vec<Vec<journal::Entry>>> {
        let logs = self.envoys()?.into_iter().map(Envoy::log);
        logs.map(|log| Ok(journal::entries(&log?))).collect()
    }

    /// How often the leases of the Envoys that run changed hands.
    pub(super) async fn lease_changes(&self) -> anyhow::Result<u64> {
        let mut changes = 0;
        for envoy in self.envoys()? {
            let page = envoy.filter_stats().await?;
            changes += stats::sum(&page, "warmpath_lease_changes_total", &[]);
        }
        Ok(changes)
    }

    /// How each Envoy that runs sees the others.
    pub(super) async fn sights(&self) -> anyhow::Result<Vec<Sight>> {
        let mut sights = Vec::new();
        for envoy in self.envoys()? {
            let page = envoy.filter_stats().await?;
            sights.push(Sight {
                view: stats::sum(&page, "warmpath_peers_view", &[]),
                peers: stats::sum(&page, "warmpath_peers", &[]),
            });
        }
        Ok(sights)
    }

    /// Waits until so many Envoys hear each other; says how long that took.
    pub(super) async fn are_whole(&self, envoys: usize) -> anyhow::Result<std::time::Duration> {
        until("every Envoy hears every other", async || {
            let sights = self.sights().await?;
            let whole = |it: &Sight| it.is_whole(envoys - 1);
            Ok(sights.len() == envoys && sights.iter().all(whole))
        })
        .await
    }

    /// Waits until each Envoy knows of the prompts of the one before it.
    pub(super) async fn are_acquainted(&self) -> anyhow::Result<()> {
        let clients = self.clients();
        let next = clients.iter().cycle().skip(1);
        for (teller, listener) in clients.iter().zip(next) {
            learns(
                async |call| teller.send(call).await,
                async |call| listener.send(call).await,
            )
            .await?;
        }
        Ok(())
    }
}
