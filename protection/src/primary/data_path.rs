//! The data path: a child process that carries checkpoints to the standby and holds output. It may die at any moment; then
//! the supervisor, which holds QEMU's control connection, asks the arbiter what becomes of the VM.
//!
//! One thread runs the loop below; beside it the beats have a thread, the arbiter's client has one, the control socket has
//! one, and connecting to a standby has one while it lasts. They talk to the loop through inboxes.

use super::{
    channel::{Brief, Channel, ToDataPath, ToSupervisor},
    left::Left,
    nics,
    orders::Order,
    outputs::Outputs,
    qemu_controller::QemuController,
    stop::{Heard, Stop},
    supervisor_watchdog::Watchdog,
    unfit::Unfit,
    vm_health::Watcher,
    yielding::Parked,
};
use crate::{keeper, predecessor, processes::Program};
use anyhow::{Context, Result};
use api::{Control, metrics::IfTaken, metrics::Scrapes, report};
use mc_core::{
    id::Time,
    primary::{Config, Event},
    wire::control::GoodbyeReason,
};
use node::{
    arbiter::ArbiterClient,
    events::{Event as Told, Process, RoleChange, SourceBroken, VmGone, emit},
    exit::{self, Code},
    inbox::{readable, wait},
    primary::{Begin, Primary, PrimaryLoop, Trouble, seek::Seek},
    scope,
    signals::Signals,
};
use std::{
    os::{fd::AsFd, unix::net::UnixStream},
    time::Duration,
};
use vmm_qemu::{colo::ColoSource, gate::NicGate, mending::Mending};

/// The loop's state.
pub(super) struct DataPath {
    pub(super) brief: Brief,
    pub(super) program: Program,
    /// What the loop knows.
    pub(super) run: Primary<ColoSource, NicGate>,
    pub(super) notes: Vec<String>,
    pub(super) supervisor: QemuController,
    /// Whether somebody looks at the VM's outputs, and QEMU is there.
    pub(super) watchdog: Watchdog,
    /// Whether the VM runs.
    pub(super) vm: Watcher,
    pub(super) parked: Option<Parked>,
    /// Whether QEMU has left its checkpoints.
    pub(super) left: Left,
    /// NICs that were lost, and whose sockets they are.
    pub(super) mending: Mending,
    pub(super) listener: u32,
    /// How long nothing has been committed was told.
    pub(super) uncommitted: bool,
    pub(super) control: Control,
    pub(super) scrapes: Option<Scrapes>,
    pub(super) signals: Signals,
    /// What wants the arbiter's word first.
    pub(super) orders: Vec<Order>,
    pub(super) stop: Stop,
    /// Way was made for a successor.
    pub(super) made_way_at: Option<Time>,
    /// Why protection has to end when the arbiter is there.
    pub(super) unfit: Option<Unfit>,
    pub(super) outputs: Outputs,
    pub(super) operator_wants_solo: bool,
    /// Its guest or its operator shut it down; its QEMU is gone soon.
    vm_shut_down: bool,
    /// Its QEMU ended without having been told to.
    pub(super) vm_died: bool,
    /// To end with, once the register says (solo, self) and QEMU was told so.
    pub(super) end_when_solo: Option<(Code, String)>,
    pub(super) ending: Option<(Code, String)>,
}

/// Runs the data path; `stdin` is the channel to the supervisor.
pub fn run(program: Program) -> Result<Code> {
    let signals = Signals::catch().context("catching signals")?;
    let channel = std::io::stdin().as_fd().try_clone_to_owned().context("the channel on stdin")?;
    let mut channel = Channel::new(UnixStream::from(channel))?;
    let brief = hear_brief(&mut channel)?;
    super::record(&brief.config, Process::DataPath)?;
    let mut supervisor = QemuController::new(channel, &brief);
    scope::find_out();
    let mut replaces = brief.deaths > 0;
    let prepared = match prepare(&brief, &mut replaces) {
        Ok(prepared) => prepared,
        // The VM's packets passed here, or where this process has taken the place, until a moment ago: tried again.
        Err(error) if replaces => return Err(error),
        Err(error) => {
            // One that cannot even start would only be started again.
            let (code, why) = (exit::explain(&error).0, exit::words(&error));
            supervisor.say(&ToSupervisor::Ending { code: code as u8, why })?;
            supervisor.finish();
            return Ok(code);
        }
    };
    DataPath::new(brief, program, supervisor, signals, prepared)?.run()
}

/// What may be missing: the NICs, their TAP devices, a free control socket. A process that is to be relieved is told to leave as late
/// as possible: the VM has no network from then until the gate is there. `replaces`: the VM's packets passed elsewhere until now.
fn prepare(brief: &Brief, replaces: &mut bool) -> Result<(NicGate, ArbiterClient, Control)> {
    let config = &brief.config;
    nics::check(brief)?;
    let arbiter = ArbiterClient::spawn(&config.asks(brief.register.owner.node))?;
    if brief.relieve {
        predecessor::relieve_primary(&config.run_dir, config.vm)?;
        *replaces = true;
    }
    let control =
        predecessor::take_place((&config.run_dir, &config.state_dir), (config.vm, config.node), brief.relieve)?;
    // As late as this: until now its packets have passed.
    *replaces |= keeper::relieve(&config.run_dir, config.vm)?;
    Ok((nics::open(config, *replaces)?, arbiter, control))
}

fn hear_brief(channel: &mut Channel) -> Result<Brief> {
    loop {
        if let Some(ToDataPath::Begin(brief)) = channel.hear()? {
            return Ok(*brief);
        }
        anyhow::ensure!(!channel.is_closed(), "the data path is started by `afterimage protect`, not by hand");
        let mut fds = [readable(channel.as_fd())];
        wait(&mut fds, Time(0), None, Duration::from_secs(1))?;
    }
}

impl DataPath {
    fn new(
        brief: Brief,
        program: Program,
        supervisor: QemuController,
        signals: Signals,
        prepared: (NicGate, ArbiterClient, Control),
    ) -> Result<Self> {
        let config = &brief.config;
        let (gate, arbiter, control) = prepared;
        let listener = nics::listener(&gate, &brief);
        let begin = Begin {
            machine: Config {
                epoch: config.epoch,
                window: config.window,
                commit_deadline: config.commit_deadline(false),
            },
            register: brief.register,
            slab_bytes: usize::try_from(config.slab_bytes)?,
            staging: (usize::try_from(config.staging_bytes)?, config.on_cap.0),
            patience: Seek::patience(brief.deaths),
            protect: brief.protect,
        };
        let run = Primary::new(&begin, gate, arbiter);
        let now = run.host.now();
        Ok(Self {
            run,
            notes: report::standing_notes(),
            supervisor,
            watchdog: Watchdog::new(now),
            vm: Watcher::new(brief.qemu_process().0, brief.qemu_process().1),
            parked: None,
            left: Left::default(),
            mending: Mending::new(now),
            listener,
            uncommitted: false,
            control,
            scrapes: Scrapes::serve(config.metrics, IfTaken::TryAgain)?,
            signals,
            orders: Vec::new(),
            stop: Stop::default(),
            made_way_at: None,
            unfit: None,
            outputs: Outputs::new(brief.outputs.clone(), config.forced()),
            operator_wants_solo: false,
            vm_shut_down: false,
            vm_died: false,
            end_when_solo: None,
            ending: None,
            program,
            brief,
        })
    }

    fn run(mut self) -> Result<Code> {
        let (vm, generation) = (Some(self.brief.config.vm), self.run.driver.machine().register().generation);
        emit(Told::Solo(RoleChange { vm, generation, epoch: None, acked: None, standing: None }));
        loop {
            self.turn()?;
            if let Some((code, why)) = self.ending.take() {
                let _ = self.supervisor.say(&ToSupervisor::Ending { code: code as u8, why });
                self.supervisor.finish();
                return Ok(code);
            }
        }
    }

    /// It shut down, or died.
    pub(super) fn is_vm_gone(&self) -> bool {
        self.vm_shut_down || self.vm_died
    }

    pub(super) fn hear_supervisor(&mut self) -> Result<()> {
        while let Some(message) = self.supervisor.hear()? {
            match message {
                ToDataPath::Begin(_) | ToDataPath::Started { error: None, .. } => {}
                ToDataPath::Started { error: Some(why), unsupported } => self.source_broken(why, unsupported),
                ToDataPath::Here => self.watchdog.heard(self.run.host.now()),
                ToDataPath::VmIs(health) => self.vm.qemu_says(health),
                ToDataPath::VmGone { orderly: true } if self.vm_died => {} // too late
                ToDataPath::VmGone { orderly: true } => {
                    emit(Told::VmGone(VmGone { orderly: true }));
                    self.vm_shut_down = true;
                    self.run.driver.event(Event::Unprotect(GoodbyeReason::GuestGone));
                }
                ToDataPath::VmGone { orderly: false } => self.vm_has_died(),
                ToDataPath::SourceBroken { why, unsupported } => self.source_broken(why, unsupported),
                ToDataPath::Left { error } => self.hear_left(error),
                ToDataPath::Stop => self.told_to_stop(Heard::BySupervisor),
                ToDataPath::Resume => self.take_back_place(),
                ToDataPath::Changed(changed) => self.vm_changed(*changed),
            }
        }
        Ok(())
    }

    /// Of a VM that was shut down nobody shall run a copy.
    pub(super) fn vm_has_died(&mut self) {
        if self.is_vm_gone() {
            return;
        }
        emit(Told::VmGone(VmGone { orderly: false }));
        self.vm_died = true;
        self.run.driver.event(Event::SourceLost);
    }

    /// With `--once` a first attempt that fails for want of the source ends this process, and a keeper has the VM's network. Otherwise it
    /// goes on being the VM's way there.
    fn source_broken(&mut self, why: String, unsupported: bool) {
        if self.is_vm_gone() {
            return; // and its stream with it
        }
        let first = self.run.driver.figures().last_ack_at.is_none();
        let (why, unsupported) = match unsupported && !first {
            true => (
                "the VM's checkpoints were ended from outside (`x-colo-lost-heartbeat` at a monitor)".to_owned(),
                false,
            ),
            false => (why, unsupported),
        };
        tracing::error!(%why, "the checkpoint stream broke; giving protection up");
        emit(Told::SourceBroken(SourceBroken { why: why.clone(), unsupported }));
        self.run.because(match (unsupported, first) {
            (true, _) => Trouble::hopeless(&why),
            (false, true) => Trouble::lasting(&why),
            (false, false) => Trouble::passing(&why),
        });
        self.run.driver.event(Event::Unprotect(GoodbyeReason::Unprotected));
        if unsupported || first {
            let code = if unsupported { Code::Prerequisite } else { Code::Failed };
            self.give_up_for(code, why);
        }
    }

    /// This attempt at protection came to nothing, for something that does not pass by itself.
    pub(super) fn give_up_for(&mut self, code: Code, why: String) {
        self.run.because(Trouble::lasting(&why));
        if !self.brief.stay {
            self.end_when_solo = Some((code, why));
        }
    }

    pub(super) fn hear_control(&mut self) {
        while let Some(request) = self.control.take() {
            super::commands::answer(self, request);
        }
        while let Some(scrape) = self.scrapes.as_ref().and_then(Scrapes::take) {
            scrape.reply(super::commands::snapshot(self));
        }
    }

    /// A hand-over: this process leaves the VM, which runs solo, to its successor.
    pub(super) fn leave_vm(&mut self) {
        self.ending = Some((Code::Done, "handed over to another `afterimage protect`".to_owned()));
    }
}
