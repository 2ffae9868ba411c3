//! In-process tests over real sockets: each engine has its own port, nothing waits by sleeping.

mod answers;
mod cache;
mod faults;
mod kv_events;
mod life;
mod page;
mod ranks;
mod transfer;

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::{Engine, EngineConfig};

/// No single wait of a test takes longer.
const DEADLINE: Duration = Duration::from_secs(20);

/// An engine that answers at once.
async fn instant() -> Engine {
    started(EngineConfig {
        time_scale: 0.0,
        ..EngineConfig::default()
    })
    .await
}

/// An engine whose steps never end within a test.
async fn frozen() -> Engine {
    started(EngineConfig {
        time_scale: 1e6,
        ..EngineConfig::default()
    })
    .await
}

async fn started(config: EngineConfig) -> Engine {
    Engine::start(config).await.unwrap()
}

fn url(engine: &Engine, path: &str) -> String {
    format!("http://{}{path}", engine.addr())
}

async fn try_post(engine: &Engine, path: &str, body: &Value) -> reqwest::Result<Response> {
    let sent = Client::new().post(url(engine, path)).json(body).send();
    timeout(DEADLINE, sent).await.unwrap()
}

async fn post(engine: &Engine, path: &str, body: Value) -> Response {
    try_post(engine, path, &body).await.unwrap()
}

async fn post_json(engine: &Engine, path: &str, body: Value) -> Value {
    let answer = post(engine, path, body).await;
    assert_eq!(answer.status(), 200, "{path}");
    timeout(DEADLINE, answer.json()).await.unwrap().unwrap()
}

async fn get_text(engine: &Engine, path: &str) -> String {
    let answer = reqwest::get(url(engine, path)).await.unwrap();
    assert_eq!(answer.status(), 200, "{path}");
    answer.text().await.unwrap()
}

/// The events of a stream: event name and data.
async fn events(engine: &Engine, path: &str, body: Value) -> Vec<(String, String)> {
    let answer = post(engine, path, body).await;
    assert_eq!(
        answer.headers()["content-type"],
        "text/event-stream; charset=utf-8"
    );
    let text = timeout(DEADLINE, answer.text()).await.unwrap().unwrap();
    text.split_terminator("\n\n")
        .map(|event| {
            let (name, data) = match event.strip_prefix("event: ") {
                Some(named) => named.split_once('\n').unwrap(),
                None => ("", event),
            };
            (
                name.to_owned(),
                data.strip_prefix("data: ").unwrap().to_owned(),
            )
        })
        .collect()
}

/// The JSON of all events but `[DONE]`, which must be the last.
async fn chunks(engine: &Engine, path: &str, body: Value) -> Vec<Value> {
    let mut events = events(engine, path, body).await;
    assert_eq!(events.pop().unwrap().1, "[DONE]");
    events
        .iter()
        .map(|(_, data)| serde_json::from_str(data).unwrap())
        .collect()
}

/// Waits until `reached` holds.
async fn until(what: &str, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !reached() {
        assert!(Instant::now() < deadline, "not reached: {what}");
        tokio::task::yield_now().await;
    }
}

/// Reads a body to its end or its breaking off.
async fn drain(answer: Response) -> (usize, Result<(), reqwest::Error>) {
    let mut stream = answer.bytes_stream();
    let mut bytes = 0;
    while let Some(piece) = timeout(DEADLINE, stream.next()).await.unwrap() {
        match piece {
            Ok(piece) => bytes += piece.len(),
            Err(error) => return (bytes, Err(error)),
        }
    }
    (bytes, Ok(()))
}

fn completion(prompt: &str) -> Value {
    json!({"model": "llama-3-8b", "prompt": prompt, "max_tokens": 4})
}
