//! Which metric means what, engine by engine.
//!
//! A name has a level: where a page has a figure under several names, the lowest level counts and
//! the others are left out, never added. Levels are even; with `_` after the engine instead of `:`, which
//! metric collectors make of a name and some engines write themselves, it is one more.

/// Names of an engine that is not known, or that should come before the known ones. Each is the
/// whole name of a metric, as the page has it, without labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Gauge: requests being computed.
    pub running: Option<String>,
    /// Gauge: requests waiting.
    pub waiting: Option<String>,
    /// Gauge: KV memory in use, 0 to 1.
    pub kv_usage: Option<String>,
    /// Counter: prompt tokens looked up in the prefix cache.
    pub prefix_queries_tokens: Option<String>,
    /// Counter: prompt tokens found there.
    pub prefix_hits_tokens: Option<String>,
    /// Gauge: tokens that fit into the KV memory.
    pub kv_capacity_tokens: Option<String>,
    /// Counter: requests that ended.
    pub finished: Option<String>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Figure {
    Running,
    Waiting,
    KvUsage,
    PrefixQueries,
    PrefixHits,
    /// Prompt tokens that were *not* found in the prefix cache.
    PrefixMisses,
    HitRate,
    Finished,
    Generated,
    /// KV capacity in tokens, of each rank.
    Capacity,
    /// KV capacity in tokens, of all ranks together, said by each of them.
    SharedCapacity,
    Blocks,
    BlockTokens,
}

impl Figure {
    /// How many there are.
    pub(super) const COUNT: usize = Self::BlockTokens as usize + 1;

    /// Whether it is a part of 1.
    pub(super) fn is_ratio(self) -> bool {
        matches!(self, Self::KvUsage | Self::HitRate)
    }
}

/// What a series means, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The value of a figure, and the level of the name.
    Figure(Figure, u8),
    /// A figure by the label `request_type`.
    TritonRequests,
    /// A figure by the label `kv_cache_block_type`.
    TritonBlocks,
    /// The KV capacity, in labels, and the level of the name.
    CacheConfig(u8),
    /// The sleep state, by a label.
    Sleep,
    /// The LoRA adapters, in labels.
    Adapters,
    /// When the process started.
    Started,
}

/// Level of a name that the pool's configuration gives.
const CONFIGURED: u8 = 0;

/// Names, ready to be looked up.
#[derive(Debug)]
pub(super) struct Lookup<'a> {
    configured: [(&'a [u8], Figure); 7],
    has_configured: bool,
    /// Whether a name of interest begins with the byte, or a blank does.
    is_start: [bool; 256],
}

impl<'a> Lookup<'a> {
    pub(super) fn new(names: &'a Names) -> Self {
        let bytes = |name: &'a Option<String>| name.as_deref().unwrap_or_default().as_bytes();
        let configured = [
            (bytes(&names.running), Figure::Running),
            (bytes(&names.waiting), Figure::Waiting),
            (bytes(&names.kv_usage), Figure::KvUsage),
            (bytes(&names.prefix_queries_tokens), Figure::PrefixQueries),
            (bytes(&names.prefix_hits_tokens), Figure::PrefixHits),
            (bytes(&names.kv_capacity_tokens), Figure::Capacity),
            (bytes(&names.finished), Figure::Finished),
        ];
        let mut is_start = [false; 256];
        let first = configured.iter().filter_map(|(name, _)| name.first());
        for &byte in first.chain(b"vslntp \t\r\x0c") {
            if let Some(is_start) = is_start.get_mut(usize::from(byte)) {
                *is_start = true;
            }
        }
        Self {
            configured,
            has_configured: configured.iter().any(|(name, _)| !name.is_empty()),
            is_start,
        }
    }

    /// What the series of a line means, and the line after the name.
    #[inline]
    pub(super) fn meaning<'b>(&self, line: &'b [u8]) -> Option<(Meaning, &'b [u8])> {
        let first = line.first()?;
        if !*self.is_start.get(usize::from(*first))? {
            return None;
        }
        let line = line.trim_ascii_start();
        if self.has_configured {
            return self.by_whole_name(line);
        }
        let (meaning, len) = known(line)?;
        Some((meaning, line.get(len..)?))
    }

    fn by_whole_name<'b>(&self, line: &'b [u8]) -> Option<(Meaning, &'b [u8])> {
        let (name, after) = line.split_at_checked(name_len(line))?;
        let configured = self.configured.iter().find(|(known, _)| *known == name);
        match configured {
            Some(&(_, figure)) if !name.is_empty() => {
                Some((Meaning::Figure(figure, CONFIGURED), after))
            }
            _ => known(line).map(|(meaning, _)| (meaning, after)),
        }
    }
}

/// The length of the name that the line begins with.
#[inline]
fn name_len(line: &[u8]) -> usize {
    let end = line
        .iter()
        .position(|&byte| matches!(byte, b'{' | b' ' | b'\t'));
    end.unwrap_or(line.len())
}

/// When the process started, in seconds of the Unix clock.
const STARTED: &[u8] = b"process_start_time_seconds";

/// The names of one engine, without the engine, and what they mean.
type Engine = [(&'static str, Meaning)];

/// The meaning of a known name and its length.
#[inline]
fn known(line: &[u8]) -> Option<(Meaning, usize)> {
    let (prefix, engine): (&[u8], &Engine) = match line.first()? {
        b'v' => (b"vllm", VLLM),
        b's' => (b"sglang", SGLANG),
        b'l' => (b"llamacpp", LLAMA_CPP),
        b'n' => (b"nv_trt_llm", TRITON),
        // Of the client library of most engines, which do not say whose it is.
        b'p' => {
            let after = line.strip_prefix(STARTED)?;
            return (name_len(after) == 0).then_some((Meaning::Started, STARTED.len()));
        }
        _ if line.starts_with(b"tgi") => (b"tgi", TGI),
        _ => (b"trtllm", TENSORRT_LLM),
    };
    let (separator, rest) = line.strip_prefix(prefix)?.split_first()?;
    let spelling = match separator {
        b':' => 0,
        b'_' => 1,
        _ => return None,
    };
    let len = name_len(rest);
    let name = rest.get(..len)?;
    let (_, meaning) = engine.iter().find(|(known, _)| known.as_bytes() == name)?;
    let meaning = match *meaning {
        Meaning::Figure(figure, level) => Meaning::Figure(figure, level + spelling),
        Meaning::CacheConfig(level) => Meaning::CacheConfig(level + spelling),
        meaning => meaning,
    };
    Some((meaning, prefix.len() + 1 + len))
}

const fn at(figure: Figure, level: u8) -> Meaning {
    Meaning::Figure(figure, level)
}

/// vLLM, from the V0 engine to 0.32. Both names of a figure are there in 0.9.2 to 0.11, of which the
/// older one is a deprecated copy.
const VLLM: &Engine = &[
    ("num_requests_running", at(Figure::Running, 2)),
    ("num_requests_waiting", at(Figure::Waiting, 2)),
    ("kv_cache_usage_perc", at(Figure::KvUsage, 2)),
    ("gpu_cache_usage_perc", at(Figure::KvUsage, 4)),
    ("prefix_cache_queries_total", at(Figure::PrefixQueries, 2)),
    ("prefix_cache_queries", at(Figure::PrefixQueries, 2)),
    (
        "gpu_prefix_cache_queries_total",
        at(Figure::PrefixQueries, 4),
    ),
    ("gpu_prefix_cache_queries", at(Figure::PrefixQueries, 4)),
    ("prefix_cache_hits_total", at(Figure::PrefixHits, 2)),
    ("prefix_cache_hits", at(Figure::PrefixHits, 2)),
    ("gpu_prefix_cache_hits_total", at(Figure::PrefixHits, 4)),
    ("gpu_prefix_cache_hits", at(Figure::PrefixHits, 4)),
    ("gpu_prefix_cache_hit_rate", at(Figure::HitRate, 2)),
    ("request_success_total", at(Figure::Finished, 2)),
    ("request_success", at(Figure::Finished, 2)),
    ("generation_tokens_total", at(Figure::Generated, 2)),
    ("generation_tokens", at(Figure::Generated, 2)),
    ("cache_config_info", Meaning::CacheConfig(2)),
    ("engine_sleep_state", Meaning::Sleep),
    ("lora_requests_info", Meaning::Adapters),
];

/// SGLang. The capacity is a gauge in new versions, labels of `cache_config_info` in older ones, two
/// gauges in between; where there are several, they agree.
const SGLANG: &Engine = &[
    ("num_running_reqs", at(Figure::Running, 2)),
    ("num_queue_reqs", at(Figure::Waiting, 2)),
    ("token_usage", at(Figure::KvUsage, 2)),
    ("prompt_tokens_total", at(Figure::PrefixQueries, 2)),
    // By source (device, host, storage), which exclude each other.
    ("cached_tokens_total", at(Figure::PrefixHits, 2)),
    ("cache_hit_rate", at(Figure::HitRate, 2)),
    ("num_requests_total", at(Figure::Finished, 2)),
    ("generation_tokens_total", at(Figure::Generated, 2)),
    ("max_total_num_tokens", at(Figure::Capacity, 2)),
    ("cache_config_info", Meaning::CacheConfig(4)),
    ("num_pages", at(Figure::Blocks, 2)),
    ("page_size", at(Figure::BlockTokens, 2)),
];

/// TensorRT-LLM's own server, from 1.3 on.
const TENSORRT_LLM: &Engine = &[
    ("num_requests_running", at(Figure::Running, 2)),
    ("num_requests_waiting", at(Figure::Waiting, 2)),
    ("kv_cache_utilization", at(Figure::KvUsage, 2)),
    ("prompt_tokens_total", at(Figure::PrefixQueries, 2)),
    ("prompt_cached_tokens_total", at(Figure::PrefixHits, 2)),
    ("kv_cache_hit_rate", at(Figure::HitRate, 2)),
    ("request_success_total", at(Figure::Finished, 2)),
    ("num_requests_completed_total", at(Figure::Finished, 4)),
    ("generation_tokens_total", at(Figure::Generated, 2)),
    ("kv_cache_max_blocks", at(Figure::Blocks, 2)),
    ("kv_cache_tokens_per_block", at(Figure::BlockTokens, 2)),
];

/// The TensorRT-LLM backend of Triton.
const TRITON: &Engine = &[
    ("request_metrics", Meaning::TritonRequests),
    ("kv_cache_block_metrics", Meaning::TritonBlocks),
];

/// Hugging Face's text-generation-inference.
const TGI: &Engine = &[
    ("batch_current_size", at(Figure::Running, 2)),
    ("queue_size", at(Figure::Waiting, 2)),
    ("request_success", at(Figure::Finished, 2)),
    ("request_success_total", at(Figure::Finished, 2)),
];

/// llama.cpp. Its prompt tokens are without the cached ones.
const LLAMA_CPP: &Engine = &[
    ("requests_processing", at(Figure::Running, 2)),
    ("requests_deferred", at(Figure::Waiting, 2)),
    ("kv_cache_usage_ratio", at(Figure::KvUsage, 2)),
    ("prompt_tokens_total", at(Figure::PrefixMisses, 2)),
    ("prompt_tokens_cached_total", at(Figure::PrefixHits, 2)),
    ("tokens_predicted_total", at(Figure::Generated, 2)),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn meaning(names: &Names, line: &str) -> Option<Meaning> {
        let lookup = Lookup::new(names);
        lookup.meaning(line.as_bytes()).map(|(meaning, _)| meaning)
    }

    #[test]
    fn only_whole_names_are_known() {
        let names = Names::default();
        let running = Some(Meaning::Figure(Figure::Running, 2));
        assert_eq!(meaning(&names, "vllm:num_requests_running 1"), running);
        assert_eq!(meaning(&names, " \tvllm:num_requests_running{} 1"), running);
        for line in [
            "vllm:num_requests_running_by_reason 1",
            "vllm:num_requests_runnin 1",
            "vllm.num_requests_running 1",
            "vllm",
            "vllm:prefix_cache_hits_created 1",
            "# TYPE vllm:num_requests_running gauge",
            "xvllm:num_requests_running 1",
            "trtllm_",
            "",
            " ",
        ] {
            assert_eq!(meaning(&names, line), None, "{line}");
        }
    }

    #[test]
    fn the_spelling_of_collectors_is_second_choice() {
        let names = Names::default();
        assert_eq!(
            meaning(&names, "sglang_num_running_reqs 1"),
            Some(Meaning::Figure(Figure::Running, 3))
        );
    }

    #[test]
    fn configured_names_come_first() {
        let names = Names {
            running: Some("my_load".to_owned()),
            waiting: Some("vllm:num_requests_running".to_owned()),
            kv_usage: Some(String::new()),
            ..Names::default()
        };
        let figure = |figure, level| Some(Meaning::Figure(figure, level));
        assert_eq!(meaning(&names, "my_load 1"), figure(Figure::Running, 0));
        assert_eq!(
            meaning(&names, "vllm:num_requests_running 1"),
            figure(Figure::Waiting, 0)
        );
        assert_eq!(
            meaning(&names, "tgi_queue_size 1"),
            figure(Figure::Waiting, 3)
        );
        assert_eq!(meaning(&names, " {a=\"b\"} 1"), None);
    }
}
