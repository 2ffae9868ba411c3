//! Several Envoys, one view: what each learns of prompts, load and failing engines reaches the others
//! within an interval, through a store and never on a request's way.
//!
//! In each Envoy the holder of the [lease](crate::lease) makes two calls an interval, three at most; with one it sends a
//! [`Batch`]: what its workers logged since the last one ([`outbox`]), what they have in flight, and which
//! engines they leave out. It gets what the others sent ([`inbox`]) and passes it on to its own workers,
//! who take the peers for one more worker ([`relay`]). A new holder goes on where the last one was; a new
//! Envoy first reads the end of the stream back, so that it starts warm.
//!
//! Each part of this has a file: when to call (`schedule`), what is told (`telling`), what is made of an answer
//! (`hearing`) and what the workers get of it (`passing`).
//!
//! Nothing here can fail a request. While the store does not answer, the [`Outbox`] keeps the newest and
//! counts what it drops; and while peers that should be heard are not, the pools'
//! [home affinity](crate::policy::prefix) rises, by which Envoys agree without a word.
//!
//! No clock of another machine is trusted: peers count as heard when their batch arrives, and what it
//! says of times are ages. A call costs O(batches + engines).

pub mod batch;
mod directory;
mod hearing;
pub mod inbox;
mod listener;
pub mod outbox;
mod passing;
mod past;
pub mod relay;
mod schedule;
pub mod secret;
mod tally;
mod telling;
mod unseen;
pub mod webdis;

use crate::call::{HttpCall, Reply};
use crate::config::SyncOptions;
use crate::hash;
use crate::ids::EndpointId;
use crate::store::Store;
use batch::News;
use directory::Directory;
use inbox::Inbox;
use listener::Listener;
use outbox::Outbox;
use past::Past;
use relay::{Notice, Relay};
pub use schedule::{Due, tick_ms};
pub use tally::{Tally, View};
use unseen::Unseen;

/// A call of which nothing is heard for this many times its timeout is lost.
const LOST_AFTER: u64 = 3;

/// What the call under way is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    LookBack,
    Exchange,
}

/// One VM's part; idle unless it holds the lease.
#[derive(Debug)]
pub struct Sync {
    options: SyncOptions,
    scope: u64,
    sender: u64,
    number: u64,
    directory: Directory,
    listener: Listener,
    outbox: Outbox,
    inbox: Inbox,
    relay: Relay,
    unseen: Unseen,
    cursors: [String; 2],
    /// Before which entry to look back, while there is more.
    before: Option<String>,
    read_back: usize,
    past: Past,
    /// How many bytes to ask for: fewer after answers that did not come in time.
    read_bytes: u64,
    /// News that were read and are not passed on.
    fresh: Vec<News>,
    under_way: Option<Step>,
    /// By which the answer of the call under way is known.
    word: u64,
    /// News of the batch that is under way.
    unsettled: Vec<News>,
    next_ms: u64,
    /// Whether a request was sent to an engine since the others were told last, and when they were.
    placed: bool,
    told_ms: u64,
    /// When a batch was made last.
    spoken_ms: u64,
    failures: u32,
    answered_us: Option<u64>,
    /// The last batch that was sent, when, and how many were since one came back.
    sent: (u64, u64),
    echoes_missed: u32,
    tally: Tally,
}

impl Sync {
    /// The part of a VM that has just got the lease; `name` is random.
    pub fn new<S: Store>(options: &SyncOptions, store: &S, name: u64, now_us: u64) -> Self {
        let scope = hash::hash(options.cluster.as_bytes());
        let scope = hash::mix(scope, hash::hash(options.stream.as_bytes()));
        let scope = hash::mix(scope, options.secret.seed());
        let known = Notice::read(store).filter(|notice| notice.scope == scope);
        let known = known.unwrap_or_default();
        let is_warm = known.cursors.iter().all(|cursor| !cursor.is_empty());
        let goes_on = is_warm && known.column(now_us / 1000).is_some();
        // To the others it is who holds the lease; so what the last holder told is not a peer's, nor told twice.
        let is_known = known.sender != 0;
        Sync {
            scope,
            sender: if is_known { known.sender } else { name },
            number: known.number,
            directory: Directory::new(&[], &[]),
            listener: Listener::default(),
            outbox: Outbox::new(2 * options.batch_bytes),
            inbox: Inbox::default(),
            relay: Relay::new(name, tick_ms(options.interval_ms)),
            unseen: Unseen::default(),
            before: (!goes_on).then(|| "+".to_owned()),
            cursors: known.cursors,
            read_back: 0,
            past: Past::default(),
            read_bytes: webdis::READ_BYTES,
            fresh: Vec::new(),
            under_way: None,
            word: name,
            unsettled: Vec::new(),
            next_ms: 0,
            placed: false,
            told_ms: 0,
            spoken_ms: 0,
            failures: 0,
            answered_us: None,
            sent: (0, 0),
            echoes_missed: 0,
            tally: Tally::default(),
            options: options.clone(),
        }
    }

    /// Takes over which engines there are: identities and ids, by position.
    pub fn set_engines(&mut self, identities: &[u64], ids: &[Option<EndpointId>]) {
        if self.directory.is_of(identities, ids) {
            return;
        }
        self.directory = Directory::new(identities, ids);
        self.listener.set_ids(ids);
        self.relay.set_ids(ids);
        self.unseen = Unseen::new(identities.len());
        self.place_past();
    }

    /// What happened so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The call to make now, if any.
    pub fn call<S: Store>(&mut self, store: &S, expiry_ms: u64, now_us: u64) -> Option<HttpCall> {
        self.listen(store, expiry_ms, now_us);
        self.pass_on(store, now_us);
        let lost_ms = LOST_AFTER.saturating_mul(self.options.timeout_ms);
        if now_us / 1000 > self.next_ms.saturating_add(lost_ms) {
            self.ended(Reply::TimedOut, now_us);
        }
        let due = self.due(now_us).filter(|_| self.under_way.is_none())?;
        self.called(now_us);
        self.word = hash::mix(self.word, now_us);
        if let Some(before) = &self.before {
            self.under_way = Some(Step::LookBack);
            let room = self.options.warm_bytes.saturating_sub(self.read_back);
            let most_bytes = self.read_bytes.min(room as u64);
            let call = webdis::look_back(&self.options, self.word, before, most_bytes);
            return Some(call);
        }
        self.under_way = Some(Step::Exchange);
        let batch = (due == Due::Tell).then(|| self.batch(now_us));
        Some(webdis::exchange(
            &self.options,
            self.word,
            &self.cursors,
            self.read_bytes,
            batch,
        ))
    }
}
