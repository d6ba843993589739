//! The command line.

use crate::{
    epoch::{Engine, Track, guest::GuestArgs, workload::Workload},
    link::{Network, Poll, Port, RcKnobs},
    qemu::QemuArgs,
    takeover::TakeoverArgs,
    units::{parse_size, parse_time},
};
use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use mc_core::{
    id::PAGE_SIZE,
    wire::slab::{MAX_SLAB, MIN_SLAB},
};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Measures the transports beside perftest and iperf3, on the same devices in the same run
#[derive(Debug, Parser)]
#[command(name = "mc-bench", version)]
pub struct Cli {
    /// What to measure.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Goodput of checkpoints, and latency of an empty one, from its commit record to its ACK
    Transport(TransportArgs),
    /// Beats beside bulk: losses and one-way times, idle and while checkpoints go over the same devices
    Beats(BeatsArgs),
    /// Capture engines on patterns of dirty pages, beside a plain memcpy; the device's beside ib_write_bw to itself
    Capture(CaptureArgs),
    /// The whole loop with a synthetic guest: pause, capture, commit, hold, apply, and what the guest loses
    Epoch(EpochArgs),
    /// Registration of memory that is there already, beside the bare verb
    Register(RegisterArgs),
    /// Everything that makes sense on this transport and this machine, in one record
    All(AllArgs),
    /// Show a stored record again
    Report(ReportArgs),
    /// Real kills of a protected VM: how long until somebody else runs it, phase by phase
    Takeover(TakeoverArgs),
    /// A real protected VM: its pauses beside those of QEMU's own COLO, and streams beside QEMU's own migrate
    Qemu(QemuArgs),
    /// Compare two stored records, figure by figure
    Compare(CompareArgs),
    /// The synthetic guest (started by `epoch`)
    #[command(hide = true)]
    Guest(GuestArgs),
    /// How soon a peer that dies, freezes or loses its link is suspected; and whether one that lives ever is
    Detect(crate::detect::DetectArgs),
    /// The peer of `detect`, which is there to die (started by it)
    #[command(hide = true)]
    DetectPeer,
    /// The other end of a measurement (started by the other commands)
    #[command(hide = true)]
    Peer {
        /// Where the first process listens
        #[arg(long)]
        control: SocketAddr,
    },
}

/// How often and for how long; the same for all commands.
#[derive(Clone, Debug, Args)]
pub struct Effort {
    /// Runs of everything; figures are medians
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// Time of each measurement, ours or a yardstick's (those take whole seconds)
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time, default_value = "2s")]
    pub time: Duration,
    /// Two runs of 300 ms: to see that it works
    #[arg(long, conflicts_with_all = ["runs", "time"])]
    pub quick: bool,
    /// Do not run perftest or iperf3
    #[arg(long)]
    pub no_yardsticks: bool,
    /// How it is shown
    #[command(flatten)]
    pub output: Output,
}

/// How a record is shown; the same for all commands that measure.
#[derive(Clone, Debug, Args)]
pub struct Output {
    /// Print one JSON record instead of tables
    #[arg(long)]
    pub json: bool,
    /// Also write record.json, report.html and an .hgrm of every histogram into this directory
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Exit code 5 if a bound is missed
    #[arg(long)]
    pub strict: bool,
}

impl Effort {
    /// With `--quick` applied.
    #[must_use]
    pub fn settled(&self) -> Self {
        let (runs, time) = if self.quick { (2, Duration::from_millis(300)) } else { (self.runs, self.time) };
        Self { runs, time, ..self.clone() }
    }
}

/// Which network, and where.
#[derive(Clone, Debug, Args)]
pub struct Where {
    /// Which transport
    #[arg(long, value_enum)]
    pub transport: Network,
    /// The sender's RDMA device
    #[arg(long, default_value = "rxe0")]
    pub device: String,
    /// The receiver's
    #[arg(long, default_value = "rxe1")]
    pub peer_device: String,
    /// Index in both devices' GID tables [default: the first RoCE v2 entry]
    #[arg(long, value_name = "N")]
    pub gid_index: Option<u8>,
    /// Bytes of each slab
    #[arg(long, value_name = "SIZE", value_parser = slab_size, default_value = "1MiB")]
    pub slab: usize,
    /// RDMA: bytes of one RDMA WRITE at most [default: the transport's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub slice: Option<usize>,
    /// RDMA: queue pairs [default: the transport's]
    #[arg(long)]
    pub queues: Option<usize>,
    /// RDMA: a completion with every so many work requests [default: the transport's]
    #[arg(long, value_name = "N")]
    pub signal_every: Option<u32>,
    /// RDMA: work requests outstanding on each queue pair [default: the transport's]
    #[arg(long, value_name = "N")]
    pub send_depth: Option<u32>,
    /// RDMA: local ACK timeout, 4.096 us * 2^N [default: the transport's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=31))]
    pub ack_timeout: Option<u8>,
}

impl Where {
    /// The queue pairs' knobs.
    #[must_use]
    pub fn knobs(&self) -> RcKnobs {
        let default = RcKnobs::default();
        RcKnobs {
            slice_bytes: self.slice.unwrap_or(default.slice_bytes),
            send_depth: self.send_depth.unwrap_or(default.send_depth),
            signal_every: self.signal_every.unwrap_or(default.signal_every),
            queues: self.queues.unwrap_or(default.queues),
            timeout: self.ack_timeout.or(default.timeout),
        }
    }

    /// Our port and the peer's; `None` if the transport is not RDMA.
    ///
    /// # Errors
    /// What is wrong with either.
    pub fn ports(&self) -> Result<Option<(Port, Port)>> {
        if self.transport != Network::Rdma {
            return Ok(None);
        }
        Ok(Some((Port::find(&self.device, self.gid_index)?, Port::find(&self.peer_device, self.gid_index)?)))
    }
}

/// `mc-bench transport`.
#[derive(Clone, Debug, Args)]
pub struct TransportArgs {
    /// Where
    #[command(flatten)]
    pub place: Where,
    /// Bytes of pages in a checkpoint
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',', value_parser = checkpoint_size,
          default_value = "4KiB,64KiB,1MiB,16MiB,64MiB")]
    pub size: Vec<usize>,
    /// Checkpoints under way at most (and 64 slabs)
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = depth, default_value = "1,4")]
    pub depth: Vec<usize>,
    /// Begin a checkpoint every so often instead of as soon as possible; latency counts from when it was due
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub every: Option<Duration>,
    /// What a side does that has nothing to do
    #[arg(long, value_enum, default_value_t = Poll::Busy)]
    pub poll: Poll,
    /// Bytes of ib_write_bw's messages [default: where it does best, which takes a sweep]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub yardstick_size: Option<usize>,
    /// Messages of perftest's latency tests
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(5..))]
    pub latency_iterations: u32,
    /// How much of it
    #[command(flatten)]
    pub effort: Effort,
}

/// `mc-bench beats`.
#[derive(Clone, Debug, Args)]
pub struct BeatsArgs {
    /// Where
    #[command(flatten)]
    pub place: Where,
    /// Time between beats
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "20ms")]
    pub every: Duration,
    /// Bytes of pages in each checkpoint of the load
    #[arg(long, value_name = "SIZE", value_parser = checkpoint_size, default_value = "16MiB")]
    pub size: usize,
    /// Checkpoints under way
    #[arg(long, value_parser = depth, default_value = "4")]
    pub depth: usize,
    /// What a side of the load does that has nothing to do; the product sleeps
    #[arg(long, value_enum, default_value_t = Poll::Event)]
    pub poll: Poll,
    /// How much of it
    #[command(flatten)]
    pub effort: Effort,
}

/// `mc-bench capture`.
#[derive(Clone, Debug, Args)]
pub struct CaptureArgs {
    /// Dirty pages
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=262_144))]
    pub pages: u32,
    /// Bytes of guest RAM, over which they are scattered
    #[arg(long, value_name = "SIZE", value_parser = checkpoint_size, default_value = "512MiB")]
    pub ram: usize,
    /// Bytes of each slab
    #[arg(long, value_name = "SIZE", value_parser = slab_size, default_value = "1MiB")]
    pub slab: usize,
    /// Threads that copy, up to so many [default: one for each processor, at most 4]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// Where the scattered pages are
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// The RDMA device that copies, if there is one
    #[arg(long, default_value = "rxe0")]
    pub device: String,
    /// Index in its GID table [default: the first RoCE v2 entry]
    #[arg(long, value_name = "N")]
    pub gid_index: Option<u8>,
    /// Pieces of guest RAM that one write gathers at most [default: the engine's]
    #[arg(long, value_name = "N")]
    pub gather: Option<u32>,
    /// Bytes of ib_write_bw's messages [default: where it does best, which takes a sweep]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub yardstick_size: Option<usize>,
    /// How much of it (`--for` is the yardstick's only)
    #[command(flatten)]
    pub effort: Effort,
}

/// `mc-bench epoch`.
#[derive(Clone, Debug, Args)]
pub struct EpochArgs {
    /// Where
    #[command(flatten)]
    pub place: Where,
    /// From one pause to the next, at least
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "20ms")]
    pub every: Duration,
    /// What the guest does
    #[arg(long, value_enum, value_delimiter = ',', default_value = "idle,sequential,uniform,zipf,database")]
    pub workload: Vec<Workload>,
    /// Its operations per second, or free
    #[arg(long, value_name = "N|free,...", value_delimiter = ',', value_parser = rate, default_value = "50000,free")]
    pub rate: Vec<Rate>,
    /// Of the guest's random numbers
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Bytes of guest RAM
    #[arg(long, value_name = "SIZE", value_parser = guest_ram, default_value = "64MiB")]
    pub ram: usize,
    /// Bytes of the primary's staging; the standby's holds any epoch
    #[arg(long, value_name = "SIZE", value_parser = checkpoint_size, default_value = "128MiB")]
    pub staging: usize,
    /// Checkpoints that were captured and not yet ACKed, at most
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub window: u64,
    /// Who copies
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    pub engine: Engine,
    /// How dirty pages are found
    #[arg(long, value_enum, default_value_t = Track::Auto)]
    pub track: Track,
    /// How much of it (`--for` unprotected, and again protected)
    #[command(flatten)]
    pub effort: Effort,
}

/// Operations per second; `None`: as fast as it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub Option<u64>);

/// `mc-bench register`.
#[derive(Clone, Debug, Args)]
pub struct RegisterArgs {
    /// The device to register with
    #[arg(long, default_value = "rxe0")]
    pub device: String,
    /// Bytes of memory
    #[arg(long, value_name = "SIZE", value_parser = checkpoint_size, default_value = "1GiB")]
    pub size: usize,
    /// How much of it (`--for` has no meaning here)
    #[command(flatten)]
    pub effort: Effort,
}

/// `mc-bench all`.
#[derive(Clone, Debug, Args)]
pub struct AllArgs {
    /// Which transport
    #[arg(long, value_enum)]
    pub transport: Network,
    /// The sender's RDMA device
    #[arg(long, default_value = "rxe0")]
    pub device: String,
    /// The receiver's
    #[arg(long, default_value = "rxe1")]
    pub peer_device: String,
    /// Fewer and shorter runs: less than ten minutes in all
    #[arg(long)]
    pub quick: bool,
    /// Only these commands
    #[arg(long, value_name = "COMMAND,...", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Print the command lines that would be run, and end
    #[arg(long)]
    pub list: bool,
    /// Do not run perftest or iperf3
    #[arg(long)]
    pub no_yardsticks: bool,
    /// How it is shown
    #[command(flatten)]
    pub output: Output,
}

/// `mc-bench report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// What `--json` printed or `--out` wrote
    #[arg(value_name = "RECORD.json")]
    pub record: PathBuf,
    /// Write the page into this file instead of printing tables
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write an .hgrm of every histogram into this directory instead of printing tables
    #[arg(long, value_name = "DIR")]
    pub hgrm: Option<PathBuf>,
    /// Print the record again instead of tables
    #[arg(long)]
    pub json: bool,
    /// Exit code 5 if a bound was missed
    #[arg(long)]
    pub strict: bool,
}

/// `mc-bench compare`.
#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// The record to compare with
    #[arg(value_name = "A.json")]
    pub a: PathBuf,
    /// The record to judge
    #[arg(value_name = "B.json")]
    pub b: PathBuf,
    /// Differences up to so many per cent do not matter
    #[arg(long, value_name = "PERCENT", value_parser = percent, default_value = "5")]
    pub margin: f64,
    /// Of the draws that make the intervals
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Exit code 5 if anything is worse
    #[arg(long)]
    pub strict: bool,
}

fn percent(text: &str) -> std::result::Result<f64, String> {
    let percent = text.parse().ok().filter(|p| (0.0..=100.0).contains(p));
    percent.ok_or_else(|| format!("{text:?} is not a share: expected 0 to 100 per cent"))
}

fn checkpoint_size(text: &str) -> std::result::Result<usize, String> {
    let bytes = parse_size(text)?;
    let whole = bytes.is_multiple_of(PAGE_SIZE);
    whole.then_some(bytes).ok_or_else(|| format!("{text} are not whole pages of 4 KiB"))
}

fn slab_size(text: &str) -> std::result::Result<usize, String> {
    let bytes = parse_size(text)?;
    let fits = (MIN_SLAB..=MAX_SLAB).contains(&bytes) && bytes.is_multiple_of(PAGE_SIZE);
    fits.then_some(bytes).ok_or_else(|| format!("slabs have 8KiB to 16MiB, in steps of 4KiB; {text} does not fit"))
}

fn threads(text: &str) -> std::result::Result<usize, String> {
    let threads = text.parse().ok().filter(|n| (1..=64).contains(n));
    threads.ok_or_else(|| format!("{text:?} is not a number of threads: expected 1 to 64"))
}

fn guest_ram(text: &str) -> std::result::Result<usize, String> {
    let bytes = checkpoint_size(text)?;
    let enough = bytes >= 16 * PAGE_SIZE;
    enough.then_some(bytes).ok_or_else(|| format!("guest RAM has 64KiB at least; {text} does not do"))
}

fn rate(text: &str) -> std::result::Result<Rate, String> {
    if text == "free" {
        return Ok(Rate(None));
    }
    let rate = text.parse().ok().filter(|n| (1..=100_000_000).contains(n));
    rate.map(|n| Rate(Some(n)))
        .ok_or_else(|| format!("{text:?} is not a rate: expected free, or 1 to 100000000 per second"))
}

fn depth(text: &str) -> std::result::Result<usize, String> {
    let depth = text.parse().ok().filter(|d| (1..=64).contains(d));
    depth.ok_or_else(|| format!("{text:?} is not a depth: expected 1 to 64"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transport(args: &str) -> std::result::Result<TransportArgs, String> {
        let words = ["mc-bench", "transport"].into_iter().chain(args.split_whitespace());
        match Cli::try_parse_from(words).map_err(|e| e.to_string())?.command {
            Command::Transport(args) => Ok(args),
            _ => unreachable!("not asked for"),
        }
    }

    #[test]
    fn sizes_and_depths_are_lists() {
        let args = transport("--transport rdma --size 4KiB,1MiB --depth 1,8 --slice 128KiB --queues 3").unwrap();
        assert_eq!((args.size, args.depth), (vec![4096, 1 << 20], vec![1, 8]));
        let knobs = args.place.knobs();
        assert_eq!((knobs.slice_bytes, knobs.queues), (128 << 10, 3));
        assert_eq!(knobs.signal_every, RcKnobs::default().signal_every);
    }

    #[test]
    fn the_defaults_are_the_published_ones() {
        let args = transport("--transport tcp").unwrap();
        assert_eq!((args.effort.runs, args.effort.time), (5, Duration::from_secs(2)));
        assert_eq!((args.place.slab, args.poll), (1 << 20, Poll::Busy));
        assert_eq!((args.place.device.as_str(), args.place.peer_device.as_str()), ("rxe0", "rxe1"));
        assert!(args.place.ports().unwrap().is_none(), "TCP needs no device");
    }

    #[test]
    fn quick_is_short() {
        let effort = transport("--transport tcp --quick").unwrap().effort.settled();
        assert_eq!((effort.runs, effort.time), (2, Duration::from_millis(300)));
        assert!(transport("--transport tcp --quick --runs 9").is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would() {
        for (wrong, words) in [
            ("--size 5KiB", "whole pages"),
            ("--size 4096", "64MiB"),
            ("--slab 4KiB", "8KiB to 16MiB"),
            ("--depth 0", "1 to 64"),
            ("--for 2", "20ms"),
            ("--ack-timeout 32", "0..=31"),
            ("--runs 0", "1..=1000"),
        ] {
            let error = transport(&format!("--transport tcp {wrong}")).unwrap_err();
            assert!(error.contains(words), "{wrong}: {error}");
        }
        assert!(transport("").unwrap_err().contains("--transport"));
    }
}
