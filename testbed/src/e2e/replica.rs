//! Several Envoys in front of the same engines: the one of a stack, and replicas beside it, each with the
//! same configuration on ports of its own. Whatever they know of each other they have by the filter.

use anyhow::Context as _;

use super::client::{Call, Client, Reply};
use super::harness::{Context, Stack};
use crate::envoy::bootstrap::{Addresses, Bootstrap};
use crate::envoy::{Envoy, Launch};

/// Another Envoy beside the one of a stack. It stops when it is dropped.
pub struct Replica<'a> {
    context: &'a Context,
    launch: Launch,
    /// `None` while it is dead.
    envoy: Option<Envoy>,
    client: Client,
}

impl<'a> Replica<'a> {
    /// Starts an Envoy with a stack's configuration; returns once it serves.
    ///
    /// # Errors
    /// It does not serve.
    pub async fn beside(stack: &Stack<'a>) -> anyhow::Result<Self> {
        Self::other(stack, |_| Ok(())).await
    }

    /// The same with another configuration.
    ///
    /// # Errors
    /// It does not serve.
    pub async fn other(
        stack: &Stack<'a>,
        edit: impl FnOnce(&mut Bootstrap) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let mut launch = stack.launch();
        edit(&mut launch.bootstrap)?;
        let mut replica = Self {
            context: stack.context(),
            client: Client::new(launch.bootstrap.addresses()?.listener)?,
            launch,
            envoy: None,
        };
        replica.start().await?;
        Ok(replica)
    }

    /// Starts it anew, with nothing that it knew, if it is dead.
    ///
    /// # Errors
    /// It does not serve.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        if self.envoy.is_none() {
            // On other ports: what was connected to the old ones may hold them for a while.
            self.launch
                .bootstrap
                .set_addresses(Addresses::free_with_status()?)?;
            self.client = Client::new(self.launch.bootstrap.addresses()?.listener)?;
            self.envoy = Some(Envoy::start(self.launch.clone()).await?);
        }
        Ok(())
    }

    /// Kills it, as a lost machine would be gone.
    ///
    /// # Errors
    /// It is dead.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.note_log();
        let mut envoy = self.envoy.take().context("this replica is dead")?;
        Ok(envoy.kill()?)
    }

    /// Its Envoy.
    ///
    /// # Errors
    /// It is dead.
    pub fn envoy(&self) -> anyhow::Result<&Envoy> {
        self.envoy.as_ref().context("this replica is dead")
    }

    /// A client of it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Sends a call through it and waits for its whole answer, whatever its status.
    ///
    /// # Errors
    /// There is no whole answer.
    pub async fn send(&self, call: Call) -> anyhow::Result<Reply> {
        self.client.send(call).await
    }

    fn note_log(&self) {
        if let Some(envoy) = &self.envoy {
            let log = envoy.log_tail();
            self.context.note(&format!("-- a replica's log\n{log}"));
        }
    }
}

impl Drop for Replica<'_> {
    fn drop(&mut self) {
        self.note_log();
    }
}
