//! How the Envoys of a fleet tell each other what they learn, if they do.

use super::reader::{Reader, text};
use crate::json::Value;
use crate::sync::secret::Secret;

const INTERVAL_MS: u64 = 100;
const TIMEOUT_MS: u64 = 1000;
const BATCH_BYTES: u64 = 64 * 1024;
const STREAM_ENTRIES: u64 = 4096;
const WARM_BYTES: u64 = 4 * 1024 * 1024;
const HOME_AFFINITY: f64 = 0.9;
const STREAM: &str = "warmpath";
/// Shorter keys can be guessed.
const LEAST_KEY_BYTES: usize = 16;
const MOST_KEY_BYTES: usize = 1024;

/// The store, and how it is used.
#[derive(Clone, Debug, PartialEq)]
pub struct SyncOptions {
    /// Envoy's cluster of the store's HTTP front.
    pub cluster: String,
    /// Name of the streams.
    pub stream: String,
    /// What follows from the key that the fleet shares.
    pub secret: Secret,
    /// Value of the `authorization` header of the calls.
    pub authorization: Option<String>,
    /// From one batch to the next.
    pub interval_ms: u64,
    /// How long an answer may take.
    pub timeout_ms: u64,
    /// Most bytes of news in one batch; what is left over waits, as much again.
    pub batch_bytes: usize,
    /// Batches with news that the store keeps.
    pub stream_entries: u64,
    /// Most bytes that a new Envoy reads back.
    pub warm_bytes: usize,
    /// Least home affinity of pools while the others are out of sight.
    pub home_affinity: f64,
}

pub(super) fn sync(reader: &mut Reader, path: &str, value: &Value) -> Option<SyncOptions> {
    let (kind, value) = reader.tagged(path, value, &["redis"])?;
    let mut fields = reader.object(&format!("{path}.{kind}"), value)?;
    let cluster = fields.required(reader, "cluster", text);
    let secret = fields.required(reader, "key", key);
    let stream = fields.optional(reader, "stream", text);
    let authorization = fields.optional(reader, "authorization", text);
    let interval_ms = fields.count(reader, "interval_ms", 50..=10_000, INTERVAL_MS);
    let timeout_ms = fields.count(reader, "timeout_ms", 10..=60_000, TIMEOUT_MS);
    let batch_bytes = fields.count(reader, "batch_bytes", 1024..=512 * 1024, BATCH_BYTES);
    let entries = fields.count(reader, "stream_entries", 16..=1_000_000, STREAM_ENTRIES);
    let warm_bytes = fields.count(reader, "warm_bytes", 0..=64 * 1024 * 1024, WARM_BYTES);
    let home_affinity = fields.number(reader, "home_affinity", 0.0..=1.0);
    fields.finish(reader);
    Some(SyncOptions {
        cluster: cluster?,
        stream: stream.unwrap_or_else(|| STREAM.to_owned()),
        secret: secret?,
        authorization,
        interval_ms,
        timeout_ms,
        batch_bytes: batch_bytes as usize,
        stream_entries: entries,
        warm_bytes: warm_bytes as usize,
        home_affinity: home_affinity.unwrap_or(HOME_AFFINITY),
    })
}

/// Not shown, whatever it is: errors are logged.
fn key(reader: &mut Reader, path: &str, value: &Value) -> Option<Secret> {
    let lengths = LEAST_KEY_BYTES..=MOST_KEY_BYTES;
    let key = value.as_str().filter(|key| lengths.contains(&key.len()));
    if key.is_none() {
        let got = match value.as_str() {
            Some(key) => format!("{} bytes", key.len()),
            None => "no text".to_owned(),
        };
        reader.error(path, &got.into(), "a secret of 16 to 1024 bytes");
    }
    key.map(|key| Secret::new(key.as_bytes()))
}
