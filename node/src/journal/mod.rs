//! The journal: every event of one side of one VM, kept across restarts of its processes, for `afterimage why`.
//!
//! `STATE_DIR/<vm>.<side>.journal` has one JSON object a line; at [`FULL`] bytes it becomes `….journal.1`, and the one before
//! that is gone: at most two of them and a line are on the disk. Events that change a role are in a journal of their own as
//! well, `….roles.journal`, which noise cannot fill ([`Journals`]). A line has the wall clock's time (`at_ms`), for people, and
//! for an order that no clock's step turns round the host's boot and the time since (`boot`, `boot_ms`).
//!
//! Several processes write the same file: the supervisor, its data path, their successors. Each line is one write(2) to a
//! descriptor in append mode, for which the kernel finds the end and writes under one lock of the inode: lines of two
//! processes cannot mix. (That is a promise of local file systems; a state directory on NFS may lose it, and then `why` names
//! the lines that it could not read.) Whoever finds the file full renames it, holding a lock on it; the others notice because
//! the file that they have open is full too, and open the new one.
//!
//! | what goes wrong | what becomes of it |
//! |---|---|
//! | the disk is slow | a thread of its own waits ([`LineWriter`]); its queue is bounded, what finds it full is counted |
//! | the directory is missing, or not writable; the disk is full | a warning, the lines are counted as lost, tried again |
//! | the process, or the host, dies in mid-line | whoever opens the file next ends the torn line; readers name and skip it |

mod line_writer;
mod reader;
mod roles;
#[cfg(test)]
mod tests;
mod writer;

pub use line_writer::LineWriter;
#[cfg(feature = "testing")]
pub use reader::parse;
pub use reader::{Journal, Skipped, read};
pub use roles::{Journals, roles_path};
pub use writer::Writer;

use mc_core::id::Name;
use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// The version of a line. Fields may be added under the same number; a reader ignores those it does not know.
pub const SCHEMA: u64 = 1;
/// Bytes after which a journal is turned over.
pub const FULL: u64 = 1 << 20;
/// Bytes of a line at most; a longer event is written without its fields.
pub const LONGEST: usize = 16 << 10;
/// Where journals are, unless told otherwise.
pub const STATE_DIR: &str = "/var/lib/afterimage";

/// The journal of one side of a VM.
#[must_use]
pub fn path(state_dir: &Path, vm: Name, side: &str) -> PathBuf {
    state_dir.join(format!("{vm}.{side}.journal"))
}

/// What a full journal becomes.
#[must_use]
pub fn older(path: &Path) -> PathBuf {
    path.with_extension("journal.1")
}

/// The thread that writes a journal. Nothing of the disk is touched before it runs.
pub fn spawn(path: &Path) -> io::Result<LineWriter> {
    let mut writer = Writer::new(path.to_owned());
    let warned = AtomicBool::new(false);
    LineWriter::spawn("journal", move |line| {
        let written = writer.append(line);
        if let Err(error) = &written
            && !warned.swap(true, Ordering::Relaxed)
        {
            let path = writer.path().display();
            tracing::warn!("journal {path}: {error}: `afterimage why` will not know what happens now; see --state-dir");
        }
        if written.is_ok() {
            warned.store(false, Ordering::Relaxed);
        }
        written
    })
}
