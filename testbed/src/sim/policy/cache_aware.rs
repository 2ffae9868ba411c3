//! `cache_aware` of vllm-project/router and of its origin, SGLang's router (read in
//! `policies/cache_aware.rs` and the string tree beside it).
//!
//! Unless request counts are out of balance, a request goes to the engine that first stored the
//! deepest known part of its prompt, if that part is long enough; else to the least loaded, which
//! on ties is the one that has been sent the fewest requests so far. The tree's eviction (2^26 characters an engine by default) is left out: no trace here reaches it.
//! O(prompt blocks).

use std::collections::HashMap;
use std::fmt;

use anyhow::{Context, bail};
use hashlink::DefaultHashBuilder;

use super::{FleetView, Policy, Setup, SimRequest};
use crate::sim::fleet::InFlight;

/// The three thresholds.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Least part of the prompt that must match.
    cache_threshold: f64,
    /// Out of balance when the counts differ by more than this ...
    balance_abs: f64,
    /// ... and the greatest is more than this times the least.
    balance_rel: f64,
}

impl Options {
    /// `THRESHOLD/ABS/REL`; the router's long-standing library values without it.
    ///
    /// # Errors
    /// Not three numbers.
    pub fn parse(text: Option<&str>) -> anyhow::Result<Self> {
        let text = text.unwrap_or("0.5/32/1.0001");
        let numbers: Vec<f64> = text
            .split('/')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| format!("cache_aware: got {text}, want THRESHOLD/ABS/REL"))?;
        match *numbers.as_slice() {
            [cache_threshold, balance_abs, balance_rel] => Ok(Self {
                cache_threshold,
                balance_abs,
                balance_rel,
            }),
            _ => bail!("cache_aware: got {text}, want THRESHOLD/ABS/REL"),
        }
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cache_threshold,
            balance_abs,
            balance_rel,
        } = self;
        write!(f, "{cache_threshold}/{balance_abs}/{balance_rel}")
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct CacheAware {
    options: Options,
    /// Which engine stored a block first. Chained ids make the map a radix tree.
    creator: HashMap<u64, usize, DefaultHashBuilder>,
    in_flight: InFlight,
    /// Requests ever sent to each engine.
    processed: Vec<u64>,
}

impl CacheAware {
    /// One router.
    pub fn new(options: &Options, setup: &Setup) -> Self {
        Self {
            options: options.clone(),
            creator: HashMap::default(),
            in_flight: InFlight::new(setup.engines),
            processed: vec![0; setup.engines],
        }
    }

    fn is_imbalanced(&self) -> bool {
        let counts = self.in_flight.counts().iter();
        let (least, most) = counts.fold((u32::MAX, 0), |(least, most), &n| {
            (least.min(n), most.max(n))
        });
        let (least, most) = (f64::from(least), f64::from(most));
        most - least > self.options.balance_abs && most > self.options.balance_rel * least
    }

    fn least_loaded(&self) -> usize {
        let loads = self.in_flight.counts().iter().zip(&self.processed);
        let least = loads.enumerate().min_by_key(|(_, load)| *load);
        least.map_or(0, |(engine, _)| engine)
    }

    /// The engine that owns the deepest known part of the prompt, if that part is long enough.
    fn owner(&self, req: &SimRequest) -> Option<usize> {
        let known = req.blocks.iter().map_while(|id| self.creator.get(id));
        let (blocks, owner) = known.fold((0, None), |(n, _), engine| (n + 1, Some(*engine)));
        let matched = f64::from(req.tokens_in(blocks)) / f64::from(req.prompt_tokens);
        owner.filter(|_| matched > self.options.cache_threshold)
    }
}

impl Policy for CacheAware {
    fn route(&mut self, req: &SimRequest, _fleet: &FleetView<'_>, _now_us: u64) -> usize {
        let owner = if self.is_imbalanced() {
            None
        } else {
            self.owner(req)
        };
        let engine = owner.unwrap_or_else(|| self.least_loaded());
        for &id in req.blocks.iter() {
            self.creator.entry(id).or_insert(engine);
        }
        self.in_flight.add(engine);
        if let Some(processed) = self.processed.get_mut(engine) {
            *processed += 1;
        }
        engine
    }

    fn done(&mut self, _req: &SimRequest, engine: usize, _now_us: u64) {
        self.in_flight.remove(engine);
    }
}
