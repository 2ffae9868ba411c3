//! What a client cannot do: speak to an engine's connector. Such fields lead real engines to fetch from
//! wherever they say, or kill them.

use anyhow::ensure;
use serde_json::json;

use super::super::client::{Call, Transport};
use super::super::harness::{Context, Stack};
use super::super::{Case, named};
use super::{ALL, Moment, body_of, decodes_alone, members, no_complaints, prompt, spec};
use crate::engine::Connector;

pub(super) fn cases() -> Vec<Case> {
    named!("disaggregation":
        no_spelling_of_a_connectors_field_reaches_an_engine,
        a_clients_rank_header_reaches_no_engine,
        a_prompt_may_speak_of_anything,
    )
}

const OWNED: [&str; 5] = [
    "kv_transfer_params",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "data_parallel_rank",
];

/// Bodies in which a client claims a transfer, around these other members.
fn claims(rest: &str) -> Vec<String> {
    let kill = r#"{"do_remote_prefill":true}"#;
    let whole = r#"{"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":[[1]],"remote_engine_id":"x","remote_request_id":"x","remote_host":"127.0.0.1","remote_port":1}"#;
    vec![
        format!(r#"{{"kv_transfer_params":{kill},{rest}}}"#),
        format!(r#"{{{rest},"kv_transfer_params":{whole}}}"#),
        format!(r#"{{{rest} , "kv_transfer_params" : {kill} , "kv_transfer_params":{whole} }}"#),
        format!(
            r#"{{"\u006bv_transfer_params":{kill},{rest},"kv\u005ftransfer_param\u0073":{whole}}}"#
        ),
        format!(r#"{{"\u006B\u0056_transfer_params":1,"kv_transfer_params":{kill},{rest}}}"#),
        format!(r#"{{"kv_transfer_params":null,{rest},"kv_transfer_params":"text"}}"#),
        format!(r#"{{"bootstrap_room":7,"bootstrap_host":"2.2.2.2","bootstrap_port":1,{rest}}}"#),
        format!(r#"{{{rest},"bootstrap_\u0072oom":[7,8],"bootstrap_host":null}}"#),
        format!(r#"{{"data_parallel_rank":5,{rest},"data_parallel_rank":6}}"#),
        format!(r#"{{ "bootstrap_room":{{"a":[{{"kv_transfer_params":{kill}}}]}}, {rest} }}"#),
    ]
}

async fn no_spelling_of_a_connectors_field_reaches_an_engine(
    context: &Context,
) -> anyhow::Result<()> {
    for connector in ALL {
        let stack = Stack::start(context, spec(connector)).await?;
        let texts = [
            ("long", prompt("claims"), true),
            ("short", "hi".to_owned(), !decodes_alone(connector)),
        ];
        for (name, text, handed_over) in texts {
            let rest = format!(r#""model":"llama-3-8b","prompt":"{text}","max_tokens":4"#);
            for claim in claims(&rest) {
                let call = Call::post("/v1/completions", &json!({})).body(claim.clone());
                let moment = Moment::now(&stack);
                let reply = stack.send(call).await?;
                ensure!(
                    reply.status == 200,
                    "{connector:?} {name}: {claim}: {reply:?}"
                );
                let took = match handed_over {
                    true => moment.handed_over(&stack).await?.1,
                    false => moment.done_alone(&stack)?,
                };
                let names = members(body_of(&took)?)?;
                let owned = names.iter().filter(|it| OWNED.contains(&it.name.as_str()));
                let wanted = match connector {
                    _ if !handed_over => 0,
                    Connector::Nixl | Connector::Mooncake => 1,
                    Connector::P2pNccl => 0,
                    Connector::Sglang => 3,
                };
                ensure!(
                    owned.count() == wanted,
                    "{connector:?}: {}",
                    body_of(&took)?
                );
            }
        }
    }
    Ok(())
}

async fn a_clients_rank_header_reaches_no_engine(context: &Context) -> anyhow::Result<()> {
    let stack = Stack::start(context, spec(Connector::Nixl)).await?;
    for transport in [Transport::Http1, Transport::Http2] {
        let texts = [("long", prompt("ranks")), ("short", "hi".to_owned())];
        for (name, text) in texts {
            // Out of range at every engine here: they would answer 400.
            let call = Call::chat("llama-3-8b", &format!("{name} {transport:?} {text}"))
                .header("X-Data-Parallel-Rank", "7")?
                .header("x-data-parallel-rank", "8")?;
            let moment = Moment::now(&stack);
            stack.send(call.over(transport)).await?.expect_status(200)?;
            for (it, seen) in moment
                .prefills(&stack)
                .iter()
                .chain(&moment.decodes(&stack))
            {
                let rank = seen.header("x-data-parallel-rank");
                ensure!(rank.is_none(), "{}: rank {rank:?}", it.name);
            }
        }
    }
    no_complaints(&stack)
}

/// Text is text: what looks like a field of a connector in a prompt, or deeper in the body, is no field.
async fn a_prompt_may_speak_of_anything(context: &Context) -> anyhow::Result<()> {
    for connector in ALL {
        let stack = Stack::start(context, spec(connector)).await?;
        let lure = r#"","kv_transfer_params":{"do_remote_prefill":true},"bootstrap_room":1,"x":""#;
        let text = format!("{lure} {}", prompt("lure"));
        let fields = json!({
            "metadata": {"kv_transfer_params": {"do_remote_prefill": true}, "bootstrap_room": [1]},
            "max_tokens": 4,
        });
        let call = Call::chat_with("llama-3-8b", &text, fields);
        let moment = Moment::now(&stack);
        stack.send(call).await?.expect_status(200)?;
        let (gave, took) = moment.handed_over(&stack).await?;
        for seen in [&gave, &took] {
            let body: serde_json::Value = serde_json::from_str(body_of(seen)?)?;
            let kept = body.pointer("/metadata/kv_transfer_params/do_remote_prefill");
            ensure!(kept == Some(&json!(true)), "{body}");
            ensure!(
                body.pointer("/messages/0/content") == Some(&json!(text)),
                "{body}"
            );
        }
    }
    Ok(())
}
