//! The witness's state directory: its identity, a file per VM, a lock, and nothing that is guessed.
//!
//! A register file that is damaged is not vacant: its VM is *lost* ([`mc_core::arbiter::Arbiter::recover`]): no swap of it is
//! tried, whoever asks, until the nodes that the VM was last given to have told what they have seen, or an operator assigns
//! or forgets it. That is no less safe than not to start at all: what is refused is the same. It is what the nodes' word is for,
//! and the other VMs of the witness keep their failover. The file stays where it is, so that a restart finds it as damaged as
//! before, until what was mended replaces it.

use mc_core::{
    id::{Name, NameError, WitnessId},
    register::Register,
};
use node::arbiter::file::{self, LoadError, StoreError};
use rustix::{
    fs::{FlockOperation, flock},
    rand::{GetRandomFlags, getrandom},
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another witness runs on it.
    #[error("{} is in use by another witness", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// A register file cannot be read at all.
    #[error("{0}")]
    Unreadable(#[from] LoadError),
    /// What should be the witness's identity is none.
    #[error("{}: damaged: it holds no identity", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
    },
    /// The identity cannot be stored.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// A file ends in `.reg`, but its name is no VM's.
    #[error("{}: ends in .reg, but {source}", path.display())]
    Misnamed {
        /// The file.
        path: PathBuf,
        /// Why.
        source: NameError,
    },
    /// The directory cannot be made, read or written.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// An open state directory, locked while this lives.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    pub(crate) identity: WitnessId,
    _lock: File,
}

/// What was in it.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) registers: BTreeMap<Name, Register>,
    /// Those that are damaged.
    pub(crate) lost: BTreeMap<Name, LoadError>,
}

const IDENTITY: &str = "identity";
const PROBE: &str = "probe";

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { doing, path, source }
}

impl Store {
    /// Locks `dir` (made if its parent exists), removes what was never renamed, and reads every register.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Found), OpenError> {
        make(dir)?;
        let lock = lock(dir)?;
        let found = recover(dir)?;
        let identity = identity(dir)?;
        // A predecessor may have died between rename and fsync: no value is told before it is durable.
        file::sync_dir(dir).map_err(failed("fsync of directory", dir))?;
        Ok((Self { dir: dir.to_owned(), identity, _lock: lock }, found))
    }

    /// Writes as a swap would, and sees that the directory is still the one that was opened.
    pub(crate) fn probe(&self) -> Result<(), String> {
        match read_identity(&self.dir) {
            Ok(Some(identity)) if identity == self.identity => {}
            Ok(_) => return Err(format!("{} is not the directory of this witness any more", self.dir.display())),
            Err(e) => return Err(e.to_string()),
        }
        file::replace(&self.dir, PROBE, format!("{}\n", self.identity).as_bytes()).map_err(|e| e.to_string())
    }

    /// Removes the register of `vm`, durably.
    pub(crate) fn remove(&self, vm: Name) -> Result<(), StoreError> {
        file::remove(&self.dir, vm.as_str())
    }

    /// Makes `register` durable.
    pub(crate) fn persist(&self, vm: Name, register: Register) -> Result<(), StoreError> {
        file::store(&self.dir, vm.as_str(), vm, register)
    }
}

/// Makes the directory, durably: were it lost in a crash, so would be every register in it.
fn make(dir: &Path) -> Result<(), OpenError> {
    match fs::create_dir(dir) {
        Ok(()) => {
            let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            file::sync_dir(parent).map_err(failed("fsync of directory", parent))
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(failed("creating directory", dir)(e)),
    }
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let file = File::create(&path).map_err(failed("creating", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Locked { dir: dir.to_owned() }),
        Err(e) => Err(failed("locking", &path)(e.into())),
    }
}

/// The identity that is kept; made if there is none.
fn identity(dir: &Path) -> Result<WitnessId, OpenError> {
    if let Some(kept) = read_identity(dir)? {
        return Ok(kept);
    }
    let mut bytes = [0; 16];
    getrandom(&mut bytes, GetRandomFlags::empty()).map_err(|e| failed("drawing an identity for", dir)(e.into()))?;
    let identity = WitnessId(bytes);
    file::replace(dir, IDENTITY, format!("{identity}\n").as_bytes())?;
    tracing::info!("a new witness: {identity}, kept in {}", dir.join(IDENTITY).display());
    Ok(identity)
}

fn read_identity(dir: &Path) -> Result<Option<WitnessId>, OpenError> {
    let path = dir.join(IDENTITY);
    match fs::read(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("reading", &path)(e)),
        Ok(bytes) => {
            let text = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok());
            text.map(Some).ok_or(OpenError::Identity { path })
        }
    }
}

fn recover(dir: &Path) -> Result<Found, OpenError> {
    let mut found = Found::default();
    for entry in fs::read_dir(dir).map_err(failed("reading directory", dir))? {
        let path = entry.map_err(failed("reading directory", dir))?.path();
        let extension = path.extension().unwrap_or_default();
        if extension == file::TEMPORARY {
            fs::remove_file(&path).map_err(failed("removing", &path))?;
        } else if extension == file::EXTENSION {
            let vm = name_of(&path)?;
            match file::load(&path, vm) {
                Ok(register) => found.registers.extend(register.map(|register| (vm, register))),
                Err(damage) if damage.is_damage() => drop(found.lost.insert(vm, damage)),
                Err(unreadable) => return Err(unreadable.into()),
            }
        }
    }
    Ok(found)
}

fn name_of(path: &Path) -> Result<Name, OpenError> {
    let stem = path.file_stem().and_then(|s| s.to_str());
    stem.ok_or(NameError::Characters)
        .and_then(Name::new)
        .map_err(|source| OpenError::Misnamed { path: path.to_owned(), source })
}
