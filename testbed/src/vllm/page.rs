//! Figures of a Prometheus page, read by a parser that shares nothing with the filter's.

use anyhow::Context;

/// The sum of a metric's series of which the labels hold all of `texts`; `None` if there is none.
pub(super) fn sum(page: &str, name: &str, texts: &[&str]) -> Option<f64> {
    let mut values = page.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (own, labels) = series.split_once('{').unwrap_or((series, ""));
        let fits = own == name && texts.iter().all(|text| labels.contains(text));
        fits.then(|| value.parse::<f64>().ok())?
    });
    let first = values.next()?;
    Some(first + values.sum::<f64>())
}

/// The same of what must be there, as a whole number.
///
/// # Errors
/// There is no such series.
pub(super) fn count(page: &str, name: &str, texts: &[&str]) -> anyhow::Result<u64> {
    let found = sum(page, name, texts).with_context(|| format!("no {name} {texts:?}"))?;
    Ok(found as u64)
}

/// The value of a label of a metric.
///
/// # Errors
/// There is no such metric, or it has no such label.
pub(super) fn label<'a>(page: &'a str, name: &str, label: &str) -> anyhow::Result<&'a str> {
    let find = || {
        let line = page.lines().find(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('{'))
        })?;
        let from = line.split_once(&format!("{label}=\""))?.1;
        Some(from.split_once('"')?.0)
    };
    find().with_context(|| format!("no {name} with {label}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# TYPE a gauge\na{x=\"1\",y=\"p\"} 2\na{x=\"2\",y=\"p\"} 3\nab 7\n";

    #[test]
    fn series_are_found_by_their_labels() {
        assert_eq!(sum(PAGE, "a", &["y=\"p\""]), Some(5.0));
        assert_eq!(count(PAGE, "a", &["x=\"2\""]).unwrap(), 3);
        assert_eq!(sum(PAGE, "ab", &[]), Some(7.0));
        assert_eq!(sum(PAGE, "b", &[]), None);
        assert_eq!(label(PAGE, "a", "x").unwrap(), "1");
        assert!(label(PAGE, "a", "z").is_err());
    }
}
