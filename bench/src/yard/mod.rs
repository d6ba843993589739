//! Yardsticks: programs of others that measure the same devices, run beside ours in the same run.
//!
//! | file | what |
//! |---|---|
//! | [`process`] | a server and a client of one tool, a port of their own, and a deadline |
//! | [`perftest`] | `ib_write_bw`, `ib_write_lat`, `ib_send_lat` |
//! | [`iperf`] | `iperf3` |

pub(crate) mod iperf;
pub(crate) mod perftest;
pub(crate) mod process;

use crate::{progress::say, record::Missing};
use perftest::Devices;
use serde::Serialize;
use std::time::Duration;

/// Why there is no figure to compare with. Never fatal: our own figures stand alone then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum YardError {
    /// The tool is not installed.
    #[error("{tool} is not installed: install the Debian package {package}")]
    Missing {
        /// Its name.
        tool: String,
        /// What to install.
        package: &'static str,
    },
    /// It ran, and did not give a figure.
    #[error("{tool}: {why}")]
    Failed {
        /// Its name.
        tool: String,
        /// What happened, with what it said last.
        why: String,
    },
}

impl YardError {
    fn failed(tool: &str, why: impl Into<String>) -> Self {
        Self::Failed { tool: tool.to_owned(), why: why.into() }
    }
}

impl From<YardError> for Missing {
    fn from(error: YardError) -> Self {
        let why = error.to_string();
        match error {
            YardError::Missing { tool, package } => Self { what: tool, why, package: Some(package.to_owned()) },
            YardError::Failed { tool, .. } => Self { what: tool, why, package: None },
        }
    }
}

/// What there is to compare with, and what there is not.
#[derive(Debug)]
pub(crate) struct Yardsticks {
    devices: Option<Devices>,
    off: bool,
    missing: Vec<YardError>,
}

impl Yardsticks {
    /// Between these devices, if any; `off`: no tool is run.
    #[must_use]
    pub(crate) fn new(devices: Option<Devices>, off: bool) -> Self {
        Self { devices, off, missing: Vec::new() }
    }

    /// Whether tools are run.
    #[must_use]
    pub(crate) fn are_on(&self) -> bool {
        !self.off
    }

    /// A tool's figure, asked for again if it failed; one that cannot be had is noted, once.
    pub(crate) fn ask<T>(&mut self, mut figure: impl FnMut() -> Result<T, YardError>) -> Option<T> {
        if self.off {
            return None;
        }
        let found = match figure() {
            Err(YardError::Failed { .. }) => figure(),
            found => found,
        };
        found.map_err(|error| self.note(error)).ok()
    }

    /// perftest's figure, between the devices.
    pub(crate) fn perftest<T>(&mut self, figure: impl Fn(&Devices) -> Result<T, YardError>) -> Option<T> {
        let devices = self.devices.clone()?;
        self.ask(|| figure(&devices))
    }

    fn note(&mut self, error: YardError) {
        if !self.missing.contains(&error) {
            say(format_args!("no figure to compare with: {error}"));
            self.missing.push(error);
        }
    }

    /// The size at which `ib_write_bw` does best: bytes.
    pub(crate) fn best_write_size(&mut self, sizes: &[usize]) -> usize {
        let mut best = (0.0, sizes.first().copied().unwrap_or(64 << 10));
        for &bytes in sizes {
            let Some(found) = self.perftest(|d| d.write_bw(bytes, Duration::from_secs(1))) else { continue };
            say(format_args!("ib_write_bw -s {bytes}: {:.2} MB/sec", found.average));
            if found.average > best.0 {
                best = (found.average, bytes);
            }
        }
        best.1
    }

    /// What gave no figure, for a section.
    #[must_use]
    pub(crate) fn into_missing(self) -> Vec<Missing> {
        self.missing.into_iter().map(Missing::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_asked_for_again_and_what_is_not_there_is_not() {
        let mut yardsticks = Yardsticks::new(None, false);
        let mut answers = vec![Ok(5), Err(YardError::failed("a", "busy"))];
        assert_eq!(yardsticks.ask(|| answers.pop().unwrap()), Some(5));
        let missing = || YardError::Missing { tool: "b".to_owned(), package: "c" };
        let mut asked = 0;
        assert_eq!(
            yardsticks.ask(|| {
                asked += 1;
                Err::<u8, _>(missing())
            }),
            None
        );
        assert_eq!(yardsticks.ask(|| Err::<u8, _>(missing())), None);
        let noted = yardsticks.into_missing();
        assert_eq!((asked, noted.len(), noted[0].package.as_deref()), (1, 1, Some("c")));
    }
}
