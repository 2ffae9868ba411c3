//! Samples along a soak, and whether they grow: a straight line through the second half, its slope held
//! against the slope's standard error.
//!
//! Memory that was touched stays touched, so resident memory goes its way in steps and never comes back
//! to a line: it is a walk. The standard error is that of the slope of a walk of `n` samples whose steps
//! deviate by `d`, `d * sqrt(6 / (5 * n))`; that of a line with independent errors would call a single
//! page a leak.

use std::fmt::Write;

use serde::Serialize;

/// Slopes are per so many requests.
const PER_REQUESTS: f64 = 100_000.0;
/// A slope of more standard errors than this is no chance.
const ERRORS_OF_NOISE: f64 = 2.0;
const MEGABYTE: f64 = (1 << 20) as f64;

/// What was seen after a stretch.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Sample {
    /// Requests sent so far in this part.
    pub(super) requests: u64,
    /// Resident memory of Envoy.
    pub(super) rss_bytes: u64,
    /// What Envoy's allocator has given out; memory of VMs is not in it.
    pub(super) heap_bytes: u64,
    /// Metrics in Envoy's `/stats`.
    pub(super) metrics: u64,
    /// Those of them that are the filter's.
    pub(super) own_metrics: u64,
    /// Entries of the prefix table in use.
    pub(super) table_entries: u64,
    /// Requests that were not answered 200, in this stretch.
    pub(super) errors: u64,
    /// Latencies of this stretch.
    pub(super) p50_us: u32,
    /// See [`p50_us`](Self::p50_us).
    pub(super) p99_us: u32,
}

/// A straight line's slope, per 100,000 requests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Trend {
    /// How much a figure grows.
    pub(super) slope: f64,
    /// The standard error of that.
    pub(super) error: f64,
}

impl Trend {
    /// Least squares over the second half of the samples. `None` of fewer than three there.
    pub(super) fn of(samples: &[Sample], figure: impl Fn(&Sample) -> f64) -> Option<Self> {
        let half = samples.get(samples.len() / 2..)?;
        let n = half.len() as f64;
        if half.len() < 3 {
            return None;
        }
        let points = half
            .iter()
            .map(|sample| (sample.requests as f64 / PER_REQUESTS, figure(sample)));
        let points: Vec<(f64, f64)> = points.collect();
        let mean_x = points.iter().map(|it| it.0).sum::<f64>() / n;
        let mean_y = points.iter().map(|it| it.1).sum::<f64>() / n;
        let spread = points.iter().map(|it| (it.0 - mean_x).powi(2)).sum::<f64>();
        let common = points
            .iter()
            .map(|it| (it.0 - mean_x) * (it.1 - mean_y))
            .sum::<f64>();
        let slope = common / spread;
        let steps = points.iter().zip(points.iter().skip(1));
        let steps: Vec<f64> = steps.map(|(one, next)| next.1 - one.1).collect();
        let step_x = (points.last()?.0 - points.first()?.0) / (n - 1.0);
        let error = deviation(&steps) * (6.0 / (5.0 * n)).sqrt() / step_x;
        Some(Self { slope, error })
    }

    /// Whether nothing is seen to grow.
    pub(super) fn is_noise(&self) -> bool {
        self.slope <= ERRORS_OF_NOISE * self.error
    }
}

/// Standard deviation of at least two values.
fn deviation(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|it| (it - mean).powi(2)).sum::<f64>();
    (squares / (n - 1.0)).sqrt()
}

/// The samples of one part.
#[derive(Debug, Serialize)]
pub(super) struct Series {
    /// What was sent.
    pub(super) name: &'static str,
    /// Real seconds.
    pub(super) took_s: f64,
    /// All samples, oldest first.
    pub(super) samples: Vec<Sample>,
    /// Of resident memory, in MB.
    pub(super) rss_mb: Option<Trend>,
    /// Of Envoy's allocator, in MB.
    pub(super) heap_mb: Option<Trend>,
}

impl Series {
    /// A part that has ended.
    pub(super) fn new(name: &'static str, took_s: f64, samples: Vec<Sample>) -> Self {
        Self {
            name,
            took_s,
            rss_mb: Trend::of(&samples, |it| it.rss_bytes as f64 / MEGABYTE),
            heap_mb: Trend::of(&samples, |it| it.heap_bytes as f64 / MEGABYTE),
            samples,
        }
    }

    /// Requests that were not answered 200.
    pub(super) fn errors(&self) -> u64 {
        self.samples.iter().map(|it| it.errors).sum()
    }

    /// Metrics that came in the second half.
    pub(super) fn new_metrics(&self) -> u64 {
        let middle = self.samples.get(self.samples.len() / 2);
        let grown = middle.zip(self.samples.last());
        grown.map_or(0, |(middle, last)| {
            last.metrics.saturating_sub(middle.metrics)
        })
    }

    /// A line for each tenth, and what follows from all samples.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "\n{}: {} requests in {:.0} s\n{:>9} {:>8} {:>8} {:>8} {:>6} {:>9} {:>8} {:>8} {:>7}\n",
            self.name,
            self.samples.last().map_or(0, |it| it.requests),
            self.took_s,
            "requests",
            "RSS MB",
            "heap MB",
            "metrics",
            "own",
            "in table",
            "p50 ms",
            "p99 ms",
            "errors"
        );
        let tenth = (self.samples.len() / 10).max(1);
        for samples in self.samples.chunks(tenth) {
            let Some(last) = samples.last() else {
                continue;
            };
            let median = |figure: fn(&Sample) -> u32| {
                let mut all: Vec<u32> = samples.iter().map(figure).collect();
                all.sort_unstable();
                f64::from(all.get(all.len() / 2).copied().unwrap_or(0)) / 1000.0
            };
            // Writing to a string cannot fail.
            let _written = writeln!(
                text,
                "{:>9} {:>8.1} {:>8.1} {:>8} {:>6} {:>9} {:>8.2} {:>8.2} {:>7}",
                last.requests,
                last.rss_bytes as f64 / MEGABYTE,
                last.heap_bytes as f64 / MEGABYTE,
                last.metrics,
                last.own_metrics,
                last.table_entries,
                median(|it| it.p50_us),
                median(|it| it.p99_us),
                samples.iter().map(|it| it.errors).sum::<u64>(),
            );
        }
        for (name, trend) in [("RSS", self.rss_mb), ("heap", self.heap_mb)] {
            let _written = match trend {
                Some(trend) => writeln!(
                    text,
                    "{name}: {:+.3} MB per 100,000 requests ({:+.1} bytes for each), standard error \
                     {:.3}, over the second half: {}",
                    trend.slope,
                    trend.slope * MEGABYTE / PER_REQUESTS,
                    trend.error,
                    if trend.is_noise() {
                        "within noise"
                    } else {
                        "GROWS"
                    }
                ),
                None => writeln!(text, "{name}: too few samples for a slope"),
            };
        }
        let _written = writeln!(
            text,
            "metrics that came in the second half: {}",
            self.new_metrics()
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(rss_mb: impl Fn(u64) -> f64) -> Vec<Sample> {
        let sample = |step: u64| Sample {
            requests: step * 10_000,
            rss_bytes: (rss_mb(step) * MEGABYTE) as u64,
            metrics: 40 + step.min(5),
            ..Sample::default()
        };
        (1..=20).map(sample).collect()
    }

    fn rss(samples: &[Sample]) -> Trend {
        Trend::of(samples, |it| it.rss_bytes as f64 / MEGABYTE).unwrap()
    }

    #[test]
    fn a_leak_is_told_from_noise() {
        let noise = |step: u64| f64::from(u32::try_from(step * 7919 % 13).unwrap()) / 10.0;
        let leak = rss(&samples(|step| 50.0 + step as f64 + noise(step)));
        assert!(!leak.is_noise(), "{leak:?}");
        assert!((leak.slope - 10.0).abs() < 3.0 * leak.error, "{leak:?}");
        let flat = rss(&samples(|step| 80.0 + noise(step)));
        assert!(flat.is_noise(), "{flat:?}");
    }

    #[test]
    fn a_single_step_is_no_leak_and_a_byte_for_each_request_is() {
        let step = rss(&samples(|step| if step < 15 { 80.0 } else { 80.02 }));
        assert!(step.slope > 0.0 && step.is_noise(), "{step:?}");
        let bytes = rss(&samples(|step| 80.0 + (step * 10_000) as f64 / MEGABYTE));
        assert!(!bytes.is_noise(), "{bytes:?}");
    }

    #[test]
    fn what_grows_in_the_first_half_only_is_no_growth() {
        let warm = samples(|step| 50.0 + step.min(9) as f64);
        assert!(rss(&warm).slope.abs() < 1e-6);
        let series = Series::new("warm", 1.0, warm);
        assert_eq!((series.new_metrics(), series.errors()), (0, 0));
        let table = series.table();
        assert!(table.contains("within noise") && !table.contains("GROWS"));
    }

    #[test]
    fn two_samples_have_no_slope() {
        let few = samples(|_| 1.0);
        assert_eq!(Trend::of(&few[..4], |it| it.rss_bytes as f64), None);
    }
}
