//! The two sides beside each other, for people and for programs. All times are modelled ones.

use std::fmt::Write;

use serde::Serialize;
use serde_json::json;

use super::Plan;
use crate::sim::statistics::{Samples, Summary};

/// The figures of one side.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Figures {
    /// Prompt tokens served from cache in percent of all, of every request.
    pub whole_hit_percent: f64,
    /// All else is of the requests after the first tenth.
    #[serde(flatten)]
    pub summary: Summary,
}

impl Figures {
    /// Those of a run.
    pub fn of(samples: &Samples) -> Self {
        Self {
            whole_hit_percent: samples.whole_hit_percent(),
            summary: samples.summary(),
        }
    }
}

/// What came of a replay.
#[derive(Debug, Clone, Copy)]
pub struct Comparison {
    /// What the simulator says.
    pub simulated: Figures,
    /// What the engines behind Envoy say.
    pub engines: Figures,
    /// What their clients say; no hit ratios.
    pub clients: Summary,
    /// What the filter said of all requests, if its policy foretells caches.
    pub foretold: Option<Foretold>,
    /// How much later than planned requests were sent, on average.
    pub late_ms: f64,
    /// CPU time of the store that Envoys share through, if they do, in milliseconds for each real second.
    pub store_cpu_ms_per_s: Option<f64>,
    /// Real seconds.
    pub took_s: f64,
    /// Modelled seconds.
    pub modelled_s: f64,
}

/// Prompt tokens in the engines' caches.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Foretold {
    /// As the filter predicted.
    pub predicted: u64,
    /// As it read in the engines' answers.
    pub reported: u64,
}

impl Foretold {
    /// How much more was predicted than reported, in percent of what was reported.
    pub fn excess_percent(&self) -> f64 {
        let (predicted, reported) = (self.predicted as f64, self.reported as f64);
        100.0 * (predicted - reported) / reported.max(1.0)
    }
}

/// One JSON object.
///
/// # Errors
/// None is known.
pub fn json(plan: &Plan, found: &Comparison) -> anyhow::Result<String> {
    let Summary {
        ttft_mean_s,
        ttft_p50_s,
        ttft_p90_s,
        ttft_p99_s,
        ..
    } = found.clients;
    let object = json!({
        "policy": plan.policy.to_string(),
        "engine_count": plan.engines,
        "kv_tokens": plan.kv_tokens,
        "requests": plan.slice.workload.requests.len(),
        "speed": plan.speed,
        "workers": plan.workers,
        "seed": plan.seed,
        "simulated": found.simulated,
        "engines": found.engines,
        "clients": {
            "ttft_mean_s": ttft_mean_s,
            "ttft_p50_s": ttft_p50_s,
            "ttft_p90_s": ttft_p90_s,
            "ttft_p99_s": ttft_p99_s,
        },
        "cached_tokens": found.foretold,
        "late_ms": found.late_ms,
        "took_s": found.took_s,
        "modelled_s": found.modelled_s,
    });
    Ok(serde_json::to_string(&object)?)
}

/// A table for the terminal.
pub fn table(plan: &Plan, found: &Comparison) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{} requests, {} engines of {} KV tokens, {}, {} workers\n\
         {:.0} modelled s in {:.0} s; sent {:.1} modelled ms late on average",
        plan.slice.workload.requests.len(),
        plan.engines,
        plan.kv_tokens,
        plan.policy,
        plan.workers,
        found.modelled_s,
        found.took_s,
        found.late_ms,
    );
    let _ = writeln!(
        out,
        "{:9}  {:>7} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "", "hit %", "of all", "TTFT mean", "p50 s", "p90 s", "p99 s", "max/mean"
    );
    for (name, figures) in [("simulator", &found.simulated), ("engines", &found.engines)] {
        let _ = writeln!(
            out,
            "{name:9}  {:>7.2} {:>7.2} {} {:>9.2}",
            figures.summary.hit_percent,
            figures.whole_hit_percent,
            times(&figures.summary),
            figures.summary.work_max_over_mean
        );
    }
    let _ = writeln!(
        out,
        "{:9}  {:>7} {:>7} {}",
        "clients",
        "",
        "",
        times(&found.clients)
    );
    if let Some(foretold) = found.foretold {
        let _ = writeln!(
            out,
            "cached tokens: {} predicted, {} reported ({:+.2} %)",
            foretold.predicted,
            foretold.reported,
            foretold.excess_percent()
        );
    }
    out
}

fn times(summary: &Summary) -> String {
    format!(
        "{:>9.3} {:>9.3} {:>9.3} {:>9.3}",
        summary.ttft_mean_s, summary.ttft_p50_s, summary.ttft_p90_s, summary.ttft_p99_s
    )
}
