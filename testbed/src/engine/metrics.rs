//! `/metrics`: vLLM 0.32's names, labels and types, fed by the engine model.
//!
//! One idea: the page is a list of families, each written by one call. Only families that this
//! engine can feed truthfully are there. Times are those that passed, whatever the time scale.
//! Cost: O(families) a page, O(log buckets) a count.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::clock::Sleep;
use super::exposition::Page;
use super::histogram::{
    CHOICES, FIRST_TOKEN_S, Histogram, PER_TOKEN_S, REQUEST_S, REQUEST_TOKENS, STEP_TOKENS,
};
use crate::model::{ModelParams, Stats};

/// How a request ended, as `finished_reason` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The model ended its answer.
    Stop,
    /// The answer has as many tokens as the request allows.
    Length,
}

/// What the model says at one moment.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    /// Gauges and counters of the model.
    pub(super) stats: Stats,
    /// Sleep state.
    pub(super) sleep: Sleep,
    /// Size of the engine.
    pub(super) params: ModelParams,
}

impl Snapshot {
    /// Share of the KV blocks that live requests keep, 0 to 1.
    pub(super) fn kv_usage(&self) -> f64 {
        f64::from(self.stats.kv_used_blocks) / f64::from(self.stats.kv_blocks.max(1))
    }
}

/// What was counted outside of the model.
#[derive(Debug)]
pub(super) struct Meters {
    /// Requests turned away because the queue was full.
    pub(super) rejected: u64,
    created_unix_s: f64,
    stops: u64,
    lengths: u64,
    steps: Histogram,
    first_token: Histogram,
    next_token: Histogram,
    per_token: Histogram,
    request: Histogram,
    prompt: Histogram,
    computed: Histogram,
    generation: Histogram,
    choices: Histogram,
    max_tokens: Histogram,
    http: BTreeMap<(&'static str, String, u16), u64>,
}

impl Default for Meters {
    fn default() -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            rejected: 0,
            created_unix_s: now.as_secs_f64(),
            stops: 0,
            lengths: 0,
            steps: Histogram::new(STEP_TOKENS),
            first_token: Histogram::new(FIRST_TOKEN_S),
            next_token: Histogram::new(PER_TOKEN_S),
            per_token: Histogram::new(PER_TOKEN_S),
            request: Histogram::new(REQUEST_S),
            prompt: Histogram::new(REQUEST_TOKENS),
            computed: Histogram::new(REQUEST_TOKENS),
            generation: Histogram::new(REQUEST_TOKENS),
            choices: Histogram::new(CHOICES),
            max_tokens: Histogram::new(REQUEST_TOKENS),
            http: BTreeMap::new(),
        }
    }
}

impl Meters {
    /// A step computed this many tokens.
    pub(super) fn step(&mut self, tokens: usize) {
        self.steps.observe(tokens as f64);
    }

    /// A request got its first token.
    pub(super) fn first_token(&mut self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    /// A request got a further token.
    pub(super) fn next_token(&mut self, after: Duration) {
        self.next_token.observe(after.as_secs_f64());
    }

    /// A request is complete; `prompt` is its length and how much of it was cached.
    pub(super) fn finished(
        &mut self,
        ending: Ending,
        prompt: (u32, u32),
        output_tokens: u32,
        whole: Duration,
        decoding: Duration,
    ) {
        match ending {
            Ending::Stop => self.stops += 1,
            Ending::Length => self.lengths += 1,
        }
        let (prompt_tokens, cached_tokens) = prompt;
        let decoded = f64::from(output_tokens.saturating_sub(1).max(1));
        self.request.observe(whole.as_secs_f64());
        self.per_token.observe(decoding.as_secs_f64() / decoded);
        self.prompt.observe(f64::from(prompt_tokens));
        self.computed
            .observe(f64::from(prompt_tokens - cached_tokens.min(prompt_tokens)));
        self.generation.observe(f64::from(output_tokens));
        self.choices.observe(1.0);
        self.max_tokens.observe(f64::from(output_tokens));
    }

    /// An HTTP answer was started.
    pub(super) fn http(&mut self, handler: &'static str, method: &str, status: u16) {
        let key = (handler, method.to_owned(), status / 100);
        *self.http.entry(key).or_default() += 1;
    }
}

/// The whole page of one data-parallel rank of an engine that serves `model`.
pub(super) fn page(now: &Snapshot, meters: &Meters, model: &str, rank: usize) -> String {
    let model = model.replace('\\', "\\\\").replace('"', "\\\"");
    let own = format!("engine=\"{rank}\",model_name=\"{model}\"");
    let mut page = Page::new(own, meters.created_unix_s);
    if rank == 0 {
        process(&mut page, meters);
    }
    load(&mut page, now);
    work(&mut page, now, meters);
    histograms(&mut page, meters);
    cache_config(&mut page, &now.params, rank);
    if rank == 0 {
        rejections(&mut page, meters, &model);
        http(&mut page, meters);
    }
    page.text()
}

fn load(page: &mut Page, now: &Snapshot) {
    let stats = &now.stats;
    let (running, waiting) = (f64::from(stats.running), f64::from(stats.waiting));
    page.gauge(
        "vllm:num_requests_running",
        "Number of requests in model execution batches.",
        &[("", running)],
    );
    page.gauge(
        "vllm:num_requests_waiting",
        "Number of requests waiting to be processed.",
        &[("", waiting)],
    );
    page.gauge(
        "vllm:num_requests_waiting_by_reason",
        "Number of waiting requests by reason.",
        &[
            ("reason=\"capacity\"", waiting),
            ("reason=\"deferred\"", 0.0),
        ],
    );
    let state = |sleep| if now.sleep == sleep { 1.0 } else { 0.0 };
    page.gauge(
        "vllm:engine_sleep_state",
        "Engine sleep state; awake = 1 means the engine is awake.",
        &[
            ("sleep_state=\"awake\"", state(Sleep::Awake)),
            ("sleep_state=\"weights_offloaded\"", state(Sleep::Offloaded)),
            ("sleep_state=\"discard_all\"", state(Sleep::Discarded)),
        ],
    );
    page.gauge(
        "vllm:kv_cache_usage_perc",
        "KV-cache usage. 1 means 100 percent usage.",
        &[("", now.kv_usage())],
    );
}

fn work(page: &mut Page, now: &Snapshot, meters: &Meters) {
    let stats = &now.stats;
    let hits = stats.prefix_hits_tokens;
    let sent = stats.external_hits_tokens;
    let computed = stats.prompt_tokens.saturating_sub(hits + sent);
    let queries = stats.prefix_queries_tokens;
    page.counter(
        "vllm:prefix_cache_queries",
        "Prefix cache queries, in tokens.",
        &[("", queries)],
    );
    page.counter(
        "vllm:prefix_cache_hits",
        "Prefix cache hits, in tokens.",
        &[("", hits)],
    );
    page.counter(
        "vllm:external_prefix_cache_queries",
        "Prefix cache queries to a KV connector, in tokens.",
        &[("", stats.external_queries_tokens)],
    );
    page.counter(
        "vllm:external_prefix_cache_hits",
        "Prefix cache hits of a KV connector, in tokens.",
        &[("", sent)],
    );
    page.counter(
        "vllm:num_preemptions",
        "Cumulative number of preemptions.",
        &[("", stats.preemptions)],
    );
    page.counter(
        "vllm:prompt_tokens",
        "Number of prefill tokens processed.",
        &[("", stats.prompt_tokens)],
    );
    page.counter(
        "vllm:prompt_tokens_by_source",
        "Number of prompt tokens by source.",
        &[
            ("source=\"local_compute\"", computed),
            ("source=\"local_cache_hit\"", hits),
            ("source=\"external_kv_transfer\"", sent),
        ],
    );
    page.counter(
        "vllm:prompt_tokens_cached",
        "Number of cached prompt tokens.",
        &[("", hits)],
    );
    page.counter(
        "vllm:generation_tokens",
        "Number of generation tokens processed.",
        &[("", stats.generation_tokens)],
    );
    page.counter(
        "vllm:request_success",
        "Count of successfully processed requests.",
        &[
            ("finished_reason=\"stop\"", meters.stops),
            ("finished_reason=\"length\"", meters.lengths),
            ("finished_reason=\"abort\"", 0),
            ("finished_reason=\"error\"", 0),
            ("finished_reason=\"repetition\"", 0),
        ],
    );
}

fn histograms(page: &mut Page, meters: &Meters) {
    let families = [
        (
            "vllm:iteration_tokens_total",
            "Tokens per engine step.",
            &meters.steps,
        ),
        (
            "vllm:time_to_first_token_seconds",
            "Time to first token in seconds.",
            &meters.first_token,
        ),
        (
            "vllm:inter_token_latency_seconds",
            "Inter-token latency in seconds.",
            &meters.next_token,
        ),
        (
            "vllm:request_time_per_output_token_seconds",
            "Time per output token of a request in seconds.",
            &meters.per_token,
        ),
        (
            "vllm:e2e_request_latency_seconds",
            "End to end request latency in seconds.",
            &meters.request,
        ),
        (
            "vllm:request_prompt_tokens",
            "Prefill tokens of a request.",
            &meters.prompt,
        ),
        (
            "vllm:request_generation_tokens",
            "Generation tokens of a request.",
            &meters.generation,
        ),
        (
            "vllm:request_prefill_kv_computed_tokens",
            "New KV tokens computed in prefill.",
            &meters.computed,
        ),
        (
            "vllm:request_params_n",
            "The n request parameter.",
            &meters.choices,
        ),
        (
            "vllm:request_params_max_tokens",
            "The max_tokens request parameter.",
            &meters.max_tokens,
        ),
    ];
    for (name, help, histogram) in families {
        page.histogram(name, help, histogram);
    }
}

/// What the client library tells of the process.
fn process(page: &mut Page, meters: &Meters) {
    let name = "process_start_time_seconds";
    let help = "Start time of the process since unix epoch in seconds.";
    page.head(name, help, "gauge");
    page.bare(name, meters.created_unix_s);
}

/// The one family of the model without an engine label.
fn rejections(page: &mut Page, meters: &Meters, model: &str) {
    let name = "vllm:admission_rejections_total";
    page.head(
        name,
        "Admissions rejected by a queue limit, by reason.",
        "counter",
    );
    for (reason, count) in [
        ("max_num_queued_reqs", meters.rejected),
        ("max_num_queued_tokens", 0),
    ] {
        let labels = format!("model_name=\"{model}\",reason=\"{reason}\"");
        page.sample(name, &labels, count as f64);
    }
}

fn cache_config(page: &mut Page, params: &ModelParams, rank: usize) {
    let labels = format!(
        "block_size=\"{}\",cache_dtype=\"auto\",enable_prefix_caching=\"True\",engine=\"{rank}\",\
         gpu_memory_utilization=\"0.92\",kv_cache_size_tokens=\"{}\",num_cpu_blocks=\"None\",\
         num_gpu_blocks=\"{}\",num_gpu_blocks_override=\"None\",prefix_caching_hash_algo=\"sha256\"",
        params.block_tokens,
        params.kv_tokens(),
        params.kv_blocks,
    );
    let name = "vllm:cache_config_info";
    page.head(name, "Information of the LLMEngine CacheConfig", "gauge");
    page.sample(name, &labels, 1.0);
}

fn http(page: &mut Page, meters: &Meters) {
    let name = "http_requests_total";
    page.head(
        name,
        "Total number of requests by method, status and handler.",
        "counter",
    );
    for ((handler, method, class), count) in &meters.http {
        let labels = format!("handler=\"{handler}\",method=\"{method}\",status=\"{class}xx\"");
        page.sample(name, &labels, *count as f64);
    }
}
