//! Windows turned into figures, as people and programs read them.
//!
//! A figure is the median over the rounds. A ratio is the median of the ratios within each round:
//! two windows that follow each other were disturbed alike, two that are minutes apart were not.

use std::fmt::Write;

use serde::Serialize;

use super::load::Window;

/// What one window of one contestant showed.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// Requests answered 200.
    pub requests: u64,
    /// Requests that were not.
    pub errors: u64,
    /// Requests answered per second.
    pub requests_per_s: f64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile of latency in microseconds.
    pub p99_us: f64,
    /// CPU seconds of the router per 1000 requests, which is milliseconds per request.
    pub cpu_s_per_1000: Option<f64>,
    /// CPU time of the router over wall time: 1 is one CPU kept busy.
    pub cpu_share: Option<f64>,
    /// Resident memory of the router after the window, in bytes.
    pub rss_bytes: Option<u64>,
}

impl Round {
    /// The figures of a window.
    pub fn of(window: &Window, rss_bytes: Option<u64>) -> Self {
        let seconds = window.elapsed.as_secs_f64();
        let cpu_s = window.cpu_ns.map(|ns| ns as f64 / 1e9);
        Self {
            requests: window.requests,
            errors: window.errors,
            requests_per_s: window.requests as f64 / seconds,
            p50_us: window.latency_us(0.5),
            p99_us: window.latency_us(0.99),
            cpu_s_per_1000: cpu_s.map(|cpu_s| cpu_s * 1000.0 / window.requests as f64),
            cpu_share: cpu_s.map(|cpu_s| cpu_s / seconds),
            rss_bytes,
        }
    }
}

/// All rounds of one contestant under one load.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The contestant.
    pub name: String,
    /// Resident memory before the first window, in bytes.
    pub rss_before_bytes: Option<u64>,
    /// Medians over the rounds.
    pub median: Figures,
    /// Median ratios to the first contestant, each taken within a round.
    pub ratio: Figures,
    /// Median latency above that of the first contestant, in microseconds.
    pub added_p50_us: f64,
    /// Every round.
    pub rounds: Vec<Round>,
}

/// Figures that are compared.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Requests answered per second.
    pub requests_per_s: f64,
    /// Median latency.
    pub p50_us: f64,
    /// 99th percentile of latency.
    pub p99_us: f64,
    /// CPU seconds per 1000 requests; `None` when the process is not known.
    pub cpu_s_per_1000: Option<f64>,
}

/// What one load showed of all contestants.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// `hot`, `cold` or `mixed`.
    pub corpus: &'static str,
    /// Bytes of each body.
    pub body_bytes: usize,
    /// Requests under way at a time.
    pub concurrency: usize,
    /// The contestants; all ratios are to the first.
    pub rows: Vec<Row>,
}

impl Row {
    /// The figures of `rounds`, compared with those of the first contestant.
    pub fn new(
        name: &str,
        rss_before_bytes: Option<u64>,
        rounds: Vec<Round>,
        first: &[Round],
    ) -> Self {
        let figures = |of: &dyn Fn(&Round, &Round) -> Option<Figures>| {
            let each: Vec<_> = rounds
                .iter()
                .zip(first)
                .filter_map(|(a, b)| of(a, b))
                .collect();
            median_figures(&each)
        };
        let added: Vec<_> = rounds
            .iter()
            .zip(first)
            .map(|(one, first)| one.p50_us - first.p50_us)
            .collect();
        Self {
            name: name.to_owned(),
            rss_before_bytes,
            median: figures(&|one, _| Some(figures_of(one))),
            ratio: figures(&|one, first| Some(ratios(one, first))),
            added_p50_us: median(added),
            rounds,
        }
    }

    fn rss_after_bytes(&self) -> Option<u64> {
        self.rounds.last()?.rss_bytes
    }

    fn errors(&self) -> u64 {
        self.rounds.iter().map(|round| round.errors).sum()
    }

    fn cpu_share(&self) -> Option<f64> {
        let shares = self.rounds.iter().map(|round| round.cpu_share);
        shares.collect::<Option<Vec<_>>>().map(median)
    }
}

fn figures_of(round: &Round) -> Figures {
    Figures {
        requests_per_s: round.requests_per_s,
        p50_us: round.p50_us,
        p99_us: round.p99_us,
        cpu_s_per_1000: round.cpu_s_per_1000,
    }
}

fn ratios(one: &Round, first: &Round) -> Figures {
    let cpu = one.cpu_s_per_1000.zip(first.cpu_s_per_1000);
    Figures {
        requests_per_s: one.requests_per_s / first.requests_per_s,
        p50_us: one.p50_us / first.p50_us,
        p99_us: one.p99_us / first.p99_us,
        cpu_s_per_1000: cpu.map(|(one, first)| one / first),
    }
}

fn median_figures(each: &[Figures]) -> Figures {
    let over = |of: &dyn Fn(&Figures) -> f64| median(each.iter().map(of).collect());
    let cpu: Option<Vec<_>> = each.iter().map(|figures| figures.cpu_s_per_1000).collect();
    Figures {
        requests_per_s: over(&|figures| figures.requests_per_s),
        p50_us: over(&|figures| figures.p50_us),
        p99_us: over(&|figures| figures.p99_us),
        cpu_s_per_1000: cpu.map(median),
    }
}

/// The middle value, or the mean of the two; 0 of none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle).copied().unwrap_or(0.0);
    let even = values.len().is_multiple_of(2);
    match middle.checked_sub(1).and_then(|below| values.get(below)) {
        Some(lower) if even => (lower + upper) / 2.0,
        _ => upper,
    }
}

impl Cell {
    /// A table for the terminal.
    ///
    /// # Errors
    /// Never: writing to a string does not fail.
    pub fn table(&self) -> Result<String, std::fmt::Error> {
        let names = self.rows.iter().map(|row| row.name.len());
        let width = names.max().unwrap_or(0).max(6);
        let mut out = String::new();
        writeln!(
            out,
            "\n{} prompts, bodies of {}, concurrency {}, {} rounds",
            self.corpus,
            size_text(self.body_bytes),
            self.concurrency,
            self.rows.first().map_or(0, |row| row.rounds.len())
        )?;
        writeln!(
            out,
            "{:width$}  {:>9} {:>8} {:>7} {:>8} {:>7} {:>8} {:>9} {:>7} {:>6} {:>8} {:>8}",
            "router",
            "req/s",
            "x",
            "CPU ms",
            "x",
            "busy",
            "p50 us",
            "added us",
            "p99 us",
            "x",
            "RSS MB",
            "grew MB"
        )?;
        for row in &self.rows {
            self.line(row, width, &mut out)?;
        }
        Ok(out)
    }

    fn line(&self, row: &Row, width: usize, out: &mut String) -> std::fmt::Result {
        let (median, ratio) = (&row.median, &row.ratio);
        let number = |value: Option<f64>, digits: usize| {
            value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let megabytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let after = row.rss_after_bytes().map(megabytes);
        let before = row.rss_before_bytes.map(megabytes);
        write!(
            out,
            "{:width$}  {:>9.0} {:>8.2} {:>7} {:>8} {:>7} {:>8.0} {:>9.0} {:>7.0} {:>6.2} {:>8} {:>8}",
            row.name,
            median.requests_per_s,
            ratio.requests_per_s,
            number(median.cpu_s_per_1000, 4),
            number(ratio.cpu_s_per_1000, 2),
            number(row.cpu_share(), 2),
            median.p50_us,
            row.added_p50_us,
            median.p99_us,
            ratio.p99_us,
            number(after, 1),
            number(after.zip(before).map(|(after, before)| after - before), 1),
        )?;
        match row.errors() {
            0 => writeln!(out),
            errors => writeln!(out, "  {errors} requests not answered 200"),
        }
    }
}

/// A size in the unit that fits it: `32 KB`, `1 MB`.
pub fn size_text(bytes: usize) -> String {
    match bytes {
        _ if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{} KB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(requests_per_s: f64, cpu_ms: f64) -> Round {
        Round {
            requests: 1,
            errors: 0,
            requests_per_s,
            p50_us: 1e6 / requests_per_s,
            p99_us: 2e6 / requests_per_s,
            cpu_s_per_1000: Some(cpu_ms),
            cpu_share: Some(0.9),
            rss_bytes: Some(64 << 20),
        }
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        // The second round was disturbed for both.
        let first = [round(1000.0, 1.0), round(100.0, 4.0), round(1000.0, 1.0)];
        let other = vec![round(500.0, 2.0), round(50.0, 8.0), round(500.0, 2.0)];
        let row = Row::new("other", None, other, &first);
        assert_eq!(row.ratio.requests_per_s, 0.5);
        assert_eq!(row.ratio.cpu_s_per_1000, Some(2.0));
        assert_eq!(row.median.cpu_s_per_1000, Some(2.0));
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
        assert_eq!(median(Vec::new()), 0.0);
    }

    #[test]
    fn a_router_without_a_process_has_no_cpu_figures() {
        let mut unknown = round(500.0, 2.0);
        (unknown.cpu_s_per_1000, unknown.cpu_share) = (None, None);
        unknown.rss_bytes = None;
        let first = [round(1000.0, 1.0)];
        let rows = vec![
            Row::new("bare", Some(60 << 20), first.to_vec(), &first),
            Row::new("peer", None, vec![unknown], &first),
        ];
        let cell = Cell {
            corpus: "hot",
            body_bytes: 32 << 10,
            concurrency: 1,
            rows,
        };
        let table = cell.table().unwrap();
        assert!(table.contains("bodies of 32 KB"));
        assert!(table.lines().nth(3).unwrap().contains("1.0000"));
        assert!(table.lines().nth(4).unwrap().contains(" - "));
    }

    #[test]
    fn sizes_read_as_they_were_asked_for() {
        assert_eq!(size_text(220 << 10), "220 KB");
        assert_eq!(size_text(1 << 20), "1 MB");
        assert_eq!(size_text(1000), "1000 B");
    }
}
