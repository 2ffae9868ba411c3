//! Outcomes turned into figures, class by class.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::Plan;
use super::clients::{End, Outcome};
use super::stack::HighWater;

/// Which requests count, and when a first token is late.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// Arrivals before this do not count.
    pub(super) warm_up: Duration,
    /// How long arrivals count.
    pub(super) length: Duration,
    /// What a request may wait for its first token.
    pub(super) ttft: Duration,
}

impl Window {
    /// When the last request comes.
    pub(super) fn end(&self) -> Duration {
        self.warm_up + self.length
    }
}

/// The requests of a class, or all. Rates are per second of arrivals.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figures {
    class: &'static str,
    offered_per_s: f64,
    admitted_per_s: f64,
    refused_per_s: f64,
    /// Neither refused nor answered whole.
    failed: usize,
    /// Answered whole, with the first token in time.
    goodput_per_s: f64,
    /// Of those that were answered.
    ttft_p50_s: f64,
    ttft_p99_s: f64,
}

/// What came of one load.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Run {
    admission: bool,
    load: f64,
    classes: Vec<Figures>,
    waiting_most: u32,
    running_most: u32,
    /// How much later than planned requests were sent, at worst.
    late_most_ms: f64,
    /// Refusals, those of the warm-up included.
    pub(super) refused_in_all: u64,
    /// Failures, those of the warm-up included.
    pub(super) failed_in_all: u64,
}

impl Run {
    /// The figures of a run.
    pub(super) fn of(
        admission: bool,
        load: f64,
        outcomes: &[Outcome],
        window: Window,
        queues: HighWater,
    ) -> Self {
        let count = |end: End| outcomes.iter().filter(|it| it.end == end).count() as u64;
        let counting = outcomes
            .iter()
            .filter(|it| (window.warm_up..window.end()).contains(&it.at));
        let counting: Vec<Outcome> = counting.copied().collect();
        let classes = [("all", None), ("high", Some(false)), ("low", Some(true))];
        let late = outcomes.iter().map(|it| it.late).max().unwrap_or_default();
        Self {
            admission,
            load,
            classes: classes
                .map(|(class, low)| {
                    let of_class = counting
                        .iter()
                        .filter(|it| low.is_none_or(|low| it.low == low));
                    Figures::of(class, of_class, window)
                })
                .to_vec(),
            waiting_most: queues.waiting,
            running_most: queues.running,
            late_most_ms: 1000.0 * late.as_secs_f64(),
            refused_in_all: count(End::Refused),
            failed_in_all: count(End::Failed),
        }
    }

    fn goodput_per_s(&self) -> f64 {
        self.classes.first().map_or(0.0, |all| all.goodput_per_s)
    }

    /// Its lines of the table.
    pub(super) fn rows(&self) -> String {
        let mut text = String::new();
        for (at, class) in self.classes.iter().enumerate() {
            let (name, load, queues) = match at {
                0 => (
                    if self.admission { "on" } else { "off" },
                    format!("{}x", self.load),
                    format!("{:>8} {:>8}", self.waiting_most, self.running_most),
                ),
                _ => ("", String::new(), String::new()),
            };
            // Writing to a string cannot fail.
            let _written = writeln!(
                text,
                "{name:9} {load:>5}  {:5} {:>9.1} {:>9.1} {:>9.1} {:>7} {:>9.1} {:>8.2} {:>8.2} {queues}",
                class.class,
                class.offered_per_s,
                class.admitted_per_s,
                class.refused_per_s,
                class.failed,
                class.goodput_per_s,
                class.ttft_p50_s,
                class.ttft_p99_s,
            );
        }
        text
    }
}

impl Figures {
    fn of<'a>(
        class: &'static str,
        outcomes: impl Iterator<Item = &'a Outcome>,
        window: Window,
    ) -> Self {
        let (mut offered, mut refused, mut failed) = (0_usize, 0_usize, 0);
        let mut waits = Vec::new();
        for outcome in outcomes {
            offered += 1;
            match outcome.end {
                End::Answered(first_token) => waits.push(first_token),
                End::Refused => refused += 1,
                End::Failed => failed += 1,
            }
        }
        waits.sort_unstable();
        let in_time = waits.partition_point(|wait| *wait <= window.ttft);
        let per_s = |count: usize| count as f64 / window.length.as_secs_f64();
        Self {
            class,
            offered_per_s: per_s(offered),
            admitted_per_s: per_s(offered - refused),
            refused_per_s: per_s(refused),
            failed,
            goodput_per_s: per_s(in_time),
            ttft_p50_s: percentile(&waits, 50),
            ttft_p99_s: percentile(&waits, 99),
        }
    }
}

/// Nearest rank, in seconds; 0 of nothing.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).map_or(0.0, Duration::as_secs_f64)
}

/// What stands above the rows.
pub(super) fn head(plan: &Plan, capacity_per_s: f64) -> String {
    format!(
        "capacity of {} engines: {capacity_per_s:.1} requests/s (99 % have their first token within \
         {} s, by the simulator)\nadmission: {}; {} % of low priority; queues are the longest of one \
         engine\n\n{:9} {:>5}  {:5} {:>9} {:>9} {:>9} {:>7} {:>9} {:>8} {:>8} {:>8} {:>8}\n",
        plan.fleet.engines,
        plan.fleet.ttft_s,
        plan.admission(),
        plan.low_percent,
        "admission",
        "load",
        "class",
        "offered/s",
        "taken/s",
        "refused/s",
        "failed",
        "goodput/s",
        "TTFT p50",
        "p99",
        "waiting",
        "running",
    )
}

/// Goodput at each load over that at the first, for each pool.
pub(super) fn ratios(runs: &[Run]) -> String {
    let mut text = String::new();
    for admission in [true, false] {
        let mut runs = runs.iter().filter(|run| run.admission == admission);
        let Some(first) = runs.next() else {
            continue;
        };
        for run in runs {
            let _written = writeln!(
                text,
                "admission {}: goodput at {}x is {:.3} of that at {}x",
                if admission { "on" } else { "off" },
                run.load,
                run.goodput_per_s() / first.goodput_per_s(),
                first.load,
            );
        }
    }
    text
}

/// All figures, for programs.
pub(super) fn json(plan: &Plan, capacity_per_s: f64, runs: &[Run]) -> Value {
    json!({
        "capacity_per_s": capacity_per_s,
        "engines": plan.fleet.engines,
        "workers": plan.workers,
        "ttft_s": plan.fleet.ttft_s,
        "speed": plan.speed,
        "admission": plan.admission(),
        "low_percent": plan.low_percent,
        "runs": runs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_late_refused_or_failed_is_no_goodput() {
        let seconds = Duration::from_secs_f64;
        let outcome = |at, low, end| Outcome {
            at: seconds(at),
            late: Duration::ZERO,
            low,
            end,
        };
        let outcomes = [
            outcome(0.5, false, End::Answered(seconds(0.1))),
            outcome(1.0, false, End::Answered(seconds(0.3))),
            outcome(1.5, true, End::Answered(seconds(2.5))),
            outcome(2.0, true, End::Refused),
            outcome(2.5, true, End::Refused),
            outcome(2.9, false, End::Failed),
            outcome(3.0, false, End::Refused),
        ];
        let window = Window {
            warm_up: seconds(1.0),
            length: seconds(2.0),
            ttft: seconds(2.0),
        };
        let run = Run::of(true, 3.0, &outcomes, window, HighWater::default());
        let [all, high, low] = &run.classes[..] else {
            panic!("three classes");
        };
        assert_eq!(run.refused_in_all, 3);
        assert_eq!((all.offered_per_s, all.refused_per_s), (2.5, 1.0));
        assert_eq!((all.goodput_per_s, all.failed), (0.5, 1));
        assert_eq!((high.offered_per_s, low.offered_per_s), (1.0, 1.5));
        assert_eq!((all.ttft_p50_s, all.ttft_p99_s), (0.3, 2.5));
        assert!(run.rows().contains("3x"));
        let half = Run::of(true, 1.0, &outcomes[1..2], window, HighWater::default());
        assert!(ratios(&[half, run]).contains("1.000"));
    }
}
