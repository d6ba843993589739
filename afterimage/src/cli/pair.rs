//! The command line of `afterimage keepalive set` and `show`.

use super::Side;
use crate::config::{parse_beat_interval, parse_multiplier};
use clap::{ArgGroup, Args};
use mc_core::id::Name;
use std::{path::PathBuf, time::Duration};

/// `afterimage keepalive set`
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).multiple(true).args(["interval", "multiplier", "min_rx"])))]
pub struct KeepaliveSetArgs {
    /// The VM
    #[arg(long, value_name = "NAME")]
    pub vm: Name,
    /// The side to tell [default: whichever runs on this host]
    #[arg(long, value_enum)]
    pub role: Option<Side>,
    /// From one beat to the next, both ways; 100us to 10s
    #[arg(long, value_name = "TIME", value_parser = parse_beat_interval)]
    pub interval: Option<Duration>,
    /// After so many missed beats a side is suspect; 2 to 255
    #[arg(long, value_name = "K", value_parser = parse_multiplier)]
    pub multiplier: Option<u8>,
    /// Never receive more often than this, both ways [default: --interval]
    #[arg(long, value_name = "TIME", value_parser = parse_beat_interval)]
    pub min_rx: Option<Duration>,
    /// Change this side's parameters only: of each direction the slower wish is in force
    #[arg(long)]
    pub this_side: bool,
    /// Although silences seen in this session would have been taken for the other side's death
    #[arg(long)]
    pub force: bool,
    /// Write them into the configuration file that the process was started with, or into FILE, too
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    pub save: Option<Option<PathBuf>>,
    /// Where the control sockets are
    #[arg(long, value_name = "DIR", default_value = "/run/afterimage")]
    pub run_dir: PathBuf,
    /// A JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `afterimage keepalive show`
#[derive(Debug, Args)]
pub struct KeepaliveShowArgs {
    /// Only this VM
    #[arg(long, value_name = "NAME")]
    pub vm: Option<Name>,
    /// Only this side
    #[arg(long, value_enum)]
    pub role: Option<Side>,
    /// Where the control sockets are
    #[arg(long, value_name = "DIR", default_value = "/run/afterimage")]
    pub run_dir: PathBuf,
    /// JSON instead of text: an array, or with --vm and a single process one object
    #[arg(long)]
    pub json: bool,
}
