//! The filter's counters, read where an operator's Prometheus reads them.

use anyhow::ensure;

use super::harness::{Stack, eventually};

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
    let page = stack.envoy()?.admin_get("/stats/prometheus").await?;
    Ok(sum(&page, name, labels))
}

fn sum(page: &str, name: &str, labels: &[(&str, &str)]) -> u64 {
    let values = page.lines().filter_map(|line| {
        let (own, value) = line
            .strip_prefix(name)?
            .strip_prefix('{')?
            .split_once("} ")?;
        let has = |(key, value): &(&str, &str)| {
            own.split(',')
                .any(|label| label == format!("{key}=\"{value}\""))
        };
        // Sums of histograms have a point.
        labels.iter().all(has).then(|| value.parse::<f64>().ok())?
    });
    values.sum::<f64>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_sets_are_summed() {
        let page = "# TYPE a_total counter\n\
            a_total{cause=\"x\",pool=\"p\"} 3\n\
            a_total{cause=\"x\",pool=\"q\"} 4\n\
            a_total{cause=\"xy\"} 5\n\
            a_total_b{cause=\"x\"} 6\n";
        assert_eq!(sum(page, "a_total", &[("cause", "x")]), 7);
        assert_eq!(sum(page, "a_total", &[("cause", "x"), ("pool", "q")]), 4);
        assert_eq!(sum(page, "a_total", &[]), 12);
        assert_eq!(sum(page, "b_total", &[]), 0);
    }
}
