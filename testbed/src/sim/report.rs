//! The results as people and programs read them.

use std::io::Write;

use serde::Serialize;

use super::statistics::Summary;

/// One policy at one load.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    /// As on the command line.
    pub policy: String,
    /// In percent of the trace's calibrated rate.
    pub load_percent: f64,
    /// Arrivals per second (conversations, in a closed loop).
    pub rate_per_s: f64,
    /// Runs that the figures are means of.
    pub seeds: usize,
    /// The policy that won, where several stood for this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen: Option<String>,
    /// Wall-clock time of all runs of this cell.
    pub run_s: f64,
    /// The figures.
    #[serde(flatten)]
    pub summary: Summary,
}

/// One JSON object a line.
///
/// # Errors
/// The output cannot be written.
pub fn json(cells: &[Cell], out: &mut impl Write) -> anyhow::Result<()> {
    for cell in cells {
        serde_json::to_writer(&mut *out, cell)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// A table for the terminal.
///
/// # Errors
/// The output cannot be written.
pub fn table(cells: &[Cell], out: &mut impl Write) -> anyhow::Result<()> {
    let names: Vec<String> = cells
        .iter()
        .map(|cell| match &cell.chosen {
            Some(chosen) => format!("{} ({chosen})", cell.policy),
            None => cell.policy.clone(),
        })
        .collect();
    let width = names.iter().map(String::len).max().unwrap_or(0).max(6);
    writeln!(
        out,
        "{:width$}  {:>6} {:>8} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>7}",
        "policy",
        "load %",
        "rate /s",
        "hit %",
        "TTFT mean",
        "p50 s",
        "p90 s",
        "p99 s",
        "max/mean",
        "run s"
    )?;
    for (cell, name) in cells.iter().zip(&names) {
        let figures = &cell.summary;
        writeln!(
            out,
            "{name:width$}  {:>6} {:>8.3} {:>6.1} {:>9.3} {:>9.3} {:>9.3} {:>9.3} {:>9.2} {:>7.1}",
            cell.load_percent,
            cell.rate_per_s,
            figures.hit_percent,
            figures.ttft_mean_s,
            figures.ttft_p50_s,
            figures.ttft_p90_s,
            figures.ttft_p99_s,
            figures.work_max_over_mean,
            cell.run_s
        )?;
    }
    if let Some(refused) = cells
        .iter()
        .map(|cell| cell.summary.refused)
        .max()
        .filter(|n| *n > 0)
    {
        writeln!(
            out,
            "up to {refused} requests were larger than an engine's KV cache"
        )?;
    }
    Ok(())
}
