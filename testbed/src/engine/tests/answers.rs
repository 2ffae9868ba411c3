//! The shapes: what each path answers, whole and streamed.

use super::*;

fn chat(extra: Value) -> Value {
    let mut body =
        json!({"model": "llama-3-8b", "messages": [{"role": "user", "content": "hello"}]});
    body.as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn a_chat_stream_has_role_text_finish_usage_done_in_this_order() {
    let engine = instant().await;
    let whole = post_json(
        &engine,
        "/v1/chat/completions",
        chat(json!({"max_tokens": 3})),
    )
    .await;
    let options =
        json!({"max_tokens": 3, "stream": true, "stream_options": {"include_usage": true}});
    let chunks = chunks(&engine, "/v1/chat/completions", chat(options)).await;
    assert_eq!(chunks.len(), 1 + 3 + 1);
    assert_eq!(
        chunks[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["object"] == "chat.completion.chunk")
    );
    let reasons: Vec<&Value> = chunks[..4]
        .iter()
        .map(|c| &c["choices"][0]["finish_reason"])
        .collect();
    assert_eq!(
        reasons,
        [&Value::Null, &Value::Null, &Value::Null, &json!("length")]
    );
    let text: String = chunks[1..4]
        .iter()
        .map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap())
        .collect();
    assert_eq!(whole["choices"][0]["message"]["content"], text.as_str());
    assert_eq!(chunks[4]["choices"], json!([]));
    let usage = &chunks[4]["usage"];
    assert_eq!(usage["completion_tokens"], 3);
    assert_eq!(usage["prompt_tokens"], whole["usage"]["prompt_tokens"]);
    assert_eq!(
        usage["prompt_tokens_details"]["cached_tokens"],
        whole["usage"]["prompt_tokens_details"]["cached_tokens"]
    );
}

#[tokio::test]
async fn without_include_usage_no_chunk_has_usage_and_with_continuous_all_have() {
    let engine = instant().await;
    let plain = chunks(
        &engine,
        "/v1/chat/completions",
        chat(json!({"stream": true, "max_tokens": 2})),
    )
    .await;
    assert!(plain.iter().all(|chunk| chunk["usage"].is_null()));
    let options = json!({"stream": true, "max_tokens": 2,
        "stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let counted = chunks(&engine, "/v1/chat/completions", chat(options)).await;
    let so_far: Vec<u64> = counted
        .iter()
        .map(|c| c["usage"]["completion_tokens"].as_u64().unwrap())
        .collect();
    assert_eq!(so_far, [0, 1, 2, 2]);
}

#[tokio::test]
async fn every_prompt_and_every_n_is_a_choice() {
    let engine = instant().await;
    let mut body = json!({"prompt": ["one", "two"], "n": 2, "max_tokens": 3});
    let whole = post_json(&engine, "/v1/completions", body.clone()).await;
    let texts: Vec<&str> = (0..4)
        .map(|i| whole["choices"][i]["text"].as_str().unwrap())
        .collect();
    assert_eq!(whole["usage"]["completion_tokens"], 12);
    assert_eq!(whole["usage"]["prompt_tokens"], 2);
    body["stream"] = json!(true);
    let mut streamed = vec![String::new(); 4];
    for chunk in chunks(&engine, "/v1/completions", body).await {
        let choice = &chunk["choices"][0];
        streamed[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
    }
    assert_eq!(streamed, texts);
    assert_ne!(texts[0], texts[1]);
}

#[tokio::test]
async fn a_request_without_a_limit_ends_by_itself() {
    let engine = instant().await;
    let answer = post_json(&engine, "/v1/chat/completions", chat(json!({}))).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 16);
}

#[tokio::test]
async fn responses_whole_and_streamed() {
    let engine = instant().await;
    let body = json!({"input": "hi", "max_output_tokens": 2});
    let whole = post_json(&engine, "/v1/responses", body).await;
    assert_eq!(
        (&whole["object"], &whole["status"]),
        (&json!("response"), &json!("incomplete"))
    );
    assert_eq!(whole["usage"]["output_tokens"], 2);
    let events = events(
        &engine,
        "/v1/responses",
        json!({"input": "hi", "max_output_tokens": 2, "stream": true}),
    )
    .await;
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]
    );
    let parsed: Vec<Value> = events
        .iter()
        .map(|(_, data)| serde_json::from_str(data).unwrap())
        .collect();
    assert!(
        parsed
            .iter()
            .enumerate()
            .all(|(at, event)| event["sequence_number"] == at)
    );
    assert_eq!(parsed[9]["response"]["output"], whole["output"]);
}

#[tokio::test]
async fn messages_whole_and_streamed() {
    let engine = instant().await;
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2});
    let whole = post_json(&engine, "/v1/messages", body.clone()).await;
    assert_eq!(
        (&whole["type"], &whole["stop_reason"]),
        (&json!("message"), &json!("max_tokens"))
    );
    assert_eq!(whole["usage"]["cache_read_input_tokens"], 0);
    let mut body = body;
    body["stream"] = json!(true);
    let events = events(&engine, "/v1/messages", body).await;
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
            "",
        ]
    );
    assert!(events[..7].iter().all(|(name, data)| {
        let event: Value = serde_json::from_str(data).unwrap();
        event["type"] == name.as_str()
    }));
}

#[tokio::test]
async fn generate_answers_in_its_own_shape() {
    let engine = instant().await;
    let body = json!({"text": "once", "sampling_params": {"max_new_tokens": 3}});
    let whole = post_json(&engine, "/generate", body).await;
    assert_eq!(whole["meta_info"]["completion_tokens"], 3);
    let streamed = chunks(
        &engine,
        "/generate",
        json!({"text": "once", "sampling_params": {"max_new_tokens": 3}, "stream": true}),
    )
    .await;
    assert_eq!(streamed.len(), 3);
    assert_eq!(streamed[2]["text"], whole["text"]);
}

#[tokio::test]
async fn pooling_paths_answer_one_item_for_each_input() {
    let engine = instant().await;
    let embeddings = post_json(
        &engine,
        "/v1/embeddings",
        json!({"input": ["a", "b", "a"], "dimensions": 8}),
    )
    .await;
    let vector = |at: usize| embeddings["data"][at]["embedding"].clone();
    assert_eq!(vector(0).as_array().unwrap().len(), 8);
    assert_eq!(vector(0), vector(2));
    assert_ne!(vector(0), vector(1));
    let base64 = post_json(
        &engine,
        "/v1/embeddings",
        json!({"input": "a", "dimensions": 8, "encoding_format": "base64"}),
    )
    .await;
    assert_eq!(base64["data"][0]["embedding"].as_str().unwrap().len(), 44);
    let rerank = post_json(
        &engine,
        "/v1/rerank",
        json!({"query": "q", "documents": ["a", "b", "c"], "top_n": 2}),
    )
    .await;
    let results = rerank["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    assert!(results[0]["relevance_score"].as_f64() >= results[1]["relevance_score"].as_f64());
    let score = post_json(
        &engine,
        "/v1/score",
        json!({"text_1": "q", "text_2": ["a", "b"]}),
    )
    .await;
    assert_eq!(score["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn tokens_convert_both_ways() {
    let engine = instant().await;
    let there = post_json(
        &engine,
        "/tokenize",
        json!({"prompt": "The quick brown fox", "return_token_strs": true}),
    )
    .await;
    assert_eq!(
        (&there["count"], &there["token_strs"][1]),
        (&json!(5), &json!("quic"))
    );
    let back = post_json(&engine, "/detokenize", json!({"tokens": there["tokens"]})).await;
    assert_eq!(back["prompt"], "The quick brown fox");
    let turns = post_json(
        &engine,
        "/tokenize",
        json!({"messages": [{"role": "user", "content": "hello"}]}),
    )
    .await;
    let answer = post_json(
        &engine,
        "/v1/chat/completions",
        chat(json!({"max_tokens": 1})),
    )
    .await;
    assert_eq!(turns["count"], answer["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn errors_have_the_statuses_and_shapes_of_the_real_engine() {
    let engine = instant().await;
    let long = "x".repeat(4 * 131_073);
    for (path, body, status, kind, param) in [
        (
            "/v1/completions",
            json!({"model": "nope", "prompt": "x", "stream": true}),
            404,
            "NotFoundError",
            json!("model"),
        ),
        (
            "/v1/chat/completions",
            json!({"model": "llama-3-8b"}),
            400,
            "Bad Request",
            json!("body.messages"),
        ),
        (
            "/v1/completions",
            json!({"prompt": "x", "max_tokens": -4}),
            400,
            "BadRequestError",
            json!("max_tokens"),
        ),
        (
            "/v1/completions",
            json!({"prompt": long}),
            400,
            "BadRequestError",
            json!("input_tokens"),
        ),
    ] {
        let answer = post(&engine, path, body).await;
        assert_eq!(answer.status(), status);
        let error = answer.json::<Value>().await.unwrap()["error"].clone();
        assert_eq!(
            (&error["type"], &error["param"], &error["code"]),
            (&json!(kind), &param, &json!(status))
        );
    }
    let client = Client::new();
    let broken = client
        .post(url(&engine, "/v1/completions"))
        .header("content-type", "application/json")
        .body("{\"model\":");
    let untyped = client.post(url(&engine, "/v1/completions")).body("{}");
    for request in [broken, untyped] {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 400);
        assert_eq!(
            answer.json::<Value>().await.unwrap()["error"]["type"],
            "Bad Request"
        );
    }
    let unknown = client
        .get(url(&engine, "/v1/nothing"))
        .send()
        .await
        .unwrap();
    assert_eq!(unknown.status(), 404);
    assert_eq!(
        unknown.json::<Value>().await.unwrap(),
        json!({"detail": "Not Found"})
    );
    let wrong_method = client
        .get(url(&engine, "/v1/completions"))
        .send()
        .await
        .unwrap();
    assert_eq!(
        (
            wrong_method.status().as_u16(),
            wrong_method.headers()["allow"].to_str().unwrap()
        ),
        (405, "POST")
    );
    assert_eq!(
        wrong_method.json::<Value>().await.unwrap(),
        json!({"detail": "Method Not Allowed"})
    );
}

#[tokio::test]
async fn the_request_id_comes_back_and_names_the_answer() {
    let engine = instant().await;
    let sent = Client::new()
        .post(url(&engine, "/v1/completions"))
        .header("x-request-id", "my-rid-1")
        .header("endpoint-load-metrics-format", "text")
        .json(&completion("x"));
    let answer = sent.send().await.unwrap();
    assert_eq!(answer.headers()["x-request-id"], "my-rid-1");
    let load = answer.headers()["endpoint-load-metrics"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(
        load.starts_with("TEXT named_metrics.num_requests_waiting=0.0, "),
        "{load}"
    );
    assert_eq!(answer.json::<Value>().await.unwrap()["id"], "cmpl-my-rid-1");
    let other = post(&engine, "/v1/completions", completion("x")).await;
    assert_eq!(other.headers()["x-request-id"].len(), 32);
}

#[tokio::test]
async fn the_small_paths_answer() {
    let config = EngineConfig {
        models: vec!["real".to_owned(), "alias".to_owned()],
        time_scale: 0.0,
        ..EngineConfig::default()
    };
    let engine = started(config).await;
    assert_eq!(get_text(&engine, "/health").await, "");
    assert_eq!(get_text(&engine, "/ping").await, "");
    assert_eq!(
        get_text(&engine, "/version").await,
        r#"{"version":"0.32.0"}"#
    );
    assert_eq!(get_text(&engine, "/load").await, r#"{"server_load":0}"#);
    let models: Value = serde_json::from_str(&get_text(&engine, "/v1/models").await).unwrap();
    assert_eq!(
        (&models["data"][1]["id"], &models["data"][1]["root"]),
        (&json!("alias"), &json!("real"))
    );
    let answer = post_json(
        &engine,
        "/v1/completions",
        json!({"model": "alias", "prompt": "x"}),
    )
    .await;
    assert_eq!(answer["model"], "alias");
}

#[tokio::test]
async fn a_large_body_over_http2_and_a_raw_header_arrive_unchanged() {
    let engine = instant().await;
    let client = Client::builder().http2_prior_knowledge().build().unwrap();
    let header = reqwest::header::HeaderValue::from_bytes(b"a\xffb").unwrap();
    let image = format!("data:image/png;base64,{}", "A".repeat(8 << 20));
    let body = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}]}]});
    let request = client
        .post(url(&engine, "/v1/chat/completions"))
        .header("x-session-id", header);
    let answer = timeout(DEADLINE, request.json(&body).send())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer.status(), 200);
    let seen = &engine.log()[0];
    let sent = serde_json::to_vec(&body).unwrap();
    assert_eq!(
        (seen.http2, seen.header("x-session-id"), seen.body_bytes),
        (true, Some(&b"a\xffb"[..]), sent.len())
    );
    assert_eq!(seen.body_xxh3, xxhash_rust::xxh3::xxh3_64(&sent));
    assert!(seen.prompt_tokens < 400, "{}", seen.prompt_tokens);
}
