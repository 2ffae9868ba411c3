//! What a router needs of an inference engine's `/metrics` page.
//!
//! [`EngineStats::read`] goes over a page in the Prometheus or OpenMetrics text format once. Lines of
//! no interest are skipped by their name; the others are read in place. The engine is known by its
//! names (`names`): vLLM, SGLang, TensorRT-LLM by itself and in Triton, TGI, llama.cpp; [`Names`]
//! says those of any other. Whatever cannot be understood is as good as absent: broken lines, NaN,
//! negative and absurd values, and a last line without line end, whose value may have been cut.
//!
//! A page may have several series of one figure. Those of several models and of several
//! data-parallel ranks (label `engine` of vLLM, `dp_rank` of SGLang) are added; of the tensor- and
//! pipeline-parallel shards of one rank (`tp_rank`, `pp_rank`), which all tell the same, the first
//! shard counts. Ratios are averaged: with equal ranks the mean of the usage times the sum of the
//! capacity is the number of tokens in use. Who must know the fullest rank finds it in
//! [`EngineStats::ranks`].
//!
//! Time is linear in the page. Memory is bounded by [`MAX_RANKS`] and [`MAX_ADAPTERS`]; nothing is
//! allocated for a line.
//!
//! ```
//! # use warmpath_core::stats::{EngineStats, Names};
//! let page = b"vllm:num_requests_running{engine=\"0\"} 3.0\n\
//!              vllm:num_requests_running{engine=\"1\"} 4.0\n";
//! let stats = EngineStats::read(page, &Names::default());
//! assert_eq!(stats.total.running, Some(7));
//! assert_eq!(stats.ranks[1].figures.running, Some(4));
//! assert_eq!(stats.total.waiting, None);
//! ```

mod adapters;
mod names;
mod newline;
mod series;
mod tally;

pub use adapters::{Adapter, MAX_ADAPTER_NAME_BYTES, MAX_ADAPTERS};
pub use names::Names;
pub use tally::MAX_RANKS;

use crate::address;
use adapters::NewestAdapters;
use names::{Figure, Lookup, Meaning};
use newline::newline;
use series::{LabelText, MAX_COUNT, Series};
use tally::Tallies;

/// What one page says. A figure that the page does not have, or not in a form that can be believed,
/// is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// The engine as a whole.
    pub total: Figures,
    /// Its data-parallel ranks, by number; at most [`MAX_RANKS`]. Empty if no series names a rank.
    /// Series of further ranks count in the total only.
    pub ranks: Vec<Rank>,
    /// LoRA adapters with requests now; at most [`MAX_ADAPTERS`]. With several API server processes
    /// vLLM adds up what should be a time, so the list may then be an old one.
    pub adapters: Vec<Adapter>,
    /// How many LoRA adapters may be in use at once.
    pub max_adapters: Option<u32>,
    /// When the engine started, in seconds of the Unix clock. No sign of an engine by itself: pages of
    /// other programs have it, too.
    pub started_s: Option<u64>,
    /// Whether the page ends in the middle of a line. That line was not read, and sums may be too
    /// small by what did not arrive.
    pub is_cut: bool,
}

/// The figures of an engine, or of one of its ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Requests being computed.
    pub running: Option<u32>,
    /// Requests in the engine's queue.
    pub waiting: Option<u32>,
    /// Part of the KV memory that requests hold, 0 to 1. Cached prefixes that no request uses count
    /// as free.
    pub kv_usage: Option<f32>,
    /// Counter: prompt tokens looked up in the prefix cache.
    pub prefix_queries_tokens: Option<u64>,
    /// Counter: those of them that were found.
    pub prefix_hits_tokens: Option<u64>,
    /// Part of the prompt tokens that are found in the prefix cache, 0 to 1, over a time that the
    /// engine chooses.
    pub prefix_hit_rate: Option<f32>,
    /// Tokens that fit into the KV memory.
    pub kv_capacity_tokens: Option<u64>,
    /// Counter: requests that ended, for whatever reason the engine counts.
    pub finished: Option<u64>,
    /// Counter: output tokens generated.
    pub generated_tokens: Option<u64>,
    /// Whether the engine sleeps and has no weights or no KV memory; as a whole, if any rank does.
    pub is_sleeping: Option<bool>,
}

/// One data-parallel rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rank {
    /// Its number.
    pub number: u32,
    /// Its figures.
    pub figures: Figures,
}

impl EngineStats {
    /// How many data-parallel ranks the page tells of: two or more, numbered from 0 without a gap.
    /// `None` for anything else: those of an engine of several hosts are not all behind one address.
    #[must_use]
    pub fn rank_count(&self) -> Option<u16> {
        let count = u16::try_from(self.ranks.len()).ok();
        let count = count.filter(|count| (2..=address::MAX_RANKS).contains(count))?;
        let numbers = self.ranks.iter().map(|rank| rank.number);
        numbers.eq(0..u32::from(count)).then_some(count)
    }

    /// Reads a page. `names` come before the names that are known. O(bytes).
    #[must_use]
    pub fn read(page: &[u8], names: &Names) -> Self {
        let lookup = Lookup::new(names);
        let mut tallies = Tallies::default();
        let mut newest = NewestAdapters::default();
        let mut started_s = None;
        let mut rest = page;
        while let Some((line, tail)) = newline(rest).and_then(|at| rest.split_at_checked(at)) {
            rest = tail.get(1..).unwrap_or_default();
            if let Some((meaning, after_name)) = lookup.meaning(line)
                && let Some(series) = Series::parse(after_name)
            {
                match meaning {
                    Meaning::Adapters => newest.offer(&series),
                    Meaning::Started => {
                        let seconds = Some(series.value as u64);
                        started_s = seconds.filter(|it| *it <= MAX_COUNT).max(started_s);
                    }
                    meaning => count(&mut tallies, meaning, &series),
                }
            }
        }
        let (adapters, max_adapters) = newest.into_list();
        let (total, ranks) = tallies.finish();
        Self {
            total,
            ranks,
            adapters,
            max_adapters,
            started_s,
            is_cut: !rest.is_empty(),
        }
    }
}

/// Counts a series for the figure it means.
fn count(tallies: &mut Tallies, meaning: Meaning, series: &Series<'_>) {
    let labels = &series.labels;
    match meaning {
        Meaning::Figure(figure, level) => tallies.add(series, figure, level, series.value),
        Meaning::TritonRequests => match labels.get(LabelText::RequestType) {
            b"scheduled" => tallies.add(series, Figure::Running, 2, series.value),
            b"active" => tallies.add(series, Figure::Running, 4, series.value),
            b"waiting" => tallies.add(series, Figure::Waiting, 2, series.value),
            _ => {}
        },
        Meaning::TritonBlocks => match labels.get(LabelText::BlockType) {
            b"fraction" => tallies.add(series, Figure::KvUsage, 2, series.value),
            b"max" => tallies.add(series, Figure::Blocks, 2, series.value),
            b"tokens_per" => tallies.add(series, Figure::BlockTokens, 2, series.value),
            _ => {}
        },
        Meaning::CacheConfig(level) => {
            let number = |label| series::digits(labels.get(label)).map(|number| number as f64);
            let tokens = |size, blocks| Some(number(size)? * number(blocks)?);
            if let Some(capacity) = number(LabelText::KvTokens) {
                tallies.add(series, Figure::Capacity, level, capacity);
            }
            if let Some(capacity) = tokens(LabelText::BlockSize, LabelText::NumBlocks) {
                tallies.add(series, Figure::SharedCapacity, level, capacity);
            }
            if let Some(capacity) = tokens(LabelText::PageSize, LabelText::NumPages) {
                tallies.add(series, Figure::Capacity, level, capacity);
            }
        }
        Meaning::Sleep => tallies.sleep(series),
        Meaning::Adapters | Meaning::Started => {}
    }
}
