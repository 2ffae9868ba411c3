//! A turnstile: of several threads exactly one runs, and a seeded draw says who is next.
//!
//! Threads pass it before every operation on the store, so a schedule is a sequence of draws: the
//! same seed gives the same interleaving on every machine. Who is drawn how often changes along the
//! way: a worker that is starved for a while is one that an overloaded machine does not run. Time is
//! an argument of the core, so the clock is a number that moves with every operation.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use warmpath_core::policy::{below, next_random};

/// Draws of one seed.
#[derive(Clone, Debug)]
pub struct Draw(pub u64);

impl Draw {
    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        below(next_random(&mut self.0), bound)
    }

    /// True once in `times` draws.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// Time as all workers see it, in microseconds.
#[derive(Debug)]
pub struct Clock(AtomicU64);

impl Clock {
    /// A clock that shows `now_us`.
    pub fn new(now_us: u64) -> Self {
        Clock(AtomicU64::new(now_us))
    }

    /// What it shows.
    pub fn now_us(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Moves it on.
    pub fn pass(&self, us: u64) {
        self.0.fetch_add(us, Ordering::SeqCst);
    }
}

/// Most operations of each thread between two changes of who is drawn how often.
const PHASE: usize = 80;

/// The turnstile; open, it lets everybody run freely.
#[derive(Debug)]
pub struct Turnstile {
    state: Option<Mutex<State>>,
    turns: Vec<Condvar>,
}

#[derive(Debug)]
struct State {
    running: usize,
    present: Vec<bool>,
    weights: Vec<usize>,
    /// One of so many operations is followed by a draw; 0 means that all take turns, in step.
    patience: usize,
    phase: usize,
    draw: Draw,
}

impl Turnstile {
    /// A turnstile for `threads` threads, which all must [`Turnstile::enter`].
    pub fn new(threads: usize, seed: u64) -> Self {
        let mut state = State {
            running: 0,
            present: vec![true; threads],
            weights: vec![1; threads],
            patience: 0,
            phase: 0,
            draw: Draw(seed),
        };
        state.running = state.next();
        Turnstile {
            state: Some(Mutex::new(state)),
            turns: (0..threads).map(|_| Condvar::new()).collect(),
        }
    }

    /// No turnstile at all: threads run as the machine lets them.
    pub fn open() -> Self {
        Turnstile {
            state: None,
            turns: Vec::new(),
        }
    }

    /// Waits for the first turn of thread `me`; the turn is over when the guard is dropped.
    pub fn enter(&self, me: usize) -> Turn<'_> {
        if let Some(state) = self.lock() {
            self.wait(state, me);
        }
        Turn {
            turnstile: self,
            me,
        }
    }

    /// Lets whoever is drawn go on, and waits until it is `me` again.
    pub fn pass(&self, me: usize) {
        let Some(mut state) = self.lock() else { return };
        // After the run the main thread alone is left.
        if !state.present[me] {
            return;
        }
        state.running = state.next();
        if state.running != me {
            self.turns[state.running].notify_one();
            self.wait(state, me);
        }
    }

    fn wait(&self, mut state: MutexGuard<'_, State>, me: usize) {
        while state.running != me {
            state = self.turns[me]
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> Option<MutexGuard<'_, State>> {
        let state = self.state.as_ref()?;
        Some(state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A thread's part in a schedule.
#[derive(Debug)]
pub struct Turn<'a> {
    turnstile: &'a Turnstile,
    me: usize,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Some(mut state) = self.turnstile.lock() else {
            return;
        };
        state.present[self.me] = false;
        if state.present.contains(&true) {
            state.running = state.next();
            self.turnstile.turns[state.running].notify_one();
        }
    }
}

impl State {
    /// Draws who runs next.
    fn next(&mut self) -> usize {
        if self.phase == 0 {
            self.phase = 1 + self.draw.below(PHASE * self.present.len());
            self.patience = [0, 1, 2, 12][self.draw.below(4)];
            for weight in &mut self.weights {
                *weight = [1, 30, 30, 30, 300][self.draw.below(5)];
            }
        }
        self.phase -= 1;
        if self.patience == 0 {
            let threads = self.present.len();
            let after = (1..=threads).map(|step| (self.running + step) % threads);
            return after
                .into_iter()
                .find(|at| self.present[*at])
                .unwrap_or_default();
        }
        if self.present[self.running] && !self.draw.once_in(self.patience) {
            return self.running;
        }
        let weight = |(present, weight): (&bool, &usize)| if *present { *weight } else { 0 };
        let weights: Vec<usize> = self.present.iter().zip(&self.weights).map(weight).collect();
        let mut left = self.draw.below(weights.iter().sum());
        for (thread, weight) in weights.into_iter().enumerate() {
            if left < weight {
                return thread;
            }
            left -= weight;
        }
        self.running
    }
}
