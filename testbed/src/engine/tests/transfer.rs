//! Engines that share the work: KV comes from the engine that was named, or not at all.

use std::time::Duration;

use hyper::StatusCode;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{DEADLINE, completion, get_text, post, post_json, started, until, url};
use crate::engine::{Connector, Disaggregation, Engine, EngineConfig, Role};

/// A prefill and a decode engine.
struct Pair {
    prefill: Engine,
    decode: Engine,
}

async fn one(name: &str, setup: Disaggregation) -> Engine {
    started(EngineConfig {
        name: name.to_owned(),
        time_scale: 0.0,
        disaggregation: Some(setup),
        ..EngineConfig::default()
    })
    .await
}

impl Pair {
    async fn start(connector: Connector) -> Self {
        Self::with(connector, |_| {}).await
    }

    async fn with(connector: Connector, edit: impl Fn(&mut Disaggregation)) -> Self {
        let setup = |role| {
            let mut setup = Disaggregation::new(connector, role);
            edit(&mut setup);
            setup
        };
        Self {
            prefill: one("p", setup(Role::Prefill)).await,
            decode: one("d", setup(Role::Decode)).await,
        }
    }

    /// The prefill engine computed `tokens`, and the decode engine knows it.
    fn confirm(&self, tokens: u32) {
        let (gave, took) = (self.prefill.log(), self.decode.log());
        let (gave, took) = (&gave.last().unwrap().kv, &took.last().unwrap().kv);
        assert_eq!((gave.part, gave.tokens), (Some(Role::Prefill), tokens));
        assert_eq!((took.part, took.tokens), (Some(Role::Decode), tokens));
        assert_eq!(took.source.as_deref(), Some("p"));
        // Sequences of the same prompt share what came first.
        let used = self.decode.stats().external_hits_tokens;
        assert!(used > 0 && used <= u64::from(tokens), "{used} of {tokens}");
        assert_eq!(
            [self.prefill.kv_errors(), self.decode.kv_errors()],
            [[""; 0]; 2]
        );
    }
}

fn prefill_of(body: &Value, params: Value) -> Value {
    with(body, json!({"max_tokens": 1, "kv_transfer_params": params}))
}

fn with(body: &Value, fields: Value) -> Value {
    let mut body = body.clone();
    let object = body.as_object_mut().unwrap();
    object.extend(fields.as_object().unwrap().clone());
    body
}

const GIVE: &str = r#"{"do_remote_decode":true,"do_remote_prefill":false}"#;

fn give() -> Value {
    serde_json::from_str(GIVE).unwrap()
}

/// What a router makes of a request for the decode side: the answer's object, byte for byte.
async fn spliced(pair: &Pair, body: &Value) -> String {
    let answer = post(&pair.prefill, "/v1/completions", prefill_of(body, give())).await;
    let text = answer.text().await.unwrap();
    let (_, rest) = text.split_once(r#""kv_transfer_params":"#).unwrap();
    let (params, _) = rest.split_once(r#","ec_transfer_params""#).unwrap();
    let whole = body.to_string();
    format!(
        r#"{},"kv_transfer_params":{params}}}"#,
        whole.strip_suffix('}').unwrap()
    )
}

async fn send_text(engine: &Engine, body: String) -> Response {
    let sent = Client::new()
        .post(url(engine, "/v1/completions"))
        .header("content-type", "application/json")
        .body(body)
        .send();
    timeout(DEADLINE, sent).await.unwrap().unwrap()
}

#[tokio::test]
async fn nixl_moves_what_the_answer_names_and_frees_it() {
    let pair = Pair::start(Connector::Nixl).await;
    let body = completion(&"word ".repeat(100));
    let request = spliced(&pair, &body).await;
    assert!(pair.prefill.stats().kv_used_blocks > 0);
    let answer: Value = send_text(&pair.decode, request.clone())
        .await
        .json()
        .await
        .unwrap();
    pair.confirm(125);
    until("the blocks are free", || {
        pair.prefill.stats().kv_used_blocks == 0
    })
    .await;
    let plain = post_json(&pair.prefill, "/v1/completions", body).await;
    assert_eq!(answer["choices"][0]["text"], plain["choices"][0]["text"]);
    let page = get_text(&pair.decode, "/metrics").await;
    for line in [
        r#"vllm:external_prefix_cache_hits_total{engine="0",model_name="llama-3-8b"} 125.0"#,
        r#"vllm:prompt_tokens_by_source_total{engine="0",model_name="llama-3-8b",source="external_kv_transfer"} 125.0"#,
    ] {
        assert!(page.contains(line), "{page}");
    }
    // It can be fetched once.
    assert_eq!(send_text(&pair.decode, request).await.status(), 500);
    assert!(!pair.decode.has_crashed());
}

#[tokio::test]
async fn nixl_finds_out_what_was_changed_on_the_way() {
    let pair = Pair::start(Connector::Nixl).await;
    let body = completion(&"word ".repeat(100));
    let request = spliced(&pair, &body).await;
    let retold: Value = serde_json::from_str(&request).unwrap();
    for (field, other) in [
        ("remote_engine_id", json!("another")),
        ("remote_request_id", json!("another")),
        ("remote_port", json!(1)),
        ("remote_block_ids", json!([[9999]])),
    ] {
        let mut wrong = retold.clone();
        wrong["kv_transfer_params"][field] = other;
        let status = post(&pair.decode, "/v1/completions", wrong).await.status();
        assert_eq!(status, 500, "{field}");
    }
    let other = completion(&"text ".repeat(100));
    let wrong = with(
        &other,
        json!({"kv_transfer_params": retold["kv_transfer_params"]}),
    );
    assert_eq!(
        post(&pair.decode, "/v1/completions", wrong).await.status(),
        500
    );
    let several = with(&retold, json!({"n": 2}));
    assert_eq!(
        post(&pair.decode, "/v1/completions", several)
            .await
            .status(),
        400
    );
    let before = pair.decode.kv_errors().len();
    // Read and written anew it works, but a number is not what it was.
    assert_eq!(
        post(&pair.decode, "/v1/completions", retold).await.status(),
        200
    );
    assert_eq!(pair.decode.kv_errors().len(), before + 1);
}

#[tokio::test]
async fn half_a_transfer_kills() {
    for (connector, params) in [
        (Connector::Nixl, json!({"do_remote_prefill": true})),
        (
            Connector::Mooncake,
            json!({"do_remote_decode": true, "transfer_id": "x"}),
        ),
    ] {
        let decode = one("d", Disaggregation::new(connector, Role::Decode)).await;
        let body = with(&completion("hello"), json!({"kv_transfer_params": params}));
        assert_eq!(post(&decode, "/v1/completions", body).await.status(), 500);
        assert!(decode.has_crashed());
        let addr = decode.addr();
        until("the port refuses", || {
            std::net::TcpStream::connect(addr).is_err()
        })
        .await;
        decode.kill().await;
    }
}

#[tokio::test]
async fn a_lease_ends() {
    let pair = Pair::with(Connector::Nixl, |setup| {
        setup.lease = Duration::from_millis(50)
    })
    .await;
    let request = spliced(&pair, &completion(&"word ".repeat(100))).await;
    until("the blocks are free", || {
        pair.prefill.stats().kv_used_blocks == 0
    })
    .await;
    assert_eq!(send_text(&pair.decode, request).await.status(), 500);
}

async fn with_id(engine: &Engine, id: &str, body: &Value) -> StatusCode {
    let sent = Client::new()
        .post(url(engine, "/v1/completions"))
        .header("x-request-id", id)
        .json(body)
        .send();
    timeout(DEADLINE, sent).await.unwrap().unwrap().status()
}

#[tokio::test]
async fn p2p_nccl_pushes_to_the_address_in_the_id() {
    let pair = Pair::with(Connector::P2pNccl, |setup| {
        setup.patience = Duration::from_millis(300);
    })
    .await;
    let (p, d) = (
        pair.prefill.kv_addr().unwrap(),
        pair.decode.kv_addr().unwrap(),
    );
    let body = with(
        &completion(""),
        json!({"prompt": ["a ".repeat(100), "b ".repeat(60)], "n": 2}),
    );
    let id = format!("___prefill_addr_{p}___decode_addr_{d}_0a1b");
    let first = with(&body, json!({"max_tokens": 1}));
    let (gave, took) = tokio::join!(
        with_id(&pair.prefill, &id, &first),
        with_id(&pair.decode, &id, &body)
    );
    assert_eq!((gave, took), (StatusCode::OK, StatusCode::OK));
    pair.confirm(2 * (50 + 30));
    let elsewhere = format!("___prefill_addr_{p}___decode_addr_{p}_0a1b");
    assert_eq!(with_id(&pair.prefill, &elsewhere, &first).await, 200);
    assert_eq!(with_id(&pair.decode, &elsewhere, &body).await, 500);
    assert!(!pair.decode.has_crashed());
    assert_eq!(with_id(&pair.decode, "plain", &body).await, 500);
    assert!(pair.decode.has_crashed());
}

#[tokio::test]
async fn mooncake_meets_by_the_transfer_id() {
    let pair = Pair::with(Connector::Mooncake, |setup| {
        setup.patience = Duration::from_millis(500);
    })
    .await;
    let bootstrap = format!("http://{}", pair.prefill.kv_addr().unwrap());
    let known = reqwest::get(format!("{bootstrap}/query")).await.unwrap();
    let known: Value = known.json().await.unwrap();
    let body = completion(&"word ".repeat(100));
    let decode = |id: &str, engine: &Value| {
        let params = json!({"do_remote_prefill": true, "do_remote_decode": false, "transfer_id": id,
            "remote_engine_id": engine, "remote_bootstrap_addr": bootstrap});
        with(&body, json!({"kv_transfer_params": params}))
    };
    let prefill = |id: &str| {
        let params =
            json!({"do_remote_decode": true, "do_remote_prefill": false, "transfer_id": id});
        prefill_of(&body, params)
    };
    let own = &known["0"]["engine_id"];
    let (took, gave) = tokio::join!(
        post(&pair.decode, "/v1/completions", decode("x", own)),
        post(&pair.prefill, "/v1/completions", prefill("x"))
    );
    assert_eq!(
        (gave.status(), took.status()),
        (StatusCode::OK, StatusCode::OK)
    );
    pair.confirm(125);
    for wrong in [decode("y", own), decode("x", &json!("another"))] {
        assert_eq!(
            post(&pair.decode, "/v1/completions", wrong).await.status(),
            500
        );
    }
    let plain = post(&pair.decode, "/v1/completions", body.clone()).await;
    assert_eq!(plain.status(), 200);
}

#[tokio::test]
async fn sglang_meets_in_a_room() {
    let pair = Pair::with(Connector::Sglang, |setup| {
        setup.patience = Duration::from_millis(500);
    })
    .await;
    let port = pair.prefill.kv_addr().unwrap().port();
    let place = |rooms: Value| match rooms.as_array().map(Vec::len) {
        None => {
            json!({"bootstrap_host": "127.0.0.1", "bootstrap_port": port, "bootstrap_room": rooms})
        }
        Some(count) => json!({"bootstrap_host": vec!["127.0.0.1"; count],
            "bootstrap_port": vec![port; count], "bootstrap_room": rooms}),
    };
    let both = async |body: Value| {
        let (gave, took) = tokio::join!(
            post(&pair.prefill, "/v1/completions", body.clone()),
            post(&pair.decode, "/v1/completions", body)
        );
        (gave.status().as_u16(), took.status().as_u16())
    };
    let body = completion(&"word ".repeat(100));
    assert_eq!(both(with(&body, place(json!(7)))).await, (200, 200));
    pair.confirm(125);
    let batch = with(
        &body,
        json!({"prompt": ["a ".repeat(100), "b ".repeat(60)], "n": 2}),
    );
    assert_eq!(
        both(with(&batch, place(json!([1, 2, 3, 4])))).await,
        (200, 200)
    );
    assert_eq!(pair.decode.log().last().unwrap().kv.tokens, 160);
    assert_eq!(
        both(with(&batch, place(json!([1, 2, 3])))).await,
        (400, 400)
    );
    assert_eq!(both(body.clone()).await, (400, 400));
    // Each alone.
    let alone = with(&body, place(json!(8)));
    for engine in [&pair.prefill, &pair.decode] {
        let status = post(engine, "/v1/completions", alone.clone())
            .await
            .status();
        assert_eq!(status, 500, "{}", engine.name());
    }
    assert_eq!(pair.prefill.stats().kv_used_blocks, 0);
}
