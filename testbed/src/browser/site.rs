//! A loopback server with the page and the two paths that it asks, as the filter will have them.
//!
//! A test chooses what they say and can take the server away; the server keeps what it was asked.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{policy, sample};

/// The page as the filter sends it.
pub(super) struct Document {
    /// The page itself.
    pub(super) html: String,
    /// Its content security policy.
    pub(super) policy: HeaderValue,
}

impl Document {
    /// Reads both files.
    pub(super) fn load(page: &Path, policy: &Path) -> anyhow::Result<Self> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
        };
        let html = read(page)?;
        let sent = read(policy)?;
        policy::check(&html, &sent)?;
        let policy = HeaderValue::try_from(sent.trim_end())?;
        Ok(Self { html, policy })
    }
}

/// What `status` answers.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    /// This, with status 200.
    Facts(Value),
    /// The sample, one step further each time.
    Sample,
    /// An answer that is no JSON.
    Text(StatusCode, &'static str),
    /// Nothing: the connection is closed.
    Close,
    /// Nothing, ever.
    Silence,
}

/// A running site. It stops when dropped.
pub(super) struct Site {
    address: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

struct Shared {
    document: Arc<Document>,
    status: Mutex<Reply>,
    explain: Mutex<(StatusCode, Value)>,
    asked: Mutex<Asked>,
}

/// What the site was asked so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    /// How often `status` was.
    pub(super) status: u64,
    /// The bodies that `explain` got.
    pub(super) explain: Vec<String>,
    /// Method and path of everything that the page should not ask for.
    pub(super) unknown: Vec<String>,
}

impl Site {
    /// Serves the page on a port of the loopback interface, with no fact in `status`.
    pub(super) async fn start(document: &Arc<Document>, port: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            document: Arc::clone(document),
            status: Mutex::new(Reply::Facts(Value::Object(Default::default()))),
            explain: Mutex::new((StatusCode::OK, sample::explain())),
            asked: Mutex::default(),
        });
        let stop = CancellationToken::new();
        tokio::spawn({
            let (shared, stop) = (Arc::clone(&shared), stop.clone());
            async move {
                while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await
                {
                    tokio::spawn(drive(stream, Arc::clone(&shared), stop.clone()));
                }
            }
        });
        Ok(Self {
            address,
            shared,
            _stop: stop.drop_guard(),
        })
    }

    /// `http://address`.
    pub(super) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where the page is.
    pub(super) fn page_url(&self) -> String {
        format!("{}/warmpath/", self.origin())
    }

    /// Changes what `status` answers from now on.
    pub(super) fn answer(&self, reply: Reply) {
        *self.shared.status.lock() = reply;
    }

    /// Answers with these facts from now on.
    pub(super) fn show(&self, facts: Value) {
        self.answer(Reply::Facts(facts));
    }

    /// Answers with plausible facts that move, from now on.
    pub(super) fn show_sample(&self) {
        self.answer(Reply::Sample);
    }

    /// Changes what `explain` answers from now on.
    pub(super) fn explain(&self, status: StatusCode, answer: Value) {
        *self.shared.explain.lock() = (status, answer);
    }

    /// What was asked so far.
    pub(super) fn asked(&self) -> Asked {
        self.shared.asked.lock().clone()
    }
}

async fn drive(stream: TcpStream, shared: Arc<Shared>, stop: CancellationToken) {
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { shared.answer(request).await }
    });
    let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // A connection that ends with an error is a browser that went away, or a reply that closes.
    let _ended = stop.run_until_cancelled(serving).await;
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> anyhow::Result<Response<Full<Bytes>>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        match (&head.method, head.uri.path()) {
            (&Method::GET, "/warmpath/") => {
                let html = self.document.html.clone();
                let mut page = respond(StatusCode::OK, "text/html; charset=utf-8", html);
                let policy = self.document.policy.clone();
                page.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
                Ok(page)
            }
            (&Method::GET, "/warmpath/status") => self.status().await,
            (&Method::POST, "/warmpath/explain") => {
                let body = String::from_utf8_lossy(&body).into_owned();
                self.asked.lock().explain.push(body);
                let (status, answer) = self.explain.lock().clone();
                Ok(respond(status, "application/json", answer.to_string()))
            }
            (method, path) => {
                self.asked.lock().unknown.push(format!("{method} {path}"));
                Ok(respond(StatusCode::NOT_FOUND, "text/plain", String::new()))
            }
        }
    }

    async fn status(&self) -> anyhow::Result<Response<Full<Bytes>>> {
        let step = {
            let mut asked = self.asked.lock();
            asked.status += 1;
            asked.status
        };
        let reply = self.status.lock().clone();
        let json = |facts: Value| respond(StatusCode::OK, "application/json", facts.to_string());
        match reply {
            Reply::Facts(facts) => Ok(json(facts)),
            Reply::Sample => Ok(json(sample::status(step))),
            Reply::Text(status, text) => Ok(respond(status, "text/plain", text.to_owned())),
            Reply::Close => anyhow::bail!("closed as asked"),
            Reply::Silence => {
                let never: Infallible = std::future::pending().await;
                match never {}
            }
        }
    }
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
