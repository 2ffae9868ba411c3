//! Many requests, and how they spread over engines.

use std::collections::BTreeMap;

use anyhow::ensure;
use futures_util::StreamExt as _;

use super::client::{Call, Client, Reply};
use super::harness::Stack;

/// Standard deviations that a fair draw may be off. Even over thousands of runs it never is.
const SIGMAS: f64 = 6.0;

/// Sends calls, `parallel` at a time, and waits for all answers, which must be 200; in the order of
/// the calls.
pub async fn send_all(
    client: &Client,
    calls: impl IntoIterator<Item = Call>,
    parallel: usize,
) -> anyhow::Result<Vec<Reply>> {
    let sent = calls.into_iter().map(|call| client.send(call));
    let replies: Vec<_> = futures_util::stream::iter(sent)
        .buffered(parallel)
        .collect()
        .await;
    let checked = replies.into_iter().map(|reply| reply?.expect_status(200));
    checked.collect()
}

/// Answers by engine.
#[derive(Debug)]
pub struct Spread(BTreeMap<String, u64>);

impl Spread {
    /// Counts answers; engines of `pool` that gave none count too.
    pub fn over(stack: &Stack<'_>, pool: &str, replies: &[Reply]) -> anyhow::Result<Self> {
        let names = stack.pool(pool).map(|engine| (engine.name.clone(), 0));
        let mut counts: BTreeMap<_, _> = names.collect();
        for reply in replies {
            *counts
                .entry(stack.answered_by(reply)?.name.clone())
                .or_default() += 1;
        }
        Ok(Self(counts))
    }

    /// Answers of one engine.
    pub fn of(&self, engine: &str) -> u64 {
        self.0.get(engine).copied().unwrap_or_default()
    }

    /// How many more answers the engine with the most gave than the one with the fewest.
    pub fn difference(&self) -> u64 {
        let most = self.0.values().max().copied().unwrap_or_default();
        most - self.0.values().min().copied().unwrap_or_default()
    }

    /// Fails if it is not what a fair draw gives.
    pub fn ensure_fair(&self) -> anyhow::Result<()> {
        let draws: u64 = self.0.values().sum();
        self.0
            .iter()
            .try_for_each(|(name, count)| ensure_share(name, *count, draws, self.0.len()))
    }
}

/// Fails if `count` of `draws` is not a share of one in `sides`, but for the noise of a fair draw.
pub fn ensure_share(what: &str, count: u64, draws: u64, sides: usize) -> anyhow::Result<()> {
    let share = 1.0 / sides.max(1) as f64;
    let mean = draws as f64 * share;
    let bound = SIGMAS * (mean * (1.0 - share)).sqrt();
    ensure!(
        (count as f64 - mean).abs() <= bound,
        "{what}: {count} of {draws}, not {mean:.0} +- {bound:.0}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fair_draw_is_told_from_a_crooked_one() {
        let spread = |counts: [u64; 3]| {
            Spread(
                counts
                    .iter()
                    .enumerate()
                    .map(|(at, n)| (at.to_string(), *n))
                    .collect(),
            )
        };
        assert!(spread([200, 210, 190]).ensure_fair().is_ok());
        assert!(spread([300, 150, 150]).ensure_fair().is_err());
        assert_eq!(spread([200, 210, 190]).difference(), 20);
    }
}
