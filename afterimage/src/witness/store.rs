//! The witness's state directory: a file per VM, a lock, and nothing that is guessed.

use crate::arbiter::file::{self, LoadError, StoreError};
use mc_core::{
    id::{Name, NameError},
    register::Register,
};
use rustix::fs::{FlockOperation, flock};
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
    /// A register file is damaged. Guessing would promote two nodes.
    #[error("refusing to start with a damaged register: {source}")]
    Damaged {
        /// Which, and how.
        source: LoadError,
    },
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
pub(super) struct Store {
    dir: PathBuf,
    _lock: File,
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { doing, path, source }
}

impl Store {
    /// Locks `dir` (made if its parent exists), removes what was never renamed, and reads every register.
    pub(super) fn open(dir: &Path) -> Result<(Self, BTreeMap<Name, Register>), OpenError> {
        make(dir)?;
        let lock = lock(dir)?;
        let registers = recover(dir)?;
        // A predecessor may have died between rename and fsync: no value is told before it is durable.
        file::sync_dir(dir).map_err(failed("fsync of directory", dir))?;
        Ok((Self { dir: dir.to_owned(), _lock: lock }, registers))
    }

    /// Makes `register` durable.
    pub(super) fn persist(&self, vm: Name, register: Register) -> Result<(), StoreError> {
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

fn recover(dir: &Path) -> Result<BTreeMap<Name, Register>, OpenError> {
    let mut registers = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(failed("reading directory", dir))? {
        let path = entry.map_err(failed("reading directory", dir))?.path();
        let extension = path.extension().unwrap_or_default();
        if extension == file::TEMPORARY {
            fs::remove_file(&path).map_err(failed("removing", &path))?;
        } else if extension == file::EXTENSION {
            let vm = name_of(&path)?;
            if let Some(register) = file::load(&path, vm).map_err(|source| OpenError::Damaged { source })? {
                registers.insert(vm, register);
            }
        }
    }
    Ok(registers)
}

fn name_of(path: &Path) -> Result<Name, OpenError> {
    let stem = path.file_stem().and_then(|s| s.to_str());
    stem.ok_or(NameError::Characters)
        .and_then(Name::new)
        .map_err(|source| OpenError::Misnamed { path: path.to_owned(), source })
}
