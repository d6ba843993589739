//! The supervisor alone: its data path died, and the VM may stand still with output that was never released. It asks the
//! arbiter, however long that takes, and serves the control socket meanwhile: `--arbiter manual` waits for its operator.
//!
//! ```text
//!  Read ──(solo, self) or (protected, self)──> QEMU answers, twice? ──yes──> Cas ──won──> QEMU answers? ──yes──> Ours
//!    │                                            │ gone                      │ lost        │ no
//!    └──another owner──> Theirs                   v                           v             v
//!                                               VmGone                     Read's arrow   hand_back, VmGone
//! ```
//!
//! Whoever asks for the VM must be able to run it. A host whose processes die one after the other loses its data path before its
//! QEMU; a supervisor that won then would run nothing, and the standby, with a perfect image, would be told that it lost.

use super::{
    channel::Brief,
    supervisor::{Condition, Qemu},
    waiting::{Heard, Waiting, What},
};
use crate::{
    arbiter::{Answer, Ask},
    clock::Clock,
    events::emit,
    report,
    signals::Signals,
    stalls::Swap,
};
use anyhow::{Result, bail};
use mc_core::{
    id::Name,
    register::{CasOutcome, Mode, Register},
};
use serde_json::json;
use std::time::{Duration, Instant};

/// QEMU must answer twice, this far apart: a host's processes do not die at the same instant.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two questions to a QEMU that does not answer.
const AGAIN: Duration = Duration::from_millis(500);
/// A QEMU that has not answered for so long leaves its VM to the standby.
const SILENT: Duration = Duration::from_secs(10);

/// Whose the VM is.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The register says (solo, self), and QEMU answers.
    Ours(Register),
    /// Another node's.
    Theirs,
    /// QEMU is gone: it shut down (`orderly`), or died; this standby may have the last commit.
    VmGone { orderly: bool, standby: Option<Name> },
    /// QEMU is there and does not answer; this standby has the last commit.
    Silent { standby: Name },
    /// A second signal: the operator wants this process to end all the same.
    Told,
}

/// Asks until the arbiter answers. It swaps even when the register says (solo, self) already: the dead data path may have asked
/// for "protected" as it died, and that request may still be on its way. Once the generation has risen it can only lose; else
/// it could name a standby, which would rightly take over, while the VM runs visibly here.
pub(super) fn claim(brief: &Brief, qemu: &mut Qemu, signals: &Signals) -> Result<Verdict> {
    let what = What {
        role: "claiming",
        generation: brief.register.generation,
        note: "the data path died; the VM waits for the arbiter's verdict",
        busy: "the data path died, and the arbiter has not answered yet whose the VM is",
        may_leave: false,
    };
    let waiting = Waiting::new(&brief.config, signals, what, true)?;
    Claim { brief, waiting, qemu, signals: 0 }.run()
}

/// What a question ended with, if not with its answer.
enum Turn<T> {
    Go(T),
    Over(Verdict),
}

struct Claim<'a> {
    brief: &'a Brief,
    waiting: Waiting<'a>,
    qemu: &'a mut Qemu,
    signals: u32,
}

impl Claim<'_> {
    fn run(mut self) -> Result<Verdict> {
        let owner = self.brief.register.owner;
        let mut turn = self.read()?;
        loop {
            let held = match turn {
                Turn::Over(verdict) => return Ok(verdict),
                Turn::Go(held) if held.owner != owner => return Ok(Verdict::Theirs),
                Turn::Go(held) => held,
            };
            emit("register", json!({ "register": held }));
            turn = match self.await_qemu(held)? {
                Turn::Go(now) if now == held => match self.swap(&held)? {
                    Turn::Go(CasOutcome::Won(register)) => return Ok(self.won(register, &held)),
                    Turn::Go(CasOutcome::Lost(Some(newer))) => Turn::Go(newer),
                    Turn::Go(CasOutcome::Lost(None)) => bail!("the arbiter knows nothing of this VM any more"),
                    Turn::Over(verdict) => Turn::Over(verdict),
                },
                changed => changed,
            };
        }
    }

    fn read(&mut self) -> Result<Turn<Register>> {
        // Until a swap was asked for, a VM that is gone decides it.
        let mut heard = self.waiting.ask(Ask::Read, Some(self.qemu), None)?;
        loop {
            match heard {
                Heard::Answer(Answer::Read(Some(held))) => return Ok(Turn::Go(held)),
                Heard::Answer(other) => bail!("the arbiter knows nothing of this VM any more: {other:?}"),
                Heard::VmGone(false) => return Ok(Turn::Over(Verdict::VmGone { orderly: false, standby: None })),
                Heard::Signal if self.told() => return Ok(Turn::Over(Verdict::Told)),
                // Of a VM that was shut down nobody shall run a copy: that takes a swap.
                Heard::VmGone(true) | Heard::Signal | Heard::Successor | Heard::Late => {}
            }
            let qemu = (!self.qemu.has_shut_down()).then_some(&mut *self.qemu);
            heard = self.waiting.hear(qemu, None)?;
        }
    }

    /// Waits until QEMU has answered twice, or the register has changed. What the register holds then.
    fn await_qemu(&mut self, held: Register) -> Result<Turn<Register>> {
        let start = Instant::now();
        let mut answered = false;
        loop {
            match self.qemu.condition() {
                Condition::ShutDown => return Ok(Turn::Go(held)),
                Condition::Gone => {
                    return Ok(Turn::Over(Verdict::VmGone { orderly: false, standby: standby_of(&held) }));
                }
                Condition::Answers if answered => return Ok(Turn::Go(held)),
                condition => answered = matches!(condition, Condition::Answers),
            }
            if !answered {
                self.tell_silence();
                if let Some(standby) = standby_of(&held).filter(|_| start.elapsed() >= SILENT) {
                    return Ok(Turn::Over(Verdict::Silent { standby }));
                }
                match self.read()? {
                    Turn::Go(now) if now == held => {}
                    changed => return Ok(changed),
                }
            }
            let pause = if answered { SETTLE } else { AGAIN };
            match self.waiting.hear(None, Some(Instant::now() + pause))? {
                Heard::Signal if self.told() => return Ok(Turn::Over(Verdict::Told)),
                _ => {}
            }
        }
    }

    fn swap(&mut self, held: &Register) -> Result<Turn<CasOutcome>> {
        let owner = self.brief.register.owner;
        let new = Register { generation: held.generation.next(), owner, mode: Mode::Solo };
        let contested = held.mode != Mode::Solo;
        emit("asking", report::asked(held.generation, &new, contested));
        let mut swap = Swap::default();
        swap.asked(Clock.now());
        let mut heard = self.waiting.ask(Ask::Cas { expect: held.generation, new, contested }, None, None)?;
        loop {
            match heard {
                Heard::Answer(Answer::Cas(outcome)) => {
                    emit("cas", swap.answered(Clock.now(), &outcome));
                    return Ok(Turn::Go(outcome));
                }
                Heard::Signal if self.told() => return Ok(Turn::Over(Verdict::Told)),
                _ => heard = self.waiting.hear(None, None)?,
            }
        }
    }

    fn won(&mut self, register: Register, before: &Register) -> Verdict {
        match (self.qemu.condition(), standby_of(before)) {
            (Condition::ShutDown, _) => Verdict::VmGone { orderly: true, standby: None },
            (Condition::Gone, standby) => {
                standby.into_iter().for_each(|standby| hand_back(&register, standby));
                Verdict::VmGone { orderly: false, standby }
            }
            (Condition::Silent, Some(standby)) => {
                hand_back(&register, standby);
                Verdict::Silent { standby }
            }
            (Condition::Answers | Condition::Silent, _) => Verdict::Ours(register),
        }
    }

    fn tell_silence(&mut self) {
        if self.waiting.notes.is_empty() {
            let why = "QEMU does not answer its control connection: nothing is asked for it, and nothing is killed";
            tracing::error!("{why}");
            emit("qemu-silent", json!({ "why": why }));
            self.waiting.notes.push(why.to_owned());
        }
    }

    /// A signal. The first is refused: nobody knows yet whose the VM is. True for the second.
    fn told(&mut self) -> bool {
        self.signals += 1;
        let why = "the data path died, and the arbiter has not answered yet whose the VM is";
        if self.signals == 1 {
            super::stop::tell_refused(why);
            self.waiting.notes.push(super::stop::note(why));
        }
        self.signals > 1
    }
}

fn standby_of(held: &Register) -> Option<Name> {
    match held.mode {
        Mode::Protected { standby } => Some(standby),
        Mode::Solo => None,
    }
}

/// The VM for which `register` was won is gone, and its gate has not opened since the swap: the standby that held its last commit
/// may still have it. Here the register is given to that standby.
///
/// **Seam.** A register that names another node's unknown instance is the core's to make: until it can, this only says so.
pub(super) fn hand_back(register: &Register, standby: Name) {
    let why = "the VM died before its gate opened here; its standby holds the last commit";
    tracing::error!(%standby, generation = register.generation.0, "{why}");
    emit("hand-back", json!({ "register": register, "standby": standby, "why": why }));
}
