//! The parts of the answer that are read, and the lists whose bounds are kept while they arrive.
//!
//! `null` where something is expected is nothing, as protobuf has it; what is false, empty or zero is left
//! out.

use super::super::admin::{MAX_CLUSTERS, MAX_HOSTS, socket};
use super::super::scalar::Scalar;
use super::{Cluster, EdsHealth, Host, HostHealth, Locality};
use crate::json::Source;
use std::net::SocketAddr;

/// The clusters as far as the bounds allow, and how many there would have been.
#[derive(Default)]
pub(super) struct Statuses {
    pub(super) clusters: Vec<Cluster>,
    pub(super) found_clusters: usize,
    pub(super) found_hosts: usize,
}

impl Statuses {
    pub(super) fn read(source: &mut Source) -> Option<Statuses> {
        let mut statuses = Statuses::default();
        source.object(&mut |source, name| match name {
            "cluster_statuses" if !source.is_null() => {
                source.list(&mut |source| statuses.cluster(source))
            }
            "cluster_statuses" => Some(()),
            _ => source.skip(),
        })?;
        Some(statuses)
    }

    fn cluster(&mut self, source: &mut Source) -> Option<()> {
        self.found_clusters += 1;
        if self.found_clusters > MAX_CLUSTERS {
            return source.skip();
        }
        let (mut name, mut service) = <(Scalar, Scalar)>::default();
        let mut hosts = Vec::new();
        let mut found = 0;
        source.object(&mut |source, member| {
            match member {
                "name" => name = Scalar::read(source)?,
                "eds_service_name" => service = Scalar::read(source)?,
                "host_statuses" if !source.is_null() => source.list(&mut |source| {
                    found += 1;
                    if found > MAX_HOSTS {
                        return source.skip();
                    }
                    hosts.extend(host(source)?);
                    Some(())
                })?,
                "host_statuses" => {}
                _ => source.skip()?,
            }
            Some(())
        })?;
        let Scalar::Text(name) = name else {
            return None;
        };
        self.found_hosts += found;
        if self.found_hosts <= MAX_HOSTS {
            self.clusters.push(Cluster {
                name: name.into_owned(),
                eds_service_name: service.name(),
                hosts,
            });
        }
        Some(())
    }
}

/// A host; `Some(None)` for one without an address that we can name.
fn host(source: &mut Source) -> Option<Option<Host>> {
    let (mut weight, mut hostname) = <(Scalar, Scalar)>::default();
    let mut address: Option<SocketAddr> = None;
    let mut health = HostHealth::default();
    let mut locality = Locality::default();
    let mut rq_active = 0;
    source.object(&mut |source, name| {
        match name {
            "weight" => weight = Scalar::read(source)?,
            "hostname" => hostname = Scalar::read(source)?,
            "address" | "health_status" | "locality" | "stats" if source.is_null() => {}
            "address" => address = socket(source)?,
            "health_status" => health = read_health(source)?,
            "locality" => locality = read_locality(source)?,
            "stats" => source.list(&mut |source| {
                rq_active = active(source)?.unwrap_or(rq_active);
                Some(())
            })?,
            _ => source.skip()?,
        }
        Some(())
    })?;
    let weight = weight.whole().unwrap_or(1);
    Some(address.map(|address| Host {
        address,
        health,
        weight: u32::try_from(weight).unwrap_or(u32::MAX),
        hostname: hostname.name(),
        locality,
        rq_active,
    }))
}

fn read_health(source: &mut Source) -> Option<HostHealth> {
    let mut health = HostHealth::default();
    source.object(&mut |source, name| {
        let flag = match name {
            "failed_active_health_check" => &mut health.failed_active_health_check,
            "failed_outlier_check" => &mut health.failed_outlier_check,
            "failed_active_degraded_check" => &mut health.failed_active_degraded_check,
            "pending_dynamic_removal" => &mut health.pending_dynamic_removal,
            "pending_active_hc" => &mut health.pending_active_hc,
            "excluded_via_immediate_hc_fail" => &mut health.excluded_via_immediate_hc_fail,
            "active_hc_timeout" => &mut health.active_hc_timeout,
            "eds_health_status" => {
                health.eds = match Scalar::read(source)?.text() {
                    Some("HEALTHY") => EdsHealth::Healthy,
                    Some("UNHEALTHY") => EdsHealth::Unhealthy,
                    Some("DRAINING") => EdsHealth::Draining,
                    Some("TIMEOUT") => EdsHealth::Timeout,
                    Some("DEGRADED") => EdsHealth::Degraded,
                    _ => EdsHealth::Unknown,
                };
                return Some(());
            }
            _ => return source.skip(),
        };
        *flag = Scalar::read(source)?.is_true();
        Some(())
    })?;
    Some(health)
}

fn read_locality(source: &mut Source) -> Option<Locality> {
    let mut locality = Locality::default();
    source.object(&mut |source, name| {
        let field = match name {
            "region" => &mut locality.region,
            "zone" => &mut locality.zone,
            "sub_zone" => &mut locality.sub_zone,
            _ => return source.skip(),
        };
        *field = Scalar::read(source)?.name().unwrap_or_default();
        Some(())
    })?;
    Some(locality)
}

/// The value of a statistic, if it is the one of interest.
fn active(source: &mut Source) -> Option<Option<u64>> {
    let (mut name, mut value) = <(Scalar, Scalar)>::default();
    source.object(&mut |source, member| {
        let field = match member {
            "name" => &mut name,
            "value" => &mut value,
            _ => return source.skip(),
        };
        *field = Scalar::read(source)?;
        Some(())
    })?;
    let is_it = name.text() == Some("rq_active");
    Some(is_it.then(|| value.whole().unwrap_or(0)))
}
