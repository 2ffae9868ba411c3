//! A Prometheus histogram: fixed buckets, cumulative only when it is printed.

use std::fmt::Write;

/// Buckets of time to first token, in seconds.
pub(super) const FIRST_TOKEN_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// Buckets of time per output token, in seconds.
pub(super) const PER_TOKEN_S: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
/// Buckets of whole-request times, in seconds.
pub(super) const REQUEST_S: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
/// Buckets of tokens of one request.
pub(super) const REQUEST_TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0,
];
/// Buckets of tokens of one step.
pub(super) const STEP_TOKENS: &[f64] = &[
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
];
/// Buckets of the request parameter `n`.
pub(super) const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Histogram {
    bounds: &'static [f64],
    counts: Vec<u64>,
    count: u64,
    sum: f64,
}

impl Histogram {
    /// An empty histogram with these ascending upper bounds.
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: vec![0; bounds.len()],
            count: 0,
            sum: 0.0,
        }
    }

    /// Counts one value. O(log bounds).
    pub(super) fn observe(&mut self, value: f64) {
        let at = self.bounds.partition_point(|&bound| bound < value);
        if let Some(count) = self.counts.get_mut(at) {
            *count += 1;
        }
        self.count += 1;
        self.sum += value;
    }

    /// Writes the series of `name` with these labels, without help and type.
    pub(super) fn write(&self, out: &mut String, name: &str, labels: &str) {
        let mut below = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            below += count;
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound:?}\"}} {below}.0");
        }
        let _ = writeln!(
            out,
            "{name}_bucket{{{labels},le=\"+Inf\"}} {}.0",
            self.count
        );
        let _ = writeln!(out, "{name}_count{{{labels}}} {}.0", self.count);
        let _ = writeln!(out, "{name}_sum{{{labels}}} {:?}", self.sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket_and_buckets_are_cumulative() {
        let mut histogram = Histogram::new(CHOICES);
        for value in [1.0, 1.5, 2.0, 100.0] {
            histogram.observe(value);
        }
        let mut text = String::new();
        histogram.write(&mut text, "n", "engine=\"0\"");
        assert!(
            text.contains("n_bucket{engine=\"0\",le=\"1.0\"} 1.0\n"),
            "{text}"
        );
        assert!(
            text.contains("le=\"2.0\"} 3.0\n") && text.contains("le=\"20.0\"} 3.0\n"),
            "{text}"
        );
        assert!(
            text.contains("le=\"+Inf\"} 4.0\n") && text.contains("n_sum{engine=\"0\"} 104.5\n"),
            "{text}"
        );
    }
}
