//! A keeper's loop: passes packets, answers the control socket, reopens lost NICs and TAP devices.

use super::{
    Settings,
    duty::{self, Duty, STAYS, Said},
};
use anyhow::Result;
use api::{Control, OfSide, Request, Response, SCHEMA, Status, done, refused, report};
use mc_core::{gate::OutputGate, id::Time};
use node::{
    clock::Clock,
    events::{Ended, Event, Role, Signal, emit},
    exit::{Code, ExitError},
    inbox::{self, readable, wait},
    signals::Signals,
};
use std::{os::fd::AsFd, time::Duration};
use vmm_qemu::{
    gate::{GateError, NicGate, NicSpec},
    mending::Mending,
    qmp::Watched,
};

/// The longest sleep.
const LONGEST: Duration = Duration::from_secs(1);

/// The loop's state.
#[derive(Debug)]
pub(super) struct Pump {
    args: Settings,
    nics: Vec<NicSpec>,
    gate: NicGate,
    /// The VM's QEMU; `None` if it cannot be told who that is.
    vm: Option<Watched>,
    control: Control,
    signals: Signals,
    mending: Mending,
    duty: Duty,
}

impl Pump {
    pub(super) fn new(
        args: Settings,
        nics: Vec<NicSpec>,
        gate: NicGate,
        vm: Option<Watched>,
        control: Control,
        signals: Signals,
    ) -> Self {
        Self { args, nics, gate, vm, control, signals, mending: Mending::new(Clock.now()), duty: Duty::default() }
    }

    pub(super) fn run(mut self) -> Result<Code> {
        let (code, why) = loop {
            self.turn()?;
            if let Some(ending) = self.duty.ending() {
                break ending;
            }
        };
        self.gate.shut();
        emit(Event::Ended(Ended { vm: Some(self.args.vm), code: Some(code as u8), why: why.to_owned() }));
        if code == Code::Done {
            tracing::info!(vm = %self.args.vm, "{why}");
            return Ok(code);
        }
        let remedy = "`afterimage protect` on this host, or `afterimage standby`, gives the VM its network again";
        Err(ExitError::new(code, why).remedy(remedy).into())
    }

    fn turn(&mut self) -> Result<()> {
        {
            let mut fds = Vec::with_capacity(8);
            fds.extend([readable(self.control.as_fd()), readable(self.signals.as_fd())]);
            fds.extend(self.vm.as_ref().map(|vm| readable(vm.as_fd())));
            inbox::gate(&mut fds, &self.gate);
            wait(&mut fds, Clock.now(), self.mending.deadline(), LONGEST)?;
        }
        let now = Clock.now();
        self.gate.tick(now);
        if let Err(error) = self.gate.poll() {
            self.mending.lost(now, error.to_string());
        }
        if self.vm.as_ref().is_some_and(Watched::has_ended) {
            self.duty.handle(duty::Event::QemuEnded);
            return Ok(());
        }
        self.mend(now)?;
        self.hear_control();
        self.hear_signals();
        Ok(())
    }

    fn hear_signals(&mut self) {
        for _ in 0..self.signals.take() {
            emit(Event::Signal(Signal { role: Role::Keeping, times: None }));
            match self.duty.handle(duty::Event::Signal) {
                Some(Said::Refused) => {
                    tracing::error!(why = STAYS, "refused to end on this signal; the next signal ends this process");
                    emit(Event::StopRefused(STAYS.into()));
                }
                Some(Said::Obeyed) => emit(Event::StopObeyed(STAYS.into())),
                None => {}
            }
        }
    }

    /// Tries to get back what was lost.
    fn mend(&mut self, now: Time) -> Result<()> {
        let qemu = self.vm.as_ref().map(Watched::pid);
        match self.mending.mend(now, &mut self.gate, &self.nics, qemu) {
            // Somebody else is the VM's network now; with us there would be two.
            Err(GateError::Tap { name, source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
                let what = format!(
                    "another process has opened the TAP device {name} of {}; leaving the VM's network to it",
                    self.args.vm
                );
                Err(ExitError::new(Code::Failed, what).into())
            }
            _ => Ok(()),
        }
    }

    fn hear_control(&mut self) {
        while let Some(request) = self.control.take() {
            let response = match request.request {
                Request::Status => Response::Status(Box::new(self.status())),
                Request::Handover => {
                    // Its successor opens the same devices as soon as it has heard this.
                    self.gate.shut();
                    self.duty.handle(duty::Event::Relieved);
                    done("leaving")
                }
                _ => refused(
                    "nobody protects the VM: this process only passes its packets on; start `afterimage protect`",
                ),
            };
            request.reply(response);
        }
    }

    fn status(&self) -> Status {
        let process =
            self.vm.as_ref().map_or_else(|| "of an unknown process".to_owned(), |vm| format!("process {}", vm.pid()));
        let refused = self.duty.has_refused();
        let refused = refused.then(|| format!("refused to end: {STAYS}. The next signal ends this process"));
        let notes = [
            format!(
                "nobody protects the VM (QEMU {process}): this process passes its packets on until `afterimage protect` relieves it"
            ),
            "a keeper does not read the register: the generation shown is from its start. Run `afterimage protect` \
             to find out whether the VM still belongs to this host"
                .to_owned(),
        ];
        let notes = notes.into_iter().chain(refused).collect();
        let mut status = Status {
            schema: SCHEMA,
            side: OfSide::Keeper,
            role: "keeping".into(),
            vm: self.args.vm.to_string(),
            node: self.args.node.to_string(),
            qemu: self.vm.as_ref().map(Watched::pid),
            generation: self.args.generation,
            notes,
            ..Status::default()
        };
        status.network = self.mending.trouble().map(str::to_owned);
        let stats = self.gate.stats();
        status.counters.insert("inbound_packets".into(), stats.inbound_packets);
        status.counters.insert("inbound_dropped".into(), self.gate.drops().inbound);
        status.counters.insert("mended".into(), self.mending.times());
        report::fill_gate(&mut status, stats, self.gate.hold_histogram().percentiles());
        status
    }
}
