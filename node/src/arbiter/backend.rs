//! What an embedder's arbiter implements, and how much of what it says is believed.

use super::{Answer, Ask, Told};
use crate::{exit::panic_words, outside};
use mc_core::{
    id::WitnessId,
    register::{CasOutcome, Register},
    seen::Fault,
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

/// A way to reach the arbiter: whoever keeps registers elsewhere than in a witness implements this.
///
/// It is called by the client's own thread, which tries again until it is answered. It must be linearizable (a swap that was told as
/// won was won by nobody else), idempotent (a register that holds what is asked for is a swap won), and durable (what it told is so after
/// a crash). What a node has seen of a register must outlive the node's process, too: an answer that is less than what was seen is
/// [`Attempt::Fault`] ([`mc_core::seen::Seen`] compares them).
///
/// An answer of another kind than the question, and a swap won with another register than was asked for, are faults as well: the
/// client sees to that itself. A backend that panics is told as an arbiter that cannot be reached, with the panic's words, and asked
/// again.
///
/// ```
/// use mc_core::{id::WitnessId, register::{CasOutcome, Register, generation_of}, seen::{Heard, Seen}};
/// use node::arbiter::{Answer, ArbiterClient, Ask, Attempt, Backend};
/// use std::{fs, path::PathBuf, sync::{Arc, Mutex}};
///
/// /// A register that both sides reach as memory; a real one is a row of a database, or a key of etcd. And what this node has seen of
/// /// it: nobody but the backend keeps that.
/// struct Shared { held: Arc<Mutex<Option<Register>>>, seen: Seen, file: PathBuf }
///
/// impl Backend for Shared {
///     fn attempt(&mut self, ask: &Ask, _: bool) -> Attempt {
///         let mut held = self.held.lock().unwrap();
///         let answer = match ask {
///             Ask::Read => Answer::Read(*held),
///             Ask::Cas(swap) if generation_of(held.as_ref()) == swap.expect || *held == Some(swap.new) => {
///                 *held = Some(swap.new);
///                 Answer::Cas(CasOutcome::Won(swap.new))
///             }
///             Ask::Cas(_) => Answer::Cas(CasOutcome::Lost(*held)),
///         };
///         let mut seen = self.seen;
///         match seen.hear(WitnessId::NONE, answer.held()) {
///             Heard::Same => {}
///             Heard::Fault(fault) => return Attempt::Fault(fault), // it forgot, or a backup was put back
///             Heard::News => { // a real one writes another file, syncs it, and renames it
///                 let kept = fs::write(&self.file, serde_json::to_string(&seen).unwrap());
///                 if let Err(error) = kept { return Attempt::NotKept(error.to_string()) }
///                 self.seen = seen;
///             }
///         }
///         Attempt::Answer(answer)
///     }
///     fn seen(&self) -> Option<Register> {
///         self.seen.register
///     }
/// }
///
/// # let dir = tempfile::tempdir()?;
/// let file = dir.path().join("web.seen"); // in this node's state directory
/// let seen = if file.exists() { serde_json::from_slice(&fs::read(&file)?)? } else { Seen::default() }; // damaged: an error, not nothing seen
/// let backend = Shared { held: Arc::default(), seen, file };
/// let client = ArbiterClient::with_backend("shared", "web".parse()?, Box::new(backend))?;
/// client.ask(Ask::Read); // the answer comes to `take_answer`, once the client's descriptor is readable
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Backend: Send {
    /// Tries once, for a second or so at most. `decided`: the operator says that a contested swap is won.
    fn attempt(&mut self, ask: &Ask, decided: bool) -> Attempt;

    /// How often to read while nothing is asked, to know whether it could be; `None` for never.
    fn check_every(&self) -> Option<Duration> {
        Some(Duration::from_secs(1))
    }

    /// The witness that this node knows; none if it asks no witness.
    fn witness(&self) -> WitnessId {
        WitnessId::NONE
    }

    /// The highest register that this node is known to have seen; `manual` keeps none.
    fn seen(&self) -> Option<Register> {
        None
    }

    /// What the last answer said of the witness.
    fn told(&self) -> Option<Told> {
        None
    }
}

/// How a try ended.
#[derive(Debug)]
pub enum Attempt {
    /// Answered.
    Answer(Answer),
    /// By the operator, since the arbiter cannot answer.
    Decided(Answer),
    /// Answered, with what cannot be believed. Try again.
    Fault(Fault),
    /// Reached, but it could not answer. Try again.
    Refused(String),
    /// This node cannot keep what it hears, and acts on nothing that it could not keep. Try again.
    NotKept(String),
    /// Not reached. Try again.
    Unreachable(String),
    /// Nobody but the operator can answer.
    Operator(String),
}

impl Attempt {
    /// As it may be acted on: what does not answer `ask` cannot be believed, whoever says it.
    fn checked(self, ask: &Ask) -> Self {
        let (Self::Answer(answer) | Self::Decided(answer)) = &self else { return self };
        match (ask, answer) {
            (Ask::Read, Answer::Read(_)) | (Ask::Cas(_), Answer::Cas(CasOutcome::Lost(_))) => self,
            (Ask::Cas(swap), Answer::Cas(CasOutcome::Won(won))) if *won == swap.new => self,
            (Ask::Cas(swap), Answer::Cas(CasOutcome::Won(won))) => {
                Self::Fault(Fault::WonAnother { asked: swap.new, won: *won })
            }
            (_, Answer::Fault(fault)) => Self::Fault(*fault),
            (Ask::Read, Answer::Cas(_)) | (Ask::Cas(_), Answer::Read(_)) => Self::Fault(Fault::OtherQuestion),
        }
    }
}

/// What a backend says beside its answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) witness: WitnessId,
    pub(super) told: Option<Told>,
    pub(super) seen: Option<Register>,
    /// See [`Backend::check_every`].
    pub(super) check_every: Option<Duration>,
}

impl Known {
    pub(super) fn of(backend: &dyn Backend) -> Self {
        Self {
            witness: backend.witness(),
            told: backend.told(),
            seen: backend.seen(),
            check_every: backend.check_every(),
        }
    }

    pub(super) fn next_check(&self) -> Option<Instant> {
        outside::instant().checked_add(self.check_every?)
    }
}

/// Tries once. A backend that panics is to be asked again; what it said before counts until then.
pub(super) fn attempt(
    backend: &mut dyn Backend,
    known: &mut Known,
    ask: &Ask,
    decided: bool,
) -> Result<Attempt, String> {
    let tried = catch_unwind(AssertUnwindSafe(|| (backend.attempt(ask, decided), Known::of(backend))));
    let (attempt, now) = tried.map_err(|panic| format!("its backend panicked: {}", panic_words(&*panic)))?;
    *known = now;
    Ok(attempt.checked(ask))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::{
        id::{Generation, Node, NodeId},
        register::{Mode, Owner, Swap},
    };

    fn register(generation: u64, name: &str) -> Register {
        let node = Node { name: name.parse().unwrap(), id: NodeId([name.as_bytes()[0]; 16]) };
        Register { generation: Generation(generation), owner: Owner { node, instance: 1 }, mode: Mode::Solo }
    }

    #[test]
    fn an_answer_to_another_question_is_a_fault() {
        let swap = Swap::new(Generation(0), register(1, "a").owner, Mode::Solo);
        let (read, cas, evil) = (Ask::Read, Ask::Cas(swap), register(99, "evil"));
        let won = |register| Answer::Cas(CasOutcome::Won(register));
        let lost = Answer::Cas(CasOutcome::Lost(Some(evil)));
        let another = Fault::WonAnother { asked: swap.new, won: evil };
        let told = Fault::Behind { seen: evil, held: None };
        for (ask, answer, fault) in [
            (read, Answer::Read(Some(evil)), None),
            (cas, won(swap.new), None),
            (cas, lost, None),
            (read, won(evil), Some(Fault::OtherQuestion)),
            (read, lost, Some(Fault::OtherQuestion)),
            (cas, Answer::Read(Some(swap.new)), Some(Fault::OtherQuestion)),
            (cas, won(evil), Some(another)),
            (cas, Answer::Fault(told), Some(told)),
        ] {
            for attempt in [Attempt::Answer(answer), Attempt::Decided(answer)] {
                let found = match attempt.checked(&ask) {
                    Attempt::Fault(fault) => Some(fault),
                    Attempt::Answer(_) | Attempt::Decided(_) => None,
                    other => panic!("{other:?}"),
                };
                assert_eq!(found, fault, "{ask:?} {answer:?}");
            }
        }
    }
}
