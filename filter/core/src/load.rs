//! What is in flight at an endpoint, as the routers of this process know it at decision time.

use crate::board::Row;

/// An endpoint that was not used for this long is as good as never used when ties are broken.
const FORGET_US: u64 = 10_000_000;

/// Work in flight at one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests sent and not ended.
    pub in_flight: u32,
    /// Those of them that have no first token yet.
    pub waiting: u32,
    /// Tokens to prefill of the waiting ones, without what is believed to be cached.
    pub prefill_tokens: u64,
    /// Context tokens of all in flight.
    pub context_tokens: u64,
    /// Tokens of the engine's cache that requests in flight keep, each counted once.
    pub kept_tokens: u64,
    /// When it was last chosen, in microseconds of the Unix clock.
    pub last_used_us: u64,
}

impl Row for Load {
    const BYTES: usize = 40;
    const KEY: &'static str = "warmpath/load";

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.in_flight.to_le_bytes());
        out.extend_from_slice(&self.waiting.to_le_bytes());
        out.extend_from_slice(&self.prefill_tokens.to_le_bytes());
        out.extend_from_slice(&self.context_tokens.to_le_bytes());
        out.extend_from_slice(&self.kept_tokens.to_le_bytes());
        out.extend_from_slice(&self.last_used_us.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (in_flight, bytes) = bytes.split_first_chunk()?;
        let (waiting, bytes) = bytes.split_first_chunk()?;
        let (prefill_tokens, bytes) = bytes.split_first_chunk()?;
        let (context_tokens, bytes) = bytes.split_first_chunk()?;
        let (kept_tokens, bytes) = bytes.split_first_chunk()?;
        let (last_used_us, _) = bytes.split_first_chunk()?;
        Some(Load {
            in_flight: u32::from_le_bytes(*in_flight),
            waiting: u32::from_le_bytes(*waiting),
            prefill_tokens: u64::from_le_bytes(*prefill_tokens),
            context_tokens: u64::from_le_bytes(*context_tokens),
            kept_tokens: u64::from_le_bytes(*kept_tokens),
            last_used_us: u64::from_le_bytes(*last_used_us),
        })
    }

    fn merge(&mut self, other: &Self) {
        self.in_flight = self.in_flight.saturating_add(other.in_flight);
        self.waiting = self.waiting.saturating_add(other.waiting);
        self.prefill_tokens = self.prefill_tokens.saturating_add(other.prefill_tokens);
        self.context_tokens = self.context_tokens.saturating_add(other.context_tokens);
        self.kept_tokens = self.kept_tokens.saturating_add(other.kept_tokens);
        self.last_used_us = self.last_used_us.max(other.last_used_us);
    }

    fn is_idle(&self, now_us: u64) -> bool {
        self.in_flight == 0 && now_us.saturating_sub(self.last_used_us) > FORGET_US
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Board;
    use crate::ids::EndpointId;
    use crate::store::{MemoryStore, Store};
    use crate::workers::Column;

    fn board() -> Board<Load> {
        Board::new(vec![Some(EndpointId(5)), Some(EndpointId(9)), None])
    }

    #[test]
    fn workers_see_the_sum_and_forget_the_dead() {
        let store = MemoryStore::new();
        let (mine, theirs) = (Column { slot: 0, owner: 1 }, Column { slot: 1, owner: 2 });
        let mut a = board();
        let mut b: Board<Load> = Board::new(vec![Some(EndpointId(9)), Some(EndpointId(77))]);
        b.change(0, |load| load.in_flight += 3);
        b.publish(&store, theirs, 10);
        a.change(1, |load| load.in_flight += 1);
        a.publish(&store, mine, 10);
        a.set_peers(&[theirs]);
        a.refresh(&store, 10);
        assert_eq!(a.total(1).map(|load| load.in_flight), Some(4));
        assert_eq!(a.total(0).map(|load| load.in_flight), Some(0));
        a.set_peers(&[Column { slot: 1, owner: 3 }]);
        a.refresh(&store, 20_000);
        assert_eq!(
            a.total(1).map(|load| load.in_flight),
            Some(1),
            "another owner's leftovers"
        );
    }

    #[test]
    fn a_column_is_read_again_only_when_due() {
        let store = MemoryStore::new();
        let theirs = Column { slot: 1, owner: 2 };
        let (mut a, mut b) = (board(), board());
        a.set_peers(&[theirs]);
        a.refresh(&store, 1000);
        b.change(0, |load| load.in_flight = 1);
        b.publish(&store, theirs, 1001);
        a.refresh(&store, 1100);
        assert_eq!(a.total(0).map(|load| load.in_flight), Some(0));
        a.refresh(&store, 1300);
        assert_eq!(a.total(0).map(|load| load.in_flight), Some(1));
    }

    #[test]
    fn garbage_in_a_column_is_empty() {
        let store = MemoryStore::new();
        let theirs = Column { slot: 1, owner: 2 };
        let mut a = board();
        a.set_peers(&[theirs]);
        for (round, garbage) in [
            &b"\x02"[..],
            b"",
            b"\x02\x02\0\0\0\0\0\0\0\0\0\0\0\x05\0\x01",
            b"\xff",
        ]
        .iter()
        .enumerate()
        {
            store.set("warmpath/load/1", garbage);
            a.refresh(&store, 10_000 * (round as u64 + 1));
            assert_eq!(a.total(0), Some(&Load::default()));
        }
    }

    #[test]
    fn garbage_after_figures_takes_them_back() {
        let store = MemoryStore::new();
        let theirs = Column { slot: 1, owner: 2 };
        let (mut a, mut b) = (board(), board());
        b.change(0, |load| load.in_flight = 1);
        b.publish(&store, theirs, 10);
        a.set_peers(&[theirs]);
        a.refresh(&store, 1000);
        assert_eq!(a.total(0).map(|load| load.in_flight), Some(1));
        store.set("warmpath/load/1", b"\xff");
        a.refresh(&store, 2000);
        assert_eq!(a.total(0), Some(&Load::default()));
    }

    /// Whatever is changed, published and read in whatever order, a reader sees the last published
    /// figures, and the changes it is told of are all there are.
    #[test]
    fn a_reader_of_many_rows_sees_what_was_published() {
        let store = MemoryStore::new();
        let theirs = Column { slot: 1, owner: 2 };
        let ids: Vec<_> = (0..200).map(|id| Some(EndpointId(id))).collect();
        let (mut a, mut b) = (Board::<Load>::new(ids.clone()), Board::<Load>::new(ids));
        a.set_peers(&[theirs]);
        let mut told = vec![Load::default(); 200];
        let mut random = 1;
        for round in 1..2000 {
            let changes = crate::policy::next_random(&mut random) % 40;
            for _ in 0..changes {
                let at = crate::policy::next_random(&mut random);
                b.change((at % 200) as usize, |load| {
                    load.in_flight = (at >> 60) as u32;
                    load.last_used_us = round * 1000;
                });
            }
            b.publish(&store, theirs, round * 1000);
            if round % 3 > 0 {
                continue;
            }
            let seen = a.changes();
            a.refresh(&store, round * 1000);
            let changed: Vec<usize> = match a.changed_since(seen) {
                Some(changed) => changed.collect(),
                None => (0..200).collect(),
            };
            for position in changed {
                told[position] = *a.total(position).unwrap();
            }
            for (position, told) in told.iter().enumerate() {
                assert_eq!(a.total(position), b.total(position), "{position}, {round}");
                assert_eq!(Some(told), b.total(position), "{position}, {round}");
            }
        }
    }

    #[test]
    fn idle_endpoints_are_left_out_of_a_base() {
        let store = MemoryStore::new();
        let ids = (0..100).map(|id| Some(EndpointId(id))).collect();
        let mut a: Board<Load> = Board::new(ids);
        (0..100).for_each(|at| a.change(at, |load| load.last_used_us = 1));
        a.change(7, |load| load.in_flight = 1);
        a.publish(&store, Column { slot: 0, owner: 1 }, 2 + FORGET_US);
        assert_eq!(store.value_bytes(), 13 + 13 + 2 + Load::BYTES);
    }
}
