//! KV events as a subscriber gets them.

use zeromq::{Socket, SocketRecv, SubSocket};

use super::*;
use crate::engine::KvEventsConfig;

/// A subscriber of the engine that has heard of at least one batch, so that it misses none from here on.
async fn subscriber(engine: &Engine) -> SubSocket {
    let mut socket = SubSocket::new();
    socket.connect(engine.kv_events().unwrap()).await.unwrap();
    socket.subscribe("kv").await.unwrap();
    for attempt in 0.. {
        post(
            engine,
            "/v1/completions",
            completion(&format!("{attempt:0>64}")),
        )
        .await;
        let heard = timeout(Duration::from_millis(100), socket.recv()).await;
        if heard.is_ok() {
            return socket;
        }
        assert!(attempt < 200, "the subscription does not arrive");
    }
    unreachable!("the loop ends by itself")
}

/// The next batch: its number, its rank and its events.
async fn batch(socket: &mut SubSocket) -> (u64, u64, Vec<Value>) {
    let message = timeout(DEADLINE, socket.recv()).await.unwrap().unwrap();
    let frames: Vec<_> = message.iter().collect();
    assert_eq!(frames.len(), 3);
    assert_eq!(frames[0].as_ref(), b"kv@llama");
    let number = u64::from_be_bytes(frames[1].as_ref().try_into().unwrap());
    let payload: (f64, Vec<Value>, u64) = rmp_serde::from_slice(frames[2]).unwrap();
    (number, payload.2, payload.1)
}

async fn engine(kv_blocks: u32) -> Engine {
    let mut config = EngineConfig {
        time_scale: 0.0,
        kv_events: Some(KvEventsConfig {
            topic: "kv@llama".to_owned(),
            ..KvEventsConfig::default()
        }),
        ..EngineConfig::default()
    };
    config.params.kv_blocks = kv_blocks;
    started(config).await
}

#[tokio::test]
async fn a_prompt_is_told_once_and_its_end_hangs_on_its_beginning() {
    let engine = engine(1000).await;
    let mut socket = subscriber(&engine).await;
    let text = "0123456789abcdef".repeat(12);
    let tokens = post_json(&engine, "/tokenize", json!({"prompt": text})).await;
    post(&engine, "/v1/completions", completion(&text)).await;
    let (number, rank, events) = batch(&mut socket).await;
    assert_eq!((rank, events.len()), (0, 1));
    let first = &events[0];
    assert_eq!(first["type"], "BlockStored");
    assert_eq!(first["token_ids"], tokens["tokens"]);
    assert_eq!(
        (&first["block_size"], &first["parent_block_hash"]),
        (&json!(16), &Value::Null)
    );
    assert_eq!(first["block_hashes"].as_array().unwrap().len(), 3);
    // What is cached is not told again, and a longer prompt goes on from there.
    post(&engine, "/v1/completions", completion(&text)).await;
    post(
        &engine,
        "/v1/completions",
        completion(&(text + &"fedcba9876543210".repeat(4))),
    )
    .await;
    let (next, _, events) = batch(&mut socket).await;
    assert_eq!(next, number + 1);
    assert_eq!(events[0]["parent_block_hash"], first["block_hashes"][2]);
    assert_eq!(events[0]["block_hashes"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_gives_way_is_told_and_a_reset_with_the_next_step() {
    let engine = engine(8).await;
    let mut socket = subscriber(&engine).await;
    let prompt = |mark: &str| completion(&format!("{mark:0>16}").repeat(16));
    post(&engine, "/v1/completions", prompt("a")).await;
    post(&engine, "/v1/completions", prompt("b")).await;
    let (mut stored, mut removed) = (Vec::new(), Vec::new());
    while stored.len() < 8 {
        for event in batch(&mut socket).await.2 {
            let hashes = event["block_hashes"].as_array().unwrap().clone();
            match event["type"].as_str() {
                Some("BlockStored") => stored.extend(hashes),
                Some("BlockRemoved") => removed.extend(hashes),
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(
        removed.iter().any(|hash| stored[..4].contains(hash)),
        "{stored:?} {removed:?}"
    );
    post(&engine, "/reset_prefix_cache", json!({})).await;
    post(&engine, "/v1/completions", completion("hi")).await;
    assert_eq!(
        batch(&mut socket).await.2,
        [json!({"type": "AllBlocksCleared"})]
    );
}

#[tokio::test]
async fn sources_are_named_only_where_there_are_any() {
    let engine = engine(1000).await;
    let told: Value = serde_json::from_str(&get_text(&engine, "/kv_event_sources").await).unwrap();
    assert_eq!(told["0"]["endpoint"], engine.kv_events().unwrap());
    assert_eq!(told["0"]["topic"], "kv@llama");
    let silent = instant().await;
    assert_eq!(get_text(&silent, "/kv_event_sources").await, "{}");
}

#[tokio::test]
async fn tokens_are_those_that_the_cache_knows_for_chats_too() {
    let engine = engine(1000).await;
    let mut socket = subscriber(&engine).await;
    let messages = json!([{"role": "user", "content": "0123456789abcdef".repeat(12)}]);
    let asked = json!({"model": "llama-3-8b", "messages": messages, "max_tokens": 1});
    let tokens = post_json(&engine, "/tokenize", asked.clone()).await["tokens"].clone();
    post(&engine, "/v1/chat/completions", asked).await;
    let told = batch(&mut socket).await.2[0]["token_ids"].clone();
    let (told, tokens) = (
        told.as_array().unwrap().clone(),
        tokens.as_array().unwrap().clone(),
    );
    assert!(told.len() >= 48, "{told:?}");
    assert_eq!(told, tokens[..told.len()]);
}
