//! A yardstick that no router can be: it sees every engine's real cache and queue.
//!
//! `cost = time until the engine has computed the prompts it has + alpha x time of this prompt
//! there`. With alpha 1 that is the request's own first-token time, which is not a bound at high
//! load since it ignores the work it puts on others; alpha `1 + 4q` grows with the mean number `q`
//! of requests per engine without a first token. O(engines x (prompt blocks + requests there)).

use std::fmt;

use anyhow::{Context, ensure};
use rand::rngs::SmallRng;

use super::{FleetView, Policy, Setup, SimRequest, cheapest};

/// Beyond this many waiting requests per engine alpha no longer grows.
const QUEUE_CAP: f64 = 8.0;

/// Weight of the request's own prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Alpha {
    /// The same at all times.
    Fixed(f64),
    /// `1 + 4q`.
    Load,
}

impl Alpha {
    /// Least own first-token time.
    pub const GREEDY: Self = Self::Fixed(1.0);
    /// Those of which `oracle_best` takes the best.
    pub const ALL: [Self; 4] = [Self::GREEDY, Self::Fixed(2.0), Self::Fixed(4.0), Self::Load];

    /// A number or `load`; 1 without it.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(text: Option<&str>) -> anyhow::Result<Self> {
        let text = text.unwrap_or("1");
        if text == "load" {
            return Ok(Self::Load);
        }
        let alpha: f64 = text
            .parse()
            .with_context(|| format!("oracle: got {text}, want a number or load"))?;
        ensure!(alpha >= 0.0, "oracle: got {text}, want at least 0");
        Ok(Self::Fixed(alpha))
    }
}

impl fmt::Display for Alpha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(alpha) => write!(f, "{alpha}"),
            Self::Load => f.write_str("load"),
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Oracle {
    alpha: Alpha,
    rng: SmallRng,
}

impl Oracle {
    /// The only router: it has no state of its own.
    pub fn new(alpha: Alpha, setup: &Setup) -> Self {
        Self {
            alpha,
            rng: setup.rng(),
        }
    }
}

impl Policy for Oracle {
    fn route(&mut self, req: &SimRequest, fleet: &FleetView<'_>, _now_us: u64) -> usize {
        let engines = 0..fleet.len();
        let alpha = match self.alpha {
            Alpha::Fixed(alpha) => alpha,
            Alpha::Load => {
                let waiting: u32 = engines.clone().map(|e| fleet.awaiting_first(e)).sum();
                let mean = f64::from(waiting) / fleet.len() as f64;
                1.0 + 4.0 * mean.min(QUEUE_CAP)
            }
        };
        let costs = engines.map(|e| fleet.wait_us(e) + alpha * fleet.prefill_us(e, req));
        cheapest(costs, &mut self.rng)
    }
}
