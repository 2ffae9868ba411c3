//! A board: one figure per endpoint, summed over the columns of all living workers.
//!
//! Our own column is exact and local; it is written out after every change (a blind write, nobody
//! else writes it). The others' columns are read when a decision needs the sum, at most once per
//! [`READ_SPACING_US`] and peer, so reading costs a bounded share of a core however many workers
//! there are, and at everyday rates every decision sees every other.
//!
//! A column is written in two values, so that a change costs the same however many endpoints there
//! are: the *news* are the rows that changed since the *base* was written, at most [`MOST_NEWS`]; one
//! more, and the base is written anew. A smaller pool never has a base. What changed is known to
//! whoever derives something from the sums, too: [`Board::changed_since`].
//!
//! Layout of both ([`column`]): version byte, owner (u64), number of the base (u32, 0 = none), then
//! rows of an endpoint id (u16) and a [`Row::BYTES`]-long figure, little-endian. Idle endpoints are
//! left out of a base. A column whose owner is not the one in the roll, or of another version, is
//! empty to us. News that name another base than the one found are left for the next time.
//!
//! A change and its publication take O([`MOST_NEWS`]), and O(endpoints / [`MOST_NEWS`]) on average for
//! the base; a refresh O(rows that changed * peers).

mod changes;
mod column;

use changes::Changes;

use crate::hash::Table;
use crate::ids::EndpointId;
use crate::store::Store;
use crate::workers::Column;

/// One peer's column is read again after this many microseconds times the number of peers.
///
/// With 3 peers a sum is at most 0.75 ms old, with 63 at most 16 ms; reading takes 4,000 gets a
/// second at most, about half a percent of a core.
pub const READ_SPACING_US: u64 = 250;

/// Most rows of the news: about the root of the number of rows that a base may have.
pub const MOST_NEWS: usize = 32;

/// A figure that is summed over workers.
pub trait Row: Clone + Default + PartialEq {
    /// Length of the encoded figure.
    const BYTES: usize;
    /// Prefix of the keys.
    const KEY: &'static str;
    /// How often a peer's column is read, at most; times the number of peers.
    const READ_SPACING_US: u64 = READ_SPACING_US;
    /// Appends exactly [`Row::BYTES`] bytes.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads what `encode` wrote.
    fn decode(bytes: &[u8]) -> Option<Self>;
    /// Adds another worker's figure.
    fn merge(&mut self, other: &Self);
    /// Whether the figure may be left out of a column.
    fn is_idle(&self, now_us: u64) -> bool;
}

/// Figures of the endpoints of one router, indexed by their position in it.
#[derive(Debug)]
pub struct Board<R> {
    own: Vec<R>,
    total: Vec<R>,
    changes: Changes,
    peers: Vec<Peer<R>>,
    ids: Vec<Option<EndpointId>>,
    positions: Table<u16, usize>,
    /// Positions whose rows of our own differ from the base; at most [`MOST_NEWS`].
    news: Vec<usize>,
    is_news: Vec<bool>,
    /// Number of our base; 0 while there is none.
    base: u32,
    base_due: bool,
    buffer: Vec<u8>,
    /// Positions that a refresh found changed; empty but for its room.
    changed: Vec<usize>,
    /// Column that we write, with the keys of its news and its base.
    keys: Option<(Column, String, String)>,
}

#[derive(Debug)]
struct Peer<R> {
    column: Column,
    news_key: String,
    base_key: String,
    base: u32,
    read_us: Option<u64>,
    /// By position; empty until something is known.
    rows: Vec<R>,
}

impl<R: Row> Board<R> {
    /// A board for endpoints with these ids. An endpoint without id is counted locally only.
    pub fn new(ids: Vec<Option<EndpointId>>) -> Self {
        let positions = ids
            .iter()
            .enumerate()
            .filter_map(|(position, id)| id.map(|id| (id.0, position)))
            .collect();
        Board {
            own: vec![R::default(); ids.len()],
            total: vec![R::default(); ids.len()],
            changes: Changes::new(ids.len()),
            peers: Vec::new(),
            positions,
            news: Vec::with_capacity(MOST_NEWS),
            is_news: vec![false; ids.len()],
            base: 0,
            base_due: false,
            buffer: Vec::new(),
            changed: Vec::new(),
            keys: None,
            ids,
        }
    }

    /// Takes over the ids of the endpoints; what is known of those that stay is kept.
    pub fn set_ids(&mut self, ids: &[Option<EndpointId>]) {
        if self.ids == ids {
            return;
        }
        let before = std::mem::replace(&mut self.ids, ids.to_vec());
        self.own.resize(ids.len(), R::default());
        self.total.resize(ids.len(), R::default());
        for (position, row) in self.own.iter_mut().enumerate() {
            if before.get(position) != ids.get(position) {
                *row = R::default();
            }
        }
        let numbered = ids.iter().enumerate();
        self.positions = numbered
            .filter_map(|(position, id)| id.map(|id| (id.0, position)))
            .collect();
        self.changes = self.changes.resized(ids.len());
        // Written anew, as the others' columns are read anew.
        let idle = R::default();
        let busy = (0..self.own.len()).filter(|at| self.own.get(*at) != Some(&idle));
        self.news = busy.collect();
        self.base_due = self.base > 0 || self.news.len() > MOST_NEWS;
        self.news.truncate(MOST_NEWS);
        self.is_news = vec![false; ids.len()];
        for position in &self.news {
            if let Some(is_news) = self.is_news.get_mut(*position) {
                *is_news = true;
            }
        }
        for peer in &mut self.peers {
            *peer = Peer::new(peer.column);
        }
        for position in 0..self.own.len() {
            self.sum(position);
        }
    }

    /// The sum over all living workers, as of the last [`Board::refresh`].
    pub fn total(&self, position: usize) -> Option<&R> {
        self.total.get(position)
    }

    /// How many changes of sums there were, to name in [`Board::changed_since`] later.
    pub fn changes(&self) -> u64 {
        self.changes.count()
    }

    /// Positions whose sums changed since [`Board::changes`] was `seen`, some of them several times;
    /// `None` when that is so long ago that all may have.
    pub fn changed_since(&self, seen: u64) -> Option<impl Iterator<Item = usize>> {
        self.changes.since(seen)
    }

    /// What this worker has itself.
    pub fn own(&self, position: usize) -> Option<&R> {
        self.own.get(position)
    }

    /// Changes this worker's figure; [`Board::publish`] makes it known.
    pub fn change(&mut self, position: usize, mut change: impl FnMut(&mut R)) {
        if let Some(row) = self.own.get_mut(position) {
            change(row);
        }
        if let Some(row) = self.total.get_mut(position) {
            change(row);
        }
        self.changes.note(position);
        if let Some(known) = self.is_news.get_mut(position)
            && !*known
        {
            if self.news.len() < MOST_NEWS {
                *known = true;
                self.news.push(position);
            } else {
                self.base_due = true;
            }
        }
    }

    /// Whether no other worker is alive.
    pub fn is_alone(&self) -> bool {
        self.peers.is_empty()
    }

    /// The columns of the others that are alive.
    pub fn peers(&self) -> impl Iterator<Item = Column> {
        self.peers.iter().map(|peer| peer.column)
    }

    /// Takes over who is alive.
    pub fn set_peers(&mut self, columns: &[Column]) {
        let unchanged = self.peers.len() == columns.len()
            && self
                .peers
                .iter()
                .zip(columns)
                .all(|(peer, column)| peer.column == *column);
        if unchanged {
            return;
        }
        let mut before = std::mem::take(&mut self.peers);
        self.peers = columns
            .iter()
            .map(|column| {
                let known = before.iter().position(|peer| peer.column == *column);
                known.map_or_else(|| Peer::new(*column), |at| before.swap_remove(at))
            })
            .collect();
        for position in 0..self.own.len() {
            self.sum(position);
        }
        self.changes.note_all();
    }

    /// Notes that something which is added to an endpoint's sum elsewhere has changed.
    pub fn note(&mut self, position: usize) {
        self.changes.note(position);
    }

    /// Reads the columns of the others that are due.
    pub fn refresh<S: Store>(&mut self, store: &S, now_us: u64) {
        let spacing_us = R::READ_SPACING_US.saturating_mul(self.peers.len() as u64);
        let mut changed = std::mem::take(&mut self.changed);
        for peer in &mut self.peers {
            // A clock that was set back makes the read due, too.
            let fresh = |read_us: u64| {
                now_us
                    .checked_sub(read_us)
                    .is_some_and(|age| age < spacing_us)
            };
            if peer.read_us.is_some_and(fresh) {
                continue;
            }
            peer.read_us = Some(now_us);
            peer.read(store, self.own.len(), &self.positions, &mut changed);
        }
        for position in changed.drain(..) {
            self.sum(position);
            self.changes.note(position);
        }
        self.changed = changed;
    }

    /// Lets the next [`Board::refresh`] read all columns, due or not.
    pub fn make_due(&mut self) {
        for peer in &mut self.peers {
            peer.read_us = None;
        }
    }

    /// Writes our column.
    pub fn publish<S: Store>(&mut self, store: &S, column: Column, now_us: u64) {
        let known = self.keys.as_ref().is_some_and(|keys| keys.0 == column);
        if !known {
            let (news, base) = column::keys::<R>(column.slot);
            self.keys = Some((column, news, base));
            self.base_due |= self.base > 0;
        }
        let Some((_, news_key, base_key)) = &self.keys else {
            return;
        };
        let row = |position: usize| Some(((*self.ids.get(position)?)?, self.own.get(position)?));
        if std::mem::take(&mut self.base_due) {
            self.news.clear();
            self.is_news.fill(false);
            self.base = self.base.wrapping_add(1).max(1);
            let busy = (0..self.own.len())
                .filter_map(row)
                .filter(|(_, row)| !row.is_idle(now_us));
            column::encode(&mut self.buffer, column.owner, self.base, busy);
            store.set(base_key, &self.buffer);
        }
        let news = self.news.iter().copied().filter_map(row);
        column::encode(&mut self.buffer, column.owner, self.base, news);
        store.set(news_key, &self.buffer);
    }

    fn sum(&mut self, position: usize) {
        let (Some(own), Some(total)) = (self.own.get(position), self.total.get_mut(position))
        else {
            return;
        };
        total.clone_from(own);
        for row in self.peers.iter().filter_map(|peer| peer.rows.get(position)) {
            total.merge(row);
        }
    }
}

impl<R: Row> Peer<R> {
    fn new(column: Column) -> Self {
        let (news_key, base_key) = column::keys::<R>(column.slot);
        Peer {
            column,
            news_key,
            base_key,
            base: 0,
            read_us: None,
            rows: Vec::new(),
        }
    }

    /// Reads the column, and appends the positions of the rows that are others than before.
    fn read<S: Store>(
        &mut self,
        store: &S,
        endpoints: usize,
        positions: &Table<u16, usize>,
        changed: &mut Vec<usize>,
    ) {
        let owner = self.column.owner;
        let bytes = store.get(&self.news_key).bytes;
        let Some((base, news)) = column::decode::<R>(&bytes, owner, positions) else {
            self.base = 0;
            self.replace(Vec::new(), changed);
            return;
        };
        self.rows.resize(endpoints, R::default());
        if base == self.base {
            enter(&mut self.rows, news, |position| changed.push(position));
            return;
        }
        let mut rows = vec![R::default(); endpoints];
        if base > 0 {
            let bytes = store.get(&self.base_key).bytes;
            let found = column::decode::<R>(&bytes, owner, positions);
            // If it is not found, it was written anew since we read the news.
            let Some((_, old)) = found.filter(|(number, _)| *number == base) else {
                return;
            };
            enter(&mut rows, old, |_| ());
        }
        enter(&mut rows, news, |_| ());
        self.base = base;
        self.replace(rows, changed);
    }

    fn replace(&mut self, rows: Vec<R>, changed: &mut Vec<usize>) {
        let idle = R::default();
        let before = std::mem::replace(&mut self.rows, rows);
        let differs = |at: &usize| before.get(*at) != Some(self.rows.get(*at).unwrap_or(&idle));
        changed.extend((0..before.len()).filter(differs));
    }
}

/// Sets rows, and reports the positions of those that are others than before.
fn enter<R: Row>(
    rows: &mut [R],
    new: impl Iterator<Item = (usize, R)>,
    mut changed: impl FnMut(usize),
) {
    for (position, new) in new {
        if let Some(row) = rows.get_mut(position)
            && *row != new
        {
            *row = new;
            changed(position);
        }
    }
}
