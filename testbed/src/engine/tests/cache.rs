//! The prefix cache, seen from outside.

use super::*;

async fn cached(engine: &Engine, body: Value) -> u64 {
    let answer = post_json(engine, "/v1/completions", body).await;
    answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .unwrap()
}

/// 100 tokens: six whole blocks and four tokens.
fn long() -> String {
    "0123456789abcdef".repeat(25)
}

#[tokio::test]
async fn the_second_identical_and_an_extended_prompt_hit_whole_blocks() {
    let engine = instant().await;
    assert_eq!(cached(&engine, completion(&long())).await, 0);
    assert_eq!(cached(&engine, completion(&long())).await, 96);
    assert_eq!(
        cached(&engine, completion(&(long() + &" and so on".repeat(20)))).await,
        96
    );
    assert_eq!(
        cached(&engine, completion(&format!("x{}", long()))).await,
        0
    );
    let log: Vec<_> = engine.log().iter().map(|seen| seen.cached_tokens).collect();
    assert_eq!(log, [Some(0), Some(96), Some(96), Some(0)]);
    assert_eq!(engine.stats().prefix_hits_tokens, 192);
}

#[tokio::test]
async fn a_conversation_hits_its_former_turns_also_when_streamed() {
    let engine = instant().await;
    let user = |text: &str| json!({"role": "user", "content": text});
    let first = json!({"messages": [user(&long())], "max_tokens": 2});
    let answer = post_json(&engine, "/v1/chat/completions", first).await;
    let reply = answer["choices"][0]["message"].clone();
    let second = json!({"messages": [user(&long()), reply, user("more")], "max_tokens": 2,
        "stream": true, "stream_options": {"include_usage": true}});
    let chunks = chunks(&engine, "/v1/chat/completions", second).await;
    let usage = &chunks.last().unwrap()["usage"];
    // The 400 bytes and the 50 of the template, in whole blocks of 64.
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 112);
    assert_eq!(engine.log()[1].cached_tokens, Some(112));
}

#[tokio::test]
async fn ids_hit_the_blocks_of_the_text_they_stand_for() {
    let engine = instant().await;
    let ids = post_json(&engine, "/tokenize", json!({"prompt": long()})).await["tokens"].clone();
    cached(&engine, completion(&long())).await;
    assert_eq!(
        cached(&engine, json!({"prompt": ids, "max_tokens": 1})).await,
        96
    );
}

#[tokio::test]
async fn a_salt_a_reset_and_a_sleep_separate() {
    let engine = instant().await;
    let salted = json!({"prompt": long(), "cache_salt": "tenant"});
    cached(&engine, completion(&long())).await;
    assert_eq!(cached(&engine, salted.clone()).await, 0);
    assert_eq!(cached(&engine, salted).await, 96);
    post(&engine, "/reset_prefix_cache", json!({})).await;
    assert_eq!(cached(&engine, completion(&long())).await, 0);
    post(&engine, "/sleep?level=1", json!({})).await;
    assert_eq!(
        get_text(&engine, "/is_sleeping").await,
        r#"{"is_sleeping":true}"#
    );
    let (held, ()) = tokio::join!(cached(&engine, completion(&long())), async {
        until("a request waits", || engine.stats().waiting == 1).await;
        post(&engine, "/wake_up", json!({})).await;
    });
    assert_eq!(held, 0);
    assert_eq!(
        get_text(&engine, "/is_sleeping").await,
        r#"{"is_sleeping":false}"#
    );
}

#[tokio::test]
async fn several_prompts_add_up_and_n_counts_a_prompt_once() {
    let engine = instant().await;
    cached(&engine, completion(&long())).await;
    let body = json!({"prompt": [long(), "short"], "n": 3, "max_tokens": 1});
    assert_eq!(cached(&engine, body).await, 96);
}
