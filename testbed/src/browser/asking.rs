//! The form that explains a request.

use anyhow::ensure;
use hyper::StatusCode;
use serde_json::json;

use super::showing::{expect_no_sideways_scroll, expect_text};
use super::tab::{Screen, Tab};
use super::{Case, Stage, named, sample};

pub(super) fn cases() -> Vec<Case> {
    named!("asking":
        a_request_is_explained_with_every_term,
        a_refusal_is_shown,
        an_odd_explanation_is_survived,
        a_phone_shows_the_explanation,
    )
}

const BODY: &str = r#"{"model": "llama-3-8b", "prompt": "Grüße, <b>world</b>"}"#;

async fn a_request_is_explained_with_every_term(stage: &Stage) -> anyhow::Result<()> {
    let tab = open(stage, Screen::DESK).await?;
    tab.insert(BODY).await?;
    tab.press("Enter", 13, 2).await?;
    answered(&tab).await?;
    ensure!(
        stage.site.asked().explain == [BODY],
        "sent: {:?}",
        stage.site.asked().explain
    );
    expect_text(
        &tab,
        "#answer",
        &[
            "10.0.0.11:8000 would get it: longest prefix, pool llama, policy prefix.",
            "5,000 prompt tokens.",
            "Alpha is 1.5.",
            "Term: queue",
            "Term: work",
            "Term: requests",
            "Term: context",
            "Term: weight",
            "640.5",
            "6,732",
            "choice 3",
            "not ranked",
            "not usable",
        ],
    )
    .await?;
    expect_text(
        &tab,
        "#answer tr.best",
        &["10.0.0.11:8000", "chosen", "640.5"],
    )
    .await?;
    let order = tab.look("[...document.querySelectorAll('#answer tbody th span')].map(cell => cell.innerText).join()").await?;
    ensure!(
        order == "10.0.0.11:8000,10.0.0.12:8000,10.0.0.14:8000,10.0.0.13:8000",
        "{order}"
    );
    stage.expect_clean(&tab).await
}

async fn a_refusal_is_shown(stage: &Stage) -> anyhow::Result<()> {
    let error = json!({"error": {"message": "The model `<i>x</i>` does not exist.", "type": "not_found_error"}});
    stage.site.explain(StatusCode::NOT_FOUND, error);
    let tab = open(stage, Screen::DESK).await?;
    tab.look("document.querySelector('#send').click()").await?;
    answered(&tab).await?;
    expect_text(
        &tab,
        "#answer",
        &["Refused: The model `<i>x</i>` does not exist."],
    )
    .await?;
    let rows = tab
        .look("document.querySelectorAll('#answer tr, #answer i').length")
        .await?;
    ensure!(
        rows == 0,
        "there are candidates, or a message became an element"
    );
    stage.expect_own_requests(&tab)
}

async fn an_odd_explanation_is_survived(stage: &Stage) -> anyhow::Result<()> {
    let tab = open(stage, Screen::DESK).await?;
    for (odd, said) in [
        (json!({}), "No engine is named"),
        (json!([1, 2]), "No engine is named"),
        (
            json!({"ranked": [null, 7], "candidates": [null, {}, {"address": "a", "terms": null}, {"address": "a", "terms": {"work": "much"}}]}),
            "Term: work",
        ),
        (
            json!({"fallback": "encoded_body", "reason": null, "ranked": ["b"]}),
            "Fallback: encoded body.",
        ),
        (json!({"error": "plain"}), "Refused: plain"),
    ] {
        stage.site.explain(StatusCode::OK, odd);
        tab.look("$('answer').replaceChildren(), $('send').click()")
            .await?;
        let shown = format!("!$('send').disabled && $('answer').innerText.includes('{said}')");
        tab.until(said, &shown).await?;
    }
    stage.expect_clean(&tab).await
}

async fn a_phone_shows_the_explanation(stage: &Stage) -> anyhow::Result<()> {
    let tab = open(stage, Screen::PHONE).await?;
    tab.insert(BODY).await?;
    tab.look("document.querySelector('#send').click()").await?;
    answered(&tab).await?;
    expect_text(&tab, "#answer", &["10.0.0.11:8000", "640.5"]).await?;
    // There is no head row on a phone: every cell says itself what it is.
    let label = "getComputedStyle(document.querySelector('#answer td.n'), '::before').content";
    let label = tab.look(label).await?;
    ensure!(label == "\"To compute\"", "{label}");
    expect_no_sideways_scroll(&tab).await?;
    stage.expect_clean(&tab).await
}

/// The page with the focus in the form.
async fn open(stage: &Stage, screen: Screen) -> anyhow::Result<Tab<'_>> {
    stage.site.show(sample::status(1));
    let tab = stage.open(screen).await?;
    tab.look("document.querySelector('#body').focus()").await?;
    Ok(tab)
}

async fn answered(tab: &Tab<'_>) -> anyhow::Result<()> {
    tab.until(
        "an answer is shown",
        "document.querySelector('#answer').innerText",
    )
    .await?;
    Ok(())
}
