//! How much a pool takes on before it answers 429: the bounds, and the two classes of requests.
//!
//! A bound is that of one engine. A pool refuses a request when every engine that the request could go
//! to has reached it, so an engine that is full never costs an answer while another has room. Requests
//! of low priority meet their bounds sooner, at a share of the others': they are the first to go.

use crate::load::Load;

/// What a gateway, or a client, says of a request that may be refused first.
const LOW: &[u8] = b"low";

/// The class of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// What nobody says to be low.
    #[default]
    High,
    /// Refused first.
    Low,
}

impl Priority {
    /// Both, in the order of their numbers.
    pub const ALL: [Priority; 2] = [Priority::High, Priority::Low];

    /// The name in metrics and messages.
    pub fn name(self) -> &'static str {
        match self {
            Priority::High => "high",
            Priority::Low => "low",
        }
    }

    /// What the headers of this name say. One `low` is enough, whoever added the others: so who stands
    /// before the filter can lower what a client claims, and a client cannot raise it again.
    pub fn of(headers: &[(String, Vec<u8>)], name: &str) -> Priority {
        let says = headers.iter().filter(|(key, _)| key == name);
        let mut words = says.flat_map(|(_, value)| value.split(|byte| *byte == b','));
        match words.any(|word| word.trim_ascii().eq_ignore_ascii_case(LOW)) {
            true => Priority::Low,
            false => Priority::High,
        }
    }
}

/// When a pool refuses requests; of two bounds the one that is reached first counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmissionOptions {
    /// Requests at an engine, running and queued.
    pub max_requests: Option<u32>,
    /// Prompt tokens that an engine has yet to prefill.
    pub max_queued_tokens: Option<u64>,
    /// When a client that was refused is told to come back.
    pub retry_after_s: u32,
    /// Share of the bounds at which requests of low priority are refused, in percent.
    pub low_percent: u8,
}

/// The bounds of one class, at one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    max_requests: u64,
    max_queued_tokens: u64,
}

impl AdmissionOptions {
    /// The bounds of a class. Those of low priority are rounded down, but are never 0: an idle engine
    /// takes any request.
    pub fn bounds(&self, priority: Priority) -> Bounds {
        let percent = match priority {
            Priority::High => 100,
            Priority::Low => u64::from(self.low_percent),
        };
        let bound = |most: Option<u64>| match most {
            Some(most) => (most.saturating_mul(percent) / 100).max(1),
            None => u64::MAX,
        };
        Bounds {
            max_requests: bound(self.max_requests.map(u64::from)),
            max_queued_tokens: bound(self.max_queued_tokens),
        }
    }
}

impl Bounds {
    /// Whether an engine with this load takes no more.
    pub fn are_reached(&self, load: &Load) -> bool {
        u64::from(load.in_flight) >= self.max_requests
            || load.prefill_tokens >= self.max_queued_tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(max_requests: Option<u32>, max_queued_tokens: Option<u64>) -> AdmissionOptions {
        AdmissionOptions {
            max_requests,
            max_queued_tokens,
            retry_after_s: 1,
            low_percent: 80,
        }
    }

    fn load(in_flight: u32, prefill_tokens: u64) -> Load {
        Load {
            in_flight,
            prefill_tokens,
            ..Load::default()
        }
    }

    #[test]
    fn a_bound_is_reached_at_its_number_and_not_before() {
        let high = options(Some(10), Some(1000)).bounds(Priority::High);
        assert!(!high.are_reached(&load(9, 999)));
        assert!(high.are_reached(&load(10, 0)));
        assert!(high.are_reached(&load(0, 1000)));
        let low = options(Some(10), Some(1000)).bounds(Priority::Low);
        assert!(!low.are_reached(&load(7, 799)));
        assert!(low.are_reached(&load(8, 0)));
        assert!(low.are_reached(&load(0, 800)));
    }

    #[test]
    fn what_is_not_bounded_is_never_reached() {
        let requests = options(Some(1), None).bounds(Priority::High);
        assert!(!requests.are_reached(&load(0, u64::MAX - 1)));
        let tokens = options(None, Some(1)).bounds(Priority::High);
        assert!(!tokens.are_reached(&load(u32::MAX, 0)));
    }

    #[test]
    fn an_idle_engine_takes_what_is_of_low_priority() {
        let low = options(Some(1), Some(1)).bounds(Priority::Low);
        assert!(!low.are_reached(&Load::default()));
        assert!(low.are_reached(&load(1, 0)));
        let most = options(Some(u32::MAX), Some(u64::MAX)).bounds(Priority::Low);
        assert!(!most.are_reached(&load(u32::MAX / 2, 0)));
    }

    #[test]
    fn one_low_is_enough() {
        let of = |values: &[&str]| {
            let headers: Vec<_> = values
                .iter()
                .map(|value| ("x-p".to_owned(), value.as_bytes().to_vec()))
                .collect();
            Priority::of(&headers, "x-p")
        };
        for low in [&["low"][..], &[" LOW\t"], &["high", "Low"], &["high, low"]] {
            assert_eq!(of(low), Priority::Low, "{low:?}");
        }
        for high in [&[][..], &["high"], &["lower"], &[""], &["slow,\u{ff}"]] {
            assert_eq!(of(high), Priority::High, "{high:?}");
        }
        assert_eq!(
            Priority::of(&[("x-q".into(), b"low".to_vec())], "x-p"),
            Priority::High
        );
    }
}
