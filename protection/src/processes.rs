//! How this library starts its own processes: by the program that it is a part of.

use mc_core::id::Name;
use std::{ffi::OsString, net::SocketAddr, path::PathBuf, process::Command};

/// The program that this library is a part of. When it is started with one of these first arguments, it calls the function that belongs
/// to it.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Where it is. Asked at each start: an upgrade may have replaced its file.
    pub path: fn() -> PathBuf,
    /// For [`crate::primary::data_path::run`].
    pub data_path: &'static str,
    /// For [`crate::keeper::run`], with the settings of [`crate::keeper::Charge::arguments`].
    pub keeper: &'static str,
}

impl Program {
    /// The command that starts a data path.
    #[must_use]
    pub fn data_path(&self) -> Command {
        let mut command = Command::new((self.path)());
        command.arg(self.data_path);
        command
    }
}

/// What takes this process's place when its copy of the VM was fenced: a standby.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejoin {
    /// The program's arguments that start it.
    pub arguments: Vec<OsString>,
    /// The VM.
    pub vm: Name,
    /// Where it waits for the primary.
    pub listen: SocketAddr,
}
