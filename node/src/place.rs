//! The place of a VM on this node: `STATE_DIR/VM.place`, locked by the one process that an embedder's runner runs the VM in, or stands by
//! for it. So whoever has it knows that no other process of this state directory has the VM. The kernel frees it with the process.
//!
//! A process that took a VM over keeps the place until its next runner takes it, or for good.

use crate::{
    exit::{Code, ExitError},
    files,
};
use anyhow::{Context, Result};
use mc_core::id::Name;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
};

/// Bytes of a process's number.
const LONGEST: u64 = 20;

/// Those of VMs that run in this process, and have no runner now.
static LEFT: Mutex<BTreeMap<PathBuf, File>> = Mutex::new(BTreeMap::new());

/// See the module. Dropping it gives the place up.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
    file: File,
}

impl Place {
    /// Takes the place.
    ///
    /// # Errors
    /// Exit code 6 while another runner has it; the file cannot be made.
    pub(crate) fn take(state_dir: &Path, vm: Name) -> Result<Self> {
        fs::create_dir_all(state_dir).with_context(|| format!("state directory {}", state_dir.display()))?;
        let state_dir = state_dir.canonicalize().with_context(|| state_dir.display().to_string())?;
        let path = state_dir.join(format!("{vm}.place"));
        if let Some(file) = LEFT.lock().remove(&path) {
            return Ok(Self { path, file });
        }
        let about = || path.display().to_string();
        match files::open_locked(&path).with_context(about)? {
            Some(mut file) => {
                file.set_len(0).with_context(about)?;
                file.write_all(std::process::id().to_string().as_bytes()).with_context(about)?;
                Ok(Self { path, file })
            }
            None => Err(taken(&path, &state_dir, vm).into()),
        }
    }

    /// The VM runs in this process, and its next runner takes the place.
    pub(crate) fn leave(self) {
        LEFT.lock().insert(self.path, self.file);
    }
}

fn taken(path: &Path, state_dir: &Path, vm: Name) -> ExitError {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text));
    let who = match (read, text.parse::<u32>()) {
        (Ok(_), Ok(pid)) => format!("process {pid}"),
        _ => "another process".to_owned(),
    };
    let what = format!("{who} runs {vm}, or stands by for it, with the state directory {}", state_dir.display());
    let remedy = "a node has each VM once: end that process first, a stopped one too; or, if this is another VM, give it another name";
    ExitError::new(Code::Prerequisite, what).remedy(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_has_one_place_on_a_node_until_its_process_ends() {
        let dir = tempfile::tempdir().unwrap();
        let [vm, other] = ["web", "db"].map(|name| Name::new(name).unwrap());
        let place = Place::take(dir.path(), vm).unwrap();
        let why = Place::take(dir.path(), vm).unwrap_err().to_string();
        assert!(why.starts_with(&format!("process {} runs web, or stands by for it", std::process::id())), "{why}");
        drop(Place::take(dir.path(), other).unwrap());
        place.leave();
        assert!(files::open_locked(&dir.path().join("web.place")).unwrap().is_none(), "no other process gets it");
        drop(Place::take(dir.path(), vm).unwrap());
        drop(Place::take(dir.path(), vm).unwrap());
    }
}
