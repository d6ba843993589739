//! A host: its clock, its process, what the process has begun, and its guest's place.

use crate::{
    guest::{Gate, Room, Stands, Vm, Word},
    net::{SharedNet, ToWitness},
    observer::{Observer, SharedLedger, name},
    session::{Door, address},
};
use anyhow::Result;
use mc_core::id::{Name, Node, Time};
use node::{
    HostSettings,
    arbiter::{ArbiterClient, ArbiterConfig, ArbiterSpec, Steps as Arbiter},
    inbox::Outbox,
    keepalive::Steps as Beats,
    primary::{self, session::Search},
    standby,
};
use std::{
    cell::Cell,
    path::PathBuf,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// What runs on it.
pub(crate) enum Process {
    None,
    Starting(Box<primary::Start<Vm>>),
    Primary(Box<primary::Runner<Vm>>),
    Standby(Box<standby::Runner<Vm>>),
}

/// Its clock: nanoseconds ahead, and parts per million too fast.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock {
    pub(crate) ahead: u64,
    pub(crate) ppm: i64,
}

impl Clock {
    pub(crate) fn local(self, now: u64) -> u64 {
        let drift = i128::from(now) * i128::from(self.ppm) / 1_000_000;
        u64::try_from(i128::from(now + self.ahead) + drift).unwrap_or(0)
    }

    /// When this clock will show `local`, or a little later.
    pub(crate) fn when(self, local: u64) -> u64 {
        let local = i128::from(local) - i128::from(self.ahead);
        u64::try_from(local * 1_000_000 / i128::from(1_000_000 + self.ppm) + 1).unwrap_or(0)
    }
}

/// A question to the witness, or none.
pub(crate) struct Asking {
    pub(crate) steps: Arbiter,
    pub(crate) due: u64,
    /// A question or an answer is on its way until `due`.
    pub(crate) under_way: bool,
}

/// See the module.
pub(crate) struct Host {
    pub(crate) number: usize,
    pub(crate) clock: Clock,
    pub(crate) process: Process,
    /// Tells this process from those before it.
    pub(crate) life: u64,
    /// Started as a primary, or as a standby.
    pub(crate) leads: bool,
    pub(crate) room: Room,
    pub(crate) stands: Rc<Cell<Stands>>,
    pub(crate) boots: Rc<Cell<bool>>,
    pub(crate) out: Option<Outbox<Word>>,
    pub(crate) beats: Vec<Beats>,
    pub(crate) asking: Vec<Asking>,
    pub(crate) search: Option<(u64, Search, mc_core::wire::session::Hello)>,
    pub(crate) door: Door,
    pub(crate) turn_due: u64,
    pub(crate) beats_due: u64,
    /// Loop, beat thread: still until then.
    pub(crate) still: [u64; 2],
    /// Of the copy that is received here.
    pub(crate) session: usize,
    pub(crate) compared: (u64, u64),
    /// How often a takeover fails here.
    pub(crate) fails: Cell<u8>,
    dir: PathBuf,
}

fn named(text: &str) -> Name {
    Name::new(text).unwrap_or_else(|_| unreachable!("a name"))
}

impl Host {
    pub(crate) fn new(number: usize, dir: PathBuf) -> Self {
        Self {
            number,
            clock: Clock { ahead: 3_600_000_000_000 * (1 + number as u64), ppm: 0 },
            process: Process::None,
            life: 0,
            leads: number == 0,
            room: Room::default(),
            stands: Rc::default(),
            boots: Rc::default(),
            out: None,
            beats: Vec::new(),
            asking: Vec::new(),
            search: None,
            door: Door::default(),
            turn_due: u64::MAX,
            beats_due: u64::MAX,
            still: [0; 2],
            session: 0,
            compared: (0, 0),
            fails: Cell::default(),
            dir,
        }
    }

    fn settings(&self) -> HostSettings {
        let arbiter = ArbiterSpec::Witness("w:7700".parse().unwrap_or_else(|_| unreachable!("an address")));
        let mut settings = HostSettings::new(named("vm"), named(name(self.number)), arbiter, &self.dir);
        settings.beats.interval = Duration::from_millis(50);
        settings.staging_bytes = 16 * 8192;
        settings.beating(Duration::from_millis(50), 5)
    }

    fn client(&self, net: &SharedNet) -> Result<ArbiterClient> {
        let settings = self.settings();
        let config = ArbiterConfig {
            spec: settings.arbiter.clone(),
            vm: settings.vm,
            node: self.node()?,
            run_dir: self.dir.clone(),
            state_dir: self.dir.clone(),
            accept_witness: false,
        };
        Ok(ArbiterClient::dialling(&config, Box::new(ToWitness { net: Arc::clone(net), host: self.number }))?)
    }

    pub(crate) fn node(&self) -> Result<Node> {
        node::identity::node(&self.dir, named(name(self.number)))
    }

    fn vm(&self, ledger: &SharedLedger, observer: &Arc<Mutex<Observer>>) -> Vm {
        let (room, boots) = (self.room.clone(), self.boots.clone());
        Vm {
            host: self.number,
            room,
            ledger: ledger.clone(),
            observer: Arc::clone(observer),
            instance: None,
            boots,
            attempts: self.fails.clone(),
        }
    }

    /// The process that wants to run the VM; `vm`: which it has.
    pub(crate) fn lead(
        &mut self,
        vm: Option<Vm>,
        (net, ledger, observer): (&SharedNet, &SharedLedger, &Arc<Mutex<Observer>>),
    ) -> Result<()> {
        let vm = vm.unwrap_or_else(|| self.vm(ledger, observer));
        let (heard, host, air) = (Arc::clone(observer), self.number, Arc::clone(net));
        let (out, gate) = Gate::new(&self.stands, move |word| {
            let now = crate::net::lock(&air).now;
            heard.lock().unwrap_or_else(PoisonError::into_inner).hears(now, host, word);
        })?;
        self.out = Some(out);
        let to = if self.number == 0 { "b:7000" } else { "a:7000" };
        let to: node::arbiter::HostPort = to.parse().unwrap_or_else(|_| unreachable!("an address"));
        let mut settings = primary::Settings::new(self.settings(), to);
        settings.epoch = Duration::from_millis(40);
        settings.slab_bytes = 8192;
        let arbiter = self.client(net)?;
        self.process = Process::Starting(Box::new(primary::Start::new(settings, arbiter, vm, gate)?));
        Ok(())
    }

    /// The process that stands by.
    pub(crate) fn follow(
        &mut self,
        (net, ledger, observer): (&SharedNet, &SharedLedger, &Arc<Mutex<Observer>>),
    ) -> Result<()> {
        let vm = self.vm(ledger, observer);
        self.door = Door::default();
        node::outside::World::open(Box::new(self.door.clone()));
        let settings = standby::Settings::new(self.settings(), address(self.number));
        let arbiter = self.client(net)?;
        self.process = Process::Standby(Box::new(standby::Runner::with_arbiter(settings, arbiter, vm)?));
        Ok(())
    }

    /// The process is no more, and with it what it had begun, and its guest.
    pub(crate) fn dies(&mut self) {
        self.life += 1;
        self.process = Process::None;
        (self.out, self.search) = (None, None);
        self.beats.clear();
        self.asking.clear();
        *self.room.borrow_mut() = None;
        self.stands.set(Stands::Shut);
        (self.turn_due, self.beats_due) = (u64::MAX, u64::MAX);
        self.door.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Until when its loop sleeps.
    pub(crate) fn sleeps(&self, now: u64) -> u64 {
        use node::{primary::PrimaryLoop as _, standby::StandbyLoop as _};
        let (until, longest) = match &self.process {
            Process::None => return u64::MAX,
            Process::Starting(_) => (None, Duration::from_secs(1)),
            Process::Primary(runner) => runner.sleeps(),
            Process::Standby(runner) => runner.sleeps(),
        };
        let latest = Time(self.clock.local(now)).after(longest);
        // A turn takes some time: what is due at once is due a little later.
        self.clock.when(until.map_or(latest, |until| until.min(latest)).0).max(now + 200_000)
    }
}
