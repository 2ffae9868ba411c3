//! What became of each test, and how long it took: a suite that is run often must stay short.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How many of the slowest tests are named.
const NAMED: usize = 10;
/// How much is shown of what was wrong.
const FAULT_CHARS: usize = 300;

/// What became of one test.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name, with its number of workers.
    pub name: String,
    /// How long it took.
    pub took: Duration,
    /// What was wrong, if anything was.
    pub fault: Option<String>,
}

/// What became of all tests of a run, in the order in which they ended.
#[derive(Debug, Default)]
pub struct Record(Mutex<Vec<Entry>>);

impl Record {
    /// Adds a test.
    pub fn add(&self, entry: Entry) {
        self.lock().push(entry);
    }

    /// The tests that did not pass.
    pub fn failed(&self) -> Vec<String> {
        let failed = |entry: &Entry| entry.fault.is_some().then(|| entry.name.clone());
        self.lock().iter().filter_map(failed).collect()
    }

    /// A line for each of the slowest tests, slowest first, and one for all together.
    pub fn slowest(&self) -> String {
        let mut entries = self.lock().clone();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.took));
        let sum: Duration = entries.iter().map(|entry| entry.took).sum();
        let line = |entry: &Entry| format!("{:7.1} s  {}\n", entry.took.as_secs_f64(), entry.name);
        let lines: String = entries.iter().take(NAMED).map(line).collect();
        format!("slowest tests:\n{lines}{:7.1} s  all\n", sum.as_secs_f64())
    }

    /// What was wrong with each test that did not pass, in a few words: the end of a log is often all that
    /// is kept of it.
    pub fn faults(&self) -> String {
        let line = |entry: &Entry| {
            let fault = entry.fault.as_deref()?;
            let shown: String = fault.chars().take(FAULT_CHARS).collect();
            Some(format!("{}: {}\n", entry.name, shown.replace('\n', " ")))
        };
        self.lock().iter().filter_map(line).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_are_named_first_and_failures_are_known() {
        let record = Record::default();
        for number in 0..=NAMED as u64 {
            record.add(Entry {
                name: format!("test {number}"),
                took: Duration::from_secs(number),
                fault: (number == 3).then(|| format!("503\n{}", "x".repeat(FAULT_CHARS))),
            });
        }
        let shown = record.slowest();
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines.len(), 1 + NAMED + 1);
        assert_eq!(lines[1].trim(), "10.0 s  test 10");
        assert_eq!(lines[NAMED + 1].trim(), "55.0 s  all");
        assert_eq!(record.failed(), ["test 3"]);
        let faults = record.faults();
        assert_eq!(faults.lines().count(), 1);
        assert!(faults.starts_with("test 3: 503 xx"), "{faults}");
        assert_eq!(faults.trim_end().len(), "test 3: ".len() + FAULT_CHARS);
    }
}
