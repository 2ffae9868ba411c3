//! The clocks follow an engine's cache: what is shared counts once, and ends go first.

use super::*;

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
