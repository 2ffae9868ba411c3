//! Over real sockets, fed by real engines.

use serde_json::{Value, json};

use super::*;
use crate::engine::{Engine, EngineConfig, KvEventsConfig};

async fn engine(controller: &Controller, name: &str, kv_blocks: u32) -> Engine {
    let mut config = EngineConfig {
        name: name.to_owned(),
        time_scale: 0.0,
        kv_events: Some(KvEventsConfig {
            listen: None,
            tap: Some(controller.tap(name, Ipv4Addr::LOCALHOST.into())),
            ..KvEventsConfig::default()
        }),
        ..EngineConfig::default()
    };
    config.params.kv_blocks = kv_blocks;
    Engine::start(config).await.unwrap()
}

async fn post(address: SocketAddr, path: &str, body: Value) -> reqwest::Result<Value> {
    let url = format!("http://{address}{path}");
    let sent = reqwest::Client::new().post(url).json(&body).send().await?;
    sent.json().await
}

/// Has an engine complete a prompt; gives its tokens and how many of them were cached.
async fn ask(engine: &Engine, prompt: &str) -> (Value, u64) {
    let tokens = post(engine.addr(), "/tokenize", json!({"prompt": prompt})).await;
    let body = json!({"prompt": prompt, "max_tokens": 1});
    let answer = post(engine.addr(), "/v1/completions", body).await.unwrap();
    let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    (tokens.unwrap()["tokens"].clone(), cached.unwrap())
}

async fn lookup(controller: &Controller, tokens: &Value) -> Value {
    let found = post(controller.address(), "/lookup", json!({"tokens": tokens})).await;
    found.unwrap()["layout_info"].clone()
}

/// 25 blocks of 16 tokens and two tokens.
fn prompt(mark: &str) -> String {
    format!("{mark:0>8}").repeat(200) + "and more"
}

#[tokio::test]
async fn it_knows_what_an_engine_has_cached_and_has_evicted() {
    let controller = Controller::start().await.unwrap();
    let engine = engine(&controller, "engine-a", 40).await;
    let (tokens, cached) = ask(&engine, &prompt("1")).await;
    assert_eq!(cached, 0);
    let found = lookup(&controller, &tokens).await;
    assert_eq!(found, json!({"engine-a": [LOCATION, 400]}));
    assert_eq!(ask(&engine, &prompt("1")).await.1, 400);
    // 26 more blocks push out 12 of the first prompt, its end first.
    let (others, _) = ask(&engine, &prompt("2")).await;
    assert_eq!(lookup(&controller, &others).await["engine-a"][1], 400);
    let left = lookup(&controller, &tokens).await["engine-a"][1].as_u64();
    assert_eq!(ask(&engine, &prompt("1")).await.1, left.unwrap_or(0));
    assert_eq!(controller.lookups(), 3);
}

#[tokio::test]
async fn a_chunk_names_who_got_it_first_and_a_deeper_one_who_has_it_alone() {
    let controller = Controller::start().await.unwrap();
    let (a, b) = (
        engine(&controller, "a", 400).await,
        engine(&controller, "b", 400).await,
    );
    let (tokens, _) = ask(&a, &prompt("1")).await;
    let (longer, _) = ask(&b, &(prompt("1") + &prompt("2"))).await;
    assert_eq!(
        lookup(&controller, &tokens).await,
        json!({"a": [LOCATION, 400]})
    );
    let found = lookup(&controller, &longer).await;
    assert_eq!(found["a"][1], 400);
    let query = json!({"token_ids": longer, "model_name": "m"});
    let scores = post(controller.address(), "/query", query).await.unwrap()["scores"].clone();
    assert_eq!(scores["a"]["0"], 400);
    assert_eq!(scores["b"]["0"], found["b"][1]);
    assert!(
        found["b"][1].as_u64().is_some_and(|matched| matched > 400),
        "{found}"
    );
    post(a.addr(), "/reset_prefix_cache", json!({})).await.ok();
    ask(&a, "hi").await;
    let found = lookup(&controller, &tokens).await;
    assert_eq!(found, json!({"b": [LOCATION, 400]}));
}

#[tokio::test]
async fn instances_are_found_by_address_and_salted_blocks_by_nobody() {
    let controller = Controller::start().await.unwrap();
    let engine = engine(&controller, "engine-a", 400).await;
    let asked = post(
        controller.address(),
        "/query_instance",
        json!({"event_id": "x", "ip": "127.0.0.1"}),
    );
    assert_eq!(asked.await.unwrap()["res"], "engine-a");
    let body = json!({"prompt": prompt("1"), "max_tokens": 1, "cache_salt": "tenant"});
    post(engine.addr(), "/v1/completions", body).await.unwrap();
    let tokens = post(engine.addr(), "/tokenize", json!({"prompt": prompt("1")})).await;
    assert_eq!(
        lookup(&controller, &tokens.unwrap()["tokens"]).await,
        json!({})
    );
}

#[tokio::test]
async fn its_faults_are_what_they_are_called() {
    let controller = Controller::start().await.unwrap();
    let engine = engine(&controller, "engine-a", 400).await;
    controller.set_fault(Fault::Lagging(Duration::from_secs(3600)));
    let (tokens, _) = ask(&engine, &prompt("1")).await;
    assert_eq!(lookup(&controller, &tokens).await, json!({}));
    controller.set_fault(Fault::Dead);
    let body = json!({"tokens": tokens});
    assert!(
        post(controller.address(), "/lookup", body.clone())
            .await
            .is_err()
    );
    controller.set_fault(Fault::Wrong);
    for _ in 0..16 {
        let answer = post(controller.address(), "/lookup", body.clone()).await;
        assert!(answer.is_err() || answer.unwrap()["layout_info"]["engine-a"].is_null());
    }
    controller.set_fault(Fault::None);
    assert_eq!(
        lookup(&controller, &tokens).await,
        json!({}),
        "the lag stays"
    );
}
