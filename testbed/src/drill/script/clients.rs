//! Clients that vanish: in their headers, in their body, while they wait, in the stream.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::future::join_all;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Scene, Struck};
use crate::drill::corpus::Corpus;
use crate::drill::exchange::{Ending, Exchange};
use crate::e2e::client::Call;

/// Clients that vanish, beside those that do not.
const VANISHING: usize = 4;
const PHASES: [&str; 4] = ["in headers", "in the body", "waiting", "in the stream"];
/// No stream takes longer to begin.
const DEADLINE: Duration = Duration::from_secs(60);

/// Clients vanish, and the others do not notice.
pub(super) async fn vanish<'a>(scene: Scene<'_, '_>) -> anyhow::Result<Struck<'a>> {
    let Scene {
        stage, load, plan, ..
    } = scene;
    let mut struck = Struck::now();
    let target = stage.stack.client().target();
    let end = load.sent() + plan.requests;
    let corpus = &stage.corpus;
    let vanishing = (0..VANISHING).map(async |client| {
        let mut own = Vec::new();
        while load.sent() < end {
            let number = own.len();
            // Clients of these numbers ask nothing else.
            let call = corpus.call(plan.clients + client, number as u64)?;
            let phase = PHASES.get((number + client) % PHASES.len());
            own.push(leave(target, call, phase.context("no phase")?).await?);
        }
        anyhow::Ok(own)
    });
    for own in join_all(vanishing).await {
        struck.own.extend(own?);
    }
    load.more(plan.margin()).await?;
    let left = |phase| {
        struck
            .own
            .iter()
            .filter(|it| it.ending == Ending::Left(phase))
            .count()
    };
    let counts = PHASES.map(|phase| format!("{} {phase}", left(phase)));
    struck.note = format!("left: {}", counts.join(", "));
    Ok(struck)
}

/// Sends a part of a call, or of it and its answer, and is gone.
async fn leave(
    target: SocketAddr,
    mut call: Call,
    phase: &'static str,
) -> anyhow::Result<Exchange> {
    let id = call.request_id()?;
    let streamed = match phase {
        "in the stream" => (&br#""stream":false"#[..], &br#""stream":true"#[..]),
        _ => (&br#""stream":true"#[..], &br#""stream":false"#[..]),
    };
    let body = Corpus::replaced(&call.body, streamed);
    let mut head = format!("POST {} HTTP/1.1\r\nhost: {target}\r\n", call.path);
    for (name, value) in &call.headers {
        head.push_str(&format!("{name}: {}\r\n", value.to_str()?));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    let began = Instant::now();
    let mut stream = TcpStream::connect(target).await?;
    let half = |bytes: &[u8]| bytes.get(..bytes.len() / 2).unwrap_or_default().to_vec();
    let sent = match phase {
        "in headers" => half(head.as_bytes()),
        "in the body" => [head.as_bytes(), &half(&body)].concat(),
        _ => [head.as_bytes(), &body].concat(),
    };
    stream.write_all(&sent).await?;
    let mut heard = Vec::new();
    while phase == "in the stream" && !heard.windows(5).any(|it| it == b"data:") {
        let read = tokio::time::timeout(DEADLINE, stream.read_buf(&mut heard)).await;
        if read.context("no stream")?? == 0 {
            break;
        }
    }
    // As a process that dies, not as one that says goodbye.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(Exchange {
        id,
        client: usize::MAX,
        envoy: target,
        began,
        ended: Instant::now(),
        engine: None,
        begun: false,
        ending: Ending::Left(phase),
    })
}
