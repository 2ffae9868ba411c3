//! A stand-in for the LMCache controller: who has which prompt prefix, over the controller's HTTP API.
//!
//! One idea: engines of this process tell it what changes in their prefix caches, and it answers
//! `/lookup` and `/query_instance` as the real one does, with the real one's habit of naming only one
//! instance for each chunk. It answers `/query` as well, as Dynamo's indexer does: with every instance. What it does wrong can be set at any time ([`Controller::set_fault`]).
//! A lookup costs O(tokens); memory is bounded by what the engines' caches hold.

mod index;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::engine::{KvEvent, Tap};
use index::Index;

/// Where LMCache says that a chunk is.
const LOCATION: &str = "LocalCPUBackend";

/// What the controller does wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Connections end without an answer.
    Dead,
    /// Answers take this long.
    Slow(Duration),
    /// Answers are nonsense, each of another kind.
    Wrong,
    /// What engines tell is known this much later.
    Lagging(Duration),
}

/// A running controller. It ends when it is dropped.
#[derive(Debug)]
pub struct Controller {
    address: SocketAddr,
    state: Arc<State>,
    _running: DropGuard,
}

#[derive(Debug, Default)]
struct State {
    known: Mutex<Known>,
    fault: Mutex<Fault>,
    lookups: AtomicU64,
    wrong: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    index: Index,
    /// Name and address of each instance, by its number in the index.
    instances: Vec<(String, IpAddr)>,
    /// Told, and not yet known.
    late: VecDeque<(Instant, usize, Vec<KvEvent>)>,
}

impl Controller {
    /// Starts on a free port of this machine, on the current tokio runtime.
    ///
    /// # Errors
    /// There is no free port.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::default());
        let running = CancellationToken::new();
        tokio::spawn(accept(listener, Arc::clone(&state), running.clone()));
        Ok(Self {
            address,
            state,
            _running: running.drop_guard(),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What an engine must call to be known as `instance` at `ip`.
    pub fn tap(&self, instance: &str, ip: IpAddr) -> Tap {
        let mut known = self.state.known.lock();
        let number = known.instances.len();
        known.instances.push((instance.to_owned(), ip));
        drop(known);
        let state = Arc::clone(&self.state);
        Tap::new(move |batch| {
            let lag = match *state.fault.lock() {
                Fault::Lagging(lag) => lag,
                _ => Duration::ZERO,
            };
            let late = (Instant::now() + lag, number, batch.1.clone());
            state.known.lock().late.push_back(late);
        })
    }

    /// Replaces what goes wrong, from the next request on.
    pub fn set_fault(&self, fault: Fault) {
        *self.state.fault.lock() = fault;
    }

    /// How many lookups have reached it.
    pub fn lookups(&self) -> u64 {
        self.state.lookups.load(Ordering::Relaxed)
    }
}

impl Known {
    fn catch_up(&mut self) {
        let now = Instant::now();
        while let Some((due, number, events)) = self.late.pop_front() {
            if due > now {
                return self.late.push_front((due, number, events));
            }
            for event in &events {
                self.index.apply(number, event);
            }
        }
    }

    fn lookup(&mut self, tokens: &[u32]) -> Value {
        self.catch_up();
        let found = self.index.lookup(tokens).into_iter();
        let layout = found.filter_map(|(number, matched)| {
            let (name, _) = self.instances.get(number)?;
            Some((name.clone(), json!([LOCATION, matched])))
        });
        json!({"event_id": "Lookup-1", "layout_info": layout.collect::<serde_json::Map<_, _>>()})
    }

    fn query(&mut self, tokens: &[u32]) -> Value {
        self.catch_up();
        let found = self.index.overlaps(tokens).into_iter();
        let scores = found.filter_map(|(number, matched)| {
            let (name, _) = self.instances.get(number)?;
            Some((name.clone(), json!({"0": matched})))
        });
        json!({"scores": scores.collect::<serde_json::Map<_, _>>(), "frequencies": []})
    }

    fn instance_at(&self, ip: &str) -> Option<&str> {
        let ip: IpAddr = ip.parse().ok()?;
        let found = self.instances.iter().find(|(_, own)| *own == ip);
        found.map(|(name, _)| name.as_str())
    }
}

async fn accept(listener: TcpListener, state: Arc<State>, running: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = running.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else { continue };
        let (state, running) = (Arc::clone(&state), running.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| answer(Arc::clone(&state), request));
            let builder = Builder::new(TokioExecutor::new());
            let serving = builder.serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = running.cancelled() => {}
                // An error is the client's going away, or a fault that was asked for.
                _ = serving => {}
            }
        });
    }
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, io::Error> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await;
    let body = body.map_err(io::Error::other)?.to_bytes();
    if path == "/lookup" || path == "/query" {
        state.lookups.fetch_add(1, Ordering::Relaxed);
    }
    let fault = *state.fault.lock();
    match fault {
        Fault::Dead => return Err(io::ErrorKind::ConnectionAborted.into()),
        Fault::Slow(delay) => tokio::time::sleep(delay).await,
        Fault::Wrong => {
            let turn = state.wrong.fetch_add(1, Ordering::Relaxed);
            return Ok(wrong(turn));
        }
        Fault::None | Fault::Lagging(_) => {}
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let field = |name: &str| body.get(name).unwrap_or(&Value::Null);
    let found = match path.as_str() {
        "/lookup" => tokens(field("tokens")).map(|tokens| state.known.lock().lookup(&tokens)),
        "/query" => tokens(field("token_ids")).map(|tokens| state.known.lock().query(&tokens)),
        "/query_instance" => field("ip").as_str().map(|ip| {
            let known = state.known.lock();
            json!({"event_id": "QueryInst-1", "res": known.instance_at(ip)})
        }),
        _ => return Ok(reply(StatusCode::NOT_FOUND, r#"{"detail":"Not Found"}"#)),
    };
    Ok(match found {
        Some(found) => reply(StatusCode::OK, found.to_string()),
        None => {
            let detail = r#"{"detail":[{"type":"missing","loc":["body"],"msg":"Field required"}]}"#;
            reply(StatusCode::UNPROCESSABLE_ENTITY, detail)
        }
    })
}

fn tokens(list: &Value) -> Option<Vec<u32>> {
    let tokens = list.as_array()?.iter();
    tokens.map(|it| u32::try_from(it.as_u64()?).ok()).collect()
}

/// Nonsense that parses as far as it may, and further.
fn wrong(turn: u64) -> Response<Full<Bytes>> {
    let info = |layout: Value| json!({"event_id": "x", "layout_info": layout}).to_string();
    let body = match turn % 8 {
        0 => "\u{0}\u{1}not JSON".to_owned(),
        1 => info(json!({"nobody": [LOCATION, 100]})),
        2 => info(json!({"engine": [LOCATION, u64::MAX]})),
        3 => info(json!({"engine": ["x"], "": [1, -5], "other": "far"})),
        4 => info(json!([[["a", 1]]])),
        5 => "[".repeat(100_000),
        6 => return reply(StatusCode::INTERNAL_SERVER_ERROR, r#"{"detail":"boom"}"#),
        _ => format!(
            "{{\"layout_info\":{{\"engine\":[\"{}\",1]}}}}",
            "x".repeat(9_000_000)
        ),
    };
    reply(StatusCode::OK, body)
}

fn reply(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    let json = hyper::header::HeaderValue::from_static("application/json");
    reply
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, json);
    reply
}

#[cfg(test)]
mod tests;
