//! The golden vectors inside a wasm engine: 32-bit sizes, SIMD hashing, no clock and no randomness.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]
#![cfg(target_arch = "wasm32")]

mod vectors;

#[wasm_bindgen_test::wasm_bindgen_test]
fn the_format_is_the_same_on_wasm32() {
    assert_eq!(vectors::computed(), vectors::FIXED);
}

#[wasm_bindgen_test::wasm_bindgen_test]
fn a_metrics_page_reads_the_same_on_wasm32() {
    use warmpath_core::stats::{EngineStats, Names};

    let page = include_bytes!("fixtures/metrics/vllm-0.10.txt");
    let stats = EngineStats::read(page, &Names::default());
    assert_eq!(stats.total.running, Some(21));
    assert_eq!(stats.total.kv_usage, Some(0.625));
    assert_eq!(stats.total.prefix_queries_tokens, Some(1_572_864));
    assert_eq!(stats.total.kv_capacity_tokens, Some(880_000));
    assert_eq!(stats.ranks.len(), 2);
    let absurd = b"tgi_request_success 9007199254740992\nvllm:num_requests_running 4294967296\n";
    let stats = EngineStats::read(absurd, &Names::default());
    assert_eq!(stats.total.finished, Some(1 << 53));
    assert_eq!(stats.total.running, None);
}
