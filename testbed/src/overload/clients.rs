//! Clients that come whether they are served or not, and what became of each.
//!
//! Every request is a task with a connection of its own, so it meets a random worker. Memory is
//! bounded by the requests of the run.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::replay::{body, client};
use crate::sim::workload::Workload;

/// Says the class of a request.
const PRIORITY: &str = "x-warmpath-priority";
const TOO_MANY_REQUESTS: u16 = 429;
const OK: u16 = 200;

/// What is sent, and when.
#[derive(Debug)]
pub(super) struct Offer {
    /// The requests.
    pub(super) workload: Workload,
    /// Arrival times are multiplied by this.
    pub(super) time_scale: f64,
    /// Modelled seconds in a real one.
    pub(super) speed: f64,
    /// Of a hundred requests so many are of low priority.
    pub(super) low_percent: u64,
    /// Where they go.
    pub(super) url: String,
    /// Why the first of those that failed did.
    pub(super) first_failure: Mutex<Option<String>>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum End {
    /// Its whole answer came; this was the time to the first token.
    Answered(Duration),
    /// It was refused at once, as the documentation says it.
    Refused,
    /// Anything else.
    Failed,
}

/// One request. All times are modelled ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    /// When it was to be sent, from the start.
    pub(super) at: Duration,
    /// How much later it was.
    pub(super) late: Duration,
    /// Whether it was of low priority.
    pub(super) low: bool,
    /// How it ended.
    pub(super) end: End,
}

impl Offer {
    /// Sends everything and waits for the last answer.
    ///
    /// # Errors
    /// A refusal lacks what clients are promised, or a request cannot be built.
    pub(super) async fn send(self: &Arc<Self>) -> anyhow::Result<Vec<Outcome>> {
        let offer = self;
        let client = client()?;
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        let mut outcomes = Vec::new();
        for &(at_us, request) in &offer.workload.arrivals {
            let at = Duration::from_micros(at_us).mul_f64(offer.time_scale);
            sleep_until(start + at.div_f64(offer.speed)).await;
            let (offer, client) = (Arc::clone(offer), client.clone());
            tasks.spawn(async move {
                let late = offer.modelled(start).saturating_sub(at);
                let low = offer.is_low(request);
                let end = offer.exchange(&client, request, low).await?;
                anyhow::Ok(Outcome { at, late, low, end })
            });
            while let Some(ended) = tasks.try_join_next() {
                outcomes.push(ended??);
            }
        }
        while let Some(ended) = tasks.join_next().await {
            outcomes.push(ended??);
        }
        Ok(outcomes)
    }

    /// What has passed since, in modelled time.
    fn modelled(&self, start: Instant) -> Duration {
        start.elapsed().mul_f64(self.speed)
    }

    /// Spread evenly: the class has nothing to do with time or length.
    fn is_low(&self, request: usize) -> bool {
        let spread = (request as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        spread % 100 < self.low_percent
    }

    async fn exchange(
        &self,
        client: &reqwest::Client,
        request: usize,
        low: bool,
    ) -> anyhow::Result<End> {
        let req = self.workload.requests.get(request);
        let mut call = client
            .post(&self.url)
            .body(body(req.context("not in the workload")?)?);
        if low {
            call = call.header(PRIORITY, "low");
        }
        let start = Instant::now();
        let mut answer = match call.send().await {
            Ok(answer) => answer,
            Err(error) => return Ok(self.failed(format!("{error:?}"))),
        };
        match answer.status().as_u16() {
            OK => {}
            TOO_MANY_REQUESTS => return self.refusal(answer).await,
            status => return Ok(self.failed(format!("status {status}"))),
        }
        let mut first_token = None;
        loop {
            match answer.chunk().await {
                Ok(Some(_)) => _ = first_token.get_or_insert_with(|| self.modelled(start)),
                Ok(None) => break,
                Err(error) => return Ok(self.failed(format!("{error:?}"))),
            }
        }
        Ok(match first_token {
            Some(first_token) => End::Answered(first_token),
            None => self.failed("an empty answer".to_owned()),
        })
    }

    /// Checks that a refusal has what clients go by.
    async fn refusal(&self, answer: reqwest::Response) -> anyhow::Result<End> {
        let after = answer.headers().get("retry-after");
        let after = after.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        ensure!(after.is_some(), "a refusal without retry-after");
        let text = match answer.text().await {
            Ok(text) => text,
            Err(error) => return Ok(self.failed(format!("{error:?}"))),
        };
        let document: Value = serde_json::from_str(&text).context("a refusal's body is no JSON")?;
        let code = document.pointer("/error/code").and_then(Value::as_str);
        ensure!(code == Some("overloaded"), "a refusal that says {text}");
        Ok(End::Refused)
    }

    fn failed(&self, why: String) -> End {
        self.first_failure.lock().get_or_insert(why);
        End::Failed
    }
}
