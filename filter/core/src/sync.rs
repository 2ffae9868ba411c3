//! Several Envoys, one view: what each learns of prompts, load and failing engines reaches the others
//! within an interval, through a store and never on a request's way.
//!
//! In each Envoy the holder of the [lease](crate::lease) makes two calls an interval, three at most; with one it sends a
//! [`Batch`]: what its workers logged since the last one ([`outbox`]), what they have in flight, and which
//! engines they leave out. It gets what the others sent ([`inbox`]) and passes it on to its own workers,
//! who take the peers for one more worker ([`relay`]). A new holder goes on where the last one was; a new
//! Envoy first reads the end of the stream back, so that it starts warm.
//!
//! Nothing here can fail a request. While the store does not answer, the [`Outbox`] keeps the newest and
//! counts what it drops; and while peers that should be heard are not, the pools'
//! [home affinity](crate::policy::prefix) rises, by which Envoys agree without a word.
//!
//! No clock of another machine is trusted: peers count as heard when their batch arrives, and what it
//! says of times are ages. A call costs O(batches + engines).

pub mod batch;
mod directory;
pub mod inbox;
mod listener;
pub mod outbox;
pub mod relay;
pub mod secret;
mod unseen;
pub mod webdis;

use crate::call::{HttpCall, Reply};
use crate::config::SyncOptions;
use crate::hash;
use crate::ids::EndpointId;
use crate::prefix::Kind;
use crate::store::Store;
use batch::{Batch, MAX_ENGINES, News, Unreadable};
use directory::Directory;
use inbox::{Inbox, Taken};
use listener::Listener;
use outbox::Outbox;
use relay::{Notice, Relay};
use unseen::Unseen;
use webdis::Told;

/// Intervals of silence after which a peer counts as out of sight.
const SILENT_INTERVALS: u64 = 5;
/// What is new waits for a tick: a small part of an interval.
const TICKS_PER_INTERVAL: u64 = 4;
const SHORTEST_TICK_MS: u64 = 25;
const LONGEST_TICK_MS: u64 = 500;
/// Longest pause after calls that failed.
const MAX_PAUSE_MS: u64 = 1000;
/// Own batches that must be missing before the streams count as begun anew.
const MISSED_ECHOES: u32 = 20;

/// How often workers look whether there is something to tell or to read, in ms.
pub fn tick_ms(interval_ms: u64) -> u64 {
    (interval_ms / TICKS_PER_INTERVAL).clamp(SHORTEST_TICK_MS, LONGEST_TICK_MS)
}

/// How the Envoys see each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// This VM does not look.
    #[default]
    Idle,
    /// What was sent before this Envoy came is being read.
    Warming,
    /// Peers are heard, or there are none.
    Whole,
    /// Of the peers that were heard in the last minute none is heard.
    Unseen,
    /// The store does not answer, or answers what it should not.
    Blind,
}

impl View {
    /// The name in logs and docs.
    pub fn name(self) -> &'static str {
        match self {
            View::Idle => "idle",
            View::Warming => "warming",
            View::Whole => "whole",
            View::Unseen => "unseen",
            View::Blind => "blind",
        }
    }

    /// The number that stands for it in metrics.
    pub fn code(self) -> u64 {
        self as u64
    }
}

/// What happened so far, in this VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Calls that were answered as they should be.
    pub calls: u64,
    /// Those that were not.
    pub failed: u64,
    /// Batches sent.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Batches of others that were taken over.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Batches of another version.
    pub other_version: u64,
    /// Batches that were not written with our key, or were damaged.
    pub refused: u64,
    /// Batches that came twice or late, and those of more peers than there is room for.
    pub repeated: u64,
    /// News that found no room before they were sent.
    pub unsent: u64,
    /// News of engines that are not known here.
    pub unknown: u64,
    /// Time from a call to the one that brought its batch back, the last time.
    pub lag_us: u64,
    /// Peers that are heard.
    pub peers: usize,
    /// How the Envoys see each other.
    pub view: View,
    /// What the store said when it last refused a call.
    pub error: String,
}

/// What a call is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// To read what the others told.
    Read,
    /// And to tell them.
    Tell,
}

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
    old: Vec<News>,
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
        let goes_on = known
            .as_ref()
            .and_then(|it| it.column(now_us / 1000))
            .is_some();
        let warm = !goes_on && options.warm_bytes > 0;
        let cursors = known.filter(|_| goes_on).map(|notice| notice.cursors);
        Sync {
            scope,
            sender: name,
            number: 0,
            directory: Directory::new(&[], &[]),
            listener: Listener::default(),
            outbox: Outbox::new(2 * options.batch_bytes),
            inbox: Inbox::default(),
            relay: Relay::new(name, tick_ms(options.interval_ms)),
            unseen: Unseen::default(),
            before: (warm || !goes_on).then(|| "+".to_owned()),
            cursors: cursors.unwrap_or_default(),
            read_back: 0,
            old: Vec::new(),
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
    }

    /// What happened so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The call to make now, if any.
    pub fn call<S: Store>(&mut self, store: &S, expiry_ms: u64, now_us: u64) -> Option<HttpCall> {
        self.listen(store, expiry_ms, now_us);
        self.pass_on(store, now_us);
        let due = self.due(now_us).filter(|_| self.under_way.is_none())?;
        self.called(now_us);
        self.word = hash::mix(self.word, now_us);
        if let Some(before) = &self.before {
            self.under_way = Some(Step::LookBack);
            return Some(webdis::look_back(&self.options, self.word, before));
        }
        self.under_way = Some(Step::Exchange);
        let batch = (due == Due::Tell).then(|| self.batch(now_us));
        Some(webdis::exchange(
            &self.options,
            self.word,
            &self.cursors,
            batch,
        ))
    }

    /// A call is made.
    pub fn called(&mut self, now_us: u64) {
        let pause_ms = self.options.interval_ms / 2;
        self.next_ms = (now_us / 1000).saturating_add(pause_ms);
    }

    /// What to do now, if anything: to tell an interval after the last time; and to read half an interval after
    /// the last call. What is read late is decided on wrongly, and nothing is cheaper than to read.
    pub fn due(&self, now_us: u64) -> Option<Due> {
        let (now_ms, interval_ms) = (now_us / 1000, self.options.interval_ms);
        // A clock that was set back does not end the calls.
        let far_ms = now_ms.saturating_add(interval_ms.max(MAX_PAUSE_MS));
        let is_over = |end_ms: u64| now_ms >= end_ms || end_ms > far_ms;
        let is_past = |time_ms: u64| is_over(time_ms.saturating_add(interval_ms));
        let early = self.placed && self.failures == 0 && self.before.is_none();
        let early = early && is_past(self.told_ms);
        match is_over(self.next_ms) {
            true if early || is_past(self.spoken_ms) => Some(Due::Tell),
            true => Some(Due::Read),
            false => early.then_some(Due::Tell),
        }
    }

    /// The batch to send now, and whether it has news of prompts.
    pub fn batch(&mut self, now_us: u64) -> (Vec<u8>, bool) {
        self.spoken_ms = now_us / 1000;
        if std::mem::take(&mut self.placed) {
            self.told_ms = now_us / 1000;
        }
        // A name is used for one number once, also by a holder whose clock was set back.
        self.number = self.number.saturating_add(1).max(now_us / 1000);
        let named = |position| self.directory.identity(position);
        let all = 0..self.directory.len();
        let loads = all
            .clone()
            .filter_map(|at| Some((named(at)?, self.listener.load(at)?)));
        let left_out = all.filter_map(|at| Some((named(at)?, self.listener.left_out(at, now_us)?)));
        let batch = Batch {
            sender: self.sender,
            number: self.number,
            loads: loads.take(MAX_ENGINES / 2).collect(),
            left_out: left_out.take(MAX_ENGINES / 2).collect(),
            news: Vec::new(),
        };
        let news = self.outbox.take(self.options.batch_bytes);
        let has_news = !news.is_empty();
        let batch = Batch { news, ..batch };
        let bytes = batch.encode(&self.options.secret);
        self.unsettled = batch.news;
        self.sent = (self.number, now_us);
        self.echoes_missed = self.echoes_missed.saturating_add(1);
        self.tally.sent += 1;
        self.tally.sent_bytes += bytes.len() as u64;
        (bytes, has_news)
    }

    /// The call was answered, or failed.
    pub fn ended(&mut self, reply: Reply, now_us: u64) {
        let Some(step) = self.under_way.take() else {
            return;
        };
        let read = match reply {
            Reply::Answer { status: 200, body } => webdis::answer(body, self.word),
            Reply::Answer { status, .. } => Err(format!("status {status}")),
            Reply::TooLong => Err("too long an answer".to_owned()),
            Reply::TimedOut => Err("no answer in time".to_owned()),
            Reply::NoCluster => Err("Envoy has no such cluster".to_owned()),
            Reply::Failed | Reply::NoRoom => Err("no connection".to_owned()),
        };
        let failed = match read {
            Ok(told) => {
                self.answered_us = Some(now_us);
                match step {
                    Step::LookBack => self.looked_back(told),
                    Step::Exchange => self.exchanged(told, now_us),
                }
            }
            Err(error) => Some(error),
        };
        let Some(error) = failed else {
            self.failures = 0;
            self.unsettled.clear();
            self.tally.calls += 1;
            return;
        };
        // It may have arrived all the same: what comes twice changes nothing.
        self.outbox.put_back(std::mem::take(&mut self.unsettled));
        self.failures = self.failures.saturating_add(1);
        self.tally.failed += 1;
        self.tally.error = error;
        let pause_ms = self.options.interval_ms << self.failures.min(8);
        self.next_ms = (now_us / 1000).saturating_add(pause_ms.min(MAX_PAUSE_MS));
    }

    /// A batch that was read: whether it was one of another Envoy's, and new.
    pub fn take(&mut self, bytes: &[u8], now_us: u64) -> Vec<News> {
        let batch = match Batch::decode(bytes, &self.options.secret) {
            Ok(batch) => batch,
            Err(Unreadable::Version) => {
                self.tally.other_version += 1;
                return Vec::new();
            }
            Err(Unreadable::Checksum | Unreadable::Content) => {
                self.tally.refused += 1;
                return Vec::new();
            }
        };
        if batch.sender == self.sender {
            self.echoes_missed = 0;
            if batch.number == self.sent.0 {
                self.tally.lag_us = now_us.saturating_sub(self.sent.1);
            }
            return Vec::new();
        }
        let (unseen, directory) = (&mut self.unseen, &self.directory);
        let (taken, news) = self.inbox.take(batch, now_us, |engine, tokens| {
            if let Some(position) = directory.position(engine) {
                unseen.add(position, tokens);
            }
        });
        match taken {
            Taken::New => {
                self.tally.received += 1;
                self.tally.received_bytes += bytes.len() as u64;
            }
            Taken::Old | Taken::NoRoom => self.tally.repeated += 1,
        }
        news
    }

    /// Reads batches that came without a call: for simulation.
    pub fn deliver<Batch: AsRef<[u8]>>(&mut self, batches: &[Batch], now_us: u64) {
        self.before = None;
        self.answered_us = Some(now_us);
        for bytes in batches {
            let news = self.take(bytes.as_ref(), now_us);
            self.old.extend(news);
        }
    }

    fn pass<S: Store>(&mut self, store: &S, news: News, now_us: u64) {
        match self.directory.engine(news.engine) {
            Some(engine) => self.relay.pass(store, news, engine),
            None => self.inbox.put_aside(news, now_us),
        }
    }

    /// What the answers told, until there is a store at hand to pass it on through.
    fn exchanged(&mut self, told: Told, now_us: u64) -> Option<String> {
        self.cursors = told.cursors;
        for bytes in told.batches {
            let news = self.take(bytes, now_us);
            self.old.extend(news);
        }
        // Entries that come after ours are before us: the store was emptied, and its clock set back.
        if self.echoes_missed > MISSED_ECHOES {
            self.echoes_missed = 0;
            self.before = Some("+".to_owned());
            self.read_back = self.options.warm_bytes;
        }
        Some(told.rest).filter(|error| !error.is_empty())
    }

    /// Keeps what was read back, newest first, for later. Returns no error.
    fn looked_back(&mut self, told: Told) -> Option<String> {
        if self.before.as_deref() == Some("+") {
            self.cursors = told.cursors;
        }
        let room = self.options.warm_bytes.saturating_sub(self.read_back);
        let read: usize = told.batches.iter().map(|bytes| bytes.len()).sum();
        self.read_back = self.read_back.saturating_add(read);
        if room > 0 {
            for bytes in &told.batches {
                // Who sent it may be gone, and what it had in flight is over.
                if let Ok(batch) = Batch::decode(bytes, &self.options.secret) {
                    self.old.extend(batch.news.into_iter().rev());
                }
            }
        }
        let more = read > 0 && !told.rest.is_empty() && self.read_back < self.options.warm_bytes;
        self.before = Some(told.rest).filter(|_| more);
        if self.before.is_none() {
            // Oldest first, as it was.
            for news in self.old.drain(..).rev() {
                match self.directory.engine(news.engine) {
                    Some(engine) => self.relay.pass_later(news, engine),
                    None => self.tally.unknown += 1,
                }
            }
        }
        None
    }

    /// Learns what the workers of this Envoy did.
    pub fn listen<S: Store>(&mut self, store: &S, expiry_ms: u64, now_us: u64) {
        let (outbox, directory) = (&mut self.outbox, &self.directory);
        let placed = &mut self.placed;
        self.listener.listen(store, expiry_ms, now_us, |event| {
            *placed |= event.kind == Kind::Pin;
            if let Some(engine) = directory.named(event.engine) {
                outbox.note(event, engine, now_us);
            }
        });
        self.tally.unsent += self.outbox.take_dropped();
    }

    /// Tells the workers of this Envoy what the others told.
    pub fn pass_on<S: Store>(&mut self, store: &S, now_us: u64) {
        if self.before.is_none() {
            for news in std::mem::take(&mut self.old) {
                self.pass(store, news, now_us);
            }
        }
        self.inbox.expire(now_us);
        let directory = &self.directory;
        let known = self
            .inbox
            .take_known(|engine| directory.engine(engine).is_some());
        for news in known {
            self.pass(store, news, now_us);
        }
        self.tally.unknown += self.inbox.take_dropped();
        let within_us = SILENT_INTERVALS * 1000 * self.options.interval_ms;
        let (heard, all) = self.inbox.peers(within_us, now_us);
        let fresh = |at_us: u64| now_us.saturating_sub(at_us) <= within_us.max(2_000_000);
        let answered = self.answered_us.is_some_and(fresh);
        self.tally.peers = heard;
        self.tally.view = match () {
            () if self.answered_us.is_none() && self.failures == 0 => View::Warming,
            () if !answered => View::Blind,
            () if self.before.is_some() => View::Warming,
            () if heard == 0 && all > 0 => View::Unseen,
            () => View::Whole,
        };
        let at = |engine: u64| self.directory.position(engine);
        let loads = self.inbox.loads(within_us, now_us);
        let left_out = self.inbox.left_out(within_us, now_us);
        self.relay.tell(
            store,
            loads.filter_map(|(engine, load)| Some((at(engine)?, load))),
            left_out.filter_map(|(engine, it, heard_us)| Some((at(engine)?, it, heard_us))),
            self.directory.len(),
            now_us,
        );
        self.unseen.fade(now_us);
        let ids = self.directory.ids();
        // What is sent now is told an interval later, or when the store gets to it.
        let way_us = self
            .tally
            .lag_us
            .clamp(within_us / SILENT_INTERVALS, within_us);
        let unseen = self.unseen.within(way_us);
        let notice = Notice {
            unseen: unseen
                .filter_map(|(at, tokens)| Some((ids.get(at).copied()??, tokens)))
                .collect(),
            scope: self.scope,
            out_of_sight: self.tally.view != View::Whole,
            peers: u16::try_from(heard).unwrap_or(u16::MAX),
            cursors: self.cursors.clone(),
            ..Notice::default()
        };
        self.relay.publish(store, notice, now_us);
    }
}
