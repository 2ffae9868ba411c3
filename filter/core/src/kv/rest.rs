//! When an index service is left alone.
//!
//! [`FAILURES`] failures in a row, and nobody asks for a while; then one request does, and if it fails
//! as well the next one follows after as long again. So a service that is down costs one request in each
//! interval its budget, and no more.

/// A single slow answer says little.
const FAILURES: u32 = 3;

/// See the module documentation.
#[derive(Debug)]
pub struct Rest {
    cool_down_us: u64,
    failures: u32,
    until_us: u64,
}

impl Rest {
    /// Everything is well.
    pub fn new(cool_down_us: u64) -> Self {
        Rest {
            cool_down_us,
            failures: 0,
            until_us: 0,
        }
    }

    /// Whether a request may ask now; it then must.
    pub fn may_ask(&mut self, now_us: u64) -> bool {
        if self.failures < FAILURES {
            return true;
        }
        // A clock that was set back ends the rest.
        let resting =
            now_us < self.until_us && self.until_us.saturating_sub(now_us) <= self.cool_down_us;
        if !resting {
            self.until_us = now_us.saturating_add(self.cool_down_us);
        }
        !resting
    }

    /// The service answered as it should.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// It did not.
    pub fn failed(&mut self, now_us: u64) {
        self.failures = self.failures.saturating_add(1);
        self.until_us = now_us.saturating_add(self.cool_down_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_service_costs_one_request_in_each_interval() {
        let mut rest = Rest::new(100);
        for now_us in 0..3 {
            assert!(rest.may_ask(now_us));
            rest.failed(now_us);
        }
        let asked = (3..1000).filter(|now_us| {
            let may = rest.may_ask(*now_us);
            if may {
                rest.failed(*now_us);
            }
            may
        });
        assert_eq!(asked.count(), 9);
        assert!(rest.may_ask(1101));
        rest.succeeded();
        assert!(rest.may_ask(1102) && rest.may_ask(1103));
    }

    #[test]
    fn only_one_asks_while_the_service_is_tried() {
        let mut rest = Rest::new(100);
        (0..3).for_each(|now_us| rest.failed(now_us));
        assert!(rest.may_ask(500));
        assert!(!rest.may_ask(501), "the answer is awaited");
        assert!(rest.may_ask(600), "it never came");
        assert!(rest.may_ask(10), "the clock was set back");
    }
}
