//! The other Envoys of the fleet, as far as a router has to do with them.
//!
//! Every worker takes the peers' column for that of one more worker, and knows whether they are out of
//! sight. The worker that holds the lease speaks with them besides ([`crate::sync`]).

use super::Router;
use crate::call::{HttpCall, Reply};
use crate::hash;
use crate::ids::EndpointId;
use crate::policy;
use crate::store::Store;
use crate::sync::relay::Notice;
use crate::sync::{Due, Sync};
use crate::sync::{Tally, View};
use crate::workers::Column;

/// What other Envoys sent may weigh so many times what is expected of it. Twice is the balance that
/// [`policy::prefix`] tells of; what is expected is less than what is sent, and in simulations 2 to 4 are alike.
const UNSEEN_WEIGHT: f64 = 3.0;

/// Home affinities as configured, by pool, and whether they are raised now.
#[derive(Debug, Default)]
pub(super) struct Affinities {
    configured: Vec<f64>,
    raised: bool,
    /// Work that peers may have sent unseen, by pool, as it is weighed.
    unseen: Vec<f64>,
}

impl<S: Store> Router<S> {
    /// What happened between the Envoys, as this VM knows; `None` if it does not speak with them.
    pub fn sync_tally(&self) -> Option<&Tally> {
        self.sync.as_ref().map(|sync| sync.tally())
    }

    /// Whether the peers are out of sight, so that home affinities are raised.
    pub fn is_out_of_sight(&self) -> bool {
        self.affinities.raised
    }

    /// The peers' column, if there are peers and somebody speaks with them.
    pub(super) fn peers_column(&mut self, now_us: u64) -> Option<Column> {
        let options = self.config.sync.as_ref()?;
        let least = options.home_affinity;
        let notice = Notice::read(&self.store);
        let column = notice.as_ref().and_then(|it| it.column(now_us / 1000));
        // Who speaks with nobody sees nobody.
        let out_of_sight = notice
            .as_ref()
            .is_none_or(|it| column.is_none() || it.out_of_sight);
        if out_of_sight != self.affinities.raised {
            self.affinities.raised = out_of_sight;
            self.set_affinities(least);
        }
        let unseen = notice.filter(|_| column.is_some());
        let unseen = unseen.map(|it| it.unseen).unwrap_or_default();
        self.set_unseen(&unseen);
        column
    }

    fn set_unseen(&mut self, engines: &[(EndpointId, u32)]) {
        let mut by_position = vec![0; self.endpoints.len()];
        for (engine, tokens) in engines {
            let position = self.positions.get(engine);
            if let Some(entry) = position.and_then(|position| by_position.get_mut(*position)) {
                *entry = *tokens;
            }
        }
        let at = |position: &usize| by_position.get(*position).copied().map_or(0.0, f64::from);
        let all = self.pools.iter().map(|pool| pool.groups.first());
        let pools = all.map(|all| all.map_or(0.0, |all| all.all.iter().map(at).sum()));
        let pools = pools.map(|tokens: f64| UNSEEN_WEIGHT * tokens);
        self.affinities.unseen = pools.collect();
    }

    /// How much work that nobody has told yet may count in a pool, in tokens.
    pub(super) fn unseen_tokens(&self, pool: usize) -> f64 {
        let unseen = self.affinities.unseen.get(pool);
        unseen.copied().unwrap_or_default()
    }

    fn set_affinities(&mut self, least: f64) {
        let pools = &mut self.config.pools;
        let configured = &mut self.affinities.configured;
        let prefix = pools.iter_mut().map(|pool| pool.policy.prefix_mut());
        for (at, options) in prefix.enumerate() {
            let own = options
                .as_ref()
                .map_or(0.0, |options| options.home_affinity);
            if configured.len() == at {
                configured.push(own);
            }
            if let (Some(options), Some(own)) = (options, configured.get(at)) {
                let raised = self.affinities.raised && *own < least;
                options.home_affinity = if raised { least } else { *own };
            }
        }
    }

    /// The call to the store of the fleet, if this VM makes it and it is due.
    pub(super) fn peers_call(&mut self, now_us: u64) -> Option<HttpCall> {
        if !self.scout.holds_lease() {
            self.sync = None;
            return None;
        }
        self.speak(now_us)?;
        let expiry_ms = self.config.limits.worker_expiry_ms;
        self.sync.as_mut()?.call(&self.store, expiry_ms, now_us)
    }

    /// The call has ended.
    pub(super) fn peers_answered(&mut self, reply: Reply, now_us: u64) -> bool {
        let Some(sync) = self.sync.as_mut() else {
            return false;
        };
        let failed = sync.tally().failed;
        sync.ended(reply, now_us);
        sync.pass_on(&self.store, now_us);
        sync.tally().failed == failed
    }

    /// Speaks with the peers without calls, for a simulation: when it is time, takes what has arrived, and
    /// gives what is to be sent.
    pub fn exchange_directly<Batch: AsRef<[u8]>>(
        &mut self,
        arrived: &mut Vec<Batch>,
        now_us: u64,
    ) -> Option<Vec<u8>> {
        self.speak(now_us)?;
        let expiry_ms = self.config.limits.worker_expiry_ms;
        let sync = self.sync.as_mut()?;
        sync.listen(&self.store, expiry_ms, now_us);
        let due = sync.due(now_us)?;
        sync.called(now_us);
        let batch = (due == Due::Tell).then(|| sync.batch(now_us).0);
        sync.deliver(arrived, now_us);
        arrived.clear();
        sync.pass_on(&self.store, now_us);
        batch
    }

    fn speak(&mut self, now_us: u64) -> Option<()> {
        let options = self.config.sync.as_ref()?;
        if self.sync.is_none() {
            // Envoys may be born in the same microsecond, and still get the lease in different ones.
            let name = hash::mix(policy::next_random(&mut self.random), now_us).max(1);
            let sync = Sync::new(options, &self.store, name, now_us);
            self.sync = Some(Box::new(sync));
        }
        let ids: Vec<Option<EndpointId>> = self.endpoints.iter().map(|it| it.id).collect();
        if let Some(sync) = self.sync.as_mut() {
            sync.set_engines(&self.identities, &ids);
        }
        Some(())
    }

    /// How the Envoys see each other, as this VM knows.
    pub fn view(&self) -> View {
        self.sync_tally().map_or(View::Idle, |tally| tally.view)
    }
}
