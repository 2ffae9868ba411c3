//! How a metric with labels is written where metrics have only a name.
//!
//! `warmpath_requests_total{pool="p"}` is `warmpath.requests.pool=.=p;.;total` to Envoy. The form of
//! the labels is the one that Istio's `extraStatTags` cuts out; the static config and Envoy Gateway's
//! bootstrap carry the same expression, see [`tag_regex`]. The labels stand before the last word, so
//! that what is left when they are cut out has no separator at its end.

use super::{Label, Metric};

/// Most bytes of a label's value; an IPv6 address with its port has 47.
pub const MAX_VALUE_BYTES: usize = 64;

/// The name of one series in Envoy's stats, without Envoy's own `wasmcustom.`.
///
/// Values that are missing are empty; values too many are left out. Whatever a value holds, the
/// result has exactly the metric's labels.
pub fn stat_name(metric: &Metric, values: &[&str]) -> String {
    let (room, rest) = metric.name.split_once('_').unwrap_or(("", metric.name));
    let (stem, last) = rest.rsplit_once('_').unwrap_or(("", rest));
    let mut name = String::with_capacity(128);
    for part in [room, stem].iter().filter(|part| !part.is_empty()) {
        name.push_str(part);
        name.push('.');
    }
    let values = values.iter().copied().chain(std::iter::repeat(""));
    for (label, value) in metric.labels.iter().zip(values) {
        name.push_str(label.name());
        name.push_str("=.=");
        push_value(&mut name, value);
        name.push_str(";.;");
    }
    name.push_str(last);
    name
}

/// Envoy's expression for a label, as Istio generates it for `extraStatTags`.
pub fn tag_regex(label: Label) -> String {
    format!(r"({}=\.=(.*?);\.;)", label.name())
}

/// Writes a value that cannot be taken for anything else: what is not a letter, a digit or usual in
/// an address becomes `_`.
fn push_value(name: &mut String, value: &str) {
    let legal = |char: char| char.is_ascii_alphanumeric() || "_-.:[]/@".contains(char);
    let chars = value.chars().take(MAX_VALUE_BYTES);
    name.extend(chars.map(|char| if legal(char) { char } else { '_' }));
}

#[cfg(test)]
mod tests {
    use super::super::table;
    use super::*;

    #[test]
    fn labels_stand_before_the_last_word() {
        let name = stat_name(&table::REQUESTS, &["llama", "prefix", "turn"]);
        let want = "warmpath.requests.pool=.=llama;.;policy=.=prefix;.;reason=.=turn;.;total";
        assert_eq!(name, want);
        assert_eq!(stat_name(&table::WORKERS, &[]), "warmpath.workers");
        assert_eq!(
            stat_name(&table::IN_FLIGHT, &["p", "[::1]:80"]),
            "warmpath.endpoint_in_flight.pool=.=p;.;endpoint=.=[::1]:80;.;requests"
        );
    }

    #[test]
    fn values_cannot_break_out() {
        let evil = "a;.;pool=.=b;.;\n\"}é";
        let name = stat_name(&table::FALLBACKS, &[evil]);
        assert_eq!(name.matches("=.=").count(), 1, "{name}");
        assert_eq!(name.matches(";.;").count(), 1, "{name}");
        assert!(name.is_ascii(), "{name}");
        let long = stat_name(&table::FALLBACKS, &[&"x".repeat(1000)]);
        assert_eq!(long.matches('x').count(), MAX_VALUE_BYTES);
        let missing = stat_name(&table::FALLBACKS, &[]);
        assert_eq!(missing, "warmpath.fallbacks.cause=.=;.;total");
        assert_eq!(stat_name(&table::FALLBACKS, &["", "more"]), missing);
    }
}
