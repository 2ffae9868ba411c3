//! The trace format: one JSON object a line, compressed with zstd (window up to 2^27 bytes).
//!
//! A prompt is a list of block ids instead of text. Ids are chained: the same id stands for the
//! same text from the start of the prompt, so a common prefix of ids is a common prefix of text.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Largest zstd window, log2 of bytes, that is written or accepted.
const WINDOW_LOG: u32 = 27;
const COMPRESSION_LEVEL: i32 = 19;

/// One request of a trace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Arrival in the trace's own time. In a closed-loop turn: only the fallback for open loops.
    pub t_ms: u64,
    /// The conversation it belongs to, if that is known.
    pub session: Option<u64>,
    /// One id per block of the prompt, the last of which may be partial.
    pub hash_ids: Vec<u64>,
    /// Tokens in a block.
    pub block_tokens: u32,
    /// Length of the prompt.
    pub input_tokens: u32,
    /// Length of the answer.
    pub output_tokens: u32,
    /// Closed-loop turn: sent this long after the previous turn of its session completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
}

/// Reads a whole trace, in file order.
///
/// # Errors
/// The file cannot be read, is not zstd, or a line is not a record (the error names the line).
pub fn read(path: &Path) -> anyhow::Result<Vec<Record>> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut decoder = zstd::Decoder::new(file)?;
    decoder.window_log_max(WINDOW_LOG)?;
    let mut records = Vec::new();
    for (number, line) in BufReader::new(decoder).lines().enumerate() {
        let line = line.with_context(|| format!("read {}", path.display()))?;
        if line.trim().is_empty() {
            continue;
        }
        let record = serde_json::from_str(&line)
            .with_context(|| format!("{} line {}", path.display(), number + 1))?;
        records.push(record);
    }
    Ok(records)
}

/// Writes a whole trace.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, records: &[Record]) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut encoder = zstd::Encoder::new(BufWriter::new(file), COMPRESSION_LEVEL)?;
    encoder.window_log(WINDOW_LOG)?;
    for record in records {
        serde_json::to_writer(&mut encoder, record)?;
        encoder.write_all(b"\n")?;
    }
    encoder.finish()?.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let record = Record {
            t_ms: 5,
            session: Some(3),
            hash_ids: vec![1, 2],
            block_tokens: 64,
            input_tokens: 100,
            output_tokens: 7,
            delay_ms: None,
        };
        let turn = Record {
            delay_ms: Some(250),
            ..record.clone()
        };
        write(&path, &[record.clone(), turn.clone()]).unwrap();
        assert_eq!(read(&path).unwrap(), [record, turn]);
    }

    #[test]
    fn a_bad_line_is_named() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        std::fs::write(
            &path,
            zstd::encode_all(&b"\n{\"t_ms\":1}\n"[..], 1).unwrap(),
        )
        .unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains("line 2"), "{error}");
    }
}
