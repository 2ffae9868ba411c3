//! The paths that do not run the model: health, models, metrics, tokens, sleep and faults.
//!
//! One idea: each is a plain function of the engine's state. O(1) but for the token paths, which
//! are O(body).

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::clock::Sleep;
use super::error::ApiError;
use super::exposition;
use super::fault::FaultPlan;
use super::http::{App, Body, full, json_answer, parse_json};
use super::kv_events::KvEvents;
use super::metrics;
use super::prompt::{self, Api};
use super::tokens::Prompt;

/// Such a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plain {
    /// `/health`, `/ping`
    Health,
    /// `/version`
    Version,
    /// `/v1/models`
    Models,
    /// `/metrics`
    Metrics,
    /// `/load`
    Load,
    /// `/tokenize`
    Tokenize,
    /// `/detokenize`
    Detokenize,
    /// `/sleep`
    Sleep,
    /// `/wake_up`
    WakeUp,
    /// `/is_sleeping`
    IsSleeping,
    /// `/reset_prefix_cache`
    ResetPrefixCache,
    /// `/kv_event_sources`
    KvEventSources,
    /// GET `/fault`
    GetFault,
    /// POST `/fault`
    SetFault,
}

/// Answers a path.
///
/// # Errors
/// The body is not what the path takes.
pub(super) fn answer(
    app: &App,
    plain: Plain,
    head: &Parts,
    body: &[u8],
) -> Result<Response<Body>, ApiError> {
    let ok = |body: Value| Ok(json_answer(StatusCode::OK, body.to_string()));
    let clocks = app.ranks.clocks().iter();
    match plain {
        Plain::Version => ok(json!({"version": "0.32.0"})),
        Plain::Models => ok(models(app)),
        Plain::Metrics => Ok(metrics_page(app)),
        Plain::Load => {
            let stats = app.stats();
            ok(json!({"server_load": stats.running + stats.waiting}))
        }
        Plain::Tokenize => ok(tokenize(app, &parse_json(head, body)?)?),
        Plain::Detokenize => ok(detokenize(&parse_json(head, body)?)?),
        Plain::Sleep => {
            let deep = head
                .uri
                .query()
                .is_some_and(|query| query.split('&').any(|pair| pair == "level=2"));
            let sleep = match deep {
                true => Sleep::Discarded,
                false => Sleep::Offloaded,
            };
            clocks.for_each(|clock| clock.set_sleep(sleep));
            Ok(full(String::new()))
        }
        Plain::WakeUp => {
            clocks.for_each(|clock| clock.set_sleep(Sleep::Awake));
            Ok(full(String::new()))
        }
        Plain::IsSleeping => {
            let sleeps = clocks
                .map(|clock| clock.sleep())
                .any(|it| it != Sleep::Awake);
            ok(json!({"is_sleeping": sleeps}))
        }
        Plain::ResetPrefixCache => {
            clocks.for_each(|clock| clock.reset_prefix_cache());
            Ok(full(String::new()))
        }
        Plain::KvEventSources => {
            let sources = clocks.enumerate().filter_map(|(rank, clock)| {
                Some((rank.to_string(), clock.kv_events().map(KvEvents::source)?))
            });
            ok(sources.collect::<serde_json::Map<_, _>>().into())
        }
        Plain::GetFault => ok(json!(app.faults.plan())),
        Plain::SetFault => {
            let plan =
                FaultPlan::parse(body).map_err(|error| ApiError::bad_request(None, error))?;
            app.faults.set(plan);
            ok(json!(plan))
        }
        Plain::Health => Ok(full(String::new())),
    }
}

fn models(app: &App) -> Value {
    let data: Vec<Value> = app
        .models
        .iter()
        .filter(|model| app.serves(model))
        .map(|model| {
            json!({
                "id": model, "object": "model", "created": app.created_unix_s, "owned_by": "vllm",
                "root": app.first_model(), "parent": null, "max_model_len": app.max_model_tokens,
                "permission": [],
            })
        })
        .collect();
    json!({"object": "list", "data": data})
}

fn metrics_page(app: &App) -> Response<Body> {
    let pages = app.ranks.clocks().iter().enumerate().map(|(rank, clock)| {
        clock.with_meters(|now, meters| metrics::page(now, meters, app.first_model(), rank))
    });
    let mut answer = full(exposition::merged(pages.collect()));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

fn tokenize(app: &App, body: &Value) -> Result<Value, ApiError> {
    app.model(body)?;
    let ask = prompt::read(Api::Tokenize, body)?;
    let prompt = ask.prompts.first().cloned().unwrap_or_default();
    let pieces = body["return_token_strs"]
        .as_bool()
        .unwrap_or(false)
        .then(|| prompt.pieces());
    Ok(json!({
        "count": prompt.tokens(),
        "max_model_len": app.max_model_tokens,
        "tokens": prompt.ids(),
        "token_strs": pieces,
    }))
}

fn detokenize(body: &Value) -> Result<Value, ApiError> {
    let tokens = body["tokens"]
        .as_array()
        .ok_or_else(|| ApiError::missing("tokens"))?;
    let ids: Option<Vec<u32>> = tokens
        .iter()
        .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
        .collect();
    let ids = ids.ok_or_else(|| ApiError::wrong_type("tokens", "integer"))?;
    Ok(json!({"prompt": Prompt::from_ids(&ids).text()}))
}
