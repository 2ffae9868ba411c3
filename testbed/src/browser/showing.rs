//! What the page shows: all of the facts, their changes, and anything that is sent as facts.

use anyhow::ensure;
use serde_json::{Value, json};

use super::tab::{Screen, Tab};
use super::{Case, Stage, named, sample};

pub(super) fn cases() -> Vec<Case> {
    named!("showing":
        every_fact_has_its_place,
        changes_appear_without_a_reload,
        a_fact_that_is_missing_is_a_dash,
        facts_of_any_shape_are_survived,
        a_hostile_name_stays_a_name,
        a_pool_without_usable_engine_is_said_first,
        a_large_fleet_does_not_freeze,
        an_engine_is_found_by_name,
    )
}

async fn every_fact_has_its_place(stage: &Stage) -> anyhow::Result<()> {
    stage.site.show(sample::status(1));
    let tab = stage.open(Screen::DESK).await?;
    let verdict = tab.text("#verdict").await?;
    ensure!(verdict == "Serving; 10 of 12 engines usable.", "{verdict}");
    for (selector, facts) in [
        (
            "#tiles",
            &[
                "10 / 12",
                "in 3 pools",
                "182.4K so far",
                "253",
                "212 not inference",
                "3 encoded body",
                "16 MiB",
                "39%",
                "1,804 evicted",
                "97%",
            ][..],
        ),
        (
            "#unwell",
            &[
                "10.0.0.13:8000",
                "cooling down",
                "10.0.0.34:8000",
                "unhealthy",
                "Fails its health check.",
            ],
        ),
        (
            "#pools",
            &[
                "llama",
                "5 / 6 usable",
                "gpt-4o-mini → llama-3-8b",
                "adapters: support-v4, legal-v2",
                "prefill",
                "10.0.0.52:8000",
                "61 failed",
                "stale 41 s",
            ],
        ),
        ("#recent", &["longest prefix", "load over prefix", "503"]),
        (
            "#about",
            &[
                "warmpath 0.1.0",
                "up 1 d 2 h",
                "worker 3 of 5",
                "configuration 2",
            ],
        ),
    ] {
        expect_text(&tab, selector, facts).await?;
    }
    stage.expect_clean(&tab).await
}

async fn changes_appear_without_a_reload(stage: &Stage) -> anyhow::Result<()> {
    let mut facts = sample::status(1);
    sample::set(&mut facts, "/pools/0/endpoints/0/in_flight", 3)?;
    stage.site.show(facts.clone());
    let tab = stage.open(Screen::DESK).await?;
    tab.look("window.sameDocument = document.querySelector('#pools tbody tr')")
        .await?;
    let cell = "document.querySelector('#pools td[data-label=\"In flight\"] span').textContent";
    tab.until("three requests are in flight", &format!("{cell} === '3'"))
        .await?;
    sample::set(&mut facts, "/pools/0/endpoints/0/in_flight", 7)?;
    facts
        .pointer_mut("/pools/0/endpoints")
        .and_then(Value::as_array_mut)
        .map(|all| all.remove(2));
    stage.site.show(facts);
    tab.until("seven requests are in flight", &format!("{cell} === '7'"))
        .await?;
    tab.until(
        "the removed engine is gone",
        "!document.querySelector('#pools').innerText.includes('10.0.0.13:')",
    )
    .await?;
    let same = tab
        .look("window.sameDocument === document.querySelector('#pools tbody tr')")
        .await?;
    ensure!(same == true, "the row was replaced instead of updated");
    stage.expect_clean(&tab).await
}

async fn a_fact_that_is_missing_is_a_dash(stage: &Stage) -> anyhow::Result<()> {
    stage.site.show(json!({
        "pools": [{"name": "bare", "endpoints": [{"address": "10.0.0.1:8000"}]}],
        "recent": [{"endpoint": "10.0.0.1:8000", "ttft_ms": null}],
    }));
    let tab = stage.open(Screen::DESK).await?;
    expect_text(&tab, "#verdict", &["Serving; 1 of 1 engines usable."]).await?;
    expect_text(&tab, "#pools", &["10.0.0.1:8000", "unknown", "–"]).await?;
    for wrong in ["undefined", "null", "NaN", "Infinity", "[object"] {
        let text = tab.text("body").await?;
        ensure!(!text.contains(wrong), "the page says {wrong}:\n{text}");
    }
    stage.expect_clean(&tab).await
}

/// Every field of a real answer is replaced by each of these, one answer for each.
async fn facts_of_any_shape_are_survived(stage: &Stage) -> anyhow::Result<()> {
    stage.site.show(sample::status(1));
    let tab = stage.open(Screen::DESK).await?;
    for shape in [
        json!(null),
        json!(-1),
        json!(1e300),
        json!("text"),
        json!([]),
        json!([null]),
        json!({}),
        json!(true),
    ] {
        for depth in 1..=6 {
            let mut facts = sample::status(2);
            replace_below(&mut facts, depth, &shape);
            let version = format!("{shape}@{depth}");
            sample::set(&mut facts, "/version", version.clone())?;
            stage.site.show(facts);
            let shown = format!(
                "document.querySelector('#about').textContent.includes({})",
                Value::from(version)
            );
            tab.look("document.querySelector('#pause').click(), document.querySelector('#pause').click()").await?;
            tab.until("the odd facts are drawn", &shown).await?;
            ensure!(
                tab.look("document.querySelector('#lost').hidden").await? == true,
                "{shape} at {depth}: {}",
                tab.text("#lost").await?
            );
        }
    }
    stage.expect_clean(&tab).await
}

async fn a_hostile_name_stays_a_name(stage: &Stage) -> anyhow::Result<()> {
    let evil = "<img src=x onerror=\"window.owned=1\"><script>window.owned=2</script>";
    let mut facts = sample::status(1);
    let states =
        json!({"state": evil, "address": evil, "loras": [evil], "role": evil, "models": [evil]});
    for (field, value) in states.as_object().into_iter().flatten() {
        sample::set(
            &mut facts,
            &format!("/pools/0/endpoints/1/{field}"),
            value.clone(),
        )?;
    }
    sample::set(
        &mut facts,
        "/pools/0/endpoints/0/address",
        "10.0.0.9\u{202e}0008:",
    )?;
    sample::set(&mut facts, "/pools/0/endpoints/3/state", "__proto__")?;
    sample::set(&mut facts, "/pools/1/name", evil)?;
    sample::set(&mut facts, "/pools/1/policy", evil)?;
    sample::set(
        &mut facts,
        "/pools/1/models",
        json!([evil, "long".repeat(5000)]),
    )?;
    sample::set(&mut facts, "/recent/0/reason", evil)?;
    sample::set(
        &mut facts,
        "/counters/fallbacks",
        json!({evil: 4, "__proto__": 5}),
    )?;
    stage.site.show(facts);
    let tab = stage.open(Screen::PHONE).await?;
    expect_text(
        &tab,
        "#pools",
        &["<img src=x onerror", "10.0.0.9\u{fffd}0008:"],
    )
    .await?;
    expect_text(&tab, "#unwell", &["<script>"]).await?;
    let made = "document.querySelectorAll('img, body script').length";
    ensure!(tab.look(made).await? == 1, "a name became an element");
    ensure!(
        tab.look("window.owned === undefined").await? == true,
        "a name ran"
    );
    expect_no_sideways_scroll(&tab).await?;
    stage.expect_clean(&tab).await
}

async fn a_pool_without_usable_engine_is_said_first(stage: &Stage) -> anyhow::Result<()> {
    let mut facts = sample::status(1);
    for index in 0..2 {
        let state = format!("/pools/2/endpoints/{index}/state");
        sample::set(&mut facts, &state, "ejected")?;
    }
    stage.site.show(facts);
    let tab = stage.open(Screen::DESK).await?;
    expect_text(
        &tab,
        "#verdict",
        &["Partly serving: no usable engine in embed."],
    )
    .await?;
    stage.site.show(json!({"pools": []}));
    tab.until(
        "no pool is left",
        "document.querySelector('#verdict').innerText.includes('No pool')",
    )
    .await?;
    stage.expect_clean(&tab).await
}

/// All updates of a fleet of the largest size are drawn, and the page still reacts in between.
async fn a_large_fleet_does_not_freeze(stage: &Stage) -> anyhow::Result<()> {
    stage.site.show(sample::fleet(64, 16, 1));
    let tab = stage.open(Screen::DESK).await?;
    expect_text(&tab, "#tiles", &["878 / 1024", "in 64 pools"]).await?;
    tab.look(
        "document.querySelectorAll('#pools details:not([open]) summary').forEach(s => s.click())",
    )
    .await?;
    tab.until(
        "every pool is open",
        "document.querySelectorAll('#pools tbody tr').length === 1024",
    )
    .await?;
    let asked = stage.site.asked().status;
    stage.site.show(sample::fleet(64, 16, 9));
    tab.until(
        "the next facts are drawn",
        "document.querySelector('#tiles').innerText.includes('182.7K')",
    )
    .await?;
    // One pool of them all: what is drawn has a bound, the rest can be found.
    stage.site.show(sample::fleet(1, 1024, 1));
    tab.until(
        "the rest is counted",
        "document.querySelector('#more').innerText.startsWith('768 engines not shown')",
    )
    .await?;
    let rows = tab
        .look("document.querySelectorAll('#pools tbody tr').length")
        .await?;
    ensure!(rows == 256, "{rows} rows");
    ensure!(stage.site.asked().status > asked, "the page stopped asking");
    stage.expect_clean(&tab).await
}

async fn an_engine_is_found_by_name(stage: &Stage) -> anyhow::Result<()> {
    stage.site.show(sample::fleet(64, 16, 1));
    let tab = stage.open(Screen::DESK).await?;
    tab.look("document.querySelector('#find').focus()").await?;
    tab.insert("10.0.5.7:").await?;
    tab.until(
        "one engine is left",
        "document.querySelectorAll('#pools tbody tr').length === 1",
    )
    .await?;
    expect_text(&tab, "#pools", &["pool-62", "10.0.5.7:8000"]).await?;
    tab.insert("nobody").await?;
    tab.until(
        "none is left",
        "document.querySelector('#more').innerText === 'Nothing of that name.'",
    )
    .await?;
    stage.expect_clean(&tab).await
}

/// The element shows every one of the texts.
pub(super) async fn expect_text(
    tab: &Tab<'_>,
    selector: &str,
    facts: &[&str],
) -> anyhow::Result<()> {
    let text = tab.text(selector).await?;
    for fact in facts {
        ensure!(
            text.contains(fact),
            "{selector} does not say {fact:?}:\n{text}"
        );
    }
    Ok(())
}

/// Nothing is wider than the screen.
pub(super) async fn expect_no_sideways_scroll(tab: &Tab<'_>) -> anyhow::Result<()> {
    let beyond = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
    let beyond = tab.look(beyond).await?;
    ensure!(beyond == 0, "{beyond} pixels are beyond the edge");
    Ok(())
}

fn replace_below(value: &mut Value, depth: u32, shape: &Value) {
    match value {
        _ if depth == 0 => *value = shape.clone(),
        Value::Array(all) => all
            .iter_mut()
            .for_each(|inner| replace_below(inner, depth - 1, shape)),
        Value::Object(all) => all
            .values_mut()
            .for_each(|inner| replace_below(inner, depth - 1, shape)),
        _ => {}
    }
}
