//! Prefill/decode disaggregation, seen from an engine: which part of a request it does, and where the
//! KV of a prompt goes to or comes from.
//!
//! One idea: in place of tensors a [`Parcel`] travels, the fingerprint of a prompt's KV, between the
//! engines and over a socket of its own ([`side`]), as each connector moves the real thing. So an
//! engine that skips a prefill has really been to the engine that was named to it, and whoever names a
//! wrong one is found out. Each connector has a file; what they share is the [`shelf`].
//!
//! A request is read ([`Kv::part`]), then [`Kv::before`] runs ahead of the model and [`Kv::after`]
//! behind it. Cost: O(prompts) and a round trip for each.

mod mooncake;
mod nixl;
mod p2p_nccl;
mod setup;
mod sglang;
mod shelf;
mod side;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::clock::{Clock, Job};
use super::error::ApiError;
use super::listen::Port;
use super::prompt::{Api, Ask};
pub use setup::{Connector, Disaggregation, KvSeen, Role};
pub(super) use shelf::Parcel;
use shelf::{Ready, Shelf, Want};

/// Protocol errors that are kept.
const MAX_ERRORS: usize = 1000;

/// Why a request is not served.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It is answered with an error.
    Refused(ApiError),
    /// It takes the engine down with it.
    Fatal(String),
}

impl From<ApiError> for Trouble {
    fn from(error: ApiError) -> Self {
        Self::Refused(error)
    }
}

/// What a connector looks at.
pub(super) struct Sight<'a> {
    /// The path.
    pub(super) api: Api,
    /// The engine's own id of the request: the prefix of its path and the client's id.
    pub(super) own_id: String,
    /// The body.
    pub(super) json: &'a Value,
    /// The body's bytes.
    pub(super) body: &'a [u8],
    /// What the request asks for.
    pub(super) ask: &'a Ask,
}

/// What an engine does of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// All.
    Alone,
    /// The prompts; each is put on the shelf, or sent, under its key.
    Give {
        keys: Vec<String>,
        /// Where it is sent to.
        to: Option<String>,
    },
    /// The rest. Where each prompt lies: an address, and what is asked for there.
    Take(Vec<(String, Want)>),
}

/// Prompts that were computed for another engine.
pub(super) struct Given<'a> {
    /// What the request asked for.
    pub(super) part: &'a Part,
    /// The rank that computed them.
    pub(super) rank: usize,
    /// Its model.
    pub(super) clock: &'a Arc<Clock>,
    /// One for each prompt.
    pub(super) jobs: &'a [Job],
    /// Their ids in the model, which keeps their blocks.
    pub(super) ids: &'a [u64],
}

impl Given<'_> {
    fn kept(&self) -> Vec<Kept> {
        let kept = |&id: &u64| {
            let clock = Arc::clone(self.clock);
            Kept { clock, id }
        };
        self.ids.iter().map(kept).collect()
    }
}

/// The blocks of a prompt, until it is dropped.
struct Kept {
    clock: Arc<Clock>,
    id: u64,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.clock.let_go(&[self.id]);
    }
}

/// An engine's connector.
#[derive(Debug)]
pub(super) struct Kv {
    setup: Disaggregation,
    /// Name of the engine.
    name: String,
    /// What the ids of its ranks begin with.
    engine_id: String,
    /// Data-parallel ranks.
    ranks: usize,
    /// Held so that nobody else gets it while the engine is down.
    port: Port,
    shelf: Arc<Shelf>,
    http: reqwest::Client,
    errors: Mutex<Vec<String>>,
}

impl Kv {
    /// Starts listening for other engines, until `kill` is cancelled. All ranks share the socket.
    ///
    /// # Errors
    /// The address is not free.
    pub(super) fn start(
        setup: Disaggregation,
        name: &str,
        ranks: usize,
        tasks: &TaskTracker,
        kill: &CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        let port = Port::reserve(setup.listen).context("the side channel")?;
        let listener = port.listen()?;
        let id = chance();
        let kv = Arc::new(Self {
            setup,
            name: name.to_owned(),
            engine_id: format!("{id:016x}-{name}"),
            ranks,
            port,
            shelf: Arc::default(),
            http: reqwest::Client::builder().no_proxy().build()?,
            errors: Mutex::default(),
        });
        side::serve(&kv, listener, tasks, kill);
        Ok(kv)
    }

    /// Where other engines fetch from or push to.
    pub(super) fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// What went against the protocol, oldest first.
    pub(super) fn errors(&self) -> Vec<String> {
        self.errors.lock().clone()
    }

    /// Notes an error of protocol, and says it again.
    fn complain(&self, error: impl Into<String>) -> String {
        let error = error.into();
        let mut errors = self.errors.lock();
        if errors.len() < MAX_ERRORS {
            errors.push(error.clone());
        }
        error
    }

    /// What this engine does of a request; adds to `seen` what is wrong with it.
    ///
    /// # Errors
    /// The real engine would refuse it, or fall over it.
    pub(super) fn part(
        &self,
        sight: &Sight<'_>,
        jobs: &[Job],
        seen: &mut KvSeen,
    ) -> Result<Part, Trouble> {
        if sight.api.is_pooling() {
            return Ok(Part::Alone);
        }
        let read = match self.setup.connector {
            Connector::Nixl => nixl::part(self, sight, jobs, seen),
            Connector::P2pNccl => p2p_nccl::part(self, sight, jobs),
            Connector::Mooncake => mooncake::part(self, sight, jobs, seen),
            Connector::Sglang => sglang::part(self, sight, jobs),
        };
        match &read {
            Ok(Part::Alone) => {}
            Ok(Part::Give { .. }) => seen.part = Some(Role::Prefill),
            Ok(Part::Take(_)) => seen.part = Some(Role::Decode),
            Err(Trouble::Refused(error)) => seen.errors.push(self.complain(error.message())),
            Err(Trouble::Fatal(error)) => seen.errors.push(self.complain(error)),
        }
        if let Ok(Part::Give { .. }) = &read {
            self.check_prefill(sight, seen);
        }
        read
    }

    /// What a router must ask of the prefill side.
    fn check_prefill(&self, sight: &Sight<'_>, seen: &mut KvSeen) {
        // In SGLang both sides get the same body, and the engine knows what to leave out.
        if self.setup.connector == Connector::Sglang {
            return;
        }
        if sight.ask.stream {
            seen.errors.push(self.complain("a prefill that streams"));
        }
        if sight.ask.max_tokens != Some(1) {
            let limit = sight.ask.max_tokens;
            seen.errors
                .push(self.complain(format!("a prefill with max_tokens {limit:?}")));
        }
    }

    /// What comes ahead of the model: fetches what others computed into `jobs`, or waits for who will
    /// fetch.
    ///
    /// # Errors
    /// The other side is not there, or has something else.
    pub(super) async fn before(
        &self,
        part: &Part,
        jobs: &mut [Job],
        seen: &mut KvSeen,
    ) -> Result<(), Trouble> {
        match part {
            Part::Alone => {}
            Part::Give { keys, .. } => {
                for job in &mut *jobs {
                    job.keep = true;
                    job.output_tokens = 1;
                }
                if self.setup.connector == Connector::Sglang {
                    for key in keys {
                        let asked = self.shelf.asked(key, self.setup.patience).await;
                        asked.map_err(|error| self.failed(error, seen))?;
                    }
                }
            }
            Part::Take(orders) => {
                let fetched = try_join_all(orders.iter().map(|order| self.fetch(order))).await;
                let parcels = fetched.map_err(|error| self.failed(error, seen))?;
                for (job, parcel) in jobs.iter_mut().zip(parcels) {
                    job.external_tokens = parcel.tokens;
                    seen.tokens = seen.tokens.saturating_add(parcel.tokens);
                    seen.source = Some(parcel.engine);
                }
            }
        }
        Ok(())
    }

    async fn fetch(&self, (from, want): &(String, Want)) -> Result<Parcel, String> {
        let taken = match self.setup.connector {
            Connector::P2pNccl => self.shelf.take(want, self.setup.patience).await,
            Connector::Mooncake => {
                let worker = mooncake::worker(&self.http, from, want).await?;
                side::take(&self.http, &worker, want, self.setup.patience).await
            }
            _ => side::take(&self.http, from, want, self.setup.patience).await,
        };
        Ok(taken?.parcel)
    }

    /// What comes behind the model: hands the prompts over. Gives what goes into the answer as
    /// `kv_transfer_params`.
    ///
    /// # Errors
    /// Nobody takes them.
    pub(super) async fn after(
        self: &Arc<Self>,
        given: Given<'_>,
        seen: &mut KvSeen,
    ) -> Result<Option<String>, Trouble> {
        let Part::Give { keys, to } = given.part else {
            return Ok(None);
        };
        let mut answer = None;
        for ((key, job), kept) in keys.iter().zip(given.jobs).zip(given.kept()) {
            let parcel = Parcel {
                engine: self.name.clone(),
                engine_id: self.engine_id(given.rank),
                hash: fingerprint(job),
                tokens: job.prompt_tokens,
            };
            seen.tokens = seen.tokens.saturating_add(parcel.tokens);
            if let Some(to) = to {
                if let Err(error) = side::put(&self.http, to, key, &parcel).await {
                    // The real engine sends in the background: its own answer is none the worse.
                    seen.errors.push(self.complain(error));
                }
                continue;
            }
            let block_ids = self.shelf.block_ids(job.blocks.len());
            if self.setup.connector == Connector::Nixl && answer.is_none() {
                answer = Some(nixl::params(self, key, &parcel, &block_ids));
            }
            self.shelf.put(key, Ready { parcel, block_ids });
            self.end_in_time(key, kept);
        }
        if self.setup.connector == Connector::Sglang {
            for key in keys {
                if !self.shelf.gone(key, self.setup.patience).await {
                    keys.iter().for_each(|key| self.shelf.drop_slot(key));
                    return Err(self.failed(format!("nobody took {key}"), seen));
                }
            }
        }
        Ok(answer)
    }

    /// Gives the blocks back when what lies under the key is taken, or when the lease is over.
    fn end_in_time(self: &Arc<Self>, key: &str, kept: Kept) {
        let (kv, key) = (Arc::clone(self), key.to_owned());
        tokio::spawn(async move {
            if !kv.shelf.gone(&key, kv.setup.lease).await {
                kv.shelf.drop_slot(&key);
            }
            drop(kept);
        });
    }

    /// The id by which connectors know a rank; a new one with every start.
    fn engine_id(&self, rank: usize) -> String {
        format!("{}_dp{rank}", self.engine_id)
    }

    /// The answer to a request whose KV did not come or go.
    fn failed(&self, error: String, seen: &mut KvSeen) -> Trouble {
        seen.errors.push(self.complain(error));
        ApiError::broken(hyper::StatusCode::INTERNAL_SERVER_ERROR).into()
    }
}

/// A number that nobody can foretell.
fn chance() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// What stands for the KV of a job's prompt.
fn fingerprint(job: &Job) -> u64 {
    job.blocks.last().copied().unwrap_or_default()
}

/// A string field of an object.
fn text<'a>(params: &'a Value, field: &str) -> Option<&'a str> {
    params.get(field).and_then(Value::as_str)
}

/// A field that is true.
fn is_set(params: &Value, field: &str) -> bool {
    params.get(field).and_then(Value::as_bool).unwrap_or(false)
}

/// `kv_transfer_params` of a body, if it has any.
///
/// # Errors
/// It is no object.
fn transfer_params(json: &Value) -> Result<Option<&Value>, Trouble> {
    match json.get("kv_transfer_params") {
        None | Some(Value::Null) => Ok(None),
        Some(params @ Value::Object(_)) => Ok(Some(params)),
        Some(_) => Err(ApiError::wrong_type("kv_transfer_params", "dictionary").into()),
    }
}
