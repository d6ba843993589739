//! The file that is the waiting VM's memory, and who may use the directory that it lies in.
//!
//! | file in `--ram-dir` | |
//! |---|---|
//! | `afterimage-VM.lock` | held locked by the one standby of this VM, until a takeover has succeeded |
//! | `afterimage-VM-INCARNATION.ram` | the RAM image of one session; locked while it is in use |
//! | `….state`, `….json` | beside a RAM image that was kept: everything else of the VM, and what it is |
//!
//! A file is made anew or not used at all, is of mode 0600, and is removed by the process that made it, unless QEMU has it by
//! then or it is kept. What a process that was killed left behind, its successor removes: the lock is free.

use anyhow::{Context, Result};
use mc_core::id::Name;
use node::{
    events::{Event, ImageFound, LeftoverRemoved, emit},
    exit::{Code, ExitError},
    files,
};
use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

/// The one standby of a VM in a RAM directory. Dropping it gives the place up.
#[derive(Debug)]
pub(super) struct Claim {
    path: PathBuf,
    file: File,
    /// RAM images of this VM that were kept here.
    kept: Vec<PathBuf>,
}

impl Claim {
    /// Takes the place, and removes what dead predecessors left.
    ///
    /// # Errors
    /// Exit code 6 while another standby has it.
    pub(super) fn take(dir: &Path, vm: Name) -> Result<Self> {
        let path = dir.join(format!("afterimage-{vm}.lock"));
        let opened = files::open_locked(&path);
        let Some(file) = opened.map_err(|error| cannot_use(dir, &error))? else {
            return Err(taken(dir, vm).into());
        };
        let mut claim = Self { path, file, kept: Vec::new() };
        claim.kept = remove_leftovers(dir, vm)?;
        Ok(claim)
    }

    /// The image of this instance, if it was kept here. One that does not say which it is may be it.
    pub(super) fn kept(&self, instance: u64) -> Option<&Path> {
        let may_be = |ram: &&PathBuf| {
            let about = fs::read(sidecar(ram)).unwrap_or_default();
            let about: serde_json::Value = serde_json::from_slice(&about).unwrap_or_default();
            about["instance"].as_u64().is_none_or(|found| found == instance)
        };
        self.kept.iter().find(may_be).map(PathBuf::as_path)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _ = files::remove(&self.path, &self.file);
    }
}

fn cannot_use(dir: &Path, error: &io::Error) -> ExitError {
    let what = format!("RAM directory {}: {error}", dir.display());
    let remedy = "--ram-dir needs an existing directory that this user may write to, with room for the VM's memory";
    ExitError::new(Code::Prerequisite, what).remedy(remedy)
}

fn taken(dir: &Path, vm: Name) -> ExitError {
    let what = format!("another standby of {vm} uses {}", dir.display());
    let remedy = "a VM has one standby: stop the other one; if they are of two VMs, give this one another --vm; if they are of two \
                  hosts that share this directory, another --ram-dir";
    ExitError::new(Code::Prerequisite, what).remedy(remedy)
}

/// Removes RAM images whose process is gone, and says so; those that were kept are only told of, and returned.
fn remove_leftovers(dir: &Path, vm: Name) -> Result<Vec<PathBuf>> {
    let mut kept = Vec::new();
    let what = || format!("RAM directory {}", dir.display());
    for entry in fs::read_dir(dir).with_context(what)? {
        let name = entry.with_context(what)?.file_name();
        let Some(incarnation) = name.to_str().and_then(|name| incarnation(name, vm)) else { continue };
        let path = dir.join(&name);
        if sidecar(&path).exists() {
            tracing::warn!(path = %path.display(), "an image of this VM was kept here; remove it when nobody needs it");
            emit(Event::ImageFound(ImageFound { path: path.clone(), incarnation: incarnation.to_owned() }));
            kept.push(path);
            continue;
        }
        match remove_leftover(&path) {
            Ok(Some(bytes)) => {
                tracing::warn!(path = %path.display(), bytes, "removed the RAM image of a standby that is dead");
                emit(Event::LeftoverRemoved(LeftoverRemoved { path, bytes }));
            }
            Ok(None) => return Err(taken(dir, vm).into()),
            // In the way of nothing but memory.
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "a dead standby's RAM image cannot be removed");
            }
        }
    }
    Ok(kept)
}

/// How many bytes that freed; `None` while somebody uses it.
fn remove_leftover(path: &Path) -> io::Result<Option<u64>> {
    let file = files::open(path)?;
    if !files::lock(&file)? {
        return Ok(None);
    }
    files::remove(path, &file)?;
    let _ = fs::remove_file(path.with_extension("state"));
    Ok(Some(file.metadata()?.len()))
}

/// The incarnation in a RAM image's name, if it is one of this VM's.
fn incarnation(name: &str, vm: Name) -> Option<&str> {
    let rest = name.strip_prefix(&format!("afterimage-{vm}-"))?.strip_suffix(".ram")?;
    (rest.len() == 16 && rest.bytes().all(|b| b.is_ascii_hexdigit())).then_some(rest)
}

fn sidecar(ram: &Path) -> PathBuf {
    ram.with_extension("json")
}

/// A RAM image's file. Dropping it removes it, unless it was kept.
#[derive(Debug)]
pub(super) struct RamFile {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl RamFile {
    /// Makes one of `len` bytes, all of it allocated: a page fault that finds the disk full would end us in the middle of
    /// an epoch.
    pub(super) fn create(dir: &Path, vm: Name, len: u64) -> Result<Self> {
        let mut incarnation = [0; 8];
        rustix::rand::getrandom(&mut incarnation, rustix::rand::GetRandomFlags::empty()).context("a random number")?;
        let incarnation = u64::from_le_bytes(incarnation);
        let path = dir.join(format!("afterimage-{vm}-{incarnation:016x}.ram"));
        let what = || format!("RAM file {} ({len} bytes)", path.display());
        let file = files::create(&path).with_context(what)?;
        let ram = Self { path: path.clone(), file, kept: false };
        anyhow::ensure!(files::lock(&ram.file).with_context(what)?, "{}: another process has locked it", what());
        rustix::fs::fallocate(&ram.file, rustix::fs::FallocateFlags::empty(), 0, len).with_context(what)?;
        Ok(ram)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Before a QEMU is given the path: it must still name our file.
    pub(super) fn check(&self) -> Result<()> {
        let what = || format!("RAM file {}", self.path.display());
        files::check(&self.file).with_context(what)?;
        anyhow::ensure!(files::names(&self.path, &self.file).with_context(what)?, "{}: it was replaced", what());
        Ok(())
    }

    /// What a QEMU opens: our file by its name, or, where somebody removed or replaced that, by our descriptor of it.
    pub(super) fn for_qemu(&self) -> PathBuf {
        let Err(error) = self.check() else { return self.path.clone() };
        tracing::warn!(error = %format!("{error:#}"), "QEMU is handed the RAM file by its descriptor");
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }

    /// QEMU has it mapped, or nobody wants it: its name has served.
    pub(super) fn unlink(&self) {
        if let Err(error) = files::remove(&self.path, &self.file) {
            tracing::warn!(%error, path = %self.path.display(), "the RAM file cannot be removed");
        }
    }

    /// From now on it outlives this process. `state` writes everything else of the VM; `about` is what it is, for whoever
    /// finds it. Returns the RAM file's path.
    ///
    /// # Errors
    /// Then it is not kept.
    pub(super) fn keep(
        &mut self,
        about: &serde_json::Value,
        state: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<PathBuf> {
        self.check()?;
        let (beside, about_path) = (self.path.with_extension("state"), sidecar(&self.path));
        let what = |path: &Path| format!("beside the kept RAM image: {}", path.display());
        let file = files::create(&beside).with_context(|| what(&beside))?;
        state(&file).and_then(|()| file.sync_all()).with_context(|| what(&beside))?;
        self.file.sync_all().with_context(|| what(&self.path))?;
        // Last: a RAM image with this beside it is complete.
        let file = files::create(&about_path).with_context(|| what(&about_path))?;
        serde_json::to_writer_pretty(&file, about).with_context(|| what(&about_path))?;
        file.sync_all().with_context(|| what(&about_path))?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| what(dir))?;
        self.kept = true;
        Ok(self.path.clone())
    }
}

impl Drop for RamFile {
    fn drop(&mut self) {
        if !self.kept {
            self.unlink();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::exit;
    use serde_json::json;
    use std::{
        io::{Read, Write},
        os::unix::fs::{MetadataExt, symlink},
    };

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn files_in(dir: &Path) -> Vec<String> {
        let mut found: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        found
    }

    #[test]
    fn a_second_standby_is_refused_and_harms_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let claim = Claim::take(dir.path(), name("web")).unwrap();
        let ram = RamFile::create(dir.path(), name("web"), 8192).unwrap();
        ram.file().write_all(b"memory").unwrap();
        let error = Claim::take(dir.path(), name("web")).unwrap_err();
        let (code, text) = exit::explain(&error);
        assert_eq!(code, Code::Prerequisite);
        assert!(text.contains("another standby of web") && text.contains("--ram-dir"), "{text}");
        ram.check().unwrap();
        assert_eq!(ram.file().metadata().unwrap().len(), 8192);
        assert_eq!(ram.file().metadata().unwrap().mode() & 0o777, 0o600);
        // Another VM's is no neighbour's business.
        let other = Claim::take(dir.path(), name("web-0123456789abcdef")).unwrap();
        let others_ram = RamFile::create(dir.path(), name("web-0123456789abcdef"), 4096).unwrap();
        drop((ram, claim));
        let again = Claim::take(dir.path(), name("web")).unwrap();
        others_ram.check().unwrap();
        drop((again, others_ram, other));
        assert_eq!(files_in(dir.path()), Vec::<String>::new());
    }

    #[test]
    fn what_a_dead_standby_left_is_removed_and_what_was_kept_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("afterimage-web-00000000000000aa.ram"), "left").unwrap();
        fs::write(at("afterimage-web-00000000000000aa.state"), "left").unwrap();
        let mut kept = RamFile::create(dir.path(), name("web"), 4096).unwrap();
        let path = kept.keep(&json!({ "generation": 3 }), |mut file| file.write_all(b"state")).unwrap();
        drop(kept);
        // Not this VM's, or not of this kind.
        let untouched = ["afterimage-web.ram", "afterimage-web2-00000000000000aa.ram", "afterimage-web-xyz.ram"];
        untouched.iter().for_each(|name| fs::write(at(name), "x").unwrap());
        symlink(at("afterimage-web.ram"), at("afterimage-web-00000000000000bb.ram")).unwrap();
        drop(Claim::take(dir.path(), name("web")).unwrap());
        assert!(
            !at("afterimage-web-00000000000000aa.ram").exists()
                && !at("afterimage-web-00000000000000aa.state").exists()
        );
        for left in untouched.iter().chain(&["afterimage-web-00000000000000bb.ram"]) {
            assert!(at(left).symlink_metadata().is_ok(), "{left} is gone");
        }
        let mut state = String::new();
        File::open(path.with_extension("state")).unwrap().read_to_string(&mut state).unwrap();
        assert!(path.exists() && state == "state");
        assert!(fs::read_to_string(path.with_extension("json")).unwrap().contains("\"generation\": 3"));

        // In use, though nobody holds the lock file.
        let used = files::create(&at("afterimage-web-00000000000000cc.ram")).unwrap();
        assert!(files::lock(&used).unwrap());
        assert_eq!(exit::explain(&Claim::take(dir.path(), name("web")).unwrap_err()).0, Code::Prerequisite);
        assert!(at("afterimage-web-00000000000000cc.ram").exists());
    }

    #[test]
    fn another_file_of_that_name_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let ram = RamFile::create(dir.path(), name("web"), 4096).unwrap();
        let path = ram.path().to_owned();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's").unwrap();
        assert!(ram.check().is_err());
        drop(ram);
        assert_eq!(fs::read_to_string(&path).unwrap(), "another's");
    }
}
