//! One tab: what a person does in it, what they see, and what it did behind their back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::chromium::Chromium;

/// How long [`Tab::until`] waits.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it looks.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What the page is shown on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    /// In CSS pixels.
    pub(super) width: u32,
    /// In CSS pixels.
    pub(super) height: u32,
    /// Whether the person prefers dark colours.
    pub(super) dark: bool,
}

impl Screen {
    /// A desktop's.
    pub(super) const DESK: Self = Self {
        width: 1400,
        height: 1000,
        dark: false,
    };
    /// A small phone's.
    pub(super) const PHONE: Self = Self {
        width: 360,
        height: 740,
        dark: false,
    };
}

/// An open tab. It goes with its browser.
pub(super) struct Tab<'b> {
    browser: &'b Chromium,
    session: String,
}

impl<'b> Tab<'b> {
    /// Opens an empty tab.
    pub(super) async fn new(browser: &'b Chromium, screen: Screen) -> anyhow::Result<Self> {
        let blank = json!({"url": "about:blank"});
        let target = browser.call(None, "Target.createTarget", blank).await?;
        let attach = json!({"targetId": target.get("targetId"), "flatten": true});
        let attached = browser.call(None, "Target.attachToTarget", attach).await?;
        let session = attached
            .get("sessionId")
            .and_then(Value::as_str)
            .context("no session")?;
        let tab = Self {
            browser,
            session: session.to_owned(),
        };
        for domain in ["Page", "Runtime", "Network", "Log"] {
            tab.call(&format!("{domain}.enable"), json!({})).await?;
        }
        tab.show_on(screen).await?;
        Ok(tab)
    }

    /// Goes on with another screen.
    pub(super) async fn show_on(&self, screen: Screen) -> anyhow::Result<()> {
        let metrics = json!({
            "width": screen.width, "height": screen.height,
            "deviceScaleFactor": 1, "mobile": false,
        });
        self.call("Emulation.setDeviceMetricsOverride", metrics)
            .await?;
        let scheme = if screen.dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", media).await?;
        Ok(())
    }

    /// Makes every later document run this first.
    pub(super) async fn prepare(&self, script: &str) -> anyhow::Result<()> {
        let method = "Page.addScriptToEvaluateOnNewDocument";
        self.call(method, json!({"source": script})).await?;
        Ok(())
    }

    /// Goes to a page.
    pub(super) async fn go(&self, url: &str) -> anyhow::Result<()> {
        let went = self.call("Page.navigate", json!({"url": url})).await?;
        if let Some(error) = went.get("errorText") {
            bail!("{url}: {error}");
        }
        Ok(())
    }

    /// What an expression is in the page; a promise is awaited. Allowed whatever the page's policy.
    pub(super) async fn look(&self, expression: &str) -> anyhow::Result<Value> {
        let params = json!({
            "expression": expression, "awaitPromise": true, "returnByValue": true,
        });
        let answer = self.call("Runtime.evaluate", params).await?;
        if let Some(thrown) = answer.get("exceptionDetails") {
            bail!("{expression}: {thrown}");
        }
        Ok(answer.pointer("/result/value").cloned().unwrap_or_default())
    }

    /// Waits until an expression is truthy and returns it. Fails, saying `what`, if it never is.
    pub(super) async fn until(&self, what: &str, expression: &str) -> anyhow::Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.look(expression).await?;
            if !matches!(&found, Value::Null | Value::Bool(false)) && found != "" && found != 0 {
                return Ok(found);
            }
            if Instant::now() > deadline {
                let text = self.look("document.body.innerText.slice(0, 2000)").await?;
                bail!("still not so after {PATIENCE:?}: {what}. The page says:\n{text:#}");
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// What a person reads in the first element that the selector finds, tables by tabs and lines.
    pub(super) async fn text(&self, selector: &str) -> anyhow::Result<String> {
        let selector = Value::from(selector);
        let text = format!("document.querySelector({selector})?.innerText");
        let text = self.look(&text).await?;
        let text = text.as_str().with_context(|| format!("no {selector}"))?;
        Ok(text.to_owned())
    }

    /// Presses and releases a key, `modifiers` as the protocol counts them (2: Ctrl).
    pub(super) async fn press(&self, key: &str, code: u32, modifiers: u32) -> anyhow::Result<()> {
        for kind in ["keyDown", "keyUp"] {
            // A button is pressed by the character, not by the key.
            let text = if key == "Enter" { "\r" } else { "" };
            let event = json!({
                "type": kind, "key": key, "code": key,
                "windowsVirtualKeyCode": code, "modifiers": modifiers, "text": text,
            });
            self.call("Input.dispatchKeyEvent", event).await?;
        }
        Ok(())
    }

    /// Types or pastes text where the focus is.
    pub(super) async fn insert(&self, text: &str) -> anyhow::Result<()> {
        self.call("Input.insertText", json!({"text": text})).await?;
        Ok(())
    }

    /// A picture of what the screen shows, as PNG.
    pub(super) async fn picture(&self) -> anyhow::Result<Vec<u8>> {
        let format = json!({"format": "png", "optimizeForSpeed": false});
        let shot = self.call("Page.captureScreenshot", format).await?;
        Ok(STANDARD.decode(
            shot.get("data")
                .and_then(Value::as_str)
                .context("no picture")?,
        )?)
    }

    /// The role of every element, as the browser tells a screen reader.
    pub(super) async fn roles(&self) -> anyhow::Result<Vec<String>> {
        let tree = self.call("Accessibility.getFullAXTree", json!({})).await?;
        let nodes = tree
            .get("nodes")
            .and_then(Value::as_array)
            .context("no tree")?;
        let shown = nodes
            .iter()
            .filter(|node| node.get("ignored") != Some(&true.into()));
        Ok(shown
            .filter_map(|node| node.pointer("/role/value")?.as_str().map(str::to_owned))
            .collect())
    }

    /// The addresses of all requests so far.
    pub(super) fn requests(&self) -> Vec<String> {
        self.events("Network.requestWillBeSent")
            .filter_map(|params| params.pointer("/request/url")?.as_str().map(str::to_owned))
            .collect()
    }

    /// Errors and warnings of the console, refusals by the policy and exceptions so far.
    pub(super) fn complaints(&self) -> Vec<String> {
        let logged = self.events("Log.entryAdded").filter(|params| {
            let level = params.pointer("/entry/level").and_then(Value::as_str);
            !matches!(level, Some("verbose" | "info"))
        });
        let printed = self.events("Runtime.consoleAPICalled");
        let thrown = self.events("Runtime.exceptionThrown");
        logged
            .chain(printed)
            .chain(thrown)
            .map(|params| params.to_string())
            .collect()
    }

    fn events(&self, method: &'static str) -> impl Iterator<Item = Value> + use<> {
        self.browser
            .events(&self.session)
            .into_iter()
            .filter(move |event| event.method == method)
            .map(|event| event.params)
    }

    async fn call(&self, method: &str, params: Value) -> anyhow::Result<Value> {
        self.browser.call(Some(&self.session), method, params).await
    }
}
