//! Yardsticks: programs of others that measure the same devices, run beside ours in the same run.
//!
//! | file | what |
//! |---|---|
//! | [`process`] | a server and a client of one tool, a port of their own, and a deadline |
//! | [`perftest`] | `ib_write_bw`, `ib_write_lat`, `ib_send_lat` |
//! | [`iperf`] | `iperf3` |

pub mod iperf;
pub mod perftest;
pub mod process;

use serde::Serialize;

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
