//! What an Envoy logs of how it sees the others.

/// A line of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// The store does not answer.
    Blind,
    /// None of the others is heard.
    Unseen,
    /// It hears the others again.
    Whole,
}

/// Each with what its line says.
const LINES: [(Entry, &str); 3] = [
    (Entry::Blind, "the store of the fleet does not answer"),
    (
        Entry::Unseen,
        "no other Envoy has written to the store of late",
    ),
    (Entry::Whole, "in one view with"),
];

/// The entries of a log, in order.
pub(super) fn entries(log: &str) -> Vec<Entry> {
    let entry = |line: &str| LINES.iter().find(|(_, says)| line.contains(says));
    log.lines().filter_map(entry).map(|(it, _)| *it).collect()
}

/// Entries that say the same as the one before: more than one for a change.
pub(super) fn repeated(entries: &[Entry]) -> usize {
    let pairs = entries.iter().zip(entries.iter().skip(1));
    pairs.filter(|(one, next)| one == next).count()
}

/// How many are warnings.
pub(super) fn warnings(entries: &[Entry]) -> usize {
    entries.iter().filter(|it| **it != Entry::Whole).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_for_what_it_says_of_the_others() {
        let log = "[warning][wasm] wasm log: the store of the fleet does not answer: status 503\n\
            [warning][misc] else\n\
            [warning][wasm] wasm log: no other Envoy has written to the store of late\n\
            [info][wasm] wasm log: in one view with 2 other Envoy(s)\n\
            [info][wasm] wasm log: in one view with 2 other Envoy(s)\n";
        let entries = entries(log);
        let want = [Entry::Blind, Entry::Unseen, Entry::Whole, Entry::Whole];
        assert_eq!(entries, want);
        assert_eq!((warnings(&entries), repeated(&entries)), (2, 1));
    }
}
