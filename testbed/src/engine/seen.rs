//! The log of inference requests: what reached the engine, byte for byte where it matters.
//!
//! One idea: an entry is made when a request's body was read and completed in place while it is
//! answered; a [`Visit`] that is dropped before its end marks the entry as left. The log keeps the
//! newest entries up to its limit. Every operation is O(1) but the copy of the log.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use hyper::http::request::Parts;
use parking_lot::Mutex;

use super::kv::KvSeen;

/// One inference request as the engine saw it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Method.
    pub method: String,
    /// Path with its query.
    pub path: String,
    /// Whether it came over HTTP/2.
    pub http2: bool,
    /// Header names, in lower case, and raw values.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Length of the body.
    pub body_bytes: usize,
    /// XXH3 of the body, 64 bits, seed 0.
    pub body_xxh3: u64,
    /// The body itself, if the engine keeps bodies.
    pub body: Option<Bytes>,
    /// The model that the body names.
    pub model: Option<String>,
    /// The data-parallel rank that it was given to.
    pub rank: Option<usize>,
    /// Tokens of all its prompts.
    pub prompt_tokens: u32,
    /// Prompt tokens served from the prefix cache; `None` until the first token is out.
    pub cached_tokens: Option<u32>,
    /// Microseconds from the whole request to its first token, in real time; of streams only.
    pub first_token_us: Option<u64>,
    /// What it came to in terms of disaggregation.
    pub kv: KvSeen,
    /// Status of the answer; `None` when no answer was started.
    pub status: Option<u16>,
    /// The fault that was applied.
    pub fault: Option<&'static str>,
    /// Whether the connection or stream ended before the answer was complete.
    pub left: bool,
}

impl Seen {
    /// Raw value of the first header of this name (in lower case).
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_slice())
    }

    fn new(head: &Parts, body: &Bytes, keeps_body: bool) -> Self {
        Self {
            method: head.method.to_string(),
            path: head
                .uri
                .path_and_query()
                .map_or_else(String::new, ToString::to_string),
            http2: head.version == hyper::Version::HTTP_2,
            headers: head
                .headers
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
                .collect(),
            body_bytes: body.len(),
            body_xxh3: xxhash_rust::xxh3::xxh3_64(body),
            body: keeps_body.then(|| body.clone()),
            ..Self::default()
        }
    }
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct SeenLog {
    limit: usize,
    keeps_bodies: bool,
    entries: Mutex<Entries>,
    scrapes: Mutex<VecDeque<Instant>>,
}

#[derive(Debug, Default)]
struct Entries {
    /// Number of the first entry that is kept.
    first: u64,
    kept: VecDeque<Seen>,
}

impl SeenLog {
    /// An empty log that keeps up to `limit` entries, with their bodies or without.
    pub(super) fn new(limit: usize, keeps_bodies: bool) -> Arc<Self> {
        Arc::new(Self {
            limit,
            keeps_bodies,
            entries: Mutex::default(),
            scrapes: Mutex::default(),
        })
    }

    /// A copy of what is kept, oldest first.
    pub(super) fn entries(&self) -> Vec<Seen> {
        self.entries.lock().kept.iter().cloned().collect()
    }

    /// How many requests were seen in all.
    pub(super) fn count(&self) -> u64 {
        let entries = self.entries.lock();
        entries.first + entries.kept.len() as u64
    }

    /// Notes that the metrics page was asked for.
    pub(super) fn scraped(&self) {
        let mut scrapes = self.scrapes.lock();
        scrapes.push_back(Instant::now());
        let excess = scrapes.len().saturating_sub(self.limit);
        scrapes.drain(..excess);
    }

    /// When the metrics page was asked for; the newest up to the limit.
    pub(super) fn scrapes(&self) -> Vec<Instant> {
        self.scrapes.lock().iter().copied().collect()
    }

    /// Notes a request.
    pub(super) fn arrive(self: &Arc<Self>, head: &Parts, body: &Bytes) -> Visit {
        let seen = if self.limit == 0 {
            Seen::default()
        } else {
            Seen::new(head, body, self.keeps_bodies)
        };
        let mut entries = self.entries.lock();
        let number = entries.first + entries.kept.len() as u64;
        entries.kept.push_back(seen);
        while entries.kept.len() > self.limit {
            entries.kept.pop_front();
            entries.first += 1;
        }
        Visit {
            log: Arc::clone(self),
            number,
            arrived: Instant::now(),
            ended: false,
        }
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct Visit {
    log: Arc<SeenLog>,
    number: u64,
    arrived: Instant,
    ended: bool,
}

impl Visit {
    /// Microseconds since the body was read.
    pub(super) fn elapsed_us(&self) -> u64 {
        u64::try_from(self.arrived.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Adds to the entry, if it is still kept.
    pub(super) fn note(&self, change: impl FnOnce(&mut Seen)) {
        let mut entries = self.log.entries.lock();
        let Some(at) = self.number.checked_sub(entries.first) else {
            return;
        };
        if let Some(seen) = usize::try_from(at)
            .ok()
            .and_then(|at| entries.kept.get_mut(at))
        {
            change(seen);
        }
    }

    /// The answer is complete.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if !self.ended {
            self.note(|seen| seen.left = true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_the_newest_entries_and_notes_who_left() {
        let (head, ()) = hyper::Request::get("/x?y=1").body(()).unwrap().into_parts();
        let log = SeenLog::new(2, true);
        let arrive = |body: &'static str| log.arrive(&head, &Bytes::from_static(body.as_bytes()));
        let first = arrive("1");
        let mut second = arrive("22");
        let third = arrive("333");
        first.note(|seen| seen.status = Some(500));
        second.note(|seen| seen.status = Some(200));
        second.end();
        drop((first, second, third));
        let kept = log.entries();
        assert_eq!(log.count(), 3);
        assert_eq!(
            (kept[0].body_bytes, kept[0].status, kept[0].left),
            (2, Some(200), false)
        );
        assert_eq!(kept[0].body.as_deref(), Some(&b"22"[..]));
        assert_eq!(
            (kept[1].path.as_str(), kept[1].status, kept[1].left),
            ("/x?y=1", None, true)
        );
    }
}
