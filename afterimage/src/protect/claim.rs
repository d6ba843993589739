//! The supervisor alone: its data path died, and the VM may stand still with output that was never released. It asks the
//! arbiter, however long that takes, and serves the control socket meanwhile: `--arbiter manual` waits for its operator.
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
    channel::Brief,
    commanded::{Condition, Qemu},
    own::standby_of,
    waiting::{Heard, Waiting, What},
};
use anyhow::{Result, bail};
use mc_core::{
    claim::{self, Action, Event},
    id::{Generation, Name, Time},
    machine::Machine,
    register::{CasOutcome, Mode, Owner, Register, Swap},
};
use node::{
    arbiter::Ask,
    clock::Clock,
    events::{Asking, Event as Told, HandBack, RegisterRead, Role, emit},
    signals::Signals,
    stalls::Swaps,
};
use std::time::{Duration, Instant};

/// QEMU must answer twice, this far apart: a host's processes do not die at the same instant.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two questions to a QEMU that does not answer.
const AGAIN: Duration = Duration::from_millis(500);
/// A QEMU that has not answered for so long leaves its VM to the standby.
const SILENT: Duration = Duration::from_secs(10);
/// For the arbiter to take back what was won for a VM that is gone.
const HAND_BACK: Duration = Duration::from_secs(60);

/// Who owns the VM according to the arbiter.
#[derive(Debug)]
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
}

/// Asks until the arbiter answers. It swaps even when the register says (solo, self) already: the dead data path may have asked
/// for "protected" as it died, and that request may still be on its way. Once the generation has risen it can only lose; else
/// it could name a standby, which would rightly take over, while the VM runs visibly here.
///
/// `proven`: the generation in which the data path had said that the VM is protected.
pub(super) fn claim(brief: &Brief, proven: Option<Generation>, qemu: &mut Qemu, signals: &Signals) -> Result<Verdict> {
    let what = What {
        role: Role::Claiming,
        generation: brief.register.generation,
        note: "the data path died; the VM stands still until the arbiter answers",
        busy: "the data path died, and the arbiter has not answered yet who owns the VM",
        may_leave: false,
    };
    let owner = brief.register.owner;
    let waiting = Waiting::new(&brief.config, owner.node, signals, what, true)?;
    let (machine, swaps) = (claim::Claim::new(owner), Swaps::default());
    let began_with = brief.register;
    Claim { owner, proven, waiting, qemu, machine, began_with, held: None, swaps, signals: 0 }.run()
}

struct Claim<'a> {
    owner: Owner,
    proven: Option<Generation>,
    waiting: Waiting<'a>,
    qemu: &'a mut Qemu,
    machine: claim::Claim,
    /// What the register held before the data path began.
    began_with: Register,
    /// What the register held when it was judged last.
    held: Option<Register>,
    swaps: Swaps,
    signals: u32,
}

impl Claim<'_> {
    fn run(mut self) -> Result<Verdict> {
        loop {
            let over = match self.machine.poll_action() {
                Some(Action::ReadRegister) => {
                    self.waiting.ask(Ask::Read);
                    None
                }
                // Never of this machine: see `refuse_others`.
                Some(Action::LookFor { .. }) => Some(Verdict::Theirs),
                Some(Action::Cas(swap)) => match self.await_qemu()? {
                    Qemus::Answers => {
                        self.ask_for(swap);
                        None
                    }
                    Qemus::RegisterChanged(held) => {
                        self.machine = claim::Claim::new(self.owner); // nothing was asked for yet
                        let _ = self.machine.poll_action();
                        self.judge(held)?
                    }
                    Qemus::Over(verdict) => Some(verdict),
                },
                None => self.hear()?,
            };
            if let Some(verdict) = over {
                return Ok(verdict);
            }
        }
    }

    fn ask_for(&mut self, swap: Swap) {
        emit(Told::Asking(Asking { swap, standing: None }));
        self.swaps.asked(Clock.now());
        self.waiting.ask(Ask::Cas(swap));
    }

    fn hear(&mut self) -> Result<Option<Verdict>> {
        // Until a swap was asked for, a VM that is gone decides it. Of one that was shut down nobody shall run a copy: that takes a
        // swap.
        let watches = !self.machine.is_asking() && !self.qemu.has_shut_down();
        let qemu = watches.then_some(&mut *self.qemu);
        Ok(match self.waiting.hear(qemu, None)? {
            Heard::Read(_) if self.machine.is_asking() => None, // its swap's answer says more
            Heard::Read(held) => self.judge(held)?,
            Heard::Cas(outcome) => {
                emit(Told::Cas(self.swaps.answered(Clock.now(), &outcome)));
                match outcome {
                    CasOutcome::Won(register) => {
                        self.machine.handle(Time(0), Event::Cas(outcome));
                        Some(self.won(register)?)
                    }
                    CasOutcome::Lost(newer) => self.refuse_others(newer)?.or_else(|| {
                        self.held = newer;
                        self.machine.handle(Time(0), Event::Cas(outcome));
                        self.verdict()
                    }),
                }
            }
            Heard::VmGone(false) => Some(Verdict::VmGone { orderly: false, standby: self.standby() }),
            Heard::Signal if self.told() => Some(Verdict::Told),
            // What is being asked for is decided; else the arbiter has not even said what it holds.
            Heard::Operator if !self.machine.is_asking() => {
                let seen = self.waiting.arbiter.seen();
                self.judge(seen.or(Some(self.began_with)))?
            }
            Heard::VmGone(true) | Heard::Signal | Heard::Successor | Heard::Operator | Heard::Late => None,
        })
    }

    fn judge(&mut self, held: Option<Register>) -> Result<Option<Verdict>> {
        emit(Told::Register(RegisterRead { register: held }));
        if let Some(verdict) = self.refuse_others(held)? {
            return Ok(Some(verdict));
        }
        self.held = held;
        self.machine.handle(Time(0), Event::RegisterRead(held));
        Ok(self.verdict())
    }

    /// Here it is not the start of a VM: whoever else the register names, another QEMU of this host too, has the VM since.
    fn refuse_others(&self, held: Option<Register>) -> Result<Option<Verdict>> {
        let Some(held) = held else { bail!("the arbiter knows nothing of this VM any more") };
        Ok((!held.owner.names(&self.owner)).then_some(Verdict::Theirs))
    }

    fn verdict(&self) -> Option<Verdict> {
        match self.machine.verdict() {
            claim::Verdict::Open | claim::Verdict::Ours(_) => None,
            claim::Verdict::Foreign(_) | claim::Verdict::OtherInstance(_) | claim::Verdict::Beside(_) => {
                Some(Verdict::Theirs)
            }
        }
    }

    fn standby(&self) -> Option<Name> {
        self.held.as_ref().and_then(standby_of)
    }

    /// Waits until QEMU has answered twice, or the register has changed.
    fn await_qemu(&mut self) -> Result<Qemus> {
        let start = Instant::now();
        let mut answered = false;
        loop {
            match self.qemu.condition() {
                Condition::ShutDown => return Ok(Qemus::Answers),
                Condition::Gone => {
                    let standby = self.standby();
                    return Ok(Qemus::Over(Verdict::VmGone { orderly: false, standby }));
                }
                Condition::Answers if answered => return Ok(Qemus::Answers),
                condition => answered = matches!(condition, Condition::Answers),
            }
            if !answered {
                self.tell_silence();
                if let Some(standby) = self.standby().filter(|_| start.elapsed() >= SILENT) {
                    return Ok(Qemus::Over(Verdict::Silent { standby }));
                }
            }
            let until = Instant::now() + if answered { SETTLE } else { AGAIN };
            loop {
                match self.waiting.hear(None, Some(until))? {
                    Heard::Read(now) if now != self.held => return Ok(Qemus::RegisterChanged(now)),
                    Heard::Signal if self.told() => return Ok(Qemus::Over(Verdict::Told)),
                    Heard::Late => break,
                    _ => {}
                }
            }
        }
    }

    fn won(&mut self, register: Register) -> Result<Verdict> {
        let condition = self.qemu.condition();
        match (condition, self.standby()) {
            (Condition::ShutDown, _) => Ok(Verdict::VmGone { orderly: true, standby: None }),
            (Condition::Answers, _) | (Condition::Silent, None) => Ok(Verdict::Ours(register)),
            (Condition::Gone | Condition::Silent, _) => self.hand_back(&register, condition),
        }
    }

    /// The VM for which `register` was won is gone, or does not answer, and its gate has not opened since the swap. A standby that had
    /// ACKed an epoch whose output was held has everything that the outside saw, and gets the VM.
    fn hand_back(&mut self, register: &Register, condition: Condition) -> Result<Verdict> {
        let Some(Register { mode: Mode::Protected { standby }, generation, .. }) = self.held else {
            return Ok(Verdict::VmGone { orderly: false, standby: None });
        };
        let name = standby.node.name;
        if self.proven != Some(generation) {
            return Ok(Verdict::Stranded(format!(
                "the VM was not handed back to {name}, because its copy may lack what the VM has sent"
            )));
        }
        // Just that copy: the standby may have been started anew, and have another.
        let swap = Swap::new(register.generation, standby, Mode::Solo);
        let why = "the VM died before its gate opened here; its standby holds the last commit";
        tracing::error!(standby = %name, generation = register.generation.0, "{why}");
        let (register, why) = (*register, why.to_owned());
        emit(Told::HandBack(Box::new(HandBack { register, new: swap.new, standby: name, why })));
        self.ask_for(swap);
        let until = Instant::now() + HAND_BACK;
        loop {
            match self.waiting.hear(None, Some(until))? {
                Heard::Cas(outcome) => {
                    emit(Told::Cas(self.swaps.answered(Clock.now(), &outcome)));
                    return Ok(match (outcome, condition) {
                        (CasOutcome::Won(_), Condition::Silent) => Verdict::Silent { standby: name },
                        (CasOutcome::Won(_), _) => Verdict::VmGone { orderly: false, standby: Some(name) },
                        (CasOutcome::Lost(_), _) => Verdict::Theirs,
                    });
                }
                Heard::Signal if self.told() => return Ok(Verdict::Told),
                Heard::Late => {
                    let health = self.waiting.arbiter.health();
                    let said = health.last_error.unwrap_or_else(|| "no answer".to_owned());
                    return Ok(Verdict::Stranded(format!(
                        "it could not be handed back to {name}, which has its last commit: the arbiter does not answer ({said})"
                    )));
                }
                _ => {}
            }
        }
    }

    fn tell_silence(&mut self) {
        if self.waiting.notes.is_empty() {
            let why = "QEMU does not answer on its control connection; the arbiter is not asked for the VM, and QEMU \
                 is not killed";
            tracing::error!("{why}");
            emit(Told::QemuSilent(why.into()));
            self.waiting.notes.push(why.to_owned());
        }
    }

    /// A signal. The first is refused: nobody knows yet whose the VM is. True for the second.
    fn told(&mut self) -> bool {
        self.signals += 1;
        let why = "the data path died, and the arbiter has not answered yet who owns the VM";
        if self.signals == 1 {
            super::stop::tell_refused(why);
            self.waiting.notes.push(super::stop::note(why));
        }
        self.signals > 1
    }
}

/// What came of waiting for QEMU.
enum Qemus {
    /// It answers, or its VM was shut down: it may be asked for.
    Answers,
    RegisterChanged(Option<Register>),
    Over(Verdict),
}
