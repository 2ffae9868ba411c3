//! What a client cannot do: steer by a header however it is spelled, reach an address that is not an
//! engine, or find its prompt and its keys anywhere but at the engine.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use reqwest::header::{HeaderName, HeaderValue};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{Call, Client, Transport};
use super::harness::{Context, Stack, StackSpec, eventually};
use super::{Case, named};

pub(super) fn cases() -> Vec<Case> {
    named!("trust":
        no_spelling_of_a_header_steers,
        trailers_do_not_steer,
        no_request_leads_to_an_address_that_is_no_engine,
        prompts_and_keys_are_told_to_engines_only,
    )
}

const DESTINATION: &str = "x-gateway-destination-endpoint";
const CLUSTER: &str = "x-warmpath-cluster";
/// No raw exchange takes longer.
const DEADLINE: Duration = Duration::from_secs(30);
/// More than any answer has.
const MAX_HEADERS: usize = 64;

/// Of a session, whose engine does not depend on what the client asks for.
fn chat() -> anyhow::Result<Call> {
    Call::chat("llama-3-8b", "hello").header("x-session-id", "s-1")
}

/// The engine that has the session when nobody tries anything, and the addresses of all others.
async fn own_and_others(stack: &Stack<'_>) -> anyhow::Result<(String, Vec<String>)> {
    let reply = stack.send(chat()?).await?.expect_status(200)?;
    let own = stack.answered_by(&reply)?.name.clone();
    let others = stack.engines.iter().filter(|engine| engine.name != own);
    let others = others.map(|engine| engine.address.to_string()).collect();
    Ok((own, others))
}

/// Sends the chat over HTTP/1.1 with these bytes as further lines of its head and of its trailers.
/// The status, and the engine that answered, if one did.
async fn send_raw(
    target: SocketAddr,
    lines: &str,
    trailers: &str,
) -> anyhow::Result<(u16, Option<String>)> {
    let call = chat()?;
    let body = String::from_utf8(call.body.to_vec())?;
    let message = format!(
        "POST {} HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-session-id: s-1\r\n\
         content-type: application/json\r\n{lines}\
         transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n{trailers}\r\n",
        call.path,
        body.len(),
    );
    let exchange = async {
        let mut stream = TcpStream::connect(target).await?;
        stream.write_all(message.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(DEADLINE, exchange).await??;
    let mut slots = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut slots);
    ensure!(head.parse(&answer)?.is_complete(), "half an answer");
    let engine = head.headers.iter().find(|header| header.name == "x-engine");
    let engine = engine.map(|header| String::from_utf8_lossy(header.value).into_owned());
    Ok((head.code.context("no status")?, engine))
}

async fn no_spelling_of_a_header_steers(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    let (own, others) = own_and_others(&stack).await?;
    let target = stack.client().target();
    let mut answered = 0;
    for other in &others {
        let spellings = [
            format!("X-Gateway-Destination-Endpoint: {other}\r\nX-Warmpath-Cluster: qwen\r\n"),
            format!("X-GATEWAY-DESTINATION-ENDPOINT: {other}\r\n{DESTINATION}: {other}\r\n"),
            format!(
                "{DESTINATION}: {other}\r\n{DESTINATION}: {other},{other}\r\n{CLUSTER}: qwen\r\n{CLUSTER}: qwen\r\n"
            ),
            format!("x_gateway_destination_endpoint: {other}\r\nx_warmpath_cluster: qwen\r\n"),
            // What HTTP does not allow may be refused, but must not steer.
            format!("{DESTINATION} : {other}\r\n{CLUSTER} : qwen\r\n"),
            format!("x-a: b\r\n {DESTINATION}: {other}\r\n"),
            format!("x-a: b\r{DESTINATION}: {other}\r\n"),
            format!("x-a: b\n{DESTINATION}: {other}\n{CLUSTER}: qwen\r\n"),
            format!("\u{b}{DESTINATION}: {other}\r\n"),
            format!("connection: {DESTINATION}\r\n{DESTINATION}: {other}\r\n"),
        ];
        for lines in spellings {
            match send_raw(target, &lines, "").await? {
                (200, Some(engine)) => {
                    ensure!(engine == own, "{lines:?} led to {engine} instead of {own}");
                    answered += 1;
                }
                (400, None) => {}
                other => bail!("{lines:?}: {other:?}"),
            }
        }
        for transport in [Transport::Http1, Transport::Http2] {
            let twice = chat()?
                .header(DESTINATION, other)?
                .header(CLUSTER, "qwen")?;
            let twice = twice.header(DESTINATION, other)?.header(CLUSTER, "qwen")?;
            let reply = stack
                .send(twice.over(transport))
                .await?
                .expect_status(200)?;
            let engine = &stack.answered_by(&reply)?.name;
            ensure!(*engine == own, "{transport:?}: {engine} instead of {own}");
        }
    }
    ensure!(
        answered >= 4 * others.len(),
        "only {answered} spellings were read at all"
    );
    Ok(())
}

async fn trailers_do_not_steer(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    let (own, others) = own_and_others(&stack).await?;
    let target = stack.client().target();
    for other in &others {
        let trailers = format!("{DESTINATION}: {other}\r\n{CLUSTER}: qwen\r\n");
        let (status, engine) = send_raw(target, "", &trailers).await?;
        ensure!(
            status == 200 && engine.as_ref() == Some(&own),
            "{status} from {engine:?}"
        );
        let mut call = chat()?.over(Transport::Http2);
        for (name, value) in [(DESTINATION, other.as_str()), (CLUSTER, "qwen")] {
            let value = HeaderValue::from_str(value)?;
            call.trailers.insert(HeaderName::from_static(name), value);
        }
        let reply = stack.send(call).await?.expect_status(200)?;
        let engine = &stack.answered_by(&reply)?.name;
        ensure!(*engine == own, "{engine} instead of {own}");
    }
    Ok(())
}

async fn no_request_leads_to_an_address_that_is_no_engine(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    let stranger = std::net::TcpListener::bind("127.0.0.1:0")?;
    stranger.set_nonblocking(true)?;
    let address = stranger.local_addr()?.to_string();
    let lures = |call: Call, cluster: &str| {
        call.header(DESTINATION, &address)?
            .header(CLUSTER, cluster)?
            // How the filter's own calls name an engine to the cluster that goes wherever it is told.
            .header("x-envoy-original-dst-host", &address)?
            .header("x-warmpath-pool", &address)?
            .header("x-forwarded-host", &address)?
            .header("endpoint-load-metrics-format", &address)
    };
    for transport in [Transport::Http1, Transport::Http2] {
        for cluster in ["warmpath_scrape", "prometheus_stats", "llama"] {
            let chats = [chat()?, Call::chat(&address, "hello")];
            let others = ["/", "/v1/models", "/metrics", "/clusters"].map(Call::get);
            for call in chats.into_iter().chain(others) {
                let path = call.path.clone();
                let reply = stack.send(lures(call, cluster)?.over(transport)).await?;
                let text = reply.text();
                let is_admin = text.contains("cluster_statuses") || text.contains("envoy_cluster_");
                ensure!(!is_admin, "{path} led to Envoy's admin interface");
                if reply.header("x-engine").is_some() {
                    stack.answered_by(&reply)?;
                }
            }
        }
    }
    let called = stranger.accept();
    let nobody = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
    ensure!(called.as_ref().is_err_and(nobody), "{called:?} called");
    Ok(())
}

async fn prompts_and_keys_are_told_to_engines_only(context: &Context) -> anyhow::Result<()> {
    let spec = StackSpec::shipped()
        .log_level("wasm:trace")
        .policy("llama", json!("prefix"));
    let stack = Stack::start(context, spec).await?;
    // Long enough to be kept in the table of prompts.
    let prompt = "my-secret-prompt ".repeat(200);
    let chat = |model: &str| {
        Call::chat_with(
            model,
            &prompt,
            json!({"user": "my-secret-user", "cache_salt": "my-secret-salt"}),
        )
        .header("authorization", "Bearer my-secret-token")?
        .header("x-session-id", "my-secret-session")?
        .header("cookie", "session=my-secret-cookie")?
        .header("x-request-id", "the-id-of-the-request")
    };
    for _ in 0..2 {
        stack.send(chat("llama-3-8b")?).await?.expect_status(200)?;
        stack
            .send(chat("my-secret-model")?)
            .await?
            .expect_status(404)?;
        let broken = chat("llama-3-8b")?.body("{\"model\": \"llama-3-8b\", \"my-secret-key\" ");
        stack.send(broken).await?.expect_status(400)?;
        let streamed = chat("llama-3-8b")?.body(
            json!({
                "model": "llama-3-8b", "stream": true, "max_tokens": 4,
                "messages": [{"role": "user", "content": prompt}],
            })
            .to_string(),
        );
        stack.send(streamed).await?.expect_status(200)?;
        let asked = Call::get("/v1/models/my-secret-model").header("cookie", "a=my-secret-b")?;
        stack.send(asked).await?.expect_status(404)?;
    }
    let envoy = stack.envoy()?;
    eventually("the decision is logged", async || {
        Ok(envoy
            .log()?
            .contains("the-id-of-the-request: prefix; ")
            .then_some(()))
    })
    .await?;
    // Envoy's part of it, which is the calls between it and the module, is there: more cannot be logged.
    let calls = ["[host->vm]", "[vm->host]"];
    let log = envoy.log()?;
    ensure!(calls.iter().all(|call| log.contains(call)), "no trace");
    let page = Client::new(stack.status().context("no status page")?)?;
    let shown = page
        .send(Call::get("/warmpath/status"))
        .await?
        .expect_status(200)?;
    let told = [
        ("the log", envoy.log()?),
        ("the metrics", envoy.admin_get("/stats/prometheus").await?),
        ("the status page", shown.text()),
    ];
    for (place, text) in told {
        let secret = text.lines().find(|line| line.contains("my-secret"));
        ensure!(secret.is_none(), "{place}: {secret:?}");
    }
    Ok(())
}
