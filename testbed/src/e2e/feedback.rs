//! What engines say in their answers: token counts are read as the answers pass, which stay as they
//! are; the load is asked for, and kept from clients that did not ask.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::arrival::{arrival, whole};
use super::canned::{Canned, Upstream};
use super::client::{Call, Client, Reply, Transport};
use super::conversation::{Conversation, text};
use super::counters::{counted, counter};
use super::harness::{Context, Stack, StackSpec};
use super::{Case, named};

pub(super) fn cases() -> Vec<Case> {
    named!("feedback":
        usage_of_whole_answers_is_counted,
        usage_of_streams_is_counted,
        a_stream_without_usage_is_left_alone,
        a_stream_passes_as_it_comes,
        an_engine_that_forgot_is_seen,
        answers_cut_anywhere_are_read,
        compressed_answers_are_left_alone,
        answers_without_counts_are_counted,
        bodies_are_read_only_if_wanted,
        load_is_asked_for_and_kept,
        load_is_for_those_who_ask,
    )
}

const LLAMA: [(&str, &str); 1] = [("pool", "llama")];
const QWEN: [(&str, &str); 1] = [("pool", "qwen")];
const TURNS: u64 = 5;
/// Where one is counted, so is the other.
const PREDICTED: &str = "warmpath_endpoint_predicted_cached_tokens_total";
const REPORTED: &str = "warmpath_endpoint_reported_cached_tokens_total";
const UNREPORTED: &str = "warmpath_unreported_answers_total";
const LOAD_REPORTS: &str = "warmpath_load_reports_total";
const ASK: &str = "endpoint-load-metrics-format";
const TOLD: &str = "endpoint-load-metrics";

fn spec() -> StackSpec {
    StackSpec::shipped().policy("llama", json!("prefix"))
}

/// Sums of what engines said: tokens of prompts, those cached, tokens of outputs.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    prompt: u64,
    cached: u64,
    output: u64,
}

impl Said {
    fn add(&mut self, usage: &Value) -> anyhow::Result<()> {
        let figure = |pointer: &str| {
            let found = usage.pointer(pointer).and_then(Value::as_u64);
            found.with_context(|| format!("no {pointer}: {usage}"))
        };
        self.prompt += figure("/prompt_tokens")?;
        self.cached += figure("/prompt_tokens_details/cached_tokens")?;
        self.output += figure("/completion_tokens")?;
        Ok(())
    }

    /// Waits until the filter has counted the same.
    async fn is_counted(&self, stack: &Stack<'_>) -> anyhow::Result<()> {
        for (name, want) in [
            ("warmpath_reported_prompt_tokens_total", self.prompt),
            ("warmpath_reported_cached_tokens_total", self.cached),
            ("warmpath_reported_output_tokens_total", self.output),
        ] {
            counted(stack, name, &LLAMA, want).await?;
        }
        counted(stack, REPORTED, &LLAMA, self.cached).await
    }
}

/// The last `usage` of a stream.
fn usage_of(reply: &Reply) -> anyhow::Result<Value> {
    let text = reply.text();
    let events = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events = events.filter_map(|event| serde_json::from_str::<Value>(event).ok());
    let mut usages = events.filter_map(|event| event.get("usage").cloned());
    let last = usages.rfind(Value::is_object);
    last.context("no usage in the stream")
}

/// Predicted tokens must be close to what the engines had.
async fn ensure_foreseen(stack: &Stack<'_>, said: Said) -> anyhow::Result<()> {
    let predicted = counter(stack, PREDICTED, &LLAMA).await?;
    let off = predicted.abs_diff(said.cached);
    ensure!(said.cached > 0, "nothing was cached: {said:?}");
    ensure!(20 * off <= said.cached, "{predicted} predicted of {said:?}");
    Ok(())
}

async fn usage_of_whole_answers_is_counted(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let mut said = Said::default();
    for seed in 0..3 {
        let mut conversation = Conversation::new(&text(seed, 20_000));
        for turn in 0..TURNS {
            let question = text(100 + TURNS * seed + turn, 4000);
            let call = conversation.ask(&question).over(Transport::Http2);
            let reply = stack.send(call).await?.expect_status(200)?;
            conversation.heard(&reply)?;
            said.add(reply.json()?.get("usage").context("no usage")?)?;
        }
    }
    said.is_counted(&stack).await?;
    ensure_foreseen(&stack, said).await
}

async fn usage_of_streams_is_counted(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let mut said = Said::default();
    let prompt = text(1, 20_000);
    let options = json!({"include_usage": true, "continuous_usage_stats": false});
    for turn in 0..TURNS {
        let message = format!("{prompt}{}", text(2, turn as usize * 2000));
        let fields = json!({"stream": true, "stream_options": options, "max_tokens": 40});
        // One connection is one worker: another would not know of the last turn yet.
        let call = Call::chat_with("llama-3-8b", &message, fields).over(Transport::Http2);
        let reply = stack.send(call).await?.expect_status(200)?;
        said.add(&usage_of(&reply)?)?;
    }
    ensure!(said.output == 40 * TURNS, "{said:?}");
    said.is_counted(&stack).await?;
    ensure_foreseen(&stack, said).await
}

async fn a_stream_without_usage_is_left_alone(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    for options in [Value::Null, json!({"include_usage": false})] {
        let fields = json!({"stream": true, "stream_options": options});
        let call = Call::chat_with("llama-3-8b", &text(1, 8000), fields);
        let body = call.body.clone();
        let reply = stack.send(call).await?;
        ensure!(usage_of(&reply).is_err(), "{}", reply.text());
        ensure!(reply.text().ends_with("data: [DONE]\n\n"));
        whole(&stack, reply, &body)?;
    }
    // What is counted later is all there is.
    let call = Call::chat("llama-3-8b", &text(1, 8000));
    let reply = stack.send(call).await?.expect_status(200)?;
    let mut said = Said::default();
    said.add(reply.json()?.get("usage").context("no usage")?)?;
    said.is_counted(&stack).await
}

async fn a_stream_passes_as_it_comes(context: &Context) -> anyhow::Result<()> {
    let spec = spec().engine(|config| config.time_scale = 1.0);
    let stack = Stack::start(context, spec).await?;
    let fields = json!({
        "stream": true, "stream_options": {"include_usage": true}, "max_tokens": 60,
    });
    let call = || {
        let call = Call::chat_with("llama-3-8b", &text(1, 8000), fields.clone());
        call.header("x-request-id", "the-same")
    };
    // Afterwards the prompt is cached, whoever asks.
    let first = stack.send(call()?).await?.expect_status(200)?;
    let engine = stack.answered_by(&first)?;
    let mut open = stack.open(call()?).await?;
    open.chunk().await?.context("a first piece")?;
    ensure!(
        engine.engine.stats().running == 1,
        "the first piece came with the last"
    );
    let mut rest = 0;
    while open.chunk().await?.is_some() {
        rest += 1;
    }
    ensure!(rest > 5, "all came in {rest} pieces after the first");
    let passed = stack.send(call()?).await?.expect_status(200)?;
    ensure!(stack.answered_by(&passed)?.name == engine.name);
    let direct = Client::new(engine.address)?.send(call()?).await?;
    let (passed, direct) = (without_time(&passed), without_time(&direct));
    ensure!(passed == direct, "{passed}\n-- directly\n{direct}");
    Ok(())
}

/// A stream without the second it was made in.
fn without_time(reply: &Reply) -> String {
    let text = reply.text();
    let parts = text.split("\"created\":");
    let parts = parts.map(|part| part.trim_start_matches(|byte: char| byte.is_ascii_digit()));
    parts.collect::<Vec<_>>().join("\"created\":")
}

async fn an_engine_that_forgot_is_seen(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let mut said = Said::default();
    for _ in 0..2 {
        let reply = stack.send(Call::chat("llama-3-8b", &text(1, 40_000)));
        let reply = reply.await?.expect_status(200)?;
        said.add(reply.json()?.get("usage").context("no usage")?)?;
        for engine in stack.pool("llama") {
            let reset = Call::post("/reset_prefix_cache", &json!({}));
            let reply = Client::new(engine.address)?.send(reset).await?;
            reply.expect_status(200)?;
        }
    }
    ensure!(said.cached == 0, "{said:?}");
    said.is_counted(&stack).await?;
    let predicted = counter(&stack, PREDICTED, &LLAMA).await?;
    ensure!(3 * predicted > said.prompt, "{predicted} predicted");
    Ok(())
}

/// As vLLM writes it, after the text of the answer.
const USAGE: &str = concat!(
    r#""usage":{"prompt_tokens":1200,"total_tokens":1209,"completion_tokens":9,"#,
    r#""prompt_tokens_details":{"cached_tokens":1024,"multimodal_tokens":null}}"#,
);
const REPORTED_OUTPUT: &str = "warmpath_reported_output_tokens_total";
const EVENT_STREAM: &str = "content-type: text/event-stream\r\n";
const JSON: &str = "content-type: application/json\r\n";

fn json_answer(words: usize) -> Vec<u8> {
    let text = "\\\"usage\\\": ".repeat(words);
    format!(r#"{{"choices":[{{"text":"{text}"}}],{USAGE},"prompt_logprobs":null}}"#).into_bytes()
}

fn stream_answer(words: usize) -> Vec<u8> {
    let word = "data: {\"choices\":[{\"text\":\"word\"}],\"usage\":null}\n\n".repeat(words);
    format!("{word}data: {{\"choices\":[],{USAGE}}}\n\ndata: [DONE]\n\n").into_bytes()
}

fn ask_qwen(stream: bool) -> Call {
    let fields = json!({"stream": stream, "stream_options": {"include_usage": stream}});
    Call::chat_with("qwen-2.5-7b", "hello", fields)
}

async fn answers_cut_anywhere_are_read(context: &Context) -> anyhow::Result<()> {
    let mut answers = Vec::new();
    for (stream, chunked, words) in [(true, true, 3), (false, false, 5), (false, true, 600)] {
        for piece_bytes in [0, 1, 7, 100] {
            // A byte at a time takes a pause for each.
            let words = if piece_bytes == 1 {
                words.min(5)
            } else {
                words
            };
            let (headers, body) = match stream {
                true => (EVENT_STREAM, stream_answer(words)),
                false => (JSON, json_answer(words)),
            };
            answers.push(Canned {
                headers: headers.to_owned(),
                body,
                piece_bytes,
                chunked,
            });
        }
    }
    let upstream = Upstream::start(answers.clone()).await?;
    let stack = Stack::start(context, upstream.instead_of("qwen", spec())).await?;
    for (answer, count) in answers.into_iter().zip(1..) {
        let stream = answer.headers == EVENT_STREAM;
        let reply = stack.send(ask_qwen(stream)).await?.expect_status(200)?;
        ensure!(reply.body == answer.body, "another body: {}", reply.text());
        for (name, want) in [
            ("warmpath_reported_prompt_tokens_total", 1200),
            ("warmpath_reported_cached_tokens_total", 1024),
            (REPORTED_OUTPUT, 9),
        ] {
            counted(&stack, name, &QWEN, count * want).await?;
        }
    }
    Ok(())
}

async fn compressed_answers_are_left_alone(context: &Context) -> anyhow::Result<()> {
    let canned = Canned {
        headers: format!("{JSON}content-encoding: gzip\r\n"),
        // Whatever the bytes seem to say.
        body: json_answer(1),
        ..Canned::default()
    };
    let body = canned.body.clone();
    let upstream = Upstream::start(vec![canned]).await?;
    let stack = Stack::start(context, upstream.instead_of("qwen", spec())).await?;
    let reply = stack.send(ask_qwen(false)).await?.expect_status(200)?;
    ensure!(reply.body == body, "another body: {}", reply.text());
    ensure!(reply.header("content-encoding") == Some("gzip"));
    counted(&stack, UNREPORTED, &[QWEN[0], ("cause", "compressed")], 1).await?;
    ensure!(counter(&stack, UNREPORTED, &QWEN).await? == 1);
    ensure!(counter(&stack, REPORTED_OUTPUT, &QWEN).await? == 0);
    Ok(())
}

async fn answers_without_counts_are_counted(context: &Context) -> anyhow::Result<()> {
    let few = r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}"#;
    let in_text = r#"{"choices":[{"usage":{"completion_tokens":7}}]}"#;
    let done = "data: {\"choices\":[]}\n\ndata: [DONE]\n\n";
    let steps = [
        (JSON, "{}", "no_usage", 1),
        (JSON, in_text, "no_usage", 2),
        (EVENT_STREAM, done, "no_usage", 3),
        (JSON, few, "no_cached_tokens", 1),
    ];
    let answers = steps.map(|(headers, body, ..)| Canned {
        headers: headers.to_owned(),
        body: body.into(),
        ..Canned::default()
    });
    let upstream = Upstream::start(answers.to_vec()).await?;
    let stack = Stack::start(context, upstream.instead_of("qwen", spec())).await?;
    for (headers, body, cause, want) in steps {
        ensure!(counter(&stack, REPORTED_OUTPUT, &QWEN).await? == 0);
        let call = ask_qwen(headers == EVENT_STREAM);
        let reply = stack.send(call).await?.expect_status(200)?;
        ensure!(reply.text() == body, "another body: {}", reply.text());
        counted(&stack, UNREPORTED, &[QWEN[0], ("cause", cause)], want).await?;
    }
    ensure!(counter(&stack, UNREPORTED, &QWEN).await? == 4);
    counted(&stack, REPORTED_OUTPUT, &QWEN, 7).await
}

async fn bodies_are_read_only_if_wanted(context: &Context) -> anyhow::Result<()> {
    let spec = spec().option("feedback", json!({"usage": false}));
    let stack = Stack::start(context, spec).await?;
    for _ in 0..2 {
        let call = Call::chat("llama-3-8b", &text(1, 8000));
        stack.send(call).await?.expect_status(200)?;
    }
    counted(&stack, "warmpath_endpoint_finished_total", &LLAMA, 2).await?;
    for name in [REPORTED, REPORTED_OUTPUT, UNREPORTED] {
        let found = counter(&stack, name, &LLAMA).await?;
        ensure!(found == 0, "{name} is {found}");
    }
    Ok(())
}

async fn load_is_asked_for_and_kept(context: &Context) -> anyhow::Result<()> {
    let spec = spec().option("feedback", json!({"orca": true}));
    let stack = Stack::start(context, spec).await?;
    let call = || Call::chat("llama-3-8b", &text(1, 8000));
    let reply = stack.send(call()).await?.expect_status(200)?;
    let (_, seen) = arrival(&stack, &reply)?;
    ensure!(seen.header(ASK) == Some(b"TEXT"), "{seen:?}");
    ensure!(reply.header(TOLD).is_none(), "{reply:?}");

    let reply = stack.send(call().header(ASK, "JSON")?).await?;
    let (_, seen) = arrival(&stack, &reply)?;
    ensure!(seen.header(ASK) == Some(b"JSON"), "{seen:?}");
    let told = reply.header(TOLD).context("the client asked")?;
    ensure!(told.starts_with("JSON {"), "{told}");

    let stream = Call::chat_with("llama-3-8b", &text(1, 8000), json!({"stream": true}));
    let reply = stack.send(stream).await?.expect_status(200)?;
    let (_, seen) = arrival(&stack, &reply)?;
    ensure!(seen.header(ASK).is_none(), "{seen:?}");
    counted(&stack, LOAD_REPORTS, &LLAMA, 2).await
}

async fn load_is_for_those_who_ask(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let call = || Call::chat("llama-3-8b", "hello");
    let reply = stack.send(call()).await?.expect_status(200)?;
    let (_, seen) = arrival(&stack, &reply)?;
    ensure!(seen.header(ASK).is_none() && reply.header(TOLD).is_none());
    let reply = stack.send(call().header(ASK, "TEXT")?).await?;
    let told = reply.header(TOLD).context("the client asked")?;
    ensure!(told.starts_with("TEXT "), "{told}");
    counted(&stack, "warmpath_endpoint_finished_total", &LLAMA, 2).await?;
    ensure!(counter(&stack, LOAD_REPORTS, &LLAMA).await? == 0);
    Ok(())
}
