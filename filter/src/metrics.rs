//! The figures that this VM hands to Envoy. What is counted, and under which name, is core's
//! [`warmpath_core::telemetry`]; it gets there with a tick, never with a request.

use crate::host;
use warmpath_core::telemetry::{Kind, Recorder, Sink};

/// The figures of one worker.
pub type Metrics = Recorder<EnvoyStats>;

/// Envoy's stats, shared by all workers.
#[derive(Debug)]
pub struct EnvoyStats;

impl Sink for EnvoyStats {
    fn define(&self, kind: Kind, name: &str) -> Option<u32> {
        host::define_metric(kind, name)
    }

    fn add(&self, id: u32, amount: u64) {
        host::increment_metric(id, i64::try_from(amount).unwrap_or(i64::MAX));
    }

    fn set(&self, id: u32, value: u64) {
        host::record_metric(id, value);
    }

    fn record(&self, id: u32, value: u64) {
        host::record_metric(id, value);
    }

    fn total(&self, id: u32) -> Option<u64> {
        host::metric(id)
    }
}
