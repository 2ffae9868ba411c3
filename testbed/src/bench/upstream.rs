//! The engines of a benchmark: they read a request, drop it, and answer with the same bytes.
//!
//! They cost as little as HTTP allows, so that what is measured is the router. Everything runs on
//! the caller's runtime, one task per connection.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::corpus::MODEL;

/// A short chat completion of 232 bytes.
const ANSWER: &str = concat!(
    r#"{"id":"chatcmpl-0","object":"chat.completion","created":0,"model":"llama-3-8b","choices":"#,
    r#"[{"index":0,"message":{"role":"assistant","content":"Yes."},"finish_reason":"stop"}],"#,
    r#""usage":{"prompt_tokens":1,"completion_tokens":2}}        "#
);

/// Engines that run until they are dropped.
#[derive(Debug)]
pub struct Upstream {
    /// Where they listen.
    pub addresses: Vec<SocketAddr>,
    _accepting: JoinSet<()>,
}

impl Upstream {
    /// Starts one engine on each loopback port; port 0 takes a free one.
    pub async fn start(ports: &[u16]) -> anyhow::Result<Self> {
        let mut addresses = Vec::new();
        let mut accepting = JoinSet::new();
        for &port in ports {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
                .await
                .with_context(|| format!("an engine cannot listen on port {port}"))?;
            addresses.push(listener.local_addr()?);
            accepting.spawn(accept(listener));
        }
        Ok(Self {
            addresses,
            _accepting: accepting,
        })
    }
}

async fn accept(listener: TcpListener) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        // Costs latency only; the connection works without.
        let _no_delay = stream.set_nodelay(true);
        connections.spawn(async move {
            let connection =
                http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
            // The client may leave at any time.
            let _left = connection.await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    // Other routers ask what is served here before they send anything.
    let lists_models = request.uri().path().ends_with("/v1/models");
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    let text = if lists_models {
        let list = format!(r#"{{"object":"list","data":[{{"id":"{MODEL}","object":"model"}}]}}"#);
        Bytes::from(list)
    } else {
        Bytes::from_static(ANSWER.as_bytes())
    };
    let mut response = Response::new(Full::new(text));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_json_of_the_stated_length() {
        assert_eq!(ANSWER.len(), 232);
        let value: serde_json::Value = serde_json::from_str(ANSWER).unwrap();
        assert_eq!(value["model"], MODEL);
    }
}
