//! A side's two journals: one of everything, and one of what changes a role. Whoever knocks often enough fills the first, and
//! pushes nothing out of the second.

use super::{LineWriter, path, spawn};
use crate::events::Event;
use mc_core::id::Name;
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

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
    pub fn put(&self, event: &Event, line: String) {
        if event.is_of_roles() {
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
    use crate::{
        events::Refused,
        journal::{FULL, read},
    };

    #[test]
    fn noise_pushes_no_change_of_a_role_out() {
        let dir = tempfile::tempdir().unwrap();
        let (vm, patience) = (Name::new("web").unwrap(), Duration::from_secs(60));
        let journals = Journals::spawn(dir.path(), vm, "standby").unwrap();
        let put = |event: &Event, pad: usize| {
            let line = format!(
                "{{\"schema\":1,\"event\":\"{}\",\"at_ms\":1,\"why\":\"{}\"}}\n",
                event.name(),
                "x".repeat(pad)
            );
            journals.put(event, line);
        };
        put(&Event::GaveUp("an operator's word".into()), 10);
        let noise = Event::Refused(Refused::default());
        let (each, many) = (8 << 10, 3 * usize::try_from(FULL).unwrap() / (8 << 10));
        for n in 0..many {
            put(&noise, each);
            if n % 100 == 0 {
                assert!(journals.flush(patience));
            }
        }
        assert!(journals.flush(patience) && journals.lost() == 0);
        let events = |path: &Path| {
            read(path).unwrap().records.into_iter().map(|e| e.event.name().to_owned()).collect::<Vec<_>>()
        };
        assert!(!events(&path(dir.path(), vm, "standby")).contains(&"gave-up".to_owned()), "it was pushed out there");
        assert_eq!(events(&roles_path(dir.path(), vm, "standby")), ["gave-up"]);
    }
}
