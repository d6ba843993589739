//! Rate limit for repeated log lines: the first is written, the rest are counted. A process that strangers
//! can call would otherwise write a line for every call, and fill its log.

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

/// Between a line and the next of its kind at first; twice as long each time …
const FIRST: Duration = Duration::from_secs(1);
/// … and at most.
const LONGEST: Duration = Duration::from_secs(60);
/// Kinds that are told apart. Further ones are one kind together: a stranger's words must not fill our memory.
const KINDS: usize = 16;

/// What one place says again and again.
#[derive(Debug, Default)]
pub struct Repeated {
    kinds: Vec<Kind>,
}

#[derive(Debug)]
struct Kind {
    /// `None`: all that found no place of their own.
    what: Option<String>,
    said_at: Instant,
    wait: Duration,
    unsaid: u64,
}

impl Kind {
    fn is_due(&self, now: Instant) -> bool {
        now >= self.said_at + self.wait
    }

    /// Said now. How many were not said since the last time.
    fn say(&mut self, now: Instant) -> u64 {
        self.said_at = now;
        self.wait = (self.wait * 2).min(LONGEST);
        std::mem::take(&mut self.unsaid)
    }
}

impl Repeated {
    /// A line of kind `what` is at hand. `Some(n)`: say it; `n` others of its kind were not said since the last one.
    /// `None`: it is counted.
    pub fn say(&mut self, what: &str, now: Instant) -> Option<u64> {
        // A kind that has been quiet for twice its wait is news again.
        self.kinds.retain(|kind| kind.unsaid > 0 || now < kind.said_at + kind.wait * 2);
        let own = self.kinds.iter().any(|kind| kind.what.as_deref() == Some(what));
        let what = (own || self.kinds.len() < KINDS).then_some(what);
        match self.kinds.iter_mut().find(|kind| kind.what.as_deref() == what) {
            Some(kind) if kind.is_due(now) => Some(kind.say(now)),
            Some(kind) => {
                kind.unsaid += 1;
                None
            }
            None => {
                self.kinds.push(Kind { what: what.map(str::to_owned), said_at: now, wait: FIRST, unsaid: 0 });
                Some(0)
            }
        }
    }

    /// A kind that was only counted for as long as it may be, and how many it were: to be said without a new one.
    pub fn overdue(&mut self, now: Instant) -> Option<(String, u64)> {
        let kind = self.kinds.iter_mut().find(|kind| kind.unsaid > 0 && kind.is_due(now))?;
        let what = kind.what.clone().unwrap_or_else(|| "other reasons".to_owned());
        Some((what, kind.say(now)))
    }
}

/// A line's end: that `n` more of its kind were not said.
#[must_use]
pub fn and_more(n: u64) -> String {
    let mut text = String::new();
    if n > 0 {
        let _ = write!(text, " (and {n} more like it since the last such line)");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_handful_of_lines_and_every_one_is_counted() {
        let (mut repeated, start) = (Repeated::default(), Instant::now());
        let (mut lines, mut counted) = (0, 0);
        // 10,000 a second for 100 seconds.
        for n in 0..1_000_000u32 {
            let now = start + Duration::from_micros(100) * n;
            if let Some(more) = repeated.say("refused", now) {
                lines += 1;
                counted += more + 1;
            }
        }
        assert_eq!(lines, 7, "after 0, 1, 3, 7, 15, 31, 63 s");
        let later = start + Duration::from_secs(200);
        let (what, rest) = repeated.overdue(later).unwrap();
        assert_eq!((what.as_str(), counted + rest), ("refused", 1_000_000));
        assert_eq!(repeated.overdue(later), None);
    }

    #[test]
    fn kinds_are_told_apart_and_bounded() {
        let (mut repeated, now) = (Repeated::default(), Instant::now());
        let said = (0..100).filter(|n| repeated.say(&format!("reason {n}"), now).is_some()).count();
        assert_eq!((said, repeated.kinds.len()), (KINDS + 1, KINDS + 1));
        assert_eq!(repeated.say("reason 3", now), None);
        let due: Vec<_> = std::iter::from_fn(|| repeated.overdue(now + FIRST)).collect();
        assert_eq!(due, [("reason 3".to_owned(), 1), ("other reasons".to_owned(), 99 - KINDS as u64)]);
    }

    #[test]
    fn after_a_calm_the_next_one_is_said_at_once() {
        let (mut repeated, start) = (Repeated::default(), Instant::now());
        assert_eq!(repeated.say("x", start), Some(0));
        assert_eq!(repeated.say("x", start + Duration::from_millis(1)), None);
        assert_eq!(repeated.say("x", start + Duration::from_secs(2)), Some(1));
        assert_eq!(repeated.say("x", start + Duration::from_secs(300)), Some(0));
        assert_eq!(repeated.say("x", start + Duration::from_secs(301)), Some(0), "its interval began anew");
    }
}
