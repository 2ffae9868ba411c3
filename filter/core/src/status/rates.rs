//! Requests a second, from counts that are looked at now and then.
//!
//! Two earlier looks are kept, at least [`SPACING_US`] apart, and a rate is taken since the older one: so
//! it is of the last seconds while somebody watches, however often. Nothing is kept or done while nobody
//! does. Bound: four numbers for each endpoint.

use crate::hash;

/// Least time between two looks that are kept.
const SPACING_US: u64 = 5_000_000;
/// A rate over less time says nothing.
const LEAST_US: u64 = 500_000;

#[derive(Debug, Default)]
struct Look {
    at_us: u64,
    /// Endpoint and count.
    counts: Vec<(u64, u64)>,
}

impl Look {
    /// The count of an endpoint, which is where it was seen last unless endpoints came or went.
    fn count(&self, endpoint: u64, place: usize) -> Option<u64> {
        let is_it = |row: &&(u64, u64)| row.0 == endpoint;
        let there = self.counts.get(place).filter(is_it);
        let row = there.or_else(|| self.counts.iter().find(is_it))?;
        Some(row.1)
    }
}

/// The looks.
#[derive(Debug, Default)]
pub struct Rates {
    older: Look,
    newer: Look,
    /// The one under way.
    next: Look,
}

impl Rates {
    /// A look begins.
    pub fn begin(&mut self, now_us: u64) {
        self.next.at_us = now_us;
        self.next.counts.clear();
    }

    /// Requests a second of the endpoint at `address` in a pool, which has had `count` in all; `None`
    /// until it was seen before.
    pub fn rate(&mut self, (pool, address): (usize, &str), count: u64) -> Option<f64> {
        let endpoint = hash::mix(hash::hash(address.as_bytes()), pool as u64);
        let place = self.next.counts.len();
        self.next.counts.push((endpoint, count));
        [&self.older, &self.newer].into_iter().find_map(|look| {
            let took_us = self.next.at_us.saturating_sub(look.at_us);
            let before = look.count(endpoint, place)?;
            let rate = count.saturating_sub(before) as f64 * 1e6 / took_us as f64;
            (took_us >= LEAST_US).then_some(rate)
        })
    }

    /// The look is over.
    pub fn end(&mut self) {
        let age_us = self.next.at_us.saturating_sub(self.newer.at_us);
        if self.newer.counts.is_empty() || age_us >= SPACING_US {
            std::mem::swap(&mut self.older, &mut self.newer);
            std::mem::swap(&mut self.newer, &mut self.next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(rates: &mut Rates, count: u64, now_s: f64) -> Option<f64> {
        let now_us = (now_s * 1e6) as u64;
        rates.begin(now_us);
        let rate = rates.rate((0, "a"), count);
        rates.end();
        rate
    }

    #[test]
    fn a_rate_is_of_the_last_seconds_however_often_it_is_asked() {
        let mut rates = Rates::default();
        assert_eq!(look(&mut rates, 100, 1000.0), None);
        assert_eq!(look(&mut rates, 101, 1000.1), None, "too soon");
        assert_eq!(look(&mut rates, 110, 1001.0), Some(10.0));
        for tenth in 20..200 {
            look(&mut rates, 100 + tenth, 1000.0 + tenth as f64 / 10.0);
        }
        let rate = look(&mut rates, 300, 1020.0).unwrap();
        assert!((9.9..10.1).contains(&rate), "{rate}");
        let idle = look(&mut rates, 300, 1030.0).unwrap();
        let later = look(&mut rates, 300, 1040.0).unwrap();
        assert!(idle < 10.0 && later < idle, "{idle} {later}");
        assert_eq!(look(&mut rates, 300, 1050.0), Some(0.0));
    }

    #[test]
    fn endpoints_keep_their_counts_when_others_come_and_go() {
        let mut rates = Rates::default();
        let mut look = |now_s: u64, endpoints: &[(&str, u64)]| {
            rates.begin(now_s * 1_000_000);
            let all = endpoints.iter();
            let all = all.map(|(address, count)| rates.rate((0, address), *count));
            let told: Vec<_> = all.collect();
            rates.end();
            told
        };
        assert_eq!(look(1000, &[("a", 5), ("b", 7)]), [None, None]);
        let told = look(1001, &[("b", 8), ("c", 1), ("a", 9)]);
        assert_eq!(told, [Some(1.0), None, Some(4.0)]);
    }
}
