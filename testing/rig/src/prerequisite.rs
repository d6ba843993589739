//! What the rig needs, and how it says that something is not there (exit code 6).

use anyhow::{Result, ensure};
use std::{error::Error, fmt, path::Path};

/// Exit code for a missing prerequisite; the same as the product's.
pub const EXIT: u8 = 6;

/// Something that must be there before a scenario can be tried.
#[derive(Debug)]
pub struct Missing {
    /// What is missing.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. {}", self.what, self.remedy)
    }
}

impl Error for Missing {}

impl Missing {
    /// An error that ends the rig with [`EXIT`].
    pub fn error(what: impl Into<String>, remedy: impl Into<String>) -> anyhow::Error {
        Self { what: what.into(), remedy: remedy.into() }.into()
    }
}

/// Root, the tools, and the devices; what is missing comes back as [`Missing`].
pub fn check() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Missing::error("the rig makes network namespaces and TAP devices", "Run it as root"));
    }
    for tool in ["ip", "tc", "setpriv", "qemu-system-x86_64"] {
        if !on_path(tool) {
            return Err(Missing::error(format!("'{tool}' is not installed"), "scripts/setup installs what is needed"));
        }
    }
    file(Path::new("/dev/net/tun"), "Load the kernel's tun module (modprobe tun)")
}

/// That `path` is there.
pub fn file(path: &Path, remedy: &str) -> Result<()> {
    ensure!(path.exists(), Missing { what: format!("{} is missing", path.display()), remedy: remedy.to_owned() });
    Ok(())
}

fn on_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(tool).is_file())
}
