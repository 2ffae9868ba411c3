//! Generated conversations with the properties that matter to routing: some system prompts shared
//! by many users, prompts that grow turn by turn, heavy-tailed lengths and think time.
//!
//! The one idea: a conversation is a list of (full) block ids plus a partial tail. Appending text
//! completes the tail under a new id, because a longer block is a different text.

use anyhow::ensure;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::format::Record;

const BLOCK_TOKENS: u32 = 64;
/// Distinct system prompts; their popularity falls as 1/rank.
const SYSTEM_PROMPTS: usize = 12;
const SYSTEM_MEDIAN_TOKENS: f64 = 2000.0;
const USER_MEDIAN_TOKENS: f64 = 1000.0;
const OUTPUT_MEDIAN_TOKENS: f64 = 250.0;
/// Conversations end here at the latest.
const CONTEXT_TOKENS: u32 = 32_000;
const MEAN_SESSION_GAP_MS: f64 = 2000.0;
const MEAN_THINK_MS: f64 = 5000.0;

/// Makes `requests` turns of `sessions` closed-loop conversations, in order of their fallback time.
///
/// # Errors
/// Fewer requests than sessions, or no session.
pub fn conversations(requests: usize, sessions: usize, seed: u64) -> anyhow::Result<Vec<Record>> {
    ensure!(sessions > 0, "--sessions: got 0, want at least 1");
    ensure!(
        requests >= sessions,
        "--requests: got {requests}, want at least one per session ({sessions})"
    );
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut ids = 0..;
    let systems: Vec<Prompt> = (0..SYSTEM_PROMPTS)
        .map(|_| {
            let mut prompt = Prompt::default();
            prompt.append(log_normal(&mut rng, SYSTEM_MEDIAN_TOKENS, 0.8), &mut ids);
            prompt
        })
        .collect();
    let mut records = Vec::with_capacity(requests);
    let mut start_ms = 0.0;
    for (session, turns) in (0..).zip(turn_counts(requests, sessions, &mut rng)) {
        let system = systems.get(zipf(&mut rng, systems.len()));
        let prompt = system.cloned().unwrap_or_default();
        converse(
            session,
            turns,
            start_ms,
            prompt,
            &mut ids,
            &mut rng,
            &mut records,
        );
        start_ms += exponential(&mut rng, MEAN_SESSION_GAP_MS);
    }
    records.sort_by_key(|record| record.t_ms);
    Ok(records)
}

/// Appends the turns of one conversation that starts with `prompt`.
fn converse(
    session: u64,
    turns: usize,
    start_ms: f64,
    system: Prompt,
    ids: &mut impl Iterator<Item = u64>,
    rng: &mut SmallRng,
    records: &mut Vec<Record>,
) {
    let mut prompt = system.clone();
    let mut now_ms = start_ms;
    for turn in 0..turns {
        let user_tokens = log_normal(rng, USER_MEDIAN_TOKENS, 1.0);
        if prompt.tokens + user_tokens > CONTEXT_TOKENS {
            prompt = system.clone(); // a client that starts over, keeping the session
        }
        prompt.append(user_tokens, ids);
        let output_tokens = log_normal(rng, OUTPUT_MEDIAN_TOKENS, 0.7);
        let delay_ms = exponential(rng, MEAN_THINK_MS);
        if turn > 0 {
            now_ms += delay_ms;
        }
        records.push(Record {
            t_ms: now_ms as u64,
            session: Some(session),
            hash_ids: prompt.ids.clone(),
            block_tokens: BLOCK_TOKENS,
            input_tokens: prompt.tokens,
            output_tokens,
            delay_ms: (turn > 0).then_some(delay_ms as u64),
        });
        // The answer takes about 20 ms a token, and becomes part of the next prompt.
        now_ms += f64::from(output_tokens) * 20.0;
        prompt.append(output_tokens, ids);
    }
}

/// A prompt as block ids.
#[derive(Clone, Default)]
struct Prompt {
    ids: Vec<u64>,
    tokens: u32,
}

impl Prompt {
    /// Adds text. A partial last block is replaced, full ones stay.
    fn append(&mut self, tokens: u32, ids: &mut impl Iterator<Item = u64>) {
        self.ids.truncate((self.tokens / BLOCK_TOKENS) as usize);
        self.tokens += tokens;
        let blocks = self.tokens.div_ceil(BLOCK_TOKENS) as usize;
        let missing = blocks - self.ids.len();
        self.ids.extend(ids.take(missing));
    }
}

/// Splits `requests` over `sessions`: one each, the rest in heavy-tailed shares.
fn turn_counts(requests: usize, sessions: usize, rng: &mut SmallRng) -> Vec<usize> {
    let shares: Vec<f64> = (0..sessions).map(|_| exponential(rng, 1.0)).collect();
    let total: f64 = shares.iter().sum();
    let spare = (requests - sessions) as f64;
    let (mut given, mut seen) = (0, 0.0);
    shares
        .iter()
        .enumerate()
        .map(|(session, share)| {
            seen += share;
            let due = if session + 1 == sessions {
                requests - sessions
            } else {
                (spare * seen / total) as usize
            };
            let extra = due.saturating_sub(given);
            given += extra;
            1 + extra
        })
        .collect()
}

/// At least 1, median `median`, shape `sigma`.
fn log_normal(rng: &mut SmallRng, median: f64, sigma: f64) -> u32 {
    let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
    (median * (sigma * normal).exp()).clamp(1.0, 8.0 * median) as u32
}

fn exponential(rng: &mut SmallRng, mean: f64) -> f64 {
    -mean * (1.0 - rng.random::<f64>()).ln()
}

/// A rank below `n`, with probability proportional to 1 / (rank + 1).
fn zipf(rng: &mut SmallRng, n: usize) -> usize {
    let total: f64 = (1..=n).map(|rank| 1.0 / rank as f64).sum();
    let mut rest = rng.random::<f64>() * total;
    for rank in 0..n {
        rest -= 1.0 / (rank + 1) as f64;
        if rest < 0.0 {
            return rank;
        }
    }
    n.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_as_asked_and_equal_seeds_make_equal_traces() {
        let records = conversations(500, 40, 7).unwrap();
        let sessions: std::collections::HashSet<_> = records.iter().map(|r| r.session).collect();
        assert_eq!((records.len(), sessions.len()), (500, 40));
        assert_eq!(records, conversations(500, 40, 7).unwrap());
        assert_ne!(records, conversations(500, 40, 8).unwrap());
        assert!(conversations(3, 4, 1).is_err() && conversations(3, 0, 1).is_err());
    }

    #[test]
    fn blocks_cover_the_prompt_and_turns_extend_it() {
        let records = conversations(400, 20, 3).unwrap();
        for record in &records {
            let blocks = record.input_tokens.div_ceil(record.block_tokens) as usize;
            assert_eq!(record.hash_ids.len(), blocks);
        }
        let turns: Vec<_> = records.iter().filter(|r| r.session == Some(0)).collect();
        assert!(turns[0].delay_ms.is_none() && turns[1..].iter().all(|r| r.delay_ms.is_some()));
        let extended = turns.windows(2).filter(|pair| {
            let full = (pair[0].input_tokens / BLOCK_TOKENS) as usize;
            pair[1].hash_ids.starts_with(&pair[0].hash_ids[..full])
        });
        assert!(extended.count() + 3 > turns.len() / 2);
    }

    #[test]
    fn an_id_stands_for_one_position_and_one_predecessor() {
        let mut before = std::collections::HashMap::new();
        for record in conversations(400, 20, 3).unwrap() {
            let mut previous = None;
            for id in record.hash_ids {
                assert_eq!(*before.entry(id).or_insert(previous), previous);
                previous = Some(id);
            }
        }
    }
}
