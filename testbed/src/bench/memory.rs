//! The memory run: how much a router keeps of prompts that never come back.
//!
//! Each contestant gets the same number of distinct prompts of 32 KB; its resident memory is read at
//! the start, when its buffers and connections exist, and at the end.

use std::sync::Arc;

use anyhow::Context;
use indicatif::ProgressBar;
use serde::Serialize;

use super::contestant::Contestant;
use super::corpus::Corpus;

/// Prompts after which buffers have grown and code is compiled.
const WARM_UP: u64 = 200;
/// Requests under way at a time.
const CONNECTIONS: usize = 16;
/// Prompts between two moves of the progress bar.
const STRETCH: u64 = 1000;

/// Resident memory of one contestant along the run, in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Growth {
    /// The contestant.
    pub name: String,
    /// Distinct prompts sent.
    pub prompts: u64,
    /// Before the first prompt.
    pub start_bytes: u64,
    /// After the first 200.
    pub warm_bytes: u64,
    /// After the last.
    pub end_bytes: u64,
    /// Requests that were not answered 200.
    pub errors: u64,
}

/// Sends `prompts` distinct prompts to a contestant whose process is known.
pub async fn run(
    contestant: &Contestant,
    prompts: u64,
    bar: &ProgressBar,
) -> anyhow::Result<Growth> {
    let process = contestant
        .process
        .with_context(|| format!("the process of {} is not known", contestant.name))?;
    let corpus = Arc::new(Corpus::distinct());
    let send =
        async |count| super::load::send(contestant.address, &corpus, CONNECTIONS, count).await;
    let start_bytes = process.rss_bytes()?;
    let mut errors = send(WARM_UP.min(prompts)).await?;
    let warm_bytes = process.rss_bytes()?;
    let mut left = prompts.saturating_sub(WARM_UP);
    bar.inc(prompts - left);
    while left > 0 {
        let count = left.min(STRETCH);
        errors += send(count).await?;
        left -= count;
        bar.inc(count);
    }
    Ok(Growth {
        name: contestant.name.clone(),
        prompts,
        start_bytes,
        warm_bytes,
        end_bytes: process.rss_bytes()?,
        errors,
    })
}

/// A table for the terminal.
pub fn table(all: &[Growth]) -> String {
    let width = all.iter().map(|one| one.name.len()).max().unwrap_or(0);
    let width = width.max(6);
    let megabytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let head = format!(
        "\n{:width$}  {:>8} {:>9} {:>9} {:>9} {:>9} {:>7}\n",
        "router", "prompts", "start MB", "after 200", "end MB", "grew MB", "errors"
    );
    let lines = all.iter().map(|one| {
        format!(
            "{:width$}  {:>8} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>7}\n",
            one.name,
            one.prompts,
            megabytes(one.start_bytes),
            megabytes(one.warm_bytes),
            megabytes(one.end_bytes),
            megabytes(one.end_bytes) - megabytes(one.start_bytes),
            one.errors
        )
    });
    head + &lines.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::super::process::Process;
    use super::super::upstream::Upstream;
    use super::*;

    #[tokio::test]
    async fn every_prompt_is_sent_once() {
        let upstream = Upstream::start(&[0]).await.unwrap();
        let mut contestant = Contestant::of(upstream.addresses[0]);
        let bar = ProgressBar::hidden();
        assert!(run(&contestant, 10, &bar).await.is_err());
        contestant.process = Some(Process::new(std::process::id()));
        let growth = run(&contestant, 300, &bar).await.unwrap();
        assert_eq!(
            (growth.prompts, growth.errors, bar.position()),
            (300, 0, 300)
        );
        assert!(table(&[growth]).contains("300"));
    }
}
