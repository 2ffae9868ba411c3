//! Engines by the names that they have in batches, in shared data, and in the router.

use crate::ids::EndpointId;
use crate::sorted::Sorted;

/// What is known of engines, by position in the router.
#[derive(Debug)]
pub(super) struct Directory {
    ids: Vec<Option<EndpointId>>,
    identities: Vec<u64>,
    positions: Sorted<u64, usize>,
    by_id: Sorted<EndpointId, u64>,
}

impl Directory {
    /// Of the endpoints with these identities and ids, by position.
    pub(super) fn new(identities: &[u64], ids: &[Option<EndpointId>]) -> Self {
        let numbered = identities.iter().enumerate();
        let named = identities.iter().zip(ids);
        Directory {
            positions: numbered
                .map(|(position, it)| (*it, position))
                .collect::<Vec<_>>()
                .into(),
            by_id: named
                .filter_map(|(it, id)| Some(((*id)?, *it)))
                .collect::<Vec<_>>()
                .into(),
            identities: identities.to_vec(),
            ids: ids.to_vec(),
        }
    }

    /// The id of an engine.
    pub(super) fn engine(&self, identity: u64) -> Option<EndpointId> {
        let position = self.positions.get(&identity)?;
        self.ids.get(*position).copied().flatten()
    }

    /// Whether it is of these endpoints.
    pub(super) fn is_of(&self, identities: &[u64], ids: &[Option<EndpointId>]) -> bool {
        self.identities == identities && self.ids == ids
    }

    /// The ids, by position.
    pub(super) fn ids(&self) -> &[Option<EndpointId>] {
        &self.ids
    }

    /// How many positions there are.
    pub(super) fn len(&self) -> usize {
        self.identities.len()
    }

    /// The identity at a position.
    pub(super) fn identity(&self, position: usize) -> Option<u64> {
        self.identities.get(position).copied()
    }

    /// The position of an identity.
    pub(super) fn position(&self, identity: u64) -> Option<usize> {
        self.positions.get(&identity).copied()
    }

    /// The identity that an id stands for.
    pub(super) fn named(&self, id: EndpointId) -> Option<u64> {
        self.by_id.get(&id).copied()
    }
}
