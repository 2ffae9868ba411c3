//! What a request asks of the status page.

use super::Reply;
use crate::scan::Api;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// The page itself.
    Page,
    /// The facts.
    Status,
    /// What would become of the request in the body, which speaks this API.
    Explain(Api),
    /// None: the answer.
    Answered(Reply),
}

impl Question {
    /// Reads method and path of a request; `base` is the path of the page.
    pub fn read(method: &[u8], path: &[u8], base: &str) -> Question {
        let (path, query) = match path.iter().position(|byte| *byte == b'?') {
            Some(at) => (path.get(..at), path.get(at + 1..)),
            None => (Some(path), None),
        };
        let path = path.unwrap_or_default();
        let folder = base.strip_suffix('/').unwrap_or(base).as_bytes();
        let Some(rest) = path.strip_prefix(folder) else {
            return Question::Answered(Reply::not_found());
        };
        let (question, allowed) = match rest {
            b"/" => (Question::Page, "GET"),
            b"" if !folder.is_empty() => (Question::Answered(Reply::redirect(base)), "GET"),
            b"/status" => (Question::Status, "GET"),
            b"/explain" => (explain(query.unwrap_or_default()), "POST"),
            _ => return Question::Answered(Reply::not_found()),
        };
        match method == allowed.as_bytes() {
            true => question,
            false => Question::Answered(Reply::not_allowed(allowed)),
        }
    }
}

/// `path=...` in the query names the API by the path that the request would have.
fn explain(query: &[u8]) -> Question {
    let mut fields = query.split(|byte| *byte == b'&');
    let named = fields.find_map(|field| field.strip_prefix(b"path="));
    let Some(named) = named else {
        return Question::Explain(Api::ChatCompletions);
    };
    // A browser writes a slash within a query like this.
    match Api::from_path(&with_slashes(named)) {
        Some(api) => Question::Explain(api),
        None => Question::Answered(Reply::unknown_api()),
    }
}

fn with_slashes(mut text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    while let Some((byte, rest)) = text.split_first() {
        let slash = rest.strip_prefix(b"2F").or(rest.strip_prefix(b"2f"));
        let slash = slash.filter(|_| *byte == b'%');
        out.push(slash.map_or(*byte, |_| b'/'));
        text = slash.unwrap_or(rest);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &str, path: &str) -> Question {
        Question::read(method.as_bytes(), path.as_bytes(), "/warmpath/")
    }

    fn status(question: Question) -> u16 {
        match question {
            Question::Answered(reply) => reply.status,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_is_there_is_found() {
        assert_eq!(read("GET", "/warmpath/"), Question::Page);
        assert_eq!(read("GET", "/warmpath/?x=1"), Question::Page);
        assert_eq!(read("GET", "/warmpath/status"), Question::Status);
        for path in [
            "/",
            "",
            "/warm",
            "/warmpathy",
            "/warmpath/x",
            "/warmpath/status/",
        ] {
            assert_eq!(status(read("GET", path)), 404, "{path}");
        }
        assert_eq!(Question::read(b"GET", b"/", "/"), Question::Page);
        assert_eq!(Question::read(b"GET", b"/status", "/"), Question::Status);
    }

    #[test]
    fn the_path_without_its_slash_leads_to_the_page() {
        let Question::Answered(reply) = read("GET", "/warmpath") else {
            panic!("no answer");
        };
        assert_eq!(reply.status, 308);
        let location = reply.headers.iter().find(|(name, _)| *name == "location");
        assert_eq!(location.unwrap().1, "/warmpath/");
    }

    #[test]
    fn other_methods_are_told_the_right_one() {
        for (method, path, want) in [
            ("HEAD", "/warmpath/", "GET"),
            ("POST", "/warmpath/status", "GET"),
            ("OPTIONS", "/warmpath/explain", "POST"),
            ("GET", "/warmpath/explain?path=/nothing", "POST"),
        ] {
            let Question::Answered(reply) = read(method, path) else {
                panic!("{method} {path}");
            };
            assert_eq!(reply.status, 405);
            assert!(reply.headers.contains(&("allow", want.to_owned())));
        }
    }

    #[test]
    fn a_path_in_the_query_names_the_api() {
        let explain = |query: &str| read("POST", &format!("/warmpath/explain{query}"));
        assert_eq!(explain(""), Question::Explain(Api::ChatCompletions));
        assert_eq!(
            explain("?path=/v1/completions"),
            Question::Explain(Api::Completions)
        );
        assert_eq!(
            explain("?a=b&path=%2Fv1%2Fmessages"),
            Question::Explain(Api::Messages)
        );
        assert_eq!(status(explain("?path=/v1/nothing")), 400);
    }
}
