//! An answer of the status page, with the headers that keep it from being stored or misread.

use crate::answer::Answer;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: String,
}

impl Reply {
    fn new(status: u16, content_type: &str, body: String) -> Reply {
        Reply {
            status,
            headers: vec![
                ("content-type", content_type.to_owned()),
                ("cache-control", "no-store".to_owned()),
                ("x-content-type-options", "nosniff".to_owned()),
                ("referrer-policy", "no-referrer".to_owned()),
            ],
            body,
        }
    }

    /// The page, with its content security policy.
    pub fn page(html: String, policy: &str) -> Reply {
        let mut reply = Reply::new(200, "text/html; charset=utf-8", html);
        let policy = policy.trim_end().to_owned();
        reply.headers.push(("content-security-policy", policy));
        reply
    }

    /// A JSON document.
    pub fn json(document: String) -> Reply {
        Reply::new(200, "application/json", document)
    }

    /// An answer in OpenAI's format.
    pub fn answer(answer: Answer) -> Reply {
        let mut reply = Reply::new(answer.status, "application/json", answer.body);
        if let Some(seconds) = answer.retry_after_s {
            reply.headers.push(("retry-after", seconds.to_string()));
        }
        reply
    }

    /// 413: the body is longer than what is read of one.
    pub fn too_long(limit: usize) -> Reply {
        let message =
            format!("The request body has more than {limit} bytes (`limits.hold_bytes`).");
        Reply::answer(Answer::invalid(413, "body_too_long", &message))
    }

    pub(super) fn not_found() -> Reply {
        Reply::answer(Answer::invalid(404, "not_found", "Nothing is here."))
    }

    pub(super) fn unknown_api() -> Reply {
        let message = "`path` names no inference API.";
        Reply::answer(Answer::invalid(400, "unknown_api", message))
    }

    pub(super) fn redirect(to: &str) -> Reply {
        let mut reply = Reply::new(308, "text/plain", String::new());
        reply.headers.push(("location", to.to_owned()));
        reply
    }

    pub(super) fn not_allowed(allowed: &str) -> Reply {
        let message = format!("Ask this by {allowed}.");
        let mut reply = Reply::answer(Answer::invalid(405, "method_not_allowed", &message));
        reply.headers.push(("allow", allowed.to_owned()));
        reply
    }
}
