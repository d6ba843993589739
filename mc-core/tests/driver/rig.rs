//! Both drivers, a guest, a link and a register, in one thread, with a clock that only the test moves.

use crate::{
    guest::{BLOCKS, Gate, Guest, SharedGuest, Snapshot, Source},
    link::{Cut, Link, Probe, pair},
};
use mc_core::{
    driver::{Attachment, Clock, PrimaryDriver, PrimaryErrand, SpillFile, StandbyDriver, StandbyErrand},
    id::{BlockId, Epoch, Generation, Incarnation, Name, Node, NodeId, PAGE_SIZE, Time},
    image::Image,
    primary::{self, Primary},
    ram::SharedRam,
    register::{CasOutcome, Mode, Owner, Register, Swap},
    slab::SlabPool,
    staging::Staging,
    standby::{self, Standby},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Bytes of every slab: the smallest, one page each, so that a few dirty pages are a large checkpoint.
pub(crate) const SLAB: usize = 8192;

/// A clock that stands still until it is moved.
#[derive(Clone, Debug, Default)]
pub(crate) struct ManualClock(pub(crate) Arc<AtomicU64>);

impl Clock for ManualClock {
    fn now(&self) -> Time {
        Time(self.0.load(Ordering::Relaxed))
    }
}

/// What a rig is made of.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Pages the guest dirties at each step.
    pub(crate) appetite: usize,
    pub(crate) window: u64,
    /// Slabs of each side's staging.
    pub(crate) primary_slabs: usize,
    pub(crate) standby_slabs: usize,
    pub(crate) spill: bool,
    pub(crate) cut: Option<Cut>,
    /// The source fails instead of this capture.
    pub(crate) source_fails: Option<usize>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            seed: 1,
            appetite: 3,
            window: 2,
            primary_slabs: 64,
            standby_slabs: 64,
            spill: false,
            cut: None,
            source_fails: None,
        }
    }
}

pub(crate) struct Rig {
    pub(crate) guest: SharedGuest,
    pub(crate) primary: PrimaryDriver<Source, Gate, ManualClock>,
    pub(crate) standby: StandbyDriver<Link, ManualClock>,
    pub(crate) probe: Probe,
    pub(crate) register: Register,
    pub(crate) clock: ManualClock,
    /// Everything the drivers asked of their callers but what the rig answers itself.
    pub(crate) fenced: bool,
    pub(crate) solo: bool,
    pub(crate) taken_over: Option<(Generation, Epoch)>,
    pub(crate) log: Vec<String>,
    source_fails: Option<usize>,
    standby_slabs: usize,
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A node, by its name's first letter.
pub(crate) fn node(text: &str) -> Node {
    Node { name: name(text), id: NodeId([text.as_bytes()[0]; 16]) }
}

pub(crate) fn image() -> Image {
    Image::new(BLOCKS.iter().map(|pages| SharedRam::anonymous(pages * PAGE_SIZE).unwrap()).collect())
}

impl Rig {
    /// Both sides are up, and the full synchronisation begins.
    pub(crate) fn new(plan: &Plan) -> Self {
        Self::with_spill(plan, plan.spill.then(|| SpillFile::new(tempfile::tempfile().unwrap())))
    }

    /// The same, over this spill file.
    pub(crate) fn with_spill(plan: &Plan, spill: Option<SpillFile>) -> Self {
        let owner = Owner { node: node("a"), instance: 1 };
        let register = Register { generation: Generation(1), owner, mode: Mode::Solo };
        let guest = Guest::new(plan.seed, plan.appetite);
        let clock = ManualClock::default();
        let (epoch, commit_deadline) = (Duration::from_millis(1), Duration::from_secs(60));
        let config = primary::Config { epoch, window: plan.window, commit_deadline };
        let staging = Staging::new(SlabPool::new(SLAB, plan.primary_slabs * SLAB));
        let gate = Gate::new(guest.clone());
        let primary = PrimaryDriver::new(Primary::new(config, register), staging, gate, clock.clone());
        let owner = Owner { node: node("b"), instance: 1 };
        let config = standby::Config { owner, rehearse: true };
        let standby = StandbyDriver::new(Standby::new(config), clock.clone());
        let (_, _, probe) = pair(None);
        let mut rig = Self {
            guest,
            primary,
            standby,
            probe,
            register,
            clock,
            fenced: false,
            solo: false,
            taken_over: None,
            log: Vec::new(),
            source_fails: plan.source_fails,
            standby_slabs: plan.standby_slabs,
        };
        rig.begin(plan.cut, spill);
        rig
    }

    /// A session.
    pub(crate) fn attach(&mut self, cut: Option<Cut>) {
        self.begin(cut, None);
    }

    fn begin(&mut self, cut: Option<Cut>, spill: Option<SpillFile>) {
        let (ours, theirs, probe) = pair(cut);
        self.probe = probe;
        let incarnation = Incarnation(77 + self.register.generation.0);
        let generation = self.register.generation.next();
        self.guest.borrow_mut().snapshots.clear();
        let pool = SlabPool::new(SLAB, self.standby_slabs * SLAB);
        let link = theirs;
        self.standby.attach(Attachment { link, incarnation, generation, instance: 1, image: image(), pool, spill });
        let mut source = Source::new(self.guest.clone());
        source.fail_at = self.source_fails;
        self.primary.attach(ours, incarnation, source, Owner { node: node("b"), instance: 1 });
        self.primary.event(primary::Event::BeatsProven);
    }

    /// The guest runs, both drivers pump, a millisecond passes.
    pub(crate) fn step(&mut self) {
        self.guest.borrow_mut().run();
        self.pump_primary();
        self.pump_standby();
        self.clock.0.fetch_add(1_000_000, Ordering::Relaxed);
    }

    /// Steps until `done`; panics when that never comes.
    pub(crate) fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..5_000 {
            if done(self) {
                return;
            }
            self.step();
            self.check();
        }
        panic!("never: {what}; {:?} {:?} {:?}", self.primary.machine(), self.standby.machine(), self.log);
    }

    pub(crate) fn pump_primary(&mut self) {
        self.primary.pump();
        while let Some(errand) = self.primary.errand() {
            match errand {
                PrimaryErrand::Cas(swap) => {
                    let outcome = self.swap(&swap);
                    self.primary.event(primary::Event::Cas(outcome));
                }
                PrimaryErrand::StartSource => {}
                PrimaryErrand::LeaveSource => {
                    self.solo = true;
                    self.guest.borrow_mut().stopped = false;
                }
                PrimaryErrand::Fence => {
                    self.fenced = true;
                    self.guest.borrow_mut().stopped = true;
                }
                other => self.log.push(format!("{other:?}")),
            }
        }
    }

    pub(crate) fn pump_standby(&mut self) {
        self.standby.pump();
        while let Some(errand) = self.standby.errand() {
            match errand {
                StandbyErrand::ReadRegister => {
                    self.standby.event(standby::Event::RegisterRead(Some(self.register)));
                }
                StandbyErrand::Cas(swap) => {
                    let outcome = self.swap(&swap);
                    self.standby.event(standby::Event::Cas(outcome));
                }
                StandbyErrand::TakeOver { generation, epoch } => {
                    self.taken_over = Some((generation, epoch));
                    self.standby.event(standby::Event::Running);
                }
                StandbyErrand::Rehearse(_) => self.standby.rehearsed(Ok(())),
                StandbyErrand::EndRehearsal => {}
                other => self.log.push(format!("{other:?}")),
            }
        }
        // As a caller does each second.
        if matches!(self.standby.machine().role(), standby::Role::Lost | standby::Role::Disputed) {
            self.standby.event(standby::Event::RegisterRead(Some(self.register)));
        }
    }

    fn swap(&mut self, swap: &Swap) -> CasOutcome {
        if self.register.generation != swap.expect {
            return CasOutcome::Lost(Some(self.register));
        }
        self.register = swap.new;
        CasOutcome::Won(swap.new)
    }

    /// What the standby's image must be: the guest as it was when the committed epoch was captured.
    pub(crate) fn committed(&self) -> Option<Snapshot> {
        let (_, epoch) = self.standby.machine().committed();
        let index = usize::try_from(epoch.0).unwrap().checked_sub(1)?;
        self.guest.borrow().snapshots.get(index).cloned()
    }

    /// The image is that of the committed epoch, no output left that it does not cover, and no pool outgrew its cap.
    pub(crate) fn check(&mut self) {
        for stats in std::iter::once(self.primary.pool_stats()).chain(self.standby.pool_stats()) {
            assert!(stats.most_bytes <= stats.limit_bytes && stats.live_bytes <= stats.limit_bytes, "{stats:?}");
        }
        let (Some(expected), Some(image)) = (self.committed(), self.standby.image()) else { return };
        for (i, ram) in expected.ram.iter().enumerate() {
            let same = image.block(BlockId(u16::try_from(i).unwrap())) == *ram;
            assert!(same, "block {i} of the image is not that of {:?}", self.standby.machine().committed());
        }
        assert!(image.device() == expected.device, "device state of {:?}", self.standby.machine().committed());
        // Until an epoch was committed that was captured with output held, this image is nobody's to run.
        let out = self.primary.gate.out;
        let counts = !self.solo && self.standby.machine().is_entitled();
        assert!(!counts || out <= expected.sent, "packet {out} left, the image knows {}", expected.sent);
    }

    /// Bytes of slabs that are not in the pools.
    pub(crate) fn slabs_away(&mut self) -> (u64, u64) {
        let standby = self.standby.pool_stats().map_or(0, |stats| stats.used_bytes);
        (self.primary.pool_stats().used_bytes, standby)
    }
}
