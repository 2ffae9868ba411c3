//! Clients that ask and wait, one request each at a time, until they are told to stop.
//!
//! One idea: whatever happens to a request is recorded by the client that sent it. A client thinks for a
//! while before each request, and a little longer after a failure. Memory is one record a request.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::corpus::Corpus;
use super::exchange::{Ending, Exchange};
use crate::e2e::client::{Call, Client, Transport};

/// Pause of a client before a request.
const THINKING: Duration = Duration::from_millis(15);
/// Pause of a client whose request has failed.
const ANNOYED: Duration = Duration::from_millis(60);
/// How often progress is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Longest wait for progress.
const DEADLINE: Duration = Duration::from_secs(300);

/// What clients ask.
pub(super) trait Asking: Send + Sync {
    /// The request of this number of a client, and who takes it to which Envoy.
    ///
    /// # Errors
    /// There is no more to ask.
    fn ask(&self, client: usize, number: u64) -> anyhow::Result<(Client, Call)>;

    /// Pause of a client before the request of this number.
    fn thinking(&self, client: usize, number: u64) -> Duration;
}

/// Clients that each have connections of their own to one Envoy.
struct Staying {
    clients: Vec<Client>,
    corpus: Arc<Corpus>,
    transport: Option<Transport>,
}

impl Asking for Staying {
    fn ask(&self, client: usize, number: u64) -> anyhow::Result<(Client, Call)> {
        let call = self.corpus.call(client, number)?;
        let call = match self.transport {
            Some(transport) => call.over(transport),
            None => call,
        };
        let client = self.clients.get(client).context("no such client")?;
        Ok((client.clone(), call))
    }

    fn thinking(&self, _client: usize, _number: u64) -> Duration {
        THINKING
    }
}

/// See the module documentation.
pub(super) struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

struct Shared {
    asking: Arc<dyn Asking>,
    /// Of the first request of each client, so that no two faults send the same.
    first: u64,
    sent: AtomicU64,
    stopped: AtomicBool,
    ended: Mutex<Vec<Exchange>>,
    open: Mutex<HashMap<String, CancellationToken>>,
}

impl Load {
    /// Lets these clients ask. With a transport, all of them use it.
    pub(super) fn start(
        clients: Vec<Client>,
        corpus: &Arc<Corpus>,
        first: u64,
        transport: Option<Transport>,
    ) -> Self {
        let count = clients.len();
        let asking = Staying {
            clients,
            corpus: Arc::clone(corpus),
            transport,
        };
        Self::of(Arc::new(asking), count, first)
    }

    /// Lets this many clients ask.
    pub(super) fn of(asking: Arc<dyn Asking>, clients: usize, first: u64) -> Self {
        let shared = Arc::new(Shared {
            asking,
            first,
            sent: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            ended: Mutex::default(),
            open: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            let shared = Arc::clone(&shared);
            tasks.spawn(async move { shared.ask_on(number).await });
        }
        Self {
            shared,
            clients: tasks,
        }
    }

    /// How many requests were sent.
    pub(super) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Waits until this many were sent.
    pub(super) async fn until_sent(&self, want: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + DEADLINE;
        while self.sent() < want {
            ensure!(
                Instant::now() < deadline,
                "{} of {want} requests sent in {DEADLINE:?}",
                self.sent()
            );
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Waits until this many more were sent.
    pub(super) async fn more(&self, requests: u64) -> anyhow::Result<()> {
        self.until_sent(self.sent() + requests).await
    }

    /// Lets no client ask again, and waits for what is under way, but not for what is `hopeless`.
    pub(super) async fn finish(
        mut self,
        hopeless: impl Fn(&str) -> bool,
    ) -> anyhow::Result<Vec<Exchange>> {
        self.shared.stopped.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + DEADLINE;
        loop {
            let open: Vec<_> = {
                let open = self.shared.open.lock();
                open.iter()
                    .map(|(id, it)| (id.clone(), it.clone()))
                    .collect()
            };
            for (_, leave) in open.iter().filter(|(id, _)| hopeless(id)) {
                leave.cancel();
            }
            let step = tokio::time::timeout(POLL_INTERVAL * 10, self.clients.join_next());
            match step.await {
                Ok(None) => break,
                Ok(Some(ended)) => ended?,
                Err(_) if Instant::now() > deadline => bail!("no end: {open:?}"),
                Err(_) => {}
            }
        }
        let ended = std::mem::take(&mut *self.shared.ended.lock());
        ensure!(ended.len() as u64 == self.sent(), "requests without an end");
        Ok(ended)
    }
}

impl Shared {
    async fn ask_on(&self, number: usize) {
        for turn in self.first.. {
            tokio::time::sleep(self.asking.thinking(number, turn)).await;
            if self.stopped.load(Ordering::Relaxed) {
                return;
            }
            let Ok((client, call)) = self.asking.ask(number, turn) else {
                return;
            };
            let exchange = self.exchange(number, &client, call).await;
            let failed = exchange.is_failure();
            self.ended.lock().push(exchange);
            if failed {
                tokio::time::sleep(ANNOYED).await;
            }
        }
    }

    async fn exchange(&self, number: usize, client: &Client, mut call: Call) -> Exchange {
        let id = call.request_id().unwrap_or_default();
        let leave = CancellationToken::new();
        self.open.lock().insert(id.clone(), leave.clone());
        self.sent.fetch_add(1, Ordering::Relaxed);
        let mut exchange = Exchange {
            id,
            client: number,
            envoy: client.target(),
            began: Instant::now(),
            ended: Instant::now(),
            engine: None,
            begun: false,
            ending: Ending::Answered,
        };
        let outcome = tokio::select! {
            outcome = answer(client, call, &mut exchange) => Some(outcome),
            () = leave.cancelled() => None,
        };
        exchange.ending = match outcome {
            Some(Ok(())) => Ending::Answered,
            Some(Err(error)) => Ending::Failed {
                why: format!("{error:#}"),
            },
            None => Ending::GivenUp,
        };
        exchange.ended = Instant::now();
        self.open.lock().remove(&exchange.id);
        exchange
    }
}

/// Sends a call and reads its answer; fails unless that is whole.
async fn answer(client: &Client, call: Call, exchange: &mut Exchange) -> anyhow::Result<()> {
    const SHOWN: usize = 200;
    let mut open = client.open(call).await.context("no answer")?;
    let headers = open.response.headers();
    let engine = headers.get("x-engine").and_then(|it| it.to_str().ok());
    exchange.engine = engine.map(str::to_owned);
    let streamed = headers
        .get("content-type")
        .is_some_and(|it| it.as_bytes().starts_with(b"text/event-stream"));
    let status = open.response.status();
    exchange.begun = status.is_success();
    let mut body = Vec::new();
    while let Some(piece) = open.chunk().await.context("the answer breaks off")? {
        body.extend_from_slice(&piece);
    }
    let shown = || {
        String::from_utf8_lossy(body.get(..body.len().min(SHOWN)).unwrap_or_default()).into_owned()
    };
    ensure!(status.is_success(), "status {status}: {}", shown());
    let whole = match streamed {
        true => body.ends_with(b"data: [DONE]\n\n"),
        false => serde_json::from_slice::<serde_json::Value>(&body).is_ok(),
    };
    ensure!(whole, "the answer is not whole: {}", shown());
    Ok(())
}
