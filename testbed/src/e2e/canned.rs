//! An upstream that gives prepared answers, one to each request and in this order, in pieces of any
//! size: what no engine of the testbed gives.
//!
//! Every piece is flushed on its own and followed by a pause, so that Envoy mostly finds them apart;
//! when it is slower, it finds several at one read. Each connection serves one request. The upstream
//! ends when it is dropped.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::harness::{StackSpec, pool_mut, static_endpoints};

const PAUSE: Duration = Duration::from_millis(1);
/// More than any request of the tests has.
const MAX_REQUEST_BYTES: usize = 1 << 20;

/// A prepared answer with status 200.
#[derive(Clone, Debug, Default)]
pub struct Canned {
    /// Header lines beside those of the body's length, each with its line end.
    pub headers: String,
    /// The body.
    pub body: Vec<u8>,
    /// Length of a piece; 0: all at once.
    pub piece_bytes: usize,
    /// Whether the pieces are HTTP chunks; else the length is told.
    pub chunked: bool,
}

/// A running upstream.
#[derive(Debug)]
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Upstream {
    /// Starts to listen.
    ///
    /// # Errors
    /// There is no port.
    pub async fn start(answers: Vec<Canned>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answers = Arc::clone(&answers);
                // What goes wrong here, the test's client sees.
                tokio::spawn(async move { serve(stream, &answers).await.ok() });
            }
        });
        Ok(Self { address, task })
    }

    /// Puts it in the place of all engines of a pool.
    pub fn instead_of(&self, pool: &'static str, spec: StackSpec) -> StackSpec {
        let address = self.address;
        let spec = spec.plugin(move |config| {
            if let Some(entry) = pool_mut(config, pool) {
                entry.insert("endpoints".to_owned(), static_endpoints(&[address]));
            }
        });
        spec.bootstrap(move |bootstrap| bootstrap.set_endpoints(pool, &[address]))
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, answers: &Mutex<VecDeque<Canned>>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    read_request(&mut stream).await?;
    let answer = next(answers).context("no answer is left")?;
    let length = match answer.chunked {
        true => "transfer-encoding: chunked\r\n".to_owned(),
        false => format!("content-length: {}\r\n", answer.body.len()),
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nconnection: close\r\n{}{length}\r\n",
        answer.headers
    );
    stream.write_all(head.as_bytes()).await?;
    let size = match answer.piece_bytes {
        0 => answer.body.len().max(1),
        size => size,
    };
    for piece in answer.body.chunks(size) {
        match answer.chunked {
            true => {
                let head = format!("{:x}\r\n", piece.len());
                let chunk = [head.as_bytes(), piece, b"\r\n"].concat();
                stream.write_all(&chunk).await?;
            }
            false => stream.write_all(piece).await?,
        }
        tokio::time::sleep(PAUSE).await;
    }
    if answer.chunked {
        stream.write_all(b"0\r\n\r\n").await?;
    }
    Ok(stream.shutdown().await?)
}

fn next(answers: &Mutex<VecDeque<Canned>>) -> Option<Canned> {
    let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
    answers.pop_front()
}

/// Reads a request to its end; its body's length must be told.
async fn read_request(stream: &mut TcpStream) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        if let httparse::Status::Complete(head) = request.parse(&bytes)? {
            let mut lines = request.headers.iter();
            let length = lines.find(|line| line.name.eq_ignore_ascii_case("content-length"));
            let length = length.context("no content-length")?.value;
            let length: usize = std::str::from_utf8(length)?.parse()?;
            if bytes.len() >= head + length {
                return Ok(());
            }
        }
        ensure!(bytes.len() <= MAX_REQUEST_BYTES, "the request is too long");
        if stream.read_buf(&mut bytes).await? == 0 {
            bail!("the request broke off");
        }
    }
}
