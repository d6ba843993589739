//! The command line of `afterimage keeper`. It is hidden: `standby` and `protect` start keepers, an operator does in need
//! (docs/OPERATIONS.md, "After a takeover").

use crate::config::{self, ConfigError, NicSpec};
use clap::Args;
use mc_core::id::Name;
use protection::keeper;
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
    #[arg(long, value_name = "DIR", default_value = api::RUN_DIR)]
    pub run_dir: PathBuf,
    /// Directory for the journal
    #[arg(long, value_name = "DIR", default_value = node::journal::STATE_DIR)]
    pub state_dir: PathBuf,
    /// Needed when started by hand: confirm that the VM runs on no other host. If it ran there, two copies would answer the
    /// same clients, and nothing could merge them again
    #[arg(long)]
    pub yes_the_other_side_is_stopped: bool,
}

impl KeeperArgs {
    /// What it runs with.
    pub fn settings(self) -> Result<keeper::Settings, ConfigError> {
        let Self { vm, generation, nics, run_dir, state_dir, yes_the_other_side_is_stopped: by_hand, .. } = self;
        let node = self.node.map_or_else(config::hostname, Ok)?;
        Ok(keeper::Settings { vm, node, generation, nics, run_dir, state_dir, by_hand })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command, PROGRAM};
    use clap::Parser;
    use mc_core::id::Generation;
    use protection::keeper::Charge;
    use std::ffi::OsString;

    #[test]
    fn what_is_asked_of_a_keeper_is_what_it_reads() {
        let nics: Vec<NicSpec> = ["/run/a=b c.net=tap0", "-x=tap1"].iter().map(|n| n.parse().unwrap()).collect();
        let charge = Charge {
            vm: Name::new("-we b").unwrap(),
            node: Name::new("--help").unwrap(),
            generation: Generation(u64::MAX),
            nics: nics.clone(),
            run_dir: "-run dir".into(),
            state_dir: "/state".into(),
            program: PROGRAM,
        };
        let line = [OsString::from("afterimage")].into_iter().chain(charge.arguments());
        let Command::Keeper(args) = Cli::try_parse_from(line).unwrap().command else { panic!("another command") };
        assert_eq!((args.vm, args.node, args.generation), (charge.vm, Some(charge.node), u64::MAX));
        assert_eq!((&args.nics, &args.run_dir, &args.state_dir), (&nics, &charge.run_dir, &charge.state_dir));
        assert!(!args.settings().unwrap().by_hand, "that is an operator's word");
    }
}
