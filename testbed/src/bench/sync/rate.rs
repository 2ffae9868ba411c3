//! A load that comes at a fixed rate, whether the last request was answered or not.
//!
//! A request is sent when it is due, over a connection that is idle or a new one, and its latency is counted
//! from then. Requests are due in a fixed rhythm; the timer's is a millisecond, so those of a millisecond come
//! together. How much later than due they were sent is counted too: it says whether the generator kept up.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::bench::corpus::Corpus;
use crate::bench::load::Connection;

/// How often it is looked at what is due.
const TICK: Duration = Duration::from_millis(1);
/// No answer takes longer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// Most requests under way through one Envoy; one more counts as failed.
const MOST_OPEN: usize = 512;

/// What a window showed.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    /// Requests that were sent and answered 200 in it.
    pub(super) answered: u64,
    /// Requests that were not answered 200.
    pub(super) failed: u64,
    /// Its length.
    pub(super) elapsed: Duration,
    /// Their latencies, sorted.
    pub(super) latencies_ns: Vec<u64>,
    /// How much later than due they were sent, sorted.
    pub(super) late_ns: Vec<u64>,
}

/// What all requests of a load write into.
#[derive(Debug, Default)]
struct Board {
    stopped: bool,
    recording: bool,
    window: Window,
}

impl Board {
    /// Counts a request that was not sent.
    fn fail(&mut self) {
        self.window.failed += u64::from(self.recording);
    }
}

/// The connections to one Envoy.
struct Route {
    envoy: SocketAddr,
    corpus: Arc<Corpus>,
    idle: Mutex<Vec<Connection>>,
    board: Arc<Mutex<Board>>,
}

/// A load that runs until it is finished.
pub(super) struct Load {
    board: Arc<Mutex<Board>>,
    offers: JoinSet<anyhow::Result<()>>,
}

impl Load {
    /// Starts it: to each Envoy, so many requests per second.
    pub(super) fn start(
        rates: impl Iterator<Item = (SocketAddr, u32)>,
        corpus: &Arc<Corpus>,
    ) -> Self {
        let board = Arc::new(Mutex::default());
        let mut offers = JoinSet::new();
        for (envoy, per_s) in rates {
            let route = Arc::new(Route {
                envoy,
                corpus: Arc::clone(corpus),
                idle: Mutex::default(),
                board: Arc::clone(&board),
            });
            offers.spawn(route.offer(per_s));
        }
        Self { board, offers }
    }

    /// Opens the window.
    pub(super) fn open(&self) -> Instant {
        self.board.lock().recording = true;
        Instant::now()
    }

    /// Closes it. Returns its length.
    pub(super) fn close(&self, opened: Instant) -> Duration {
        self.board.lock().recording = false;
        opened.elapsed()
    }

    /// Ends the load, waits for what is under way, and tells what was in the window.
    pub(super) async fn finish(mut self, elapsed: Duration) -> anyhow::Result<Window> {
        self.board.lock().stopped = true;
        while let Some(offer) = self.offers.join_next().await {
            offer??;
        }
        let mut window = std::mem::take(&mut self.board.lock().window);
        window.elapsed = elapsed;
        window.latencies_ns.sort_unstable();
        window.late_ns.sort_unstable();
        Ok(window)
    }
}

impl Route {
    async fn offer(self: Arc<Self>, per_s: u32) -> anyhow::Result<()> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut under_way = JoinSet::new();
        let (began, mut sent) = (Instant::now(), 0_u32);
        while !self.board.lock().stopped {
            ticks.tick().await;
            let due = began.elapsed().as_secs_f64() * f64::from(per_s);
            while f64::from(sent) < due {
                let at = began + Duration::from_secs_f64(f64::from(sent) / f64::from(per_s));
                sent += 1;
                if under_way.len() < MOST_OPEN {
                    under_way.spawn(Arc::clone(&self).exchange(at));
                } else {
                    self.board.lock().fail();
                }
            }
            while let Some(ended) = under_way.try_join_next() {
                ended?;
            }
        }
        while let Some(ended) = under_way.join_next().await {
            ended?;
        }
        Ok(())
    }

    /// One request, which was due at `due`.
    async fn exchange(self: Arc<Self>, due: Instant) {
        let began = Instant::now();
        let recorded = self.board.lock().recording;
        let answered = tokio::time::timeout(ANSWER_DEADLINE, self.answered()).await;
        let latency = began.elapsed();
        let mut board = self.board.lock();
        if !recorded {
            return;
        }
        let ns = |it: Duration| u64::try_from(it.as_nanos()).unwrap_or(u64::MAX);
        board.window.late_ns.push(ns(began - due));
        if matches!(answered, Ok(Ok(()))) {
            board.window.answered += 1;
            board.window.latencies_ns.push(ns(latency));
        } else {
            board.window.failed += 1;
        }
    }

    /// Sends a request and waits for its answer, which must be 200. A connection that broke is dropped.
    async fn answered(&self) -> anyhow::Result<()> {
        let idle = self.idle.lock().pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => Connection::open(self.envoy).await?,
        };
        let status = connection.exchange(self.corpus.next()).await;
        let status = status.context("the answer broke off")?;
        self.idle.lock().push(connection);
        match status {
            200 => Ok(()),
            status => bail!("status {status}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::corpus::{Style, Warmth};
    use crate::bench::upstream::Upstream;

    #[tokio::test]
    async fn what_is_due_is_sent_and_counted() {
        let upstream = Upstream::start(&[0, 0]).await.unwrap();
        let style = Style {
            plain: false,
            model_last: false,
        };
        let corpus = Arc::new(Corpus::shared_prefix(1 << 10, Warmth::Hot, style));
        let engines = upstream.addresses.iter().copied();
        let load = Load::start(engines.zip([500, 0]), &corpus);
        let opened = load.open();
        while load.board.lock().window.answered < 20 {
            tokio::time::sleep(TICK).await;
        }
        let elapsed = load.close(opened);
        let window = load.finish(elapsed).await.unwrap();
        assert_eq!(window.failed, 0);
        let due = elapsed.as_secs_f64() * 500.0;
        assert!(window.answered as f64 <= due + 1.0, "{window:?}");
        assert_eq!(window.latencies_ns.len() as u64, window.answered);
        assert!(window.latencies_ns.is_sorted() && window.elapsed == elapsed);
    }

    #[tokio::test]
    async fn a_router_that_is_not_there_fails_every_request() {
        let gone = {
            let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
            listener.local_addr().unwrap()
        };
        let style = Style {
            plain: true,
            model_last: false,
        };
        let corpus = Arc::new(Corpus::shared_prefix(1 << 10, Warmth::Hot, style));
        let load = Load::start([(gone, 1000)].into_iter(), &corpus);
        let opened = load.open();
        while load.board.lock().window.failed < 5 {
            tokio::time::sleep(TICK).await;
        }
        let elapsed = load.close(opened);
        let window = load.finish(elapsed).await.unwrap();
        assert!(window.answered == 0 && window.latencies_ns.is_empty());
    }
}
