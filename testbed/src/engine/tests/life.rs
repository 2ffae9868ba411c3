//! Clients that leave, queues that fill, engines that die.

use super::super::Fault;
use super::*;

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn a_client_that_leaves_aborts_its_request() {
    let engine = frozen().await;
    let addr = url(&engine, PATH);
    let mut body = completion("x");
    for stream in [false, true] {
        body["stream"] = json!(stream);
        let request = Client::new().post(&addr).json(&body).send();
        let waiting = tokio::spawn(async move { drain(request.await.unwrap()).await.0 });
        let in_engine = || engine.stats().running + engine.stats().waiting;
        until("the request is in", || in_engine() == 1).await;
        waiting.abort();
        until("it is aborted", || in_engine() == 0).await;
    }
    assert_eq!(engine.stats().kv_used_blocks, 0);
    until("both have left", || {
        engine.log().iter().all(|seen| seen.left)
    })
    .await;
    let statuses: Vec<_> = engine.log().iter().map(|seen| seen.status).collect();
    assert_eq!(statuses, [None, Some(200)]);
}

#[tokio::test]
async fn a_full_queue_answers_503_and_counts_it() {
    let config = EngineConfig {
        max_queued: Some(1),
        time_scale: 1e6,
        ..EngineConfig::default()
    };
    let engine = started(config).await;
    let first = Client::new()
        .post(url(&engine, PATH))
        .json(&completion("x"))
        .send();
    let first = tokio::spawn(first);
    until("the first runs", || engine.stats().running == 1).await;
    let answer = post(&engine, PATH, completion("y")).await;
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().get("retry-after").is_none());
    assert_eq!(
        answer.json::<Value>().await.unwrap()["error"]["type"],
        "Service Unavailable"
    );
    let page = get_text(&engine, "/metrics").await;
    assert!(
        page.contains("reason=\"max_num_queued_reqs\"} 1.0\n"),
        "{page}"
    );
    first.abort();
}

#[tokio::test]
async fn a_killed_engine_resets_its_connections_and_its_port_can_be_used_again() {
    let engine = frozen().await;
    let addr = engine.addr();
    let mut body = completion("x");
    body["stream"] = json!(true);
    let open = post(&engine, PATH, body).await;
    assert_eq!(open.status(), 200);
    engine.kill().await;
    assert!(drain(open).await.1.is_err());
    assert!(
        try_post(&engine, PATH, &completion("x"))
            .await
            .unwrap_err()
            .is_connect()
    );
    assert_eq!(engine.log().len(), 1);
    let next = EngineConfig {
        listen: addr,
        time_scale: 0.0,
        ..EngineConfig::default()
    };
    let next = started(next).await;
    assert_eq!(post(&next, PATH, completion("x")).await.status(), 200);
    let taken = EngineConfig {
        listen: addr,
        ..EngineConfig::default()
    };
    assert!(Engine::start(taken).await.is_err());
}

#[tokio::test]
async fn a_dropped_engine_is_gone() {
    let engine = instant().await;
    let addr = url(&engine, "/health");
    drop(engine);
    let deadline = Instant::now() + DEADLINE;
    while reqwest::get(&addr).await.is_ok() {
        assert!(Instant::now() < deadline, "still answers");
    }
}

#[tokio::test]
async fn a_shutdown_lets_requests_finish() {
    let engine = started(EngineConfig {
        time_scale: 0.01,
        ..EngineConfig::default()
    })
    .await;
    let mut body = completion("x");
    body["stream"] = json!(true);
    body["max_tokens"] = json!(200);
    let open = post(&engine, PATH, body).await;
    let ((_, end), ()) = tokio::join!(drain(open), engine.shutdown());
    assert!(end.is_ok());
    assert!(try_post(&engine, PATH, &completion("x")).await.is_err());
    assert!(!engine.log()[0].left);
}

#[tokio::test]
async fn many_streams_at_once_are_all_answered() {
    let engine = started(EngineConfig {
        time_scale: 0.001,
        ..EngineConfig::default()
    })
    .await;
    let client = Client::new();
    let streams = (0..200).map(|number| {
        let body = json!({"prompt": format!("stream {number}"), "max_tokens": 20, "stream": true});
        let request = client.post(url(&engine, PATH)).json(&body).send();
        async move { drain(request.await.unwrap()).await.1.is_ok() }
    });
    let answered = futures_util::future::join_all(streams).await;
    assert!(answered.into_iter().all(|whole| whole));
    assert_eq!(engine.stats().generation_tokens, 200 * 20);
    assert_eq!(
        (engine.stats().running, engine.stats().kv_used_blocks),
        (0, 0)
    );
}

#[tokio::test]
async fn a_fault_that_hangs_does_not_hold_the_model() {
    let engine = instant().await;
    engine.set_fault(Fault::HangAfter { body_bytes: 0 });
    let mut body = completion("x");
    body["stream"] = json!(true);
    let open = post(&engine, PATH, body).await;
    until("the model is done", || {
        engine.stats().running + engine.stats().waiting == 0
    })
    .await;
    drop(open);
}
