//! What a probe shows while it measures: on a terminal one line that is drawn anew, elsewhere a line every ten seconds.

use node::keepalive::Measured;
use node::units::time;
use std::{
    fmt::Write as _,
    io::{IsTerminal, Write},
    time::Duration,
};

const REDRAW: Duration = Duration::from_millis(250);
const LINE: Duration = Duration::from_secs(10);

/// One phase's view, on stderr.
pub(crate) struct View {
    name: String,
    whole: Duration,
    terminal: bool,
    next: Duration,
}

impl View {
    pub(crate) fn new(name: &str, whole: Duration) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { name: name.to_owned(), whole, terminal, next: if terminal { Duration::ZERO } else { LINE } }
    }

    /// Shows it if it is time to.
    pub(crate) fn show(&mut self, passed: Duration, measured: impl FnOnce() -> Option<Measured>) {
        if passed < self.next {
            return;
        }
        self.next = passed + if self.terminal { REDRAW } else { LINE };
        let line = line(&self.name, passed, self.whole, measured().as_ref());
        let (before, after) = if self.terminal { ("\r", "\x1b[K") } else { ("", "\n") };
        // Nobody may be looking.
        let _ = write!(std::io::stderr(), "{before}{line}{after}");
    }

    /// Leaves the line.
    pub(crate) fn end(&self) {
        if self.terminal {
            let _ = writeln!(std::io::stderr());
        }
    }
}

fn line(name: &str, passed: Duration, whole: Duration, measured: Option<&Measured>) -> String {
    let mut line = format!("{name} {:.0}/{:.0} s: ", passed.as_secs_f64(), whole.as_secs_f64());
    let Some(m) = measured else { return line + "no beat yet" };
    let _ = write!(
        line,
        "{} heard, {} lost; gap {} / {} / {}, rtt {} / {} (p50 / p99 / max); late here {}",
        m.received,
        m.losses.lost(),
        time(m.gap.at(0.5)),
        time(m.gap.at(0.99)),
        time(m.gap.max()),
        time(m.rtt.at(0.5)),
        time(m.rtt.at(0.99)),
        time(m.lateness.at(0.99)),
    );
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_there_is() {
        let (passed, whole) = (Duration::from_secs(3), Duration::from_secs(60));
        assert_eq!(line("idle", passed, whole, None), "idle 3/60 s: no beat yet");
        let mut measured = Measured { received: 7, ..Measured::default() };
        measured.gap.record(Duration::from_millis(8));
        measured.losses.record(2);
        let text = line("idle", passed, whole, Some(&measured));
        assert!(text.starts_with("idle 3/60 s: 7 heard, 2 lost; gap 8.00 ms"), "{text}");
    }
}
