//! The endpoints of a pool: listed one by one, or told by Envoy's cluster.

use super::pool::models;
use super::reader::{Fields, Reader, list, text};
use super::{MAX_ENDPOINTS, MAX_LABEL_BYTES, MAX_LABELS};
use crate::address::MAX_RANKS;
use crate::json::Value;
use std::net::SocketAddr;

/// One endpoint of a static list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointConfig {
    /// Where Envoy's cluster knows it.
    pub address: SocketAddr,
    /// Models it serves; empty: all of its pool.
    pub models: Vec<String>,
    /// Its speed, relative to the others'; `None`: as Envoy's cluster has it.
    pub weight: Option<u16>,
    /// Its data-parallel ranks; `None`: as the pool has it.
    pub data_parallel_size: Option<u16>,
    /// What is known of it, by name.
    pub labels: Vec<(String, String)>,
}

/// Where the endpoints of a pool are found.
pub(super) enum Listed {
    /// In the configuration.
    Here(Vec<EndpointConfig>),
    /// In Envoy's cluster.
    Cluster {
        role: Option<String>,
        metadata: bool,
    },
}

/// The endpoints of a pool, or where to look for them.
pub(super) fn endpoints(reader: &mut Reader, path: &str, value: &Value) -> Option<Listed> {
    let (kind, value) = reader.tagged(path, value, &["static", "envoy"])?;
    let path = format!("{path}.{kind}");
    if kind == "envoy" {
        return cluster(reader, &path, value);
    }
    let found = list(reader, &path, value, 0..=MAX_ENDPOINTS, endpoint)?;
    for (index, endpoint) in found.iter().enumerate() {
        if found
            .iter()
            .take(index)
            .any(|other| other.address == endpoint.address)
        {
            let got = endpoint.address.to_string().into();
            reader.error(
                &format!("{path}[{index}].address"),
                &got,
                "each address once in a pool",
            );
        }
    }
    Some(Listed::Here(found))
}

fn cluster(reader: &mut Reader, path: &str, value: &Value) -> Option<Listed> {
    if value.is_null() {
        return Some(Listed::Cluster {
            role: None,
            metadata: false,
        });
    }
    let mut fields = reader.object(path, value)?;
    let role = fields.optional(reader, "role", label);
    // A role stands in it.
    let metadata = fields.flag(reader, "metadata", false) || role.is_some();
    fields.finish(reader);
    Some(Listed::Cluster { role, metadata })
}

fn endpoint(reader: &mut Reader, path: &str, value: &Value) -> Option<EndpointConfig> {
    let mut fields = reader.object(path, value)?;
    let address = fields.required(reader, "address", address);
    let models = fields
        .optional(reader, "models", models)
        .unwrap_or_default();
    let weight = fields.optional_count(reader, "weight", 1..=1000, "what Envoy's cluster says");
    let data_parallel_size = ranks(reader, &mut fields);
    let labels = fields
        .optional(reader, "labels", labels)
        .unwrap_or_default();
    fields.finish(reader);
    Some(EndpointConfig {
        address: address?,
        models,
        weight: weight.map(|weight| weight as u16),
        data_parallel_size,
        labels,
    })
}

/// How many data-parallel ranks there are; engines tell it otherwise.
pub(super) fn ranks(reader: &mut Reader, fields: &mut Fields) -> Option<u16> {
    let range = 1..=u64::from(MAX_RANKS);
    let default = "what the engine's metrics tell";
    let ranks = fields.optional_count(reader, "data_parallel_size", range, default);
    ranks.map(|ranks| ranks as u16)
}

fn labels(reader: &mut Reader, path: &str, value: &Value) -> Option<Vec<(String, String)>> {
    let Some(map) = value.as_object().filter(|map| map.len() <= MAX_LABELS) else {
        let want = format!("an object of name: value, at most {MAX_LABELS}");
        reader.error(path, value, &want);
        return None;
    };
    let pairs = map.iter().filter_map(|(name, value)| {
        let value = label(reader, &format!("{path}.{name}"), value)?;
        Some((name.clone(), value))
    });
    Some(pairs.collect())
}

/// A text as short as those that are kept of an endpoint's metadata.
fn label(reader: &mut Reader, path: &str, value: &Value) -> Option<String> {
    let text = text(reader, path, value)?;
    if text.len() <= MAX_LABEL_BYTES {
        return Some(text);
    }
    reader.error(path, value, &format!("at most {MAX_LABEL_BYTES} bytes"));
    None
}

pub(super) fn address(reader: &mut Reader, path: &str, value: &Value) -> Option<SocketAddr> {
    let parsed = value.as_str().and_then(|text| text.parse().ok());
    if parsed.is_none() {
        // override_host compares with the addresses that Envoy resolved, so a name never matches.
        reader.error(path, value, "`ip:port` or `[ipv6]:port`");
    }
    parsed
}
