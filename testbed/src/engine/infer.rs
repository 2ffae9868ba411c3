//! The paths that run the model: from body bytes to an answer, whole or streamed.
//!
//! One idea: a request is checked in vLLM's order, becomes jobs, and its [`Flight`] lives inside
//! whatever waits for the tokens; when the client leaves, that is dropped and the jobs are aborted.
//! An engine with a connector does only its part, with what the [`kv`](super::kv) says around the
//! model. Cost: O(body + tokens).

use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream::unfold;
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use serde_json::Value;

use super::answer::{self, Choice, Heading, Usage};
use super::clock::{Flight, Job, Rejection};
use super::error::ApiError;
use super::http::{App, Body, json_answer, parse_json};
use super::kv::{Given, KvSeen, Part, Sight, Trouble};
use super::kv_events::Source;
use super::metrics::{Ending, Snapshot};
use super::pooling;
use super::prompt::{self, Api, Ask};
use super::seen::Visit;
use super::sse::Script;
use super::tokens::Prompt;

/// One request for the model.
pub(super) struct Call<'a> {
    /// The engine.
    pub(super) app: &'a App,
    /// The path.
    pub(super) api: Api,
    /// Method, path and headers.
    pub(super) head: &'a Parts,
    /// Becomes the id of the answer.
    pub(super) request_id: &'a str,
    /// The whole body.
    pub(super) body: &'a [u8],
}

/// A request that is in the model.
struct Running {
    flight: Flight,
    rank: usize,
    part: Part,
    /// Its jobs, if they are for another engine.
    given: Vec<Job>,
    ask: Ask,
    choices: Vec<Choice>,
    ending: Ending,
    heading: Heading,
    prompt_tokens: u32,
    json: Value,
}

/// Answers the request; an error is an answer.
pub(super) async fn answer(call: Call<'_>, mut visit: Visit) -> Response<Body> {
    let answered = match start(&call, &visit).await {
        Ok(running) if running.ask.stream && !matches!(running.part, Part::Give { .. }) => {
            visit.note(|seen| seen.status = Some(200));
            return stream(running, visit);
        }
        Ok(running) => whole(&call, running, &visit).await,
        Err(trouble) => Err(trouble),
    };
    let answer = match answered {
        Ok(mut answer) => {
            if let Some(report) = load_report(&call) {
                answer.headers_mut().insert("endpoint-load-metrics", report);
            }
            answer
        }
        Err(trouble) => {
            let error = match trouble {
                Trouble::Refused(error) => error,
                Trouble::Fatal(_) => {
                    call.app.die();
                    ApiError::broken(hyper::StatusCode::INTERNAL_SERVER_ERROR)
                }
            };
            json_answer(error.status, error.body())
        }
    };
    visit.note(|seen| seen.status = Some(answer.status().as_u16()));
    visit.end();
    answer
}

/// Checks the request, fetches what another engine computed of it, and submits it.
async fn start(call: &Call<'_>, visit: &Visit) -> Result<Running, Trouble> {
    let app = call.app;
    let json = parse_json(call.head, call.body)?;
    visit.note(|seen| seen.model = json.get("model").and_then(Value::as_str).map(str::to_owned));
    let model = app.model(&json)?;
    let (rank, clock) = app.ranks.choose(call.head)?;
    visit.note(|seen| seen.rank = Some(rank));
    let ask = prompt::read(call.api, &json)?;
    let output_tokens = output_tokens(app, call.api, &ask)?;
    let prompt_tokens = ask
        .prompts
        .iter()
        .map(Prompt::tokens)
        .fold(0, u32::saturating_add);
    visit.note(|seen| seen.prompt_tokens = prompt_tokens);
    let told = clock.kv_events().is_some();
    let salt = told.then(|| json.get("cache_salt").and_then(Value::as_str));
    let (mut jobs, choices) = jobs(app.block_tokens, &ask, output_tokens, salt);
    let part = transfer(call, &json, &ask, &mut jobs, visit).await?;
    let ending = match ask.max_tokens {
        Some(_) => Ending::Length,
        None => Ending::Stop,
    };
    let given = match part {
        Part::Give { .. } => jobs.clone(),
        _ => Vec::new(),
    };
    let submitted = clock.submit(jobs, ask.stream, ending);
    let flight = submitted.map_err(|rejection| match rejection {
        Rejection::Busy => ApiError::busy(),
        Rejection::Refused(refusal) => {
            ApiError::bad_request(Some("input_tokens"), refusal.to_string())
        }
    })?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let heading = Heading::new(call.api, call.request_id, model, &app.name, now.as_secs());
    Ok(Running {
        flight,
        rank,
        part,
        given,
        ask,
        choices,
        ending,
        heading,
        prompt_tokens,
        json,
    })
}

/// What the connector, if there is one, says of a request and does ahead of the model.
async fn transfer(
    call: &Call<'_>,
    json: &Value,
    ask: &Ask,
    jobs: &mut [Job],
    visit: &Visit,
) -> Result<Part, Trouble> {
    let Some(kv) = &call.app.kv else {
        return Ok(Part::Alone);
    };
    let sight = Sight {
        api: call.api,
        own_id: format!("{}{}", answer::id_prefix(call.api), call.request_id),
        json,
        body: call.body,
        ask,
    };
    let mut noted = KvSeen::default();
    let read = kv.part(&sight, jobs, &mut noted);
    visit.note(|seen| seen.kv = noted.clone());
    let part = read?;
    let done = kv.before(&part, jobs, &mut noted).await;
    visit.note(|seen| seen.kv = noted);
    done.map(|()| part)
}

/// How much every choice generates, if each prompt leaves room for it in the context.
fn output_tokens(app: &App, api: Api, ask: &Ask) -> Result<u32, ApiError> {
    let longest = ask.prompts.iter().map(Prompt::tokens).max().unwrap_or(0);
    let limit = app.max_model_tokens;
    if longest > limit {
        let message = format!(
            "This model's maximum context length is {limit} tokens. However, your prompt contains at \
             least {longest} input tokens, which exceeds this limit even without any output tokens. \
             Please reduce the length of the input prompt. (parameter=input_tokens, value={longest})"
        );
        return Err(ApiError::bad_request(Some("input_tokens"), message));
    }
    if api.is_pooling() {
        return Ok(1);
    }
    let room = limit - longest;
    match ask.max_tokens {
        Some(most) if most > room => {
            let message = format!(
                "This model's maximum context length is {limit} tokens. However, you requested {most} \
                 output tokens and your prompt contains at least {longest} input tokens. Please reduce \
                 the length of the input prompt or the number of requested output tokens. \
                 (parameter=max_tokens, value={most})"
            );
            Err(ApiError::bad_request(Some("max_tokens"), message))
        }
        Some(most) => Ok(most),
        None => Ok(app.default_output_tokens.min(room).max(1)),
    }
}

/// A job and a choice for each prompt and each of its `n`; prompt by prompt. The salt's name, if KV
/// events are told.
fn jobs(
    block_tokens: u32,
    ask: &Ask,
    output_tokens: u32,
    told_salt: Option<Option<&str>>,
) -> (Vec<Job>, Vec<Choice>) {
    let mut jobs = Vec::new();
    let mut choices = Vec::new();
    for prompt in &ask.prompts {
        let blocks = prompt.blocks(block_tokens, ask.salt);
        let hash = blocks.last().copied().unwrap_or(ask.salt);
        let source = told_salt.map(|salt| {
            Arc::new(Source {
                blocks: blocks.clone(),
                ids: prompt.ids(),
                salt: salt.map(str::to_owned),
            })
        });
        for nth in 0..ask.n {
            jobs.push(Job {
                blocks: blocks.clone(),
                prompt_tokens: prompt.tokens(),
                output_tokens,
                source: source.clone(),
                external_tokens: 0,
                keep: false,
            });
            choices.push(Choice {
                seed: hash.wrapping_add(u64::from(nth)),
                output_tokens,
                echo: if ask.echo {
                    prompt.text()
                } else {
                    String::new()
                },
            });
        }
    }
    (jobs, choices)
}

async fn whole(
    call: &Call<'_>,
    mut running: Running,
    visit: &Visit,
) -> Result<Response<Body>, Trouble> {
    let per_prompt = running.ask.n.max(1) as usize;
    let mut usage = Usage {
        prompt: running.prompt_tokens,
        ..Usage::default()
    };
    while let Some(token) = running.flight.next().await {
        if token.finished {
            usage.completion += token.index + 1;
        }
        if token.finished && token.job.is_multiple_of(per_prompt) {
            usage.cached += token.cached_tokens;
        }
    }
    visit.note(|seen| seen.cached_tokens = Some(usage.cached));
    let ids = running.flight.take_keeping();
    let transfer = hand_over(call, &running, &ids, visit).await?;
    let Running {
        heading,
        choices,
        ending,
        json,
        ..
    } = &running;
    let body = if heading.api.is_pooling() {
        let seeds: Vec<u64> = choices.iter().map(|choice| choice.seed).collect();
        pooling::whole(heading, json, &seeds, usage)
    } else {
        answer::whole(heading, choices, *ending, usage)
    };
    let body = match transfer {
        Some(params) => answer::with_transfer(&body, &params),
        None => body,
    };
    Ok(json_answer(hyper::StatusCode::OK, body))
}

/// Hands over what was computed for another engine.
async fn hand_over(
    call: &Call<'_>,
    running: &Running,
    ids: &[u64],
    visit: &Visit,
) -> Result<Option<String>, Trouble> {
    let (Some(kv), Part::Give { .. }) = (&call.app.kv, &running.part) else {
        return Ok(None);
    };
    let mut noted = KvSeen::default();
    visit.note(|seen| noted = seen.kv.clone());
    let from = call.app.ranks.clocks().get(running.rank);
    let Some(clock) = from else {
        return Ok(None);
    };
    let given = Given {
        part: &running.part,
        rank: running.rank,
        clock,
        jobs: &running.given,
        ids,
    };
    let done = kv.after(given, &mut noted).await;
    visit.note(|seen| seen.kv = noted);
    done
}

struct Streaming {
    flight: Flight,
    script: Script,
    visit: Visit,
    ended: bool,
}

fn stream(running: Running, visit: Visit) -> Response<Body> {
    let Running {
        flight,
        ask,
        choices,
        ending,
        heading,
        prompt_tokens,
        ..
    } = running;
    let script = Script::new(heading, choices, ending, &ask, prompt_tokens);
    let streaming = Streaming {
        flight,
        script,
        visit,
        ended: false,
    };
    let body = StreamBody::new(unfold(streaming, events)).boxed_unsync();
    let mut answer = Response::new(body);
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

/// The events of the next token, or those after the last.
async fn events(mut streaming: Streaming) -> Option<(io::Result<Frame<Bytes>>, Streaming)> {
    if streaming.ended {
        return None;
    }
    let text = match streaming.flight.next().await {
        Some(token) => {
            let text = streaming.script.token(token);
            if token.index == 0 {
                let cached = streaming.script.usage().cached;
                let first_token_us = streaming.visit.elapsed_us();
                streaming.visit.note(|seen| {
                    seen.cached_tokens = Some(cached);
                    seen.first_token_us.get_or_insert(first_token_us);
                });
            }
            text
        }
        None => {
            streaming.ended = true;
            streaming.visit.end();
            streaming.script.end()
        }
    };
    Some((Ok(Frame::data(Bytes::from(text))), streaming))
}

/// The load of this moment, if the request asks for it (ORCA).
fn load_report(call: &Call<'_>) -> Option<HeaderValue> {
    if !matches!(call.api, Api::Chat | Api::Completions) {
        return None;
    }
    let format = call
        .head
        .headers
        .get("endpoint-load-metrics-format")?
        .to_str()
        .ok()?;
    // Of several ranks the last that was written counts, as with vLLM.
    let now: Snapshot = call.app.ranks.clocks().last()?.snapshot();
    let (waiting, usage) = (f64::from(now.stats.waiting), now.kv_usage());
    let report = match format.to_ascii_uppercase().as_str() {
        "TEXT" => format!(
            "TEXT named_metrics.num_requests_waiting={waiting:?}, named_metrics.kv_cache_usage_perc={usage:?}"
        ),
        "JSON" => format!(
            r#"JSON {{"named_metrics": {{"num_requests_waiting": {waiting:?}, "kv_cache_usage_perc": {usage:?}}}}}"#
        ),
        _ => return None,
    };
    HeaderValue::try_from(report).ok()
}
