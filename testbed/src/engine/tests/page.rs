//! The metrics page: it parses, it has the real names, and it says what happened.

use std::collections::BTreeMap;

use super::*;

/// Names and types that routers and dashboards read.
const FAMILIES: [(&str, &str); 24] = [
    ("vllm:num_requests_running", "gauge"),
    ("vllm:num_requests_waiting", "gauge"),
    ("vllm:num_requests_waiting_by_reason", "gauge"),
    ("vllm:kv_cache_usage_perc", "gauge"),
    ("vllm:engine_sleep_state", "gauge"),
    ("vllm:cache_config_info", "gauge"),
    ("vllm:prefix_cache_queries_total", "counter"),
    ("vllm:prefix_cache_hits_total", "counter"),
    ("vllm:external_prefix_cache_queries_total", "counter"),
    ("vllm:external_prefix_cache_hits_total", "counter"),
    ("vllm:num_preemptions_total", "counter"),
    ("vllm:prompt_tokens_total", "counter"),
    ("vllm:prompt_tokens_by_source_total", "counter"),
    ("vllm:prompt_tokens_cached_total", "counter"),
    ("vllm:generation_tokens_total", "counter"),
    ("vllm:request_success_total", "counter"),
    ("vllm:admission_rejections_total", "counter"),
    ("vllm:iteration_tokens_total", "histogram"),
    ("vllm:time_to_first_token_seconds", "histogram"),
    ("vllm:inter_token_latency_seconds", "histogram"),
    ("vllm:e2e_request_latency_seconds", "histogram"),
    ("vllm:request_prompt_tokens", "histogram"),
    ("vllm:request_generation_tokens", "histogram"),
    ("http_requests_total", "counter"),
];

/// Type of each family and value of each series; panics on a line that does not parse.
fn parsed(page: &str) -> (BTreeMap<String, String>, BTreeMap<String, f64>) {
    let (mut families, mut series) = (BTreeMap::new(), BTreeMap::new());
    for line in page.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap();
            assert!(
                families.insert(name.to_owned(), kind.to_owned()).is_none(),
                "{name} twice"
            );
        } else if !line.starts_with("# HELP ") {
            let (key, value) = line.rsplit_once(' ').unwrap();
            let is_bare = key == "process_start_time_seconds";
            assert!(is_bare || key.ends_with('}') && key.contains('{'), "{line}");
            assert!(
                series
                    .insert(key.to_owned(), value.parse().unwrap())
                    .is_none(),
                "{key} twice"
            );
        }
    }
    (families, series)
}

fn own(name: &str, extra: &str) -> String {
    format!("{name}{{engine=\"0\",model_name=\"llama-3-8b\"{extra}}}")
}

#[tokio::test]
async fn the_page_parses_and_counts_what_was_done() {
    let engine = instant().await;
    let prompt = "0123456789abcdef".repeat(25);
    for _ in 0..2 {
        post_json(&engine, "/v1/completions", completion(&prompt)).await;
    }
    let (families, series) = parsed(&get_text(&engine, "/metrics").await);
    for (name, kind) in FAMILIES {
        assert_eq!(families.get(name).map(String::as_str), Some(kind), "{name}");
    }
    for (name, extra, want) in [
        ("vllm:num_requests_running", "", 0.0),
        (
            "vllm:num_requests_waiting_by_reason",
            ",reason=\"capacity\"",
            0.0,
        ),
        ("vllm:engine_sleep_state", ",sleep_state=\"awake\"", 1.0),
        ("vllm:prefix_cache_queries_total", "", 200.0),
        ("vllm:prefix_cache_hits_total", "", 96.0),
        ("vllm:prompt_tokens_total", "", 200.0),
        (
            "vllm:prompt_tokens_by_source_total",
            ",source=\"local_compute\"",
            104.0,
        ),
        ("vllm:generation_tokens_total", "", 8.0),
        (
            "vllm:request_success_total",
            ",finished_reason=\"length\"",
            2.0,
        ),
        ("vllm:time_to_first_token_seconds_count", "", 2.0),
        ("vllm:inter_token_latency_seconds_count", "", 6.0),
        ("vllm:request_prompt_tokens_bucket", ",le=\"100.0\"", 2.0),
        ("vllm:request_prompt_tokens_bucket", ",le=\"50.0\"", 0.0),
        ("vllm:request_generation_tokens_sum", "", 8.0),
    ] {
        assert_eq!(series.get(&own(name, extra)), Some(&want), "{name}{extra}");
    }
    let http = "http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"2xx\"}";
    assert_eq!(series.get(http), Some(&2.0));
    let info = series
        .keys()
        .find(|key| key.starts_with("vllm:cache_config_info{"))
        .unwrap();
    assert!(
        info.contains("block_size=\"16\"") && info.contains("num_gpu_blocks=\"25000\""),
        "{info}"
    );
}

#[tokio::test]
async fn requests_in_the_engine_show_in_the_gauges() {
    let engine = frozen().await;
    let single = json!({"prompt": "x".repeat(4000), "max_tokens": 1});
    let addr = url(&engine, "/v1/completions");
    let request = tokio::spawn(Client::new().post(addr).json(&single).send());
    until("the request runs", || engine.stats().running == 1).await;
    let (_, series) = parsed(&get_text(&engine, "/metrics").await);
    assert_eq!(series[&own("vllm:num_requests_running", "")], 1.0);
    assert_eq!(get_text(&engine, "/load").await, r#"{"server_load":1}"#);
    request.abort();
}
