//! The standby's loop: what this program does in a turn of [`node::standby`].

use super::settings::Settings;
use super::{
    export::Export,
    leave::Leave,
    offer::spill_file,
    ram_file::Claim,
    report::{snapshot, status},
    revival::Revival,
    running,
    takeover::Pending,
    vm::WaitingVm,
    waiting::NoTap,
};
use crate::processes::Program;
use anyhow::{Error, Result};
use api::{
    Control, KeepaliveReport, Request, Response, Session, Side, Wanted, metrics::IfTaken, metrics::Scrapes, refused,
    report,
};
use mc_core::{
    driver::SpillFile,
    gate::{GateStats, OutputGate},
    id::{Epoch, Generation, Time},
    register::Swap,
    standby::Role,
};
use node::{
    arbiter::ArbiterClient,
    beats::Wish,
    events::{Event as Told, Operator, Started, Takeover, emit},
    exit::{Code, ExitError},
    identity,
    inbox::{self, readable},
    paths::PathsConfig,
    signals::Signals,
    standby::{Begin, Caller, LastCopy, Ready, Refusal, Standby, StandbyLoop, Won, mishaps},
};
use rustix::event::PollFd;
use std::{os::fd::AsFd, path::PathBuf, time::Duration};
use vmm_qemu::{
    gate::{Mode, NicGate, Options},
    mending::Mending,
    standby::Rehearsal,
};

/// For the NIC's socket of a QEMU that is there.
pub(super) const NIC_PATIENCE: Duration = Duration::from_secs(2);
/// How often the waiting QEMU is looked after.
pub(super) const VM_CHECK: Duration = Duration::from_millis(500);

/// The loop's state.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) config: Settings,
    pub(super) program: Program,
    /// What the loop knows.
    pub(super) run: Standby,
    pub(super) gate: NicGate,
    pub(super) takeover: Option<Takeover>,
    /// What the register holds since this node won the VM.
    pub(super) won: Option<Generation>,
    pub(super) vm: Option<WaitingVm>,
    /// The one of a copy that was lost, while another one waits already, and its session has not begun.
    pub(super) lost: Option<WaitingVm>,
    /// A takeover that has not succeeded yet.
    pub(super) pending: Option<Pending>,
    pub(super) export: Option<Export>,
    /// A throw-away QEMU that loads the image.
    pub(super) rehearsal: Option<Rehearsal>,
    /// Why this host's QEMU could not load the VM, when it was tried last.
    pub(super) unloadable: Option<String>,
    /// The one standby of this VM over this RAM directory; until the VM runs here.
    pub(super) claim: Option<Claim>,
    pub(super) control: Control,
    pub(super) scrapes: Option<Scrapes>,
    pub(super) checked_vm_at: Time,
    /// Attempts to start a QEMU that died, NICs that were lost.
    pub(super) revival: Revival,
    /// Why the QEMU that waits, and is there, would not take the VM.
    pub(super) silent: Option<String>,
    /// Why the VM's QEMU did not wait here, when a primary wanted it to or a session ended for it. Nobody has tried since.
    pub(super) unstartable: Option<String>,
    /// A NIC would not work.
    pub(super) no_tap: Option<NoTap>,
    pub(super) mending: Mending,
    pub(super) signals: Signals,
    pub(super) leave: Leave,
    pub(super) ending: Option<Code>,
    /// Why it ends with a code that needs words.
    pub(super) last_words: Option<String>,
}

impl Node {
    pub(super) fn new(config: Settings, program: Program) -> Result<Self> {
        let claim = Claim::take(&config.ram_dir, config.vm)?;
        let this = identity::node(&config.state_dir, config.node)?;
        let last_copy = LastCopy::open(&config.state_dir, config.vm)?;
        // Two things tell of a copy that was kept: the record, and the files.
        let gone = last_copy.gone()?.filter(|instance| claim.kept(*instance).is_none());
        spill_file(&config)?; // found at the first session that it cannot be made, it is too late
        let gate = NicGate::new(config.nics.clone(), Options { mode: Mode::Closed, ..Options::default() });
        let gate = gate.map_err(|error| match error.is_prerequisite() {
            true => ExitError::new(Code::Prerequisite, error),
            false => ExitError::new(Code::Failed, error),
        })?;
        let arbiter = ArbiterClient::spawn(&config.asks(this))?;
        let (vm, listen, staging_bytes) = (config.vm, config.listen, config.staging_bytes);
        let begin = Begin { vm, this, listen, staging_bytes, rehearse: !config.no_rehearsal, last_copy, gone };
        let run = Standby::new(begin, arbiter)?;
        let now = run.host.now();
        Ok(Self {
            run,
            gate,
            takeover: None,
            won: None,
            vm: None,
            lost: None,
            pending: None,
            export: None,
            rehearsal: None,
            unloadable: None,
            claim: Some(claim),
            control: Control::listen((&config.run_dir, &config.state_dir), config.vm, config.node, Side::Standby)?,
            scrapes: Scrapes::serve(config.metrics, IfTaken::Refuse)?,
            checked_vm_at: now,
            revival: Revival::default(),
            silent: None,
            unstartable: None,
            no_tap: None,
            mending: Mending::new(now),
            signals: Signals::catch()?,
            leave: Leave::default(),
            ending: None,
            last_words: None,
            program,
            config,
        })
    }

    pub(super) fn run(mut self) -> Result<Code> {
        let (config, version) = (&self.config, env!("CARGO_PKG_VERSION"));
        let (arbiter, beats) = (config.arbiter.to_string(), config.wish().told());
        emit(Told::Started(Started { version: version.to_owned(), arbiter, beats }));
        self.run.tell_waiting(None);
        while self.run.role() != Role::Active {
            if let Err(error) = mishaps(|| self.turn()) {
                return Err(self.save_image(error));
            }
            match (self.ending, self.last_words.take()) {
                (Some(code), None) => return Ok(code),
                (Some(code), Some(words)) => return Err(ExitError::new(code, words).into()),
                (None, _) => {}
            }
        }
        self.run.report_role();
        running::after_takeover(self)
    }

    fn hear_control(&mut self) {
        while let Some(request) = self.control.take() {
            if let Some(request) = request.request.decision() {
                emit(Told::Operator(Operator { request, role: Some(self.run.role().into()) }));
            }
            if let Request::Export { dir } = &request.request {
                let dir = dir.clone();
                self.begin_export(request, dir);
                continue;
            }
            let response = match &request.request {
                Request::Status => Response::Status(Box::new(status(self))),
                Request::Keepalive => Response::Keepalive(Box::new(self.keepalive().report())),
                Request::KeepaliveSet(wanted) => self.set_keepalive(wanted),
                Request::Measured => report::measured(&self.run.host.watch, self.run.beats()),
                Request::Takeover => self.operator_takeover(),
                Request::Handover => {
                    refused("this node is the VM's standby; run `protect` on the node where the VM runs")
                }
                Request::Set(_) => refused(
                    "this is the standby; the primary has the settings that can be changed (a standby's own staging is its \
                     --staging)",
                ),
                Request::Witness(_) => refused("this is the standby; `witness` commands are for the witness"),
                Request::Solo | Request::Unprotect | Request::Protect | Request::MakeWay | Request::Export { .. } => {
                    refused(&format!(
                        "`{}` is for the primary; this is the standby. On the standby use `takeover`",
                        request.request.word()
                    ))
                }
            };
            request.reply(response);
        }
        while let Some(scrape) = self.scrapes.as_ref().and_then(Scrapes::take) {
            scrape.reply(snapshot(self));
        }
    }

    fn keepalive(&self) -> Session<'_> {
        let configured = self.config.wish();
        Session {
            configured,
            beats: self.run.beats(),
            vm: self.config.vm,
            node: self.config.node,
            side: "standby",
            peer: self.run.host.peer().unwrap_or_default().to_owned(),
            paths: report::beat_paths(&self.run.host.watch),
            config_file: self.config.config_file.clone(),
        }
    }

    fn set_keepalive(&mut self, wanted: &Wanted) -> Response {
        match self.keepalive().change(wanted) {
            Ok((wish, warnings)) => {
                emit(Told::KeepaliveSet(wish.into()));
                self.config.set_wish(wish);
                let report = KeepaliveReport { warnings, ..self.keepalive().report() };
                Response::Keepalive(Box::new(report))
            }
            Err(refusal) => Response::Refused { message: refusal.what, remedy: Some(refusal.remedy) },
        }
    }
}

impl StandbyLoop for Node {
    fn standby(&self) -> &Standby {
        &self.run
    }

    fn standby_mut(&mut self) -> &mut Standby {
        &mut self.run
    }

    fn paths(&self) -> &PathsConfig {
        &self.config.paths
    }

    fn beating(&self) -> (Wish, Option<Duration>) {
        (self.config.wish(), self.config.stall_after)
    }

    fn prepare(&mut self, caller: &dyn Caller) -> Result<Ready> {
        self.prepare_vm(caller.profile())
    }

    fn unprepared(&mut self) {
        (self.vm, self.lost) = (None, None);
    }

    fn take_over(&mut self, won: Won) -> Result<()> {
        self.begin_takeover(won)
    }

    fn rehearse(&mut self, epoch: Epoch) {
        self.begin_rehearsal(epoch);
    }

    fn end_rehearsal(&mut self) {
        self.rehearsal = None;
    }

    fn discarded(&mut self) {
        if self.lost.take().is_none() {
            self.vm = None;
        }
        self.rehearsal = None;
        self.unstartable = self.revival.unable().map(str::to_owned);
        (self.revival, self.silent, self.no_tap) = (Revival::default(), None, None);
        self.mending.forget();
    }

    fn wait_fds<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        fds.push(readable(self.control.as_fd()));
        fds.push(readable(self.signals.as_fd()));
        fds.extend(self.scrapes.as_ref().map(|s| readable(s.as_fd())));
        inbox::gate(fds, &self.gate);
        fds.extend(self.attempt_fd().map(readable));
        fds.extend(self.rehearsal.as_ref().map(|rehearsal| readable(rehearsal.as_fd())));
        fds.extend(self.export.as_ref().map(|export| readable(export.task.as_fd())));
    }

    fn deadline(&self) -> Option<Time> {
        self.leave_deadline()
    }

    fn hear(&mut self) {
        self.hear_signals();
    }

    fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    fn takes_offers(&self) -> bool {
        !self.leave.is_leaving()
    }

    fn is_able(&mut self) -> Result<(), Refusal> {
        self.has_network()
    }

    fn fits(&mut self, profile: &[u8]) -> Result<(), Refusal> {
        self.has_room(profile)
    }

    fn spill(&mut self) -> Result<Option<SpillFile>> {
        spill_file(&self.config)
    }

    fn attached(&mut self) {
        (self.revival, self.silent, self.no_tap) = (Revival::default(), None, None);
    }

    fn kept(&self, instance: u64) -> Option<PathBuf> {
        self.claim.as_ref()?.kept(instance).map(ToOwned::to_owned)
    }

    fn register_read(&mut self) {
        self.leave_hears();
    }

    fn mind_the_gate(&mut self) {
        self.gate.tick(self.run.host.now());
        if let Err(error) = self.gate.poll() {
            self.gate_failed(error.to_string());
        }
    }

    fn output(&self) -> GateStats {
        self.gate.stats()
    }

    fn defers(&mut self, swap: Swap) -> bool {
        self.defer(swap)
    }

    fn abandon(&mut self) -> Error {
        self.give_takeover_up()
    }

    fn distrust(&mut self) {
        self.vm = None;
    }

    fn leave(&mut self) {
        self.leave_in_order();
    }

    fn pursue(&mut self) {
        self.hear_rehearsal();
        self.pursue_takeover();
        self.hear_export();
    }

    fn mind_the_vm(&mut self) {
        self.look_after_vm();
    }

    fn answer(&mut self) {
        self.hear_control();
    }

    fn stalled(&self) -> Option<String> {
        self.why_stalled()
    }
}
