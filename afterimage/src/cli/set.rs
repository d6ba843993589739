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
    /// epoch=TIME, staging=SIZE, on_cap=throttle|grow:SIZE|unprotect; either all of them change, or none
    #[arg(required = true, value_name = "KEY=VALUE")]
    pub settings: Vec<Assignment>,
    /// Also write them into the configuration file that the process was started with, or into FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    pub save: Option<Option<PathBuf>>,
    /// Directory of the control sockets
    #[arg(long, value_name = "DIR", default_value = api::RUN_DIR)]
    pub run_dir: PathBuf,
    /// A JSON object instead of text
    #[arg(long)]
    pub json: bool,
}
