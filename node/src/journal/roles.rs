//! A side's two journals: one of everything, and one of what changes a role. Whoever knocks often enough fills the first, and
//! pushes nothing out of the second.

use super::{LineWriter, path, spawn};
use mc_core::id::Name;
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

/// What changes a role, decides about one, or is asked for when one has changed. What a stranger can bring about is not
/// among it, nor what is tried again and again.
const OF_ROLES: [&str; 46] = [
    "arbiter-fault",
    "arbiter-mended",
    "arbiter-reachable",
    "arbiter-unreachable",
    "asking",
    "attached",
    "cas",
    "data-path-died",
    "discarded",
    "ended",
    "exit",
    "exported",
    "fell-back",
    "fenced",
    "gate-failed",
    "gave-up",
    "goodbye",
    "hand-back",
    "hands-back",
    "image-kept",
    "keeper-ended",
    "keeper-failed",
    "keeper-started",
    "keeping",
    "link-lost",
    "new-identity",
    "nic-lost",
    "nics-connected",
    "operator",
    "operator-refused",
    "protected",
    "reattached",
    "register",
    "rehearsal-failed",
    "rejoining",
    "running",
    "solo",
    "source-broken",
    "stalled",
    "started",
    "stop-obeyed",
    "supervisor-died",
    "suspect",
    "syncing",
    "takeover-failed",
    "vm-gone",
];

/// Whether an event belongs into the journal of roles as well.
#[must_use]
pub fn is_of_roles(event: &str) -> bool {
    OF_ROLES.binary_search(&event).is_ok() || matches!(event, "vm-health" | "waiting" | "witness-accepted" | "yielding")
}

/// The journal of roles of one side of a VM; bounded as the other.
#[must_use]
pub fn roles_path(state_dir: &Path, vm: Name, side: &str) -> PathBuf {
    state_dir.join(format!("{vm}.{side}.roles.journal"))
}

/// Both journals of a side, each with the thread that writes it.
#[derive(Debug)]
pub struct Journals {
    all: LineWriter,
    roles: LineWriter,
}

impl Journals {
    /// Starts the threads. Nothing of the disk is touched before they run.
    pub fn spawn(state_dir: &Path, vm: Name, side: &str) -> io::Result<Self> {
        Ok(Self { all: spawn(&path(state_dir, vm, side))?, roles: spawn(&roles_path(state_dir, vm, side))? })
    }

    /// Hands over an event's line. Never waits.
    pub fn put(&self, event: &str, line: String) {
        if is_of_roles(event) {
            self.roles.put(line.clone());
        }
        self.all.put(line);
    }

    /// Lines that were not written.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.all.lost() + self.roles.lost()
    }

    /// Waits until what was handed over is written, `patience` at most for each. False if it is not.
    pub fn flush(&self, patience: Duration) -> bool {
        let all = self.all.flush(patience);
        self.roles.flush(patience) && all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{FULL, read};

    #[test]
    fn noise_pushes_no_change_of_a_role_out() {
        assert!(
            OF_ROLES.is_sorted() && is_of_roles("running") && !is_of_roles("refused") && !is_of_roles("no-session")
        );
        let dir = tempfile::tempdir().unwrap();
        let (vm, patience) = (Name::new("web").unwrap(), Duration::from_secs(60));
        let journals = Journals::spawn(dir.path(), vm, "standby").unwrap();
        let line = |event: &str, pad: usize| {
            format!("{{\"schema\":1,\"event\":\"{event}\",\"at_ms\":1,\"why\":\"{}\"}}\n", "x".repeat(pad))
        };
        journals.put("running", line("running", 10));
        let (each, many) = (8 << 10, 3 * usize::try_from(FULL).unwrap() / (8 << 10));
        for n in 0..many {
            journals.put("refused", line("refused", each));
            if n % 100 == 0 {
                assert!(journals.flush(patience));
            }
        }
        assert!(journals.flush(patience) && journals.lost() == 0);
        let events = |path: &Path| read(path).unwrap().entries.into_iter().map(|e| e.event).collect::<Vec<_>>();
        assert!(!events(&path(dir.path(), vm, "standby")).contains(&"running".to_owned()), "it was pushed out there");
        assert_eq!(events(&roles_path(dir.path(), vm, "standby")), ["running"]);
    }
}
