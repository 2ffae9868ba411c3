//! What the configuration of Envoy's clusters says of single endpoints.
//!
//! It changes when somebody deploys, so it is asked for seldom, and kept as long as Envoy names the
//! endpoint. Bounds: [`MAX_LABELS`] labels with values of [`MAX_LABEL_BYTES`] bytes, [`MAX_MODELS`]
//! models; what is beyond is left out.

use super::{Cluster, Fleet, MAX_MODELS};
use crate::config::{MAX_ENDPOINTS, MAX_LABEL_BYTES, MAX_LABELS};
use crate::order;
use crate::wire::endpoint_metadata::Dump;
use std::net::SocketAddr;

/// Metadata of an endpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    /// What it is for, such as `prefill`.
    pub role: Option<String>,
    /// Names and values, in order of the names.
    pub labels: Vec<(String, String)>,
    /// Models it serves; empty: all of its pool.
    pub models: Vec<String>,
    /// Its speed, relative to the others'; positive.
    pub weight: Option<f32>,
}

impl Metadata {
    /// All that is written, as texts, each after a word that says what it is.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        let role = self.role.iter().flat_map(|role| ["role", role]);
        let labels = self.labels.iter();
        let labels = labels.flat_map(|(name, value)| ["label", name, value]);
        let models = self.models.iter().flat_map(|model| ["model", model]);
        role.chain(labels).chain(models)
    }
}

impl Cluster {
    /// Forgets the metadata of endpoints that are gone.
    pub(super) fn forget_metadata(&mut self) {
        let hosts = &self.hosts;
        self.metadata
            .retain(|(address, _)| hosts.contains_key(address));
    }

    /// What is written about an endpoint.
    pub fn metadata_of(&self, address: &SocketAddr) -> Option<&Metadata> {
        let found = self.metadata.binary_search_by_key(address, |it| it.0);
        Some(&self.metadata.get(found.ok()?)?.1)
    }
}

impl Fleet {
    /// Takes over what Envoy says of the endpoints of the clusters that it names; whether anything has
    /// changed. Nothing is learned of endpoints that Envoy did not name before.
    pub fn tell_metadata(&mut self, dump: &Dump) -> bool {
        let mut changed = false;
        for (name, cluster) in self.clusters.iter_mut() {
            let name = cluster.service.as_ref().unwrap_or(name);
            if !dump.clusters.contains(name) {
                continue;
            }
            let before = std::mem::take(&mut cluster.metadata);
            let told = dump.endpoints.iter().filter(|one| one.cluster == *name);
            for one in told.take(MAX_ENDPOINTS) {
                let fits = |text: &&String| text.len() <= MAX_LABEL_BYTES;
                let labels = one.labels.iter();
                let labels = labels.filter(|(name, value)| fits(&name) && fits(&value));
                let metadata = Metadata {
                    role: one.role.as_ref().filter(fits).cloned(),
                    labels: labels.take(MAX_LABELS).cloned().collect(),
                    models: one.models.iter().take(MAX_MODELS).cloned().collect(),
                    weight: one.weight.map(|weight| weight as f32),
                };
                cluster.metadata.push((one.address, metadata));
            }
            order::sort(&mut cluster.metadata, |(one, _), (other, _)| one.cmp(other));
            cluster.metadata.dedup_by_key(|(address, _)| *address);
            cluster.forget_metadata();
            changed |= before != cluster.metadata;
        }
        changed
    }
}
