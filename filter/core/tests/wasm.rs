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

#[wasm_bindgen_test::wasm_bindgen_test]
fn a_body_is_changed_the_same_way_on_wasm32() {
    use warmpath_core::disaggregation::{nixl_handle, nixl_prefill, owned_removed, prefill_only};
    use warmpath_core::splice::{Change, rewrite};

    let prompt = "\\u00e9 }{\\\"".repeat(40);
    let body = format!(
        r#"{{ "stream":true, "prompt" : "{prompt}","x":1.0E5,"\u006bv_transfer_params":{{"a":[1]}}, "n":1 }}"#
    );
    let removed: Vec<Change> = owned_removed().collect();
    let changes = [&removed[..], &prefill_only()[..], &[nixl_prefill()]].concat();
    let changed = rewrite(body.as_bytes(), &changes).expect("an object");
    let expected = format!(
        r#"{{ "prompt" : "{prompt}","x":1.0E5, "n":1,"max_tokens":1,"stream":false,"kv_transfer_params":{{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}} }}"#
    );
    assert_eq!(String::from_utf8_lossy(&changed), expected);
    let handle = r#"{"do_remote_prefill":true,"remote_engine_id":"e","remote_block_ids":[1, 2]}"#;
    let answer = format!(r#"{{"choices":[],"kv_transfer_params" : {handle}}}"#);
    assert_eq!(nixl_handle(answer.as_bytes()).as_deref(), Some(handle));
}
