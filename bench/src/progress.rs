//! How far a measurement is, on stderr: a bar where somebody looks, a line for each step otherwise. Never on stdout.
//!
//! ```no_run
//! use mc_bench::progress::{self, Progress};
//!
//! let progress = Progress::new("capture", 20);
//! for case in 0..20 {
//!     progress.doing(format!("case {case}"));
//!     // ... measure ...
//!     progress.step(format!("case {case}: 12.5 MB/sec"));
//! }
//! progress::say("taken again: the link went down");
//! ```
//!
//! Bars of commands within `mc-bench all` stand below its own. Whatever else is narrated while a bar may be there goes through
//! [`say`], which writes above the bars; `eprintln!` would tear them.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::{fmt::Display, sync::LazyLock, time::Duration};

/// All bars of this process.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// The clock of a bar goes on while a step takes long.
const TICK: Duration = Duration::from_millis(250);

/// Says a line on stderr.
pub fn say(line: impl Display) {
    let line = format!("mc-bench: {line}");
    if BARS.is_hidden() || BARS.println(&line).is_err() {
        eprintln!("{line}");
    }
}

/// A measurement of a known number of steps. The bar goes when it is dropped.
#[derive(Debug)]
pub struct Progress {
    what: String,
    bar: ProgressBar,
}

impl Progress {
    /// Nothing of it done yet.
    #[must_use]
    pub fn new(what: impl Into<String>, steps: u64) -> Self {
        let bar = BARS.add(ProgressBar::new(steps));
        let template = "{prefix:<10} {bar:28.cyan/dim} {pos}/{len} {elapsed} (left: {eta}) {wide_msg:.dim}";
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        let what = what.into();
        bar.set_prefix(what.clone());
        if !BARS.is_hidden() {
            bar.enable_steady_tick(TICK);
        }
        Self { what, bar }
    }

    /// What is being done now; shown beside the bar only.
    pub fn doing(&self, words: impl Display) {
        self.bar.set_message(words.to_string());
    }

    /// A step is done, with what came out of it.
    pub fn step(&self, words: impl Display) {
        self.bar.inc(1);
        self.bar.set_message(words.to_string());
        if BARS.is_hidden() {
            let (done, all) = (self.bar.position(), self.bar.length().unwrap_or(0));
            say(format_args!("{} {done}/{all}: {words}", self.what));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        BARS.remove(&self.bar);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_with_and_without_a_terminal() {
        let progress = Progress::new("test", 2);
        progress.doing("the first");
        progress.step("one");
        say("between");
        progress.step("two");
        assert_eq!((progress.bar.position(), progress.bar.length()), (2, Some(2)));
    }
}
