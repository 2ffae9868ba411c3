//! Answers that the filter gives itself, in OpenAI's formats.

use crate::admission::Priority;
use crate::json::{Field, list, object};

/// A response of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Seconds for a `retry-after` header.
    pub retry_after_s: Option<u32>,
    /// JSON body.
    pub body: String,
    /// Short name of what happened, for metrics and the access log.
    pub cause: &'static str,
    /// What was refused, if it was for want of room.
    pub shed: Option<Shed>,
}

/// A request that a pool refused because all of its engines are full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shed {
    /// Position of the pool in the config.
    pub pool: usize,
    /// The request's class.
    pub priority: Priority,
}

/// When to come back after a 503; one scrape interval of common discovery.
const RETRY_AFTER_S: u32 = 5;
/// How much of a client's model name is repeated to it.
const SHOWN_MODEL_CHARS: usize = 128;

impl Answer {
    fn error(status: u16, kind: &str, code: &str, param: Option<&str>, message: &str) -> Answer {
        let error = object(&[
            ("code", code.into()),
            ("message", message.into()),
            ("param", param.into()),
            ("type", kind.into()),
        ]);
        let body = object(&[("error", Field::Json(&error))]);
        Answer {
            status,
            retry_after_s: None,
            body,
            cause: "",
            shed: None,
        }
    }

    /// Another mistake of the client's, with a status and a code.
    pub(crate) fn invalid(status: u16, code: &str, message: &str) -> Answer {
        Answer::error(status, "invalid_request_error", code, None, message)
    }

    /// 400: the body is not the JSON that the path asks for.
    pub fn bad_json(detail: &str) -> Answer {
        let message = format!("The request body is not valid JSON: {detail}.");
        let kind = "invalid_request_error";
        Answer {
            cause: "bad_json",
            ..Answer::error(400, kind, "invalid_json", None, &message)
        }
    }

    /// 400: no usable `model`.
    pub fn missing_model() -> Answer {
        let message = "The request needs a `model`, given as a non-empty string.";
        let kind = "invalid_request_error";
        let error = Answer::error(400, kind, "missing_model", Some("model"), message);
        Answer {
            cause: "missing_model",
            ..error
        }
    }

    /// 404: no pool serves the model.
    pub fn unknown_model(model: &[u8]) -> Answer {
        let shown: String = String::from_utf8_lossy(model)
            .chars()
            .take(SHOWN_MODEL_CHARS)
            .collect();
        let message = format!("The model `{shown}` does not exist.");
        let kind = "invalid_request_error";
        let error = Answer::error(404, kind, "model_not_found", Some("model"), &message);
        Answer {
            cause: "unknown_model",
            ..error
        }
    }

    /// 503: the pool has no endpoint to send the request to.
    pub fn no_endpoint(pool: &str) -> Answer {
        let message = format!("No endpoint of pool `{pool}` can take the request now.");
        let error = Answer::error(503, "service_unavailable", "no_endpoint", None, &message);
        Answer {
            retry_after_s: Some(RETRY_AFTER_S),
            cause: "no_endpoint",
            ..error
        }
    }

    /// 503: nobody computed the prompt, and who decodes cannot.
    pub fn not_prefilled(pool: &str) -> Answer {
        let message = format!("No engine that prefills for pool `{pool}` took the prompt.");
        let error = Answer::error(503, "service_unavailable", "not_prefilled", None, &message);
        Answer {
            retry_after_s: Some(1),
            cause: "not_prefilled",
            ..error
        }
    }

    /// 400: the engines of the pool share their work in a way that this API has no place for.
    pub fn not_disaggregated(pool: &str) -> Answer {
        let message =
            format!("Pool `{pool}` serves `/v1/chat/completions` and `/v1/completions` only.");
        Answer {
            cause: "not_disaggregated",
            ..Answer::invalid(400, "not_disaggregated", &message)
        }
    }

    /// An engine's own answer to a client's mistake.
    pub fn of_engine(status: u16, body: &[u8]) -> Answer {
        Answer {
            status,
            retry_after_s: None,
            body: String::from_utf8_lossy(body).into_owned(),
            cause: "rejected_by_engine",
            shed: None,
        }
    }

    /// 429: every endpoint of the pool has as much to do as it is given.
    pub fn overloaded(pool: &str, shed: Shed, retry_after_s: u32) -> Answer {
        let message = format!(
            "All engines of pool `{pool}` are busy, so requests of {} priority are refused. \
             Try again in {retry_after_s} s.",
            shed.priority.name()
        );
        let error = Answer::error(429, "rate_limit_error", "overloaded", None, &message);
        Answer {
            retry_after_s: Some(retry_after_s),
            cause: "overloaded",
            shed: Some(shed),
            ..error
        }
    }

    /// 200: the list of models.
    pub fn models<'a>(names: impl Iterator<Item = &'a str>) -> Answer {
        let data: Vec<String> = names.map(model).collect();
        let body = object(&[
            ("data", Field::Json(&list(&data))),
            ("object", "list".into()),
        ]);
        Answer {
            status: 200,
            retry_after_s: None,
            body,
            cause: "models",
            shed: None,
        }
    }

    /// 200: one model.
    pub fn model(name: &str) -> Answer {
        Answer {
            status: 200,
            retry_after_s: None,
            body: model(name),
            cause: "models",
            shed: None,
        }
    }
}

fn model(name: &str) -> String {
    object(&[
        ("created", Field::Count(0)),
        ("id", name.into()),
        ("object", "model".into()),
        ("owned_by", "warmpath".into()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn errors_have_openais_shape_whatever_the_model_is_called() {
        let answer = Answer::unknown_model(b"x\"\n\xff");
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(answer.status, 404);
        assert_eq!(body["error"]["code"], "model_not_found");
        assert_eq!(body["error"]["param"], "model");
        assert!(
            body["error"]["message"]
                .as_str()
                .unwrap()
                .contains("x\"\n\u{fffd}")
        );
        let long = Answer::unknown_model(&[b'a'; 1_000_000]);
        assert!(long.body.len() < 500);
    }

    #[test]
    fn an_empty_pool_says_when_to_come_back() {
        let answer = Answer::no_endpoint("llama");
        assert_eq!((answer.status, answer.retry_after_s), (503, Some(5)));
    }
}
