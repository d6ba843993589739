//! What this node has seen of a VM's register ([`Seen`]), on disk: `STATE_DIR/VM.seen`, a line of JSON and a checksum.
//!
//! All processes of a node and a VM share it (supervisor, data path, standby: each has a client of its own), and each reads it
//! again, under a lock, before it compares an answer with it. Nothing of an answer is acted on before it is stored here.
//!
//! It holds the witness process (*boot*) that this node talks to, too. That closes a gap: what a node has seen counts with a
//! witness that was restarted as all that there is, so no answer of the witness before it may be acted on any more once that
//! was told. An answer may be waiting in the socket of another process of this node. So whoever first hears of another boot
//! writes it down before it tells anything, and an answer of any other boot is dropped, unless its connection was opened
//! when what is written down was the same as it is now: then this one is the newer.

use super::file::{self, StoreError};
use crate::events::{Event, WitnessAccepted, emit};
use mc_core::{
    id::Name,
    register::{CasOutcome, Register, generation_of},
    seen::{Heard, Seen},
    wire::arbiter::Answer,
};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Bytes of a file at most.
const LONGEST: u64 = 4096;

/// Why this node does not know what it has seen, or cannot keep it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The operating system says no.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{}: damaged ({why}); this node no longer knows what it had seen of the VM's register", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How.
        why: String,
    },
    /// It cannot be replaced.
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// What is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    #[serde(flatten)]
    pub(super) seen: Seen,
    /// The process of the witness that this node tells what it has seen; 0 before the first.
    pub(super) boot: u64,
}

impl Remembered {
    /// Takes an answer. `opened`: the boot that was written down when its connection was opened, if this is the first answer on
    /// it. `accept`: it may be another witness's. `None`: it comes from a process of the witness that was left behind.
    fn hear(&mut self, answer: &Answer, opened: Option<u64>, accept: bool) -> Option<Heard> {
        if self.boot != answer.boot && opened != Some(self.boot) {
            return None;
        }
        if accept && self.is_foreign(answer) {
            self.seen.accept_any_witness();
        }
        let heard = self.seen.hear(answer.witness, answer.held);
        if !self.is_foreign(answer) {
            self.boot = answer.boot;
        }
        Some(heard)
    }

    fn is_foreign(&self, answer: &Answer) -> bool {
        self.seen.witness.is_some_and(|known| known != answer.witness)
    }

    /// An operator has decided that this node goes on, and the arbiter cannot say so: as if it had.
    fn overrule(&mut self, new: Register) -> CasOutcome {
        match self.seen.register {
            Some(seen) if seen != new && seen.generation >= new.generation => CasOutcome::Lost(Some(seen)),
            _ => {
                self.seen.register = Some(new);
                CasOutcome::Won(new)
            }
        }
    }
}

fn file_of(dir: &Path, vm: Name) -> PathBuf {
    dir.join(format!("{vm}.seen"))
}

/// Whether there is a VM's file. Nothing is made.
pub(super) fn is_kept(dir: &Path, vm: Name) -> bool {
    file_of(dir, vm).exists()
}

/// One VM's file.
#[derive(Debug)]
pub(super) struct Memory {
    dir: PathBuf,
    vm: Name,
    /// What this process knows: a file that vanishes, or goes back, under a running process takes nothing from it.
    latest: Remembered,
    /// An operator lets the next witness be another one.
    accept: bool,
}

impl Memory {
    /// Reads what was seen; makes the directory if need be.
    pub(super) fn open(dir: &Path, vm: Name, accept: bool) -> Result<Self, MemoryError> {
        fs::create_dir_all(dir).map_err(io("creating directory", dir))?;
        let mut memory = Self { dir: dir.to_owned(), vm, latest: Remembered::default(), accept };
        memory.read()?;
        Ok(memory)
    }

    /// As it is now: another process of this node may have seen more.
    pub(super) fn read(&mut self) -> Result<Remembered, MemoryError> {
        self.update(|now| *now)
    }

    /// What was known last, without looking.
    pub(super) fn latest(&self) -> Remembered {
        self.latest
    }

    /// See [`Remembered::hear`].
    pub(super) fn hear(&mut self, answer: &Answer, opened: Option<u64>) -> Result<Option<Heard>, MemoryError> {
        let accept = self.accept;
        let (was_foreign, heard) = self.update(|now| (now.is_foreign(answer), now.hear(answer, opened, accept)))?;
        if accept && was_foreign && heard.is_some() {
            tracing::warn!(vm = %self.vm, witness = %answer.witness, "accepted a new witness, as --accept-witness \
                 asked");
            emit(Event::WitnessAccepted(WitnessAccepted { vm: self.vm, witness: answer.witness }));
        }
        self.accept &= heard.is_none();
        Ok(heard)
    }

    /// See [`Remembered::overrule`].
    pub(super) fn overrule(&mut self, new: Register) -> Result<CasOutcome, MemoryError> {
        self.update(|now| now.overrule(new))
    }

    /// An operator accepts whichever witness answers next.
    pub(super) fn accept_any_witness(&mut self) -> Result<(), MemoryError> {
        self.update(|now| {
            now.seen.accept_any_witness();
            now.boot = 0;
        })
    }

    fn update<T>(&mut self, change: impl FnOnce(&mut Remembered) -> T) -> Result<T, MemoryError> {
        let _locked = self.lock()?;
        let stored = self.load()?;
        let mut now = stored.unwrap_or(self.latest);
        if generation_of(now.seen.register.as_ref()) < generation_of(self.latest.seen.register.as_ref()) {
            now.seen.register = self.latest.seen.register;
        }
        let result = change(&mut now);
        if stored.unwrap_or_default() != now {
            let line = serde_json::to_string(&now).map_err(|e| self.damaged(e.to_string()))?;
            let text = format!("{line}\n{}\n", checksum(&line));
            file::replace(&self.dir, &format!("{}.seen", self.vm), text.as_bytes())?;
        }
        self.latest = now;
        Ok(result)
    }

    fn path(&self) -> PathBuf {
        file_of(&self.dir, self.vm)
    }

    fn damaged(&self, why: impl Into<String>) -> MemoryError {
        MemoryError::Damaged { path: self.path(), why: why.into() }
    }

    /// Held by the file that is returned. Whoever has it is about to write a few bytes.
    fn lock(&self) -> Result<File, MemoryError> {
        let path = self.dir.join(format!("{}.seen.lock", self.vm));
        let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(io("opening", &path))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|e| io("locking", &path)(e.into()))?;
        Ok(file)
    }

    fn load(&self) -> Result<Option<Remembered>, MemoryError> {
        let path = self.path();
        let mut text = String::new();
        let read = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.and_then(|file| file.take(LONGEST).read_to_string(&mut text)),
        };
        match read {
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(self.damaged("not text")),
            read => read.map_err(io("reading", &path))?,
        };
        let (line, sum) = text.split_once('\n').ok_or_else(|| self.damaged("cut off"))?;
        if sum.trim_end() != checksum(line) {
            return Err(self.damaged("its checksum is another one"));
        }
        serde_json::from_str(line).map(Some).map_err(|e| self.damaged(e.to_string()))
    }
}

/// Against damage, not against anybody.
fn checksum(line: &str) -> String {
    blake3::hash(line.as_bytes()).to_hex()[..16].to_owned()
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MemoryError {
    let path = path.to_owned();
    move |source| MemoryError::Io { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::{
        id::{Generation, Node, NodeId, WitnessId},
        register::{Mode, Owner},
        seen::Fault,
        wire::arbiter::{Outcome, Standing},
    };

    fn vm() -> Name {
        Name::new("vm").unwrap()
    }

    fn register(generation: u64) -> Register {
        let node = Node { name: Name::new("a").unwrap(), id: NodeId([1; 16]) };
        Register { generation: Generation(generation), owner: Owner { node, instance: 7 }, mode: Mode::Solo }
    }

    fn answer(witness: u8, boot: u64, held: Option<Register>) -> Answer {
        let (outcome, standing) = (Outcome::Holds, Standing::Settled);
        Answer {
            id: 1,
            vm: vm(),
            witness: WitnessId([witness; 16]),
            boot,
            probe_age_ms: Some(1),
            standing,
            outcome,
            held,
        }
    }

    #[test]
    fn what_one_process_saw_the_others_know() {
        let dir = tempfile::tempdir().unwrap();
        let mut one = Memory::open(dir.path(), vm(), false).unwrap();
        let mut two = Memory::open(dir.path(), vm(), false).unwrap();
        assert_eq!(one.hear(&answer(1, 5, Some(register(3))), Some(0)).unwrap(), Some(Heard::News));
        assert_eq!(two.read().unwrap().seen.register, Some(register(3)));
        let behind = Fault::Behind { seen: register(3), held: None };
        assert_eq!(two.hear(&answer(1, 5, None), Some(0)).unwrap(), Some(Heard::Fault(behind)));
        let again = Memory::open(dir.path(), vm(), false).unwrap();
        assert_eq!(again.latest(), one.latest());
    }

    #[test]
    fn an_answer_of_a_witness_process_that_was_left_behind_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let mut one = Memory::open(dir.path(), vm(), false).unwrap();
        let mut two = Memory::open(dir.path(), vm(), false).unwrap();
        two.hear(&answer(1, 5, Some(register(3))), Some(0)).unwrap();
        // The witness goes back, and is restarted; `one` meets it first, while `two` has not read "won 4" yet.
        assert_eq!(one.hear(&answer(1, 6, Some(register(3))), Some(5)).unwrap(), Some(Heard::Same));
        assert_eq!(two.hear(&answer(1, 5, Some(register(4))), None).unwrap(), None);
        assert_eq!(two.hear(&answer(1, 5, Some(register(4))), Some(0)).unwrap(), None, "opened long ago");
        assert_eq!(two.read().unwrap(), one.read().unwrap());
        assert_eq!(two.hear(&answer(1, 6, Some(register(4))), Some(6)).unwrap(), Some(Heard::News));
    }

    #[test]
    fn another_witness_is_accepted_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = Memory::open(dir.path(), vm(), false).unwrap();
        memory.hear(&answer(1, 5, Some(register(3))), Some(0)).unwrap();
        let foreign = |heard: Option<Heard>| matches!(heard, Some(Heard::Fault(Fault::Foreign { .. })));
        assert!(foreign(memory.hear(&answer(2, 8, None), Some(5)).unwrap()));
        assert_eq!(memory.latest().boot, 5, "nothing that is told there counts");
        let mut accepting = Memory::open(dir.path(), vm(), true).unwrap();
        let heard = accepting.hear(&answer(2, 8, None), Some(5)).unwrap();
        assert!(
            matches!(heard, Some(Heard::Fault(Fault::Behind { .. }))),
            "accepted, and told what it lacks: {heard:?}"
        );
        assert_eq!(memory.read().unwrap().boot, 8);
        assert!(foreign(accepting.hear(&answer(3, 9, None), Some(8)).unwrap()), "once");
        memory.accept_any_witness().unwrap();
        assert_eq!(accepting.hear(&answer(3, 9, Some(register(4))), Some(0)).unwrap(), Some(Heard::News));
    }

    #[test]
    fn an_operators_word_is_kept_and_does_not_undo_what_was_seen() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = Memory::open(dir.path(), vm(), false).unwrap();
        memory.hear(&answer(1, 5, Some(register(3))), Some(0)).unwrap();
        assert_eq!(memory.overrule(register(4)).unwrap(), CasOutcome::Won(register(4)));
        assert_eq!(memory.overrule(register(4)).unwrap(), CasOutcome::Won(register(4)));
        let other = Register { mode: Mode::Protected { standby: register(4).owner }, ..register(4) };
        assert_eq!(memory.overrule(other).unwrap(), CasOutcome::Lost(Some(register(4))));
        assert_eq!(Memory::open(dir.path(), vm(), false).unwrap().latest().seen.register, Some(register(4)));
    }

    #[test]
    fn a_file_that_goes_back_under_a_running_process_takes_nothing_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = Memory::open(dir.path(), vm(), false).unwrap();
        memory.hear(&answer(1, 5, Some(register(3))), Some(0)).unwrap();
        let old = fs::read(memory.path()).unwrap();
        memory.hear(&answer(1, 5, Some(register(4))), None).unwrap();
        fs::write(memory.path(), old).unwrap();
        assert_eq!(memory.read().unwrap().seen.register, Some(register(4)));
        fs::remove_file(memory.path()).unwrap();
        assert_eq!(memory.read().unwrap().seen.register, Some(register(4)));
        assert_eq!(Memory::open(dir.path(), vm(), false).unwrap().latest().seen.register, Some(register(4)));
    }

    #[test]
    fn every_damaged_byte_is_noticed_and_nothing_is_taken_for_never_seen() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = Memory::open(dir.path(), vm(), false).unwrap();
        memory.hear(&answer(1, 5, Some(register(3))), Some(0)).unwrap();
        let good = fs::read(memory.path()).unwrap();
        for i in 0..good.len() - 1 {
            let mut bad = good.clone();
            bad[i] ^= 0x81;
            fs::write(memory.path(), &bad).unwrap();
            let error = Memory::open(dir.path(), vm(), false).unwrap_err().to_string();
            assert!(error.contains("vm.seen: damaged"), "byte {i}: {error}");
        }
        fs::write(memory.path(), b"").unwrap();
        assert!(Memory::open(dir.path(), vm(), false).is_err());
    }
}
