//! Watches that the supervisor or the acting supervisor still controls QEMU and checks the VM's outputs. A supervisor that
//! a signal stopped (SIGSTOP, ^Z) is not dead. Its data path carries epochs on without it, and does not call the VM protected: an output
//! that came meanwhile would be nobody's to notice.
//!
//! QEMU's end does not wait for such a supervisor's word: the data path sees by itself that the process has ended, and leaves the VM to
//! the standby. Only whether the VM was shut down is for the other to say, who is given a moment for that.

use super::data_path::DataPath;
use mc_core::{id::Time, primary::Event};
use node::events::{Event as Told, emit};
use std::time::Duration;
use vmm_qemu::qmp::has_ended;

/// A sign of life comes once a second; after so long without one nobody is there.
const SILENT: Duration = Duration::from_secs(5);
/// As many signs again, and the outputs have been looked at in between.
const BACK: u32 = 2;
/// A loop that did not turn for so long has missed signs of life.
const PAUSED: Duration = Duration::from_secs(1);
/// Between two looks whether QEMU's process has ended.
const LOOK: Duration = Duration::from_millis(250);
/// After QEMU has ended, for the word that its VM was shut down.
const GRACE: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(super) struct Watchdog {
    heard_at: Time,
    turned_at: Time,
    /// While nobody is there: the signs of life since.
    signs: Option<u32>,
    looked_at: Option<Time>,
    ended_at: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Silent,
    Back,
}

impl Watchdog {
    pub(super) fn new(now: Time) -> Self {
        Self { heard_at: now, turned_at: now, signs: None, looked_at: None, ended_at: None }
    }

    /// Records that the supervisor was heard at `now`.
    pub(super) fn heard(&mut self, now: Time) {
        self.heard_at = now;
        self.signs = self.signs.map(|signs| signs + 1);
    }

    fn turn(&mut self, now: Time) -> Option<News> {
        if now.since(std::mem::replace(&mut self.turned_at, now)) >= PAUSED {
            self.heard_at = now;
        }
        match self.signs {
            None if now.since(self.heard_at) >= SILENT => {
                self.signs = Some(0);
                Some(News::Silent)
            }
            Some(signs) if signs >= BACK => {
                self.signs = None;
                Some(News::Back)
            }
            _ => None,
        }
    }

    /// Whether nobody is there.
    pub(super) fn is_silent(&self) -> bool {
        self.signs.is_some()
    }

    /// Whether QEMU has ended, and nobody has said anything about that in time.
    fn is_qemu_dead(&mut self, now: Time, has_ended: impl FnOnce() -> bool) -> bool {
        if self.ended_at.is_none() && self.looked_at.is_none_or(|at| now.since(at) >= LOOK) {
            self.looked_at = Some(now);
            self.ended_at = has_ended().then_some(now);
        }
        self.ended_at.is_some_and(|at| now.since(at) >= GRACE)
    }
}

impl DataPath {
    pub(super) fn watch_supervisor(&mut self) {
        let now = self.run.host.now();
        match self.watchdog.turn(now) {
            Some(News::Silent) => {
                let why = self.unwatched().unwrap_or_default();
                tracing::error!(why, "the VM does not count as protected until its outputs are checked again");
                emit(Told::Unwatched(why.into()));
                self.run.driver.event(Event::Unfit);
            }
            Some(News::Back) => {
                tracing::warn!("somebody looks at the VM's outputs again");
                emit(Told::Watched);
                if self.unfit.is_none() {
                    self.run.driver.event(Event::OutputsChanged); // for all that anybody has seen
                }
            }
            None => {}
        }
        let (pid, instance) = self.brief.qemu_process();
        if !self.is_vm_gone() && self.watchdog.is_qemu_dead(now, || has_ended(pid, instance)) {
            tracing::error!(pid, "QEMU has exited, and it is not known whether the VM was shut down");
            self.vm_has_died();
        }
    }

    /// For the status: in words, if nobody looks.
    pub(super) fn unwatched(&self) -> Option<String> {
        let since = self.watchdog.is_silent().then(|| self.run.host.now().since(self.watchdog.heard_at))?;
        let nobody = format!("the VM's outputs have not been checked for {} s", since.as_secs());
        Some(match self.supervisor.supervisor() {
            Some(pid) => format!(
                "the supervisor (process {pid}) does not respond: {nobody}. If it was stopped (^Z), continue it with \
                 `kill -CONT {pid}`; or kill it with `kill -KILL {pid}`: the data path goes on without it"
            ),
            None => format!(
                "{nobody}: the supervisor is dead, and QEMU's control connection cannot be had. End whatever else uses it (`ss -xp` \
                 shows that)"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time(ms * 1_000_000)
    }

    /// Turns until then, ten times a second.
    fn turn(watchdog: &mut Watchdog, from: u64, to: u64) -> Vec<News> {
        (from..=to).step_by(100).filter_map(|ms| watchdog.turn(at(ms))).collect()
    }

    #[test]
    fn who_says_nothing_is_told_once_and_back_when_it_has_looked() {
        let mut watchdog = Watchdog::new(at(0));
        watchdog.heard(at(1000));
        assert_eq!(turn(&mut watchdog, 0, 5900), []);
        assert_eq!(turn(&mut watchdog, 6000, 9000), [News::Silent]);
        watchdog.heard(at(9000));
        assert_eq!(turn(&mut watchdog, 9100, 9900), []);
        watchdog.heard(at(10_000));
        assert_eq!(turn(&mut watchdog, 10_000, 10_500), [News::Back]);
        assert!(!watchdog.is_silent());
    }

    #[test]
    fn who_did_not_turn_himself_blames_nobody() {
        let mut watchdog = Watchdog::new(at(0));
        assert_eq!(turn(&mut watchdog, 0, 1000), []);
        assert_eq!(turn(&mut watchdog, 60_000, 64_900), []);
        assert_eq!(turn(&mut watchdog, 65_000, 65_000), [News::Silent]);
    }

    #[test]
    fn a_qemu_that_has_ended_is_dead_after_a_moment() {
        let mut watchdog = Watchdog::new(at(0));
        assert!(!watchdog.is_qemu_dead(at(0), || false));
        assert!(!watchdog.is_qemu_dead(at(100), || unreachable!("too soon")));
        assert!(!watchdog.is_qemu_dead(at(300), || true));
        assert!(!watchdog.is_qemu_dead(at(2200), || unreachable!("it is known")));
        assert!(watchdog.is_qemu_dead(at(2300), || unreachable!("it is known")));
    }
}
