//! A stretch of a soak: so many requests over a few connections, one at a time on each.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::messages::Messages;
use crate::bench::load::Connection;

/// No answer takes longer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
const OK: u16 = 200;

/// What came of a stretch.
#[derive(Debug, Default)]
pub(super) struct Stretch {
    /// Times from request to the end of the answer, in microseconds.
    pub(super) latencies_us: Vec<u32>,
    /// Requests that were not answered 200.
    pub(super) errors: u64,
}

/// Sends the messages of these numbers.
///
/// # Errors
/// A connection cannot be made.
pub(super) async fn send(
    router: SocketAddr,
    messages: &Arc<Messages>,
    numbers: Range<u64>,
    connections: usize,
) -> anyhow::Result<Stretch> {
    let next = Arc::new(AtomicU64::new(numbers.start));
    let mut clients = JoinSet::new();
    for _ in 0..connections {
        let client = Client {
            connection: Connection::open(router).await?,
            router,
            messages: Arc::clone(messages),
            next: Arc::clone(&next),
            end: numbers.end,
        };
        clients.spawn(client.run());
    }
    let mut all = Stretch::default();
    while let Some(ended) = clients.join_next().await {
        let part = ended??;
        all.latencies_us.extend(part.latencies_us);
        all.errors += part.errors;
    }
    Ok(all)
}

struct Client {
    connection: Connection,
    router: SocketAddr,
    messages: Arc<Messages>,
    next: Arc<AtomicU64>,
    end: u64,
}

impl Client {
    async fn run(mut self) -> anyhow::Result<Stretch> {
        let mut part = Stretch::default();
        let mut message = Vec::new();
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.end {
                return Ok(part);
            }
            self.messages.write(number, &mut message);
            let start = Instant::now();
            let exchange = self.connection.send(&message);
            match tokio::time::timeout(ANSWER_DEADLINE, exchange).await {
                Ok(Ok(OK)) => {
                    let took_us = start.elapsed().as_micros();
                    part.latencies_us
                        .push(u32::try_from(took_us).unwrap_or(u32::MAX));
                }
                Ok(Ok(_)) => part.errors += 1,
                // The rest of the answer must not be taken for the next one.
                Ok(Err(_)) | Err(_) => {
                    part.errors += 1;
                    self.connection = Connection::open(self.router).await?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::messages::Kind;
    use super::*;
    use crate::bench::upstream::Upstream;

    #[tokio::test]
    async fn every_number_is_sent_once() {
        let upstream = Upstream::start(&[0]).await.unwrap();
        let messages = Arc::new(Messages::new(Kind::Mixed, 1));
        let stretch = send(upstream.addresses[0], &messages, 100..200, 4).await;
        let stretch = stretch.unwrap();
        assert_eq!((stretch.latencies_us.len(), stretch.errors), (100, 0));
    }
}
