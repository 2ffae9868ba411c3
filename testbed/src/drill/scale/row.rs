//! What a fault came to, as a row of the table and as JSON.

use serde::Serialize;

use crate::drill::row::aligned;

/// One fault.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Row {
    /// The fault.
    pub(super) fault: &'static str,
    /// Requests sent.
    pub(super) sent: usize,
    /// Failed requests that a killed Envoy had.
    pub(super) in_flight: usize,
    /// Other failed requests.
    pub(super) failed: usize,
    /// From the fault until every Envoy showed it.
    pub(super) noticed_ms: Option<u64>,
    /// From the end of the fault until every Envoy heard every other.
    pub(super) whole_ms: Option<u64>,
    /// From the time that a restarted Envoy served until it found what the others had told before it began.
    pub(super) warm_ms: Option<u64>,
    /// Share of the prompt tokens that the engines had cached: before, during, and soon after, in percent.
    pub(super) hits_percent: [Option<f64>; 3],
    /// Most warnings of one Envoy.
    pub(super) warnings: usize,
    /// Bounds that were missed.
    pub(super) missed: Vec<String>,
}

impl Row {
    /// Notes that a bound was missed unless it was met.
    pub(super) fn check(&mut self, met: bool, what: impl FnOnce() -> String) {
        if !met {
            self.missed.push(format!("{}: {}", self.fault, what()));
        }
    }
}

const TITLES: [&str; 10] = [
    "fault",
    "sent",
    "failed",
    "at killed",
    "noticed",
    "whole",
    "warm",
    "hits %",
    "during",
    "after",
];

/// The rows as an aligned table, with what was missed below it.
pub(super) fn table(rows: &[Row]) -> String {
    let mut titles = TITLES.map(str::to_owned).to_vec();
    titles.push("warnings".to_owned());
    let mut lines = vec![titles];
    lines.extend(rows.iter().map(cells));
    let missed = rows.iter().flat_map(|it| &it.missed);
    missed.fold(aligned(&lines), |text, it| format!("{text}MISSED: {it}\n"))
}

fn cells(row: &Row) -> Vec<String> {
    let ms = |ms: Option<u64>| ms.map_or("-".to_owned(), |ms| format!("{ms} ms"));
    let mut cells = vec![
        row.fault.to_owned(),
        row.sent.to_string(),
        row.failed.to_string(),
        row.in_flight.to_string(),
        ms(row.noticed_ms),
        ms(row.whole_ms),
        ms(row.warm_ms),
    ];
    let percent = |it: &Option<f64>| it.map_or("-".to_owned(), |it| format!("{it:.1}"));
    cells.extend(row.hits_percent.iter().map(percent));
    cells.push(row.warnings.to_string());
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_names_what_was_missed() {
        let mut row = Row {
            fault: "store_killed",
            sent: 10,
            hits_percent: [Some(81.25), None, Some(80.0)],
            whole_ms: Some(7),
            ..Row::default()
        };
        row.check(true, || "fine".to_owned());
        row.check(false, || "3 failed".to_owned());
        let table = table(&[row]);
        assert!(table.contains("MISSED: store_killed: 3 failed"), "{table}");
        assert!(table.contains("7 ms") && table.contains("81.2") && !table.contains("fine"));
    }
}
