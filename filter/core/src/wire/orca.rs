//! The load that an engine reports with an answer: the response header `endpoint-load-metrics`.
//!
//! vLLM sends it when the request asks with `endpoint-load-metrics-format`, and not on streams. The
//! format is Open Request Cost Aggregation (ORCA): `TEXT name=value, ...` or `JSON {...}`. Linear
//! in the value, of which no more than [`MAX_VALUE_BYTES`] are taken.
//!
//! ```
//! let load = warmpath_core::wire::orca::parse(b"TEXT named_metrics.num_requests_waiting=2.0");
//! assert_eq!(load.and_then(|load| load.waiting), Some(2));
//! ```

use crate::json::Value;

/// The request header that asks for it.
pub const REQUEST_HEADER: &str = "endpoint-load-metrics-format";
/// The response header.
pub const RESPONSE_HEADER: &str = "endpoint-load-metrics";
/// A longer value is not looked at.
pub const MAX_VALUE_BYTES: usize = 16 * 1024;

/// What an engine says about its load; only what it says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OrcaLoad {
    /// Requests being computed.
    pub running: Option<u32>,
    /// Requests in its queue.
    pub waiting: Option<u32>,
    /// Part of the KV cache that live requests hold, 0 to 1.
    pub kv_usage: Option<f64>,
}

/// Reads a header value. `None` when nothing in it is of use.
pub fn parse(value: &[u8]) -> Option<OrcaLoad> {
    if value.len() > MAX_VALUE_BYTES {
        return None;
    }
    let value = std::str::from_utf8(value).ok()?.trim();
    let (format, report) = value.split_once(' ')?;
    let mut load = OrcaLoad::default();
    if format.eq_ignore_ascii_case("TEXT") {
        for (name, number) in report.split(',').filter_map(|pair| pair.split_once('=')) {
            load.set(name.trim(), number.trim().parse().ok());
        }
    } else if format.eq_ignore_ascii_case("JSON") {
        // As a tree, as the configuration: the module grows by less than with a shape of its own.
        let report = Value::read(report.as_bytes()).ok()?;
        for (name, number) in report.get("named_metrics")?.as_object()?.iter() {
            let in_quotes = || number.as_str()?.trim().parse().ok();
            load.set(name, number.as_f64().or_else(in_quotes));
        }
    }
    (load != OrcaLoad::default()).then_some(load)
}

impl OrcaLoad {
    fn set(&mut self, name: &str, number: Option<f64>) {
        let count = number.and_then(count);
        match name.strip_prefix("named_metrics.").unwrap_or(name) {
            "num_requests_running" => self.running = count,
            "num_requests_waiting" => self.waiting = count,
            // vLLM's name now, and its earlier ones.
            "kv_cache_usage_perc" | "gpu_cache_usage_perc" | "kv_cache_utilization" => {
                self.kv_usage = number.filter(|part| (0.0..=1.0).contains(part));
            }
            _ => {}
        }
    }
}

/// A count that is written as a fraction.
fn count(number: f64) -> Option<u32> {
    (0.0..=f64::from(u32::MAX))
        .contains(&number)
        .then_some(number as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vllms_two_formats_say_the_same() {
        let expected = OrcaLoad {
            running: None,
            waiting: Some(3),
            kv_usage: Some(0.25),
        };
        let text =
            b"TEXT named_metrics.num_requests_waiting=3.0, named_metrics.kv_cache_usage_perc=0.25";
        assert_eq!(parse(text), Some(expected));
        let json = br#"JSON {"named_metrics": {"num_requests_waiting": 3.0, "kv_cache_usage_perc": 0.25}}"#;
        assert_eq!(parse(json), Some(expected));
        let idle =
            b"TEXT named_metrics.num_requests_waiting=0.0, named_metrics.kv_cache_usage_perc=0.0";
        assert_eq!(parse(idle).unwrap().kv_usage, Some(0.0));
    }

    #[test]
    fn other_reports_give_what_they_have() {
        let load = parse(b"text cpu_utilization=0.3,num_requests_running=7,x").unwrap();
        assert_eq!(load.running, Some(7));
        assert_eq!(load.waiting, None);
        let load = parse(br#"JSON {"named_metrics":{"num_requests_running":"7","x":[1]}}"#);
        assert_eq!(load.unwrap().running, Some(7));
    }

    #[test]
    fn values_out_of_range_are_left_out() {
        for value in [
            "TEXT num_requests_waiting=-1",
            "TEXT num_requests_waiting=nan",
            "TEXT kv_cache_usage_perc=1.5",
            "TEXT kv_cache_usage_perc=inf",
            "TEXT num_requests_waiting=1e300",
            "TEXT cpu_utilization=0.1",
            "JSON {\"named_metrics\":null}",
            "JSON [",
            "BIN AAAA",
            "TEXT",
            "",
        ] {
            assert_eq!(parse(value.as_bytes()), None, "{value}");
        }
        assert_eq!(parse(b"TEXT num_requests_waiting=\xff"), None);
        let long = format!(
            "TEXT num_requests_waiting=1,{}",
            "x".repeat(MAX_VALUE_BYTES)
        );
        assert_eq!(parse(long.as_bytes()), None);
    }
}
