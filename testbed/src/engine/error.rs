//! Error answers, in vLLM's two shapes: OpenAI's `{"error": ...}` for what a handler refuses and
//! `{"detail": ...}` for what no handler knows.

use hyper::StatusCode;
use serde_json::json;

/// An answer in OpenAI's error shape.
#[derive(Debug)]
pub(super) struct ApiError {
    /// Status of the answer and `code` of the body.
    pub(super) status: StatusCode,
    message: String,
    kind: &'static str,
    param: Option<String>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, param: Option<&str>, message: String) -> Self {
        Self {
            status,
            message,
            kind,
            param: param.map(str::to_owned),
        }
    }

    /// What is wrong, in a sentence.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// The body of the answer.
    pub(super) fn body(&self) -> String {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.status.as_u16(),
        }})
        .to_string()
    }

    /// The body does not parse as the request of this path; `param` is where.
    pub(super) fn invalid(param: Option<&str>, what: &str) -> Self {
        let message = format!("1 validation error:\n  {what}");
        Self::new(StatusCode::BAD_REQUEST, "Bad Request", param, message)
    }

    /// The body is not JSON from byte `at` on.
    pub(super) fn not_json(at: usize, why: &str) -> Self {
        let place = format!("body.{at}");
        let what = format!(
            "{{'type': 'json_invalid', 'loc': '{place}', 'msg': 'JSON decode error', 'ctx': {{'error': '{why}'}}}}"
        );
        Self::invalid(Some(&place), &what)
    }

    /// The field that every request of this path needs is absent.
    pub(super) fn missing(field: &str) -> Self {
        let place = format!("body.{field}");
        let what = format!("{{'type': 'missing', 'loc': '{place}', 'msg': 'Field required'}}");
        Self::invalid(Some(&place), &what)
    }

    /// The field has a type that it cannot have.
    pub(super) fn wrong_type(field: &str, want: &str) -> Self {
        let place = format!("body.{field}");
        let what = format!(
            "{{'type': '{want}', 'loc': '{place}', 'msg': 'Input should be a valid {want}'}}"
        );
        Self::invalid(Some(&place), &what)
    }

    /// The request parses but asks for what cannot be given.
    pub(super) fn bad_request(param: Option<&str>, message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequestError", param, message)
    }

    /// No such model here.
    pub(super) fn unknown_model(model: &str, known: &[String]) -> Self {
        let message = format!(
            "The model `{model}` does not exist. Valid aliases: {}.",
            known.join(", ")
        );
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFoundError",
            Some("model"),
            message,
        )
    }

    /// The queue is full.
    pub(super) fn busy() -> Self {
        let message = "The engine is currently busy and cannot accept more requests. \
                       Please try again later or on a different instance."
            .to_owned();
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "Service Unavailable",
            None,
            message,
        )
    }

    /// The body is larger than the server reads.
    pub(super) fn too_large(limit_bytes: usize) -> Self {
        let message = format!("The request body is larger than {limit_bytes} bytes.");
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "Request Entity Too Large",
            None,
            message,
        )
    }

    /// What a broken engine answers with `status`.
    pub(super) fn broken(status: StatusCode) -> Self {
        let kind = match status {
            StatusCode::INTERNAL_SERVER_ERROR => "InternalServerError",
            StatusCode::SERVICE_UNAVAILABLE => "Service Unavailable",
            _ => "EngineFault",
        };
        let message =
            "EngineCore encountered an issue. See stack trace (above) for the root cause.";
        Self::new(status, kind, None, message.to_owned())
    }
}

/// The body for a path (404) or a method (405) that no handler knows.
pub(super) fn detail(status: StatusCode) -> String {
    json!({"detail": status.canonical_reason().unwrap_or("Error")}).to_string()
}
