//! The HTTP surface: which path does what, and what every answer has in common.
//!
//! One idea: one table of routes; a request's body is read whole (up to a limit), a fault is drawn,
//! and the path's function makes the answer. Cost: O(routes) a request, besides the path's own.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, SERVER};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use parking_lot::Mutex;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::cut::{Cut, cut, nonsense, overstate};
use super::error::{self, ApiError};
use super::fault::{Fault, Faults, Target};
use super::infer::{self, Call};
use super::kv::Kv;
use super::listen::Connection;
use super::plain::{self, Plain};
use super::prompt::Api;
use super::ranks::Ranks;
use super::seen::{SeenLog, Visit};
use crate::model::Stats;

/// Largest body that is read.
const MAX_BODY_BYTES: usize = 64 << 20;
/// From a crash of the core to the end of the process.
const AGONY: Duration = Duration::from_millis(500);
/// Who answered, for tests and demonstrations; a real engine has no such header.
const ENGINE: HeaderName = HeaderName::from_static("x-engine");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Body of every answer.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What the handlers of one engine share.
#[derive(Debug)]
pub(super) struct App {
    /// Name of the engine.
    pub(super) name: String,
    /// `name` as a header.
    pub(super) name_header: HeaderValue,
    /// Names of the one model; never empty.
    pub(super) models: Vec<String>,
    /// Those of them that are not served at present.
    pub(super) unloaded: Mutex<HashSet<String>>,
    /// The model, once for each data-parallel rank.
    pub(super) ranks: Ranks,
    /// What goes wrong.
    pub(super) faults: Arc<Faults>,
    /// The inference requests seen.
    pub(super) seen: Arc<SeenLog>,
    /// Tokens in a KV block.
    pub(super) block_tokens: u32,
    /// Longest prompt and output together.
    pub(super) max_model_tokens: u32,
    /// Output of a request that sets no limit.
    pub(super) default_output_tokens: u32,
    /// Start of the engine.
    pub(super) created_unix_s: u64,
    /// Makes request ids.
    pub(super) requests: AtomicU64,
    /// The connector, if the engine has one.
    pub(super) kv: Option<Arc<Kv>>,
    /// Set when it is about to end by itself.
    pub(super) dying: AtomicBool,
    /// Cancelled, the engine ends.
    pub(super) kill: CancellationToken,
}

impl App {
    /// The model that a body names; the first one if it names none.
    pub(super) fn model<'a>(&'a self, body: &'a Value) -> Result<&'a str, ApiError> {
        match &body["model"] {
            Value::Null => Ok(self.first_model()),
            Value::String(name) if self.serves(name) => Ok(name),
            Value::String(name) => Err(ApiError::unknown_model(name, &self.models)),
            _ => Err(ApiError::wrong_type("model", "string")),
        }
    }

    /// Whether a model is served at present.
    pub(super) fn serves(&self, name: &str) -> bool {
        let known = self.models.iter().any(|model| model == name);
        known && !self.unloaded.lock().contains(name)
    }

    /// The real name of the model.
    pub(super) fn first_model(&self) -> &str {
        self.models.first().map_or("", String::as_str)
    }

    /// Gauges and counters of all ranks together.
    pub(super) fn stats(&self) -> Stats {
        let clocks = self.ranks.clocks().iter();
        let stats = clocks.map(|clock| clock.snapshot().stats);
        stats.reduce(Stats::plus).unwrap_or_default()
    }

    /// Ends like an engine whose core has crashed: all is answered with errors for a moment, then the
    /// port refuses.
    pub(super) fn die(&self) {
        self.dying.store(true, Ordering::Relaxed);
        let kill = self.kill.clone();
        tokio::spawn(async move {
            tokio::time::sleep(AGONY).await;
            kill.cancel();
        });
    }

    fn new_request_id(&self) -> String {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let seed = xxhash_rust::xxh3::xxh3_64_with_seed(self.name.as_bytes(), self.created_unix_s);
        let id = xxhash_rust::xxh3::xxh3_128_with_seed(&number.to_le_bytes(), seed);
        format!("{id:032x}")
    }
}

/// What a path and method do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Runs the model.
    Run(Api),
    /// Does not.
    Plain(Plain),
}

const ROUTES: [(&str, Method, Route); 25] = [
    ("/health", Method::GET, Route::Plain(Plain::Health)),
    ("/ping", Method::GET, Route::Plain(Plain::Health)),
    ("/ping", Method::POST, Route::Plain(Plain::Health)),
    ("/version", Method::GET, Route::Plain(Plain::Version)),
    ("/v1/models", Method::GET, Route::Plain(Plain::Models)),
    ("/metrics", Method::GET, Route::Plain(Plain::Metrics)),
    ("/load", Method::GET, Route::Plain(Plain::Load)),
    ("/v1/chat/completions", Method::POST, Route::Run(Api::Chat)),
    (
        "/v1/completions",
        Method::POST,
        Route::Run(Api::Completions),
    ),
    ("/v1/responses", Method::POST, Route::Run(Api::Responses)),
    ("/v1/messages", Method::POST, Route::Run(Api::Messages)),
    ("/v1/embeddings", Method::POST, Route::Run(Api::Embeddings)),
    ("/v1/rerank", Method::POST, Route::Run(Api::Rerank)),
    ("/rerank", Method::POST, Route::Run(Api::Rerank)),
    ("/v1/score", Method::POST, Route::Run(Api::Score)),
    ("/generate", Method::POST, Route::Run(Api::Generate)),
    ("/tokenize", Method::POST, Route::Plain(Plain::Tokenize)),
    ("/detokenize", Method::POST, Route::Plain(Plain::Detokenize)),
    ("/sleep", Method::POST, Route::Plain(Plain::Sleep)),
    ("/wake_up", Method::POST, Route::Plain(Plain::WakeUp)),
    ("/is_sleeping", Method::GET, Route::Plain(Plain::IsSleeping)),
    (
        "/reset_prefix_cache",
        Method::POST,
        Route::Plain(Plain::ResetPrefixCache),
    ),
    (
        "/kv_event_sources",
        Method::GET,
        Route::Plain(Plain::KvEventSources),
    ),
    ("/fault", Method::GET, Route::Plain(Plain::GetFault)),
    ("/fault", Method::POST, Route::Plain(Plain::SetFault)),
];

impl Route {
    /// The faults that it can be struck by; `None`: only those for all paths.
    fn target(self) -> Option<Target> {
        match self {
            Self::Run(_) => Some(Target::Inference),
            Self::Plain(Plain::Health) => Some(Target::Health),
            Self::Plain(Plain::Metrics) => Some(Target::Metrics),
            Self::Plain(_) => None,
        }
    }
}

/// Answers one request.
pub(super) async fn handle(
    app: Arc<App>,
    connection: Connection,
    request: Request<Incoming>,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let id = match head.headers.get(REQUEST_ID) {
        Some(id) => id.clone(),
        None => {
            HeaderValue::try_from(app.new_request_id()).unwrap_or(HeaderValue::from_static("0"))
        }
    };
    let path = head.uri.path();
    let known = ROUTES
        .iter()
        .find(|(known, method, _)| *known == path && *method == head.method);
    let mut answer = match known {
        Some(&(_, _, route)) => routed(&app, connection, route, &head, &id, body).await,
        None => unrouted(path),
    };
    let status = answer.status().as_u16();
    let handler = known.map_or("none", |(path, _, _)| path);
    // What the front counts belongs to no rank; the first keeps it.
    if let Some(clock) = app.ranks.clocks().first() {
        clock.count_http(handler, head.method.as_str(), status);
    }
    let headers = answer.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static("uvicorn"));
    headers.insert(REQUEST_ID, id);
    headers.insert(ENGINE, app.name_header.clone());
    answer
}

/// 405 for a known path, 404 for any other.
fn unrouted(path: &str) -> Response<Body> {
    let methods: Vec<&str> = ROUTES
        .iter()
        .filter(|(known, _, _)| *known == path)
        .map(|(_, method, _)| method.as_str())
        .collect();
    if methods.is_empty() {
        return json_answer(StatusCode::NOT_FOUND, error::detail(StatusCode::NOT_FOUND));
    }
    let status = StatusCode::METHOD_NOT_ALLOWED;
    let mut answer = json_answer(status, error::detail(status));
    if let Ok(methods) = HeaderValue::try_from(methods.join(", ")) {
        answer.headers_mut().insert(ALLOW, methods);
    }
    answer
}

/// Reads the body, lets the fault happen around the answer.
async fn routed(
    app: &App,
    connection: Connection,
    route: Route,
    head: &Parts,
    id: &HeaderValue,
    body: Incoming,
) -> Response<Body> {
    let body = match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return refused(&ApiError::too_large(MAX_BODY_BYTES));
        }
        Err(error) => return refused(&ApiError::invalid(Some("body"), &error.to_string())),
    };
    if route == Route::Plain(Plain::Metrics) {
        app.seen.scraped();
    }
    if app.dying.load(Ordering::Relaxed) {
        let status = match route {
            Route::Plain(Plain::Health) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        return refused(&ApiError::broken(status));
    }
    let mut visit = matches!(route, Route::Run(_)).then(|| app.seen.arrive(head, &body));
    let fault = match route {
        Route::Plain(Plain::GetFault | Plain::SetFault) => Fault::None,
        _ => app.faults.draw(route.target()),
    };
    if let (Some(visit), true) = (&visit, fault != Fault::None) {
        visit.note(|seen| seen.fault = Some(fault.name()));
    }
    if let Some(answer) = fault_before(fault, &connection, visit.as_mut()).await {
        return answer;
    }
    let answer = match (route, visit) {
        (Route::Run(api), Some(visit)) => {
            let request_id = String::from_utf8_lossy(id.as_bytes());
            let call = Call {
                app,
                api,
                head,
                request_id: &request_id,
                body: &body,
            };
            infer::answer(call, visit).await
        }
        (Route::Plain(plain), _) => {
            plain::answer(app, plain, head, &body).unwrap_or_else(|error| refused(&error))
        }
        (Route::Run(_), None) => refused(&ApiError::broken(StatusCode::INTERNAL_SERVER_ERROR)),
    };
    match fault {
        Fault::ResetAfter { body_bytes } => cut(answer, body_bytes, Cut::Reset(connection)),
        Fault::HangAfter { body_bytes } => cut(answer, body_bytes, Cut::Hang),
        Fault::WrongContentLength => overstate(answer),
        _ => answer,
    }
}

/// What a fault does before there is an answer; `None`: the request goes on.
async fn fault_before(
    fault: Fault,
    connection: &Connection,
    visit: Option<&mut Visit>,
) -> Option<Response<Body>> {
    match fault {
        Fault::ResetBeforeHeaders => {
            if let Some(visit) = visit {
                visit.end();
            }
            connection.reset();
            std::future::pending().await
        }
        Fault::HangBeforeHeaders => std::future::pending().await,
        Fault::SlowStart { delay_ms } => {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            None
        }
        Fault::Nonsense { body_bytes } => {
            if let Some(visit) = visit {
                visit.end();
            }
            Some(nonsense(body_bytes))
        }
        Fault::Status {
            code,
            retry_after_s,
        } => {
            if let Some(visit) = visit {
                visit.note(|seen| seen.status = Some(code));
                visit.end();
            }
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut answer = refused(&ApiError::broken(status));
            if let Some(seconds) = retry_after_s {
                answer
                    .headers_mut()
                    .insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            Some(answer)
        }
        _ => None,
    }
}

/// The body as JSON, if its content type says so and it is.
pub(super) fn parse_json(head: &Parts, body: &[u8]) -> Result<Value, ApiError> {
    let kind = head
        .headers
        .get(CONTENT_TYPE)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    let kind = kind.split(|&byte| byte == b';').next().unwrap_or_default();
    if !kind.trim_ascii().eq_ignore_ascii_case(b"application/json") {
        let what = "Unsupported Media Type: Only 'application/json' is allowed";
        return Err(ApiError::invalid(None, what));
    }
    let value: Value = serde_json::from_slice(body).map_err(|error| {
        let before = body
            .split_inclusive(|&byte| byte == b'\n')
            .take(error.line().saturating_sub(1));
        let at = before.map(<[u8]>::len).sum::<usize>() + error.column();
        ApiError::not_json(at, &error.to_string())
    })?;
    match value {
        Value::Object(_) => Ok(value),
        _ => Err(ApiError::invalid(
            Some("body"),
            "Input should be a valid dictionary",
        )),
    }
}

/// An answer with a JSON body.
pub(super) fn json_answer(status: StatusCode, body: String) -> Response<Body> {
    let mut answer = full(body);
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

fn refused(error: &ApiError) -> Response<Body> {
    json_answer(error.status, error.body())
}

/// An answer with this body and no content type.
pub(super) fn full(body: String) -> Response<Body> {
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {});
    Response::new(body.boxed_unsync())
}
