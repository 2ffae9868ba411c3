//! Commands in Redis's own protocol (RESP2), one a connection: an array of strings, and an answer that is no
//! array itself.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// One that takes longer is halted.
const DEADLINE: Duration = Duration::from_secs(5);

/// What Redis answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A status, such as `OK`.
    Status(String),
    /// A number.
    Number(i64),
    /// A string of any bytes.
    Bytes(Vec<u8>),
    /// There is nothing.
    Nothing,
}

/// Runs a command.
///
/// # Errors
/// No answer within five seconds, an answer that is an error, or one that is an array.
pub(super) async fn run(address: SocketAddr, words: &[&[u8]]) -> anyhow::Result<Reply> {
    let exchange = async {
        let mut connection = BufReader::new(TcpStream::connect(address).await?);
        connection.write_all(&command(words)).await?;
        answer(&mut connection).await
    };
    let exchange = tokio::time::timeout(DEADLINE, exchange);
    exchange.await.context("Redis does not answer")?
}

fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend(format!("${}\r\n", word.len()).into_bytes());
        out.extend_from_slice(word);
        out.extend(b"\r\n");
    }
    out
}

async fn answer(from: &mut (impl AsyncBufReadExt + Unpin)) -> anyhow::Result<Reply> {
    let mut line = String::new();
    from.read_line(&mut line).await?;
    let line = line.trim_end();
    let rest = line.get(1..).context("the connection was closed")?;
    match line.as_bytes().first() {
        Some(b'+') => Ok(Reply::Status(rest.to_owned())),
        Some(b':') => Ok(Reply::Number(rest.parse()?)),
        Some(b'$') if rest.starts_with('-') => Ok(Reply::Nothing),
        Some(b'$') => {
            let mut bytes = vec![0; rest.parse()?];
            from.read_exact(&mut bytes).await?;
            Ok(Reply::Bytes(bytes))
        }
        _ => bail!("Redis answered {line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_may_hold_any_bytes() {
        let told = command(&[b"XADD", b"", b"a\r\n\0\xff"]);
        assert_eq!(told, b"*3\r\n$4\r\nXADD\r\n$0\r\n\r\n$5\r\na\r\n\0\xff\r\n");
    }

    #[tokio::test]
    async fn answers_are_read() {
        let read = async |mut bytes: &[u8]| answer(&mut bytes).await;
        assert_eq!(
            read(b"+OK\r\n").await.unwrap(),
            Reply::Status("OK".to_owned())
        );
        assert_eq!(read(b":-7\r\n").await.unwrap(), Reply::Number(-7));
        assert_eq!(read(b"$-1\r\n").await.unwrap(), Reply::Nothing);
        let bytes = Reply::Bytes(b"a\r\nb".to_vec());
        assert_eq!(read(b"$4\r\na\r\nb\r\n").await.unwrap(), bytes);
        for refused in [
            &b"-ERR no\r\n"[..],
            b"",
            b"$4\r\nab",
            b"*1\r\n:1\r\n",
            b":x\r\n",
        ] {
            read(refused).await.unwrap_err();
        }
    }
}
