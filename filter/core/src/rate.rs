//! Requests per endpoint over a sliding window, for `lowest_qps`.
//!
//! The window is cut into [`BUCKETS`] buckets; a count leaves the window one bucket at a time, so
//! the figure is exact to a twelfth of the window.

use crate::board::Row;

/// Buckets of a window.
pub const BUCKETS: usize = 12;

/// Requests of the last window, by bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Number of the newest bucket since the epoch.
    bucket: u32,
    /// Counts, newest first.
    counts: [u16; BUCKETS],
}

/// The number of the bucket that `now_us` falls into.
pub fn bucket(now_us: u64, window_us: u64) -> u32 {
    let length_us = (window_us / BUCKETS as u64).max(1);
    // Wrapping after 2^32 buckets only makes one window read as empty.
    (now_us / length_us) as u32
}

impl Rate {
    /// Counts one request.
    pub fn count(&mut self, bucket: u32) {
        self.advance(bucket);
        if let Some(newest) = self.counts.first_mut() {
            *newest = newest.saturating_add(1);
        }
    }

    /// Requests within the window that ends with `bucket`.
    pub fn requests(&self, bucket: u32) -> u32 {
        let mut now = *self;
        now.advance(bucket);
        now.counts.iter().map(|count| u32::from(*count)).sum()
    }

    fn advance(&mut self, bucket: u32) {
        let steps = bucket.saturating_sub(self.bucket) as usize;
        if steps == 0 {
            return;
        }
        let steps = steps.min(BUCKETS);
        self.counts.rotate_right(steps);
        self.counts
            .iter_mut()
            .take(steps)
            .for_each(|count| *count = 0);
        self.bucket = bucket;
    }
}

impl Row for Rate {
    const BYTES: usize = 4 + 2 * BUCKETS;
    const KEY: &'static str = "warmpath/rate";

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bucket.to_le_bytes());
        for count in self.counts {
            out.extend_from_slice(&count.to_le_bytes());
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (bucket, bytes) = bytes.split_first_chunk()?;
        let (chunks, _) = bytes.as_chunks::<2>();
        let mut counts = [0; BUCKETS];
        for (count, chunk) in counts.iter_mut().zip(chunks) {
            *count = u16::from_le_bytes(*chunk);
        }
        Some(Rate {
            bucket: u32::from_le_bytes(*bucket),
            counts,
        })
    }

    fn merge(&mut self, other: &Self) {
        let newest = self.bucket.max(other.bucket);
        let mut other = *other;
        self.advance(newest);
        other.advance(newest);
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count = count.saturating_add(more);
        }
    }

    fn is_idle(&self, _now_us: u64) -> bool {
        self.counts.iter().all(|count| *count == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_leave_with_their_bucket() {
        let mut rate = Rate::default();
        for at in [100, 100, 105, 111] {
            rate.count(at);
        }
        assert_eq!(rate.requests(111), 4);
        assert_eq!(rate.requests(112), 2);
        assert_eq!(rate.requests(117), 1);
        assert_eq!(rate.requests(200), 0);
    }

    #[test]
    fn merging_aligns_the_windows() {
        let (mut a, mut b) = (Rate::default(), Rate::default());
        a.count(100);
        b.count(111);
        a.merge(&b);
        assert_eq!(a.requests(111), 2);
        assert_eq!(a.requests(112), 1);
    }

    #[test]
    fn a_row_survives_its_encoding() {
        let mut rate = Rate::default();
        rate.count(7);
        rate.count(9);
        let mut bytes = Vec::new();
        rate.encode(&mut bytes);
        assert_eq!(
            (bytes.len(), Rate::decode(&bytes)),
            (Rate::BYTES, Some(rate))
        );
    }
}
