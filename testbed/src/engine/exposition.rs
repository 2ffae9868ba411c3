//! Prometheus' text format, as vLLM's client library writes it.
//!
//! One idea: a family is one call, which writes its help, type and series, and for counters and
//! histograms the `_created` gauges that go with them. O(series).

use std::collections::HashMap;
use std::fmt::Write;

use super::histogram::Histogram;

/// A page being written.
#[derive(Debug)]
pub(super) struct Page {
    out: String,
    /// Labels that nearly every series has.
    own: String,
    created_unix_s: f64,
}

impl Page {
    /// An empty page; `own` are the labels of its series, never empty.
    pub(super) fn new(own: String, created_unix_s: f64) -> Self {
        Self {
            out: String::with_capacity(24 * 1024),
            own,
            created_unix_s,
        }
    }

    /// The page.
    pub(super) fn text(self) -> String {
        self.out
    }

    /// Opens a family whose series follow by [`Page::sample`].
    pub(super) fn head(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A series with exactly these labels.
    pub(super) fn sample(&mut self, name: &str, labels: &str, value: f64) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.out, "{name}{{{labels}}} {value:?}");
    }

    /// A series without labels.
    pub(super) fn bare(&mut self, name: &str, value: f64) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.out, "{name} {value:?}");
    }

    /// A gauge; each value has one more label or none.
    pub(super) fn gauge(&mut self, name: &str, help: &str, values: &[(&str, f64)]) {
        self.head(name, help, "gauge");
        for (extra, value) in values {
            self.series(name, extra, *value);
        }
    }

    /// A counter; `base` is its name without `_total`.
    pub(super) fn counter(&mut self, base: &str, help: &str, values: &[(&str, u64)]) {
        let name = format!("{base}_total");
        self.head(&name, help, "counter");
        for (extra, value) in values {
            self.series(&name, extra, *value as f64);
        }
        let labels: Vec<&str> = values.iter().map(|(extra, _)| *extra).collect();
        self.created(base, help, &labels);
    }

    /// A histogram.
    pub(super) fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, help, "histogram");
        histogram.write(&mut self.out, name, &self.own);
        self.created(name, help, &[""]);
    }

    fn created(&mut self, base: &str, help: &str, labels: &[&str]) {
        let name = format!("{base}_created");
        self.head(&name, help, "gauge");
        for extra in labels {
            self.series(&name, extra, self.created_unix_s);
        }
    }

    fn series(&mut self, name: &str, extra: &str, value: f64) {
        let comma = if extra.is_empty() { "" } else { "," };
        let labels = format!("{}{comma}{extra}", self.own);
        self.sample(name, &labels, value);
    }
}

/// One page out of those of several ranks: each family once, with the series of all.
pub(super) fn merged(pages: Vec<String>) -> String {
    let mut pages = pages.into_iter();
    let first = pages.next().unwrap_or_default();
    let others: Vec<String> = pages.collect();
    if others.is_empty() {
        return first;
    }
    let mut series: HashMap<&str, Vec<&str>> = HashMap::new();
    for page in &others {
        for (family, lines) in families(page) {
            series.entry(family).or_default().push(lines);
        }
    }
    let mut out = String::with_capacity(first.len() * (1 + others.len()));
    for (family, lines) in families(&first) {
        out.push_str(family);
        out.push_str(lines);
        series
            .get(family)
            .into_iter()
            .flatten()
            .for_each(|lines| out.push_str(lines));
    }
    out
}

/// The heads of a page's families (help and type), each with its series.
fn families(page: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = page;
    std::iter::from_fn(move || {
        let after = rest.strip_prefix("# HELP ")?;
        let end = after
            .find("\n# HELP ")
            .map_or(rest.len(), |at| "# HELP ".len() + at + 1);
        let (family, next) = rest.split_at(end);
        rest = next;
        let type_at = family.find("# TYPE ")?;
        let head = type_at + family.get(type_at..)?.find('\n')? + 1;
        Some(family.split_at(head))
    })
}
