//! The example of `envoy/scale` as it is shipped, but for addresses: three of its Envoys over the real servers, with its
//! options of Webdis and its rules of Redis.

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::super::Case;
use super::super::client::{Call, Reply, Transport};
use super::super::harness::{Context, Stack, eventually};
use super::super::replica::Replica;
use super::super::spec::{PoolSpec, StackSpec};
use super::{learns, prompt, stored};
use crate::store::{Binaries, CLUSTER, Store};

/// All need rules of their own in Redis, or end something.
pub(super) fn breaking_cases(binaries: &Binaries) -> Vec<Case> {
    stored!(binaries, "shipped": three_envoys_of_the_example_share)
}

/// The pool of the example.
const POOL: &str = "engines";
/// New connections that must be served before every worker is believed to know the engines.
const CONNECTIONS: usize = 12;

fn spec(store: &Store) -> StackSpec {
    let fronts = store.addresses();
    let pools = vec![PoolSpec {
        name: POOL.to_owned(),
        engines: 3,
        new_with_models: None,
    }];
    let shipped = StackSpec {
        pools,
        ..StackSpec::shipped().with_file("scale/envoy.yaml")
    };
    shipped
        .engine(|config| config.models = vec!["llama-3-8b".to_owned()])
        .pool_option(POOL, "endpoints", json!("envoy"))
        .bootstrap(move |bootstrap| bootstrap.set_endpoints(CLUSTER, &fronts))
}

/// Waits until every worker of an Envoy has found the engines and what they serve.
async fn ready(send: impl AsyncFn(Call) -> anyhow::Result<Reply>) -> anyhow::Result<()> {
    eventually("the engines are found", async || {
        for _ in 0..CONNECTIONS {
            let call = prompt().over(Transport::Http1NewConnection);
            if !send(call).await?.is_decided() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await
}

async fn three_envoys_of_the_example_share(
    context: &Context,
    binaries: &Binaries,
) -> anyhow::Result<()> {
    let mut store = Store::start(binaries, 2).await?;
    store.guard().await?;
    ensure!(store.flush().await.is_err(), "Redis is not guarded");
    let stack = Stack::start(context, spec(&store)).await?;
    let second = Replica::beside(&stack).await?;
    let third = Replica::beside(&stack).await?;
    let first = async |call| stack.send(call).await;
    let second = async |call| second.send(call).await;
    let third = async |call| third.send(call).await;
    ready(first).await?;
    ready(second).await?;
    ready(third).await?;
    learns(first, second).await?;
    learns(second, third).await?;
    learns(third, first).await?;

    store.fronts.first_mut().context("no front")?.kill()?;
    learns(first, third).await?;
    learns(second, first).await
}
