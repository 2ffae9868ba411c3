//! Which instance has which chunk of tokens, as LMCache's controller keeps it.
//!
//! One idea: a chunk is known by a hash of its tokens and of all chunks before it, and lists the
//! instances that have it in the order in which they got it. A lookup names only the first of them for
//! each chunk: an instance that has more than that is found by a deeper chunk, or not at all. That is
//! how the controller answers, and a router has to live with it. O(tokens) for each event and lookup.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::engine::KvEvent;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Tokens of a chunk: those of the engines' blocks.
    chunk_tokens: usize,
    /// By key of the chunk.
    holders: HashMap<u64, Vec<usize>>,
    /// For each instance, key of the chunk by the engine's name of the block.
    keys: Vec<HashMap<u64, u64>>,
}

impl Index {
    /// An instance tells what changed.
    pub(super) fn apply(&mut self, instance: usize, event: &KvEvent) {
        if self.keys.len() <= instance {
            self.keys.resize_with(instance + 1, HashMap::new);
        }
        match event {
            KvEvent::BlockStored {
                block_hashes,
                parent_block_hash,
                token_ids,
                block_size,
                extra_keys,
                ..
            } => {
                self.chunk_tokens = *block_size as usize;
                let salt = extra_keys.iter().flatten().flatten().next();
                let root = salt.map_or(0, |salt| xxh3_64_with_seed(salt.as_bytes(), 1));
                let Some(parent) = self.parent(instance, *parent_block_hash, root) else {
                    return;
                };
                let chunks = chain(parent, token_ids, self.chunk_tokens);
                for (key, hash) in chunks.zip(block_hashes) {
                    self.enter(instance, *hash, key);
                }
            }
            KvEvent::BlockRemoved { block_hashes, .. } => {
                for hash in block_hashes {
                    let keys = self.keys.get_mut(instance);
                    if let Some(key) = keys.and_then(|keys| keys.remove(hash)) {
                        self.leave(instance, key);
                    }
                }
            }
            KvEvent::AllBlocksCleared {} => {
                let keys = self.keys.get_mut(instance).map(std::mem::take);
                for key in keys.unwrap_or_default().into_values() {
                    self.leave(instance, key);
                }
            }
        }
    }

    /// Instances with how many tokens each is named for, in the order in which they are met.
    pub(super) fn lookup(&self, tokens: &[u32]) -> Vec<(usize, usize)> {
        let mut found: Vec<(usize, usize)> = Vec::new();
        let mut end = 0;
        for key in chain(0, tokens, self.chunk_tokens.max(1)) {
            end += self.chunk_tokens;
            let Some(first) = self.holders.get(&key).and_then(|it| it.first()) else {
                break;
            };
            match found.iter_mut().find(|(instance, _)| instance == first) {
                Some((_, matched)) => *matched = end,
                None => found.push((*first, end)),
            }
        }
        found
    }

    /// Every instance that has the beginning of a prompt, with how many tokens of it, as an index that
    /// keeps instances apart says.
    pub(super) fn overlaps(&self, tokens: &[u32]) -> Vec<(usize, usize)> {
        let mut found: Vec<(usize, usize)> = Vec::new();
        let mut end = 0;
        for key in chain(0, tokens, self.chunk_tokens.max(1)) {
            let before = end;
            end += self.chunk_tokens;
            let Some(holders) = self.holders.get(&key) else {
                break;
            };
            for instance in holders {
                match found.iter_mut().find(|(other, _)| other == instance) {
                    Some((_, matched)) if *matched == before => *matched = end,
                    None if before == 0 => found.push((*instance, end)),
                    _ => {}
                }
            }
        }
        found
    }

    /// Key of the chunk before a block; `None` if it is not known, so that the block means nothing.
    fn parent(&self, instance: usize, hash: Option<u64>, root: u64) -> Option<u64> {
        match hash {
            None => Some(root),
            Some(hash) => self.keys.get(instance)?.get(&hash).copied(),
        }
    }

    fn enter(&mut self, instance: usize, hash: u64, key: u64) {
        if let Some(keys) = self.keys.get_mut(instance) {
            keys.insert(hash, key);
        }
        let holders = self.holders.entry(key).or_default();
        if !holders.contains(&instance) {
            holders.push(instance);
        }
    }

    fn leave(&mut self, instance: usize, key: u64) {
        if let Some(holders) = self.holders.get_mut(&key) {
            holders.retain(|holder| *holder != instance);
            if holders.is_empty() {
                self.holders.remove(&key);
            }
        }
    }
}

/// Keys of the whole chunks of `tokens`, which follow the chunk `parent`.
fn chain(parent: u64, tokens: &[u32], chunk_tokens: usize) -> impl Iterator<Item = u64> {
    let mut key = parent;
    tokens.chunks_exact(chunk_tokens.max(1)).map(move |chunk| {
        let bytes: Vec<u8> = chunk.iter().flat_map(|id| id.to_le_bytes()).collect();
        key = xxh3_64_with_seed(&bytes, key);
        key
    })
}
