//! Prompts as the router is told of them, made of the names of their chunks.

use warmpath_core::hash;
use warmpath_core::router::PromptFacts;
use warmpath_core::scan::{CHUNK_BYTES, Link};

/// A prompt of a conversation, with chunks of these names. Prompts whose first names are the same share as
/// much; a longer one is a later turn.
pub fn prompt(conversation: u64, chunks: impl IntoIterator<Item = u64>) -> PromptFacts {
    let mut link = Link { hash: 1, end: 0 };
    let chain = chunks.into_iter().enumerate().map(|(at, name)| {
        link.hash = hash::chain(link.hash, hash::mix(name, at as u64));
        link.end += CHUNK_BYTES;
        link
    });
    let chain: Vec<_> = chain.collect();
    PromptFacts {
        bytes: chain.len() * CHUNK_BYTES,
        chain,
        conversation,
        streamed: true,
        output_tokens: Some(1),
        told: None,
    }
}
