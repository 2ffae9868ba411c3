//! The parts of the answer that are read, and the lists whose bounds are kept while they arrive.

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

use super::super::admin::{AddressJson, MAX_CLUSTERS, MAX_HOSTS};
use super::super::scalar::Scalar;
use super::{Cluster, EdsHealth, Host, HostHealth, Locality};

#[derive(Deserialize)]
pub(super) struct AnswerJson {
    pub(super) cluster_statuses: Option<Statuses>,
}

/// The clusters as far as the bounds allow, and how many there would have been.
#[derive(Default)]
pub(super) struct Statuses {
    pub(super) clusters: Vec<Cluster>,
    pub(super) found_clusters: usize,
    pub(super) found_hosts: usize,
}

impl<'de> Deserialize<'de> for Statuses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(StatusesVisitor)
    }
}

struct StatusesVisitor;

impl<'de> Visitor<'de> for StatusesVisitor {
    type Value = Statuses;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of clusters")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Statuses, A::Error> {
        let mut statuses = Statuses::default();
        while statuses.found_clusters < MAX_CLUSTERS {
            let Some(cluster) = list.next_element::<ClusterJson>()? else {
                return Ok(statuses);
            };
            statuses.found_clusters += 1;
            let hosts = cluster.host_statuses.unwrap_or_default();
            statuses.found_hosts += hosts.found;
            if statuses.found_hosts <= MAX_HOSTS {
                statuses.clusters.push(Cluster {
                    name: cluster.name.into_owned(),
                    eds_service_name: cluster.eds_service_name.name(),
                    hosts: hosts.hosts,
                });
            }
        }
        while list.next_element::<IgnoredAny>()?.is_some() {
            statuses.found_clusters += 1;
        }
        Ok(statuses)
    }
}

#[derive(Deserialize)]
struct ClusterJson<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    eds_service_name: Scalar<'a>,
    host_statuses: Option<Hosts>,
}

#[derive(Default)]
struct Hosts {
    hosts: Vec<Host>,
    found: usize,
}

impl<'de> Deserialize<'de> for Hosts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(HostsVisitor)
    }
}

struct HostsVisitor;

impl<'de> Visitor<'de> for HostsVisitor {
    type Value = Hosts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of hosts")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Hosts, A::Error> {
        let mut hosts = Hosts::default();
        while hosts.found < MAX_HOSTS {
            let Some(host) = list.next_element::<HostJson>()? else {
                return Ok(hosts);
            };
            hosts.found += 1;
            hosts.hosts.extend(host.host());
        }
        while list.next_element::<IgnoredAny>()?.is_some() {
            hosts.found += 1;
        }
        Ok(hosts)
    }
}

#[derive(Deserialize)]
struct HostJson<'a> {
    #[serde(borrow)]
    address: Option<AddressJson<'a>>,
    stats: Option<Stats>,
    #[serde(borrow)]
    health_status: Option<HealthJson<'a>>,
    #[serde(borrow, default)]
    weight: Scalar<'a>,
    #[serde(borrow, default)]
    hostname: Scalar<'a>,
    #[serde(borrow)]
    locality: Option<LocalityJson<'a>>,
}

impl HostJson<'_> {
    fn host(&self) -> Option<Host> {
        let weight = self.weight.whole().unwrap_or(1);
        Some(Host {
            address: self.address.as_ref()?.socket()?,
            health: self
                .health_status
                .as_ref()
                .map_or_else(HostHealth::default, HealthJson::health),
            weight: u32::try_from(weight).unwrap_or(u32::MAX),
            hostname: self.hostname.name(),
            locality: self
                .locality
                .as_ref()
                .map_or_else(Locality::default, LocalityJson::locality),
            rq_active: self.stats.as_ref().map_or(0, |stats| stats.rq_active),
        })
    }
}

// Protobuf leaves out what is false, empty or zero.
#[derive(Default, Deserialize)]
#[serde(default)]
struct HealthJson<'a> {
    #[serde(borrow)]
    failed_active_health_check: Scalar<'a>,
    #[serde(borrow)]
    failed_outlier_check: Scalar<'a>,
    #[serde(borrow)]
    failed_active_degraded_check: Scalar<'a>,
    #[serde(borrow)]
    pending_dynamic_removal: Scalar<'a>,
    #[serde(borrow)]
    pending_active_hc: Scalar<'a>,
    #[serde(borrow)]
    excluded_via_immediate_hc_fail: Scalar<'a>,
    #[serde(borrow)]
    active_hc_timeout: Scalar<'a>,
    #[serde(borrow)]
    eds_health_status: Scalar<'a>,
}

impl HealthJson<'_> {
    fn health(&self) -> HostHealth {
        HostHealth {
            failed_active_health_check: self.failed_active_health_check.is_true(),
            failed_outlier_check: self.failed_outlier_check.is_true(),
            failed_active_degraded_check: self.failed_active_degraded_check.is_true(),
            pending_dynamic_removal: self.pending_dynamic_removal.is_true(),
            pending_active_hc: self.pending_active_hc.is_true(),
            excluded_via_immediate_hc_fail: self.excluded_via_immediate_hc_fail.is_true(),
            active_hc_timeout: self.active_hc_timeout.is_true(),
            eds: match self.eds_health_status.text() {
                Some("HEALTHY") => EdsHealth::Healthy,
                Some("UNHEALTHY") => EdsHealth::Unhealthy,
                Some("DRAINING") => EdsHealth::Draining,
                Some("TIMEOUT") => EdsHealth::Timeout,
                Some("DEGRADED") => EdsHealth::Degraded,
                _ => EdsHealth::Unknown,
            },
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LocalityJson<'a> {
    #[serde(borrow)]
    region: Scalar<'a>,
    #[serde(borrow)]
    zone: Scalar<'a>,
    #[serde(borrow)]
    sub_zone: Scalar<'a>,
}

impl LocalityJson<'_> {
    fn locality(&self) -> Locality {
        Locality {
            region: self.region.name().unwrap_or_default(),
            zone: self.zone.name().unwrap_or_default(),
            sub_zone: self.sub_zone.name().unwrap_or_default(),
        }
    }
}

/// The one statistic of interest.
#[derive(Default)]
struct Stats {
    rq_active: u64,
}

impl<'de> Deserialize<'de> for Stats {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(StatsVisitor)
    }
}

struct StatsVisitor;

impl<'de> Visitor<'de> for StatsVisitor {
    type Value = Stats;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of statistics")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Stats, A::Error> {
        let mut stats = Stats::default();
        while let Some(stat) = list.next_element::<StatJson>()? {
            if stat.name.text() == Some("rq_active") {
                stats.rq_active = stat.value.whole().unwrap_or(0);
            }
        }
        Ok(stats)
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StatJson<'a> {
    #[serde(borrow)]
    name: Scalar<'a>,
    #[serde(borrow)]
    value: Scalar<'a>,
}
