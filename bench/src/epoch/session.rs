//! One protected run: the core's primary over the guest, a link and a gate, until a time has passed; then the two memories are
//! compared.
//!
//! The arbiter is in the process and always says yes: it is asked once, when protection begins.

use super::{
    clock::{Monotonic, cpu_seconds},
    gate::Gate,
    source::{Source, SourceFigures},
    standby::{StandReport, digest},
};
use anyhow::{Context, Result, bail, ensure};
use mc_core::{
    driver::{Clock, PrimaryDriver, PrimaryErrand},
    gate::OutputGate,
    histogram::Histogram,
    id::{Epoch, Generation, Incarnation, PAGE_SIZE},
    primary::{Config, Event, Primary, Role},
    ram::SharedRam,
    register::{CasOutcome, Mode, Owner, Register},
    slab::SlabPool,
    source::CheckpointSource,
    staging::Staging,
    transport::Transport,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::time::{Duration, Instant};

/// The generation before protection; the standby's is the next one.
pub const GENERATION: u64 = 1;
/// The longest sleep.
const LONGEST: Duration = Duration::from_millis(20);
/// How long the full synchronisation, and the last ACK, may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How the primary is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// From one pause to the next, at least.
    pub every: Duration,
    /// Checkpoints captured and not yet ACKed, at most.
    pub window: u64,
    /// Bytes of staging.
    pub staging: usize,
    /// Bytes of each slab.
    pub slab: usize,
}

/// What a run found.
#[derive(Clone, Debug)]
pub struct Run {
    /// Protected for so long.
    pub seconds: f64,
    /// Operations of the guest meanwhile.
    pub operations: u64,
    /// Pages of the checkpoints that were captured meanwhile.
    pub pages: u64,
    /// How often a checkpoint was sent with the guest held, since staging was too small for it.
    pub streamed_while_held: u64,
    /// From the end of an epoch's pause to its ACK.
    pub commit: Histogram,
    /// The source's.
    pub source: SourceFigures,
    /// From when a message was sent until it was let out.
    pub hold: Histogram,
    /// Processor time of the primary, without the guest.
    pub cpu_s: f64,
}

type Driver = PrimaryDriver<Source, Gate, Monotonic>;

/// A session under way.
#[derive(Debug)]
pub struct Session {
    driver: Driver,
}

impl Session {
    /// Begins the full synchronisation. The source's guest is stopped.
    ///
    /// # Errors
    /// The system refuses.
    pub fn begin(setup: &Setup, link: Box<dyn Transport>, incarnation: Incarnation, source: Source) -> Result<Self> {
        let owner = Owner { node: super::node("bench-primary", 1)?, instance: 1 };
        let register = Register { generation: Generation(GENERATION), owner, mode: Mode::Solo };
        let commit_deadline = Duration::from_secs(60);
        let config = Config { epoch: setup.every, window: setup.window, commit_deadline };
        let staging = Staging::new(SlabPool::new(setup.slab, setup.staging));
        let gate = Gate::new(source.guest().messages()?);
        let mut driver = PrimaryDriver::new(Primary::new(config, register), staging, gate, Monotonic);
        driver.attach(link, incarnation, source, Owner { node: super::node("bench-standby", 2)?, instance: 1 });
        driver.event(Event::BeatsProven); // there are none to wait for
        let mut this = Self { driver };
        this.until("the full synchronisation", |driver| driver.machine().role() == Role::Protected)?;
        Ok(this)
    }

    /// Runs for `warm_up`, then measures for `time`, then stops the guest at a last checkpoint and waits for its ACK. Gives the
    /// last epoch, and guest RAM's digest as it is then.
    ///
    /// # Errors
    /// Protection was lost.
    pub fn run(mut self, warm_up: Duration, time: Duration, ram: &SharedRam) -> Result<(Run, Epoch, String)> {
        self.go(warm_up)?;
        self.source()?.reset();
        self.driver.gate.reset();
        let (cpu, ops) = (cpu_seconds(), self.source()?.guest().operations());
        let before = self.driver.figures();
        let (pages, streamed) = (before.pages, before.streamed_while_held);
        let began = Instant::now();
        self.go(time)?;
        let run = Run {
            seconds: began.elapsed().as_secs_f64(),
            operations: self.source()?.guest().operations() - ops,
            pages: self.driver.figures().pages - pages,
            streamed_while_held: self.driver.figures().streamed_while_held - streamed,
            commit: self.driver.gate.commit_times().clone(),
            source: self.source()?.figures().clone(),
            hold: self.driver.gate.hold_times().clone(),
            cpu_s: cpu_seconds() - cpu,
        };
        let epoch = self.end()?;
        let mut bytes = vec![0; ram.len()];
        ram.read(0, &mut bytes);
        Ok((run, epoch, digest(&bytes)))
    }

    fn go(&mut self, time: Duration) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < time {
            self.step(time.saturating_sub(began.elapsed()))?;
        }
        Ok(())
    }

    fn source(&mut self) -> Result<&mut Source> {
        self.driver.source_mut().context("the source is gone")
    }

    fn end(&mut self) -> Result<Epoch> {
        let before = self.driver.machine().epochs().0;
        self.source()?.finish();
        self.until("the last checkpoint", |driver| {
            let (captured, acked) = driver.machine().epochs();
            captured > before && captured == acked && driver.source().is_none_or(|source| source.deadline().is_none())
        })?;
        Ok(self.driver.machine().epochs().1)
    }

    fn until(&mut self, what: &str, done: impl Fn(&Driver) -> bool) -> Result<()> {
        let began = Instant::now();
        while !done(&self.driver) {
            ensure!(began.elapsed() < PATIENCE, "{what} takes longer than {PATIENCE:?}");
            self.step(LONGEST)?;
        }
        Ok(())
    }

    /// Pumps, and sleeps until there is something to do.
    fn step(&mut self, most: Duration) -> Result<()> {
        self.driver.pump();
        while let Some(errand) = self.driver.errand() {
            match errand {
                PrimaryErrand::Cas(swap) => self.driver.event(Event::Cas(CasOutcome::Won(swap.new))),
                PrimaryErrand::StartSource => {}
                other => bail!("protection was lost: {other:?}"),
            }
        }
        self.sleep(most.min(LONGEST))
    }

    fn sleep(&self, most: Duration) -> Result<()> {
        let left = self.driver.deadline().map_or(most, |at| at.since(Monotonic.now()).min(most));
        let mut fds = Vec::with_capacity(2);
        self.driver.gate.wait_fds(&mut |wait| fds.push(PollFd::from_borrowed_fd(wait.fd, PollFlags::IN)));
        if let Some((link, fd)) = self.driver.link().and_then(|link| Some((link, link.wait_fd()?))) {
            let mut flags = PollFlags::RDHUP;
            flags.set(PollFlags::IN, link.wants_read());
            flags.set(PollFlags::OUT, link.wants_write());
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        // A signal is as good as readiness: everything is looked at next.
        let _ = poll(&mut fds, Some(&Timespec::try_from(left)?));
        Ok(())
    }
}

/// I2 and the tracking, seen from outside: the image must be guest RAM as it was at the newest commit.
///
/// # Errors
/// It is not.
pub fn compare(epoch: Epoch, ram: &str, standby: &StandReport) -> Result<()> {
    ensure!(standby.epoch == epoch.0, "the standby committed {}, the primary's last epoch is {epoch}", standby.epoch);
    ensure!(standby.image == ram, "the standby's image of {epoch} is not guest RAM as it was then");
    Ok(())
}

/// Bytes of so many pages.
#[must_use]
pub fn bytes(pages: u64) -> f64 {
    pages as f64 * PAGE_SIZE as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_something_else_is_an_error() {
        let stood =
            |epoch, image: &str| StandReport { epoch, image: image.to_owned(), apply: Histogram::new(), cpu_s: 0.0 };
        let ram = digest(b"guest RAM");
        compare(Epoch(7), &ram, &stood(7, &ram)).unwrap();
        let wrong = compare(Epoch(7), &ram, &stood(7, &digest(b"guest RAN"))).unwrap_err().to_string();
        assert!(wrong.contains("not guest RAM"), "{wrong}");
        assert!(compare(Epoch(7), &ram, &stood(6, &ram)).is_err());
    }
}
