//! What is measured in a run and how it is summed up.

use serde::Serialize;

/// One finished request.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// The engine that served it.
    pub engine: usize,
    /// From arrival at the router to the first token.
    pub ttft_us: u64,
    /// Length of the prompt.
    pub prompt_tokens: u32,
    /// The part served from the engine's cache.
    pub cached_tokens: u32,
}

/// The requests of a run that count: all but the first tenth.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    /// Requests larger than an engine's KV cache.
    pub refused: u64,
    /// Prompt tokens of all finished requests, the first tenth included, and those from cache.
    pub whole: (u64, u64),
    ttft_us: Vec<u64>,
    prompt_tokens: u64,
    cached_tokens: u64,
    /// Prompt tokens computed, by engine.
    work_tokens: Vec<u64>,
}

/// A cell of the results: one policy at one load. Times in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Requests that count.
    pub requests: usize,
    /// Requests larger than an engine's KV cache.
    pub refused: u64,
    /// Prompt tokens served from cache, in percent of all.
    pub hit_percent: f64,
    /// Mean time to first token.
    pub ttft_mean_s: f64,
    /// Median.
    pub ttft_p50_s: f64,
    /// 90th percentile.
    pub ttft_p90_s: f64,
    /// 99th percentile.
    pub ttft_p99_s: f64,
    /// Prompt tokens computed by the busiest engine, over the mean.
    pub work_max_over_mean: f64,
}

impl Samples {
    /// None yet.
    pub fn new(engines: usize) -> Self {
        Self {
            refused: 0,
            whole: (0, 0),
            ttft_us: Vec::new(),
            prompt_tokens: 0,
            cached_tokens: 0,
            work_tokens: vec![0; engines],
        }
    }

    /// Counts a request.
    pub fn add(&mut self, sample: Sample) {
        self.ttft_us.push(sample.ttft_us);
        self.prompt_tokens += u64::from(sample.prompt_tokens);
        self.cached_tokens += u64::from(sample.cached_tokens);
        if let Some(work) = self.work_tokens.get_mut(sample.engine) {
            *work += u64::from(sample.prompt_tokens.saturating_sub(sample.cached_tokens));
        }
    }

    /// Prompt tokens served from cache in percent of all, the first tenth included: what engines
    /// count.
    pub fn whole_hit_percent(&self) -> f64 {
        let (prompt_tokens, cached_tokens) = self.whole;
        100.0 * ratio(cached_tokens, prompt_tokens)
    }

    /// The run in figures. O(n log n).
    pub fn summary(&self) -> Summary {
        let mut sorted = self.ttft_us.clone();
        sorted.sort_unstable();
        let sum: u64 = sorted.iter().sum();
        let work: u64 = self.work_tokens.iter().sum();
        let most = self.work_tokens.iter().max().copied().unwrap_or(0);
        Summary {
            requests: sorted.len(),
            refused: self.refused,
            hit_percent: 100.0 * ratio(self.cached_tokens, self.prompt_tokens),
            ttft_mean_s: ratio(sum, sorted.len() as u64) / 1e6,
            ttft_p50_s: percentile(&sorted, 50) as f64 / 1e6,
            ttft_p90_s: percentile(&sorted, 90) as f64 / 1e6,
            ttft_p99_s: percentile(&sorted, 99) as f64 / 1e6,
            work_max_over_mean: ratio(most, work) * self.work_tokens.len() as f64,
        }
    }
}

impl Summary {
    /// Mean of several runs, figure by figure.
    pub fn mean(runs: &[Self]) -> Self {
        let n = runs.len().max(1) as f64;
        let mean = |figure: fn(&Self) -> f64| runs.iter().map(figure).sum::<f64>() / n;
        Self {
            requests: runs.iter().map(|run| run.requests).sum(),
            refused: runs.iter().map(|run| run.refused).sum(),
            hit_percent: mean(|run| run.hit_percent),
            ttft_mean_s: mean(|run| run.ttft_mean_s),
            ttft_p50_s: mean(|run| run.ttft_p50_s),
            ttft_p90_s: mean(|run| run.ttft_p90_s),
            ttft_p99_s: mean(|run| run.ttft_p99_s),
            work_max_over_mean: mean(|run| run.work_max_over_mean),
        }
    }
}

/// 0 when there is nothing to divide by.
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// Nearest rank; 0 of nothing.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_hundred_requests() {
        let mut samples = Samples::new(2);
        for n in 1..=100 {
            samples.add(Sample {
                engine: usize::from(n > 75),
                ttft_us: n * 1_000_000,
                prompt_tokens: 10,
                cached_tokens: 4,
            });
        }
        let summary = samples.summary();
        assert_eq!(summary.requests, 100);
        assert_eq!((summary.ttft_mean_s, summary.ttft_p50_s), (50.5, 50.0));
        assert_eq!((summary.ttft_p90_s, summary.ttft_p99_s), (90.0, 99.0));
        assert_eq!(
            (summary.hit_percent, summary.work_max_over_mean),
            (40.0, 1.5)
        );
    }

    #[test]
    fn nothing_measured_is_all_zero() {
        let summary = Samples::new(1).summary();
        assert_eq!((summary.ttft_mean_s, summary.ttft_p99_s), (0.0, 0.0));
        assert_eq!(summary.hit_percent, 0.0);
    }
}
