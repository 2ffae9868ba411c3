//! The data-parallel ranks of an engine: one model, clock and cache each, behind one port.
//!
//! A request names its rank in a header, as with vLLM; one that does not gets the next in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::http::request::Parts;

use super::clock::Clock;
use super::error::ApiError;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Ranks {
    /// Never empty.
    clocks: Vec<Arc<Clock>>,
    next: AtomicUsize,
    /// Whether the header counts.
    heeds_header: bool,
}

impl Ranks {
    /// Ranks with these clocks, of which there must be one.
    pub(super) fn new(clocks: Vec<Arc<Clock>>, heeds_header: bool) -> Self {
        Self {
            clocks,
            next: AtomicUsize::new(0),
            heeds_header,
        }
    }

    /// All clocks, in order of the ranks.
    pub(super) fn clocks(&self) -> &[Arc<Clock>] {
        &self.clocks
    }

    /// The rank of a request and its clock. What is not a number is ignored, as vLLM does.
    ///
    /// # Errors
    /// There is no such rank.
    pub(super) fn choose(&self, head: &Parts) -> Result<(usize, &Arc<Clock>), ApiError> {
        let named = head
            .headers
            .get("x-data-parallel-rank")
            .and_then(|rank| rank.to_str().ok())
            .and_then(|rank| rank.trim().parse::<i64>().ok())
            .filter(|_| self.heeds_header);
        let size = self.clocks.len();
        let rank = match named {
            Some(rank) => usize::try_from(rank).ok(),
            None => Some(self.next.fetch_add(1, Ordering::Relaxed) % size.max(1)),
        };
        let found = rank.and_then(|rank| Some((rank, self.clocks.get(rank)?)));
        found.ok_or_else(|| {
            let rank = named.unwrap_or_default();
            let message = format!("data_parallel_rank {rank} is out of range [0, {size}).");
            ApiError::bad_request(None, message)
        })
    }
}
