use super::*;
use crate::splice::rewrite;
use serde_json::Value;
use serde_json::json;

fn changed(body: &str, changes: &[Change]) -> Value {
    let body = rewrite(body.as_bytes(), changes).unwrap();
    serde_json::from_slice(&body).unwrap()
}

#[test]
fn a_prefill_asks_for_one_token_and_no_stream() {
    let body = r#"{"max_tokens":99,"max_completion_tokens":7,"min_tokens":5,"stream":true,
        "stream_options":{"include_usage":true},"temperature":0.50,"x":null}"#;
    let expected = json!({"max_tokens": 1, "max_completion_tokens": 1, "stream": false, "temperature": 0.5, "x": null});
    assert_eq!(changed(body, &prefill_only()), expected);
    assert_eq!(
        changed("{}", &prefill_only()),
        json!({"max_tokens": 1, "stream": false})
    );
}

#[test]
fn clients_have_no_say_in_any_spelling() {
    let body = r#"{"\u006bv_transfer_params":{"do_remote_prefill":true},"bootstrap_room":1,
        "bootstrap_host":"a","bootstrap_port":[1],"data_parallel_rank":0,"ec_transfer_params":{},
        "vllm_xargs":{"kv_transfer_params":"x","y":1},"model":"m","kv_transfer_params":null,
        "sampling_params":{"extra_args":{"kv_transfer_params":{}},"n":1}}"#;
    let changes: Vec<Change> = owned_removed().collect();
    let expected = json!({"vllm_xargs": {"y": 1}, "model": "m", "sampling_params": {"extra_args": {}, "n": 1}});
    assert_eq!(changed(body, &changes), expected);
}

#[test]
fn nixls_handle_is_taken_word_for_word() {
    let handle = r#"{ "do_remote_prefill":true, "remote_block_ids":[[1, 2]],"remote_engine_id":"e","tp_size":1.0}"#;
    let answer =
        format!(r#"{{"id":"x","kv_transfer_params":null,"kv_transfer_params": {handle} }}"#);
    assert_eq!(nixl_handle(answer.as_bytes()).as_deref(), Some(handle));
    for answer in [
        r#"{"choices":[]}"#,
        r#"{"kv_transfer_params":null}"#,
        r#"{"kv_transfer_params":{}}"#,
        r#"{"kv_transfer_params":{"do_remote_prefill":false,"remote_engine_id":"e"}}"#,
        r#"{"kv_transfer_params":{"do_remote_prefill":true}}"#,
        r#"{"kv_transfer_params":{"do_remote_prefill":true,"remote_engine_id":"e"}"#,
        r#"{"kv_transfer_params":{"do_remote_prefill":true,"remote_engine_id":"e" 1}}"#,
        r#"{"x":{"kv_transfer_params":{"do_remote_prefill":true,"remote_engine_id":"e"}}}"#,
        "",
    ] {
        assert_eq!(nixl_handle(answer.as_bytes()), None, "{answer}");
    }
}

#[test]
fn a_request_id_of_p2p_nccl_has_both_addresses() {
    let id = p2p_request_id("10.0.0.1:21001", "10.0.0.2:22001", [1, u64::MAX]);
    let expected = "___prefill_addr_10.0.0.1:21001___decode_addr_10.0.0.2:22001_\
                    0000000000000001ffffffffffffffff";
    assert_eq!(id, expected);
}

#[test]
fn mooncakes_two_sides_name_one_transfer() {
    let prefill = changed("{}", &[mooncake_prefill([0, 10])]);
    let id = "xfer-0000000000000000000000000000000a";
    let expected = json!({"do_remote_decode": true, "do_remote_prefill": false, "transfer_id": id});
    assert_eq!(prefill["kv_transfer_params"], expected);
    let decode = changed("{}", &[mooncake_decode([0, 10], "e\"1", "[::1]:8998")]);
    let expected = json!({
        "do_remote_decode": false, "do_remote_prefill": true, "transfer_id": id,
        "remote_engine_id": "e\"1", "remote_bootstrap_addr": "http://[::1]:8998",
    });
    assert_eq!(decode["kv_transfer_params"], expected);
}

#[test]
fn a_bootstrap_server_names_the_ranks() {
    let answer =
        br#"{"1":{"engine_id":"b","worker_addr":{}},"0":{"engine_id":"a"},"x":{"engine_id":"c"}}"#;
    let mut ids = engine_ids(answer).unwrap();
    ids.sort();
    assert_eq!(ids, [(0, "a".to_owned()), (1, "b".to_owned())]);
    for answer in ["", "{}", "[]", r#"{"0":{}}"#, r#"{"0":{"engine_id":""}}"#] {
        assert_eq!(engine_ids(answer.as_bytes()), None, "{answer}");
    }
}

#[test]
fn sglang_has_a_room_for_each_answer() {
    let one = changed("{}", &sglang("10.0.0.1", 8998, &[u64::MAX]));
    let expected =
        json!({"bootstrap_host": "10.0.0.1", "bootstrap_port": 8998, "bootstrap_room": i64::MAX});
    assert_eq!(one, expected);
    let two = changed("{}", &sglang("h", 1, &[2, 4]));
    let expected =
        json!({"bootstrap_host": ["h", "h"], "bootstrap_port": [1, 1], "bootstrap_room": [1, 2]});
    assert_eq!(two, expected);
}
