//! `afterimage set`

use crate::live::Assignment;
use clap::Args;
use mc_core::id::Name;
use std::path::PathBuf;

/// `afterimage set`
#[derive(Debug, Args)]
pub struct SetArgs {
    /// The VM
    #[arg(long, value_name = "NAME")]
    pub vm: Name,
    /// epoch=TIME, staging=SIZE, on_cap=throttle|grow:SIZE|unprotect: all of them are changed, or none
    #[arg(required = true, value_name = "KEY=VALUE")]
    pub settings: Vec<Assignment>,
    /// Write them into the configuration file that the process was started with, or into FILE, too
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    pub save: Option<Option<PathBuf>>,
    /// Where the control sockets are
    #[arg(long, value_name = "DIR", default_value = "/run/afterimage")]
    pub run_dir: PathBuf,
    /// A JSON object instead of text
    #[arg(long)]
    pub json: bool,
}
