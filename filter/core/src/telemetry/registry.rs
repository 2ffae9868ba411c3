//! Figures that wait for the next tick.
//!
//! A series is one metric with one set of label values. It is asked for once and then known by its
//! [`Handle`], so counting is an addition at an index. [`Registry::flush`] hands over what has
//! changed: one call of the sink for each counter and gauge touched since, and one for each value of
//! a histogram. Bounds: [`MAX_SERIES`] series and [`MAX_OBSERVATIONS`] waiting values; what does not
//! fit is dropped, values of histograms are counted when they are.

use super::name::stat_name;
use super::{Kind, Metric, table};
use crate::hash::Table;

/// Most series of one VM; 1024 endpoints have about 23,000.
pub const MAX_SERIES: usize = 32_768;
/// Most values of histograms that wait. Half a second of 2,700 requests a second has as many.
pub const MAX_OBSERVATIONS: usize = 4096;

/// Where the figures go.
pub trait Sink {
    /// The id of a metric, which is created if need be; `None` if it cannot be.
    fn define(&self, kind: Kind, name: &str) -> Option<u32>;
    /// Adds to a counter.
    fn add(&self, id: u32, amount: u64);
    /// Sets a gauge.
    fn set(&self, id: u32, value: u64);
    /// Enters a value into a histogram.
    fn record(&self, id: u32, value: u64);
    /// What a counter has come to, all workers together; `None` if that cannot be asked.
    fn total(&self, _id: u32) -> Option<u64> {
        None
    }
}

/// A series of a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle(u32);

/// Leads nowhere.
const NOWHERE: Handle = Handle(u32::MAX);

#[derive(Debug)]
struct Series {
    name: Box<str>,
    metric: &'static Metric,
    /// Known once there was something to tell.
    id: Option<u32>,
    /// What is to be added, or the value to be set.
    value: u64,
    /// Whether there is something to tell.
    fresh: bool,
}

impl Series {
    fn define(&mut self, sink: &impl Sink) -> Option<u32> {
        if self.id.is_none() {
            self.id = sink.define(self.metric.kind, &self.name);
        }
        self.id
    }
}

/// Figures of one VM.
#[derive(Debug)]
pub struct Registry {
    series: Vec<Series>,
    known: Table<Box<str>, Handle>,
    observations: Vec<(Handle, u64)>,
    dropped: Handle,
}

impl Default for Registry {
    fn default() -> Self {
        let mut registry = Registry {
            series: Vec::new(),
            known: Table::default(),
            observations: Vec::new(),
            dropped: NOWHERE,
        };
        registry.dropped = registry.series(&table::DROPPED, &[]);
        registry.announce(registry.dropped);
        registry
    }
}

impl Registry {
    /// The series of a metric with these label values, in the order of its labels.
    pub fn series(&mut self, metric: &'static Metric, values: &[&str]) -> Handle {
        let name = stat_name(metric, values).into_boxed_str();
        if let Some(handle) = self.known.get(&name) {
            return *handle;
        }
        let handle = match u32::try_from(self.series.len()) {
            Ok(at) if self.series.len() < MAX_SERIES => Handle(at),
            _ => return NOWHERE,
        };
        self.series.push(Series {
            name: name.clone(),
            metric,
            id: None,
            value: 0,
            fresh: false,
        });
        self.known.insert(name, handle);
        handle
    }

    /// Has a counter shown as 0 before anything is counted. Prometheus takes the first value it sees
    /// for where a counter began, so it would miss the first event.
    pub fn announce(&mut self, handle: Handle) {
        if let Some(series) = self.series.get_mut(handle.0 as usize) {
            series.fresh = true;
        }
    }

    /// Counts.
    pub fn add(&mut self, handle: Handle, amount: u64) {
        if let Some(series) = self.series.get_mut(handle.0 as usize) {
            series.value = series.value.saturating_add(amount);
            series.fresh |= amount > 0;
        }
    }

    /// What a counter has come to: all that was handed over, by any worker, and what waits here.
    pub fn total(&mut self, handle: Handle, sink: &impl Sink) -> u64 {
        let Some(series) = self.series.get_mut(handle.0 as usize) else {
            return 0;
        };
        let told = series.define(sink).and_then(|id| sink.total(id));
        told.unwrap_or_default().saturating_add(series.value)
    }

    /// Sets a gauge; the last value before a tick counts.
    pub fn set(&mut self, handle: Handle, value: u64) {
        if let Some(series) = self.series.get_mut(handle.0 as usize) {
            series.value = value;
            series.fresh = true;
        }
    }

    /// Sets a gauge that several things share: between two ticks their values are added up, or the
    /// highest is kept if their sum means nothing.
    pub fn gather(&mut self, handle: Handle, value: u64) {
        if let Some(series) = self.series.get_mut(handle.0 as usize) {
            series.value = match (series.fresh, series.metric.unit.adds_up()) {
                (false, _) => value,
                (true, true) => series.value.saturating_add(value),
                (true, false) => series.value.max(value),
            };
            series.fresh = true;
        }
    }

    /// Enters a value into a histogram.
    pub fn observe(&mut self, handle: Handle, value: u64) {
        if self.observations.len() < MAX_OBSERVATIONS {
            self.observations.push((handle, value));
        } else {
            self.add(self.dropped, 1);
        }
    }

    /// Sets every gauge that was ever told to 0: nobody writes it any more.
    pub fn zero_gauges(&mut self) {
        let gauges = self.series.iter_mut().filter(|series| {
            series.metric.kind == Kind::Gauge && (series.id.is_some() || series.fresh)
        });
        for series in gauges {
            series.value = 0;
            series.fresh = true;
        }
    }

    /// Hands over what has changed.
    pub fn flush(&mut self, sink: &impl Sink) {
        for (handle, value) in self.observations.drain(..) {
            let series = self.series.get_mut(handle.0 as usize);
            if let Some(id) = series.and_then(|series| series.define(sink)) {
                sink.record(id, value);
            }
        }
        for series in self.series.iter_mut().filter(|series| series.fresh) {
            // Without an id it is kept for the next tick.
            let Some(id) = series.define(sink) else {
                continue;
            };
            series.fresh = false;
            match series.metric.kind {
                Kind::Counter if series.value == 0 => {}
                Kind::Counter => sink.add(id, std::mem::take(&mut series.value)),
                Kind::Gauge => sink.set(id, series.value),
                Kind::Histogram => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Page;
    use super::*;

    #[test]
    fn figures_wait_for_the_flush_and_are_told_once() {
        let page = Page::default();
        let mut registry = Registry::default();
        let served = registry.series(&table::FALLBACKS, &["x"]);
        assert_eq!(registry.series(&table::FALLBACKS, &["x"]), served);
        let workers = registry.series(&table::WORKERS, &[]);
        let ttft = registry.series(&table::TTFT, &["p"]);
        registry.add(served, 2);
        registry.add(served, 3);
        registry.set(workers, 9);
        registry.set(workers, 4);
        registry.observe(ttft, 20);
        registry.observe(ttft, 30);
        assert_eq!(page.calls(), 0, "nothing before the flush");
        registry.flush(&page);
        assert_eq!(page.value("warmpath.fallbacks.cause=.=x;.;total"), Some(5));
        assert_eq!(page.value("warmpath.workers"), Some(4));
        let values = page.values("warmpath.time_to_first_token.pool=.=p;.;milliseconds");
        assert_eq!(values, [20, 30]);
        let calls = page.calls();
        registry.flush(&page);
        assert_eq!(page.calls(), calls, "nothing has changed");
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let page = Page::default();
        let mut registry = Registry::default();
        let ttft = registry.series(&table::TTFT, &["p"]);
        for value in 0..MAX_OBSERVATIONS as u64 + 7 {
            registry.observe(ttft, value);
        }
        registry.flush(&page);
        let values = page.values("warmpath.time_to_first_token.pool=.=p;.;milliseconds");
        assert_eq!(values.len(), MAX_OBSERVATIONS);
        registry.flush(&page);
        assert_eq!(page.value("warmpath.observations_dropped.total"), Some(7));
        for at in 0..MAX_SERIES + 10 {
            let handle = registry.series(&table::FALLBACKS, &[&at.to_string()]);
            registry.add(handle, 1);
        }
        assert_eq!(registry.series.len(), MAX_SERIES);
        assert_eq!(registry.known.len(), MAX_SERIES);
    }

    #[test]
    fn shared_gauges_gather_what_belongs_to_one_tick() {
        let page = Page::default();
        let mut registry = Registry::default();
        let in_flight = registry.series(&table::IN_FLIGHT, &["p", "other"]);
        let age = registry.series(&table::SCRAPE_AGE, &["p", "other"]);
        for tick in 1..=2 {
            for value in [tick, 10, 5] {
                registry.gather(in_flight, value);
                registry.gather(age, value);
            }
            registry.flush(&page);
            let sum =
                page.value("warmpath.endpoint_in_flight.pool=.=p;.;endpoint=.=other;.;requests");
            assert_eq!(sum, Some(15 + tick));
            let highest =
                page.value("warmpath.scrape_age.pool=.=p;.;endpoint=.=other;.;milliseconds");
            assert_eq!(highest, Some(10));
        }
    }
}
