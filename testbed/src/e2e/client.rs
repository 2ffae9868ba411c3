//! What a client of the stack says and hears: requests over HTTP/1.1 and HTTP/2, with any bytes in
//! header values, and answers that are read whole or as they arrive.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

/// No answer of a test stack takes longer.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// How a request travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// HTTP/1.1 over connections that are used again.
    #[default]
    Http1,
    /// HTTP/1.1 over a new connection each time: the kernel spreads those over Envoy's workers.
    Http1NewConnection,
    /// HTTP/2 without TLS.
    Http2,
}

/// A request to be sent.
#[derive(Clone, Debug)]
pub struct Call {
    /// Method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// Headers in order.
    pub headers: HeaderMap,
    /// Body; empty for none.
    pub body: Bytes,
    /// Trailers after the body; they need HTTP/2.
    pub trailers: HeaderMap,
    /// How it travels.
    pub transport: Transport,
}

impl Call {
    /// GET without a body.
    pub fn get(path: &str) -> Self {
        Self {
            method: Method::GET,
            path: path.to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            trailers: HeaderMap::new(),
            transport: Transport::default(),
        }
    }

    /// POST of a JSON document.
    pub fn post(path: &str, document: &Value) -> Self {
        let mut call = Self::get(path).body(document.to_string());
        call.method = Method::POST;
        call.headers
            .insert("content-type", HeaderValue::from_static("application/json"));
        call
    }

    /// A chat of one user message, with an answer of 4 tokens.
    pub fn chat(model: &str, message: &str) -> Self {
        Self::chat_with(model, message, json!({"max_tokens": 4}))
    }

    /// A chat of one user message with further fields of the document, such as `stream`.
    pub fn chat_with(model: &str, message: &str, fields: Value) -> Self {
        let mut document = json!({
            "model": model,
            "messages": [{"role": "user", "content": message}],
        });
        if let (Value::Object(document), Value::Object(fields)) = (&mut document, fields) {
            document.extend(fields);
        }
        Self::post("/v1/chat/completions", &document)
    }

    /// Adds a header. Its value may hold any bytes that HTTP allows, UTF-8 or not.
    ///
    /// Fails on a name or value that HTTP does not allow.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> anyhow::Result<Self> {
        let name = HeaderName::from_bytes(name.as_bytes())?;
        self.headers
            .append(name, HeaderValue::from_bytes(value.as_ref())?);
        Ok(self)
    }

    /// Replaces the body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Adds a trailer, and sends the call over HTTP/2.
    pub fn trailer(mut self, name: &'static str, value: &'static str) -> Self {
        self.trailers.insert(name, HeaderValue::from_static(value));
        self.over(Transport::Http2)
    }

    /// Chooses how it travels.
    pub fn over(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// Its `x-request-id`; gives it one that is unique in this process if it has none.
    pub fn request_id(&mut self) -> anyhow::Result<String> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        if let Some(own) = self.headers.get("x-request-id") {
            return Ok(own.to_str()?.to_owned());
        }
        let id = format!("call-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.headers
            .insert("x-request-id", HeaderValue::from_str(&id)?);
        Ok(id)
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The `x-request-id` that the request carried.
    pub request_id: String,
    /// Status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Reply {
    /// The first header of this name, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {}", self.text()))
    }

    /// Whether the filter says that it decided anything.
    pub fn is_decided(&self) -> bool {
        self.headers.contains_key("x-warmpath-decision")
    }

    /// What the filter says it decided.
    ///
    /// Fails if the answer has no such header, or one of another form.
    pub fn decision(&self) -> anyhow::Result<Told> {
        let header = self.header("x-warmpath-decision");
        let header = header.with_context(|| format!("no decision is told: {self:?}"))?;
        let parts: Vec<_> = header.split("; ").collect();
        let [policy, reason, ranked] = parts.as_slice() else {
            anyhow::bail!("not `policy; reason; engines`: {header}");
        };
        Ok(Told {
            policy: (*policy).to_owned(),
            reason: (*reason).to_owned(),
            ranked: ranked.split(',').map(str::to_owned).collect(),
        })
    }

    /// Prompt tokens, and how many of them the engine had in its cache, as it says itself.
    pub fn prompt_tokens(&self) -> anyhow::Result<(u64, u64)> {
        let document = self.json()?;
        let figure = |pointers: [&str; 2]| {
            let found = pointers
                .iter()
                .find_map(|it| document.pointer(it)?.as_u64());
            found.with_context(|| format!("no {pointers:?}: {document}"))
        };
        Ok((
            figure(["/usage/prompt_tokens", "/usage/input_tokens"])?,
            figure([
                "/usage/prompt_tokens_details/cached_tokens",
                "/usage/input_tokens_details/cached_tokens",
            ])?,
        ))
    }

    /// Itself, if the status is `want`; an error that shows the body otherwise.
    pub fn expect_status(self, want: u16) -> anyhow::Result<Self> {
        ensure!(
            self.status == want,
            "status {} instead of {want}: {} {:?}",
            self.status,
            self.text(),
            self.headers
        );
        Ok(self)
    }
}

/// The header `x-warmpath-decision`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The policy that decided.
    pub policy: String,
    /// Why the first engine is first.
    pub reason: String,
    /// The engines in order of preference, `ip:port`.
    pub ranked: Vec<String>,
}

/// An answer of which the headers have arrived.
#[derive(Debug)]
pub struct OpenReply {
    /// The `x-request-id` that the request carried.
    pub request_id: String,
    /// The rest of it.
    pub response: reqwest::Response,
}

impl OpenReply {
    /// The next piece of the body as it came off the connection; `None` at the end.
    pub async fn chunk(&mut self) -> anyhow::Result<Option<Bytes>> {
        Ok(self.response.chunk().await?)
    }

    /// Waits for the rest.
    pub async fn finish(self) -> anyhow::Result<Reply> {
        Ok(Reply {
            request_id: self.request_id,
            status: self.response.status().as_u16(),
            headers: self.response.headers().clone(),
            body: self.response.bytes().await?,
        })
    }
}

/// Sends calls to one address.
#[derive(Clone, Debug)]
pub struct Client {
    target: SocketAddr,
    http1: reqwest::Client,
    http1_new_connection: reqwest::Client,
    http2: reqwest::Client,
}

impl Client {
    /// A client of `target`.
    pub fn new(target: SocketAddr) -> anyhow::Result<Self> {
        let builder = || reqwest::Client::builder().no_proxy().timeout(CALL_DEADLINE);
        Ok(Self {
            target,
            http1: builder().http1_only().build()?,
            http1_new_connection: builder().http1_only().pool_max_idle_per_host(0).build()?,
            http2: builder().http2_prior_knowledge().build()?,
        })
    }

    /// Where calls go.
    pub fn target(&self) -> SocketAddr {
        self.target
    }

    /// Sends a call and waits for the headers of its answer.
    pub async fn open(&self, mut call: Call) -> anyhow::Result<OpenReply> {
        let request_id = call.request_id()?;
        let client = match call.transport {
            Transport::Http1 => &self.http1,
            Transport::Http1NewConnection => &self.http1_new_connection,
            Transport::Http2 => &self.http2,
        };
        let url = format!("http://{}{}", self.target, call.path);
        let mut request = client.request(call.method, url).headers(call.headers);
        if !call.trailers.is_empty() {
            let trailers = std::future::ready(Some(Ok(call.trailers)));
            let body = Full::new(call.body).with_trailers(trailers);
            request = request.body(reqwest::Body::wrap(body));
        } else if !call.body.is_empty() {
            request = request.body(call.body);
        }
        Ok(OpenReply {
            request_id,
            response: request.send().await?,
        })
    }

    /// Sends a call and waits for its whole answer.
    pub async fn send(&self, call: Call) -> anyhow::Result<Reply> {
        self.open(call).await?.finish().await
    }
}
