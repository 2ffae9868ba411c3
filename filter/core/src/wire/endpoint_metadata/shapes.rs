//! The parts of the page that are read.
//!
//! The page is a few lists deep. Each list is folded into what its parent keeps while it arrives,
//! so endpoints without metadata leave nothing behind.

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;

use super::super::admin::{AddressJson, MAX_CLUSTERS, MAX_HOSTS};
use super::super::scalar::{List, Members, Scalar};
use super::{Dump, EndpointMetadata};

#[derive(Deserialize)]
pub(super) struct DumpJson {
    #[serde(default)]
    configs: Found<ConfigJson>,
}

impl DumpJson {
    /// What is kept, and how many endpoints there are in all.
    pub(super) fn content(self) -> (Dump, usize) {
        let dump = Dump {
            clusters: self.configs.clusters,
            endpoints: self.configs.endpoints,
        };
        (dump, self.configs.found)
    }
}

/// The endpoints found in a list of `T`.
struct Found<T> {
    clusters: Vec<String>,
    endpoints: Vec<EndpointMetadata>,
    found: usize,
    of: PhantomData<T>,
}

impl<T> Default for Found<T> {
    fn default() -> Self {
        Found {
            clusters: Vec::new(),
            endpoints: Vec::new(),
            found: 0,
            of: PhantomData,
        }
    }
}

impl<T> Found<T> {
    fn add<U>(&mut self, more: Found<U>) {
        self.found += more.found;
        // One more than the most tells that there are too many.
        if self.clusters.len() <= MAX_CLUSTERS {
            self.clusters.extend(more.clusters);
        }
        if self.found <= MAX_HOSTS {
            self.endpoints.extend(more.endpoints);
        }
    }
}

/// A list element that holds endpoints, or is one.
trait Holder {
    fn give(self, found: &mut Found<Self>)
    where
        Self: Sized;
}

impl<'de, T: Holder + DeserializeOwned> Deserialize<'de> for Found<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(FoundVisitor(PhantomData))
    }
}

struct FoundVisitor<T>(PhantomData<T>);

impl<'de, T: Holder + DeserializeOwned> Visitor<'de> for FoundVisitor<T> {
    type Value = Found<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Found<T>, A::Error> {
        let mut found = Found::default();
        while let Some(element) = list.next_element::<T>()? {
            element.give(&mut found);
        }
        Ok(found)
    }
}

#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    static_endpoint_configs: Found<ClusterJson>,
    #[serde(default)]
    dynamic_endpoint_configs: Found<ClusterJson>,
}

impl Holder for ConfigJson {
    fn give(self, found: &mut Found<Self>) {
        found.add(self.static_endpoint_configs);
        found.add(self.dynamic_endpoint_configs);
    }
}

#[derive(Deserialize)]
struct ClusterJson {
    endpoint_config: Option<AssignmentJson>,
}

#[derive(Deserialize)]
struct AssignmentJson {
    #[serde(default)]
    cluster_name: String,
    #[serde(default)]
    endpoints: Found<LocalityJson>,
}

impl Holder for ClusterJson {
    fn give(self, found: &mut Found<Self>) {
        let Some(mut config) = self.endpoint_config else {
            return;
        };
        for endpoint in &mut config.endpoints.endpoints {
            endpoint.cluster.clone_from(&config.cluster_name);
        }
        config.endpoints.clusters.push(config.cluster_name);
        found.add(config.endpoints);
    }
}

#[derive(Deserialize)]
struct LocalityJson {
    #[serde(default)]
    lb_endpoints: Found<Endpoint>,
}

impl Holder for LocalityJson {
    fn give(self, found: &mut Found<Self>) {
        found.add(self.lb_endpoints);
    }
}

/// An endpoint; `None` without an address or without metadata of ours.
struct Endpoint(Option<EndpointMetadata>);

impl Holder for Endpoint {
    fn give(self, found: &mut Found<Self>) {
        found.found += 1;
        if found.found <= MAX_HOSTS {
            found.endpoints.extend(self.0);
        }
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let endpoint = EndpointJson::deserialize(deserializer)?;
        Ok(Endpoint(endpoint.metadata()))
    }
}

#[derive(Deserialize)]
struct EndpointJson<'a> {
    #[serde(borrow)]
    endpoint: Option<HostJson<'a>>,
    #[serde(borrow)]
    metadata: Option<MetadataJson<'a>>,
}

#[derive(Deserialize)]
struct HostJson<'a> {
    #[serde(borrow)]
    address: Option<AddressJson<'a>>,
}

#[derive(Deserialize)]
struct MetadataJson<'a> {
    #[serde(borrow)]
    filter_metadata: Option<NamespacesJson<'a>>,
}

#[derive(Deserialize)]
struct NamespacesJson<'a> {
    #[serde(borrow)]
    warmpath: Option<OursJson<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OursJson<'a> {
    #[serde(borrow)]
    role: Scalar<'a>,
    #[serde(borrow)]
    models: List<'a>,
    #[serde(borrow)]
    labels: Members<'a>,
    #[serde(borrow)]
    weight: Scalar<'a>,
}

impl EndpointJson<'_> {
    fn metadata(self) -> Option<EndpointMetadata> {
        let ours = self.metadata?.filter_metadata?.warmpath?;
        let models = ours.models.0.iter().filter_map(Scalar::name);
        let labels = ours.labels.0.iter();
        let labels = labels.filter_map(|(name, value)| Some((name.to_string(), value.label()?)));
        let mut labels: Vec<_> = labels.collect();
        // Envoy writes them in another order each time.
        labels.sort();
        Some(EndpointMetadata {
            cluster: String::new(),
            address: self.endpoint?.address?.socket()?,
            role: ours.role.name(),
            models: models.collect(),
            labels,
            weight: ours.weight.number().filter(|weight| *weight > 0.0),
        })
    }
}
