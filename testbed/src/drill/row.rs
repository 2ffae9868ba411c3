//! What a fault came to, as a row of the table and as JSON.

use serde::Serialize;

/// One fault with one number of workers.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Row {
    /// The fault.
    pub(super) fault: &'static str,
    /// Worker threads of Envoy.
    pub(super) workers: u32,
    /// Requests sent.
    pub(super) sent: usize,
    /// Those with a whole answer.
    pub(super) answered: usize,
    /// Those whose client left by itself.
    pub(super) left: usize,
    /// Attempts that Envoy made again, by its own count.
    pub(super) retried: u64,
    /// Failed requests that nobody could have saved.
    pub(super) unsaved: usize,
    /// Why, and how many of each.
    pub(super) reasons: Vec<(&'static str, usize)>,
    /// Failed requests that should have been saved.
    pub(super) lost: usize,
    /// From the fault to the last failure before 50 requests in a row without one.
    pub(super) recovery_ms: Option<u64>,
    /// From the fault until the filter put the engine aside.
    pub(super) aside_ms: Option<u64>,
    /// From the end of the fault until the engine had its share again.
    pub(super) back_ms: Option<u64>,
    /// From the last request's end until nothing was counted as in flight.
    pub(super) idle_ms: Option<u64>,
    /// Conversations from before that were continued at their engine, from its cache; of how many.
    pub(super) continued: Option<(usize, usize)>,
    /// Share of the prompt tokens that the engines had cached, before and after, in percent.
    pub(super) hits_percent: Option<(u64, u64)>,
    /// What else is to be known.
    pub(super) note: String,
    /// Bounds that were missed.
    pub(super) missed: Vec<String>,
}

impl Row {
    /// Notes that a bound was missed unless it was met.
    pub(super) fn check(&mut self, met: bool, what: impl FnOnce() -> String) {
        if !met {
            self.missed.push(what());
        }
    }
}

const TITLES: [&str; 13] = [
    "fault",
    "workers",
    "sent",
    "answered",
    "left",
    "retried",
    "unsaved",
    "lost",
    "recovered",
    "aside",
    "back",
    "idle",
    "continued",
];

/// The rows as an aligned table, with what needs words below it.
pub(super) fn table(rows: &[Row]) -> String {
    let mut lines = vec![TITLES.map(str::to_owned).to_vec()];
    lines
        .iter_mut()
        .for_each(|line| line.push("hits %".to_owned()));
    lines.extend(rows.iter().map(cells));
    let mut text = aligned(&lines);
    for row in rows {
        let name = format!("{}, {} workers", row.fault, row.workers);
        for (reason, count) in &row.reasons {
            text.push_str(&format!("{name}: {count} unsaved: {reason}\n"));
        }
        if !row.note.is_empty() {
            text.push_str(&format!("{name}: {}\n", row.note));
        }
        for missed in &row.missed {
            text.push_str(&format!("{name}: MISSED: {missed}\n"));
        }
    }
    text
}

/// Lines of cells, the first of which are titles, as a table: names to the left, figures to the right.
pub(super) fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = lines.iter().filter_map(|line| line.get(column));
            cells.map(|it| it.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, &width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn cells(row: &Row) -> Vec<String> {
    let ms = |ms: Option<u64>| ms.map_or("-".to_owned(), |ms| format!("{ms} ms"));
    let pair = |pair: Option<(String, String)>, between: &str| {
        pair.map_or("-".to_owned(), |(a, b)| format!("{a}{between}{b}"))
    };
    let texts = |pair: Option<(usize, usize)>| pair.map(|(a, b)| (a.to_string(), b.to_string()));
    let hits = row
        .hits_percent
        .map(|(a, b)| (a.to_string(), b.to_string()));
    vec![
        row.fault.to_owned(),
        row.workers.to_string(),
        row.sent.to_string(),
        row.answered.to_string(),
        row.left.to_string(),
        row.retried.to_string(),
        row.unsaved.to_string(),
        row.lost.to_string(),
        ms(row.recovery_ms),
        ms(row.aside_ms),
        ms(row.back_ms),
        ms(row.idle_ms),
        pair(texts(row.continued), "/"),
        pair(hits, ">"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_names_what_was_missed() {
        let mut row = Row {
            fault: "killed",
            workers: 2,
            sent: 10,
            reasons: vec![("begun", 1)],
            recovery_ms: Some(7),
            ..Row::default()
        };
        row.check(true, || "fine".to_owned());
        row.check(false, || "3 lost".to_owned());
        let table = table(&[row]);
        assert!(
            table.contains("killed, 2 workers: MISSED: 3 lost"),
            "{table}"
        );
        assert!(table.contains("1 unsaved: begun") && table.contains("7 ms"));
        assert!(!table.contains("fine"));
    }
}
