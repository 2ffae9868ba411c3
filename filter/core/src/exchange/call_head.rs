//! What calls for a request have in common with it.

use crate::session::header;

/// What calls for a request take over of its headers.
#[derive(Clone, Debug, Default)]
pub(super) struct CallHead {
    pub(super) path: String,
    pub(super) headers: Vec<(String, String)>,
}

/// Headers that calls for a request have in common with it, beside its ids.
const PASSED_ON: [&str; 14] = [
    "content-type",
    "authorization",
    "x-api-key",
    "api-key",
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-session-id",
];

impl CallHead {
    /// Takes over what calls need of a request's headers, of which those of `ids` are its ids. A value that is
    /// no text is left out.
    pub(super) fn new(headers: &[(String, Vec<u8>)], ids: &[String]) -> Self {
        let passed = |name: &String| {
            PASSED_ON.contains(&name.as_str()) || name == "x-request-id" || ids.contains(name)
        };
        let text = |value: &[u8]| std::str::from_utf8(value).ok().map(str::to_owned);
        let path = header(headers, ":path").and_then(text).unwrap_or_default();
        let headers = headers.iter().filter(|(name, _)| passed(name));
        let headers = headers.filter_map(|(name, value)| Some((name.clone(), text(value)?)));
        let mut headers: Vec<(String, String)> = headers.collect();
        if !headers.iter().any(|(name, _)| name == "content-type") {
            headers.push(("content-type".to_owned(), "application/json".to_owned()));
        }
        CallHead { path, headers }
    }
}
