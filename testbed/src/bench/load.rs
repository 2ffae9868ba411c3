//! The load generator: closed loop, keep-alive HTTP/1.1, one request at a time per connection.
//!
//! Messages are written from the corpus as they are, without a copy, and answers are parsed only as
//! far as needed to find their end: each request costs two or three system calls. Figures come from
//! a window in the middle of the load; requests in flight at its edges belong to neither side's
//! latencies, and completions are counted at the same two moments as the router's CPU time.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::corpus::{Corpus, Message};
use super::process::Process;

/// Load before a window opens, so that connections exist and caches are warm.
const LEAD_IN: Duration = Duration::from_millis(200);
/// No answer takes longer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// Answers of routers under test are small.
const READ_BYTES: usize = 16 << 10;
/// More headers than any answer has.
const MAX_HEADERS: usize = 64;

/// What one window showed.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// Requests that were answered 200 within the window.
    pub requests: u64,
    /// Requests that were not.
    pub errors: u64,
    /// Length of the window.
    pub elapsed: Duration,
    /// Latencies in nanoseconds, sorted.
    pub latencies_ns: Vec<u64>,
    /// CPU time of the router within the window, in nanoseconds.
    pub cpu_ns: Option<u64>,
}

impl Window {
    /// A latency quantile in microseconds; 0 without requests.
    pub fn latency_us(&self, quantile: f64) -> f64 {
        quantile_us(&self.latencies_ns, quantile)
    }
}

/// A quantile of sorted times in nanoseconds, in microseconds; 0 without times.
pub fn quantile_us(sorted_ns: &[u64], quantile: f64) -> f64 {
    let last = sorted_ns.len().saturating_sub(1);
    let at = (last as f64 * quantile).round() as usize;
    sorted_ns.get(at).map_or(0.0, |it| *it as f64 / 1000.0)
}

/// State that the connections of one load share.
#[derive(Debug, Default)]
struct Board {
    recording: AtomicBool,
    stop: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
    /// Requests that may still be sent.
    budget: AtomicU64,
}

impl Board {
    fn take_one(&self) -> bool {
        let take = |left: u64| left.checked_sub(1);
        !self.stop.load(Ordering::Relaxed)
            && self
                .budget
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .is_ok()
    }
}

/// Loads a router for `length` and measures.
///
/// Fails if a connection cannot be made, or if every request fails.
pub async fn measure(
    router: SocketAddr,
    process: Option<Process>,
    corpus: &Arc<Corpus>,
    connections: usize,
    length: Duration,
) -> anyhow::Result<Window> {
    let board = Arc::new(Board {
        budget: AtomicU64::new(u64::MAX),
        ..Board::default()
    });
    let mut clients = start(router, corpus, connections, &board).await?;
    tokio::time::sleep(LEAD_IN).await;
    let look = || -> anyhow::Result<_> {
        let cpu_ns = process.map(Process::cpu_ns).transpose()?;
        let answered = board.answered.load(Ordering::Relaxed);
        Ok((
            Instant::now(),
            answered,
            board.failed.load(Ordering::Relaxed),
            cpu_ns,
        ))
    };
    let (began, answered_before, failed_before, cpu_before) = look()?;
    board.recording.store(true, Ordering::Relaxed);
    tokio::time::sleep(length).await;
    board.recording.store(false, Ordering::Relaxed);
    let (ended, answered, failed, cpu) = look()?;
    board.stop.store(true, Ordering::Relaxed);
    let mut latencies_ns = Vec::new();
    while let Some(client) = clients.join_next().await {
        latencies_ns.extend(client??);
    }
    latencies_ns.sort_unstable();
    let window = Window {
        requests: answered - answered_before,
        errors: failed - failed_before,
        elapsed: ended - began,
        latencies_ns,
        cpu_ns: cpu
            .zip(cpu_before)
            .map(|(after, before)| after.saturating_sub(before)),
    };
    ensure!(
        window.requests > 0,
        "no request was answered 200 by {router}"
    );
    Ok(window)
}

/// Sends exactly `count` requests. Returns how many were not answered 200.
pub async fn send(
    router: SocketAddr,
    corpus: &Arc<Corpus>,
    connections: usize,
    count: u64,
) -> anyhow::Result<u64> {
    let board = Arc::new(Board {
        budget: AtomicU64::new(count),
        ..Board::default()
    });
    let mut clients = start(router, corpus, connections, &board).await?;
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(board.failed.load(Ordering::Relaxed))
}

async fn start(
    router: SocketAddr,
    corpus: &Arc<Corpus>,
    connections: usize,
    board: &Arc<Board>,
) -> anyhow::Result<JoinSet<anyhow::Result<Vec<u64>>>> {
    let mut opened = Vec::new();
    for _ in 0..connections {
        opened.push(Connection::open(router).await?);
    }
    let mut clients = JoinSet::new();
    for connection in opened {
        clients.spawn(client(connection, corpus.clone(), board.clone()));
    }
    Ok(clients)
}

/// One connection's loop. Returns latencies of requests that lie within the window.
async fn client(
    mut connection: Connection,
    corpus: Arc<Corpus>,
    board: Arc<Board>,
) -> anyhow::Result<Vec<u64>> {
    let mut latencies = Vec::new();
    while board.take_one() {
        let recorded = board.recording.load(Ordering::Relaxed);
        let began = Instant::now();
        let exchange = connection.exchange(corpus.next());
        let status = match tokio::time::timeout(ANSWER_DEADLINE, exchange).await {
            Ok(Ok(status)) => status,
            // Broken off or too late: the rest of the answer must not be taken for the next one.
            Ok(Err(_)) | Err(_) => {
                connection = Connection::open(connection.router).await?;
                0
            }
        };
        let latency = began.elapsed();
        if status != 200 {
            board.failed.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        board.answered.fetch_add(1, Ordering::Relaxed);
        if recorded && board.recording.load(Ordering::Relaxed) {
            latencies.push(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        }
    }
    Ok(latencies)
}

/// A keep-alive connection.
pub struct Connection {
    router: SocketAddr,
    stream: TcpStream,
    /// What was read of the current answer.
    answer: Vec<u8>,
}

impl Connection {
    /// Connects to a router.
    pub async fn open(router: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(router)
            .await
            .with_context(|| format!("connecting to {router}"))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            router,
            stream,
            answer: Vec::with_capacity(READ_BYTES),
        })
    }

    /// Sends one request and reads its whole answer. Returns its status.
    pub async fn exchange(&mut self, message: Message<'_>) -> anyhow::Result<u16> {
        let mut pieces = [
            IoSlice::new(message.before),
            IoSlice::new(&message.stamp),
            IoSlice::new(message.after),
        ];
        let mut left = &mut pieces[..];
        while !left.is_empty() {
            let written = self.stream.write_vectored(left).await?;
            ensure!(written > 0, "the connection was closed");
            IoSlice::advance_slices(&mut left, written);
        }
        self.read_answer().await
    }

    /// Sends one request, written out, and reads its whole answer. Returns its status.
    pub async fn send(&mut self, message: &[u8]) -> anyhow::Result<u16> {
        self.stream.write_all(message).await?;
        self.read_answer().await
    }

    async fn read_answer(&mut self) -> anyhow::Result<u16> {
        self.answer.clear();
        loop {
            if self.stream.read_buf(&mut self.answer).await? == 0 {
                bail!("the connection was closed");
            }
            if let Some(status) = complete(&self.answer)? {
                return Ok(status);
            }
        }
    }
}

/// The status of an answer, once it is there to its end.
fn complete(answer: &[u8]) -> anyhow::Result<Option<u16>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head_bytes) = head.parse(answer)? else {
        return Ok(None);
    };
    let find = |name: &str| {
        let mut headers = head.headers.iter();
        headers.find(|header| header.name.eq_ignore_ascii_case(name))
    };
    let whole = match find("content-length") {
        Some(length) => {
            let length: usize = std::str::from_utf8(length.value)?.trim().parse()?;
            answer.len() >= head_bytes + length
        }
        None if find("transfer-encoding").is_some() => answer.ends_with(b"0\r\n\r\n"),
        None => bail!("an answer without a length"),
    };
    Ok(head.code.filter(|_| whole))
}

#[cfg(test)]
mod tests {
    use super::super::corpus::{Style, Warmth};
    use super::super::upstream::Upstream;
    use super::*;

    #[test]
    fn an_answer_ends_where_its_head_says() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(complete(answer).unwrap(), Some(200));
        assert_eq!(complete(&answer[..answer.len() - 1]).unwrap(), None);
        let chunked = b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        assert_eq!(complete(chunked).unwrap(), Some(503));
        assert_eq!(complete(&chunked[..chunked.len() - 5]).unwrap(), None);
        assert!(complete(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    #[test]
    fn quantiles_are_of_the_sorted_latencies() {
        let window = Window {
            latencies_ns: (1..=101).map(|rank| rank * 1000).collect(),
            ..Window::default()
        };
        assert_eq!(window.latency_us(0.5), 51.0);
        assert_eq!(window.latency_us(0.99), 100.0);
        assert_eq!(Window::default().latency_us(0.5), 0.0);
    }

    #[tokio::test]
    async fn every_request_is_answered_and_counted() {
        let upstream = Upstream::start(&[0]).await.unwrap();
        let style = Style {
            plain: false,
            model_last: false,
        };
        let corpus = Arc::new(Corpus::shared_prefix(32 << 10, Warmth::Cold, style));
        let engine = upstream.addresses[0];
        assert_eq!(send(engine, &corpus, 4, 100).await.unwrap(), 0);
        let own = Process::new(std::process::id());
        let length = Duration::from_millis(50);
        let window = measure(engine, Some(own), &corpus, 4, length)
            .await
            .unwrap();
        assert_eq!(window.errors, 0);
        assert!(window.requests >= window.latencies_ns.len() as u64);
        assert!(window.elapsed >= length);
    }

    #[tokio::test]
    async fn a_router_that_is_not_there_is_an_error() {
        let gone = {
            let upstream = Upstream::start(&[0]).await.unwrap();
            upstream.addresses[0]
        };
        let style = Style {
            plain: true,
            model_last: false,
        };
        let corpus = Arc::new(Corpus::shared_prefix(1 << 10, Warmth::Hot, style));
        // The port closes as soon as the dropped task is reaped.
        while TcpStream::connect(gone).await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(send(gone, &corpus, 1, 1).await.is_err());
    }
}
