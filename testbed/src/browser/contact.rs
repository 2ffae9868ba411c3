//! Whether what is shown is still true: lost contact, its return, and when the page rests.

use anyhow::ensure;
use hyper::StatusCode;

use super::showing::expect_text;
use super::site::Reply;
use super::tab::{Screen, Tab};
use super::{Case, Stage, named, sample};

pub(super) fn cases() -> Vec<Case> {
    named!("contact":
        lost_contact_is_shown_and_so_is_its_return,
        an_answer_that_never_comes_is_lost_contact,
        a_page_that_never_heard_anything_says_so,
        a_hidden_tab_does_not_ask,
        a_person_can_pause,
    )
}

async fn lost_contact_is_shown_and_so_is_its_return(stage: &Stage) -> anyhow::Result<()> {
    stage.site.show(sample::status(1));
    let tab = stage.open(Screen::DESK).await?;
    expect_text(&tab, "#contact", &["live"]).await?;
    for (reply, cause) in [
        (Reply::Close, "not reachable"),
        (
            Reply::Text(StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream"),
            "HTTP 503",
        ),
        (
            Reply::Text(StatusCode::OK, "<html>"),
            "the answer is not JSON",
        ),
    ] {
        stage.site.answer(reply);
        lost_because(&tab, cause).await?;
        expect_text(&tab, "#contact", &["heard", "asking again in"]).await?;
        expect_text(&tab, "#lost", &["The figures are the last ones heard."]).await?;
        expect_text(&tab, "#pools", &["10.0.0.11:8000"]).await?;
        stage.site.show(sample::status(2));
        tab.until(
            "contact is back",
            "document.querySelector('#contact').innerText === 'live'",
        )
        .await?;
        ensure!(
            tab.look("document.querySelector('#lost').hidden").await? == true,
            "still said to be lost"
        );
    }
    // That a request failed is in the console, and nothing else may be.
    let complaints = tab.complaints();
    let other = complaints
        .iter()
        .find(|text| !text.contains("Failed to load resource"));
    ensure!(other.is_none(), "the console says: {other:?}");
    stage.expect_own_requests(&tab)
}

async fn an_answer_that_never_comes_is_lost_contact(stage: &Stage) -> anyhow::Result<()> {
    stage.site.show(sample::status(1));
    let tab = stage.open(Screen::DESK).await?;
    stage.site.answer(Reply::Silence);
    lost_because(&tab, "no answer").await?;
    stage.expect_clean(&tab).await
}

async fn a_page_that_never_heard_anything_says_so(stage: &Stage) -> anyhow::Result<()> {
    stage.site.answer(Reply::Text(StatusCode::NOT_FOUND, ""));
    let tab = Tab::new(&stage.browser, Screen::DESK).await?;
    tab.go(&stage.site.page_url()).await?;
    lost_because(&tab, "HTTP 404").await?;
    let text = tab.text("#lost").await?;
    ensure!(!text.contains("last ones heard"), "{text}");
    stage.expect_own_requests(&tab)
}

/// The browser's own idea of visibility cannot be changed from here, so the page is told.
async fn a_hidden_tab_does_not_ask(stage: &Stage) -> anyhow::Result<()> {
    stage.site.show(sample::status(1));
    let tab = stage.open(Screen::DESK).await?;
    let turn = |hidden: bool| {
        format!(
            "Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }}), \
             document.dispatchEvent(new Event('visibilitychange'))"
        )
    };
    tab.look(&turn(true)).await?;
    expect_silence(stage, &tab).await?;
    tab.look(&turn(false)).await?;
    expect_more(stage, &tab).await?;
    stage.expect_clean(&tab).await
}

async fn a_person_can_pause(stage: &Stage) -> anyhow::Result<()> {
    stage.site.show(sample::status(1));
    let tab = stage.open(Screen::DESK).await?;
    tab.look("document.querySelector('#pause').focus()").await?;
    tab.press("Enter", 13, 0).await?;
    tab.until(
        "it is paused",
        "document.querySelector('#contact').innerText.startsWith('paused')",
    )
    .await?;
    ensure!(
        tab.look("document.querySelector('#pause').ariaPressed")
            .await?
            == "true",
        "not said to be pressed"
    );
    expect_silence(stage, &tab).await?;
    tab.press("Enter", 13, 0).await?;
    expect_more(stage, &tab).await?;
    stage.expect_clean(&tab).await
}

async fn lost_because(tab: &Tab<'_>, cause: &str) -> anyhow::Result<()> {
    let said = format!(
        "(lost => lost?.hidden === false && lost.innerText.startsWith('Lost contact ({cause})'))\
         (document.querySelector('#lost'))"
    );
    tab.until(cause, &said).await?;
    Ok(())
}

/// The page asks nothing for three of its periods, by its own clock. One question may be under way.
async fn expect_silence(stage: &Stage, tab: &Tab<'_>) -> anyhow::Result<()> {
    let rest = "new Promise(rested => setTimeout(rested, PERIODS * POLL_MS))";
    tab.look(&rest.replace("PERIODS", "1")).await?;
    let before = stage.site.asked().status;
    tab.look(&rest.replace("PERIODS", "3")).await?;
    let after = stage.site.asked().status;
    ensure!(
        after == before,
        "{} questions in the meantime",
        after - before
    );
    Ok(())
}

async fn expect_more(stage: &Stage, tab: &Tab<'_>) -> anyhow::Result<()> {
    let before = stage.site.asked().status;
    stage.site.show(sample::status(9));
    tab.until("newer facts are drawn", "document.querySelector('#about').innerText && document.querySelector('#tiles').innerText.includes('182.7K')").await?;
    ensure!(stage.site.asked().status > before, "drawn without asking");
    Ok(())
}
