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
    #[arg(long, value_parser = super::sides())]
    pub role: Option<Side>,
    /// Time between two beats, both ways; 100us to 10s
    #[arg(long, value_name = "TIME", value_parser = parse_beat_interval)]
    pub interval: Option<Duration>,
    /// Missed beats after which a side is suspected; 2 to 255
    #[arg(long, value_name = "K", value_parser = parse_multiplier)]
    pub multiplier: Option<u8>,
    /// Shortest interval at which beats are received, both ways [default: --interval]
    #[arg(long, value_name = "TIME", value_parser = parse_beat_interval)]
    pub min_rx: Option<Duration>,
    /// Change only this side's parameters; in each direction the slower of the two sides' wishes is in force
    #[arg(long)]
    pub this_side: bool,
    /// Change them even if the live peer was silent for longer in this session than the new detection time
    #[arg(long)]
    pub force: bool,
    /// Also write them into the configuration file that the process was started with, or into FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    pub save: Option<Option<PathBuf>>,
    /// Directory of the control sockets
    #[arg(long, value_name = "DIR", default_value = api::RUN_DIR)]
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
    #[arg(long, value_parser = super::sides())]
    pub role: Option<Side>,
    /// Directory of the control sockets
    #[arg(long, value_name = "DIR", default_value = api::RUN_DIR)]
    pub run_dir: PathBuf,
    /// JSON instead of text: an array, or with --vm and a single process one object
    #[arg(long)]
    pub json: bool,
}
