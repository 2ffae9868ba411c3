//! The filter's counters, read where an operator's Prometheus reads them.

use anyhow::ensure;

use super::harness::{Stack, eventually};
use crate::envoy::{Envoy, stats};

/// Waits until a counter has this value: workers hand over what they counted twice a second.
pub async fn counted(
    stack: &Stack<'_>,
    name: &str,
    labels: &[(&str, &str)],
    want: u64,
) -> anyhow::Result<()> {
    let what = format!("{name} {labels:?} is {want}");
    eventually(&what, async || {
        let found = counter(stack, name, labels).await?;
        ensure!(
            found <= want,
            "{name} {labels:?} is {found}, more than {want}"
        );
        Ok((found == want).then_some(()))
    })
    .await
}

/// The value of a counter, summed over the label sets that contain all of `labels`; 0 if it has
/// never been counted.
pub async fn counter(
    stack: &Stack<'_>,
    name: &str,
    labels: &[(&str, &str)],
) -> anyhow::Result<u64> {
    counter_of(stack.envoy()?, name, labels).await
}

/// The same of any Envoy.
pub async fn counter_of(envoy: &Envoy, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<u64> {
    let page = envoy.admin_get("/stats/prometheus").await?;
    Ok(stats::sum(&page, name, labels))
}
