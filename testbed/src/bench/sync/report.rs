//! The rounds of both fleets, side by side.
//!
//! A figure is the median over the rounds. A difference is the median of the differences within each round,
//! beside the smallest and the largest of them: where these have different signs, the noise is larger than
//! what is measured.

use std::fmt::Write;

use serde::Serialize;

use crate::bench::report::median;

/// What one window of one fleet showed. CPU time of Envoys, calls and bytes are those of one Envoy; what is of
/// the store, of all of it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Round {
    /// Requests answered 200 per second, through all Envoys.
    pub(super) requests_per_s: f64,
    /// Requests that were not.
    pub(super) failed: u64,
    /// How much later than due requests were sent, at the 99th percentile.
    pub(super) late_p99_us: f64,
    /// Median latency.
    pub(super) p50_us: f64,
    /// 99th percentile of latency.
    pub(super) p99_us: f64,
    /// CPU time of an Envoy.
    pub(super) envoy_ms_per_s: f64,
    /// CPU time of Redis.
    pub(super) redis_ms_per_s: f64,
    /// CPU time of all Webdis.
    pub(super) webdis_ms_per_s: f64,
    /// Calls to the store.
    pub(super) calls_per_s: f64,
    /// Bytes of batches that were sent.
    pub(super) told_bytes_per_s: f64,
    /// Bytes of batches that were taken over.
    pub(super) heard_bytes_per_s: f64,
    /// Bytes that went to the store, with all that HTTP adds.
    pub(super) written_bytes_per_s: f64,
    /// Bytes that came from the store.
    pub(super) read_bytes_per_s: f64,
}

type Figure = (&'static str, fn(&Round) -> f64, usize);

/// Title, value, decimals.
const FIGURES: [Figure; 12] = [
    ("requests/s", |it| it.requests_per_s, 0),
    ("failed", |it| it.failed as f64, 0),
    ("sent late, p99 us", |it| it.late_p99_us, 0),
    ("p50 us", |it| it.p50_us, 0),
    ("p99 us", |it| it.p99_us, 0),
    ("Envoy, CPU ms/s", |it| it.envoy_ms_per_s, 1),
    ("Redis, CPU ms/s", |it| it.redis_ms_per_s, 1),
    ("Webdis, CPU ms/s", |it| it.webdis_ms_per_s, 1),
    ("calls/s", |it| it.calls_per_s, 1),
    ("batches, B/s out", |it| it.told_bytes_per_s, 0),
    ("batches, B/s in", |it| it.heard_bytes_per_s, 0),
    (
        "on the wire, B/s",
        |it| it.written_bytes_per_s + it.read_bytes_per_s,
        0,
    ),
];

/// The table.
pub(super) fn table(rates: &[u32], apart: &[Round], sync: &[Round]) -> String {
    let mut out = String::new();
    let wanted: u32 = rates.iter().sum();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{} Envoys, {wanted} requests/s wanted, {} rounds\n{:18} {:>10} {:>10} {:>10} {:>21}",
        rates.len(),
        apart.len(),
        "",
        "apart",
        "sync",
        "difference",
        "from .. to",
    );
    for (title, value, decimals) in FIGURES {
        let values = |rounds: &[Round]| rounds.iter().map(value).collect::<Vec<_>>();
        let (apart, sync) = (values(apart), values(sync));
        let differences: Vec<_> = sync.iter().zip(&apart).map(|(a, b)| a - b).collect();
        let least = differences.iter().copied().fold(f64::INFINITY, f64::min);
        let most = differences
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max);
        let span = format!("{least:.decimals$} .. {most:.decimals$}");
        let [apart, sync, difference] = [apart, sync, differences].map(median);
        let _ = writeln!(
            out,
            "{title:18} {apart:>10.decimals$} {sync:>10.decimals$} {difference:>10.decimals$} {span:>21}",
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_those_within_rounds() {
        let round = |p50_us| Round {
            p50_us,
            ..Round::default()
        };
        let table = table(
            &[10, 20],
            &[round(10.0), round(90.0)],
            &[round(13.0), round(91.0)],
        );
        assert!(
            table.starts_with("2 Envoys, 30 requests/s wanted, 2 rounds"),
            "{table}"
        );
        let line = table.lines().find(|it| it.starts_with("p50 us")).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, ["p50", "us", "50", "52", "2", "1", "..", "3"]);
    }
}
