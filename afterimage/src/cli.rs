//! The command line. What a flag leaves open, the file and then the defaults decide: see [`crate::config`].

mod guess;
mod keepalive;
mod keeper;
mod out;
mod pair;
mod set;

pub use crate::config::{ProtectArgs, StandbyArgs, WitnessArgs};
pub use guess::parse;
pub use keepalive::{KeepaliveCommand, ProbeArgs, ServeArgs, TuneArgs};
pub use keeper::KeeperArgs;
pub(crate) use out::Out;
pub use pair::{KeepaliveSetArgs, KeepaliveShowArgs};
pub use set::SetArgs;

use crate::{config::parse_duration, witness::NodeSpec};
use api::Side;
use clap::{
    Args, Parser, Subcommand,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use mc_core::id::Name;
use node::exit::CODES;
use protection::processes::Program;
use std::{path::PathBuf, time::Duration};

const AFTER: &str = "\
Everything listens on loopback unless told otherwise. The link between the hosts is trusted for now: neither authenticated \
nor encrypted, so keep it on a network of its own.

Results go to stdout, narration to stderr (AFTERIMAGE_LOG=debug for more).";

/// How this program starts its own processes.
pub const PROGRAM: Program = Program { path: node::program::own, data_path: "data-path", keeper: "keeper" };

/// Keeps an after-image of a running QEMU VM on a second host.
///
/// Every few milliseconds the VM's changes are copied to a standby; what the VM sends is held until the standby has the
/// state that it was sent from. When the primary host dies, the standby resumes the VM, and no client sees more than a pause.
#[derive(Debug, Parser)]
#[command(name = "afterimage", version, after_help = AFTER, after_long_help = format!("{AFTER}\n\n{CODES}"))]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the arbiter: one compare-and-swap register per VM, on a third host
    #[command(
        after_long_help = help(
            "afterimage witness --listen 10.0.0.9:7400 --state /var/lib/afterimage\n\
             \x20 afterimage witness list\n\
             \x20 afterimage witness assign web host-b --yes-the-others-are-stopped"
        ),
        args_conflicts_with_subcommands = true
    )]
    Witness {
        /// Without a command: the daemon.
        #[command(flatten)]
        args: WitnessArgs,
        /// Ask or tell a running witness, on its host
        #[command(subcommand)]
        command: Option<WitnessCommand>,
    },
    /// Protect a VM that runs on this host
    #[command(after_long_help = help(
        "afterimage protect --vm web --qmp /run/web.qmp --nic /run/web.net=tap0 \\\n\
         \x20     --to 10.0.0.2:7410 --arbiter witness://10.0.0.9:7400"
    ))]
    Protect(ProtectArgs),
    /// Stand by for a VM that runs on another host
    #[command(after_long_help = help(
        "afterimage standby --vm web --listen 10.0.0.2:7410 --nic /run/web.net=tap0 \\\n\
         \x20     --arbiter witness://10.0.0.9:7400 \\\n\
         \x20     -- qemu-system-x86_64 -machine pc -m 128 -cpu qemu64 -nographic"
    ))]
    Standby(StandbyArgs),
    /// Show the state of the VMs on this host; exits with 3 if one is not protected
    #[command(after_long_help = help("afterimage status --vm web --json"))]
    Status(StatusArgs),
    /// Explain why roles changed on this host: every failover, fencing, refusal and fall-back, from the VMs' journals
    #[command(after_long_help = help("afterimage why --vm web --last 1"))]
    Why(WhyArgs),
    /// On the standby: take the VM over
    ///
    /// With --arbiter manual, or once the witness has been away for 3 s, you decide. Otherwise the witness decides: a healthy
    /// primary asks it too, and may win. While the primary's beats still arrive, name it: --although-it-beats NODE. Waits for
    /// the outcome; exit codes: 0 the VM runs here, 4 the other side won, 3 nothing is decided yet.
    #[command(after_long_help = help("afterimage takeover --vm web --yes-the-other-side-is-stopped"))]
    Takeover(OperatorArgs),
    /// On the primary: go on without the standby
    ///
    /// With --arbiter manual, or once the witness has been away for 3 s, you decide. While the standby's beats still arrive,
    /// name it: --although-it-beats NODE. Waits for the outcome; exit codes: 0 the VM runs on alone, 4 the other side won, 3
    /// nothing is decided yet.
    #[command(after_long_help = help("afterimage solo --vm web --yes-the-other-side-is-stopped"))]
    Solo(OperatorArgs),
    /// Accept a new witness for one VM, in place of the one that this node knows; run it on both hosts, once the old witness
    /// is gone for good
    #[command(after_long_help = help("afterimage accept-witness --vm web"))]
    AcceptWitness(AcceptWitnessArgs),
    /// On the primary: end protection, with the arbiter's consent; the VM runs on, its network intact
    #[command(after_long_help = help("afterimage unprotect --vm web"))]
    Unprotect(UnprotectArgs),
    /// On the primary: look for a standby again after `unprotect`, or now instead of at the next try
    #[command(after_long_help = help("afterimage reprotect --vm web"))]
    Reprotect(ReprotectArgs),
    /// Export the VM that a standby holds
    Image {
        /// What to do with it.
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Measure and tune the failure detector; show and change that of a running pair
    Keepalive {
        /// What to do.
        #[command(subcommand)]
        command: KeepaliveCommand,
    },
    /// On the primary: change the epoch, the staging, and the policy for full staging of a running pair
    #[command(after_long_help = help("afterimage set --vm web epoch=50ms staging=128MiB on_cap=grow:64MiB --save"))]
    Set(SetArgs),
    /// Check configuration files
    Config {
        /// What to do with it.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Show this host's RDMA devices
    Rdma {
        /// What to do with them.
        #[command(subcommand)]
        command: RdmaCommand,
    },
    /// The part of `protect` that moves checkpoints; `protect` starts it
    #[command(hide = true)]
    DataPath,
    /// Pass packets between a VM that nobody protects and its network. Started by `standby` and `protect`
    #[command(hide = true)]
    Keeper(KeeperArgs),
}

fn help(example: &str) -> String {
    format!("Example:\n  {example}\n\n{AFTER}\n\n{CODES}")
}

/// `afterimage image …`
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// On the standby, when its takeover failed or waits for the arbiter: write the VM as files that a stock QEMU loads
    #[command(after_long_help = help("afterimage image export --vm web --to /var/tmp"))]
    Export(ExportArgs),
}

/// `afterimage config …`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a file, and print every setting with its value and where that comes from
    #[command(after_long_help = help("afterimage config check /etc/afterimage.toml"))]
    Check {
        /// The TOML file, with sections `[witness]`, `[protect]`, `[standby]`
        file: PathBuf,
    },
    /// Print docs/SETTINGS.md: every setting of every command, what it may be, and its default
    Settings,
}

/// `afterimage rdma …`
#[derive(Debug, Subcommand)]
pub enum RdmaCommand {
    /// Show the devices, their addresses, what they can do, and which one is the default; exits with 6 if there is none
    #[command(after_long_help = help("afterimage rdma devices --json"))]
    Devices {
        /// A JSON object instead of text
        #[arg(long)]
        json: bool,
    },
}

/// `afterimage witness …`, to a running witness
#[derive(Debug, Subcommand)]
pub enum WitnessCommand {
    /// Show the VMs that it knows: what their registers hold, and which nodes it still waits for
    #[command(after_long_help = help("afterimage witness list --json"))]
    List {
        /// The --state of the running witness
        #[arg(long, value_name = "DIR", default_value = node::journal::STATE_DIR)]
        state: PathBuf,
        /// One JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Give a VM to a node, whatever the nodes say: when they disagree, or one will never come back
    #[command(after_long_help = help("afterimage witness assign web host-b --yes-the-others-are-stopped"))]
    Assign {
        /// The VM
        vm: Name,
        /// The node: NAME, if the witness knows one of that name, or NAME=ID
        node: NodeSpec,
        /// The --state of the running witness
        #[arg(long, value_name = "DIR", default_value = node::journal::STATE_DIR)]
        state: PathBuf,
        /// Confirm that the VM runs on no other host: you checked that the host is off, or that its QEMU is killed. If it ran
        /// there, two copies would answer the same clients, and nothing could merge them again
        #[arg(long)]
        yes_the_others_are_stopped: bool,
    },
    /// Remove a VM that no longer exists; refused while its nodes still report it
    #[command(after_long_help = help("afterimage witness forget web"))]
    Forget {
        /// The VM
        vm: Name,
        /// The --state of the running witness
        #[arg(long, value_name = "DIR", default_value = node::journal::STATE_DIR)]
        state: PathBuf,
    },
}

/// `afterimage accept-witness`
#[derive(Debug, Args)]
pub struct AcceptWitnessArgs {
    /// The VM
    #[arg(long, value_name = "NAME")]
    pub vm: Name,
    /// The --state-dir of its `protect` or `standby`
    #[arg(long, value_name = "DIR", default_value = node::journal::STATE_DIR)]
    pub state_dir: PathBuf,
}

/// A side of a VM that a process runs on, or `keeper`.
pub(crate) fn sides() -> impl TypedValueParser<Value = Side> {
    let word = |side: Side, help: &'static str| PossibleValue::new(side.as_str()).help(help);
    let words = [
        word(Side::Primary, "Where `afterimage protect` runs"),
        word(Side::Standby, "Where `afterimage standby` runs"),
        word(Side::Keeper, "The process that passes packets while nobody protects the VM"),
    ];
    PossibleValuesParser::new(words).map(|word| Side::named(&word).unwrap_or(Side::Primary))
}

/// `afterimage status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only this VM
    #[arg(long, value_name = "NAME")]
    pub vm: Option<Name>,
    /// Only this side
    #[arg(long, value_parser = sides())]
    pub role: Option<Side>,
    /// Directory of the control sockets
    #[arg(long, value_name = "DIR", default_value = api::RUN_DIR)]
    pub run_dir: PathBuf,
    /// JSON instead of text: an array, or with --vm and a single process one object
    #[arg(long)]
    pub json: bool,
    /// Repeat: redraw on a terminal, else print a line for each change; with --json, an object per VM and line
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "1s", value_parser = parse_duration)]
    pub watch: Option<Duration>,
}

/// `afterimage why`
#[derive(Clone, Debug, Args)]
pub struct WhyArgs {
    /// Only this VM
    #[arg(long, value_name = "NAME")]
    pub vm: Option<Name>,
    /// Only the newest N incidents
    #[arg(long, value_name = "N", conflicts_with = "since")]
    pub last: Option<usize>,
    /// Only incidents since this time: "10m", "2h" or "3d" ago, or in UTC, such as "2026-11-25 22:31:00"
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// Directory of the journals
    #[arg(long, value_name = "DIR", default_value = node::journal::STATE_DIR)]
    pub state_dir: PathBuf,
}

/// `afterimage image export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The VM
    #[arg(long, value_name = "NAME")]
    pub vm: Name,
    /// Directory for NAME.vmstate and NAME.txt, as the standby's process sees it. Neither file may exist yet
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Directory of the control sockets
    #[arg(long, value_name = "DIR", default_value = api::RUN_DIR)]
    pub run_dir: PathBuf,
}

/// `afterimage unprotect`
#[derive(Debug, Args)]
pub struct UnprotectArgs {
    /// The VM
    #[arg(long, value_name = "NAME")]
    pub vm: Name,
    /// Directory of the control sockets
    #[arg(long, value_name = "DIR", default_value = api::RUN_DIR)]
    pub run_dir: PathBuf,
    /// Do not wait for the outcome: exit with 0 once the order is accepted
    #[arg(long)]
    pub no_wait: bool,
}

/// `afterimage reprotect`
#[derive(Debug, Args)]
pub struct ReprotectArgs {
    /// The VM
    #[arg(long, value_name = "NAME")]
    pub vm: Name,
    /// Directory of the control sockets
    #[arg(long, value_name = "DIR", default_value = api::RUN_DIR)]
    pub run_dir: PathBuf,
}

/// `afterimage takeover`, `afterimage solo`
#[derive(Debug, Args)]
pub struct OperatorArgs {
    /// The VM
    #[arg(long, value_name = "NAME")]
    pub vm: Name,
    /// Directory of the control sockets
    #[arg(long, value_name = "DIR", default_value = api::RUN_DIR)]
    pub run_dir: PathBuf,
    /// Confirm that the VM does not run on the other host: you checked that the host is off, or that its QEMU is killed. If it
    /// ran there, two copies would answer the same clients, and nothing could merge them again
    #[arg(long)]
    pub yes_the_other_side_is_stopped: bool,
    /// Needed while beats of the other host still arrive; names that host. For a switchover, which the witness decides; or when
    /// you know that its VM does not run although its `afterimage` does
    #[arg(long, value_name = "NODE")]
    pub although_it_beats: Option<Name>,
    /// Do not wait for the outcome: exit with 0 once the order is accepted
    #[arg(long)]
    pub no_wait: bool,
}
