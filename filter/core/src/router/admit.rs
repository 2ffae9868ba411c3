//! Admission: whether a pool takes one more request, and whom among its engines it passes by.
//!
//! Judged by what is in flight at an engine through all workers, and what the engine said of requests
//! that are not ours. Another worker's request counts as soon as its column is read, so requests that
//! reach several workers within the age of a sum ([`READ_SPACING_US`](crate::board::READ_SPACING_US)
//! times the number of other workers) are all admitted: at most one burst of that length more than the
//! bound. O(1) while the first engine has room, O(members) when all are full; nothing for a pool
//! without admission.

use super::{Router, Target};
use crate::admission::{AdmissionOptions, Bounds, Priority};
use crate::answer::{Answer, Shed};
use crate::decision::Reason;
use crate::load::Load;
use crate::policy::{Group, Ranking};
use crate::store::Store;

impl<S: Store> Router<S> {
    /// Whether any pool refuses requests when it is full, so that their priority matters.
    pub fn sheds(&self) -> bool {
        self.sheds
    }

    /// The answer to give instead, if none of these engines takes one more request.
    pub(super) fn shed(
        &self,
        target: &Target,
        engines: &[usize],
        priority: Priority,
    ) -> Option<Answer> {
        let admission = self.admission(target)?;
        let bounds = admission.bounds(priority);
        let full = !engines.is_empty() && engines.iter().all(|it| self.is_full(*it, &bounds));
        let shed = Shed {
            pool: target.pool,
            priority,
        };
        full.then(|| Answer::overloaded(self.pool_name(target.pool), shed, admission.retry_after_s))
    }

    /// Puts engines that take no more behind those that do; some of `group` does.
    pub(super) fn pass_by_full(
        &self,
        target: &Target,
        ranking: &mut Ranking,
        group: &Group,
        priority: Priority,
    ) {
        let Some(admission) = self.admission(target) else {
            return;
        };
        let bounds = admission.bounds(priority);
        let preferred = ranking.ranked.first().copied();
        let (mut ranked, full): (Vec<usize>, Vec<usize>) = ranking
            .ranked
            .iter()
            .partition(|position| !self.is_full(**position, &bounds));
        if ranked.is_empty() {
            let members = group.members().iter().copied();
            let room = members.filter(|position| !self.is_full(*position, &bounds));
            ranked.extend(room.min_by_key(|position| self.seen_load(*position).in_flight));
        }
        let length = ranking.ranked.len();
        ranked.extend(full);
        ranked.truncate(length);
        if ranked.first().copied() != preferred {
            ranking.reason = Reason::PreferredFull;
        }
        ranking.ranked = ranked;
    }

    fn admission(&self, target: &Target) -> Option<&AdmissionOptions> {
        self.config.pools.get(target.pool)?.admission.as_ref()
    }

    fn is_full(&self, position: usize, bounds: &Bounds) -> bool {
        bounds.are_reached(&self.seen_load(position))
    }

    /// What is at an engine, ours or not.
    fn seen_load(&self, position: usize) -> Load {
        let word = self.words.foreign().get(position).copied();
        word.unwrap_or_default().added_to(&self.load(position))
    }
}
