//! A request as the simulator and its policies see it.

use std::sync::Arc;

use super::text;

/// One request of a workload.
#[derive(Debug, Clone)]
pub struct SimRequest {
    /// Position in the workload; unique.
    pub id: u64,
    /// The conversation, where the trace names it.
    pub session: Option<u64>,
    /// What stands for the conversation when requests are placed by key: the session, or else the
    /// first block that is not shared by 1 % of all requests.
    pub key: u64,
    /// Chained hash of each prompt block, the last of which may be partial.
    pub blocks: Arc<[u64]>,
    /// Tokens in a block.
    pub block_tokens: u32,
    /// Length of the prompt; at least 1.
    pub prompt_tokens: u32,
    /// Length of the answer; at least 1. No real router knows it.
    pub output_tokens: u32,
}

impl SimRequest {
    /// The prompt as bytes, about 4 a token. See [`text`].
    pub fn text(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        text::write(self, 0, self.text_len(), &mut bytes);
        bytes
    }

    /// Length of [`text`](Self::text).
    pub fn text_len(&self) -> usize {
        self.prompt_tokens as usize * text::BYTES_PER_TOKEN
    }

    /// Prompt tokens in the first `blocks` blocks.
    pub fn tokens_in(&self, blocks: usize) -> u32 {
        let tokens = (blocks as u64) * u64::from(self.block_tokens);
        u32::try_from(tokens)
            .unwrap_or(u32::MAX)
            .min(self.prompt_tokens)
    }
}
