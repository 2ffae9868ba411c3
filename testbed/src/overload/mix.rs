//! The requests of an overload run: prompts of which the first part is one of a few system prompts
//! and the rest is new, at random times.
//!
//! What a request costs an engine does not depend on which others were refused, as it would in
//! conversations: so goodput at different loads can be compared. Lengths are heavy-tailed. The
//! process of arrivals is Poisson's, and its rate is set by stretching time.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::sim::workload::Workload;
use crate::trace::format::Record;

const BLOCK_TOKENS: u32 = 64;
/// System prompts, all of one length: once engines hold them, they cost nothing.
const SYSTEMS: u64 = 8;
const SYSTEM_TOKENS: u32 = 512;
/// Median and longest of what is new in a prompt.
const OWN_MEDIAN_TOKENS: f64 = 1000.0;
const OWN_SIGMA: f64 = 0.8;
const OWN_MOST_TOKENS: u32 = 8192;
const OUTPUT_MEDIAN_TOKENS: f64 = 80.0;
const OUTPUT_SIGMA: f64 = 0.6;
const OUTPUT_MOST_TOKENS: u32 = 512;
/// Mean distance of arrivals before time is stretched.
const MEAN_GAP_MS: f64 = 1000.0;

/// `requests` requests, about one a second. Equal seeds make equal requests.
///
/// # Errors
/// No request is asked for.
pub(super) fn workload(requests: usize, seed: u64) -> anyhow::Result<Workload> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut now_ms = 0.0;
    let mut next_id = 1 << 32;
    let mut records = Vec::with_capacity(requests);
    for _ in 0..requests {
        now_ms -= MEAN_GAP_MS * rng.random_range(f64::EPSILON..1.0).ln();
        let system_blocks = u64::from(SYSTEM_TOKENS / BLOCK_TOKENS);
        let system = rng.random_range(0..SYSTEMS) * system_blocks;
        let own_tokens = log_normal(&mut rng, OWN_MEDIAN_TOKENS, OWN_SIGMA, OWN_MOST_TOKENS);
        let own_blocks = u64::from(own_tokens.div_ceil(BLOCK_TOKENS));
        let mut hash_ids: Vec<u64> = (system..system + system_blocks).collect();
        hash_ids.extend(next_id..next_id + own_blocks);
        next_id += own_blocks;
        records.push(Record {
            t_ms: now_ms as u64,
            session: None,
            hash_ids,
            block_tokens: BLOCK_TOKENS,
            input_tokens: SYSTEM_TOKENS + own_tokens,
            output_tokens: log_normal(
                &mut rng,
                OUTPUT_MEDIAN_TOKENS,
                OUTPUT_SIGMA,
                OUTPUT_MOST_TOKENS,
            ),
            delay_ms: None,
        });
    }
    Workload::new(&records, None, 1, seed)
}

/// A length of this median, at least 1, by the sum of uniform numbers.
fn log_normal(rng: &mut SmallRng, median: f64, sigma: f64, most: u32) -> u32 {
    let normal: f64 = (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
    ((median * (sigma * normal).exp()) as u32).clamp(1, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_share_their_beginning_and_nothing_else() {
        let workload = workload(400, 1).unwrap();
        let shared = (SYSTEM_TOKENS / BLOCK_TOKENS) as usize;
        let mut own = std::collections::HashSet::new();
        let mut systems = std::collections::HashSet::new();
        for request in &workload.requests {
            assert!(request.prompt_tokens > SYSTEM_TOKENS);
            systems.insert(request.blocks[0]);
            for block in &request.blocks[shared..] {
                assert!(own.insert(*block));
            }
        }
        assert_eq!(systems.len() as u64, SYSTEMS);
        assert!((0.8..1.25).contains(&workload.rate_per_s()));
    }
}
