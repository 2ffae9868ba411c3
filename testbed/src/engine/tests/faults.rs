//! Each fault, as a client meets it.

use super::super::fault::{Fault, FaultPlan, Target};
use super::*;

const PATH: &str = "/v1/completions";

fn streamed() -> Value {
    json!({"prompt": "x", "max_tokens": 50, "stream": true})
}

/// Whether the connection was reset, as opposed to closed.
fn was_reset(error: &reqwest::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionReset) {
            return true;
        }
        cause = error.source();
    }
    false
}

#[tokio::test]
async fn a_reset_before_the_headers_for_the_next_requests_only() {
    let engine = instant().await;
    engine.set_fault(FaultPlan {
        requests: Some(2),
        ..Fault::ResetBeforeHeaders.into()
    });
    for _ in 0..2 {
        let error = try_post(&engine, PATH, &completion("x")).await.unwrap_err();
        assert!(was_reset(&error), "{error:?}");
    }
    assert_eq!(post(&engine, PATH, completion("x")).await.status(), 200);
    let log = engine.log();
    assert_eq!(
        (log[0].fault, log[0].status, log[0].left),
        (Some("reset_before_headers"), None, false)
    );
    assert_eq!(
        (log[2].fault, log[2].status, log[2].left),
        (None, Some(200), false)
    );
}

#[tokio::test]
async fn a_reset_after_some_bytes_whole_and_streamed() {
    let engine = instant().await;
    engine.set_fault(Fault::ResetAfter { body_bytes: 100 });
    for body in [completion("x"), streamed()] {
        let answer = post(&engine, PATH, body).await;
        assert_eq!(answer.status(), 200);
        let (bytes, end) = drain(answer).await;
        assert!(bytes <= 100 && was_reset(&end.unwrap_err()), "{bytes}");
    }
    engine.set_fault(Fault::ResetAfter {
        body_bytes: u64::MAX,
    });
    let (bytes, end) = drain(post(&engine, PATH, streamed()).await).await;
    assert!(bytes > 0 && end.is_err());
}

#[tokio::test]
async fn a_hang_before_the_headers_lasts_until_the_client_leaves() {
    let engine = instant().await;
    engine.set_fault(Fault::HangBeforeHeaders);
    let addr = url(&engine, PATH);
    let hanging =
        tokio::spawn(async move { Client::new().post(addr).json(&completion("x")).send().await });
    until("the request arrives", || engine.seen_count() == 1).await;
    assert!(!engine.log()[0].left);
    hanging.abort();
    until("the client has left", || engine.log()[0].left).await;
    assert_eq!(engine.log()[0].status, None);
}

#[tokio::test]
async fn a_hang_in_the_stream_keeps_the_connection_open() {
    let engine = instant().await;
    engine.set_fault(Fault::HangAfter { body_bytes: 10 });
    let mut stream = post(&engine, PATH, streamed()).await.bytes_stream();
    let first = timeout(DEADLINE, stream.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(&first[..], b"data: {\"id");
    assert!(futures_util::poll!(stream.next()).is_pending());
    drop(stream);
    until("the client has left", || engine.log()[0].left).await;
}

#[tokio::test]
async fn a_status_with_retry_after() {
    let engine = instant().await;
    engine.set_fault(Fault::Status {
        code: 503,
        retry_after_s: Some(7),
    });
    let answer = post(&engine, PATH, completion("x")).await;
    assert_eq!(
        (
            answer.status().as_u16(),
            answer.headers()["retry-after"].to_str().unwrap()
        ),
        (503, "7")
    );
    assert_eq!(answer.json::<Value>().await.unwrap()["error"]["code"], 503);
    assert_eq!(
        reqwest::get(url(&engine, "/health"))
            .await
            .unwrap()
            .status(),
        200
    );
    engine.set_fault(FaultPlan {
        on: Target::Health,
        ..Fault::Status {
            code: 500,
            retry_after_s: None,
        }
        .into()
    });
    assert_eq!(
        reqwest::get(url(&engine, "/health"))
            .await
            .unwrap()
            .status(),
        500
    );
    assert_eq!(post(&engine, PATH, completion("x")).await.status(), 200);
    assert_eq!(engine.log()[0].status, Some(503));
}

#[tokio::test]
async fn refusing_ends_connections_and_takes_new_ones_afterwards() {
    let engine = instant().await;
    let client = Client::new();
    let send = || {
        client
            .post(url(&engine, PATH))
            .json(&completion("x"))
            .send()
    };
    assert_eq!(send().await.unwrap().status(), 200);
    engine.set_fault(Fault::Refuse);
    let deadline = Instant::now() + DEADLINE;
    while !send().await.is_err_and(|error| error.is_connect()) {
        assert!(Instant::now() < deadline, "still accepts");
    }
    engine.set_fault(Fault::None);
    while send().await.is_err() {
        assert!(Instant::now() < deadline, "still refuses");
    }
}

#[tokio::test]
async fn an_engine_that_starts_refusing_comes_up_by_itself() {
    let fault = FaultPlan {
        for_ms: Some(50),
        ..Fault::Refuse.into()
    };
    let engine = started(EngineConfig {
        fault,
        time_scale: 0.0,
        ..EngineConfig::default()
    })
    .await;
    let deadline = Instant::now() + DEADLINE;
    while reqwest::get(url(&engine, "/health")).await.is_err() {
        assert!(Instant::now() < deadline, "still refuses");
    }
}

#[tokio::test]
async fn a_slow_start_and_slow_steps_still_answer() {
    let engine = started(EngineConfig {
        time_scale: 1e-6,
        ..EngineConfig::default()
    })
    .await;
    for fault in [
        Fault::SlowStart { delay_ms: 1 },
        Fault::Slow { factor: 3.0 },
    ] {
        engine.set_fault(fault);
        assert_eq!(post(&engine, PATH, completion("x")).await.status(), 200);
    }
    let faults: Vec<_> = engine.log().iter().map(|seen| seen.fault).collect();
    assert_eq!(faults, [Some("slow_start"), None]);
}

#[tokio::test]
async fn a_wrong_content_length_breaks_the_body_off() {
    let engine = instant().await;
    engine.set_fault(Fault::WrongContentLength);
    for body in [completion("x"), streamed()] {
        let answer = post(&engine, PATH, body).await;
        let promised = answer.content_length().unwrap();
        let (bytes, end) = drain(answer).await;
        assert!(
            bytes > 0 && (bytes as u64) < promised && end.is_err(),
            "{bytes} {promised}"
        );
    }
}

#[tokio::test]
async fn faults_can_be_set_over_http() {
    let engine = instant().await;
    let plan = json!({"fault": {"status": {"code": 500}}, "requests": 1, "on": "all"});
    assert_eq!(post(&engine, "/fault", plan).await.status(), 200);
    let now: Value = serde_json::from_str(&get_text(&engine, "/fault").await).unwrap();
    assert_eq!(now["fault"]["status"]["code"], 500);
    assert_eq!(
        reqwest::get(url(&engine, "/version"))
            .await
            .unwrap()
            .status(),
        500
    );
    assert_eq!(
        reqwest::get(url(&engine, "/version"))
            .await
            .unwrap()
            .status(),
        200
    );
    assert_eq!(
        post(&engine, "/fault", json!({"fault": "sing"}))
            .await
            .status(),
        400
    );
}
