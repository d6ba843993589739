//! The data path died, and the VM may stand still with output that was never released: whose is it? A value, a part of the
//! supervisor's machine. It asks the arbiter, however long that takes; `--arbiter manual` waits for its operator.
//!
//! ```text
//!  Read ──(solo, self) or (protected, self)──> QEMU answers, twice? ──yes──> Cas ──won──> QEMU answers? ──yes──> Ours
//!    │                                            │ gone                      │ lost        │ no
//!    └──another owner──> Theirs                   v                           v             v
//!                                               VmGone                     Read's arrow   handed back, or Stranded
//! ```
//!
//! Whose the VM is, is [`mc_core::claim`]'s to say; that QEMU answers is asked here, before its swap is.
//!
//! Whoever asks for the VM must be able to run it. A host whose processes die one after the other loses its data path before its
//! QEMU; a supervisor that won then would run nothing, and the standby, with a perfect image, would be told that it lost.

use super::{
    super::{commanded::Condition, own::standby_of, stop},
    event::{Action, Arbiter},
};
use mc_core::{
    claim::{self, Action as Core, Event},
    id::{Generation, Name, Time},
    machine::Machine,
    register::{CasOutcome, Mode, Owner, Register, Swap},
};
use node::{
    arbiter::Ask,
    events::{Asking, Event as Told, HandBack, RegisterRead},
    stalls::Swaps,
};
use std::{collections::VecDeque, time::Duration};
use tracing::Level;

/// QEMU must answer twice, this far apart: a host's processes do not die at the same instant.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two questions to a QEMU that does not answer.
const AGAIN: Duration = Duration::from_millis(500);
/// A QEMU that has not answered for so long leaves its VM to the standby.
const SILENT: Duration = Duration::from_secs(10);
/// For the arbiter to take back what was won for a VM that is gone.
const HAND_BACK: Duration = Duration::from_secs(60);
/// Why a first signal is refused.
const UNDECIDED: &str = "the data path died, and the arbiter has not answered yet who owns the VM";

/// Who owns the VM according to the arbiter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The register says (solo, self), and QEMU answers.
    Ours(Register),
    /// Another copy owns it.
    Theirs,
    /// QEMU is gone: it shut down (`orderly`), or died; this standby may have the last commit.
    VmGone { orderly: bool, standby: Option<Name> },
    /// QEMU is there and does not answer; this standby has the last commit.
    Silent { standby: Name },
    /// The register says (solo, self), the VM is gone, and nobody else may have it without an operator's word. Why.
    Stranded(String),
    /// A second signal: the operator wants this process to end all the same.
    Told,
    /// The arbiter's answer decides nothing. It is asked anew.
    Unknown(String),
}

/// What is waited for.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The arbiter.
    Arbiter,
    /// QEMU, before this is asked for: since when, whether it has answered once, and when it is asked again, unless it is being asked.
    Qemu { swap: Swap, since: Time, answered: bool, again: Option<Time> },
    /// QEMU, after this was won.
    Won(Register),
    /// The arbiter, which is to give the VM to this standby.
    HandBack { condition: Condition, standby: Name, until: Time },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Claim {
    owner: Owner,
    /// In which generation the data path had said that the VM is protected.
    proven: Option<Generation>,
    machine: claim::Claim,
    /// What the register held before the data path began.
    began_with: Register,
    /// What the register held when it was judged last.
    held: Option<Register>,
    step: Step,
    swaps: Swaps,
    /// QEMU said that its VM was shut down.
    shut_down: bool,
    silence_told: bool,
    signals: u32,
    /// What the arbiter's client says of its last failure.
    trouble: Option<String>,
    actions: VecDeque<Action>,
    verdict: Option<Verdict>,
}

impl Claim {
    /// Asks until the arbiter answers. It swaps even when the register says (solo, self) already: the dead data path may have asked
    /// for "protected" as it died, and that request may still be on its way. Once the generation has risen it can only lose; else
    /// it could name a standby, which would rightly take over, while the VM runs visibly here.
    pub(super) fn new(now: Time, began_with: Register, proven: Option<Generation>) -> Self {
        let owner = began_with.owner;
        let mut claim = Self {
            owner,
            proven,
            machine: claim::Claim::new(owner),
            began_with,
            held: None,
            step: Step::Arbiter,
            swaps: Swaps::default(),
            shut_down: false,
            silence_told: false,
            signals: 0,
            trouble: None,
            actions: VecDeque::new(),
            verdict: None,
        };
        claim.advance(now);
        claim
    }

    pub(super) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Once it is known.
    pub(super) fn take_verdict(&mut self) -> Option<Verdict> {
        self.verdict.take()
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        match self.step {
            Step::Qemu { again, .. } => again,
            Step::HandBack { until, .. } => Some(until),
            Step::Arbiter | Step::Won(_) => None,
        }
    }

    /// Whether QEMU's end, if it comes now, decides it. Not once a swap is asked for; and of a VM that was shut down nobody shall run
    /// a copy: that takes a swap.
    pub(super) fn watches_qemu(&self) -> bool {
        matches!(self.step, Step::Arbiter) && !self.machine.is_asking() && !self.shut_down
    }

    pub(super) fn qemu_gone(&mut self, orderly: bool) {
        if self.watches_qemu() && !orderly {
            self.verdict = Some(Verdict::VmGone { orderly: false, standby: self.standby() });
        }
        self.shut_down |= orderly;
    }

    /// The first is refused: nobody knows yet whose the VM is.
    pub(super) fn signal(&mut self) {
        self.signals += 1;
        if self.signals > 1 {
            self.verdict = Some(Verdict::Told);
            return;
        }
        self.log(stop::REFUSED, Some(UNDECIDED.to_owned()));
        self.emit(Told::StopRefused(UNDECIDED.into()));
        self.actions.push_back(Action::Note(stop::note(UNDECIDED)));
    }

    /// The arbiter, or an operator in its place.
    pub(super) fn hear(&mut self, now: Time, heard: Arbiter) {
        match (heard, self.step) {
            (Arbiter::Fails(why), _) => self.trouble = why,
            // A swap's answer says more.
            (Arbiter::Read(_), Step::Arbiter) if self.machine.is_asking() => {}
            (Arbiter::Read(held), Step::Arbiter) => self.judge(held),
            (Arbiter::Read(held), Step::Qemu { again: Some(_), .. }) if held != self.held => {
                self.machine = claim::Claim::new(self.owner); // nothing was asked for yet
                let _ = self.machine.poll_action();
                self.step = Step::Arbiter;
                self.judge(held);
            }
            (Arbiter::Cas(outcome), Step::Arbiter) => self.answered(now, outcome),
            (Arbiter::Cas(outcome), Step::HandBack { condition, standby, .. }) => {
                self.handed_back(now, outcome, condition, standby);
            }
            // What is being asked for is decided; else the arbiter has not even said what it holds.
            (Arbiter::Operator { seen }, Step::Arbiter) if !self.machine.is_asking() => {
                self.judge(seen.or(Some(self.began_with)));
            }
            (Arbiter::Read(_) | Arbiter::Cas(_) | Arbiter::Operator { .. }, _) => {}
        }
        self.advance(now);
    }

    /// QEMU was asked.
    pub(super) fn qemu_is(&mut self, now: Time, condition: Condition) {
        self.shut_down |= condition == Condition::ShutDown;
        match self.step {
            Step::Qemu { swap, since, answered, again: None } => match condition {
                Condition::ShutDown => self.ask_for(now, swap),
                Condition::Answers if answered => self.ask_for(now, swap),
                Condition::Gone => {
                    self.verdict = Some(Verdict::VmGone { orderly: false, standby: self.standby() });
                }
                Condition::Answers => {
                    self.step = Step::Qemu { swap, since, answered: true, again: Some(now.after(SETTLE)) };
                }
                Condition::Silent => {
                    self.tell_silence();
                    match self.standby().filter(|_| now.since(since) >= SILENT) {
                        Some(standby) => self.verdict = Some(Verdict::Silent { standby }),
                        None => {
                            let again = Some(now.after(AGAIN));
                            self.step = Step::Qemu { swap, since, answered: false, again };
                        }
                    }
                }
            },
            Step::Won(register) => self.won(now, register, condition),
            Step::Qemu { again: Some(_), .. } | Step::Arbiter | Step::HandBack { .. } => {}
        }
        self.advance(now);
    }

    pub(super) fn handle_timeout(&mut self, now: Time) {
        match &mut self.step {
            Step::Qemu { again, .. } if again.is_some_and(|at| at <= now) => {
                *again = None;
                self.actions.push_back(Action::AskCondition);
            }
            Step::HandBack { standby, until, .. } if *until <= now => {
                let said = self.trouble.clone().unwrap_or_else(|| "no answer".to_owned());
                self.verdict = Some(Verdict::Stranded(format!(
                    "it could not be handed back to {standby}, which has its last commit: the arbiter does not answer ({said})"
                )));
            }
            _ => {}
        }
    }

    /// What the core's machine wants.
    fn advance(&mut self, now: Time) {
        while let (Step::Arbiter, None) = (self.step, &self.verdict) {
            match self.machine.poll_action() {
                None => return,
                Some(Core::ReadRegister) => self.actions.push_back(Action::Ask(Ask::Read)),
                // Never of this machine: see `refuse_others`.
                Some(Core::LookFor { .. }) => self.verdict = Some(Verdict::Theirs),
                Some(Core::Cas(swap)) => {
                    self.step = Step::Qemu { swap, since: now, answered: false, again: None };
                    self.actions.push_back(Action::AskCondition);
                }
            }
        }
    }

    fn ask_for(&mut self, now: Time, swap: Swap) {
        self.step = Step::Arbiter;
        self.swap(now, swap);
    }

    fn swap(&mut self, now: Time, swap: Swap) {
        self.emit(Told::Asking(Asking { swap, standing: None }));
        self.swaps.asked(now);
        self.actions.push_back(Action::Ask(Ask::Cas(swap)));
    }

    fn answered(&mut self, now: Time, outcome: CasOutcome) {
        let answered = self.swaps.answered(now, &outcome);
        self.emit(Told::Cas(answered));
        match outcome {
            CasOutcome::Won(register) => {
                self.machine.handle(now, Event::Cas(outcome));
                self.step = Step::Won(register);
                self.actions.push_back(Action::AskCondition);
            }
            CasOutcome::Lost(newer) if self.is_refused(newer) => {}
            CasOutcome::Lost(newer) => {
                self.held = newer;
                self.machine.handle(now, Event::Cas(outcome));
                self.judged();
            }
        }
    }

    fn judge(&mut self, held: Option<Register>) {
        self.emit(Told::Register(RegisterRead { register: held }));
        if !self.is_refused(held) {
            self.held = held;
            self.machine.handle(Time(0), Event::RegisterRead(held));
            self.judged();
        }
    }

    /// Here it is not the start of a VM: whoever else the register names, another QEMU of this host too, has the VM since.
    fn is_refused(&mut self, held: Option<Register>) -> bool {
        let verdict = match held {
            None => Verdict::Unknown("the arbiter knows nothing of this VM any more".to_owned()),
            Some(held) if !held.owner.names(&self.owner) => Verdict::Theirs,
            Some(_) => return false,
        };
        self.verdict = Some(verdict);
        true
    }

    fn judged(&mut self) {
        match self.machine.verdict() {
            claim::Verdict::Open | claim::Verdict::Ours(_) => {}
            claim::Verdict::Foreign(_) | claim::Verdict::OtherInstance(_) | claim::Verdict::Beside(_) => {
                self.verdict = Some(Verdict::Theirs);
            }
        }
    }

    fn standby(&self) -> Option<Name> {
        self.held.as_ref().and_then(standby_of)
    }

    fn won(&mut self, now: Time, register: Register, condition: Condition) {
        match (condition, self.standby()) {
            (Condition::ShutDown, _) => self.verdict = Some(Verdict::VmGone { orderly: true, standby: None }),
            (Condition::Answers, _) | (Condition::Silent, None) => self.verdict = Some(Verdict::Ours(register)),
            (Condition::Gone | Condition::Silent, _) => self.hand_back(now, register, condition),
        }
    }

    /// The VM for which `register` was won is gone, or does not answer, and its gate has not opened since the swap. A standby that had
    /// ACKed an epoch whose output was held has everything that the outside saw, and gets the VM.
    fn hand_back(&mut self, now: Time, register: Register, condition: Condition) {
        let Some(Register { mode: Mode::Protected { standby }, generation, .. }) = self.held else {
            self.verdict = Some(Verdict::VmGone { orderly: false, standby: None });
            return;
        };
        let name = standby.node.name;
        if self.proven != Some(generation) {
            self.verdict = Some(Verdict::Stranded(format!(
                "the VM was not handed back to {name}, because its copy may lack what the VM has sent"
            )));
            return;
        }
        // Just that copy: the standby may have been started anew, and have another.
        let swap = Swap::new(register.generation, standby, Mode::Solo);
        let why = "the VM died before its gate opened here; its standby holds the last commit";
        self.log(&format!("{why} ({name}, generation {})", register.generation.0), None);
        let told = HandBack { register, new: swap.new, standby: name, why: why.to_owned() };
        self.emit(Told::HandBack(Box::new(told)));
        self.step = Step::HandBack { condition, standby: name, until: now.after(HAND_BACK) };
        self.swap(now, swap);
    }

    fn handed_back(&mut self, now: Time, outcome: CasOutcome, condition: Condition, standby: Name) {
        let answered = self.swaps.answered(now, &outcome);
        self.emit(Told::Cas(answered));
        self.verdict = Some(match (outcome, condition) {
            (CasOutcome::Won(_), Condition::Silent) => Verdict::Silent { standby },
            (CasOutcome::Won(_), _) => Verdict::VmGone { orderly: false, standby: Some(standby) },
            (CasOutcome::Lost(_), _) => Verdict::Theirs,
        });
    }

    fn tell_silence(&mut self) {
        if !std::mem::replace(&mut self.silence_told, true) {
            let why = "QEMU does not answer on its control connection; the arbiter is not asked for the VM, and QEMU is not killed";
            self.log(why, None);
            self.emit(Told::QemuSilent(why.into()));
            self.actions.push_back(Action::Note(why.to_owned()));
        }
    }

    fn emit(&mut self, event: Told) {
        self.actions.push_back(Action::Emit(Box::new(event)));
    }

    fn log(&mut self, what: &str, why: Option<String>) {
        self.actions.push_back(Action::Log { level: Level::ERROR, what: what.to_owned(), why });
    }
}
