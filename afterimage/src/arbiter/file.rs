//! One register in one file: the wire message "holds", 208 bytes with its own checksum, replaced as a whole.
//!
//! Write to a temporary file, fsync, rename, fsync the directory. Until the rename nothing has changed; after it nobody
//! knows until the directory is on the disk. The two kinds of failure are told apart, since only the first has an answer.

use mc_core::{
    id::Name,
    register::Register,
    wire::{
        WireError,
        arbiter::{Body, LEN, Message},
    },
};
use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

/// What a register's file name ends with.
pub const EXTENSION: &str = "reg";
/// What a temporary file's name ends with. One that is found was never renamed: it counts for nothing.
pub const TEMPORARY: &str = "tmp";

/// Why a register could not be stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is as it was.
    #[error("{doing} {}: {source}; the register is unchanged", path.display())]
    Unchanged {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The new value is in place, or not, and may vanish in a crash, or not.
    #[error("{doing} {}: {source}; what the disk holds is unknown until it is read again", path.display())]
    Unknown {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Why a register file is none.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Not exactly one record.
    #[error("{}: {len} bytes, a register file has {LEN}", path.display())]
    Length {
        /// Which file.
        path: PathBuf,
        /// Bytes found, counted up to one more than there should be.
        len: usize,
    },
    /// Damaged.
    #[error("{}: {source}", path.display())]
    Wire {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: WireError,
    },
    /// Another record, or another VM's.
    #[error("{}: holds {found}, expected the register of {vm}", path.display())]
    Stranger {
        /// Which file.
        path: PathBuf,
        /// Whose it should be.
        vm: Name,
        /// What it is.
        found: String,
    },
}

/// Reads `vm`'s register; `None` if there is no file.
pub fn load(path: &Path, vm: Name) -> Result<Option<Register>, LoadError> {
    let mut bytes = Vec::with_capacity(LEN + 1);
    let read = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.and_then(|f| f.take(LEN as u64 + 1).read_to_end(&mut bytes)),
    };
    let len = read.map_err(|source| LoadError::Read { path: path.into(), source })?;
    if len != LEN {
        return Err(LoadError::Length { path: path.into(), len });
    }
    let message = Message::decode(&bytes).map_err(|source| LoadError::Wire { path: path.into(), source })?;
    match message {
        Message { vm: found, body: Body::Holds(Some(register)), .. } if found == vm => Ok(Some(register)),
        other => Err(LoadError::Stranger { path: path.into(), vm, found: format!("{:?} of {}", other.body, other.vm) }),
    }
}

/// Makes `DIR/STEM.reg` hold `register`, durably.
pub fn store(dir: &Path, stem: &str, vm: Name, register: Register) -> Result<(), StoreError> {
    let path = dir.join(format!("{stem}.{EXTENSION}"));
    let temporary = dir.join(format!("{stem}.{TEMPORARY}"));
    let bytes = Message { id: 0, vm, body: Body::Holds(Some(register)) }.encode();
    if let Err((doing, source)) = write_durably(&temporary, &bytes) {
        // Best effort: the next write truncates it, and a restart removes it.
        let _ = std::fs::remove_file(&temporary);
        return Err(StoreError::Unchanged { doing, path: temporary, source });
    }
    if let Err(source) = std::fs::rename(&temporary, &path) {
        // rename(2) changes nothing when it fails, unless the disk itself gave up half-way.
        if source.raw_os_error() == Some(libc::EIO) {
            return Err(StoreError::Unknown { doing: "renaming to", path, source });
        }
        let _ = std::fs::remove_file(&temporary);
        return Err(StoreError::Unchanged { doing: "renaming to", path, source });
    }
    sync_dir(dir).map_err(|source| StoreError::Unknown { doing: "fsync of directory", path: dir.into(), source })
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), (&'static str, io::Error)> {
    let mut file = File::create(path).map_err(|e| ("creating", e))?;
    file.write_all(bytes).map_err(|e| ("writing", e))?;
    file.sync_all().map_err(|e| ("fsync of", e))
}

/// Makes the names in `dir` durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::{
        id::Generation,
        register::{Mode, Owner},
    };

    fn sample() -> (Name, Register) {
        let vm = Name::new("web").unwrap();
        let owner = Owner { node: Name::new("a").unwrap(), instance: 3 };
        (vm, Register { generation: Generation(4), owner, mode: Mode::Protected { standby: Name::new("b").unwrap() } })
    }

    #[test]
    fn what_is_stored_is_loaded_and_the_old_value_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (vm, register) = sample();
        let path = dir.path().join("web.reg");
        assert_eq!(load(&path, vm).unwrap(), None);
        store(dir.path(), "web", vm, register).unwrap();
        let next = Register { generation: Generation(5), mode: Mode::Solo, ..register };
        store(dir.path(), "web", vm, next).unwrap();
        assert_eq!(load(&path, vm).unwrap(), Some(next));
        assert!(!dir.path().join("web.tmp").exists());
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (vm, register) = sample();
        store(dir.path(), "web", vm, register).unwrap();
        let path = dir.path().join("web.reg");
        let good = std::fs::read(&path).unwrap();
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 0x10;
            std::fs::write(&path, &bad).unwrap();
            let error = load(&path, vm).unwrap_err().to_string();
            assert!(error.contains("web.reg"), "byte {i}: {error}");
        }
        for len in [0, 1, LEN - 1, LEN + 1, 5000] {
            std::fs::write(&path, vec![0; len]).unwrap();
            assert!(matches!(load(&path, vm), Err(LoadError::Length { .. })), "{len}");
        }
        std::fs::write(&path, &good).unwrap();
        let other = Name::new("db").unwrap();
        assert!(matches!(load(&path, other), Err(LoadError::Stranger { .. })), "a file copied to another VM's name");
    }

    #[test]
    fn without_its_directory_nothing_changes_and_the_error_names_it() {
        let (vm, register) = sample();
        let error = store(Path::new("/nonexistent/dir"), "web", vm, register).unwrap_err();
        assert!(matches!(error, StoreError::Unchanged { .. }));
        assert!(error.to_string().contains("/nonexistent/dir/web.tmp"), "{error}");
    }
}
