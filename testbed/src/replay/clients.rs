//! The clients: each request at its time, or its delay after the turn before it, over a connection
//! of its own, so that it meets a random worker; of several Envoys, a random one.
//!
//! Every arrival is a task that lives as long as its conversation. Memory is bounded by the prompts
//! in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Plan, real};
use crate::bench::corpus::MODEL;
use crate::sim::request::SimRequest;
use crate::sim::statistics::{Sample, Samples};
use crate::sim::workload::Workload;

/// Carries the request's position in the workload to the engine.
pub(super) const REQUEST_ID: &str = "x-request-id";
/// Carries what stands for the conversation, as the simulator's routers know it.
const SESSION: &str = "x-session-id";

/// A client that opens a connection for each request, of JSON.
pub(crate) fn client() -> anyhow::Result<reqwest::Client> {
    let json = HeaderValue::from_static("application/json");
    let client = reqwest::Client::builder()
        .no_proxy()
        .default_headers(HeaderMap::from_iter([(CONTENT_TYPE, json)]))
        .pool_max_idle_per_host(0)
        .tcp_nodelay(true);
    Ok(client.build()?)
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    stream: bool,
    stream_options: StreamOptions,
    max_tokens: u32,
    prompt: &'a str,
}

/// The engine is to report its token counts: the filter compares them with its prediction.
#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Clients {
    arrivals: Vec<(Duration, usize)>,
    shared: Arc<Shared>,
}

/// What the tasks have in common.
#[derive(Debug)]
struct Shared {
    workload: Workload,
    client: reqwest::Client,
    urls: Vec<String>,
    seed: u64,
    speed: f64,
    sent: AtomicUsize,
}

/// How one request went, in real time.
#[derive(Debug, Clone, Copy)]
struct Exchange {
    request: usize,
    /// How many were sent before it.
    order: usize,
    late: Duration,
    first_byte: Duration,
}

/// How all requests went.
#[derive(Debug)]
pub(super) struct Sent {
    exchanges: Vec<Exchange>,
    warm_up: usize,
}

impl Clients {
    /// Clients that will send the slice of a plan to `urls`.
    pub(super) fn new(plan: &Plan, urls: &[String]) -> anyhow::Result<Self> {
        let arrivals = plan.slice.arrivals();
        Ok(Self {
            arrivals: arrivals
                .map(|(at_us, request)| (real(at_us, plan.speed), request))
                .collect(),
            shared: Arc::new(Shared {
                workload: plan.slice.workload.clone(),
                client: client()?,
                urls: urls.to_vec(),
                seed: plan.seed,
                speed: plan.speed,
                sent: AtomicUsize::new(0),
            }),
        })
    }

    /// Sends everything and waits for all answers.
    ///
    /// # Errors
    /// A request was not served whole.
    pub(super) async fn run(self) -> anyhow::Result<Sent> {
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        let mut exchanges = Vec::new();
        for (after, request) in self.arrivals {
            let due = start + after;
            sleep_until(due).await;
            tasks.spawn(Arc::clone(&self.shared).converse(request, due));
            while let Some(ended) = tasks.try_join_next() {
                exchanges.extend(ended??);
            }
        }
        while let Some(ended) = tasks.join_next().await {
            exchanges.extend(ended??);
        }
        let warm_up = self.shared.workload.warm_up();
        Ok(Sent { exchanges, warm_up })
    }
}

impl Shared {
    /// A request and all that follow it.
    async fn converse(
        self: Arc<Self>,
        request: usize,
        due: Instant,
    ) -> anyhow::Result<Vec<Exchange>> {
        let mut exchanges = Vec::new();
        let mut next = Some((request, due));
        while let Some((request, due)) = next {
            sleep_until(due).await;
            let exchange = self.exchange(request, due).await;
            exchanges.push(exchange.with_context(|| format!("request {request}"))?);
            let follow = self.workload.follow.get(request).copied().flatten();
            next =
                follow.map(|(next, delay_us)| (next, Instant::now() + real(delay_us, self.speed)));
        }
        Ok(exchanges)
    }

    async fn exchange(&self, request: usize, due: Instant) -> anyhow::Result<Exchange> {
        let req = self.workload.requests.get(request);
        let req = req.context("not in the workload")?;
        let body = body(req)?;
        let order = self.sent.fetch_add(1, Ordering::Relaxed);
        let start = Instant::now();
        let url = chosen(&self.urls, request, self.seed).context("no Envoy")?;
        let call = self.client.post(url).body(body);
        let call = call
            .header(REQUEST_ID, request.to_string())
            .header(SESSION, format!("{:016x}", req.key));
        let mut answer = call.send().await?;
        if !answer.status().is_success() {
            bail!("{}: {}", answer.status(), answer.text().await?);
        }
        let mut first_byte = None;
        while answer.chunk().await?.is_some() {
            first_byte.get_or_insert_with(|| start.elapsed());
        }
        ensure!(first_byte.is_some(), "the answer is empty");
        Ok(Exchange {
            request,
            order,
            late: start - due,
            first_byte: first_byte.unwrap_or_default(),
        })
    }
}

/// Which Envoy a request is sent to: at random, and to the same with the same seed.
fn chosen(urls: &[String], request: usize, seed: u64) -> Option<&String> {
    let draw = xxh3_64_with_seed(&request.to_le_bytes(), seed);
    urls.get(usize::try_from(draw % (urls.len() as u64).max(1)).ok()?)
}

/// The JSON of a request.
pub(crate) fn body(req: &SimRequest) -> anyhow::Result<Vec<u8>> {
    let text = String::from_utf8(req.text())?;
    Ok(serde_json::to_vec(&Body {
        model: MODEL,
        stream: true,
        stream_options: StreamOptions {
            include_usage: true,
        },
        max_tokens: req.output_tokens,
        prompt: &text,
    })?)
}

impl Sent {
    /// Every request, and whether it counts: as in the simulator, the first tenth does not.
    pub(super) fn counting(&self) -> impl Iterator<Item = (usize, bool)> + '_ {
        let exchanges = self.exchanges.iter();
        exchanges.map(|it| (it.request, it.order >= self.warm_up))
    }

    /// Times to first token as the clients saw them, in modelled time.
    pub(super) fn samples(&self, plan: &Plan) -> Samples {
        let mut samples = Samples::new(0);
        for it in self.exchanges.iter().filter(|it| it.order >= self.warm_up) {
            samples.add(Sample {
                engine: 0,
                ttft_us: (it.first_byte.as_secs_f64() * 1e6 * plan.speed) as u64,
                prompt_tokens: 0,
                cached_tokens: 0,
            });
        }
        samples
    }

    /// How much later than planned requests were sent, on average.
    pub(super) fn mean_lateness(&self) -> Duration {
        let sum: Duration = self.exchanges.iter().map(|it| it.late).sum();
        sum.div_f64(self.exchanges.len().max(1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::generate::conversations;

    #[test]
    fn a_body_is_the_prompt_of_the_simulator() {
        let records = conversations(20, 4, 1).unwrap();
        let workload = Workload::new(&records, None, 1, 1).unwrap();
        for req in &workload.requests {
            let json: serde_json::Value = serde_json::from_slice(&body(req).unwrap()).unwrap();
            let prompt = json["prompt"].as_str().unwrap();
            assert_eq!(prompt.len(), req.text_len());
            assert_eq!(prompt.as_bytes(), req.text());
            assert_eq!(json["max_tokens"], req.output_tokens);
        }
    }

    #[test]
    fn each_request_meets_a_random_envoy_that_the_seed_decides() {
        let urls = ["a", "b", "c"].map(str::to_owned);
        let draw = |seed| (0..3000).map(move |request| (request, seed));
        let all: Vec<_> = draw(1)
            .map(|(request, seed)| chosen(&urls, request, seed).unwrap())
            .collect();
        let again: Vec<_> = draw(1)
            .map(|(request, seed)| chosen(&urls, request, seed).unwrap())
            .collect();
        let other: Vec<_> = draw(2)
            .map(|(request, seed)| chosen(&urls, request, seed).unwrap())
            .collect();
        assert!(all == again && all != other);
        for url in &urls {
            let share = all.iter().filter(|it| **it == url).count();
            assert!((800..1200).contains(&share), "{url}: {share}");
        }
        assert_eq!(chosen(&[], 1, 1), None);
    }

    #[test]
    fn the_first_tenth_does_not_count() {
        let exchange = |request, order| Exchange {
            request,
            order,
            late: Duration::from_millis(order as u64),
            first_byte: Duration::from_secs(1),
        };
        let sent = Sent {
            exchanges: vec![exchange(7, 1), exchange(3, 0), exchange(5, 2)],
            warm_up: 1,
        };
        let counting: Vec<_> = sent.counting().collect();
        assert_eq!(counting, [(7, true), (3, false), (5, true)]);
        assert_eq!(sent.mean_lateness(), Duration::from_millis(1));
    }
}
