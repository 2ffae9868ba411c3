//! The `trace` verb: makes a small request trace, so that the simulator needs no other data.

pub mod format;
pub mod generate;

use std::path::PathBuf;

/// Arguments of the `trace` verb.
#[derive(clap::Args)]
pub struct Args {
    /// File to write (JSON lines, zstd).
    #[arg(long)]
    out: PathBuf,
    /// Requests in the trace.
    #[arg(long, default_value_t = 8000)]
    requests: usize,
    /// Conversations they belong to.
    #[arg(long, default_value_t = 2000)]
    sessions: usize,
    /// Equal seeds make equal files.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the `trace` verb.
pub fn run(args: Args) -> anyhow::Result<()> {
    let records = generate::conversations(args.requests, args.sessions, args.seed)?;
    format::write(&args.out, &records)?;
    let tokens: u64 = records.iter().map(|r| u64::from(r.input_tokens)).sum();
    println!(
        "{}: {} requests, {} sessions, {} prompt tokens",
        args.out.display(),
        records.len(),
        args.sessions,
        tokens
    );
    Ok(())
}
