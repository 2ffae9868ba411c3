//! A headless Chromium as a child process, driven by its DevTools protocol.
//!
//! One idea: the protocol runs over a pair of pipes, JSON messages that end with a zero byte, so
//! there is no port to find and no WebSocket; and when this process goes, however it goes, the pipe
//! closes and Chromium goes too. Calls carry a number and are answered by it; everything else is an
//! event, kept in order. Events grow with what one test does; a browser serves one test.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, anyhow, bail};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;

/// Chromium wants to read on descriptor 3 and to write on 4.
const MOVE_PIPES: &str = r#"exec "$0" "$@" 3<&0 4>&1 0</dev/null 1>/dev/null"#;
const FLAGS: [&str; 12] = [
    "--headless",
    "--remote-debugging-pipe",
    // Root may not use the sandbox. The only page ever opened is ours.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--force-color-profile=srgb",
];

/// A running browser. It stops when dropped.
pub(super) struct Chromium {
    input: tokio::sync::Mutex<ChildStdin>,
    shared: Arc<Shared>,
    calls: AtomicU64,
    _child: Child,
    _profile: TempDir,
}

#[derive(Default)]
struct Shared {
    /// Calls that are not answered yet; `None` once the browser is gone.
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<Value>>>>,
    events: Mutex<Vec<Event>>,
    complaints: Mutex<String>,
}

/// Something that happened in a tab.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// Session of the tab.
    pub(super) session: String,
    /// Such as `Network.requestWillBeSent`.
    pub(super) method: String,
    /// What is told about it.
    pub(super) params: Value,
}

impl Chromium {
    /// Starts the browser with an empty profile.
    pub(super) async fn start(binary: &Path) -> anyhow::Result<Self> {
        let profile = tempfile::Builder::new()
            .prefix("warmpath-chromium-")
            .tempdir()?;
        let mut child = Command::new("/bin/sh")
            .args(["-c", MOVE_PIPES])
            .arg(binary)
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let shared = Arc::new(Shared::default());
        *shared.waiting.lock() = Some(HashMap::new());
        let output = child.stdout.take().context("no output pipe")?;
        let complaints = child.stderr.take().context("no error pipe")?;
        tokio::spawn(listen(Arc::clone(&shared), output));
        tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                let mut lines = BufReader::new(complaints).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    *shared.complaints.lock() = line;
                }
            }
        });
        let browser = Self {
            input: tokio::sync::Mutex::new(child.stdin.take().context("no input pipe")?),
            shared,
            calls: AtomicU64::new(1),
            _child: child,
            _profile: profile,
        };
        browser.call(None, "Browser.getVersion", json!({})).await?;
        Ok(browser)
    }

    /// Calls a method of the protocol, of one tab or of the browser, and waits for its result.
    pub(super) async fn call(
        &self,
        session: Option<&str>,
        method: &str,
        params: Value,
    ) -> anyhow::Result<Value> {
        let id = self.calls.fetch_add(1, Ordering::Relaxed);
        let mut message = json!({"id": id, "method": method, "params": params});
        if let (Some(session), Some(fields)) = (session, message.as_object_mut()) {
            fields.insert("sessionId".to_owned(), session.into());
        }
        let (answered, answer) = oneshot::channel();
        if let Some(waiting) = self.shared.waiting.lock().as_mut() {
            waiting.insert(id, answered);
        }
        let mut bytes = serde_json::to_vec(&message)?;
        bytes.push(0);
        let sent = self.input.lock().await.write_all(&bytes).await;
        let gone = || {
            anyhow!(
                "{method}: Chromium ended: {}",
                self.shared.complaints.lock()
            )
        };
        sent.map_err(|_| gone())?;
        let mut answer = answer.await.map_err(|_| gone())?;
        if let Some(error) = answer.get("error") {
            bail!("{method}: {error}");
        }
        Ok(answer
            .get_mut("result")
            .map(Value::take)
            .unwrap_or_default())
    }

    /// What happened so far in a tab, in order.
    pub(super) fn events(&self, session: &str) -> Vec<Event> {
        let events = self.shared.events.lock();
        events
            .iter()
            .filter(|event| event.session == session)
            .cloned()
            .collect()
    }
}

/// Reads until the browser is gone, then gives up every call that waits.
async fn listen(shared: Arc<Shared>, output: ChildStdout) {
    let mut output = BufReader::new(output);
    let mut message = Vec::new();
    while matches!(output.read_until(0, &mut message).await, Ok(read) if read > 0) {
        message.pop();
        if let Ok(value) = serde_json::from_slice(&message) {
            shared.take(value);
        }
        message.clear();
    }
    let _rest = output.read_to_end(&mut message).await;
    *shared.waiting.lock() = None;
}

impl Shared {
    fn take(&self, mut message: Value) {
        if let Some(id) = message.get("id").and_then(Value::as_u64) {
            let waiting = self.waiting.lock().as_mut().and_then(|all| all.remove(&id));
            if let Some(waiting) = waiting {
                // Whoever asked may have given up.
                let _unheard = waiting.send(message);
            }
            return;
        }
        let text = |field: &str| message.get(field)?.as_str().map(str::to_owned);
        let session = text("sessionId").unwrap_or_default();
        let method = text("method").unwrap_or_default();
        let params = message
            .get_mut("params")
            .map(Value::take)
            .unwrap_or_default();
        self.events.lock().push(Event {
            session,
            method,
            params,
        });
    }
}
