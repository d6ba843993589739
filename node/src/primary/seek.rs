//! When to look for a standby, and what to say about not having one. A plain value: no socket, no clock, no thread.
//!
//! ```text
//!              begin                     failed
//!  ┌─────────┐ ────> ┌────────┐ ─────────────────────────> ┌─────────┐
//!  │ Waiting │       │ Trying │                            │ Waiting │  100 ms, then twice as long each time, up to 5 s;
//!  └─────────┘ <──── └────────┘ ──found──> ┌─────────┐     └─────────┘  30 s where nothing will change by itself
//!                                          │ Session │ ──lost──^
//!                                          └─────────┘
//! ```
//!
//! `protect` is the VM's way to its network: whatever becomes of a standby, it stays and looks for the next one. What it says is
//! bounded: an event and a line when the *reason* changes, and a count of how often it was the same.

use mc_core::id::Time;
use std::time::Duration;

/// The first pause after a session that had worked, or at the start.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause while there is hope at any moment.
const LONGEST: Duration = Duration::from_secs(5);
/// The pause after something that an operator has to change.
const SLOW: Duration = Duration::from_secs(30);
/// A session that was protected for so long had worked: after it the pauses begin anew.
const WORKED: Duration = Duration::from_secs(5);

/// What stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// In words.
    pub why: String,
    /// What may end it.
    pub kind: Kind,
}

/// What may end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Time: nobody listens yet, a wire is broken.
    Passing,
    /// An operator: the standby's VM differs, its disk is full.
    Lasting,
    /// Nothing, for this VM: its QEMU cannot take checkpoints.
    Hopeless,
}

impl Trouble {
    /// Whether it is tried again slowly, if at all.
    #[must_use]
    pub fn is_slow(&self) -> bool {
        self.kind != Kind::Passing
    }

    /// Something that passes by itself.
    pub fn passing(why: impl Into<String>) -> Self {
        Self { why: why.into(), kind: Kind::Passing }
    }

    /// Something that an operator has to change.
    pub fn lasting(why: impl Into<String>) -> Self {
        Self { why: why.into(), kind: Kind::Lasting }
    }

    /// Something that nothing changes, for this VM.
    pub fn hopeless(why: impl Into<String>) -> Self {
        Self { why: why.into(), kind: Kind::Hopeless }
    }
}

/// The reason, as long as it is the same.
#[derive(Clone, Debug)]
pub struct Reason {
    /// In words.
    pub why: String,
    /// Since when, by the caller's wall clock: ms since 1970.
    pub since_ms: u64,
    /// How often it was met.
    pub times: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting(Time),
    Trying,
    Session,
}

/// When to look for a standby next, and why there is none.
#[derive(Debug)]
pub struct Seek {
    state: State,
    /// Whether an operator wants protection.
    wanted: bool,
    /// A successor was asked for and prepares itself: it will look for its standby, not we.
    yielded: bool,
    hopeless: bool,
    pause: Duration,
    reason: Option<Reason>,
}

impl Seek {
    /// Begins at `first`.
    pub fn new(first: Time, wanted: bool) -> Self {
        Self { state: State::Waiting(first), wanted, yielded: false, hopeless: false, pause: FIRST, reason: None }
    }

    /// How long the `n`th data path in a row waits before it looks: one that dies of what it finds must not do so at once again.
    pub fn patience(n: u32) -> Duration {
        if n == 0 { Duration::ZERO } else { (FIRST * 2_u32.saturating_pow(n.min(10))).min(LONGEST) }
    }

    fn looks(&self) -> bool {
        self.wanted && !self.yielded && !self.hopeless
    }

    /// When to look next.
    pub fn next(&self) -> Option<Time> {
        match self.state {
            State::Waiting(until) if self.looks() => Some(until),
            _ => None,
        }
    }

    /// Whether to look now; if so, it counts as begun.
    pub fn begin(&mut self, now: Time) -> bool {
        let begins = self.next().is_some_and(|at| now >= at);
        if begins {
            self.state = State::Trying;
        }
        begins
    }

    /// Whether what was found is still wanted.
    pub fn is_trying(&self) -> bool {
        self.state == State::Trying && self.looks()
    }

    /// A session begins.
    pub fn found(&mut self) {
        self.state = State::Session;
    }

    /// No session came about. `chance`: any number, for the jitter. True if the reason is another one than before.
    pub fn failed(&mut self, (now, unix_ms): (Time, u64), trouble: &Trouble, chance: u8) -> bool {
        let pause = match trouble.kind {
            Kind::Passing => self.pause,
            Kind::Lasting | Kind::Hopeless => SLOW,
        };
        self.pause = (self.pause * 2).min(LONGEST);
        self.hopeless |= trouble.kind == Kind::Hopeless;
        self.state = State::Waiting(now.after(jitter(pause, chance)));
        // An operator's word stands until the operator says another.
        self.wanted && self.note(unix_ms, &trouble.why)
    }

    /// A session ended, after having been protected for so long, if it was.
    pub fn lost(&mut self, at: (Time, u64), trouble: &Trouble, protected: Option<Duration>, chance: u8) -> bool {
        if protected.is_some_and(|time| time >= WORKED) {
            self.pause = FIRST;
        }
        self.failed(at, trouble, chance)
    }

    fn note(&mut self, unix_ms: u64, why: &str) -> bool {
        match &mut self.reason {
            Some(reason) if reason.why == why => {
                reason.times += 1;
                false
            }
            _ => {
                self.reason = Some(Reason { why: why.to_owned(), since_ms: unix_ms, times: 1 });
                true
            }
        }
    }

    /// Protected: there is nothing to be said any more.
    pub fn protected(&mut self) {
        self.reason = None;
    }

    /// An operator wants no protection.
    pub fn unwanted(&mut self, unix_ms: u64, why: &str) {
        self.wanted = false;
        self.note(unix_ms, why);
    }

    /// An operator wants it (again), and now.
    pub fn wanted(&mut self, now: Time) {
        (self.wanted, self.hopeless, self.pause) = (true, false, FIRST);
        if matches!(self.state, State::Waiting(_)) {
            self.state = State::Waiting(now);
        }
    }

    /// The VM is another one than it was: what is under way is for nothing, and what has failed may succeed.
    pub fn anew(&mut self, now: Time) {
        if self.state != State::Session {
            self.state = State::Waiting(now);
        }
    }

    /// Makes way for a successor, or takes that back. What was under way is given up.
    pub fn make_way(&mut self, now: Time, yields: bool) {
        self.yielded = yields;
        if self.state == State::Trying || !yields {
            self.state = State::Waiting(now);
        }
    }

    /// Why there is no protection.
    pub fn reason(&self) -> Option<&Reason> {
        self.reason.as_ref()
    }
}

/// Three quarters to five quarters of `pause`: many VMs that lost one host must not come back in step.
fn jitter(pause: Duration, chance: u8) -> Duration {
    pause * (384 + u32::from(chance)) / 512
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: u8 = 128;

    fn at(ms: u64) -> Time {
        Time(ms * 1_000_000)
    }

    fn wait(seek: &Seek, now: u64) -> Duration {
        seek.next().expect("it looks again").since(at(now))
    }

    #[test]
    fn pauses_double_up_to_five_seconds_and_begin_anew_after_a_session_that_worked() {
        let mut seek = Seek::new(at(0), true);
        let nobody = Trouble::passing("nobody listens");
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert!(seek.begin(at(0)));
            seek.failed((at(0), 0), &nobody, MIDDLE);
            pauses.push(wait(&seek, 0).as_millis());
            seek.wanted_at(at(0));
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert!(seek.begin(at(0)));
        seek.found();
        assert_eq!(seek.next(), None);
        seek.lost((at(0), 0), &Trouble::passing("the link broke"), Some(Duration::from_secs(1)), MIDDLE);
        assert_eq!(wait(&seek, 0), LONGEST, "it did not hold");
        seek.wanted_at(at(0));
        assert!(seek.begin(at(0)));
        seek.found();
        seek.lost((at(0), 0), &Trouble::passing("the link broke"), Some(WORKED), MIDDLE);
        assert_eq!(wait(&seek, 0), FIRST);
        assert!(
            (75..=125).contains(&jitter(FIRST, 0).as_millis()) && (75..=125).contains(&jitter(FIRST, 255).as_millis())
        );
    }

    #[test]
    fn what_an_operator_must_change_is_tried_slowly_and_what_nobody_can_is_not() {
        let mut seek = Seek::new(at(0), true);
        assert!(seek.begin(at(0)));
        assert!(seek.failed((at(0), 7), &Trouble::lasting("the VM that the standby would run differs"), MIDDLE));
        assert_eq!(wait(&seek, 0), SLOW);
        assert!(!seek.begin(at(29_000)) && seek.begin(at(31_000)));
        assert!(seek.failed((at(0), 9), &Trouble::hopeless("this QEMU cannot"), MIDDLE));
        assert_eq!((seek.next(), seek.begin(at(1_000_000))), (None, false));
        seek.wanted(at(2_000_000));
        assert!(seek.begin(at(2_000_000)), "an operator may say so all the same");
    }

    #[test]
    fn another_vm_is_another_try_at_once() {
        let mut seek = Seek::new(at(0), true);
        assert!(seek.begin(at(0)));
        seek.anew(at(1));
        assert!(!seek.is_trying(), "what is found now is of the VM as it was");
        assert!(seek.begin(at(1)));
        seek.failed((at(1), 1), &Trouble::lasting("the VM has an output that is not held"), MIDDLE);
        seek.anew(at(2));
        assert!(seek.begin(at(2)));
        seek.found();
        seek.anew(at(3));
        assert_eq!(seek.next(), None, "there is a session");
        seek.unwanted(4, "unprotect");
        seek.anew(at(5));
        assert!(!seek.begin(at(5)));
    }

    #[test]
    fn only_a_change_of_the_reason_is_news_and_repeats_are_counted() {
        let mut seek = Seek::new(at(0), true);
        let (nobody, differs) = (Trouble::passing("nobody listens"), Trouble::lasting("it differs"));
        let news: Vec<bool> =
            [&nobody, &nobody, &nobody, &differs, &differs].iter().map(|t| seek.failed((at(0), 5), t, 0)).collect();
        assert_eq!(news, [true, false, false, true, false]);
        assert_eq!(seek.reason().map(|r| (r.why.as_str(), r.times, r.since_ms)), Some(("it differs", 2, 5)));
        seek.protected();
        assert!(seek.reason().is_none());
        assert!(seek.failed((at(0), 6), &differs, 0), "it was well in between");
    }

    #[test]
    fn nobody_looks_against_an_operators_word_or_beside_a_successor() {
        let mut seek = Seek::new(at(0), true);
        assert!(seek.begin(at(0)) && seek.is_trying());
        seek.unwanted(3, "unprotect");
        assert!(!seek.is_trying(), "what is found now is not wanted");
        seek.failed((at(0), 4), &Trouble::passing("given up"), 0);
        assert_eq!(seek.next(), None);
        seek.wanted(at(10));
        assert_eq!(seek.next(), Some(at(10)));
        seek.make_way(at(11), true);
        assert_eq!(seek.next(), None);
        seek.make_way(at(12), false);
        assert!(seek.begin(at(12)));
    }

    #[test]
    fn a_data_path_that_follows_one_that_died_does_not_hurry() {
        assert_eq!([0, 1, 3, 30].map(Seek::patience).map(|d| d.as_millis()), [0, 200, 800, 5000]);
    }

    impl Seek {
        /// The pause is over.
        fn wanted_at(&mut self, now: Time) {
            self.state = State::Waiting(now);
        }
    }
}
