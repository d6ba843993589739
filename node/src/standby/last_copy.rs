//! Which copy of the VM this node had last: `STATE_DIR/VM.copy`, a line of JSON. It outlives what it speaks of.
//!
//! A session's copy is written down, durably, before the primary is told its instance, and so before any register can name it. The
//! file is locked by the one process of this node that stands by for the VM. So whoever has the lock knows that no process has the
//! copy which is written there; and a copy whose process is gone is no more, unless it was kept as files (docs/adr/0012).
//!
//! | | is the copy no more? |
//! |---|---|
//! | its process ended, and kept nothing | yes |
//! | kept as files, in memory, before the last boot | yes |
//! | kept as files | nobody knows: they may lie on a disk that is not mounted yet |
//! | written in another file than this one: a backup, a copy of the directory | nobody knows |

use crate::{
    exit::{Code, ExitError},
    files,
    identity::boot_id,
};
use anyhow::{Context, Result};
use mc_core::id::Name;
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

/// Bytes of a file at most.
const LONGEST: u64 = 8192;

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    /// Of the file itself. A freed number is given out again at once: the birth time tells such files apart.
    inode: u64,
    /// Nanoseconds after 1970; without one nothing is proven.
    #[serde(default)]
    born: Option<u128>,
    /// Of the copy: see [`mc_core::register::Owner::instance`].
    instance: u64,
    kept: Option<Kept>,
}

/// Files that may hold the copy when its process has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    ram: PathBuf,
    /// They end with the boot.
    in_memory: bool,
    boot: String,
}

/// See the module. Dropping it gives the place up.
#[derive(Debug)]
pub struct LastCopy {
    path: PathBuf,
    file: File,
    written: Option<Written>,
}

impl LastCopy {
    /// Takes the place.
    ///
    /// # Errors
    /// Exit code 6 while another standby has it; the file cannot be read or made.
    pub fn open(state_dir: &Path, vm: Name) -> Result<Self> {
        std::fs::create_dir_all(state_dir).with_context(|| format!("state directory {}", state_dir.display()))?;
        let path = state_dir.join(format!("{vm}.copy"));
        let opened = files::open_locked(&path).with_context(|| path.display().to_string())?;
        let Some(file) = opened else {
            let what = format!("another standby of {vm} uses {}", state_dir.display());
            let remedy = "a node can have one standby per VM: stop the other one, or, if it is another VM, use \
                 another --vm";
            return Err(ExitError::new(Code::Prerequisite, what).remedy(remedy).into());
        };
        let mut text = String::new();
        (&file).take(LONGEST).read_to_string(&mut text).with_context(|| path.display().to_string())?;
        let written = serde_json::from_str(&text).ok(); // a write that was cut short spoke of a copy that no register named
        Ok(Self { path, file, written })
    }

    /// The instance of the copy that this node had last, if it is certain that it is no more.
    ///
    /// # Errors
    /// Nothing is known of the file, or of this boot.
    pub fn gone(&self) -> Result<Option<u64>> {
        let Some(written) = &self.written else { return Ok(None) };
        let itself = (written.inode, written.born) == self.itself()? && written.born.is_some();
        let is_gone = match &written.kept {
            None => true,
            Some(kept) => kept.in_memory && kept.boot != boot_id()?,
        };
        Ok((itself && is_gone).then_some(written.instance))
    }

    /// The instance of the copy that this node had last.
    #[must_use]
    pub fn instance(&self) -> Option<u64> {
        self.written.as_ref().map(|written| written.instance)
    }

    /// Where the copy that this node had last may still lie.
    #[must_use]
    pub fn kept(&self) -> Option<&Path> {
        self.written.as_ref()?.kept.as_ref().map(|kept| kept.ram.as_path())
    }

    /// A session begins: before the primary is told `instance`.
    ///
    /// # Errors
    /// It cannot be written down: then there is no session.
    pub fn begins(&mut self, instance: u64) -> Result<()> {
        let (inode, born) = self.itself()?;
        self.write(Written { inode, born, instance, kept: None })
    }

    fn itself(&self) -> Result<(u64, Option<u128>)> {
        let about = self.file.metadata().with_context(|| self.path.display().to_string())?;
        let since = about.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        Ok((about.ino(), since.map(|since| since.as_nanos())))
    }

    /// The copy is about to be kept as files around `ram`.
    ///
    /// # Errors
    /// It cannot be written down: a later process would take that copy for lost.
    pub fn is_kept(&mut self, ram: &Path) -> Result<()> {
        let Some(written) = self.written.clone() else { return Ok(()) };
        let in_memory = ram.parent().is_some_and(|dir| files::is_memory(dir).unwrap_or(false));
        let kept = Kept { ram: ram.to_owned(), in_memory, boot: boot_id()?.to_owned() };
        self.write(Written { kept: Some(kept), ..written })
    }

    fn write(&mut self, written: Written) -> Result<()> {
        self.store(&written).with_context(|| format!("writing {}", self.path.display()))?;
        self.written = Some(written);
        Ok(())
    }

    /// In place: the lock is the file's.
    fn store(&self, written: &Written) -> io::Result<()> {
        let mut file = &self.file;
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        writeln!(file, "{}", serde_json::to_string(written)?)?;
        file.sync_all()?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit;
    use std::fs;

    fn open(dir: &Path) -> LastCopy {
        LastCopy::open(dir, Name::new("web").unwrap()).unwrap()
    }

    #[test]
    fn a_copy_whose_process_ended_is_no_more_and_one_that_may_be_somewhere_is() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut first = open(dir);
        assert_eq!(first.gone().unwrap(), None, "there was none");
        first.begins(7).unwrap();
        let error = LastCopy::open(dir, Name::new("web").unwrap()).unwrap_err();
        let (code, text) = exit::explain(&error);
        assert!(code == Code::Prerequisite && text.contains("another standby of web uses"), "{text}");
        drop(first);

        let mut second = open(dir);
        assert_eq!((second.gone().unwrap(), second.kept()), (Some(7), None));
        second.begins(8).unwrap();
        second.is_kept(&dir.join("x.ram")).unwrap();
        drop(second);
        let third = open(dir);
        assert_eq!((third.gone().unwrap(), third.kept()), (None, Some(dir.join("x.ram").as_path())));
    }

    #[test]
    fn what_was_kept_in_memory_ends_with_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        let mut copy = open(dir.path());
        for (in_memory, boot, gone) in [(true, "before", Some(3)), (false, "before", None), (true, "now", None)] {
            let boot = if boot == "now" { boot_id().unwrap() } else { boot }.to_owned();
            let kept = Some(Kept { ram: "x.ram".into(), in_memory, boot });
            let (inode, born) = copy.itself().unwrap();
            copy.write(Written { inode, born, instance: 3, kept }).unwrap();
            assert_eq!(copy.gone().unwrap(), gone);
        }
    }

    #[test]
    fn a_backup_or_half_a_line_proves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("web.copy"), dir.path().join("other"));
        open(dir.path()).begins(7).unwrap();
        fs::copy(&path, &other).unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(open(dir.path()).gone().unwrap(), None);
        open(dir.path()).begins(7).unwrap();
        assert_eq!(open(dir.path()).gone().unwrap(), Some(7));
        // Its number may be given out again.
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, &text).unwrap();
        assert_eq!(open(dir.path()).gone().unwrap(), None);
        open(dir.path()).begins(7).unwrap();
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert_eq!(open(dir.path()).gone().unwrap(), None);
    }
}
