//! Envoy's view of its clusters: `GET /clusters?format=json` of the admin interface.
//!
//! An answer has about 800 bytes for each host, most of it statistics. It is read in one pass and
//! only what is asked for is kept: at most [`MAX_CLUSTERS`] clusters and [`MAX_HOSTS`] hosts.
//!
//! ```
//! use warmpath_core::wire::clusters;
//! assert_eq!(clusters::path(&["engines"]), "/clusters?format=json&filter=%5E%28%3F%3Aengines%29%24");
//! assert_eq!(clusters::parse(b"{}"), Ok(vec![]));
//! ```

mod shapes;

use std::net::SocketAddr;

use super::admin::{MAX_CLUSTERS, MAX_HOSTS, names_regex};
use super::{WireError, at_most};
use crate::json::read;
use shapes::Statuses;

/// One cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Its name in Envoy's configuration.
    pub name: String,
    /// The name under which discovery lists its endpoints, where that is another one.
    pub eds_service_name: Option<String>,
    /// Its hosts, in Envoy's order. Hosts without an IP address and port are not listed.
    pub hosts: Vec<Host>,
}

/// One host of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Where it listens.
    pub address: SocketAddr,
    /// What is wrong with it.
    pub health: HostHealth,
    /// Envoy's load balancing weight.
    pub weight: u32,
    /// The name it was resolved from, or was given by discovery.
    pub hostname: Option<String>,
    /// Where it runs.
    pub locality: Locality,
    /// Requests that this Envoy has in flight to it.
    pub rq_active: u64,
}

/// The health flags of a host, named as in Envoy's `HostHealthStatus`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostHealth {
    /// Active health checks fail. Also set from the start until the first check succeeds.
    pub failed_active_health_check: bool,
    /// Ejected by outlier detection.
    pub failed_outlier_check: bool,
    /// Active health checks say that it is degraded.
    pub failed_active_degraded_check: bool,
    /// Gone from discovery, kept because its health checks still succeed.
    pub pending_dynamic_removal: bool,
    /// Waits for its first health check. With Envoy's defaults new hosts do not have this flag but
    /// `failed_active_health_check`.
    pub pending_active_hc: bool,
    /// It said itself, by a response header, that it is to be left out.
    pub excluded_via_immediate_hc_fail: bool,
    /// The last active health check ran into its timeout.
    pub active_hc_timeout: bool,
    /// What discovery says.
    pub eds: EdsHealth,
}

/// The health that discovery reports. Envoy shows `Healthy` where discovery says nothing, and
/// `Unhealthy` for `TIMEOUT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EdsHealth {
    /// Not told, or a state that did not exist when this was written.
    #[default]
    Unknown,
    /// To be used.
    Healthy,
    /// Not to be used.
    Unhealthy,
    /// Takes nothing new.
    Draining,
    /// Discovery's own check timed out.
    Timeout,
    /// To be used after others.
    Degraded,
}

/// Where a host runs; empty texts where nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// Region.
    pub region: String,
    /// Zone within the region.
    pub zone: String,
    /// Part of the zone.
    pub sub_zone: String,
}

/// Path and query that ask for exactly these clusters. Those that do not exist are not in the
/// answer. The filter would match parts of names, so it is anchored.
pub fn path(names: &[&str]) -> String {
    let names = names_regex(names);
    format!("/clusters?format=json&filter=%5E{names}%24")
}

/// Reads an answer. Fails when it is not JSON of that shape, or beyond a bound. One pass.
pub fn parse(body: &[u8]) -> Result<Vec<Cluster>, WireError> {
    let statuses = read(body, Statuses::read)?;
    at_most("clusters", statuses.found_clusters, MAX_CLUSTERS)?;
    at_most("hosts", statuses.found_hosts, MAX_HOSTS)?;
    Ok(statuses.clusters)
}

#[cfg(test)]
mod tests;
