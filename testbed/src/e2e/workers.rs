//! A client for each worker thread of Envoy, so that "across workers" is something a test does and
//! not something it hopes for.
//!
//! A connection belongs to the worker that accepted it, and Envoy counts what each has accepted: a
//! new HTTP/2 connection is attributed by the counter that moved. All requests of a client share
//! its connection, so they meet its worker, in the order in which they were sent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::client::{Call, Client, OpenReply, Reply, Transport};
use super::conversation::text;
use super::harness::{Stack, eventually};
use crate::engine::Fault;

/// More new connections than it ever takes until each worker has accepted one.
const MAX_CONNECTIONS: usize = 1000;
/// Requests in a row that must pass a busy engine by. One worker alone would send every other one
/// there.
const PASSED_BY: usize = 4;

/// One client per worker.
#[derive(Debug)]
pub struct Workers {
    clients: Vec<Client>,
}

impl Workers {
    /// Opens connections until every worker has accepted one.
    pub async fn reach(stack: &Stack<'_>) -> anyhow::Result<Self> {
        let mut found = BTreeMap::new();
        let mut before = accepted(stack).await?;
        for _ in 0..MAX_CONNECTIONS {
            let client = Client::new(stack.client().target())?;
            let call = Call::get("/v1/models").over(Transport::Http2);
            client.send(call).await?.expect_status(200)?;
            let after = accepted(stack).await?;
            for (worker, count) in &after {
                if before.get(worker) != Some(count) {
                    found.entry(worker.clone()).or_insert(client.clone());
                }
            }
            before = after;
            if found.len() == stack.workers() {
                let clients = found.into_values().collect();
                return Ok(Self { clients });
            }
        }
        anyhow::bail!("some worker accepts no connection: {before:?}")
    }

    /// Like [`Workers::reach`], and waits until every worker counts what every other has in flight,
    /// which takes one heartbeat. Needs two engines in the pool `qwen`, by `least_request`.
    pub async fn introduced(stack: &Stack<'_>) -> anyhow::Result<Self> {
        let workers = Self::reach(stack).await?;
        for teller in 0..workers.count() {
            let call = Call::chat("qwen-2.5-7b", "hello");
            let held = workers.hold(stack, teller, call).await?;
            for listener in (0..workers.count()).filter(|&it| it != teller) {
                eventually("a worker knows of another's requests", async || {
                    for _ in 0..PASSED_BY {
                        let call = Call::chat("qwen-2.5-7b", "hello");
                        let reply = workers.send(listener, call).await?.expect_status(200)?;
                        if stack.answered_by(&reply)?.name == held.engine {
                            return Ok(None);
                        }
                    }
                    Ok(Some(()))
                })
                .await?;
            }
        }
        Ok(workers)
    }

    /// Waits until each worker knows of every prompt that was routed so far. Needs the policy
    /// `prefix` in the pool `llama`, and workers that know each other.
    ///
    /// Workers read each other's logs in order: whoever knows a prompt that was sent last knows all
    /// before it.
    pub async fn catch_up(&self) -> anyhow::Result<()> {
        let known = async |teller, listener| -> anyhow::Result<_> {
            let probe = Call::chat("llama-3-8b", &text(seed(), 1024));
            self.send(teller, probe.clone()).await?.expect_status(200)?;
            let reply = self.send(listener, probe).await?.expect_status(200)?;
            let known = reply.decision()?.reason != "cold_prefix";
            Ok(known.then_some(()))
        };
        for teller in 0..self.count() {
            for listener in (0..self.count()).filter(|&it| it != teller) {
                eventually("a worker knows of another's prompts", async || {
                    known(teller, listener).await
                })
                .await?;
            }
        }
        Ok(())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.clients.len()
    }

    /// The client of a worker; numbers beyond the last begin again with the first.
    pub fn client(&self, number: usize) -> anyhow::Result<&Client> {
        let client = self
            .clients
            .iter()
            .cycle()
            .nth(number % self.count().max(1));
        client.context("no workers")
    }

    /// Sends a call through a worker and waits for its whole answer.
    pub async fn send(&self, number: usize, call: Call) -> anyhow::Result<Reply> {
        self.client(number)?.send(call.over(Transport::Http2)).await
    }

    /// Sends a chat through a worker that stays in flight, its answer begun and never ended.
    pub async fn hold(&self, stack: &Stack<'_>, number: usize, call: Call) -> anyhow::Result<Held> {
        let call = streamed(call)?.over(Transport::Http2);
        let all = || stack.engines.iter();
        all().for_each(|it| it.engine.set_fault(Fault::HangAfter { body_bytes: 1 }));
        let opened = self.client(number)?.open(call).await;
        all().for_each(|it| it.engine.set_fault(Fault::None));
        let mut open = opened?;
        let engine = open.response.headers().get("x-engine").cloned();
        let engine = engine.with_context(|| format!("no engine: {:?}", open.response))?;
        ensure!(open.chunk().await?.is_some(), "the answer did not begin");
        Ok(Held {
            engine: engine.to_str()?.to_owned(),
            _open: open,
        })
    }
}

/// A request in flight; it ends when this is dropped.
#[derive(Debug)]
pub struct Held {
    /// The engine that answers.
    pub engine: String,
    _open: OpenReply,
}

/// The same chat, with a streamed answer.
pub fn streamed(call: Call) -> anyhow::Result<Call> {
    let mut document: serde_json::Value = serde_json::from_slice(&call.body)?;
    let fields = document.as_object_mut().context("not an object")?;
    fields.insert("stream".to_owned(), json!(true));
    Ok(call.body(document.to_string()))
}

/// Another number each time, for prompts that were never sent before.
pub fn seed() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1 << 32);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// How many connections each worker has accepted on the listener for requests.
async fn accepted(stack: &Stack<'_>) -> anyhow::Result<BTreeMap<String, u64>> {
    let envoy = stack.envoy()?;
    let text = envoy.admin_get("/stats?filter=downstream_cx_total").await?;
    let target = stack.client().target().to_string().replace(':', "_");
    let own = format!("listener.{target}.worker_");
    let lines = text.lines().filter_map(|line| {
        let (name, count) = line.split_once(": ")?;
        Some((name.strip_prefix(&own)?.to_owned(), count.parse().ok()?))
    });
    Ok(lines.collect())
}
