//! How the page looks: on a phone, in the dark, by keyboard; and pictures of it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::chromium::Chromium;
use super::showing::expect_no_sideways_scroll;
use super::site::{Document, Site};
use super::tab::{Screen, Tab};
use super::{Case, Stage, named, sample};

pub(super) fn cases() -> Vec<Case> {
    named!("looks":
        nothing_is_wider_than_the_screen,
        text_stands_out_in_both_schemes,
        everything_is_reached_by_keyboard,
        tables_are_tables_on_every_screen,
        foreign_code_does_not_run,
    )
}

async fn nothing_is_wider_than_the_screen(stage: &Stage) -> anyhow::Result<()> {
    stage.site.show(sample::status(1));
    let tab = stage.open(Screen::PHONE).await?;
    for width in [320, 360, 600, 1040, 1041, 1920] {
        tab.show_on(Screen {
            width,
            ..Screen::PHONE
        })
        .await?;
        tab.until("the screen has changed", &format!("innerWidth === {width}"))
            .await?;
        expect_no_sideways_scroll(&tab)
            .await
            .with_context(|| format!("at {width}"))?;
    }
    stage.expect_clean(&tab).await
}

/// Every text has a contrast of 4.5 to what is behind it (WCAG AA).
async fn text_stands_out_in_both_schemes(stage: &Stage) -> anyhow::Result<()> {
    stage.site.show(sample::status(1));
    let tab = stage.open(Screen::DESK).await?;
    tab.look("document.querySelector('#send').click()").await?;
    tab.until(
        "an answer is shown",
        "document.querySelector('#answer tr.best')",
    )
    .await?;
    let mut grounds = Vec::new();
    for dark in [false, true] {
        tab.show_on(Screen {
            dark,
            ..Screen::DESK
        })
        .await?;
        let ground = tab
            .look("getComputedStyle(document.body).backgroundColor")
            .await?;
        grounds.push(ground);
        let weak = tab.look(WEAK_TEXTS).await?;
        ensure!(
            weak == Value::Array(Vec::new()),
            "dark: {dark}: too weak: {weak:#}"
        );
    }
    ensure!(
        grounds.first() != grounds.last(),
        "both schemes look the same"
    );
    stage.expect_clean(&tab).await
}

async fn everything_is_reached_by_keyboard(stage: &Stage) -> anyhow::Result<()> {
    stage.site.show(sample::status(1));
    let tab = stage.open(Screen::DESK).await?;
    let order = ["pause", "find", "llama", "coder", "embed", "body", "send"];
    let mut reached = Vec::new();
    while reached.len() < order.len() {
        tab.press("Tab", 9, 0).await?;
        // Before its first element, the focus may stop at the page itself.
        let focus = tab
            .look(
                "document.activeElement.id || document.querySelector('summary:focus h3')?.innerText",
            )
            .await?;
        reached.extend(focus.as_str().map(str::to_owned));
    }
    ensure!(reached == order, "{reached:?}");
    stage.expect_clean(&tab).await
}

/// By what the browser tells a screen reader.
async fn tables_are_tables_on_every_screen(stage: &Stage) -> anyhow::Result<()> {
    stage.site.show(sample::status(1));
    for screen in [Screen::DESK, Screen::PHONE] {
        let tab = stage.open(screen).await?;
        let roles = tab.roles().await?;
        for (role, least) in [
            ("table", 5),
            ("row", 27),
            ("rowheader", 25),
            ("cell", 200),
            ("status", 1),
            ("heading", 8),
        ] {
            let count = roles.iter().filter(|found| *found == role).count();
            ensure!(count >= least, "{screen:?}: {count} of {role}, not {least}");
        }
        stage.expect_clean(&tab).await?;
    }
    Ok(())
}

/// The policy holds in a real browser: neither markup nor an address to run gets through.
async fn foreign_code_does_not_run(stage: &Stage) -> anyhow::Result<()> {
    stage.site.show(sample::status(1));
    let tab = stage.open(Screen::DESK).await?;
    let refused = tab.look("(() => { try { document.body.innerHTML = '<b>x</b>'; return false } catch { return true } })()").await?;
    ensure!(refused == true, "markup was taken");
    tab.look("document.body.append(Object.assign(document.createElement('b'), { id: 'reached' }))")
        .await?;
    tab.look("document.querySelector('#reached').setAttribute('style', 'color: red')")
        .await?;
    let colour = tab
        .look("getComputedStyle(document.querySelector('#reached')).color")
        .await?;
    ensure!(colour != "rgb(255, 0, 0)", "a foreign style was applied");
    let elsewhere = tab
        .look("fetch('http://127.0.0.1:1/').then(() => 'sent', error => error.message)")
        .await?;
    ensure!(elsewhere != "sent", "the page reached another origin");
    ensure!(
        tab.complaints()
            .iter()
            .any(|text| text.contains("Content Security Policy")),
        "the policy was not what refused"
    );
    Ok(())
}

/// Writes a picture of the page after a while of plausible facts, with a request explained.
pub(super) async fn take_picture(
    browser: &Path,
    document: &Arc<Document>,
    screen: Screen,
    file: &Path,
) -> anyhow::Result<()> {
    let site = Site::start(document, 0).await?;
    site.show_sample();
    let browser = Chromium::start(browser).await?;
    let tab = Tab::new(&browser, screen).await?;
    // Minutes of history, without the minutes.
    tab.prepare("{ const real = setTimeout; window.setTimeout = (f, ms) => real(f, ms / 50); }")
        .await?;
    tab.go(&site.page_url()).await?;
    tab.until(
        "there is some history",
        "document.querySelector('polyline')?.points.length >= 110",
    )
    .await?;
    site.show(sample::status(120));
    tab.look("$('body').focus()").await?;
    tab.insert(EXPLAINED).await?;
    tab.look("document.activeElement.blur(), $('send').click()")
        .await?;
    tab.until("an answer is shown", "document.querySelector('tr.best')")
        .await?;
    tab.look("scrollTo(0, 0)").await?;
    let picture = tab.picture().await?;
    std::fs::write(file, &picture).with_context(|| format!("writing {}", file.display()))?;
    println!("{}: {} bytes", file.display(), picture.len());
    Ok(())
}

const EXPLAINED: &str = r#"{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Summarise the contract above."}]}"#;

/// The texts whose contrast is too low, with their colours. What is see-through lets the ground behind it count.
const WEAK_TEXTS: &str = r#"(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const channel = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
  const paint = layers => {
    canvas.clearRect(0, 0, 1, 1);
    for (const layer of layers) { canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const weak = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest("script, noscript, .unseen")) continue;
    const layers = [];
    for (let at = node; at; at = at.parentElement) layers.unshift(getComputedStyle(at).backgroundColor);
    const colour = getComputedStyle(node).color, [a, b] = [light(paint([...layers, colour])), light(paint(layers))];
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) weak.add(`${walker.currentNode.data}: ${colour} on ${layers.at(-1)}, ${contrast.toFixed(2)}`);
  }
  return [...weak];
})()"#;
