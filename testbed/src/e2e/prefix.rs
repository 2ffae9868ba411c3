//! The policy `prefix` follows the cache: a prompt goes where its beginning is held, in whatever
//! form it comes, and the engine confirms it by what it had cached.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::client::{Call, Reply};
use super::conversation::{Conversation, text};
use super::harness::{Context, Stack, StackSpec};
use super::workers::{Workers, seed};
use super::{Case, named};

pub(super) fn cases() -> Vec<Case> {
    named!("prefix":
        a_conversation_stays_with_its_cache,
        a_prompt_of_any_form_finds_its_cache,
        another_salt_is_another_cache,
        an_alias_shares_the_cache_of_its_model,
        another_form_of_the_same_prompt_is_warm,
        a_prompt_beyond_the_limit_is_matched_as_far_as_read,
    )
}

/// Three engines in `llama` by the policy `prefix`, and two in `qwen`, so that workers can be
/// introduced to each other.
pub(super) fn spec() -> StackSpec {
    StackSpec::shipped()
        .engines("qwen", 2)
        .policy("llama", json!("prefix"))
}

/// Tokens of the engines' blocks: the end of a prompt that fills none is never cached.
const BLOCK_TOKENS: u64 = 16;

/// Fails unless `reply` came from the engine called `home`, because it holds the prompt.
pub(super) fn ensure_warm(stack: &Stack<'_>, reply: &Reply, home: &str) -> anyhow::Result<()> {
    let told = reply.decision()?;
    let name = &stack.answered_by(reply)?.name;
    ensure!(name == home, "{name} instead of {home}: {told:?}");
    ensure!(
        told.policy == "prefix" && told.reason == "longest_prefix",
        "{told:?}"
    );
    Ok(())
}

async fn a_conversation_stays_with_its_cache(context: &Context) -> anyhow::Result<()> {
    const TURNS: usize = 6;
    let stack = Stack::start(context, spec()).await?;
    let workers = Workers::introduced(&stack).await?;
    let mut conversations: Vec<_> = (0..8)
        .map(|_| {
            (
                Conversation::new(&text(seed(), 3000)),
                String::new(),
                (0, 0),
            )
        })
        .collect();
    for turn in 0..TURNS {
        for (number, (conversation, home, before)) in conversations.iter_mut().enumerate() {
            let call = conversation.ask(&text(seed(), 2000));
            // Turns alternate between workers, and so do conversations.
            let reply = workers
                .send(turn + number, call)
                .await?
                .expect_status(200)?;
            let (prompt, cached) = reply.prompt_tokens()?;
            if turn == 0 {
                ensure!(reply.decision()?.reason == "cold_prefix", "{reply:?}");
                ensure!(
                    cached == 0,
                    "{cached} tokens of a new conversation are cached"
                );
                home.clone_from(&stack.answered_by(&reply)?.name);
            } else {
                ensure_warm(&stack, &reply, home).with_context(|| format!("turn {turn}"))?;
                let (all_before, cached_before) = *before;
                ensure!(
                    cached > cached_before && cached + BLOCK_TOKENS >= all_before,
                    "turn {turn}: {cached} cached of the {all_before} sent before"
                );
            }
            *before = (prompt, cached);
            conversation.heard(&reply)?;
        }
        workers.catch_up().await?;
    }
    Ok(())
}

/// A prompt of each form, and the same prompt with more after it.
fn forms() -> Vec<(&'static str, Value, Value)> {
    let (head, tail) = (text(seed(), 4000), text(seed(), 1000));
    let ids = |count: u64| -> Vec<u64> {
        let first = seed() * 1000;
        (first..first + count).map(|id| id % 100_000).collect()
    };
    let (ids, more) = (ids(1000), ids(100));
    let longer = format!("{head}{tail}");
    let all_ids: Vec<_> = ids.iter().chain(&more).copied().collect();
    let turn = |text: &str| json!({"role": "user", "content": text});
    let turns = json!([turn(&head), {"role": "assistant", "content": "ok"}, turn(&tail)]);
    let tools = json!([{"type": "function", "function": {"name": "f", "description": head}}]);
    vec![
        (
            "/v1/completions",
            json!({"prompt": head}),
            json!({"prompt": longer}),
        ),
        (
            "/v1/completions",
            json!({"prompt": [text(7, 3000)]}),
            json!({"prompt": [text(7, 4000)]}),
        ),
        (
            "/v1/completions",
            json!({"prompt": ids}),
            json!({"prompt": all_ids}),
        ),
        (
            "/v1/responses",
            json!({"input": text(8, 3000)}),
            json!({"input": text(8, 3000)}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [turn(&head)]}),
            json!({"messages": turns}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [turn(&tail)], "tools": tools}),
            json!({"messages": [turn(&tail), turn("go on")], "tools": tools}),
        ),
        (
            "/v1/messages",
            json!({"messages": [turn(&tail)], "system": text(9, 3000)}),
            json!({"messages": [turn(&tail), turn("go on")], "system": text(9, 3000)}),
        ),
        (
            "/v1/embeddings",
            json!({"input": text(10, 3000)}),
            json!({"input": text(10, 3000)}),
        ),
    ]
}

/// A request to `path`.
fn call(path: &str, fields: &Value) -> anyhow::Result<Call> {
    let mut document = json!({"model": "llama-3-8b", "max_tokens": 4});
    let fields = fields.as_object().context("not an object")?;
    if let Some(document) = document.as_object_mut() {
        document.extend(fields.clone());
    }
    Ok(Call::post(path, &document))
}

async fn a_prompt_of_any_form_finds_its_cache(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let workers = Workers::introduced(&stack).await?;
    for (number, (path, first, second)) in forms().into_iter().enumerate() {
        let name = || format!("{path}, form {number}");
        let reply = workers.send(number, call(path, &first)?).await?;
        let reply = reply.expect_status(200).with_context(name)?;
        ensure!(
            reply.decision()?.reason == "cold_prefix",
            "{}: {reply:?}",
            name()
        );
        let home = stack.answered_by(&reply)?.name.clone();
        workers.catch_up().await?;
        let reply = workers.send(number + 1, call(path, &second)?).await?;
        let reply = reply.expect_status(200).with_context(name)?;
        ensure_warm(&stack, &reply, &home).with_context(name)?;
        let seen = stack.engine(&home)?.engine.log().pop();
        let cached = seen.and_then(|seen| seen.cached_tokens).unwrap_or_default();
        ensure!(cached > 500, "{}: {cached} tokens cached", name());
    }
    Ok(())
}

async fn another_salt_is_another_cache(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let workers = Workers::introduced(&stack).await?;
    let system = text(seed(), 4000);
    let ask = |salt: Value| {
        let conversation = Conversation::new(&system);
        match salt {
            Value::Null => conversation,
            salt => conversation.field("cache_salt", salt),
        }
        .ask("hello")
    };
    for salt in [json!("tenant-a"), json!("tenant-b"), Value::Null] {
        let reply = workers
            .send(0, ask(salt.clone()))
            .await?
            .expect_status(200)?;
        ensure!(
            reply.decision()?.reason == "cold_prefix",
            "{salt}: {reply:?}"
        );
        ensure!(reply.prompt_tokens()?.1 == 0, "{salt}: {}", reply.text());
        let home = stack.answered_by(&reply)?.name.clone();
        workers.catch_up().await?;
        let reply = workers
            .send(1, ask(salt.clone()))
            .await?
            .expect_status(200)?;
        ensure_warm(&stack, &reply, &home).with_context(|| format!("{salt}, again"))?;
        ensure!(reply.prompt_tokens()?.1 > 900, "{salt}: {}", reply.text());
    }
    Ok(())
}

async fn an_alias_shares_the_cache_of_its_model(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let workers = Workers::introduced(&stack).await?;
    let prompt = text(seed(), 4000);
    let reply = workers.send(0, Call::chat("gpt-4o-mini", &prompt)).await?;
    let reply = reply.expect_status(200)?;
    let home = stack.answered_by(&reply)?.name.clone();
    workers.catch_up().await?;
    for (number, model) in ["llama-3-8b", "gpt-4o-mini"].into_iter().enumerate() {
        let reply = workers.send(number, Call::chat(model, &prompt)).await?;
        let reply = reply.expect_status(200)?;
        ensure_warm(&stack, &reply, &home).context(model)?;
        ensure!(reply.prompt_tokens()?.1 > 900, "{model}: {}", reply.text());
    }
    Ok(())
}

async fn another_form_of_the_same_prompt_is_warm(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec()).await?;
    let prompt = text(seed(), 4000);
    let tools = json!([{"type": "function", "function": {"name": "f"}}]).to_string();
    let content = [
        json!(prompt).to_string(),
        json!([{"type": "text", "text": prompt}]).to_string(),
        // An escape that means the same, and spaces.
        format!(
            " \"\\u{:04x}{}\" ",
            prompt.as_bytes().first().copied().unwrap_or(b'0'),
            prompt.get(1..).unwrap_or_default()
        ),
    ];
    let mut home = None;
    for content in content {
        let messages = format!(r#""messages":[{{"role":"user","content":{content}}}]"#);
        let model = r#""model":"llama-3-8b","max_tokens":4"#;
        // Members of a body may come in any order.
        for members in [
            format!(r#"{model},"tools":{tools},{messages}"#),
            format!(r#"{messages},"tools":{tools},{model}"#),
        ] {
            let call =
                Call::post("/v1/chat/completions", &Value::Null).body(format!("{{{members}}}"));
            let reply = stack.send(call).await?.expect_status(200)?;
            let Some(home) = &home else {
                home = Some(stack.answered_by(&reply)?.name.clone());
                continue;
            };
            ensure_warm(&stack, &reply, home).with_context(|| members.clone())?;
            ensure!(reply.prompt_tokens()?.1 > 900, "{}", reply.text());
        }
    }
    Ok(())
}

async fn a_prompt_beyond_the_limit_is_matched_as_far_as_read(
    context: &Context,
) -> anyhow::Result<()> {
    let spec = spec()
        .with_room()
        .option("limits", json!({"hold_bytes": 64 * 1024}));
    let stack = Stack::start(context, spec).await?;
    let mut conversation = Conversation::new(&text(seed(), 1_000_000));
    let mut home = None;
    for turn in 0..3 {
        let reply = stack
            .send(conversation.ask("and then?"))
            .await?
            .expect_status(200)?;
        conversation.heard(&reply)?;
        let Some(home) = &home else {
            home = Some(stack.answered_by(&reply)?.name.clone());
            continue;
        };
        ensure_warm(&stack, &reply, home).with_context(|| format!("turn {turn}"))?;
        ensure!(
            reply.prompt_tokens()?.1 > 240_000,
            "turn {turn}: {}",
            reply.text()
        );
    }
    Ok(())
}
