//! The command line of `afterimage keeper`. It is hidden: `standby` and `protect` start keepers, an operator does in need
//! (docs/OPERATIONS.md, "After a takeover").

use crate::config::NicSpec;
use clap::Args;
use mc_core::id::Name;
use std::path::PathBuf;

/// `afterimage keeper`
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct KeeperArgs {
    /// The VM
    #[arg(long, value_name = "NAME")]
    pub vm: Name,
    /// This host's name [default: its hostname]
    #[arg(long, value_name = "NAME")]
    pub node: Option<Name>,
    /// Generation of the register, only to show it
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub generation: u64,
    /// A NIC of the VM: the unix socket of its `-netdev stream`, and the TAP device to connect it to. Once per NIC, in order
    #[arg(long = "nic", value_name = "SOCKET=TAP", required = true)]
    pub nics: Vec<NicSpec>,
    /// Directory for sockets and locks
    #[arg(long, value_name = "DIR", default_value = "/run/afterimage")]
    pub run_dir: PathBuf,
    /// Directory for the journal
    #[arg(long, value_name = "DIR", default_value = node::journal::STATE_DIR)]
    pub state_dir: PathBuf,
    /// Needed when started by hand: confirm that the VM runs on no other host. If it ran there, two copies would answer the
    /// same clients, and nothing could merge them again
    #[arg(long)]
    pub yes_the_other_side_is_stopped: bool,
}
