//! Where the control socket of a side of a VM is: `RUN_DIR/<vm>.<side>.sock`.

use mc_core::id::Name;
use node::events::Side;
use std::path::{Path, PathBuf};

/// Where control sockets are, unless somebody says otherwise.
pub const RUN_DIR: &str = "/run/afterimage";

/// Where the control socket of one side of a VM is.
#[must_use]
pub fn socket_path(run_dir: &Path, vm: Name, side: Side) -> PathBuf {
    run_dir.join(format!("{vm}.{}.sock", side.as_str()))
}

/// The VM and the side of a control socket, by its file's name: see [`socket_path`].
#[must_use]
pub fn side_of(path: &Path) -> Option<(Name, Side)> {
    let (vm, side) = path.file_name()?.to_str()?.strip_suffix(".sock")?.rsplit_once('.')?;
    Some((Name::new(vm).ok()?, Side::named(side)?))
}

/// Every control socket in a run directory, with its VM and side; by name.
#[must_use]
pub fn sockets_in(run_dir: &Path) -> Vec<(PathBuf, Name, Side)> {
    let entries = std::fs::read_dir(run_dir).into_iter().flatten();
    let named = |path: PathBuf| side_of(&path).map(|(vm, side)| (path, vm, side));
    let mut found: Vec<_> = entries.filter_map(|entry| named(entry.ok()?.path())).collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}
