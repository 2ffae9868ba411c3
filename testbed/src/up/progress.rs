//! A line that moves while something starts, and the line that stays once it has.
//!
//! Where output is no terminal only the lines that stay are printed.

use std::time::Duration;

use indicatif::ProgressBar;

const TICK: Duration = Duration::from_millis(100);

/// One step of the start.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Shows that `what` is starting.
    pub fn start(what: &str) -> Self {
        let bar = ProgressBar::new_spinner();
        bar.set_message(format!("starting {what}"));
        bar.enable_steady_tick(TICK);
        Self { bar }
    }

    /// Replaces the moving line by one that stays.
    pub fn done(self, line: &str) {
        self.bar.finish_and_clear();
        println!("✔ {line}");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
