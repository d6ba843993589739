//! One fault each: what is done, what is observed, what must be true.
//!
//! | module | |
//! |---|---|
//! | [`catalog`] | the scenarios: what each is called, and what may come of it |
//! | [`round`] | starts everything: witness, standby, VM, protection, client |
//! | `lines` | the command lines of the program under test, all of them |
//! | [`asker`] | the client of a round |
//! | [`fault`] | injects the fault |
//! | `watch` | watches |
//! | [`evidence`] | what was observed, and the verdict: a pure function, so that it has tests of its own |
//! | [`suspicion`] | what the machine's load explains, and what not |
//! | [`report`] | numbers and JSON |
//! | `moments` | the moments of a takeover, for the report |
//! | [`status`] | what the rig reads from `afterimage status --json` |
//! | [`why`] | whether `afterimage why` tells what the rig saw |

pub mod asker;
pub mod catalog;
pub mod evidence;
pub mod fault;
mod lines;
mod moments;
pub mod report;
pub mod round;
pub mod status;
pub mod suspicion;
mod watch;
pub mod why;

pub use catalog::{Choice, Scenario};

use crate::{guest::Guest, hosts::Place};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// The program under test; some hosts may have another version of it.
#[derive(Clone, Debug)]
pub struct Programs {
    /// What hosts have.
    pub afterimage: PathBuf,
    /// What these have instead.
    pub instead: Vec<(Place, PathBuf)>,
}

impl Programs {
    /// What that host has.
    #[must_use]
    pub fn on(&self, place: Place) -> &Path {
        let other = self.instead.iter().find(|(host, _)| *host == place);
        other.map_or(&self.afterimage, |(_, program)| program)
    }
}

/// Everything that a round needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which fault.
    pub scenario: Scenario,
    /// Which guest, on what.
    pub guest: Guest,
    /// The program under test.
    pub programs: Programs,
    /// The rig's own program, for what runs on hosts.
    pub rig: PathBuf,
    /// As `afterimage protect --epoch` takes it.
    pub epoch: String,
    /// As `--beat-interval` of both sides takes it.
    pub beat_interval: String,
    /// As `--detect-multiplier` of both sides takes it.
    pub detect_multiplier: u32,
    /// More flags, for both sides, with their values.
    pub flags: Vec<(&'static str, String)>,
    /// Requests that the client has under way at a time.
    pub pipeline: usize,
    /// Time after which it repeats one that is not answered (tiny guest).
    pub repeat_after: Duration,
    /// What the hosts are made of, as in the report.
    pub hosts: &'static str,
    /// Time that the client has before the fault.
    pub before: Duration,
    /// Time that the client has after the fault was dealt with.
    pub after: Duration,
    /// Time to measure the unprotected VM's replies; zero: not measured.
    pub baseline: Duration,
    /// Time to measure what the sidecars cost when no client asks; zero: not measured.
    pub idle: Duration,
    /// For logs and sockets.
    pub work_dir: PathBuf,
    /// For the standby's RAM file.
    pub ram_dir: PathBuf,
}
