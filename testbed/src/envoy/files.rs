//! Configuration that Envoy reads from files while it runs.
//!
//! Envoy looks at a file when another is moved into its place, so each is written beside it first and
//! is never seen half written.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

use super::bootstrap::socket_address;

/// Type of a filter that is read from a file.
pub const EXTENSION: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
const ENDPOINTS_TYPE: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

/// The source of a configuration that is read from `file`.
pub fn source(file: &Path) -> Value {
    json!({"path_config_source": {"path": file}, "resource_api_version": "V3"})
}

/// Writes a discovery response of these resources.
pub fn write(file: &Path, kind: &str, resources: &[Value]) -> anyhow::Result<()> {
    let typed = resources.iter().map(|resource| {
        let mut typed = resource.as_object().cloned().unwrap_or_default();
        typed.insert("@type".to_owned(), kind.into());
        Value::Object(typed)
    });
    let response = json!({"resources": typed.collect::<Vec<_>>()});
    // The extension tells Envoy the format.
    let written = file.with_extension("new.json");
    std::fs::write(&written, response.to_string())
        .and_then(|()| std::fs::rename(&written, file))
        .with_context(|| format!("writing {}", file.display()))
}

/// Writes the endpoints of a cluster.
pub fn write_endpoints(file: &Path, cluster: &str, addresses: &[SocketAddr]) -> anyhow::Result<()> {
    let addresses = addresses.iter();
    let endpoints: Vec<_> = addresses.map(|it| (*it, Value::Null)).collect();
    write_described_endpoints(file, cluster, &endpoints)
}

/// Writes the endpoints of a cluster, each with its metadata for the filter, if that is an object.
pub fn write_described_endpoints(
    file: &Path,
    cluster: &str,
    endpoints: &[(SocketAddr, Value)],
) -> anyhow::Result<()> {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(address, metadata)| {
            let mut endpoint = json!({"endpoint": {"address": socket_address(*address)}});
            if let (Some(endpoint), true) = (endpoint.as_object_mut(), metadata.is_object()) {
                let metadata = json!({"filter_metadata": {"warmpath": metadata}});
                endpoint.insert("metadata".to_owned(), metadata);
            }
            endpoint
        })
        .collect();
    let assignment = json!({
        "cluster_name": cluster,
        "endpoints": [{"lb_endpoints": endpoints}],
    });
    write(file, ENDPOINTS_TYPE, &[assignment])
}
