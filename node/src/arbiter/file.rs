//! Small files that must not be lost, replaced as a whole; and one register in one of them ([`Stored`], with its own checksum).
//!
//! Write to a temporary file, fsync, rename, fsync the directory. Until the rename nothing has changed; after it nobody
//! knows until the directory is on the disk. The two kinds of failure are told apart, since only the first has an answer.

use mc_core::{
    id::Name,
    register::Register,
    wire::{
        WireError,
        arbiter::{STORED_LEN, Stored},
    },
};
use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// What a register's file name ends with.
pub const EXTENSION: &str = "reg";
/// What a temporary file's name ends with. One that is found was never renamed: it counts for nothing.
pub const TEMPORARY: &str = "tmp";

/// Why a file could not be replaced.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is as it was.
    #[error("{doing} {}: {source}; the file is as it was", path.display())]
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
    #[error("{}: {len} bytes, a register file has {STORED_LEN}", path.display())]
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
    /// Another VM's.
    #[error("{}: holds the register of {found}, expected that of {vm}", path.display())]
    Stranger {
        /// Which file.
        path: PathBuf,
        /// Whose it should be.
        vm: Name,
        /// Whose it is.
        found: Name,
    },
}

impl LoadError {
    /// Whether the file was read, and is no register.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        !matches!(self, Self::Read { .. })
    }
}

/// Reads `vm`'s register; `None` if there is no file.
pub fn load(path: &Path, vm: Name) -> Result<Option<Register>, LoadError> {
    let mut bytes = Vec::with_capacity(STORED_LEN + 1);
    let read = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.and_then(|f| f.take(STORED_LEN as u64 + 1).read_to_end(&mut bytes)),
    };
    let len = read.map_err(|source| LoadError::Read { path: path.into(), source })?;
    if len != STORED_LEN {
        return Err(LoadError::Length { path: path.into(), len });
    }
    let stored = Stored::decode(&bytes).map_err(|source| LoadError::Wire { path: path.into(), source })?;
    if stored.vm != vm {
        return Err(LoadError::Stranger { path: path.into(), vm, found: stored.vm });
    }
    Ok(Some(stored.register))
}

/// Makes `DIR/STEM.reg` hold `register`, durably.
pub fn store(dir: &Path, stem: &str, vm: Name, register: Register) -> Result<(), StoreError> {
    replace(dir, &format!("{stem}.{EXTENSION}"), &Stored { vm, register }.encode())
}

/// Makes `DIR/NAME` hold `bytes`, durably; mode 0600.
pub fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let path = dir.join(name);
    let temporary = dir.join(format!("{name}.{TEMPORARY}"));
    if let Err((doing, source)) = write_durably(&temporary, bytes) {
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

/// Removes `DIR/STEM.reg`, durably; it is no error if it is not there.
pub fn remove(dir: &Path, stem: &str) -> Result<(), StoreError> {
    let path = dir.join(format!("{stem}.{EXTENSION}"));
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::Unchanged { doing: "removing", path, source })
        }
        _ => sync_dir(dir).map_err(|source| StoreError::Unknown {
            doing: "fsync of directory",
            path: dir.into(),
            source,
        }),
    }
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), (&'static str, io::Error)> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).map_err(|e| ("creating", e))?;
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
        id::{Generation, Node, NodeId},
        register::{Mode, Owner},
    };

    fn sample() -> (Name, Register) {
        let vm = Name::new("web").unwrap();
        let copy = |name, id, instance| {
            let node = Node { name: Name::new(name).unwrap(), id: NodeId([id; 16]) };
            Owner { node, instance }
        };
        let mode = Mode::Protected { standby: copy("b", 2, 9) };
        (vm, Register { generation: Generation(4), owner: copy("a", 1, 3), mode })
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
        assert!(!dir.path().join("web.reg.tmp").exists());
        remove(dir.path(), "web").unwrap();
        remove(dir.path(), "web").unwrap();
        assert_eq!(load(&path, vm).unwrap(), None);
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
        for len in [0, 1, 208, STORED_LEN - 1, STORED_LEN + 1, 5000] {
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
        assert!(error.to_string().contains("/nonexistent/dir/web.reg.tmp"), "{error}");
    }
}
