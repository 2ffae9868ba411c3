//! The clocks follow an engine's cache: what is shared counts once, and ends go first.

use super::clock::{EPOCHS, SLACK_PERCENT};
use super::table::{SET_BYTES, Table};
use super::*;
use crate::store::MemoryStore;
use proptest::prelude::*;

const ENGINE: EndpointId = EndpointId(3);

/// An index for one engine with room for `chunks` chunks.
fn index(chunks: u64) -> Index {
    let mut index = Index::new(1 << 20);
    index.set_engines(&[(ENGINE, chunks * CHUNK_TOKENS)]);
    index
}

/// Marks of one chunk each; prompts of the same `name` share them.
fn marks(name: u64, chunks: u64) -> Vec<Mark> {
    let mark = |at| Mark {
        link: crate::hash::mix(name, at),
        chunks: 1,
    };
    (0..chunks).map(mark).collect()
}

fn event(kind: Kind, marks: Vec<Mark>) -> Event {
    Event {
        kind,
        engine: ENGINE,
        extra_chunks: 0,
        marks,
    }
}

#[test]
fn a_pin_takes_what_no_other_request_has_pinned() {
    let mut index = index(1000);
    index.apply(&event(Kind::Hold, marks(1, 40)));
    let mut longer = marks(1, 40);
    longer.extend(marks(2, 10));
    let first = index.apply(&event(Kind::Pin, longer.clone()));
    assert_eq!((first.idle_chunks, first.fresh_chunks), (40, 10));
    longer.extend(marks(3, 5));
    let second = index.apply(&event(Kind::Pin, longer));
    assert_eq!((second.idle_chunks, second.fresh_chunks), (0, 5));
}

#[test]
fn the_end_of_a_prompt_is_forgotten_before_its_beginning() {
    let mut index = index(1000);
    let old = marks(1, 600);
    index.apply(&event(Kind::Hold, old.clone()));
    index.apply(&event(Kind::Hold, marks(2, 600)));
    let known = index.known(&old, ENGINE);
    assert!((350..=420).contains(&known), "{known} of 600");
}

#[test]
fn a_small_engine_is_believed_to_hold_no_more_than_it_can() {
    for chunks in [1, 7, 65, 100, 127, 128, 129, 255, 300] {
        let mut index = index(chunks);
        for name in 0..30 {
            for kind in [Kind::Pin, Kind::Hold] {
                index.apply(&event(kind, marks(name, 20)));
            }
            let held = entries(&index).len() as u64;
            let most = chunks + chunks * SLACK_PERCENT / 100;
            assert!(held <= most, "{held} of {chunks} after {name}");
        }
        // An epoch may end between an entry's stamp and its count.
        let held = entries(&index).len() as u64;
        assert!(held + 1 + chunks / EPOCHS >= chunks, "{held} of {chunks}");
        let newest = index.known(&marks(29, 20), ENGINE) as u64;
        assert!((chunks - 1).min(20) <= newest, "{newest} of {chunks}");
    }
}

#[test]
fn what_has_room_outlives_what_is_used_again_and_again() {
    let mut index = index(1000);
    let (idle, shared) = (marks(1, 50), marks(2, 500));
    index.apply(&event(Kind::Hold, idle.clone()));
    // Fifty capacities of one prompt.
    for _ in 0..100 {
        index.apply(&event(Kind::Pin, shared.clone()));
        index.apply(&event(Kind::Hold, shared.clone()));
    }
    assert_eq!(index.known(&idle, ENGINE), 50);
    assert_eq!(index.known(&shared, ENGINE), 500);
    // It is still the first to go when room is needed.
    index.apply(&event(Kind::Hold, marks(3, 500)));
    assert!(index.known(&idle, ENGINE) < 50);
    assert_eq!(index.known(&shared, ENGINE), 500);
}

#[test]
fn a_link_counts_for_what_the_longest_chain_makes_it_stand_for() {
    let mut index = index(2000);
    let link = |at: usize| Link {
        hash: crate::hash::mix(9, at as u64),
        end: at,
    };
    let chain: Vec<Link> = (1..=1000).map(link).collect();
    // A conversation that grows chunk by chunk, until all but 1000 chunks of the room are its own.
    for length in 1..=chain.len() {
        let marks = super::marks(&chain[..length]);
        index.apply(&event(Kind::Hold, marks));
    }
    let last = super::marks(&chain);
    assert_eq!(index.known(&last, ENGINE), last.len());
    // What else fits beside it is no more than the rest.
    let other = marks(2, 1200);
    index.apply(&event(Kind::Hold, other.clone()));
    index.apply(&event(Kind::Hold, last));
    let held = index.known(&other, ENGINE);
    assert!((900..=1050).contains(&held), "{held} of 1200");
}

#[test]
fn epochs_that_come_round_bring_nothing_back() {
    let mut index = index(1000);
    let (idle, shared) = (marks(1, 8), marks(2, 900));
    index.apply(&event(Kind::Hold, idle.clone()));
    // Epochs are of 7 chunks; they come round after 2^16, 510 uses of the shared prompt.
    for use_of_it in 0..600 {
        index.apply(&event(Kind::Hold, shared.clone()));
        (0..4).for_each(|_| index.sweep());
        let forgotten = index.known(&idle, ENGINE) == 0;
        assert!(forgotten || use_of_it < 70, "after {use_of_it}");
        assert!(!forgotten || use_of_it > 50, "after {use_of_it}");
    }
}

#[test]
fn what_running_requests_keep_is_no_room_for_others() {
    let mut index = index(1000);
    let old = marks(1, 500);
    index.apply(&event(Kind::Hold, old.clone()));
    index.set_busy(ENGINE, 700 * CHUNK_TOKENS);
    let known = index.known(&old, ENGINE);
    assert!((250..=320).contains(&known), "{known} of 500");
}

#[test]
fn events_of_others_forget_nothing_before_the_load_that_belongs_to_them() {
    let mut index = index(1000);
    let (old, new) = (marks(1, 500), marks(2, 500));
    index.apply(&event(Kind::Hold, old.clone()));
    index.apply(&event(Kind::Pin, new.clone()));
    index.set_busy(ENGINE, 500 * CHUNK_TOKENS);
    index.note(&event(Kind::Hold, new));
    index.set_busy(ENGINE, 0);
    assert_eq!(index.known(&old, ENGINE), 500);
}

#[test]
fn only_what_was_still_alive_is_counted_as_evicted() {
    let mut index = Index::new(1);
    index.set_engines(&[(ENGINE, 1000 * CHUNK_TOKENS)]);
    let room = index.table().bytes() / table::SLOT_BYTES;
    for (name, chunks, evicted) in [(1, room, 0), (2, room + 3, room + 3)] {
        index.apply(&event(Kind::Hold, marks(name, chunks as u64)));
        assert_eq!(index.take_evicted(), evicted as u64);
    }
    index.forget(ENGINE);
    index.apply(&event(Kind::Hold, marks(3, 5)));
    assert_eq!(index.take_evicted(), 0);
}

/// Grows to `sets` sets, in as many calls as it takes.
fn grow(index: &mut Index, sets: usize) {
    for _ in 0..sets.div_ceil(GROW_SETS) {
        index.grow(sets * SET_BYTES);
    }
    assert!(index.table().sets() >= sets);
}

/// Live entries: what is kept of the link, the engine, the age, the chunks.
fn entries(index: &Index) -> Vec<(u64, u16, u16, u16)> {
    let mut found = Vec::new();
    index.entries(0, index.table().sets(), |link, engine, age, chunks| {
        found.push((link, engine, age, chunks));
    });
    found.sort_unstable();
    found
}

#[test]
fn a_table_grows_by_parts_up_to_what_is_asked_and_never_shrinks() {
    let mut table = Table::new(256 * SET_BYTES);
    table.grow(4096 * SET_BYTES + 1, 1000);
    assert_eq!(table.sets(), 1256);
    for _ in 0..3 {
        table.grow(4096 * SET_BYTES + 1, 1000);
    }
    assert_eq!((table.sets(), table.bytes()), (4096, 4096 * SET_BYTES));
    table.grow(256 * SET_BYTES, 1000);
    assert_eq!(table.sets(), 4096);
    // It would not know where its entries belong.
    let mut small = Table::new(128 * SET_BYTES);
    small.grow(4096 * SET_BYTES, 1000);
    assert_eq!(small.sets(), 128);
}

#[test]
fn a_snapshot_fits_a_table_of_any_size() {
    let store = MemoryStore::new();
    let capacity = [(ENGINE, 100_000 * CHUNK_TOKENS)];
    let make = |sets: usize| {
        let mut index = Index::new(sets * SET_BYTES);
        index.set_engines(&capacity);
        index
    };
    let prompts: Vec<Vec<Mark>> = (0..40).map(|name| marks(name, 20)).collect();
    let mut writer = make(1024);
    grow(&mut writer, 2048);
    for prompt in &prompts {
        writer.apply(&event(Kind::Hold, prompt.clone()));
    }
    let mut cursor = snapshot::Cursor::default();
    (0..8).for_each(|_| cursor.write(&mut writer, &store));
    for sets in [512, 2048, 8192] {
        let mut reader = make(sets);
        snapshot::load(&mut reader, &store);
        assert_eq!(reader.take_evicted(), 0);
        for prompt in &prompts {
            assert_eq!(reader.known(prompt, ENGINE), 20, "{sets} sets");
        }
    }
    // Growing, it has pieces of many sizes, some of which say that there are fewer sets.
    let store = MemoryStore::new();
    let mut growing = make(1024);
    for prompt in &prompts {
        growing.apply(&event(Kind::Hold, prompt.clone()));
        growing.table.grow(4096 * SET_BYTES, 40);
        cursor.write(&mut growing, &store);
    }
    assert_eq!(growing.table().sets(), 1024 + 40 * 40);
    (0..8).for_each(|_| cursor.write(&mut growing, &store));
    let mut reader = make(4096);
    snapshot::load(&mut reader, &store);
    let known = prompts.iter().map(|prompt| reader.known(prompt, ENGINE));
    assert!(known.eq([20; 40]));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// An index whose table grew on the way is the same as one that was as large from the start.
    #[test]
    fn growth_changes_nothing_that_is_known(
        steps in proptest::collection::vec((0..3_u8, 0..12_u64, 1..12_u64, 0..6_u16, 0..300_usize), 1..80),
    ) {
        let capacities: Vec<(EndpointId, u64)> =
            (0..6).map(|id| (EndpointId(id), (40 + 40 * u64::from(id)) * CHUNK_TOKENS)).collect();
        let make = |sets: usize| {
            let mut index = Index::new(sets * SET_BYTES);
            index.set_engines(&capacities);
            index
        };
        let (mut small, mut large) = (make(256), make(2048));
        for (kind, name, chunks, engine, more) in steps {
            let event = Event {
                kind: [Kind::Pin, Kind::Hold, Kind::Drop][usize::from(kind)],
                engine: EndpointId(engine),
                extra_chunks: 0,
                marks: marks(name, chunks),
            };
            let took = small.apply(&event);
            prop_assert_eq!(took, large.apply(&event));
            small.table.grow(2048 * SET_BYTES, more);
            for name in 0..12 {
                let marks = marks(name, 12);
                for engine in 0..6 {
                    let engine = EndpointId(engine);
                    prop_assert_eq!(small.known(&marks, engine), large.known(&marks, engine));
                }
            }
        }
        grow(&mut small, 2048);
        prop_assert_eq!(small.take_evicted(), 0);
        prop_assert_eq!(entries(&small), entries(&large));
    }
}
