//! What one Envoy tells the others at a time.
//!
//! A batch stands for itself: it names engines by their identity, times by their age, and its sender by a
//! random number that is new with each start. So it may be lost, doubled, or read much later. Layout,
//! little-endian, `v` for a number of 7 bits a byte, lowest first:
//!
//! version (u8), sender (u64), number (u64), engines (v) and for each its identity (u64); loads (v) and
//! for each engine (v), in flight (v), waiting (v), prefill tokens (v), context tokens (v), kept tokens (v);
//! engines left out (v) and for each engine (v), cause (u8), rest in ms (v), age in ms (v); events up to the checksum:
//! kind (u8), engine (v), extra chunks (v), marks (v) and for each its link as
//! [hidden](super::secret::Secret::hide) (u64) and chunks (v); checksum (u64).

use super::secret::Secret;
use crate::codec::Bytes;
use crate::fitness::Cause;
use crate::prefix::{Kind, MAX_MARKS, Mark};

/// The version that is written; no other is read.
pub const VERSION: u8 = 1;
/// Most engines that a batch names.
pub const MAX_ENGINES: usize = 2048;

/// What requests of one Envoy take of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineLoad {
    /// Requests in flight.
    pub in_flight: u32,
    /// Those of them that wait for a first token.
    pub waiting: u32,
    /// Tokens to prefill of these.
    pub prefill_tokens: u64,
    /// Context tokens of all in flight.
    pub context_tokens: u64,
    /// Tokens of the engine's cache that they keep.
    pub kept_tokens: u64,
}

/// An engine that one Envoy leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Why.
    pub cause: Cause,
    /// For how much longer.
    pub rest_ms: u64,
    /// Since when.
    pub age_ms: u64,
}

/// What became of a prompt at an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// What happened.
    pub kind: Kind,
    /// The engine's identity.
    pub engine: u64,
    /// What it holds beyond the marks.
    pub extra_chunks: u32,
    /// The stored links.
    pub marks: Vec<Mark>,
}

impl News {
    /// About what it takes of a batch, in bytes.
    pub fn size(&self) -> usize {
        6 + 9 * self.marks.len()
    }

    /// As it may be told late, when newer news may have come before: a request counts as complete, or its
    /// end would come before its beginning.
    pub fn late(mut self) -> Self {
        if self.kind == Kind::Pin {
            self.kind = Kind::Hold;
        }
        self
    }
}

/// A batch. Engines are named by their identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The sender's name.
    pub sender: u64,
    /// Its number, one more with each batch of the sender.
    pub number: u64,
    /// Engines that have something in flight.
    pub loads: Vec<(u64, EngineLoad)>,
    /// Engines that are left out.
    pub left_out: Vec<(u64, LeftOut)>,
    /// Prompts, oldest first.
    pub news: Vec<News>,
}

/// Why some bytes are no batch to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Of another version.
    Version,
    /// Not written with our key, or damaged.
    Checksum,
    /// Written with our key, and yet not what a batch is.
    Content,
}

impl Batch {
    /// The bytes of the batch.
    pub fn encode(&self, secret: &Secret) -> Vec<u8> {
        let mut engines = Engines::default();
        let mut body = Vec::new();
        put(&mut body, self.loads.len() as u64);
        for (engine, load) in &self.loads {
            put(&mut body, engines.number(*engine));
            put(&mut body, load.in_flight.into());
            put(&mut body, load.waiting.into());
            put(&mut body, load.prefill_tokens);
            put(&mut body, load.context_tokens);
            put(&mut body, load.kept_tokens);
        }
        put(&mut body, self.left_out.len() as u64);
        for (engine, left_out) in &self.left_out {
            put(&mut body, engines.number(*engine));
            body.push(left_out.cause as u8);
            put(&mut body, left_out.rest_ms);
            put(&mut body, left_out.age_ms);
        }
        for news in &self.news {
            body.push(news.kind.to_byte());
            put(&mut body, engines.number(news.engine));
            put(&mut body, news.extra_chunks.into());
            put(&mut body, news.marks.len() as u64);
            for mark in &news.marks {
                body.extend_from_slice(&secret.hide(mark.link).to_le_bytes());
                put(&mut body, mark.chunks.into());
            }
        }
        let mut bytes = Vec::with_capacity(body.len() + 8 * engines.0.len() + 32);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.sender.to_le_bytes());
        bytes.extend_from_slice(&self.number.to_le_bytes());
        put(&mut bytes, engines.0.len() as u64);
        for engine in &engines.0 {
            bytes.extend_from_slice(&engine.to_le_bytes());
        }
        bytes.extend_from_slice(&body);
        let tag = secret.tag(&bytes);
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes
    }

    /// Reads what [`Batch::encode`] wrote.
    ///
    /// # Errors
    /// Why the bytes are not believed, or not understood.
    pub fn decode(bytes: &[u8], secret: &Secret) -> Result<Batch, Unreadable> {
        if bytes.first() != Some(&VERSION) {
            return Err(Unreadable::Version);
        }
        let (signed, tag) = bytes.split_last_chunk().ok_or(Unreadable::Checksum)?;
        if secret.tag(signed) != u64::from_le_bytes(*tag) {
            return Err(Unreadable::Checksum);
        }
        let content = signed.get(1..).and_then(|rest| read(Bytes(rest), secret));
        content.ok_or(Unreadable::Content)
    }
}

fn read(mut bytes: Bytes, secret: &Secret) -> Option<Batch> {
    let mut batch = Batch {
        sender: bytes.u64()?,
        number: bytes.u64()?,
        ..Batch::default()
    };
    let mut engines = Vec::new();
    for _ in 0..count(&mut bytes, MAX_ENGINES)? {
        engines.push(bytes.u64()?);
    }
    let engine = |bytes: &mut Bytes| engines.get(usize::try_from(take(bytes)?).ok()?).copied();
    for _ in 0..count(&mut bytes, MAX_ENGINES)? {
        let engine = engine(&mut bytes)?;
        let load = EngineLoad {
            in_flight: u32::try_from(take(&mut bytes)?).ok()?,
            waiting: u32::try_from(take(&mut bytes)?).ok()?,
            prefill_tokens: take(&mut bytes)?,
            context_tokens: take(&mut bytes)?,
            kept_tokens: take(&mut bytes)?,
        };
        batch.loads.push((engine, load));
    }
    for _ in 0..count(&mut bytes, MAX_ENGINES)? {
        let engine = engine(&mut bytes)?;
        let left_out = LeftOut {
            cause: Cause::from_byte(bytes.u8()?),
            rest_ms: take(&mut bytes)?,
            age_ms: take(&mut bytes)?,
        };
        batch.left_out.push((engine, left_out));
    }
    while let Some(kind) = bytes.u8() {
        let kind = Kind::from_byte(kind)?;
        let engine = engine(&mut bytes)?;
        let extra_chunks = u32::try_from(take(&mut bytes)?).ok()?;
        let mut marks = Vec::new();
        for _ in 0..count(&mut bytes, MAX_MARKS)? {
            let link = secret.reveal(bytes.u64()?);
            let chunks = u16::try_from(take(&mut bytes)?).ok()?;
            marks.push(Mark { link, chunks });
        }
        batch.news.push(News {
            kind,
            engine,
            extra_chunks,
            marks,
        });
    }
    Some(batch)
}

/// The engines that a batch names, each by its place.
#[derive(Default)]
struct Engines(Vec<u64>);

impl Engines {
    fn number(&mut self, engine: u64) -> u64 {
        let known = self.0.iter().position(|it| *it == engine);
        known.unwrap_or_else(|| {
            self.0.push(engine);
            self.0.len() - 1
        }) as u64
    }
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take(bytes: &mut Bytes) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes.u8()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn count(bytes: &mut Bytes, most: usize) -> Option<usize> {
    let count = usize::try_from(take(bytes)?).ok()?;
    (count <= most).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secret() -> Secret {
        Secret::new(b"a key for the tests")
    }

    fn news() -> impl Strategy<Value = News> {
        let mark = (any::<u64>(), any::<u16>()).prop_map(|(link, chunks)| Mark { link, chunks });
        let marks = proptest::collection::vec(mark, 0..40);
        (0..3_u8, 0..20_u64, any::<u32>(), marks).prop_map(|(kind, engine, extra_chunks, marks)| {
            News {
                kind: Kind::from_byte(kind).expect("a kind"),
                engine,
                extra_chunks,
                marks,
            }
        })
    }

    fn load() -> impl Strategy<Value = (u64, EngineLoad)> {
        (any::<u64>(), any::<[u32; 2]>(), any::<[u64; 3]>()).prop_map(
            |(engine, requests, tokens)| {
                let [in_flight, waiting] = requests;
                let [prefill_tokens, context_tokens, kept_tokens] = tokens;
                let load = EngineLoad {
                    in_flight,
                    waiting,
                    prefill_tokens,
                    context_tokens,
                    kept_tokens,
                };
                (engine, load)
            },
        )
    }

    fn left_out() -> impl Strategy<Value = (u64, LeftOut)> {
        (any::<u64>(), 0..4_u8, any::<[u64; 2]>()).prop_map(|(engine, cause, [rest_ms, age_ms])| {
            let cause = Cause::from_byte(cause);
            let left_out = LeftOut {
                cause,
                rest_ms,
                age_ms,
            };
            (engine, left_out)
        })
    }

    fn batch() -> impl Strategy<Value = Batch> {
        let loads = proptest::collection::vec(load(), 0..20);
        let left = proptest::collection::vec(left_out(), 0..5);
        let news = proptest::collection::vec(news(), 0..20);
        (any::<u64>(), any::<u64>(), loads, left, news).prop_map(
            |(sender, number, loads, left_out, news)| Batch {
                sender,
                number,
                loads,
                left_out,
                news,
            },
        )
    }

    #[test]
    fn of_late_news_no_request_is_in_flight() {
        let news = |kind| News {
            kind,
            engine: 1,
            extra_chunks: 2,
            marks: Vec::new(),
        };
        for (kind, late) in [
            (Kind::Pin, Kind::Hold),
            (Kind::Hold, Kind::Hold),
            (Kind::Drop, Kind::Drop),
        ] {
            assert_eq!(news(kind).late(), news(late));
        }
    }

    proptest! {
        #[test]
        fn a_batch_arrives_as_it_was_sent(batch in batch()) {
            let bytes = batch.encode(&secret());
            prop_assert_eq!(Batch::decode(&bytes, &secret()), Ok(batch));
        }

        #[test]
        fn what_was_changed_on_the_way_is_not_believed(batch in batch(), at: usize, bit in 0..8_u32) {
            let mut bytes = batch.encode(&secret());
            let at = at % bytes.len();
            bytes[at] ^= 1_u8 << bit;
            prop_assert!(Batch::decode(&bytes, &secret()).is_err());
            bytes.truncate(at);
            prop_assert!(Batch::decode(&bytes, &secret()).is_err());
        }

        #[test]
        fn garbage_is_refused_and_breaks_nothing(mut bytes: Vec<u8>) {
            prop_assert!(Batch::decode(&bytes, &secret()).is_err());
            // Also with the right checksum: a peer may be of a version with a mistake in it.
            bytes.insert(0, VERSION);
            bytes.extend_from_slice(&secret().tag(&bytes).to_le_bytes());
            let _ = Batch::decode(&bytes, &secret());
        }
    }

    #[test]
    fn who_has_another_key_reads_nothing() {
        let bytes = Batch::default().encode(&secret());
        let read = Batch::decode(&bytes, &Secret::new(b"another key"));
        assert_eq!(read, Err(Unreadable::Checksum));
        let mut newer = bytes.clone();
        newer[0] += 1;
        assert_eq!(Batch::decode(&newer, &secret()), Err(Unreadable::Version));
    }

    #[test]
    fn counts_without_end_take_no_memory() {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&[0; 16]);
        bytes.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
        bytes.extend_from_slice(&secret().tag(&bytes).to_le_bytes());
        assert_eq!(Batch::decode(&bytes, &secret()), Err(Unreadable::Content));
    }
}
