//! Who holds how much of one prompt; few do, however many endpoints there are.

/// Tokens held, by position of the endpoint in the router. Clearing costs O(holders).
#[derive(Debug, Default)]
pub struct Holders {
    tokens: Vec<u64>,
    /// Positions of which the tokens are not 0, each once.
    positions: Vec<usize>,
}

impl Holders {
    /// Nobody holds anything.
    pub fn new(endpoints: usize) -> Self {
        Holders {
            tokens: vec![0; endpoints],
            positions: Vec::new(),
        }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        for position in self.positions.drain(..) {
            if let Some(tokens) = self.tokens.get_mut(position) {
                *tokens = 0;
            }
        }
    }

    /// An endpoint holds this much, and not what was said of it before.
    pub fn set(&mut self, position: usize, held_tokens: u64) {
        if let Some(tokens) = self.tokens.get_mut(position)
            && held_tokens > 0
        {
            if *tokens == 0 {
                self.positions.push(position);
            }
            *tokens = held_tokens;
        }
    }

    /// Tokens that an endpoint holds.
    pub fn tokens(&self, position: usize) -> u64 {
        self.tokens.get(position).copied().unwrap_or_default()
    }

    /// Positions that hold anything, each once.
    pub fn positions(&self) -> &[usize] {
        &self.positions
    }
}
