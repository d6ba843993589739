//! When a keeper ends: a value. Its end takes the VM's network along, so the first signal is refused; a successor asks at the control
//! socket, and is given way.
//!
//! ```text
//!   Keeping ──signal──> Refused, and said why ──signal──> ends, exit 3
//!      │ relieved, or the VM's QEMU ended     │ likewise
//!      └───────────────> ends, exit 0 <───────┘
//! ```

use node::exit::Code;

/// Why a keeper stays.
pub(super) const STAYS: &str =
    "the VM's network passes through this process and would end with it; run `afterimage protect` to replace it";
/// What it means that it does not.
const OBEYED: &str =
    "ending on the second signal: the VM runs on without a network, because it passed through this process";

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A signal asks for its end.
    Signal,
    /// The VM's QEMU ended.
    QemuEnded,
    /// A successor is about to open the NICs.
    Relieved,
}

/// What is to be said of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// It is refused.
    Refused,
    /// It is obeyed.
    Obeyed,
}

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Duty {
    refused: bool,
    ending: Option<(Code, &'static str)>,
}

impl Duty {
    /// Takes one event.
    pub(super) fn handle(&mut self, event: Event) -> Option<Said> {
        match event {
            Event::Signal if self.refused => {
                self.ending = self.ending.or(Some((Code::Degraded, OBEYED)));
                return Some(Said::Obeyed);
            }
            Event::Signal => {
                self.refused = true;
                return Some(Said::Refused);
            }
            Event::QemuEnded => self.ending = Some((Code::Done, "the VM's QEMU ended")),
            Event::Relieved => self.ending = Some((Code::Done, "relieved")),
        }
        None
    }

    /// Whether a signal was refused: the next one is obeyed.
    pub(super) fn has_refused(&self) -> bool {
        self.refused
    }

    /// With which code it ends, and why, once it does.
    pub(super) fn ending(&self) -> Option<(Code, &'static str)> {
        self.ending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn played(events: &[Event]) -> (Vec<Said>, Option<Code>) {
        let mut duty = Duty::default();
        let said = events.iter().filter_map(|event| duty.handle(*event)).collect();
        (said, duty.ending().map(|(code, _)| code))
    }

    #[test]
    fn the_first_signal_is_refused_and_the_second_obeyed() {
        use Event::{QemuEnded, Relieved, Signal};
        assert_eq!(played(&[Signal]), (vec![Said::Refused], None));
        assert_eq!(played(&[Signal, Signal]), (vec![Said::Refused, Said::Obeyed], Some(Code::Degraded)));
        for end in [QemuEnded, Relieved] {
            assert_eq!(played(&[end]), (vec![], Some(Code::Done)));
            assert_eq!(played(&[Signal, end]), (vec![Said::Refused], Some(Code::Done)));
            assert_eq!(played(&[Signal, end, Signal]).1, Some(Code::Done), "it was ending already");
        }
    }
}
