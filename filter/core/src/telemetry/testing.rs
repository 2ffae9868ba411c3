//! A page of stats, as Envoy keeps it, for tests.

use super::{Kind, Sink};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// What was told.
#[derive(Debug, Default)]
pub struct Page {
    names: RefCell<Vec<String>>,
    values: RefCell<BTreeMap<u32, Vec<u64>>>,
    calls: Cell<usize>,
}

impl Page {
    /// The sum of a counter, or the value of a gauge; `None` if it was never told.
    pub fn value(&self, name: &str) -> Option<u64> {
        self.values(name).last().copied()
    }

    /// The values of a histogram.
    pub fn values(&self, name: &str) -> Vec<u64> {
        let id = self.names.borrow().iter().position(|known| known == name);
        let id = id.and_then(|id| u32::try_from(id).ok());
        let values = self.values.borrow();
        id.and_then(|id| values.get(&id))
            .cloned()
            .unwrap_or_default()
    }

    /// Whether there is such a series.
    pub fn is_defined(&self, name: &str) -> bool {
        self.names.borrow().iter().any(|known| known == name)
    }

    /// How many series there are.
    pub fn series(&self) -> usize {
        self.names.borrow().len()
    }

    /// How many calls were made.
    pub fn calls(&self) -> usize {
        self.calls.get()
    }

    fn change(&self, id: u32, change: impl FnOnce(&mut Vec<u64>)) {
        self.calls.set(self.calls.get() + 1);
        change(self.values.borrow_mut().entry(id).or_default());
    }
}

impl Sink for &Page {
    fn define(&self, kind: Kind, name: &str) -> Option<u32> {
        (*self).define(kind, name)
    }
    fn add(&self, id: u32, amount: u64) {
        (*self).add(id, amount);
    }
    fn set(&self, id: u32, value: u64) {
        (*self).set(id, value);
    }
    fn record(&self, id: u32, value: u64) {
        (*self).record(id, value);
    }
}

impl Sink for Page {
    fn define(&self, _kind: Kind, name: &str) -> Option<u32> {
        self.calls.set(self.calls.get() + 1);
        let mut names = self.names.borrow_mut();
        let at = names.iter().position(|known| known == name);
        let at = at.unwrap_or_else(|| {
            names.push(name.to_owned());
            names.len() - 1
        });
        u32::try_from(at).ok()
    }

    fn add(&self, id: u32, amount: u64) {
        self.change(id, |values| {
            let sum = values.pop().unwrap_or_default() + amount;
            values.push(sum);
        });
    }

    fn set(&self, id: u32, value: u64) {
        self.change(id, |values| *values = vec![value]);
    }

    fn record(&self, id: u32, value: u64) {
        self.change(id, |values| values.push(value));
    }
}
