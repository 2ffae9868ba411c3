//! Names of headers, and where a session key may be found.

use super::reader::{Reader, list, text};
use crate::json::Value;
use crate::session::KeySource;

/// Names of the headers that are read and set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderNames {
    /// Ranked `ip:port` list for Envoy's `override_host` policy.
    pub destination: String,
    /// The upstream cluster, for routes with `cluster_header`.
    pub cluster: String,
    /// A client's choice of pool where the model does not decide.
    pub pool: String,
    /// Whether a request may be refused first.
    pub priority: String,
    /// Where a request id may be found, best first; for logs.
    pub request_id: Vec<String>,
}

impl Default for HeaderNames {
    fn default() -> Self {
        HeaderNames {
            destination: "x-gateway-destination-endpoint".to_owned(),
            cluster: "x-warmpath-cluster".to_owned(),
            pool: "x-warmpath-pool".to_owned(),
            priority: "x-warmpath-priority".to_owned(),
            request_id: [
                "x-request-id",
                "x-correlation-id",
                "x-trace-id",
                "request-id",
            ]
            .map(str::to_owned)
            .to_vec(),
        }
    }
}

pub(super) fn headers(reader: &mut Reader, path: &str, value: &Value) -> Option<HeaderNames> {
    let mut fields = reader.object(path, value)?;
    let defaults = HeaderNames::default();
    let mut name = |reader: &mut Reader, key, default| {
        fields.optional(reader, key, header_name).unwrap_or(default)
    };
    let destination = name(reader, "destination", defaults.destination);
    let cluster = name(reader, "cluster", defaults.cluster);
    let pool = name(reader, "pool", defaults.pool);
    let priority = name(reader, "priority", defaults.priority);
    let request_id = fields
        .optional(reader, "request_id", |reader, path, value| {
            list(reader, path, value, 0..=16, header_name)
        })
        .unwrap_or(defaults.request_id);
    fields.finish(reader);
    Some(HeaderNames {
        destination,
        cluster,
        pool,
        priority,
        request_id,
    })
}

pub(super) fn header_name(reader: &mut Reader, path: &str, value: &Value) -> Option<String> {
    let name = text(reader, path, value)?.to_ascii_lowercase();
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.len() <= 128 && name.bytes().all(legal) {
        return Some(name);
    }
    reader.error(path, value, "a header name");
    None
}

pub(super) fn key_source(reader: &mut Reader, path: &str, value: &Value) -> Option<KeySource> {
    let (kind, value) = reader.tagged(path, value, &["header", "cookie", "body"])?;
    let name = text(reader, &format!("{path}.{kind}"), value)?;
    match kind {
        "header" => Some(KeySource::Header(name.to_ascii_lowercase())),
        "cookie" => Some(KeySource::Cookie(name)),
        _ => match crate::scan::ScanPlan::new(std::slice::from_ref(&name), false) {
            Ok(_) => Some(KeySource::Body(name)),
            Err(_) => {
                reader.error(
                    &format!("{path}.body"),
                    value,
                    "a JSON pointer such as `/user`",
                );
                None
            }
        },
    }
}
