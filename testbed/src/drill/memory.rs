//! Whether the filter still knows who holds what: conversations that begin before a fault and go on
//! after it.
//!
//! All of them meet one worker: what it decided itself it must know, whatever happened. What workers tell
//! each other may be lost where one is not run for seconds, and this machine may be a busy one.

use anyhow::ensure;

use super::stage::Stage;
use crate::e2e::client::{Client, Reply, Transport};
use crate::e2e::conversation::{Conversation, text};
use crate::e2e::workers::seed;

/// Bytes that a conversation begins with.
const BYTES: usize = 8000;
/// Conversations that must be at engines that are not struck.
const WANTED: usize = 6;
const MOST: usize = 60;

/// Conversations, each with the engine that answered last.
pub(super) struct Memory {
    /// Its one connection stays with one worker.
    client: Client,
    begun: Vec<(Conversation, String)>,
}

impl Memory {
    /// Begins conversations, some of them at engines other than `struck`.
    pub(super) async fn begin(stage: &Stage<'_>, struck: &[String]) -> anyhow::Result<Self> {
        let client = Client::new(stage.stack.client().target())?;
        let mut begun = Vec::new();
        let mut elsewhere = 0;
        while elsewhere < WANTED && begun.len() < MOST {
            let mut conversation = Conversation::new(&text(seed(), BYTES));
            let reply = ask(&client, &mut conversation).await?;
            let engine = stage.stack.answered_by(&reply)?.name.clone();
            elsewhere += usize::from(!struck.contains(&engine));
            begun.push((conversation, engine));
        }
        ensure!(
            elsewhere == WANTED || struck.len() > 1,
            "only {elsewhere} conversations outside {struck:?}"
        );
        Ok(Self { client, begun })
    }

    /// Goes on with those that are not at the `struck` engines: how many there are, and what is known
    /// of those that were not sent to their engine or did not find their cache there.
    pub(super) async fn go_on(
        self,
        stage: &Stage<'_>,
        struck: &[String],
    ) -> anyhow::Result<(usize, Vec<String>)> {
        let (mut all, mut gone) = (0, Vec::new());
        for (mut conversation, engine) in self.begun {
            if struck.contains(&engine) {
                continue;
            }
            all += 1;
            // Whoever is put aside is not asked, whatever it holds.
            stage.all_usable().await?;
            let reply = ask(&self.client, &mut conversation).await?;
            let (_, cached) = reply.prompt_tokens()?;
            let now = &stage.stack.answered_by(&reply)?.name;
            let reason = reply.decision()?.reason;
            if *now != engine || reason != "longest_prefix" || cached == 0 {
                let states = stage.states().await?;
                gone.push(format!(
                    "from {engine} to {now}, {reason}, {cached} tokens cached, states {states:?}"
                ));
            }
        }
        Ok((all, gone))
    }
}

async fn ask(client: &Client, conversation: &mut Conversation) -> anyhow::Result<Reply> {
    let call = conversation.ask("and then?").over(Transport::Http2);
    let reply = client.send(call).await?.expect_status(200)?;
    conversation.heard(&reply)?;
    Ok(reply)
}
