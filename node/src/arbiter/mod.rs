//! A node's side of the register: asks the arbiter, and keeps asking until it is answered.
//!
//! ```text
//! data path ──ask──> queue ──> worker thread ──> a witness over TCP        (link.rs)
//!     ^                            │         │   └ what this node has seen: compared, and kept (memory.rs)
//!     │                            │         └─> the operator, and a file  (manual.rs)
//!     └── take_answer <── answers <┘  the event descriptor is readable when there is an answer, or the health changed
//! ```
//!
//! Asks are answered in order, each exactly once. A witness is read once a second besides, and that is told like an answer to
//! a question. What cannot be believed ([`mc_core::seen`]) is no answer: it is told once, and asked again. A swap is resent until it is answered; that is safe, since an arbiter whose
//! register holds what is asked for says "won". The data path never waits: it sleeps on the descriptor among its others.

mod backend;
pub mod file;
mod health;
mod link;
mod manual;
mod memory;
#[cfg(feature = "testing")]
mod once;
mod spec;
mod watch;
mod worker;

use backend::Known;
pub use backend::{Attempt, Backend};
pub use health::{Health, Told};
pub use memory::MemoryError;
#[cfg(feature = "testing")]
pub use once::ask_once;
pub use spec::{ArbiterSpec, ArbiterSpecError, HostPort, HostPortError};
pub use watch::{ArbiterWatch, Stance};

use crate::{
    exit::{Code, ExitError},
    wake::Wake,
};
#[cfg(feature = "testing")]
pub use link::{Dial, Exchange};
use mc_core::{
    id::{Name, Node},
    register::{CasOutcome, Register},
    seen::Fault,
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::Arc,
};
use worker::{Shared, Worker};
#[cfg(feature = "testing")]
pub use worker::{Step, Steps};

/// A question to the arbiter.
pub use mc_core::wire::arbiter::Ask;

/// The arbiter's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Ask::Read`].
    Read(Option<Register>),
    /// To [`Ask::Cas`].
    Cas(CasOutcome),
    /// To no question: the arbiter says what cannot be believed. Questions stay open.
    Fault(Fault),
}

impl Answer {
    /// What the register holds, as far as the answer says.
    #[must_use]
    pub fn held(&self) -> Option<Register> {
        match self {
            Self::Read(held) | Self::Cas(CasOutcome::Lost(held)) => *held,
            Self::Cas(CasOutcome::Won(register)) => Some(*register),
            Self::Fault(_) => None,
        }
    }
}

/// Who asks which arbiter about which VM.
#[derive(Clone, Debug)]
pub struct ArbiterConfig {
    /// Which arbiter.
    pub spec: ArbiterSpec,
    /// Which VM.
    pub vm: Name,
    /// This node.
    pub node: Node,
    /// Where `manual` keeps its register.
    pub run_dir: PathBuf,
    /// Where a node keeps what it has seen of a witness's register.
    pub state_dir: PathBuf,
    /// The next witness that answers may be another one than the one known so far.
    pub accept_witness: bool,
}

/// Why the arbiter cannot be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArbiterError {
    /// No thread or event descriptor.
    #[error("arbiter: {doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// What this node has seen is not known, or cannot be kept.
    #[error("arbiter: {0}")]
    Memory(#[from] MemoryError),
    /// Known to whoever embeds this only.
    #[error("arbiter: {name} is not a witness and not manual: whoever embeds it must give its backend")]
    Unknown {
        /// Its name.
        name: String,
    },
    /// No answer in time. A swap may have taken place nevertheless.
    #[cfg(feature = "testing")]
    #[error("arbiter {spec}: no answer in {}: {why}", crate::units::spoken(*timeout))]
    Unanswered {
        /// Which arbiter.
        spec: ArbiterSpec,
        /// How long we waited.
        timeout: std::time::Duration,
        /// What the last try said.
        why: String,
    },
}

/// Asks one VM's register at one arbiter. Dropping it gives up what is not answered yet.
#[derive(Debug)]
pub struct ArbiterClient {
    spec: ArbiterSpec,
    shared: Arc<Shared>,
}

impl ArbiterClient {
    /// Starts the worker thread. A witness is connected to at once, and read once a second while there is nothing else to ask.
    pub fn spawn(config: &ArbiterConfig) -> Result<Self, ArbiterError> {
        let backend: Box<dyn Backend> = match &config.spec {
            ArbiterSpec::Witness(address) => Box::new(link::Link::new(address.clone(), config)?),
            ArbiterSpec::Manual => Box::new(manual::Manual::new(&config.run_dir, config.vm)),
            ArbiterSpec::Other(name) => return Err(ArbiterError::Unknown { name: name.clone() }),
        };
        Self::start(config.spec.clone(), config.vm, backend)
    }

    /// The same, to a witness that is reached by `dial`.
    ///
    /// # Errors
    /// As for [`ArbiterClient::spawn`].
    #[cfg(feature = "testing")]
    pub fn dialling(config: &ArbiterConfig, dial: Box<dyn Dial>) -> Result<Self, ArbiterError> {
        let backend = Box::new(link::Link::dialling(dial, config)?);
        Self::start(config.spec.clone(), config.vm, backend)
    }

    /// The same, with a backend of the embedder's own, which messages call `name`.
    ///
    /// # Errors
    /// No thread, no descriptor.
    // No program calls this: for an embedder that has an arbiter of its own.
    pub fn with_backend(name: &str, vm: Name, backend: Box<dyn Backend>) -> Result<Self, ArbiterError> {
        Self::start(ArbiterSpec::Other(name.to_owned()), vm, backend)
    }

    fn start(spec: ArbiterSpec, vm: Name, backend: Box<dyn Backend>) -> Result<Self, ArbiterError> {
        let system = |doing| move |source| ArbiterError::System { doing, source };
        let wake = Wake::new().map_err(system("making an event descriptor"))?;
        let known = Known::of(&*backend);
        let shared = Arc::new(Shared::new(wake, &spec, &known));
        let worker = Worker::new(Arc::clone(&shared), backend, known, vm);
        #[cfg(feature = "testing")]
        let worker = match crate::outside::world::begin_arbiter(Box::new(Steps::new(worker))) {
            Ok(()) => return Ok(Self { spec, shared }),
            Err(steps) => steps.worker(),
        };
        std::thread::Builder::new()
            .name("arbiter".into())
            .spawn(move || worker.run())
            .map_err(system("starting a thread"))?;
        Ok(Self { spec, shared })
    }

    /// Which arbiter.
    #[must_use]
    pub fn spec(&self) -> &ArbiterSpec {
        &self.spec
    }

    /// Queues a question. One that equals a question still unanswered is joined with it: both get one answer.
    pub fn ask(&self, ask: Ask) {
        self.shared.ask(ask);
    }

    /// The next answer. When there is none, the descriptor becomes unreadable until the next answer or change of health: so
    /// take answers until `None`, then look at [`ArbiterClient::health`].
    #[must_use]
    pub fn take_answer(&self) -> Option<Answer> {
        self.shared.take_answer()
    }

    /// How the arbiter is.
    #[must_use]
    pub fn health(&self) -> Health {
        self.shared.health()
    }

    /// The highest register of the VM that this node has seen, as far as this process knows; `None` with `manual`. Only an operator
    /// may go on from there without the arbiter's word.
    #[must_use]
    pub fn seen(&self) -> Option<Register> {
        self.shared.seen()
    }

    /// The operator has made sure that the other side is stopped, and says that this node goes on. Answers the contested swap
    /// that was asked for; false if there is none, or if there is a witness that can answer: its own word is for `manual`, and
    /// for a witness that has been unreachable, unable or not to be believed for 3 s. Then it is kept as if that witness had
    /// said so, which learns it from this node later.
    pub fn operator_decides(&self) -> bool {
        self.shared.operator_decides()
    }

    /// Whether [`ArbiterClient::operator_decides`] would be heard, were a contested swap asked for now.
    #[must_use]
    pub fn operator_may_decide(&self) -> bool {
        self.shared.operator_may_decide()
    }
}

impl AsFd for ArbiterClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }
}

impl Drop for ArbiterClient {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// An operator accepts whichever witness answers next about this VM, here and in every process of this node that runs. What
/// was seen of its register stays seen.
///
/// # Errors
/// This node has seen nothing of the VM there: whoever came first would have been accepted anyway, and a permission would stay.
pub fn accept_witness(state_dir: &Path, vm: Name) -> anyhow::Result<()> {
    if !memory::is_kept(state_dir, vm) {
        let dir = state_dir.display();
        let what =
            format!("this node has seen nothing of a witness for {vm}: {dir} has no {vm}.seen; nothing was changed");
        let remedy = "--state-dir is where `protect` and `standby` keep their journal, and what they have seen of the witness \
                      (/var/lib/afterimage, if they were not told otherwise): name the one of this VM; and --vm as they name it";
        return Err(ExitError::new(Code::Prerequisite, what).remedy(remedy).into());
    }
    Ok(memory::Memory::open(state_dir, vm, false)?.accept_any_witness()?)
}
