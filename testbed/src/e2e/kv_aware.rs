//! The policy `kv_aware` goes where the engines' caches really are, as a KV index says, and does as well as
//! `prefix` when the index fails.
//!
//! The index is a stand-in for LMCache's controller, told by the engines themselves. The budget is long
//! here: what is shown is what is decided, on a machine that may be busy.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::client::{Call, Reply};
use super::conversation::{Conversation, text};
use super::counters::counter;
use super::harness::{Context, Stack, StackSpec, eventually, pool_mut};
use super::workers::seed;
use super::{Case, named};
use crate::engine::KvEventsConfig;
use crate::lmcache::{Controller, Fault};

pub(super) fn cases() -> Vec<Case> {
    named!("kv_aware":
        a_prompt_that_only_the_index_knows_goes_where_it_is,
        what_an_engine_has_evicted_is_not_believed,
        instances_are_found_by_their_addresses,
        an_index_that_fails_fails_no_request,
        an_index_that_lags_is_made_up_for,
        hits_are_those_of_a_view_of_the_true_caches,
    )
}

/// Longest that the configuration allows.
const BUDGET_MS: u64 = 1000;
const MODEL: &str = "llama-3-8b";

/// Engines that tell a controller what they cache, and a pool that asks it.
struct Indexed {
    controller: Arc<Controller>,
    spec: StackSpec,
}

impl Indexed {
    /// With these options of the policy beside the index; `named` says that the configuration tells which
    /// engine an instance is.
    async fn new(options: Value, named: bool) -> anyhow::Result<Self> {
        let controller = Arc::new(Controller::start().await?);
        let (told, asked) = (Arc::clone(&controller), controller.address());
        let spec = StackSpec::shipped()
            .engine(move |config| {
                // Each engine has an address of its own, as engines mostly do.
                let number: Option<u8> = config
                    .name
                    .rsplit('-')
                    .next()
                    .and_then(|it| it.parse().ok());
                let ip = Ipv4Addr::new(127, 0, 1, 1 + number.unwrap_or_default());
                config.listen = (ip, 0).into();
                if config.name.starts_with("llama") {
                    config.kv_events = Some(KvEventsConfig {
                        listen: None,
                        tap: Some(told.tap(&config.name, IpAddr::V4(ip))),
                        ..KvEventsConfig::default()
                    });
                }
            })
            .plugin(move |config| {
                let mut index = json!({"cluster": "kv_index"});
                if let Some(pool) = pool_mut(config, "llama") {
                    if let (true, Some(index)) = (named, index.as_object_mut()) {
                        let instances = instances(pool.get("endpoints"));
                        index.insert("instances".to_owned(), instances);
                    }
                    let mut policy = json!({
                        "index": {"lmcache": index}, "budget_ms": BUDGET_MS, "least_tokens": 100,
                    });
                    if let (Some(policy), Some(options)) =
                        (policy.as_object_mut(), options.as_object())
                    {
                        policy.extend(options.clone());
                    }
                    pool.insert("policy".to_owned(), json!({"kv_aware": policy}));
                }
            })
            .bootstrap(move |bootstrap| {
                bootstrap.add_cluster_like("prometheus_stats", "kv_index")?;
                bootstrap.set_endpoints("kv_index", &[asked])
            });
        Ok(Self { controller, spec })
    }
}

/// Instances by name, as the harness names engines.
fn instances(endpoints: Option<&Value>) -> Value {
    let listed = endpoints.and_then(|it| it.pointer("/static")?.as_array());
    let named = listed.into_iter().flatten().enumerate();
    named
        .map(|(at, endpoint)| (format!("llama-{at}"), endpoint["address"].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Has an engine compute a request without anybody else's knowledge.
async fn compute(stack: &Stack<'_>, engine: &str, call: &Call) -> anyhow::Result<()> {
    let url = format!("http://{}{}", stack.engine(engine)?.address, call.path);
    let client = reqwest::Client::builder().no_proxy().build()?;
    let sent = client
        .request(call.method.clone(), url)
        .headers(call.headers.clone())
        .body(call.body.clone());
    sent.send().await?.error_for_status()?;
    Ok(())
}

fn completion(prompt: &str) -> Call {
    let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 4});
    Call::post("/v1/completions", &body)
}

/// Fails unless `reply` came from the engine, which the index had named.
fn ensure_found(stack: &Stack<'_>, reply: &Reply, engine: &str) -> anyhow::Result<()> {
    let told = reply.decision()?;
    let name = &stack.answered_by(reply)?.name;
    ensure!(name == engine, "{name} instead of {engine}: {told:?}");
    ensure!(
        told.policy == "kv_aware" && told.reason == "longest_cached",
        "{told:?}"
    );
    let (prompt, cached) = reply.prompt_tokens()?;
    ensure!(
        cached + 16 >= prompt * 9 / 10,
        "{cached} of {prompt} tokens"
    );
    Ok(())
}

async fn a_prompt_that_only_the_index_knows_goes_where_it_is(
    context: &Context,
) -> anyhow::Result<()> {
    let indexed = Indexed::new(json!({}), true).await?;
    let stack = Stack::start(context, indexed.spec).await?;
    for (number, engine) in ["llama-2", "llama-0", "llama-1"].into_iter().enumerate() {
        let prompt = text(seed(), 4000);
        let calls = [
            completion(&prompt),
            Call::chat(MODEL, &text(seed(), 4000)),
            // By an alias, which the engine does not know.
            Call::chat("gpt-4o-mini", &text(seed(), 4000)),
        ];
        for call in calls {
            let own = call.body.to_vec();
            let own = String::from_utf8(own)?.replace("gpt-4o-mini", MODEL);
            compute(&stack, engine, &call.clone().body(own)).await?;
            let reply = stack.send(call).await?.expect_status(200)?;
            ensure_found(&stack, &reply, engine).with_context(|| format!("round {number}"))?;
        }
    }
    let labels = [("cause", "matched")];
    eventually("all lookups are counted", async || {
        let found = counter(&stack, "warmpath_kv_lookups_total", &labels).await?;
        Ok((found == 9).then_some(()))
    })
    .await?;
    ensure!(indexed.controller.lookups() == 9);
    ensure!(counter(&stack, "warmpath_kv_overlap_tokens_total", &[]).await? > 8000);
    Ok(())
}

async fn what_an_engine_has_evicted_is_not_believed(context: &Context) -> anyhow::Result<()> {
    let options = json!({"prediction_ms": 0, "answer_ttl_ms": 0});
    let indexed = Indexed::new(options, true).await?;
    let spec = indexed.spec.engine(|config| config.params.kv_blocks = 100);
    let stack = Stack::start(context, spec).await?;
    let prompt = text(seed(), 4000);
    let reply = stack.send(completion(&prompt)).await?.expect_status(200)?;
    ensure!(reply.decision()?.reason == "cold_prefix", "{reply:?}");
    let home = stack.answered_by(&reply)?.name.clone();
    let reply = stack.send(completion(&prompt)).await?.expect_status(200)?;
    ensure_found(&stack, &reply, &home)?;
    // Nobody but the engine and the index learns of these.
    for _ in 0..2 {
        compute(&stack, &home, &completion(&text(seed(), 4000))).await?;
    }
    let reply = stack.send(completion(&prompt)).await?.expect_status(200)?;
    ensure!(reply.decision()?.reason == "cold_prefix", "{reply:?}");
    ensure!(reply.prompt_tokens()?.1 == 0, "{reply:?}");
    Ok(())
}

async fn instances_are_found_by_their_addresses(context: &Context) -> anyhow::Result<()> {
    let indexed = Indexed::new(json!({"answer_ttl_ms": 0}), false).await?;
    let stack = Stack::start(context, indexed.spec).await?;
    // Each worker asks about one address with a request, until it has met the right one.
    eventually("a worker knows the instance", async || {
        let call = completion(&text(seed(), 4000));
        compute(&stack, "llama-1", &call).await?;
        let reply = stack.send(call).await?.expect_status(200)?;
        let found = reply.decision()?.reason == "longest_cached";
        Ok(found.then_some(reply))
    })
    .await
    .and_then(|reply| ensure_found(&stack, &reply, "llama-1"))
}

async fn an_index_that_fails_fails_no_request(context: &Context) -> anyhow::Result<()> {
    const REQUESTS: u64 = 40;
    let faults = [
        (Fault::Dead, "unanswered"),
        (Fault::Slow(Duration::from_secs(3600)), "unanswered"),
        (Fault::Wrong, "unreadable"),
    ];
    let indexed = Indexed::new(json!({"budget_ms": 100, "answer_ttl_ms": 0}), true).await?;
    let stack = Stack::start(context, indexed.spec).await?;
    for (fault, cause) in faults {
        indexed.controller.set_fault(fault);
        let before = counter(&stack, "warmpath_kv_lookups_total", &[("cause", cause)]).await?;
        let asked = indexed.controller.lookups();
        for turn in 0..REQUESTS {
            let call = completion(&text(seed() + turn % 4, 4000));
            let reply = stack.send(call).await?.expect_status(200)?;
            ensure!(reply.prompt_tokens()?.0 > 900, "{fault:?}: {reply:?}");
        }
        eventually("the failures are counted", async || {
            // The index may still rest from the fault before.
            let call = completion(&text(seed(), 4000));
            stack.send(call).await?.expect_status(200)?;
            let labels = [("cause", cause)];
            let now = counter(&stack, "warmpath_kv_lookups_total", &labels).await?;
            Ok((now > before).then_some(()))
        })
        .await
        .with_context(|| format!("{fault:?}"))?;
        if fault != Fault::Wrong {
            // Most have not asked at all: the index is left alone after three failures in a row.
            eventually("requests that did not ask are counted", async || {
                let labels = [("cause", "resting")];
                let skipped = counter(&stack, "warmpath_kv_skipped_total", &labels).await?;
                Ok((skipped > 0).then_some(()))
            })
            .await?;
            let asked = indexed.controller.lookups() - asked;
            ensure!(
                asked < REQUESTS,
                "{asked} lookups at an index that is {fault:?}"
            );
        }
    }
    // It comes back by itself.
    indexed.controller.set_fault(Fault::None);
    eventually("the index is asked again", async || {
        let call = completion(&text(seed(), 4000));
        compute(&stack, "llama-0", &call).await?;
        let reply = stack.send(call).await?.expect_status(200)?;
        Ok((reply.decision()?.reason == "longest_cached").then_some(()))
    })
    .await
}

async fn an_index_that_lags_is_made_up_for(context: &Context) -> anyhow::Result<()> {
    const TURNS: usize = 5;
    let options = json!({"answer_ttl_ms": 0, "prediction_ms": 60_000});
    let indexed = Indexed::new(options, true).await?;
    let lag = Duration::from_secs(3600);
    indexed.controller.set_fault(Fault::Lagging(lag));
    let stack = Stack::start(context, indexed.spec).await?;
    let mut conversations: Vec<_> = (0..4)
        .map(|_| (Conversation::new(&text(seed(), 3000)), String::new()))
        .collect();
    for turn in 0..TURNS {
        for (conversation, home) in &mut conversations {
            let call = conversation.ask(&text(seed(), 2000));
            let reply = stack.send(call).await?.expect_status(200)?;
            let told = reply.decision()?;
            ensure!(told.policy == "kv_aware", "{told:?}");
            let name = stack.answered_by(&reply)?.name.clone();
            if turn == 0 {
                home.clone_from(&name);
            }
            ensure!(
                name == *home,
                "turn {turn}: {name} instead of {home}, {told:?}"
            );
            ensure!(turn == 0 || reply.prompt_tokens()?.1 > 0, "{reply:?}");
            conversation.heard(&reply)?;
        }
    }
    ensure!(indexed.controller.lookups() > 0);
    Ok(())
}

/// Conversations that take turns, and their turns; more than the engines' caches hold.
const CONVERSATIONS: u64 = 12;
const ROUNDS: u64 = 6;
const KV_BLOCKS: u32 = 700;

/// One request at a time, so load has no say: the hits are those of somebody who sees every cache.
async fn hits_are_those_of_a_view_of_the_true_caches(context: &Context) -> anyhow::Result<()> {
    let indexed = Indexed::new(json!({"answer_ttl_ms": 0, "prediction_ms": 0}), true).await?;
    let spec = indexed
        .spec
        .engine(|config| config.params.kv_blocks = KV_BLOCKS);
    let stack = Stack::start(context, spec).await?;
    let mut conversations: Vec<_> = (0..CONVERSATIONS)
        .map(|number| Conversation::new(&text(number % 3, 4000)))
        .collect();
    let (mut all, mut hits, mut seen, mut lost) = (0, 0, 0, 0);
    for round in 0..ROUNDS {
        for (number, conversation) in (0..).zip(&mut conversations) {
            let call = conversation.ask(&text(100 + number * ROUNDS + round, 3000));
            let best = best_cached(&stack, &indexed.controller, &call).await?;
            let reply = stack.send(call).await?.expect_status(200)?;
            let (prompt, cached) = reply.prompt_tokens()?;
            (all, hits, seen) = (all + prompt, hits + cached, seen + best);
            // Only the beginning that others share is left of it.
            lost += u64::from(round > 0 && best < 1100);
            conversation.heard(&reply)?;
        }
    }
    ensure!(lost > 0, "nothing was evicted");
    let share = |tokens: u64| 100.0 * tokens as f64 / f64::max(all as f64, 1.0);
    ensure!(
        share(hits) >= share(seen) - 1.0,
        "{:.1} % of the prompts were cached, {:.1} % could have been",
        share(hits),
        share(seen)
    );
    Ok(())
}

/// The most that any engine has cached of a prompt, as they told the controller themselves.
async fn best_cached(
    stack: &Stack<'_>,
    controller: &Controller,
    call: &Call,
) -> anyhow::Result<u64> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let post = async |url: String, body: Vec<u8>| -> anyhow::Result<Value> {
        let sent = client.post(url).header("content-type", "application/json");
        let answer = sent.body(body).send().await?.error_for_status()?;
        Ok(answer.json().await?)
    };
    let engine = stack.engine("llama-0")?.address;
    let tokens = post(format!("http://{engine}/tokenize"), call.body.to_vec()).await?;
    let query = json!({"token_ids": tokens.get("tokens"), "model_name": MODEL}).to_string();
    let url = format!("http://{}/query", controller.address());
    let found = post(url, query.into_bytes()).await?;
    let scores = found.get("scores").and_then(Value::as_object);
    let scores = scores.context("no scores")?.values();
    let held = scores.filter_map(|ranks| ranks.get("0")?.as_u64());
    Ok(held.max().unwrap_or_default())
}
