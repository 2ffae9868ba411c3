//! Bounds of what a request or a worker may take.

use super::reader::{Fields, Reader};
use crate::json::Value;
use crate::prefix::table::MOST_BYTES;
use crate::workers::MAX_WORKERS;
use std::ops::RangeInclusive;

/// Half of Envoy's default buffer limit of 1 MiB: body callbacks have been seen to grow by more
/// than 0.5 MiB at a time, and what is held beyond the limit is answered 413 by Envoy.
const HOLD_BYTES: u64 = 512 * 1024;
/// Twenty missed heartbeats: a worker that only stalls keeps its column.
const WORKER_EXPIRY_MS: u64 = 10_000;
/// More than the hardware threads of any machine, twice over for a config change.
const WORKERS: u64 = 256;
/// From the smallest useful table to a share of the 1 GiB that Envoy grants a VM.
pub(super) const TABLE_RANGE: RangeInclusive<u64> = 64 * 1024..=MOST_BYTES as u64;
/// Bounds of what a request or a worker may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most body bytes that are held and read before a decision.
    pub hold_bytes: usize,
    /// Age of the last heartbeat at which a worker counts as dead.
    pub worker_expiry_ms: u64,
    /// Most workers whose load is shared.
    pub workers: usize,
    /// Size of the prefix table of one worker; `None`: by the KV capacity of the engines.
    pub prefix_table_bytes: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            hold_bytes: HOLD_BYTES as usize,
            worker_expiry_ms: WORKER_EXPIRY_MS,
            workers: WORKERS as usize,
            prefix_table_bytes: None,
        }
    }
}

pub(super) fn limits(reader: &mut Reader, path: &str, value: &Value) -> Option<Limits> {
    const HOLD: RangeInclusive<u64> = 1024..=256 * 1024 * 1024;
    let mut fields: Fields = reader.object(path, value)?;
    let hold_bytes = fields.count(reader, "hold_bytes", HOLD, HOLD_BYTES);
    let worker_expiry_ms =
        fields.count(reader, "worker_expiry_ms", 3000..=600_000, WORKER_EXPIRY_MS);
    let workers = fields.count(reader, "workers", 1..=MAX_WORKERS as u64, WORKERS);
    let prefix_table_bytes = fields
        .optional_count(reader, "prefix_table_bytes", TABLE_RANGE, "by KV capacity")
        .map(|bytes| bytes as usize);
    fields.finish(reader);
    Some(Limits {
        prefix_table_bytes,
        hold_bytes: hold_bytes as usize,
        worker_expiry_ms,
        workers: workers as usize,
    })
}
