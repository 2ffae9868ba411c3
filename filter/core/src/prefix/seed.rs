//! The secret that the links of a process begin with.
//!
//! XXH3-64 is easily turned round: who knows a prompt could make a short one that has the link of the
//! whole, and an engine that got it would be taken to hold the long one. So every chain begins with a
//! number that clients cannot know. The workers of an Envoy must agree on it, since they read each other's
//! links; several Envoys need not, as they share none. It is made once, by the first router that looks at
//! prompts, and stays in shared data as long as the links do: version (1), seed (8).

use crate::codec::Bytes;
use crate::store::{Store, update};

const KEY: &str = "warmpath/seed";
const VERSION: u8 = 1;

/// The seed of this process; `chance` becomes it if there is none yet. One read, as a rule.
pub fn seed<S: Store>(store: &S, chance: u64) -> u64 {
    let agreed = update(store, KEY, |value| {
        let mut bytes = Bytes(value);
        if let (Some(VERSION), Some(seed)) = (bytes.u8(), bytes.u64()) {
            return (false, seed);
        }
        value.clear();
        value.push(VERSION);
        value.extend_from_slice(&chance.to_le_bytes());
        (true, chance)
    });
    // Whoever loses that often shares nothing, and is wrong about nothing.
    agreed.unwrap_or(chance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[test]
    fn the_first_seed_stays() {
        let store = MemoryStore::new();
        assert_eq!(seed(&store, 7), 7);
        assert_eq!(seed(&store, 8), 7);
    }

    #[test]
    fn a_value_that_is_none_is_replaced() {
        for damaged in [
            &b""[..],
            b"\x01",
            b"\x02\x09\0\0\0\0\0\0\0",
            b"\x01\x09\0\0",
        ] {
            let store = MemoryStore::new();
            store.set(KEY, damaged);
            assert_eq!(seed(&store, 8), 8);
            assert_eq!(seed(&store, 9), 8);
        }
    }
}
