//! The socket by which engines reach each other's shelf, in place of RDMA, NCCL and ZMQ.
//!
//! One idea: HTTP with a JSON body, so that Mooncake's and SGLang's bootstrap servers, which are HTTP,
//! share the port. `POST /kv/take` and `POST /kv/put` are this testbed's own. A connection whose client
//! leaves drops what was asked for. O(1) a request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::shelf::{Parcel, Ready, Want};
use super::{Kv, mooncake, sglang};

/// Largest body that is read.
const MAX_BODY_BYTES: usize = 1 << 20;
/// What a transfer may take beside the waiting.
const TRANSFER: Duration = Duration::from_secs(5);

/// A parcel that comes unasked.
#[derive(Debug, Serialize, Deserialize)]
struct Delivery {
    key: String,
    parcel: Parcel,
}

/// Serves until `kill` is cancelled, which cuts every connection.
pub(super) fn serve(
    kv: &Arc<Kv>,
    listener: TcpListener,
    tasks: &TaskTracker,
    kill: &CancellationToken,
) {
    let (kv, kill, connections) = (Arc::clone(kv), kill.clone(), tasks.clone());
    tasks.spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = kill.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            if let Ok((stream, _)) = accepted {
                connections.spawn(drive(stream, Arc::clone(&kv), kill.clone()));
            }
        }
    });
}

async fn drive(stream: TcpStream, kv: Arc<Kv>, kill: CancellationToken) {
    let service = service_fn(move |request| {
        let kv = Arc::clone(&kv);
        async move { Ok::<_, Infallible>(answer(&kv, request).await) }
    });
    let http = hyper::server::conn::http1::Builder::new();
    let serving = http.serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        () = kill.cancelled() => {}
        // An error is the other engine's going away.
        _ = serving => {}
    }
}

async fn answer(kv: &Arc<Kv>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, MAX_BODY_BYTES).collect().await else {
        return reply(StatusCode::BAD_REQUEST, json!({"error": "no body"}));
    };
    let body = body.to_bytes();
    let bad = |error: serde_json::Error| json!({"error": error.to_string()});
    match (head.method, head.uri.path()) {
        (Method::POST, "/kv/take") => match serde_json::from_slice::<Want>(&body) {
            Ok(want) => match kv.shelf.take(&want, kv.setup.patience).await {
                Ok(ready) => reply(StatusCode::OK, json!(ready)),
                Err(error) => reply(StatusCode::NOT_FOUND, json!({"error": error})),
            },
            Err(error) => reply(StatusCode::BAD_REQUEST, bad(error)),
        },
        (Method::POST, "/kv/put") => match serde_json::from_slice::<Delivery>(&body) {
            Ok(Delivery { key, parcel }) => {
                kv.receive(&key, parcel);
                reply(StatusCode::OK, json!({}))
            }
            Err(error) => reply(StatusCode::BAD_REQUEST, bad(error)),
        },
        (Method::GET, "/query") if mooncake::has_bootstrap(kv) => {
            reply(StatusCode::OK, mooncake::bootstrap(kv))
        }
        (Method::GET, "/route") if sglang::has_bootstrap(kv) => {
            reply(StatusCode::OK, sglang::route(kv))
        }
        _ => reply(StatusCode::NOT_FOUND, json!({"error": "no such path"})),
    }
}

fn reply(status: StatusCode, body: Value) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(body.to_string())));
    *answer.status_mut() = status;
    answer
}

/// Fetches from the engine that listens on `addr`.
///
/// # Errors
/// It is not there, or has nothing that is wanted.
pub(super) async fn take(
    http: &reqwest::Client,
    addr: &str,
    want: &Want,
    patience: Duration,
) -> Result<Ready, String> {
    let reply = post(http, addr, "/kv/take", want, patience).await?;
    serde_json::from_slice(&reply).map_err(|error| format!("{addr}: {error}"))
}

/// Brings a parcel to the engine that listens on `addr`.
///
/// # Errors
/// It is not there, or does not want it.
pub(super) async fn put(
    http: &reqwest::Client,
    addr: &str,
    key: &str,
    parcel: &Parcel,
) -> Result<(), String> {
    let delivery = Delivery {
        key: key.to_owned(),
        parcel: parcel.clone(),
    };
    post(http, addr, "/kv/put", &delivery, Duration::ZERO).await?;
    Ok(())
}

async fn post(
    http: &reqwest::Client,
    addr: &str,
    path: &str,
    body: &impl Serialize,
    patience: Duration,
) -> Result<Bytes, String> {
    // Nothing but a socket's address: a name or a path would lead elsewhere.
    addr.parse::<SocketAddr>()
        .map_err(|_| format!("not an address: {addr}"))?;
    let sent = http
        .post(format!("http://{addr}{path}"))
        .json(body)
        .timeout(patience + TRANSFER)
        .send();
    let failed = |error: reqwest::Error| format!("{addr}: {error}");
    let reply = sent.await.map_err(failed)?;
    let status = reply.status();
    let bytes = reply.bytes().await.map_err(failed)?;
    match status.is_success() {
        true => Ok(bytes),
        false => Err(format!("{addr}: {}", String::from_utf8_lossy(&bytes))),
    }
}
