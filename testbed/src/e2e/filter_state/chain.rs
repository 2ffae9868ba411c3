//! The filters behind: that they are there, and that they set whatever the filter sets.

use anyhow::Context as _;
use serde_json::{Value, json};

use super::super::disaggregation::{self, ALL};
use super::super::harness::{Context, Stack, StackSpec, eventually};
use super::super::{Case, named};
use super::{BUFFER, FILE, MODEL, late, spec};
use crate::envoy::bootstrap::Bootstrap;

pub(super) fn cases() -> Vec<Case> {
    named!("filter_state":
        a_missing_filter_is_named,
        engines_share_a_prompt_with_every_connector,
    )
}

const MUTATION: &str = "envoy.filters.http.header_mutation";
const FIELD: &str = "allow_on_headers_stop_iteration";

async fn a_missing_filter_is_named(context: &Context) -> anyhow::Result<()> {
    for missing in [BUFFER, MUTATION] {
        let stack = Stack::start(
            context,
            spec().bootstrap(move |bootstrap| {
                filters(bootstrap)?.retain(|it| it.get("name").is_none_or(|name| name != missing));
                Ok(())
            }),
        )
        .await?;
        eventually("the log names it", async || {
            // Envoy's own choice may be the right one now and then.
            let reply = stack.send(late(MODEL, "alice")).await?;
            reply.expect_status(200)?;
            let log = stack.envoy()?.log()?;
            let line = log.lines().find(|it| it.contains("not the first choice"));
            Ok(line.map(|line| line.contains("`buffer` and a `header_mutation` filter")))
        })
        .await?;
    }
    Ok(())
}

fn filters(bootstrap: &mut Bootstrap) -> anyhow::Result<&mut Vec<Value>> {
    let filters = bootstrap.connection_manager_mut()?.get_mut("http_filters");
    filters.and_then(Value::as_array_mut).context("no filters")
}

/// Another configuration with the filters of the one that is shipped for steering by filter state.
fn with_filters(context: &Context, spec: StackSpec) -> anyhow::Result<StackSpec> {
    let shipped = context.setting().config.with_file_name(FILE);
    let mut behind = filters(&mut Bootstrap::load(&shipped)?)?.clone();
    let is_behind = |it: &Value| [BUFFER, MUTATION].iter().any(|&name| it["name"] == name);
    behind.retain(is_behind);
    let spec = spec.option("steer_by", json!("filter_state"));
    Ok(spec.bootstrap(move |bootstrap| {
        let config = bootstrap.plugin_config_mut()?.as_object_mut();
        config
            .and_then(|config| config.remove(FIELD))
            .context(FIELD)?;
        let all = filters(bootstrap)?;
        let router = all.pop().context("no router")?;
        all.extend(behind.iter().cloned());
        all.push(router);
        Ok(())
    }))
}

async fn engines_share_a_prompt_with_every_connector(context: &Context) -> anyhow::Result<()> {
    for connector in ALL {
        let spec = with_filters(context, disaggregation::spec(connector))?;
        let tried = disaggregation::every_way(context, spec).await;
        tried.with_context(|| format!("{connector:?}"))?;
    }
    Ok(())
}
