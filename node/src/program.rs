//! The path of the running executable, for starting it again as a child.

use std::path::PathBuf;

/// This program; also after its file was replaced by another version's. (An upgrade renames the new file over the old one, and the
/// kernel calls ours "… (deleted)" from then on.)
#[must_use]
pub fn own() -> PathBuf {
    let path = std::env::current_exe();
    path.ok().filter(|path| path.exists()).unwrap_or_else(|| format!("/proc/{}/exe", std::process::id()).into())
}
