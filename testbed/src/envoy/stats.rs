//! Envoy's `/stats/prometheus`, as far as one figure of it is asked for. O(page).

/// The value of a metric, summed over the label sets that contain all of `labels`; 0 if there is
/// none.
pub fn sum(page: &str, name: &str, labels: &[(&str, &str)]) -> u64 {
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
