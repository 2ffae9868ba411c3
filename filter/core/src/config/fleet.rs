//! How the engines are found, watched and judged.

use super::headers::header_name;
use super::reader::{Reader, text};
use crate::feedback::FeedbackOptions;
use crate::fitness::HealthOptions;
use crate::json::Value;
use std::ops::RangeInclusive;

/// The name under which Istio and Envoy Gateway predefine Envoy's admin interface.
const ADMIN_CLUSTER: &str = "prometheus_stats";
/// The name in the shipped configurations.
const SCRAPE_CLUSTER: &str = "warmpath_scrape";
/// Envoy's own header for ORIGINAL_DST clusters.
const SCRAPE_HEADER: &str = "x-envoy-original-dst-host";
const INTERVAL: RangeInclusive<u64> = 100..=600_000;
const INTERVAL_MS: u64 = 1000;
const TIMEOUT_MS: u64 = 1000;
/// A vLLM page has 60 KB; the limit leaves room for many ranks and models.
const PAGE_BYTES: u64 = 4 * 1024 * 1024;
/// 1024 endpoints need about 1 MB; Envoy buffers no more than 32 MiB.
const ADMIN_BYTES: u64 = 16 * 1024 * 1024;
/// Workers tell each other of signs of life twice a second.
const LEAST_STALL_US: u64 = 1_000_000;
const BYTES: RangeInclusive<u64> = 4096..=32 * 1024 * 1024;

/// A periodic call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Polling {
    /// Envoy's cluster that the calls go to.
    pub cluster: String,
    /// From one call to the next.
    pub interval_ms: u64,
    /// How long an answer may take.
    pub timeout_ms: u64,
    /// Longest answer that is read.
    pub max_bytes: usize,
}

/// How engines are scraped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrapeOptions {
    /// The calls; to a cluster that sends each to exactly the engine that is named.
    pub polling: Polling,
    /// The header that names the engine to that cluster.
    pub header: String,
}

/// How Envoy is asked for its endpoints; `None` if it is not.
pub(super) fn discovery(reader: &mut Reader, path: &str, value: &Value) -> Option<Option<Polling>> {
    let (kind, value) = reader.tagged(path, value, &["admin", "off"])?;
    if kind == "off" {
        reader.no_options(&format!("{path}.{kind}"), value);
        return Some(None);
    }
    let empty = Value::Object(Default::default());
    let value = if value.is_null() { &empty } else { value };
    let mut fields = reader.object(&format!("{path}.{kind}"), value)?;
    let polling = polling(reader, &mut fields, ADMIN_CLUSTER, ADMIN_BYTES);
    fields.finish(reader);
    Some(Some(polling))
}

/// How engines are scraped; `None` if they are not.
pub(super) fn scrape(
    reader: &mut Reader,
    path: &str,
    value: &Value,
) -> Option<Option<ScrapeOptions>> {
    let (kind, value) = reader.tagged(path, value, &["metrics", "off"])?;
    if kind == "off" {
        reader.no_options(&format!("{path}.{kind}"), value);
        return Some(None);
    }
    let empty = Value::Object(Default::default());
    let value = if value.is_null() { &empty } else { value };
    let mut fields = reader.object(&format!("{path}.{kind}"), value)?;
    let polling = polling(reader, &mut fields, SCRAPE_CLUSTER, PAGE_BYTES);
    let header = fields
        .optional(reader, "header", header_name)
        .unwrap_or_else(|| SCRAPE_HEADER.to_owned());
    fields.finish(reader);
    Some(Some(ScrapeOptions { polling, header }))
}

/// What is done without the field.
pub(super) fn default_discovery() -> Polling {
    Polling {
        cluster: ADMIN_CLUSTER.to_owned(),
        interval_ms: INTERVAL_MS,
        timeout_ms: TIMEOUT_MS,
        max_bytes: ADMIN_BYTES as usize,
    }
}

/// What is done without the field.
pub(super) fn default_scrape() -> ScrapeOptions {
    ScrapeOptions {
        polling: Polling {
            cluster: SCRAPE_CLUSTER.to_owned(),
            max_bytes: PAGE_BYTES as usize,
            ..default_discovery()
        },
        header: SCRAPE_HEADER.to_owned(),
    }
}

fn polling(
    reader: &mut Reader,
    fields: &mut super::reader::Fields,
    cluster: &str,
    max_bytes: u64,
) -> Polling {
    Polling {
        cluster: fields
            .optional(reader, "cluster", text)
            .unwrap_or_else(|| cluster.to_owned()),
        interval_ms: fields.count(reader, "interval_ms", INTERVAL, INTERVAL_MS),
        timeout_ms: fields.count(reader, "timeout_ms", 10..=600_000, TIMEOUT_MS),
        max_bytes: fields.count(reader, "max_bytes", BYTES, max_bytes) as usize,
    }
}

pub(super) fn feedback(reader: &mut Reader, path: &str, value: &Value) -> Option<FeedbackOptions> {
    let defaults = FeedbackOptions::default();
    let mut fields = reader.object(path, value)?;
    let usage = fields.flag(reader, "usage", defaults.usage);
    let orca = fields.flag(reader, "orca", defaults.orca);
    fields.finish(reader);
    Some(FeedbackOptions { usage, orca })
}

pub(super) fn health(reader: &mut Reader, path: &str, value: &Value) -> Option<HealthOptions> {
    const LENGTH_MS: RangeInclusive<u64> = 10..=600_000;
    let defaults = HealthOptions::default();
    let mut fields = reader.object(path, value)?;
    let mut length_us = |reader: &mut Reader, name, range, default_us: u64| {
        fields.count(reader, name, range, default_us / 1000) * 1000
    };
    let cool_down_us = length_us(reader, "cool_down_ms", LENGTH_MS, defaults.cool_down_us);
    let max_cool_down_us = length_us(
        reader,
        "max_cool_down_ms",
        LENGTH_MS,
        defaults.max_cool_down_us.max(cool_down_us),
    );
    let stall_us = length_us(reader, "stall_ms", 0..=600_000, defaults.stall_us);
    let slow_start_us = length_us(reader, "slow_start_ms", 0..=600_000, defaults.slow_start_us);
    let failures = fields.count(reader, "failures", 1..=1000, u64::from(defaults.failures)) as u16;
    let panic = fields.count(reader, "panic_percent", 0..=100, 0) as u8;
    let last_resort = fields
        .optional(reader, "none_usable", |reader, path, value| {
            let (kind, value) = reader.tagged(path, value, &["route", "answer"])?;
            reader.no_options(&format!("{path}.{kind}"), value);
            Some(kind)
        })
        .is_none_or(|kind| kind == "route");
    if max_cool_down_us < cool_down_us {
        let want = "at least `cool_down_ms`";
        let got = (max_cool_down_us / 1000).into();
        reader.error(&fields.path("max_cool_down_ms"), &got, want);
    }
    if (1..LEAST_STALL_US).contains(&stall_us) {
        let want = "0, or at least 1000";
        reader.error(&fields.path("stall_ms"), &(stall_us / 1000).into(), want);
    }
    fields.finish(reader);
    Some(HealthOptions {
        failures,
        cool_down_us,
        max_cool_down_us,
        stall_us,
        slow_start_us,
        panic_percent: panic,
        last_resort,
    })
}
