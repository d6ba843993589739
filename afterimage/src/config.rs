//! What a command runs with: flags, else the file, else defaults; and where each value comes from.
//!
//! ```text
//!   table: what there is ──┬─> given: flags ──┐
//!                          ├─> file: keys ────┼─> resolve ──> primary::Settings, … of `protection`
//!                          └─> manual         └─> config check
//! ```
//!
//! The settings are read with the file's own keys.

mod file;
mod given;
mod listen;
mod look;
mod manual;
mod near;
mod resolve;
mod setting;
mod table;

pub(crate) use file::renamed;
pub use given::{PathArgs, ProtectArgs, StandbyArgs, WitnessArgs};
pub use manual::manual;
pub(crate) use near::nearest;
pub use node::paths::{KeepaliveWish, PathsConfig, TransportWish};
pub use node::units::{parse_ago, parse_duration, parse_size, size_text, time_text};
pub(crate) use resolve::hostname;
pub use resolve::{check, check_text, paths, protect, rejoin, standby, witness};
pub(crate) use setting::Setting;
pub(crate) use table::{live, parse_beat_interval, parse_multiplier};
pub use vmm_qemu::gate::NicSpec;

use node::exit::ExitError;
use serde::{Deserialize, Serialize};
use std::{io, net::SocketAddr, path::PathBuf};

/// `afterimage witness`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WitnessConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its registers' directory.
    pub state: PathBuf,
    /// Where metrics are served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
}

/// Why there is no configuration to run with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// The file that could not be read. / The file that is too long.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is too long to be one.
    #[error("{}: longer than {limit} bytes; not a configuration file", path.display())]
    TooLong {
        /// The file that could not be read. / The file that is too long.
        path: PathBuf,
        /// Bytes at most.
        limit: u64,
    },
    /// Not TOML, an unknown key, or a value that a key does not take.
    #[error("{}:{line}: {what}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Line number in the file, counted from 1.
        line: usize,
        /// What is wrong there.
        what: String,
    },
    /// A value is out of its range.
    #[error("{setting}: expected {allowed}")]
    Range {
        /// Which setting, its value, and where it comes from: as it was said there.
        setting: String,
        /// The allowed range, for the message.
        allowed: String,
    },
    /// The settings do not make what a command runs with.
    #[error("the settings do not fit: {0}")]
    Table(toml::de::Error),
    /// A required setting is missing.
    #[error("afterimage {command} needs {what}")]
    Missing {
        /// Which command.
        command: &'static str,
        /// The missing settings, each as its flag and its key.
        what: String,
    },
    /// A setting that needs another one, which is not there or contradicts it.
    #[error("{setting} needs {what}")]
    Needs {
        /// As it is said on the command line.
        setting: &'static str,
        /// What it needs, and what was found.
        what: String,
    },
    /// The host's name is none, and no other was given.
    #[error("this host's name {hostname:?} cannot be used as a node name; set --node NAME")]
    Hostname {
        /// The hostname that the kernel reports.
        hostname: String,
    },
}

impl From<ConfigError> for ExitError {
    fn from(error: ConfigError) -> Self {
        Self::usage(error)
    }
}
