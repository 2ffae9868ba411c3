//! What the filter relies on in Redis behind Webdis, on the real ones, without any Envoy.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::{Client, StatusCode};

use super::super::Case;
use super::super::harness::{Context, eventually};
use super::stored;
use crate::store::{Binaries, Reply, Store};

pub(super) fn cases(binaries: &Binaries) -> Vec<Case> {
    stored!(binaries, "front": any_bytes_go_in_and_out_of_a_stream)
}

/// Those that end or halt something, or depend on how it was configured.
pub(super) fn breaking_cases(binaries: &Binaries) -> Vec<Case> {
    stored!(binaries, "front":
        only_scripts_are_run,
        what_redis_refuses_is_told_in_its_words,
        a_killed_redis_is_unavailable_at_once_and_comes_back_empty,
        a_halted_redis_is_waited_for,
        a_killed_front_comes_back,
    )
}

/// Nobody answers this late but one that is halted.
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for one that is not halted.
const HALTED: Duration = Duration::from_millis(500);
/// Appends the body, if there is one, and gives the entries in a flat array.
const SCRIPT: &str = "if ARGV[1] then redis.call('XADD',KEYS[1],'*','b',ARGV[1]) end local all={} \
for _,entry in ipairs(redis.call('XRANGE',KEYS[1],'-','+')) do all[#all+1]=entry[2][2] end return all";

/// A store, and a client of its first front.
struct Front {
    store: Store,
    client: Client,
}

impl Front {
    async fn start(binaries: &Binaries) -> anyhow::Result<Self> {
        Ok(Self {
            store: Store::start(binaries, 1).await?,
            client: Client::builder().no_proxy().build()?,
        })
    }

    /// Calls a command, its words separated by slashes, and gives the answer in Redis's own format.
    async fn call(&self, path: &str, body: &[u8]) -> anyhow::Result<(StatusCode, Vec<u8>)> {
        let addresses = self.store.addresses();
        let address = addresses.first().context("no front")?;
        let call = self.client.put(format!("http://{address}/{path}.raw"));
        let answer = call.body(body.to_vec()).timeout(PATIENCE).send().await?;
        Ok((answer.status(), answer.bytes().await?.to_vec()))
    }

    async fn script(&self, key: &str, body: &[u8]) -> anyhow::Result<(StatusCode, Vec<u8>)> {
        let script = reqwest::Url::parse_with_params("http://front/", [("", SCRIPT)])?;
        let script = script.query().context("no query")?.trim_start_matches('=');
        // A plus sign is a space to Webdis, too.
        self.call(&format!("EVAL/{script}/1/{key}"), body).await
    }

    /// Waits until it answers with what Redis said.
    async fn serves(&self) -> anyhow::Result<()> {
        eventually("the front serves", async || {
            let answer = self.script("none", b"").await;
            let served = answer.is_ok_and(|it| it == (StatusCode::OK, b"*0\r\n".to_vec()));
            Ok(served.then_some(()))
        })
        .await
    }
}

async fn any_bytes_go_in_and_out_of_a_stream(
    _context: &Context,
    binaries: &Binaries,
) -> anyhow::Result<()> {
    let front = Front::start(binaries).await?;
    let every: Vec<u8> = (0..=255).collect();
    let large = every.repeat(1024);
    for batch in [&b"\r\n$1\r\n\0"[..], &every, &large] {
        front.store.flush().await?;
        let (status, answer) = front.script("stream", batch).await?;
        let mut want = format!("*1\r\n${}\r\n", batch.len()).into_bytes();
        want.extend_from_slice(batch);
        want.extend(b"\r\n");
        ensure!(status == StatusCode::OK && answer == want, "{status}");
    }
    let (_, answer) = front.script("stream", b"").await?;
    ensure!(
        answer.starts_with(b"*1\r\n$262144\r\n"),
        "a call without a body adds an entry"
    );
    ensure!(front.store.largest("stream").await? == 262_144);
    Ok(())
}

async fn only_scripts_are_run(_context: &Context, binaries: &Binaries) -> anyhow::Result<()> {
    let front = Front::start(binaries).await?;
    for command in [
        "FLUSHALL",
        "XADD/stream/*/b",
        "CONFIG/GET/*",
        "7/PING",
        "MULTI",
    ] {
        let (status, _) = front.call(command, b"x").await?;
        ensure!(status == StatusCode::FORBIDDEN, "{command}: {status}");
    }
    Ok(())
}

async fn what_redis_refuses_is_told_in_its_words(
    _context: &Context,
    binaries: &Binaries,
) -> anyhow::Result<()> {
    let front = Front::start(binaries).await?;
    let told = async |key, words: &[u8]| {
        let (status, answer) = front.script(key, b"x").await?;
        let text = String::from_utf8_lossy(&answer);
        ensure!(
            status == StatusCode::OK && answer.starts_with(words),
            "{status} {text}"
        );
        anyhow::Ok(())
    };
    front.store.command(&[b"SET", b"text", b"1"]).await?;
    told("text", b"-WRONGTYPE ").await?;
    front
        .store
        .command(&[b"CONFIG", b"SET", b"maxmemory", b"1"])
        .await?;
    told("stream", b"-OOM ").await
}

async fn a_killed_redis_is_unavailable_at_once_and_comes_back_empty(
    _context: &Context,
    binaries: &Binaries,
) -> anyhow::Result<()> {
    let mut front = Front::start(binaries).await?;
    front.store.append("stream", "b", b"x").await?;
    front.store.redis.kill()?;
    let (status, body) = front.script("stream", b"x").await?;
    ensure!(status == StatusCode::SERVICE_UNAVAILABLE && body.is_empty());
    front.store.redis.start().await?;
    front.serves().await?;
    ensure!(front.store.largest("stream").await? == 0);
    Ok(())
}

async fn a_halted_redis_is_waited_for(
    _context: &Context,
    binaries: &Binaries,
) -> anyhow::Result<()> {
    let front = Front::start(binaries).await?;
    front.store.redis.stall()?;
    let call = front.script("stream", b"x");
    tokio::pin!(call);
    let early = tokio::time::timeout(HALTED, &mut call).await;
    ensure!(early.is_err(), "{early:?}");
    front.store.redis.resume()?;
    let (status, answer) = call.await?;
    ensure!(status == StatusCode::OK && answer == b"*1\r\n$1\r\nx\r\n");
    let pong = front.store.command(&[b"PING"]).await?;
    ensure!(pong == Reply::Status("PONG".to_owned()), "{pong:?}");
    Ok(())
}

async fn a_killed_front_comes_back(_context: &Context, binaries: &Binaries) -> anyhow::Result<()> {
    let mut front = Front::start(binaries).await?;
    let before = front.store.addresses();
    for part in &mut front.store.fronts {
        part.kill()?;
    }
    ensure!(front.script("stream", b"x").await.is_err());
    for part in &mut front.store.fronts {
        part.start().await?;
    }
    ensure!(front.store.addresses() == before);
    front.serves().await
}
