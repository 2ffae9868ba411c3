//! An HTTP/1.1 client that decides which bytes of a body leave in one write, for tests of what the
//! filter does when a body arrives in pieces.
//!
//! Every piece is flushed on its own and the connection does not gather small writes. Envoy may
//! still find several pieces at one read when it is slower than the client; a pause between pieces
//! makes that unlikely.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{Call, Reply};

/// No raw exchange takes longer.
const DEADLINE: Duration = Duration::from_secs(60);
/// More headers than any answer has.
const MAX_HEADERS: usize = 64;

/// How the end of the body is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// `content-length`.
    Length,
    /// `transfer-encoding: chunked`, each piece a chunk.
    Chunked,
}

/// How a body is cut.
#[derive(Clone, Debug)]
pub struct Pieces {
    /// Lengths of the pieces; what remains of the body is the last piece.
    pub sizes: Vec<usize>,
    /// How the end is marked.
    pub framing: Framing,
    /// Pause before each piece but the first.
    pub pause: Duration,
}

impl Pieces {
    /// Two pieces, cut at `offset`.
    pub fn split_at(offset: usize, framing: Framing) -> Self {
        Self {
            sizes: vec![offset],
            framing,
            pause: Duration::from_millis(1),
        }
    }

    /// Pieces of `size` bytes of a body of `length` bytes, one after the other without a pause.
    pub fn of(size: usize, length: usize, framing: Framing) -> Self {
        Self {
            sizes: vec![size; length.checked_div(size).unwrap_or(0)],
            framing,
            pause: Duration::ZERO,
        }
    }
}

/// Sends a call over a new connection, its body cut as told, and waits for the whole answer.
///
/// An answer that comes before the body is sent is taken, as a client would.
pub async fn send(target: SocketAddr, mut call: Call, pieces: &Pieces) -> anyhow::Result<Reply> {
    let request_id = call.request_id()?;
    let exchange = async {
        let mut stream = TcpStream::connect(target).await?;
        stream.set_nodelay(true)?;
        let written = write(&mut stream, target, &call, pieces).await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer).await;
        if answer.is_empty() {
            written.context("sending")?;
            read.context("receiving")?;
        }
        parse(&answer)
    };
    let (status, headers, body) = tokio::time::timeout(DEADLINE, exchange)
        .await
        .context("no whole answer in time")??;
    Ok(Reply {
        request_id,
        status,
        headers,
        body,
    })
}

async fn write(
    stream: &mut TcpStream,
    target: SocketAddr,
    call: &Call,
    pieces: &Pieces,
) -> anyhow::Result<()> {
    stream
        .write_all(&head(target, call, pieces.framing))
        .await?;
    let mut rest = call.body.clone();
    let mut first = true;
    for size in pieces.sizes.iter().copied().chain([usize::MAX]) {
        let piece = rest.split_to(size.min(rest.len()));
        if piece.is_empty() {
            continue;
        }
        if !first && !pieces.pause.is_zero() {
            tokio::time::sleep(pieces.pause).await;
        }
        first = false;
        match pieces.framing {
            Framing::Length => stream.write_all(&piece).await?,
            Framing::Chunked => {
                let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
                chunk.extend_from_slice(&piece);
                chunk.extend_from_slice(b"\r\n");
                stream.write_all(&chunk).await?;
            }
        }
    }
    if pieces.framing == Framing::Chunked {
        stream.write_all(b"0\r\n\r\n").await?;
    }
    Ok(())
}

fn head(target: SocketAddr, call: &Call, framing: Framing) -> Vec<u8> {
    let mut head = format!(
        "{} {} HTTP/1.1\r\nhost: {target}\r\nconnection: close\r\n",
        call.method, call.path
    )
    .into_bytes();
    for (name, value) in &call.headers {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    let end = match framing {
        Framing::Length => format!("content-length: {}\r\n\r\n", call.body.len()),
        Framing::Chunked => "transfer-encoding: chunked\r\n\r\n".to_owned(),
    };
    head.extend_from_slice(end.as_bytes());
    head
}

/// Splits a whole answer into status, headers and body.
fn parse(answer: &[u8]) -> anyhow::Result<(u16, HeaderMap, Bytes)> {
    let mut slots = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut slots);
    let httparse::Status::Complete(length) = head.parse(answer)? else {
        bail!(
            "the answer ends within its headers: {:?}",
            Bytes::copy_from_slice(answer)
        );
    };
    let mut headers = HeaderMap::new();
    for header in head.headers.iter() {
        headers.append(
            HeaderName::from_bytes(header.name.as_bytes())?,
            HeaderValue::from_bytes(header.value)?,
        );
    }
    let rest = answer.get(length..).unwrap_or_default();
    let chunked = headers
        .get("transfer-encoding")
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"));
    let body = if chunked {
        unchunk(rest)?
    } else {
        rest.to_vec()
    };
    if let Some(length) = headers.get("content-length") {
        let length: usize = length.to_str()?.parse()?;
        ensure!(
            body.len() == length,
            "{} bytes of body instead of {length}",
            body.len()
        );
    }
    Ok((head.code.context("no status")?, headers, body.into()))
}

fn unchunk(mut rest: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let Ok(httparse::Status::Complete((start, size))) = httparse::parse_chunk_size(rest) else {
            bail!(
                "the answer ends within its body, after {} bytes",
                body.len()
            );
        };
        if size == 0 {
            return Ok(body);
        }
        let end = start + usize::try_from(size)?;
        body.extend_from_slice(
            rest.get(start..end)
                .context("the answer ends within a chunk")?,
        );
        rest = rest
            .get(end + 2..)
            .context("the answer ends after a chunk")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_in_both_framings() {
        let plain = b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\nx-a: b\r\n\r\nhi";
        let (status, headers, body) = parse(plain).unwrap();
        assert_eq!(
            (status, &headers["x-a"], &body[..]),
            (404, &HeaderValue::from_static("b"), &b"hi"[..])
        );
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(&parse(chunked).unwrap().2[..], b"abcde");
    }

    #[test]
    fn cut_off_answers_are_errors() {
        assert!(parse(b"HTTP/1.1 200 OK\r\ncontent-le").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab").is_err());
    }

    #[tokio::test]
    async fn every_byte_of_the_body_is_sent_in_order() {
        for framing in [Framing::Length, Framing::Chunked] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let target = listener.local_addr().unwrap();
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut heard = Vec::new();
                while !heard.ends_with(b"world") && !heard.ends_with(b"0\r\n\r\n") {
                    stream.read_buf(&mut heard).await.unwrap();
                }
                stream
                    .write_all(b"HTTP/1.1 204 None\r\n\r\n")
                    .await
                    .unwrap();
                String::from_utf8(heard).unwrap()
            });
            let call = Call::get("/x").body("hello world");
            let reply = send(target, call, &Pieces::of(4, 11, framing))
                .await
                .unwrap();
            let heard = server.await.unwrap();
            assert_eq!(reply.status, 204);
            let want = match framing {
                Framing::Length => "content-length: 11\r\n\r\nhello world",
                Framing::Chunked => {
                    "chunked\r\n\r\n4\r\nhell\r\n4\r\no wo\r\n3\r\nrld\r\n0\r\n\r\n"
                }
            };
            assert!(heard.ends_with(want), "{heard}");
        }
    }
}
