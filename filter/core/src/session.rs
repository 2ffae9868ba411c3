//! The session key: what makes two requests belong together.
//!
//! An ordered list of sources is tried, and the first that has a value wins. The key is only ever
//! used as a hash; the value itself is never stored or logged. The name of the source is not part of
//! the key, so a client that moves its id from a header to the body keeps its engine.

use crate::hash;
use crate::scan::RequestScan;

/// One place where a session key may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A request header, lower case.
    Header(String),
    /// A cookie of the `cookie` header.
    Cookie(String),
    /// A JSON pointer into the body.
    Body(String),
}

/// What the sources say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The hash of the session key.
    Found(u64),
    /// A better source may still come with the rest of the body.
    Unknown,
    /// No source has a value.
    Absent,
}

impl KeySource {
    /// The sources used when the config names none. Ids of single requests are not among them: they
    /// would send each request of a conversation elsewhere.
    pub fn defaults() -> Vec<KeySource> {
        let headers = ["x-session-id", "x-user-id", "x-tenant-id"];
        let body = [
            "/session_params/session_id",
            "/prompt_cache_key",
            "/session_id",
            "/user_id",
            "/user",
        ];
        headers
            .map(|name| KeySource::Header(name.to_owned()))
            .into_iter()
            .chain(body.map(|pointer| KeySource::Body(pointer.to_owned())))
            .collect()
    }

    /// The body pointers among `sources`, in order: the pointers of the scan plan.
    pub fn pointers(sources: &[KeySource]) -> Vec<String> {
        let pointers = sources.iter().filter_map(|source| match source {
            KeySource::Body(pointer) => Some(pointer.clone()),
            _ => None,
        });
        pointers.collect()
    }
}

/// The session key as far as headers tell: the hash found, and how many body sources rank above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeaderKey {
    hash: Option<u64>,
    better_pointers: usize,
}

/// Looks through headers and cookies.
pub fn from_headers(sources: &[KeySource], headers: &[(String, Vec<u8>)]) -> HeaderKey {
    let mut better_pointers = 0;
    for source in sources {
        let value = match source {
            KeySource::Header(name) => header(headers, name),
            KeySource::Cookie(name) => cookie(headers, name),
            KeySource::Body(_) => {
                better_pointers += 1;
                None
            }
        };
        if let Some(value) = value {
            return HeaderKey {
                hash: Some(hash::hash(value)),
                better_pointers,
            };
        }
    }
    HeaderKey {
        hash: None,
        better_pointers,
    }
}

impl HeaderKey {
    /// The key, given what has been scanned of the body; `ended` says that no more will come.
    pub fn with_body(&self, scan: Option<&RequestScan>, ended: bool) -> Key {
        for index in 0..self.better_pointers {
            match scan.and_then(|scan| scan.pointer(index)) {
                Some(value) => return Key::Found(hash::hash(value)),
                None if !ended => return Key::Unknown,
                None => {}
            }
        }
        self.hash.map_or(Key::Absent, Key::Found)
    }
}

/// The first non-empty header of a name.
pub fn header<'a>(headers: &'a [(String, Vec<u8>)], name: &str) -> Option<&'a [u8]> {
    headers
        .iter()
        .find(|(key, value)| key == name && !value.is_empty())
        .map(|(_, value)| value.as_slice())
}

fn cookie<'a>(headers: &'a [(String, Vec<u8>)], name: &str) -> Option<&'a [u8]> {
    // HTTP/2 clients may send each cookie as a header of its own.
    headers
        .iter()
        .filter(|(key, _)| key == "cookie")
        .flat_map(|(_, value)| value.split(|byte| *byte == b';'))
        .find_map(|pair| {
            let value = pair
                .trim_ascii()
                .strip_prefix(name.as_bytes())?
                .strip_prefix(b"=")?;
            let value = value.trim_ascii();
            let value = value
                .strip_prefix(b"\"")
                .and_then(|v| v.strip_suffix(b"\""))
                .unwrap_or(value);
            (!value.is_empty()).then_some(value)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &[u8])]) -> Vec<(String, Vec<u8>)> {
        pairs
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_vec()))
            .collect()
    }

    fn found(sources: &[KeySource], pairs: &[(&str, &[u8])]) -> Option<u64> {
        from_headers(sources, &headers(pairs)).hash
    }

    #[test]
    fn the_first_source_with_a_value_wins() {
        let sources = KeySource::defaults();
        let both = found(&sources, &[("x-user-id", b"u"), ("x-session-id", b"s")]);
        assert_eq!(both, Some(hash::hash(b"s")));
        let empty = found(
            &sources,
            &[("x-session-id", b""), ("x-user-id", b"\xff\x00")],
        );
        assert_eq!(empty, Some(hash::hash(b"\xff\x00")));
        assert_eq!(found(&sources, &[("x-request-id", b"r")]), None);
    }

    #[test]
    fn cookies_are_split_and_matched_whole() {
        let sources = [KeySource::Cookie("sid".to_owned())];
        let of = |value: &[u8]| found(&sources, &[("cookie", value)]);
        assert_eq!(of(b"a=1; sid=abc; b=2"), Some(hash::hash(b"abc")));
        assert_eq!(of(b"sid=\"abc\""), Some(hash::hash(b"abc")));
        assert_eq!(of(b"xsid=abc; sid=; sidx=1"), None);
        let two = found(&sources, &[("cookie", b"a=1"), ("cookie", b"sid=z")]);
        assert_eq!(two, Some(hash::hash(b"z")));
    }

    #[test]
    fn a_body_source_above_a_header_must_be_awaited() {
        let sources = [
            KeySource::Body("/user".to_owned()),
            KeySource::Header("x-s".to_owned()),
        ];
        let key = from_headers(&sources, &headers(&[("x-s", b"1")]));
        assert_eq!(key.with_body(None, false), Key::Unknown);
        assert_eq!(key.with_body(None, true), Key::Found(hash::hash(b"1")));
        let none = from_headers(&sources, &[]);
        assert_eq!(none.with_body(None, true), Key::Absent);
    }
}
