//! A second, plain reading of metrics pages: all lines are taken apart into owned samples first, and
//! each figure is looked up in them. Property tests and the fuzz target hold the parser against it.

use std::collections::{BTreeMap, BTreeSet};

use warmpath_core::stats::{Adapter, EngineStats, Figures, MAX_ADAPTERS, MAX_RANKS, Names, Rank};

/// Figure, names by preference (the best first), and a label with its value that it takes.
type Row = (
    &'static str,
    &'static str,
    Option<(&'static str, &'static str)>,
);

/// Every known name that is a figure by itself or by one label, best names of a figure first.
pub const TABLE: [Row; 49] = [
    ("running", "vllm:num_requests_running", None),
    ("running", "sglang:num_running_reqs", None),
    ("running", "trtllm_num_requests_running", None),
    ("running", "tgi_batch_current_size", None),
    ("running", "llamacpp:requests_processing", None),
    (
        "running",
        "nv_trt_llm_request_metrics",
        Some(("request_type", "scheduled")),
    ),
    (
        "running",
        "nv_trt_llm_request_metrics",
        Some(("request_type", "active")),
    ),
    ("waiting", "vllm:num_requests_waiting", None),
    ("waiting", "sglang:num_queue_reqs", None),
    ("waiting", "trtllm_num_requests_waiting", None),
    ("waiting", "tgi_queue_size", None),
    ("waiting", "llamacpp:requests_deferred", None),
    (
        "waiting",
        "nv_trt_llm_request_metrics",
        Some(("request_type", "waiting")),
    ),
    ("usage", "vllm:kv_cache_usage_perc", None),
    ("usage", "vllm:gpu_cache_usage_perc", None),
    ("usage", "sglang:token_usage", None),
    ("usage", "trtllm_kv_cache_utilization", None),
    ("usage", "llamacpp:kv_cache_usage_ratio", None),
    (
        "usage",
        "nv_trt_llm_kv_cache_block_metrics",
        Some(("kv_cache_block_type", "fraction")),
    ),
    ("queries", "vllm:prefix_cache_queries_total", None),
    ("queries", "vllm:gpu_prefix_cache_queries_total", None),
    ("queries", "sglang:prompt_tokens_total", None),
    ("queries", "trtllm_prompt_tokens_total", None),
    ("misses", "llamacpp:prompt_tokens_total", None),
    ("hits", "vllm:prefix_cache_hits_total", None),
    ("hits", "vllm:gpu_prefix_cache_hits_total", None),
    ("hits", "sglang:cached_tokens_total", None),
    ("hits", "trtllm_prompt_cached_tokens_total", None),
    ("hits", "llamacpp:prompt_tokens_cached_total", None),
    ("rate", "vllm:gpu_prefix_cache_hit_rate", None),
    ("rate", "sglang:cache_hit_rate", None),
    ("rate", "trtllm_kv_cache_hit_rate", None),
    ("finished", "vllm:request_success_total", None),
    ("finished", "sglang:num_requests_total", None),
    ("finished", "trtllm_request_success_total", None),
    ("finished", "trtllm_num_requests_completed_total", None),
    ("finished", "tgi_request_success", None),
    ("finished", "tgi_request_success_total", None),
    ("generated", "vllm:generation_tokens_total", None),
    ("generated", "sglang:generation_tokens_total", None),
    ("generated", "trtllm_generation_tokens_total", None),
    ("generated", "llamacpp:tokens_predicted_total", None),
    ("capacity", "sglang:max_total_num_tokens", None),
    ("blocks", "sglang:num_pages", None),
    ("blocks", "trtllm_kv_cache_max_blocks", None),
    (
        "blocks",
        "nv_trt_llm_kv_cache_block_metrics",
        Some(("kv_cache_block_type", "max")),
    ),
    ("block tokens", "sglang:page_size", None),
    ("block tokens", "trtllm_kv_cache_tokens_per_block", None),
    (
        "block tokens",
        "nv_trt_llm_kv_cache_block_metrics",
        Some(("kv_cache_block_type", "tokens_per")),
    ),
];

/// What is read in both ways must agree, for the page and for a page that was cut anywhere.
pub fn check(page: &[u8]) {
    let stats = EngineStats::read(page, &Names::default());
    assert_same(&stats, &naive(page), page);
    let step = 1 + page.len() / 16;
    for end in (0..page.len()).step_by(step) {
        let cut = &page[..end];
        let lines = cut
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        let whole = EngineStats::read(&page[..lines], &Names::default());
        let mut stats = EngineStats::read(cut, &Names::default());
        assert_eq!(stats.is_cut, lines != end);
        stats.is_cut = whole.is_cut;
        assert_eq!(stats, whole);
    }
}

fn assert_same(stats: &EngineStats, naive: &EngineStats, page: &[u8]) {
    if naive.ranks.len() > MAX_RANKS {
        assert_eq!(stats.ranks.len(), MAX_RANKS);
        return;
    }
    let mut naive = naive.clone();
    assert_eq!(
        stats.ranks.len(),
        naive.ranks.len(),
        "{}",
        page.escape_ascii()
    );
    let mine = stats
        .ranks
        .iter()
        .map(|rank| &rank.figures)
        .chain([&stats.total]);
    let theirs = naive.ranks.iter_mut().map(|rank| &mut rank.figures);
    for (mine, theirs) in mine.zip(theirs.chain([&mut naive.total])) {
        let pairs = [
            (mine.kv_usage, &mut theirs.kv_usage),
            (mine.prefix_hit_rate, &mut theirs.prefix_hit_rate),
        ];
        for (mine, theirs) in pairs {
            if mine.zip(*theirs).is_some_and(|(a, b)| (a - b).abs() < 1e-6) {
                *theirs = mine;
            }
        }
    }
    assert_eq!(*stats, naive, "{}", page.escape_ascii());
}

struct Sample {
    name: String,
    /// The name as [`common`] writes it.
    common: String,
    labels: BTreeMap<String, Vec<u8>>,
    rank: Option<u32>,
    value: f64,
}

/// One series of a figure: level of its name, shard, value.
#[derive(Clone, Copy)]
struct Reading {
    rank: Option<u32>,
    level: usize,
    shard: (u64, u64),
    value: f64,
}

fn naive(page: &[u8]) -> EngineStats {
    let mut lines: Vec<&[u8]> = page.split(|&byte| byte == b'\n').collect();
    let last = lines.pop().unwrap_or_default();
    let samples: Vec<Sample> = lines.into_iter().filter_map(sample).collect();
    let readings = readings(&samples);
    let is_state = |sample: &&Sample| {
        let state = sample
            .labels
            .get("sleep_state")
            .map_or(&b""[..], |state| state);
        sample.is("vllm:engine_sleep_state")
            && [&b"awake"[..], b"weights_offloaded", b"discard_all"].contains(&state)
    };
    let states: Vec<&Sample> = samples.iter().filter(is_state).collect();
    let ranks: BTreeSet<u32> = readings
        .values()
        .flatten()
        .filter_map(|reading| reading.rank)
        .chain(states.iter().filter_map(|state| state.rank))
        .collect();
    let (adapters, max_adapters) = adapters(&samples);
    let sharers = per_rank(&readings, "shared").len() as u64;
    let shared: Vec<Reading> = per_rank(&readings, "shared")
        .into_values()
        .flatten()
        .collect();
    let best = shared.iter().map(|reading| reading.level).min();
    let of_best = shared.iter().filter(|reading| Some(reading.level) == best);
    let shared = of_best.map(|reading| reading.value as u64).max();
    let ranks = ranks.into_iter().map(|number| {
        let only = |reading: &Reading| reading.rank == Some(number);
        let states: Vec<_> = states
            .iter()
            .copied()
            .filter(|s| s.rank == Some(number))
            .collect();
        let share = per_rank(&readings, "shared").contains_key(&Some(number));
        let share = shared.filter(|_| share).map(|shared| shared / sharers);
        let figures = figures(&readings, &only, &states, share);
        Rank { number, figures }
    });
    let starts = samples.iter();
    let starts = starts.filter(|sample| sample.name == "process_start_time_seconds");
    EngineStats {
        started_s: starts
            .map(|sample| sample.value as u64)
            .filter(|it| *it <= 1 << 53)
            .max(),
        ranks: ranks.collect(),
        total: figures(&readings, &|_| true, &states, shared),
        adapters,
        max_adapters,
        is_cut: !last.is_empty(),
    }
}

impl Sample {
    fn is(&self, name: &str) -> bool {
        self.common == common(name)
    }

    /// 1 with `_` after the engine. Triton's families have no second spelling to come before.
    fn spelling(&self) -> usize {
        usize::from(!self.name.contains(':') && !self.name.starts_with("nv_"))
    }

    fn digits(&self, label: &str) -> Option<u64> {
        digits(self.labels.get(label)?)
    }
}

fn digits(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let number: u64 = text.parse().ok()?;
    (!text.starts_with('+') && number <= 1 << 53).then_some(number)
}

type Readings = BTreeMap<&'static str, Vec<Reading>>;

fn readings(samples: &[Sample]) -> Readings {
    let mut readings = Readings::new();
    let mut add = |figure: &'static str, level, sample: &Sample, value: f64| {
        let most = match figure {
            "running" | "waiting" => f64::from(u32::MAX),
            "usage" | "rate" => 1.01,
            _ => 9_007_199_254_740_992.0,
        };
        if value <= most {
            let shard = |label| sample.digits(label).unwrap_or(0).min(0xffff);
            readings.entry(figure).or_default().push(Reading {
                rank: sample.rank,
                level,
                shard: (shard("pp_rank"), shard("tp_rank")),
                value,
            });
        }
    };
    for sample in samples {
        for (i, (figure, name, label)) in TABLE.iter().enumerate() {
            let spelled = |name: &str| {
                let has_no_total = name.starts_with("vllm:") && name.ends_with("_total");
                let short = name.strip_suffix("_total").filter(|_| has_no_total);
                sample.is(name) || short.is_some_and(|short| sample.is(short))
            };
            let has_label = label.is_none_or(|(key, value)| {
                sample
                    .labels
                    .get(key)
                    .is_some_and(|text| text == value.as_bytes())
            });
            if spelled(name) && has_label {
                let level = level(i) * 2 + sample.spelling();
                add(figure, level, sample, sample.value);
            }
        }
        for (name, level) in [
            ("vllm:cache_config_info", 0),
            ("sglang:cache_config_info", 2),
        ] {
            if !sample.is(name) {
                continue;
            }
            let level = level + sample.spelling();
            let product =
                |size, blocks| Some(sample.digits(size)? as f64 * sample.digits(blocks)? as f64);
            if let Some(tokens) = sample.digits("kv_cache_size_tokens") {
                add("capacity", level, sample, tokens as f64);
            }
            if let Some(tokens) = product("block_size", "num_gpu_blocks") {
                add("shared", level, sample, tokens);
            }
            if let Some(tokens) = product("page_size", "num_pages") {
                add("capacity", level, sample, tokens);
            }
        }
    }
    readings
}

/// The name with `_` between engine and metric.
fn common(name: &str) -> String {
    let Some((engine, rest)) = name.split_once(':') else {
        return name.to_owned();
    };
    let engines = ["vllm", "sglang", "llamacpp", "trtllm", "nv_trt_llm", "tgi"];
    match engines.contains(&engine) {
        true => format!("{engine}_{rest}"),
        false => name.to_owned(),
    }
}

/// 1 for a name that only counts if the engine's better one is not there.
fn level(row: usize) -> usize {
    let second = [
        "vllm:gpu_cache_usage_perc",
        "vllm:gpu_prefix_cache_queries_total",
        "vllm:gpu_prefix_cache_hits_total",
        "trtllm_num_requests_completed_total",
    ];
    let (_, name, label) = TABLE[row];
    usize::from(second.contains(&name) || label == Some(("request_type", "active")))
}

/// Of each rank, the series that count: first shard, best name.
fn per_rank(readings: &Readings, figure: &str) -> BTreeMap<Option<u32>, Vec<Reading>> {
    let mut ranks: BTreeMap<Option<u32>, Vec<Reading>> = BTreeMap::new();
    for reading in readings.get(figure).into_iter().flatten() {
        ranks.entry(reading.rank).or_default().push(*reading);
    }
    for readings in ranks.values_mut() {
        let best = readings
            .iter()
            .map(|reading| (reading.level, reading.shard))
            .min();
        readings.retain(|reading| Some((reading.level, reading.shard)) == best);
    }
    ranks
}

fn figures(
    readings: &Readings,
    wanted: &dyn Fn(&Reading) -> bool,
    states: &[&Sample],
    shared: Option<u64>,
) -> Figures {
    let values = |figure| {
        let ranks = per_rank(readings, figure);
        let mut of: Vec<Reading> = ranks
            .into_values()
            .flatten()
            .filter(|r| wanted(r))
            .collect();
        let best = of.iter().map(|reading| reading.level).min();
        of.retain(|reading| Some(reading.level) == best);
        of
    };
    let sum = |figure| {
        let values = values(figure);
        let sum = values
            .iter()
            .map(|reading| reading.value as u64)
            .fold(0, u64::saturating_add);
        (!values.is_empty()).then_some(sum)
    };
    let mean = |figure| {
        let values = values(figure);
        let sum: f64 = values.iter().map(|reading| reading.value.min(1.0)).sum();
        (!values.is_empty()).then(|| (sum / values.len() as f64) as f32)
    };
    let requests = |figure| sum(figure).map(|sum| sum.min(u64::from(u32::MAX)) as u32);
    let (mut blocks, mut sizes) = (
        per_rank(readings, "blocks"),
        per_rank(readings, "block tokens"),
    );
    for ranks in [&mut blocks, &mut sizes] {
        ranks.retain(|_, readings| readings.iter().any(wanted));
    }
    let by_blocks = blocks.iter().filter_map(|(rank, blocks)| {
        let tokens = sizes
            .get(rank)?
            .iter()
            .map(|size| size.value as u64)
            .max()?;
        let blocks = blocks.iter().map(|blocks| blocks.value as u64);
        Some(blocks.fold(0, u64::saturating_add).saturating_mul(tokens))
    });
    let by_blocks = by_blocks.reduce(u64::saturating_add);
    let hits = sum("hits");
    let asked = sum("misses")
        .zip(hits)
        .map(|(misses, hits)| misses.saturating_add(hits));
    let is_awake = |state: &&&Sample| state.labels["sleep_state"] == b"awake";
    let awake = states
        .iter()
        .filter(is_awake)
        .any(|state| state.value == 1.0);
    let asleep = states
        .iter()
        .any(|state| state.value == f64::from(u8::from(!is_awake(&state))));
    Figures {
        running: requests("running"),
        waiting: requests("waiting"),
        kv_usage: mean("usage"),
        prefix_queries_tokens: sum("queries").or(asked),
        prefix_hits_tokens: hits,
        prefix_hit_rate: mean("rate"),
        kv_capacity_tokens: sum("capacity").or(by_blocks).or(shared),
        finished: sum("finished"),
        generated_tokens: sum("generated"),
        is_sleeping: (awake || asleep).then_some(asleep),
    }
}

fn adapters(samples: &[Sample]) -> (Vec<Adapter>, Option<u32>) {
    let infos = samples
        .iter()
        .filter(|sample| sample.is("vllm:lora_requests_info"));
    let Some(newest) = infos.max_by(|a, b| a.value.total_cmp(&b.value)) else {
        return (Vec::new(), None);
    };
    let mut list: Vec<Adapter> = Vec::new();
    for (label, is_running) in [
        ("running_lora_adapters", true),
        ("waiting_lora_adapters", false),
    ] {
        let names = newest.labels.get(label).map_or(&b""[..], |names| names);
        for name in names.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            if name.is_empty() || name.len() > 256 {
                continue;
            }
            let Ok(text) = String::from_utf8(unescape(name)) else {
                continue;
            };
            if !list.iter().any(|adapter| adapter.name == text) {
                if list.len() == MAX_ADAPTERS {
                    continue;
                }
                list.push(Adapter {
                    name: text.clone(),
                    ..Adapter::default()
                });
            }
            for adapter in list.iter_mut().filter(|adapter| adapter.name == text) {
                adapter.is_running |= is_running;
                adapter.is_waiting |= !is_running;
            }
        }
    }
    let max = newest
        .digits("max_lora")
        .and_then(|max| u32::try_from(max).ok());
    (list, max)
}

fn unescape(text: &[u8]) -> Vec<u8> {
    match text {
        [b'\\', b'n', rest @ ..] => [b"\n".to_vec(), unescape(rest)].concat(),
        [b'\\', b'\\', rest @ ..] => [b"\\".to_vec(), unescape(rest)].concat(),
        [b'\\', b'"', rest @ ..] => [b"\"".to_vec(), unescape(rest)].concat(),
        [byte, rest @ ..] => [vec![*byte], unescape(rest)].concat(),
        [] => Vec::new(),
    }
}

/// Takes a line apart, or finds it broken.
fn sample(line: &[u8]) -> Option<Sample> {
    let line = line.trim_ascii();
    let name_end = line.iter().position(|byte| b"{ \t".contains(byte))?;
    let name = String::from_utf8(line[..name_end].to_vec()).ok()?;
    let mut rest = line[name_end..].trim_ascii_start();
    let mut labels = BTreeMap::new();
    let mut rank = None;
    if rest[0] == b'{' {
        rest = rest[1..].trim_ascii_start();
        while *rest.first()? != b'}' {
            let equals = rest.iter().position(|&byte| byte == b'=')?;
            let key = std::str::from_utf8(&rest[..equals]).ok()?.trim_ascii_end();
            if !key
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            {
                return None;
            }
            rest = rest[equals + 1..].trim_ascii_start();
            if *rest.first()? != b'"' {
                return None;
            }
            let mut end = 1;
            while *rest.get(end)? != b'"' {
                end += if rest[end] == b'\\' { 2 } else { 1 };
            }
            let value = rest[1..end].to_vec();
            if key == "engine" || key == "dp_rank" {
                rank = digits(&value)
                    .and_then(|rank| u32::try_from(rank).ok())
                    .or(rank);
            }
            labels.insert(key.to_owned(), value);
            rest = rest[end + 1..].trim_ascii_start();
            match rest.first()? {
                b',' => rest = rest[1..].trim_ascii_start(),
                b'}' => {}
                _ => return None,
            }
        }
        rest = &rest[1..];
    }
    let (value, tail) = match rest.iter().position(|&byte| byte == b'#') {
        Some(at) if rest[..at].last().is_some_and(u8::is_ascii_whitespace) => rest.split_at(at),
        _ => (rest, &b""[..]),
    };
    assert!(tail.is_empty() || tail[0] == b'#');
    let words = value
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let numbers: Option<Vec<f64>> = words.map(number).collect();
    let numbers = numbers.filter(|numbers| (1..=2).contains(&numbers.len()))?;
    // Adding nothing makes -0 the ordinary one.
    let value = numbers[0] + 0.0;
    let sample = Sample {
        common: common(&name),
        name,
        labels,
        rank,
        value,
    };
    (value.is_finite() && value >= 0.0).then_some(sample)
}

fn number(word: &[u8]) -> Option<f64> {
    let word = std::str::from_utf8(word)
        .ok()
        .filter(|word| word.len() <= 64)?;
    word.parse().ok()
}
