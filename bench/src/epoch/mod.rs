//! `mc-bench epoch`: the whole loop, with a synthetic guest.
//!
//! ```text
//!  guest process                first process                          second process (mc-bench peer)
//!  workload on shared memory    primary machine, staging,   ──slabs──> standby machine, image
//!  messages ──────────────────> gate, capture engine        <───ACK───
//! ```
//!
//! The machines, drivers, staging, slabs and transports are the product's; the guest, the gate's other side and the arbiter
//! are stand-ins. A run is one guest: unprotected for a while, then protected for as long. After it the standby's image must be
//! guest RAM at the newest commit; if it is not, there is no figure but an error.
//!
//! | file | what |
//! |---|---|
//! | [`workload`], [`guest`] | the guest |
//! | [`source`] | checkpoints of it |
//! | [`gate`] | holds its messages |
//! | [`session`] | the primary's side of a run |
//! | [`standby`] | the standby's |
//! | [`figures`] | runs as measures |
//! | [`clock`] | the clock that all share |

pub mod clock;
pub mod figures;
pub mod gate;
pub mod guest;
pub mod session;
pub mod source;
pub mod standby;
pub mod workload;

use crate::{
    cli::{Effort, EpochArgs},
    interrupt,
    link::{Poll, Port, QUEUE},
    peer::{LinkSpec, Peer},
    record::Section,
    transport::network_line,
    units,
};
use anyhow::{Context, Result};
use capture::{
    Memcpy, WithSpare,
    parallel::{Options, Parallel},
    rdma::{self, LocalCopy},
    threads::Threads,
    track::{Mapped, TrackError, Tracker, Way},
};
use clap::ValueEnum;
use figures::Case;
use guest::{Guest, GuestSpec};
use mc_core::{
    capture::CaptureEngine,
    id::{Name, Node, NodeId, PAGE_SIZE},
    ram::SharedRam,
};
use session::{GENERATION, Session, Setup, compare};
use source::Source;
use standby::StandSpec;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// A run that fails is taken again so often; that it failed is reported.
const TRIES: u32 = 2;
/// The first moments, alone and protected, are not measured.
const WARM_UP: Duration = Duration::from_millis(100);

/// How dirty pages are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Track {
    /// The first of the others that this kernel has
    Auto,
    /// PAGEMAP_SCAN
    Scan,
    /// Soft-dirty bits
    SoftDirty,
    /// Comparing with a copy
    Compare,
}

impl Track {
    fn tracker(self, guest: &Guest, ram: &SharedRam) -> Result<Tracker, TrackError> {
        let mapped = Mapped { pid: guest.pid(), start: guest.address(), watched: guest.watched() };
        match self {
            Self::Auto => Tracker::best(mapped, ram),
            Self::Scan => Tracker::new(mapped, ram, Way::Scan),
            Self::SoftDirty => Tracker::new(mapped, ram, Way::SoftDirty),
            Self::Compare => Tracker::new(mapped, ram, Way::Compare),
        }
    }
}

/// Who copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// One thread, plain
    Memcpy,
    /// A thread for each processor, at most 4, past the caches
    Parallel,
    /// The RDMA device; memcpy steps in if it fails
    Rdma,
    /// parallel with more than one processor, else memcpy
    Auto,
}

/// What stays from one run to the next.
struct Bench<'a> {
    args: &'a EpochArgs,
    effort: Effort,
    ports: Option<(Port, Port)>,
    peer: Peer,
    /// How writes were tracked.
    tracked: &'static str,
    engine: &'static str,
}

/// Measures it all.
///
/// # Errors
/// A device is not to be had, a run fails as often as it is tried, or the standby's image is wrong.
pub fn run(args: &EpochArgs) -> Result<Section> {
    let began = Instant::now();
    let ports = args.place.ports()?;
    let network = network_line(ports.as_ref(), args.place.knobs());
    let mut bench = Bench { args, effort: args.effort.settled(), ports, peer: Peer::start()?, tracked: "", engine: "" };
    let mut cases = bench.cases();
    let mut failures = Vec::new();
    for round in interrupt::rounds(bench.effort.runs) {
        for case in &mut cases {
            bench.measure(round, case, &mut failures)?;
        }
    }
    let mut section = bench.head(&network);
    section.failures = failures;
    for case in &cases {
        section.measures.extend(case.measures());
        section.timelines.extend(case.timeline());
        section.failures.extend(case.complaint());
    }
    // One table for each figure.
    section.measures.sort_by_key(|m| figures::order(&m.name));
    section.took_s = began.elapsed().as_secs_f64();
    Ok(section)
}

impl Bench<'_> {
    fn cases(&self) -> Vec<Case> {
        let rates = |workload: &workload::Workload| match workload {
            // Nothing has no rate.
            workload::Workload::Idle => vec![None],
            _ => self.args.rate.iter().map(|rate| rate.0).collect(),
        };
        let workloads = self.args.workload.iter();
        workloads.flat_map(|w| rates(w).into_iter().map(|rate| Case::new(*w, rate))).collect()
    }

    fn measure(&mut self, round: u32, case: &mut Case, failures: &mut Vec<String>) -> Result<()> {
        for _ in 1..TRIES {
            match self.once(case) {
                Ok(()) => return case.tell(round),
                Err(error) => {
                    let what = format!("{}: {error:#}", case.name());
                    eprintln!("mc-bench: taken again: {what}");
                    failures.push(what);
                    self.peer = Peer::start()?;
                }
            }
        }
        self.once(case).with_context(|| case.name())?;
        case.tell(round)
    }

    /// One guest's life.
    fn once(&mut self, case: &mut Case) -> Result<()> {
        let (args, time) = (self.args, self.effort.time);
        let watch = matches!(args.track, Track::Auto | Track::Scan);
        let spec = GuestSpec { ram: args.ram, workload: case.workload, seed: args.seed, rate: case.rate, watch };
        let mut guest = Guest::start(&spec)?;
        guest.run_for(WARM_UP)?;
        let unprotected = guest.run_for(time)?;
        guest.pause()?;
        let blocks: Arc<[SharedRam]> = Arc::new([guest.ram()?]);
        let tracker = args.track.tracker(&guest, &blocks[0])?;
        let engine = self.engine(&blocks)?;
        (self.tracked, self.engine) = (tracker.way().name(), engine.name());
        let link = LinkSpec {
            ports: self.ports.clone(),
            knobs: args.place.knobs(),
            slab_bytes: args.place.slab,
            posts: QUEUE,
            poll: Poll::Event,
        };
        // Every page in one epoch, while the next begins to come: the standby has no spill file here.
        let staging = args.staging + args.ram / PAGE_SIZE * (PAGE_SIZE + 64) + QUEUE * args.place.slab;
        let stand = StandSpec { ram: args.ram, staging, generation: GENERATION + 1 };
        let (link, incarnation) = self.peer.stand(&link, stand)?;
        let setup = Setup { every: args.every, window: args.window, staging: args.staging, slab: args.place.slab };
        let source = Source::new(guest, Arc::clone(&blocks), tracker, engine);
        let run = Session::begin(&setup, link, incarnation, source)
            .and_then(|session| session.run(WARM_UP, time, &blocks[0]));
        match (run, self.peer.stood()) {
            (Ok((run, epoch, ram)), Ok(stood)) => {
                compare(epoch, &ram, &stood)?;
                case.add(unprotected, run, &stood, args.ram);
                Ok(())
            }
            (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
            (Err(ours), Err(theirs)) => Err(ours.context(format!("{theirs:#}"))),
        }
    }

    fn engine(&self, blocks: &Arc<[SharedRam]>) -> Result<Box<dyn CaptureEngine>> {
        let memcpy = || Memcpy::new(Arc::clone(blocks));
        let several = std::thread::available_parallelism().is_ok_and(|n| n.get() > 1);
        match self.args.engine {
            Engine::Auto if !several => Ok(Box::new(memcpy())),
            Engine::Memcpy => Ok(Box::new(memcpy())),
            Engine::Auto | Engine::Parallel => {
                Ok(Box::new(Parallel::new(Arc::clone(blocks), Threads::for_this_machine()?, Options::default())))
            }
            Engine::Rdma => {
                let place = &self.args.place;
                let port = Port::find(&place.device, place.gid_index)?;
                let options = rdma::Options { gid_index: port.gid_index, ..rdma::Options::default() };
                let device = LocalCopy::new(&port.open()?.context, blocks, &options)?;
                Ok(Box::new(WithSpare::new(Box::new(device), memcpy())))
            }
        }
    }

    fn head(&self, network: &str) -> Section {
        let (args, effort) = (self.args, &self.effort);
        let mut section = Section::new("epoch", format!("the whole loop with a synthetic guest, {network}"))
            .setting("epoch", format!("{} us", units::us(args.every)))
            .setting("window", format!("{} checkpoints", args.window))
            .setting("guest RAM", units::size(args.ram))
            .setting(
                "staging",
                format!("{} at the primary, slabs of {}", units::size(args.staging), units::size(args.place.slab)),
            )
            .setting("capture engine", self.engine)
            .setting("dirty pages from", self.tracked)
            .setting(
                "runs",
                format!("{} of {} s unprotected, then as long protected", effort.runs, effort.time.as_secs_f64()),
            );
        section.seed = Some(args.seed);
        section.notes = vec![
            "after each run the standby's image was guest RAM at the newest commit (BLAKE3)".to_owned(),
            "pauses begin when the guest is asked to stop; capture: layout, copy and checksums; hold: from when the guest \
             sent a message, one every ms, until it was let out"
                .to_owned(),
            "yardstick: the same guest just before, unprotected; nothing else does this loop. The link's is in `transport`, \
             the copy's in `capture`, another product's in `qemu`"
                .to_owned(),
        ];
        section
    }
}

/// One of the two ends: they need to differ, and nothing else.
fn node(name: &str, number: u8) -> Result<Node> {
    Ok(Node { name: Name::new(name)?, id: NodeId([number; 16]) })
}
