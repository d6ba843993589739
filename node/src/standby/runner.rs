//! The loop of a VM that needs nothing else done in it.

use super::{Begin, Caller, LastCopy, Ready, Right, Standby, StandbyLoop, StandbyVm, TakenOver, Won, mishaps};
use crate::{
    arbiter::ArbiterClient,
    beats::Wish,
    events::{Event as Told, Rehearsed, Rehearsing, Running, TakeoverFailed, emit, ms},
    exit::{self, Code, ExitError},
    host::HostSettings,
    paths::PathsConfig,
    place::Place,
    units::spoken,
};
use anyhow::{Context, Error, Result};
use mc_core::{
    id::{Epoch, Time},
    standby::{Event, Role},
};
use std::{net::SocketAddr, path::Path, time::Duration};

/// Between two attempts to take the VM over, at most.
const LONGEST: Duration = Duration::from_secs(30);

/// What an embedder's standby is about. Times are those of `afterimage standby`, unless set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// As for either side.
    pub host: HostSettings,
    /// Where to wait for the VM's primary.
    pub listen: SocketAddr,
    /// Whether [`StandbyVm::rehearse`] has to pass before the copy protects.
    pub rehearse: bool,
}

impl Settings {
    /// With a rehearsal.
    #[must_use]
    pub fn new(host: HostSettings, listen: SocketAddr) -> Self {
        Self { host, listen, rehearse: true }
    }
}

/// A takeover that has not succeeded yet.
#[derive(Debug)]
struct Pending {
    won: Won,
    failures: u32,
    next: Time,
}

/// See the module.
#[derive(Debug)]
pub struct Runner<V: StandbyVm> {
    settings: Settings,
    paths: PathsConfig,
    vm: V,
    standby: Standby,
    pending: Option<Pending>,
    place: Place,
    /// The VM is being run: it may have written to the image.
    attempting: bool,
}

impl<V: StandbyVm> Runner<V> {
    /// Waits for a primary at [`Settings::listen`], which is bound from here on.
    ///
    /// # Errors
    /// A setting that makes no sense, which is named; another process of this node runs this VM or stands by for it, or uses the address; no
    /// identity, no thread.
    pub fn new(settings: Settings, vm: V) -> Result<Self> {
        settings.host.check()?;
        // First of all: of two standbys of this VM the second one is told so.
        let last_copy = LastCopy::open(&settings.host.state_dir, settings.host.vm)?;
        let place = settings.host.place()?;
        let arbiter = settings.host.ask()?;
        Self::begin(settings, (last_copy, place), arbiter, vm)
    }

    /// The same with an arbiter of the embedder's own ([`ArbiterClient::with_backend`]), whatever [`HostSettings::arbiter`] is.
    ///
    /// # Errors
    /// As for [`Runner::new`].
    pub fn with_arbiter(settings: Settings, arbiter: ArbiterClient, vm: V) -> Result<Self> {
        settings.host.check()?;
        let last_copy = LastCopy::open(&settings.host.state_dir, settings.host.vm)?;
        let place = settings.host.place()?;
        Self::begin(settings, (last_copy, place), arbiter, vm)
    }

    fn begin(settings: Settings, (last_copy, place): (LastCopy, Place), arbiter: ArbiterClient, vm: V) -> Result<Self> {
        let HostSettings { vm: name, staging_bytes, .. } = settings.host;
        let begin = Begin {
            vm: name,
            this: settings.host.this()?,
            listen: settings.listen,
            staging_bytes: staging_bytes as u64,
            rehearse: settings.rehearse,
            gone: last_copy.gone()?,
            last_copy,
        };
        let (standby, paths) = (Standby::new(begin, arbiter)?, settings.host.paths());
        Ok(Self { standby, settings, paths, vm, pending: None, place, attempting: false })
    }

    /// Where it waits.
    #[must_use]
    // No program calls this: for an embedder that listens at port 0, as the tests do.
    pub fn listens_at(&self) -> SocketAddr {
        self.standby.listens_at()
    }

    /// Until the VM was taken over, which is returned with the right to go on as its primary.
    ///
    /// # Errors
    /// The image cannot be trusted, or is another node's; `poll(2)` failed; a bug. A copy that the register may name was kept, where
    /// the VM has a place for it ([`StandbyVm::keep`]).
    pub fn run(mut self) -> Result<TakenOver<V>> {
        self.standby.tell_waiting(None);
        while !self.has_taken_over() {
            let done = mishaps(|| self.turn());
            self.judged(done)?;
        }
        self.end()
    }

    /// Whether the VM runs here.
    #[must_use]
    pub fn has_taken_over(&self) -> bool {
        self.standby.role() == Role::Active
    }

    /// As [`Runner::run`] does after each turn.
    fn judged(&mut self, done: Result<()>) -> Result<()> {
        done.map_err(|error| self.save(error))
    }

    /// The VM, which runs here.
    ///
    /// # Errors
    /// It does not run here yet.
    pub fn end(mut self) -> Result<TakenOver<V>> {
        self.standby.report_role();
        let register = self.standby.driver.machine().won().context("the VM was not taken over yet")?;
        self.place.leave();
        let right = Right { vm: self.settings.host.vm, register, arbiter: self.standby.host.arbiter };
        Ok(TakenOver { vm: self.vm, right })
    }

    /// A turn that does not sleep, for a world that says when it is due.
    ///
    /// # Errors
    /// As for [`Runner::run`].
    #[cfg(feature = "testing")]
    pub fn step(&mut self) -> Result<()> {
        let done = mishaps(|| self.act());
        self.judged(done)
    }

    /// The error ends this runner. A VM that is being run at this moment may have written to the image: that one is of no use.
    fn save(&mut self, error: Error) -> Error {
        if self.standby.may_be_the_last() && !self.attempting { self.keep(error) } else { error }
    }

    fn keep(&mut self, error: Error) -> Error {
        let driver = &mut self.standby.driver;
        if !driver.is_whole() {
            return error;
        }
        let (generation, epoch) = driver.machine().committed();
        if driver.is_rehearsing() {
            // What was committed meanwhile belongs to the image.
            driver.event(Event::RehearsalAsked { generation, epoch: epoch.next() });
        }
        let (Some(image), last_copy) = (self.standby.driver.image(), &mut self.standby.last_copy) else { return error };
        // On record first: whoever dies in between must not leave a copy that the next process takes for lost.
        let instance = last_copy.instance();
        note(last_copy.is_kept(Path::new("a place that is not known: it was being kept when its process ended")));
        match self.vm.keep(image, generation, epoch) {
            Ok(Some(path)) => {
                note(last_copy.is_kept(&path));
                error.context(format!("Kept: the image of {generation}, {epoch}, in {}", path.display()))
            }
            Ok(None) => {
                instance.into_iter().for_each(|instance| note(last_copy.begins(instance)));
                error
            }
            Err(failed) => error.context(format!("The image could not be kept: {}", exit::words(&failed))),
        }
    }

    fn try_takeover(&mut self) {
        if self.standby.role() != Role::TakingOver {
            return; // it is another node's since, and was not run here
        }
        let now = self.standby.host.now();
        let Some(image) = self.standby.driver.image() else { return };
        let Some(Pending { won, failures, .. }) = self.pending.take_if(|pending| now >= pending.next) else { return };
        self.attempting = true;
        let Err(error) = self.vm.take_over(image, won.generation, won.epoch) else { return self.runs(&won) };
        self.attempting = false;
        let failures = failures + 1;
        // What was a moment's trouble is over at once.
        let pause = match failures {
            1 => Duration::ZERO,
            n => Duration::from_secs(1 << (n - 2).min(5)).min(LONGEST),
        };
        let why = exit::words(&error);
        tracing::error!(error = why, again_in = spoken(pause), "the takeover failed; everything is kept");
        let (again_in_ms, remedy) = (Some(ms(pause)), "mend what it names".to_owned());
        emit(Told::TakeoverFailed(TakeoverFailed { why, times: failures, again_in_ms, remedy }));
        self.pending = Some(Pending { won, failures, next: self.standby.host.now().after(pause) });
    }

    fn runs(&mut self, won: &Won) {
        let (since_suspicion, standing) = (self.standby.takeover(won), Some(self.standing()));
        let (generation, epoch) = (won.generation, won.epoch);
        let running = Running { generation, epoch, since_suspicion, qemu: None, qmp: None, standing };
        emit(Told::Running(Box::new(running)));
        self.standby.driver.event(Event::Running);
    }
}

fn note(recorded: Result<()>) {
    if let Err(error) = recorded {
        tracing::error!(error = exit::words(&error), "it is not on record whether the image is kept");
    }
}

impl<V: StandbyVm> StandbyLoop for Runner<V> {
    fn standby(&self) -> &Standby {
        &self.standby
    }

    fn standby_mut(&mut self) -> &mut Standby {
        &mut self.standby
    }

    fn paths(&self) -> &PathsConfig {
        &self.paths
    }

    fn beating(&self) -> (Wish, Option<Duration>) {
        (self.settings.host.beats, self.settings.host.stall_after)
    }

    /// A copy that was lost goes first, also if no session comes about: a VM here is asked to hold one at a time, and the primary that
    /// offers this session owns the VM.
    fn prepare(&mut self, caller: &dyn Caller) -> Result<Ready> {
        self.make_room()?;
        self.vm.prepare(caller.profile())
    }

    fn unprepared(&mut self) {
        self.vm.discard();
    }

    fn deadline(&self) -> Option<Time> {
        self.pending.as_ref().map(|pending| pending.next)
    }

    fn take_over(&mut self, won: Won) -> Result<()> {
        self.pending = Some(Pending { won, failures: 0, next: won.at });
        self.try_takeover();
        Ok(())
    }

    fn pursue(&mut self) {
        self.try_takeover();
    }

    fn abandon(&mut self) -> Error {
        let what = format!("{} was given to another node while this one could not run it", self.settings.host.vm);
        self.keep(ExitError::new(Code::Fenced, what).into())
    }

    fn rehearse(&mut self, epoch: Epoch) {
        emit(Told::Rehearsing(Rehearsing { epoch }));
        let began = self.standby.host.now();
        let outcome = match self.standby.driver.image() {
            Some(image) => self.vm.rehearse(image).map_err(|error| exit::words(&error)),
            None => Err("there is no image".to_owned()),
        };
        match &outcome {
            Ok(()) => {
                let took_ms = ms(self.standby.host.now().since(began));
                emit(Told::Rehearsed(Rehearsed { took_ms, private_bytes: 0 }));
            }
            Err(why) => emit(Told::RehearsalFailed(why.as_str().into())),
        }
        self.standby.driver.rehearsed(outcome);
    }

    fn end_rehearsal(&mut self) {}

    fn discarded(&mut self) {
        self.vm.discard();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        arbiter::ArbiterSpec,
        paths::{End, beats_at, call},
    };
    use mc_core::{
        id::{Generation, Incarnation, Name, Node, NodeId, PAGE_SIZE, WitnessId},
        image::Image,
        ram::SharedRam,
        transport::{Completion, Op, Transport},
        wire::{
            beat::BeatKey,
            control::{Body, Control},
            session::{Hello, Purpose, VERSIONS},
        },
    };
    use std::path::PathBuf;
    use transport_tcp::session::SessionOptions;

    const GENERATION: Generation = Generation(5);
    const INCARNATION: Incarnation = Incarnation(3);

    /// It cannot be run at the first attempt.
    #[derive(Debug, Default)]
    struct Page {
        attempts: Vec<(Generation, Epoch)>,
        discarded: u32,
    }

    impl StandbyVm for Page {
        fn prepare(&mut self, profile: &[u8]) -> Result<Ready> {
            let image = Image::new(vec![SharedRam::anonymous(PAGE_SIZE)?]);
            Ok(Ready { profile: profile.to_vec(), image, instance: 9 })
        }

        fn take_over(&mut self, _: &Image, generation: Generation, epoch: Epoch) -> Result<()> {
            self.attempts.push((generation, epoch));
            anyhow::ensure!(self.attempts.len() > 1, "no room yet");
            Ok(())
        }

        fn keep(&mut self, _: &Image, _: Generation, _: Epoch) -> Result<Option<PathBuf>> {
            Ok(Some("/dev/null".into()))
        }

        fn discard(&mut self) {
            self.discarded += 1;
        }
    }

    fn name(text: &str) -> Name {
        Name::new(text).expect("a name")
    }

    fn runner(dir: &std::path::Path) -> Runner<Page> {
        let any = "127.0.0.1:0".parse().expect("an address");
        let host = HostSettings::new(name("web"), name("b"), ArbiterSpec::Manual, dir);
        Runner::new(Settings::new(host, any), Page::default()).expect("a runner")
    }

    /// A primary that gives a whole copy, and dies once that is ACKed.
    fn primary(to: SocketAddr, held: bool) -> Result<()> {
        let paths = PathsConfig::tcp(1 << 20);
        let call = call(&to.to_string().parse()?, None, &SessionOptions::default())?;
        let beats = beats_at(&paths, call.local_addr(), End::Caller)?;
        let hello = Hello {
            versions: VERSIONS,
            slab_size: 8192,
            staging_slabs: 2,
            rdma: false,
            incarnation: INCARNATION,
            generation: GENERATION,
            purpose: Purpose::Protect(name("web")),
            node: Node { name: name("a"), id: NodeId([1; 16]) },
            witness: WitnessId::NONE,
            instance: 1,
            beat_key: BeatKey([7; 32]),
            beat_port: beats.local_port()?,
            detect_multiplier: 5,
            desired_tx_us: 10_000,
            required_rx_us: 10_000,
        };
        let mut link = call.shake_hands(&hello, b"a page", None)?.link;
        let body = Body::Commit { slabs: 0, bytes: 0, device_bytes: 0, held };
        let (incarnation, generation, epoch) = (INCARNATION, GENERATION, Epoch(1));
        link.submit(Op::Send(Control { incarnation, generation, epoch, body }))
            .map_err(|_| anyhow::anyhow!("refused"))?;
        loop {
            match link.poll() {
                Some(Completion::Received(Control { body: Body::Ack { .. }, .. })) => return Ok(()),
                Some(Completion::Down(error)) => anyhow::bail!("{error}"),
                _ => std::thread::yield_now(),
            }
        }
    }

    #[test]
    fn a_vm_is_taken_over_and_tried_until_it_runs() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut runner = runner(dir.path());
        let to = runner.listens_at();
        let dies = std::thread::spawn(move || primary(to, true));
        while runner.standby.role() != Role::Active {
            runner.turn().expect("a turn");
            // With `manual` an operator is the register.
            if runner.standby.role() == Role::Claiming {
                runner.standby.operator_takes_over();
            }
        }
        dies.join().expect("no panic").expect("an ACK");
        assert_eq!(runner.vm.attempts, [(Generation(6), Epoch(1)); 2]);
        assert_eq!(runner.vm.discarded, 0);
    }

    #[test]
    fn an_error_keeps_a_copy_that_may_be_the_last_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut runner = runner(dir.path());
        let to = runner.listens_at();
        let dies = std::thread::spawn(move || primary(to, true));
        while runner.standby.role() != Role::Claiming {
            let error = runner.save(anyhow::anyhow!("x")).to_string();
            assert!(runner.standby.role() != Role::Idle || error == "x", "{error}");
            runner.turn().expect("a turn");
        }
        dies.join().expect("no panic").expect("an ACK");
        assert!(runner.save(anyhow::anyhow!("x")).to_string().contains("Kept: the image of"));
        assert_eq!(runner.standby.last_copy.kept(), Some(std::path::Path::new("/dev/null")));
    }
}
