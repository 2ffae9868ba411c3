//! Models: an alias becomes the model's own name and nothing else of the body changes, and engines
//! of one pool may serve different models.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::arrival::{arrival, whole};
use super::client::{Call, Transport};
use super::harness::{Context, Stack, StackSpec, pool_mut};
use super::raw::{Framing, Pieces};
use super::spread::{Spread, send_all};
use super::{Case, named};

pub(super) fn cases() -> Vec<Case> {
    named!("models":
        an_alias_is_replaced_and_nothing_else,
        an_alias_is_replaced_before_trailers,
        engines_of_a_pool_may_serve_different_models,
    )
}

/// Bodies of a chat with a place for the model's name: first, last, in the middle, and with other
/// members, escapes and spaces that a body written anew would not keep.
const LAYOUTS: [&str; 4] = [
    r#"{"model":MODEL,"max_tokens":1,"messages":[{"role":"user","content":"hello"}]}"#,
    r#"{ "messages" : [ { "role":"user", "content":"gpt-4o-mini \"model\": \"gpt-4o-mini\" \u00e9é" } ],
        "max_tokens": 1 , "user":"alice",  "model" : MODEL }  "#,
    "{\"temperature\":1.10,\t\"model\"\n:\r\n MODEL ,\"messages\":[{\"role\":\"user\",\"content\":\"\\ud83d\\ude00\"}],\"max_tokens\":1,\"x\":{\"model\":\"gpt-4o-mini\"}}",
    r#"{"max_tokens":1,"messages":[{"content":[{"type":"text","text":"FILLER"}],"role":"user"}],"model":MODEL}"#,
];

/// The alias as clients write it; the second with an escape that JSON allows.
const ALIASES: [&str; 2] = [r#""gpt-4o-mini""#, r#""gpt\u002d4o-mini""#];

fn layouts() -> impl Iterator<Item = String> {
    let filler = "tell me more ".repeat(20_000);
    LAYOUTS
        .into_iter()
        .map(move |text| text.replace("FILLER", &filler))
}

async fn an_alias_is_replaced_and_nothing_else(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    for layout in layouts() {
        let want = layout.replace("MODEL", r#""llama-3-8b""#);
        for alias in ALIASES {
            let text = layout.replace("MODEL", alias);
            let call = Call::post("/v1/chat/completions", &Value::Null).body(text);
            for transport in [Transport::Http1, Transport::Http2] {
                let reply = stack.send(call.clone().over(transport)).await?;
                whole(&stack, reply, want.as_bytes()).context(alias)?;
            }
            for framing in [Framing::Length, Framing::Chunked] {
                let size = (call.body.len() / 7).max(1);
                let pieces = Pieces::of(size, call.body.len(), framing);
                let reply = stack.send_in_pieces(call.clone(), &pieces).await?;
                let (_, seen) = arrival(&stack, &reply)?;
                let length = want.len().to_string();
                let told = (framing == Framing::Length).then_some(length.as_bytes());
                ensure!(
                    seen.header("content-length") == told,
                    "{framing:?}: {seen:?}"
                );
                whole(&stack, reply, want.as_bytes()).context(alias)?;
            }
        }
    }
    Ok(())
}

async fn an_alias_is_replaced_before_trailers(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, StackSpec::shipped()).await?;
    for layout in layouts() {
        for (name, status) in [("llama-3-8b", 200), ("gpt-4o-mini", 200), ("unknown", 404)] {
            let text = layout.replace("MODEL", &format!("{name:?}"));
            let want = layout.replace("MODEL", r#""llama-3-8b""#);
            let call = Call::post("/v1/chat/completions", &Value::Null)
                .body(text)
                .trailer("x-checksum", "abc");
            let reply = stack.send(call).await?.expect_status(status)?;
            if status == 200 {
                whole(&stack, reply, want.as_bytes()).context(name)?;
            }
        }
    }
    Ok(())
}

async fn engines_of_a_pool_may_serve_different_models(context: &Context) -> anyhow::Result<()> {
    const SERVED: [&[&str]; 3] = [&["small"], &["large"], &["small", "large"]];
    let of = |name: &str| {
        let index: Option<usize> = name.strip_prefix("llama-")?.parse().ok();
        SERVED.get(index?).copied()
    };
    let spec = StackSpec::shipped()
        .policy("llama", json!("round_robin"))
        .engine(move |config| {
            if let Some(models) = of(&config.name) {
                config.models = models.iter().map(|&model| model.to_owned()).collect();
            }
        })
        .plugin(|config| {
            let Some(pool) = pool_mut(config, "llama") else {
                return;
            };
            pool.remove("models");
            pool.insert("aliases".to_owned(), json!({"tiny": "small"}));
            let list = pool
                .get_mut("endpoints")
                .and_then(|it| it.get_mut("static"));
            let list = list.and_then(Value::as_array_mut).into_iter().flatten();
            for (endpoint, models) in list.zip(SERVED) {
                if let Some(endpoint) = endpoint.as_object_mut() {
                    endpoint.insert("models".to_owned(), json!(models));
                }
            }
        });
    let stack = Stack::start(context, spec).await?;
    for (name, model) in [("small", "small"), ("large", "large"), ("tiny", "small")] {
        let calls = (0..20).map(|_| Call::chat(name, "hello"));
        let replies = send_all(stack.client(), calls, 4).await?;
        let spread = Spread::over(&stack, "llama", &replies)?;
        for engine in stack.pool("llama") {
            let serves = of(&engine.name).is_some_and(|models| models.contains(&model));
            let share = if serves { 10 } else { 0 };
            ensure!(spread.of(&engine.name) == share, "{name}: {spread:?}");
        }
    }
    let list = stack
        .send(Call::get("/v1/models"))
        .await?
        .expect_status(200)?;
    let list = list.json()?;
    let ids = list
        .get("data")
        .and_then(Value::as_array)
        .context("no data")?;
    for name in ["small", "large", "tiny", "qwen-2.5-7b"] {
        let times = ids
            .iter()
            .filter(|it| it.get("id").is_some_and(|id| id == name));
        ensure!(times.count() == 1, "{name} in {list}");
    }
    Ok(())
}
