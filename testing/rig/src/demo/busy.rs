//! Other work on this machine, while rounds are played.

use anyhow::{Context, Result};
use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

/// Processes that do nothing but compute. Dropped: gone.
#[derive(Debug)]
pub(super) struct Busy(Vec<Child>);

impl Busy {
    /// Keeps so many processors busy. They end with this process, however that ends.
    ///
    /// # Errors
    /// They cannot be started.
    pub(super) fn keep(processors: u32, rig: &Path) -> Result<Self> {
        let mut busy = Self(Vec::new());
        for _ in 0..processors {
            let mut command = Command::new(rig);
            // (Their standard input is a pipe from here: it ends when this process does.)
            command.arg("busy").stdin(Stdio::piped()).stdout(Stdio::null());
            busy.0.push(command.spawn().context("cannot start what keeps a processor busy")?);
        }
        Ok(busy)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
