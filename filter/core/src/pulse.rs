//! Signs of life: since when an engine has work and gives nothing, and how long that is normal.
//!
//! An engine can take requests, answer its health check and never send a token. Seen from outside it
//! is silent, and so is one that reads a long prompt, or writes a whole answer before it sends any of
//! it. So there are two kinds of silence, each with its own measure: of *streams*, against the recent
//! waits for a first token, and of *whole answers*, against how long those took. The measure is
//! [`MARGIN`] times what was normal lately, plus the time to prefill the largest prompt that waits: a
//! first token comes at the latest when one prompt is done, however many wait behind it.
//!
//! Every worker writes what it saw into its own column ([`crate::board`]), with ticks only. Merged, the
//! newest sign of life of any worker counts, and the longest of their measures.

use crate::board::Row;

/// How many times longer than normal a silence is that is none any more. More than [`FADE`] loses of a
/// wait within as many requests: what happens once in that many is normal.
const MARGIN: u64 = 4;
/// A wait is forgotten by one part in this many with each shorter one.
const FADE: u64 = 32;
/// Fewer waits than this say nothing yet.
const LEAST_WAITS: u32 = 8;
/// Normal wait for a first token where nothing is known: an engine may compile at first.
const FIRST_US: u64 = 15_000_000;
/// Normal time of a whole answer where nothing is known.
const WHOLE_US: u64 = 30_000_000;
/// Prefill time of a token where nothing is known, with [`MARGIN`] a thousand tokens a second.
const TOKEN_NS: u64 = 250_000;
/// Prompts of fewer tokens say more about the step time than about prefill.
const LEAST_TOKENS: u64 = 1024;

/// What is known of one endpoint's signs of life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulse {
    /// When a part of an answer last came.
    pub heard_us: u64,
    /// Since when there was always a stream in flight; 0: there is none.
    pub streams_us: u64,
    /// Since when there was always a whole answer in flight; 0: there is none.
    pub wholes_us: u64,
    /// Longest usual wait for a first token, without prefill of the prompt itself; 0: not known.
    pub first_us: u32,
    /// Longest usual time of a whole answer, without prefill; 0: not known.
    pub whole_us: u32,
    /// Prefill time of a token; 0: not known.
    pub token_ns: u32,
    /// Tokens of the largest prompt that waits, rounded up to a power of two.
    pub prompt_tokens: u32,
}

impl Pulse {
    /// Whether it has been silent for at least `floor_us`, so that a closer look is worth it.
    pub fn is_silent(&self, floor_us: u64, now_us: u64) -> bool {
        self.silence_us(self.streams_us, now_us) > floor_us
            || self.silence_us(self.wholes_us, now_us) > floor_us
    }

    /// Whether it has been silent for longer than is normal, and than `floor_us`.
    pub fn is_stalled(&self, floor_us: u64, now_us: u64) -> bool {
        let beyond = |since_us, wait_us, default_us| {
            self.silence_us(since_us, now_us) > self.bound_us(floor_us, wait_us, default_us)
        };
        beyond(self.streams_us, self.first_us, FIRST_US)
            || beyond(self.wholes_us, self.whole_us, WHOLE_US)
    }

    /// Longest silence of streams that is normal.
    pub fn streams_bound_us(&self, floor_us: u64) -> u64 {
        self.bound_us(floor_us, self.first_us, FIRST_US)
    }

    /// Longest silence of whole answers that is normal.
    pub fn wholes_bound_us(&self, floor_us: u64) -> u64 {
        self.bound_us(floor_us, self.whole_us, WHOLE_US)
    }

    fn silence_us(&self, since_us: u64, now_us: u64) -> u64 {
        match since_us {
            0 => 0,
            _ => now_us.saturating_sub(since_us.max(self.heard_us)),
        }
    }

    fn bound_us(&self, floor_us: u64, wait_us: u32, default_us: u64) -> u64 {
        let known = |figure: u32, default: u64| match figure {
            0 => default,
            _ => u64::from(figure),
        };
        let token_ns = known(self.token_ns, TOKEN_NS);
        let prefill_us = u64::from(self.prompt_tokens).saturating_mul(token_ns) / 1000;
        let normal_us = known(wait_us, default_us).saturating_add(prefill_us);
        floor_us.max(normal_us.saturating_mul(MARGIN))
    }
}

impl Row for Pulse {
    const BYTES: usize = 40;
    const KEY: &'static str = "warmpath/pulse";
    // Read only while an engine is silent, and then to be sure.
    const READ_SPACING_US: u64 = 1_000;

    fn encode(&self, out: &mut Vec<u8>) {
        for time_us in [self.heard_us, self.streams_us, self.wholes_us] {
            out.extend_from_slice(&time_us.to_le_bytes());
        }
        for figure in [
            self.first_us,
            self.whole_us,
            self.token_ns,
            self.prompt_tokens,
        ] {
            out.extend_from_slice(&figure.to_le_bytes());
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut bytes = crate::codec::Bytes(bytes);
        Some(Pulse {
            heard_us: bytes.u64()?,
            streams_us: bytes.u64()?,
            wholes_us: bytes.u64()?,
            first_us: bytes.u32()?,
            whole_us: bytes.u32()?,
            token_ns: bytes.u32()?,
            prompt_tokens: bytes.u32()?,
        })
    }

    fn merge(&mut self, other: &Self) {
        let earlier = |a: u64, b: u64| if a == 0 || b == 0 { a | b } else { a.min(b) };
        self.heard_us = self.heard_us.max(other.heard_us);
        self.streams_us = earlier(self.streams_us, other.streams_us);
        self.wholes_us = earlier(self.wholes_us, other.wholes_us);
        self.first_us = self.first_us.max(other.first_us);
        self.whole_us = self.whole_us.max(other.whole_us);
        self.token_ns = self.token_ns.max(other.token_ns);
        self.prompt_tokens = self.prompt_tokens.max(other.prompt_tokens);
    }

    fn is_idle(&self, _: u64) -> bool {
        *self == Pulse::default()
    }
}

/// The longest of the recent waits, the older ones counting for less.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waits {
    longest_us: u64,
    count: u32,
}

impl Waits {
    /// Counts one more.
    pub fn add(&mut self, wait_us: u64) {
        let faded_us = self.longest_us.saturating_sub(wait_us) / FADE;
        self.longest_us = wait_us.max(self.longest_us - faded_us);
        self.count = self.count.saturating_add(1);
    }

    /// The longest usual wait, at least 1; 0 while too little is known.
    pub fn longest_us(&self) -> u32 {
        match self.count >= LEAST_WAITS {
            true => u32::try_from(self.longest_us.max(1)).unwrap_or(u32::MAX),
            false => 0,
        }
    }
}

/// The mean time of prefill for a token.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prefill {
    token_ns: u64,
}

impl Prefill {
    /// Counts a first token that came after this time.
    pub fn add(&mut self, tokens: u64, wait_us: u64) {
        if tokens < LEAST_TOKENS {
            return;
        }
        let sample_ns = wait_us.saturating_mul(1000) / tokens;
        self.token_ns = match self.token_ns {
            0 => sample_ns,
            mean_ns => mean_ns - mean_ns / 8 + sample_ns / 8,
        };
    }

    /// The mean, at least 1 once there is one.
    pub fn token_ns(&self) -> u32 {
        u32::try_from(self.token_ns).unwrap_or(u32::MAX)
    }

    /// How long so many tokens take.
    pub fn time_us(&self, tokens: u64) -> u64 {
        tokens.saturating_mul(self.token_ns) / 1000
    }
}

/// How many prompts of which size wait: counted by powers of two, so that the largest is known when
/// another goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    counts: [u32; 24],
}

impl Sizes {
    /// Counts a prompt; what to name when it goes.
    pub fn add(&mut self, tokens: u64) -> u8 {
        let class = (u64::BITS - tokens.leading_zeros()).min(23) as u8;
        if let Some(count) = self.counts.get_mut(usize::from(class)) {
            *count = count.saturating_add(1);
        }
        class
    }

    /// A prompt goes.
    pub fn remove(&mut self, class: u8) {
        if let Some(count) = self.counts.get_mut(usize::from(class)) {
            *count = count.saturating_sub(1);
        }
    }

    /// Tokens of the largest, rounded up.
    pub fn largest(&self) -> u32 {
        let class = self.counts.iter().rposition(|count| *count > 0);
        class.map_or(0, |class| (1 << class) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn silence_counts_from_the_last_sign_or_from_when_there_was_work() {
        let mut it = Pulse {
            heard_us: 5 * SECOND,
            first_us: 1,
            ..Pulse::default()
        };
        assert!(!it.is_silent(0, 100 * SECOND), "nothing is in flight");
        it.streams_us = 90 * SECOND;
        assert!(!it.is_stalled(10 * SECOND, 100 * SECOND));
        assert!(it.is_stalled(10 * SECOND, 100 * SECOND + 1));
        it.heard_us = 95 * SECOND;
        assert!(!it.is_stalled(10 * SECOND, 100 * SECOND + 1));
        assert!(!it.is_stalled(10 * SECOND, SECOND), "a clock set back");
    }

    #[test]
    fn the_measure_is_of_what_is_in_flight() {
        let it = Pulse {
            wholes_us: SECOND,
            first_us: 1,
            whole_us: 10_000_000,
            ..Pulse::default()
        };
        assert!(!it.is_stalled(SECOND, 41 * SECOND));
        assert!(it.is_stalled(SECOND, 41 * SECOND + 1));
        let with_stream = Pulse {
            streams_us: 2 * SECOND,
            ..it
        };
        assert!(with_stream.is_stalled(SECOND, 3 * SECOND + 1));
        let unknown = Pulse {
            streams_us: SECOND,
            ..Pulse::default()
        };
        assert!(!unknown.is_stalled(SECOND, 61 * SECOND));
        assert!(unknown.is_stalled(SECOND, 61 * SECOND + 1));
    }

    #[test]
    fn a_long_prompt_takes_its_time() {
        let mut it = Pulse {
            streams_us: 1,
            first_us: 100_000,
            token_ns: 100_000,
            prompt_tokens: 200_000,
            ..Pulse::default()
        };
        // 20 s at ten thousand tokens a second.
        assert_eq!(it.streams_bound_us(10 * SECOND), 4 * 20_100_000);
        it.prompt_tokens = 2000;
        assert_eq!(it.streams_bound_us(10 * SECOND), 10 * SECOND);
        (it.prompt_tokens, it.token_ns) = (u32::MAX, u32::MAX);
        assert!(!it.is_stalled(SECOND, u64::MAX / 2048), "no overflow");
    }

    #[test]
    fn a_wait_that_happens_once_in_a_while_is_normal() {
        let mut waits = Waits::default();
        (1..LEAST_WAITS).for_each(|_| waits.add(1000));
        assert_eq!(waits.longest_us(), 0, "too few");
        waits.add(20_000_000);
        for _ in 0..FADE {
            waits.add(1000);
            assert!(MARGIN * u64::from(waits.longest_us()) > 20_000_000);
        }
        (0..500).for_each(|_| waits.add(1000));
        assert!(waits.longest_us() < 2000, "{waits:?}");
    }

    #[test]
    fn prefill_is_measured_with_prompts_that_are_long_enough() {
        let mut prefill = Prefill::default();
        prefill.add(10, SECOND);
        assert_eq!(prefill.token_ns(), 0);
        prefill.add(10_000, SECOND);
        assert_eq!(
            (prefill.token_ns(), prefill.time_us(20_000)),
            (100_000, 2 * SECOND)
        );
    }

    #[test]
    fn the_largest_prompt_is_known_when_another_goes() {
        let mut sizes = Sizes::default();
        let (small, large) = (sizes.add(1000), sizes.add(200_000));
        assert_eq!(sizes.largest(), (1 << 18) - 1);
        sizes.remove(large);
        assert_eq!(sizes.largest(), 1023);
        sizes.remove(small);
        sizes.remove(small);
        assert_eq!(sizes.largest(), 0);
        sizes.add(u64::MAX);
        assert_eq!(sizes.largest(), (1 << 23) - 1);
    }

    #[test]
    fn workers_agree_on_the_newest_sign_and_the_longest_measure() {
        let mut mine = Pulse {
            heard_us: 3,
            streams_us: 9,
            first_us: 1,
            ..Pulse::default()
        };
        let theirs = Pulse {
            heard_us: 5,
            streams_us: 4,
            wholes_us: 7,
            token_ns: 8,
            prompt_tokens: 2,
            ..Pulse::default()
        };
        mine.merge(&theirs);
        let want = Pulse {
            heard_us: 5,
            streams_us: 4,
            first_us: 1,
            ..theirs
        };
        assert_eq!(mine, want);
        let mut bytes = Vec::new();
        mine.encode(&mut bytes);
        assert_eq!(
            (bytes.len(), Pulse::decode(&bytes)),
            (Pulse::BYTES, Some(mine))
        );
    }
}
