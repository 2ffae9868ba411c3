//! The calls that are timed, each with a prompt that nobody has seen before.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use reqwest::Method;
use serde_json::Value;

use super::stack::{CLUSTER, DECODE, PREFILL, Stack};
use crate::e2e::client::{Call, Reply};
use crate::engine::Connector;

const PATH: &str = "/v1/completions";
/// What prompts consist of.
const TEXT: &str = "the old road to the sea is not far from all of our new maps and ";

static NUMBER: AtomicU64 = AtomicU64::new(1);

/// A completion's body without its end, and a number that no other has.
fn open_body(prompt_bytes: usize) -> (String, u64) {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let text: String = TEXT
        .chars()
        .cycle()
        .take(prompt_bytes.saturating_sub(16))
        .collect();
    let body = format!(r#"{{"model":"llama-3-8b","stream":false,"prompt":"{number:016x}{text}""#);
    (body, number)
}

fn call(cluster: &str, body: String) -> anyhow::Result<Call> {
    let mut call = Call::get(PATH).body(body);
    call.method = Method::POST;
    let call = call.header("content-type", "application/json")?;
    match cluster {
        "" => Ok(call),
        cluster => call.header(CLUSTER, cluster),
    }
}

/// One call through warmpath.
///
/// # Errors
/// It is not answered with 200.
pub(super) async fn warmpath(stack: &Stack, prompt_bytes: usize) -> anyhow::Result<Duration> {
    let (body, _) = open_body(prompt_bytes);
    let call = call("", format!(r#"{body},"max_tokens":4}}"#))?;
    let began = Instant::now();
    let reply = stack.routed.send(call).await?;
    let took = began.elapsed();
    reply.expect_status(200)?;
    Ok(took)
}

/// The two calls, made by the client.
pub(super) struct Direct<'a> {
    stack: &'a Stack,
    connector: Connector,
    /// The prefill engine's id, where it must be asked for.
    engine_id: String,
}

impl<'a> Direct<'a> {
    /// Asks what must be known before any call.
    ///
    /// # Errors
    /// The bootstrap server does not answer.
    pub(super) async fn new(stack: &'a Stack, connector: Connector) -> anyhow::Result<Self> {
        let mut engine_id = String::new();
        if connector == Connector::Mooncake {
            let http = reqwest::Client::builder().no_proxy().build()?;
            let known = http
                .get(format!("http://{}/query", stack.bootstrap()?))
                .send()
                .await?;
            let known: Value = known.json().await?;
            let id = known.pointer("/0/engine_id").and_then(Value::as_str);
            engine_id = id.context("no engine id")?.to_owned();
        }
        Ok(Self {
            stack,
            connector,
            engine_id,
        })
    }

    /// Sends a prompt by two calls. The time that the client waited.
    ///
    /// # Errors
    /// One is not answered with 200.
    pub(super) async fn send(&self, prompt_bytes: usize) -> anyhow::Result<Duration> {
        let (body, number) = open_body(prompt_bytes);
        match self.connector {
            Connector::Nixl => self.nixl(body).await,
            Connector::P2pNccl => self.p2p_nccl(body, number).await,
            Connector::Mooncake => {
                let place = self.stack.bootstrap()?;
                let id = format!(r#""transfer_id":"xfer-{number}""#);
                let give = format!(
                    r#"{body},"max_tokens":1,"kv_transfer_params":{{"do_remote_decode":true,"do_remote_prefill":false,{id}}}}}"#
                );
                let take = format!(
                    r#"{body},"max_tokens":4,"kv_transfer_params":{{"do_remote_decode":false,"do_remote_prefill":true,"remote_bootstrap_addr":"http://{place}","remote_engine_id":"{}",{id}}}}}"#,
                    self.engine_id
                );
                self.at_once(give, take).await
            }
            Connector::Sglang => {
                let place = self.stack.bootstrap()?;
                let both = format!(
                    r#"{body},"max_tokens":4,"bootstrap_host":"{}","bootstrap_port":{},"bootstrap_room":{number}}}"#,
                    place.ip(),
                    place.port()
                );
                self.at_once(both.clone(), both).await
            }
        }
    }

    async fn nixl(&self, body: String) -> anyhow::Result<Duration> {
        let give = r#"{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}"#;
        let first = format!(r#"{body},"max_tokens":1,"kv_transfer_params":{give}}}"#);
        let (reply, gave) = self.timed(PREFILL, first, None).await?;
        let params = transfer_params(&reply.body)?;
        let second = format!(r#"{body},"max_tokens":4,"kv_transfer_params":{params}}}"#);
        let (_, took) = self.timed(DECODE, second, None).await?;
        Ok(gave + took)
    }

    async fn p2p_nccl(&self, body: String, number: u64) -> anyhow::Result<Duration> {
        let decode = self.stack.decode.kv_addr().context("no connector")?;
        let prefill = self.stack.bootstrap()?;
        let id = format!("___prefill_addr_{prefill}___decode_addr_{decode}_{number:x}");
        let first = format!(r#"{body},"max_tokens":1}}"#);
        let second = format!(r#"{body},"max_tokens":4}}"#);
        let (_, gave) = self.timed(PREFILL, first, Some(&id)).await?;
        let (_, took) = self.timed(DECODE, second, Some(&id)).await?;
        Ok(gave + took)
    }

    /// Both calls under way together; what counts is the answer to the second.
    async fn at_once(&self, give: String, take: String) -> anyhow::Result<Duration> {
        let (gave, took) = tokio::join!(
            self.timed(PREFILL, give, None),
            self.timed(DECODE, take, None)
        );
        gave?;
        Ok(took?.1)
    }

    async fn timed(
        &self,
        cluster: &str,
        body: String,
        id: Option<&str>,
    ) -> anyhow::Result<(Reply, Duration)> {
        let mut call = call(cluster, body)?;
        if let Some(id) = id {
            call = call.header("x-request-id", id)?;
        }
        let began = Instant::now();
        let reply = self.stack.bare.send(call).await?;
        let took = began.elapsed();
        Ok((reply.expect_status(200)?, took))
    }
}

/// The text of `kv_transfer_params` in an answer.
fn transfer_params(answer: &Bytes) -> anyhow::Result<&str> {
    let text = std::str::from_utf8(answer)?;
    let (_, rest) = text
        .split_once(r#""kv_transfer_params":"#)
        .context("no kv_transfer_params")?;
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
    values.next().context("no value")??;
    rest.get(..values.byte_offset()).context("no value")
}
