//! One run, up to the fault: witness, standby, VM, protection, client; and all of it down again.

use super::{
    Scenario, Settings,
    asker::Asker,
    lines::{self, Files, VM, WITNESS_PORT},
    status,
};
use crate::{
    guest::{Guest, Kind, VmPaths},
    hosts::{Answer, Host, Place, TAP, Topology},
    process::{Line, Proc},
    serial::Serial,
    stats::Latencies,
    timeline::{Entry, Mark, Timeline, pass, poll},
};
use anyhow::{Context, Result, bail, ensure};
use node::events::Event;
use serde_json::Value;
use std::{path::Path, time::Duration};

/// Everything that runs.
#[derive(Debug)]
pub struct Round<'a> {
    /// What it is about.
    pub settings: &'a Settings,
    /// Where.
    pub topology: &'a dyn Topology,
    /// What happened, but for the replies.
    pub timeline: Timeline,
    pub(super) files: Files,
    pub(super) witness: Proc,
    pub(super) standby: Option<Proc>,
    pub(super) protect: Option<Proc>,
    pub(super) qemu: Proc,
    /// How many standbys there were.
    standbys: u32,
    /// How many times the primary's host was started before this one.
    boots: u32,
    client: Asker<'a>,
}

impl<'a> Round<'a> {
    /// Starts the witness, the standby and the VM, all of them new, in `dir`. (Some scenarios begin without a standby.)
    ///
    /// # Errors
    /// Something does not start; the message has the end of its log.
    pub fn start(settings: &'a Settings, topology: &'a dyn Topology, dir: &Path, timeline: Timeline) -> Result<Self> {
        let files = Files::new(dir);
        for place in [Place::Primary, Place::Standby, Place::Client] {
            // Logs are kept here, wherever the host keeps its own files.
            let dir = files.host(place);
            std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
            topology.host(place).make_dir(&dir)?;
        }
        let witness = start_witness(settings, topology, &files, &timeline)?;
        let has_standby = settings.scenario != Scenario::NoStandbyYet;
        let standby = has_standby.then(|| start_standby(settings, topology, &files, 0, &timeline)).transpose()?;
        let qemu = start_qemu(settings, topology, &files, &timeline)?;
        let client = Asker::new(settings, topology, &files.host(Place::Client), &timeline);
        let standbys = u32::from(has_standby);
        Ok(Self {
            settings,
            topology,
            timeline,
            files,
            witness,
            standby,
            protect: None,
            qemu,
            standbys,
            boots: 0,
            client,
        })
    }

    /// The VM's files on the primary host.
    #[must_use]
    pub fn primary_vm(&self) -> VmPaths {
        self.files.primary_vm()
    }

    /// The waiting VM's files on the standby host, the newest if there were several.
    #[must_use]
    pub fn standby_vm(&self) -> VmPaths {
        VmPaths::new(&self.files.standby(self.standbys.saturating_sub(1)))
    }

    /// Gives the unprotected VM a network until it serves, and measures its replies if asked to. The Linux guests need
    /// a network to come up; the tiny one does not care.
    ///
    /// # Errors
    /// The guest does not come up.
    pub fn boot(&mut self) -> Result<Latencies> {
        let mut latencies = Latencies::default();
        let guest = &self.settings.guest;
        if guest.kind == Kind::Tiny && self.settings.baseline.is_zero() {
            return Ok(latencies);
        }
        let plug = self.plug()?;
        wait_booted(guest.kind, self.topology.host(Place::Primary), &self.primary_vm())?;
        self.timeline.note("guest is up");
        if !self.settings.baseline.is_zero() {
            let mark = self.client.mark();
            self.client.start()?;
            pass(self.settings.baseline)?;
            self.client.stop()?;
            self.client.replies(mark).iter().for_each(|r| latencies.record(r.latency_us));
            self.timeline.note("baseline measured");
        }
        drop(plug);
        Ok(latencies)
    }

    /// A network for the VM on the primary host, while nobody protects it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn plug(&self) -> Result<Proc> {
        let (primary, dir) = (self.topology.host(Place::Primary), self.files.host(Place::Primary));
        plug(self.settings, primary, &self.primary_vm(), &dir, &self.timeline)
    }

    /// Starts `afterimage protect`, and waits until the VM is protected. An earlier one hands over.
    ///
    /// # Errors
    /// It ends, or is not there in time.
    pub fn protect(&mut self) -> Result<()> {
        let mark = self.timeline.mark();
        self.start_protect()?;
        self.await_protected(mark)
    }

    /// Starts `afterimage protect`. An earlier one hands over.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_protect(&mut self) -> Result<()> {
        let line = lines::protect(self.settings, &self.files, self.boots);
        let (primary, dir) = (self.topology.host(Place::Primary), self.files.host(Place::Primary));
        primary.make_dir(&self.files.run_dir(self.boots))?;
        self.protect = Some(Proc::spawn(primary, "protect", &line, &dir, &self.timeline)?);
        Ok(())
    }

    /// Waits until `protect` says, after `mark`, that the VM is protected.
    ///
    /// # Errors
    /// It ends, or does not say so in time.
    pub fn await_protected(&mut self, mark: Mark) -> Result<()> {
        let patience = self.topology.patience();
        let protect = self.protect.as_mut().context("nothing protects the VM")?;
        let mut found = None;
        poll(patience, || {
            found = self
                .timeline
                .wait(mark, Duration::ZERO, |e| matches!(e.told_by("protect"), Some(Event::Protected(_))))
                .ok()
                .flatten();
            found.is_some() || !protect.is_alive()
        })?;
        if found.is_none() {
            let how = if protect.is_alive() { "does not say so" } else { "has ended" };
            eprintln!("{}", self.logs());
            bail!("the VM is not protected within {patience:?}: protect {how}");
        }
        Ok(())
    }

    /// Starts another standby, after the last one died, or the first.
    ///
    /// # Errors
    /// It does not come up.
    pub fn new_standby(&mut self) -> Result<()> {
        self.standby = Some(start_standby(self.settings, self.topology, &self.files, self.standbys, &self.timeline)?);
        self.standbys += 1;
        Ok(())
    }

    /// Starts the witness again, over the state that is there.
    ///
    /// # Errors
    /// It does not come up.
    pub fn restart_witness(&mut self) -> Result<()> {
        self.witness = start_witness(self.settings, self.topology, &self.files, &self.timeline)?;
        Ok(())
    }

    /// Starts the VM again, after its host was gone. What it did not send to a disk it has forgotten.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart_vm(&mut self) -> Result<()> {
        self.boots += 1;
        self.protect = None;
        // (Sockets that nobody listens on any more would look as if it were up.)
        self.primary_vm().sockets().iter().for_each(|path| drop(std::fs::remove_file(path)));
        self.qemu = start_qemu(self.settings, self.topology, &self.files, &self.timeline)?;
        Ok(())
    }

    /// The VM's client.
    pub fn client(&mut self) -> &mut Asker<'a> {
        &mut self.client
    }

    /// `afterimage status --json` of the primary's sidecar; null if it has none to give.
    #[must_use]
    pub fn status(&self) -> Value {
        self.ask_status(Place::Primary).1
    }

    /// The exit code and the JSON of `afterimage status` on one of the two hosts.
    #[must_use]
    pub fn ask_status(&self, place: Place) -> (Option<i32>, Value) {
        let run_dir = match place {
            Place::Standby => self.files.standby(self.standbys.saturating_sub(1)),
            _ => self.files.run_dir(self.boots),
        };
        let answer = self.topology.host(place).ask(&lines::status(self.settings, place, &run_dir)).unwrap_or_default();
        (answer.code, status::parse(&answer.out))
    }

    /// `afterimage why` on one of the two hosts; None if it cannot be asked, as a dead one, or has nothing to tell.
    #[must_use]
    pub fn why(&self, place: Place, more: &[&str]) -> Option<String> {
        let line = lines::why(self.settings, place, &self.files.state(place), more);
        let answer = self.topology.host(place).ask(&line).ok()?;
        (answer.code == Some(0)).then_some(answer.out)
    }

    /// An operator says at the witness that the VM is this host's.
    ///
    /// # Errors
    /// The program cannot be run.
    pub fn assign(&self, place: Place) -> Result<Answer> {
        self.topology.host(Place::Client).ask(&lines::assign(self.settings, &self.files, place))
    }

    /// An operator says on a host that the witness, which is another one, is the right one.
    ///
    /// # Errors
    /// The program cannot be run.
    pub fn accept_witness(&self, place: Place) -> Result<Answer> {
        self.topology.host(place).ask(&lines::accept_witness(self.settings, &self.files, place))
    }

    /// What the witness has on disk about the VM, byte for byte: whether that changes needs no understanding of it.
    #[must_use]
    pub fn register(&self) -> Vec<(String, Vec<u8>)> {
        let entries = std::fs::read_dir(self.files.witness()).into_iter().flatten().flatten();
        let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
        let mut files: Vec<_> = names
            .filter(|name| name.starts_with(VM) && !name.ends_with(".tmp"))
            .filter_map(|name| Some((std::fs::read(self.files.witness().join(&name)).ok()?, name)))
            .map(|(bytes, name)| (name, bytes))
            .collect();
        files.sort();
        files
    }

    /// Whether the sidecar says that it reaches its arbiter.
    #[must_use]
    pub fn arbiter_reachable(&self) -> Option<bool> {
        status::arbiter_reachable(&self.status())
    }

    /// What share of one core both sidecars use while no client asks anything, in percent.
    ///
    /// # Errors
    /// Somebody interrupted the rig.
    pub fn idle_cpu_percent(&self) -> Result<Option<f64>> {
        let time = self.settings.idle;
        if time.is_zero() {
            return Ok(None);
        }
        let before = self.sidecar_ticks();
        pass(time)?;
        let ticks = self.sidecar_ticks().zip(before).map(|(after, before)| after.saturating_sub(before));
        Ok(ticks.and_then(|ticks| u32::try_from(ticks).ok()).map(|ticks| f64::from(ticks) / time.as_secs_f64()))
    }

    fn sidecar_ticks(&self) -> Option<u64> {
        let ticks = |place| self.topology.host(place).sidecar_ticks();
        Some(ticks(Place::Primary)? + ticks(Place::Standby)?)
    }

    /// Whether the VM at `place` is seen to execute within `patience`.
    ///
    /// # Errors
    /// There is a QEMU that does not answer.
    pub fn executes(&self, place: Place, patience: Duration) -> Result<bool> {
        let vm = if place == Place::Primary { self.primary_vm() } else { self.standby_vm() };
        self.topology.host(place).executes(&vm.observer(), patience)
    }

    /// What the guests of both hosts complain about, as far as they can be asked.
    #[must_use]
    pub fn guest_complaints(&self) -> Vec<String> {
        let kind = self.settings.guest.kind;
        let complaint = |(name, place, vm): (&str, Place, VmPaths)| {
            let text = self.topology.host(place).read(&vm.serial()).unwrap_or_default();
            let complaint = Serial::parse(kind, &String::from_utf8_lossy(&text)).complaint();
            complaint.map(|what| format!("{name}: {what}"))
        };
        let primary = ("primary", Place::Primary, self.primary_vm());
        let standby = ("standby", Place::Standby, self.standby_vm());
        [primary, standby].into_iter().filter_map(complaint).collect()
    }

    /// The ends of the sidecars' logs.
    #[must_use]
    pub fn logs(&self) -> String {
        let tail = |proc: &Option<Proc>| proc.as_ref().map_or_else(String::new, |p| p.log_tail(20));
        format!("--- protect:\n{}\n--- standby:\n{}", tail(&self.protect), tail(&self.standby))
    }
}

/// A VM's network while nobody protects it: until it is dropped, frames go between its NIC and the host's TAP device.
///
/// # Errors
/// It cannot be started.
pub fn plug(settings: &Settings, host: &dyn Host, vm: &VmPaths, dir: &Path, timeline: &Timeline) -> Result<Proc> {
    let line = Line::new(&settings.rig).args(["plug"]).flag("--socket", vm.nic()).flag("--tap", TAP);
    Proc::spawn(host, "plug", &line, dir, timeline)
}

/// Waits until the guest says that it serves. The Linux guests need a network for that.
///
/// # Errors
/// It does not come up.
pub fn wait_booted(kind: Kind, host: &dyn Host, vm: &VmPaths) -> Result<()> {
    let sign = if kind == Kind::Tiny { "CNT " } else { "READY" };
    let up = || host.read(&vm.serial()).is_ok_and(|text| String::from_utf8_lossy(&text).contains(sign));
    ensure!(poll(kind.boot_patience(), up)?, "the guest does not come up; see {}", vm.serial().display());
    Ok(())
}

/// The guest, with a second NIC that nobody holds if that is what the scenario is about.
fn guest(settings: &Settings) -> Guest {
    let has_second_nic = settings.scenario == Scenario::UngatedNic;
    if has_second_nic { settings.guest.clone().with_user_nic() } else { settings.guest.clone() }
}

fn start_qemu(settings: &Settings, topology: &dyn Topology, files: &Files, timeline: &Timeline) -> Result<Proc> {
    let (primary, vm) = (topology.host(Place::Primary), files.primary_vm());
    let line = guest(settings).primary(primary, &vm)?;
    let mut qemu = Proc::spawn(primary, "qemu", &line, &files.host(Place::Primary), timeline)?;
    let there = || primary.exists(&vm.nic()) && primary.exists(&vm.qmp());
    let ready = poll(topology.patience(), || there() || !qemu.is_alive())?;
    ensure!(ready && qemu.is_alive(), "QEMU does not start:\n{}", qemu.log_tail(10));
    timeline.note("VM started");
    Ok(qemu)
}

fn start_witness(settings: &Settings, topology: &dyn Topology, files: &Files, timeline: &Timeline) -> Result<Proc> {
    let (line, dir) = (lines::witness(settings, files), files.host(Place::Client));
    let mut witness = Proc::spawn(topology.host(Place::Client), "witness", &line, &dir, timeline)?;
    listening(&mut witness, WITNESS_PORT, topology.patience())?;
    Ok(witness)
}

fn start_standby(
    settings: &Settings,
    topology: &dyn Topology,
    files: &Files,
    number: u32,
    timeline: &Timeline,
) -> Result<Proc> {
    let dir = files.standby(number);
    let host = topology.host(Place::Standby);
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    // (A host that comes back from the dead may have lost what it had.)
    host.make_dir(&dir)?;
    host.make_dir(&settings.ram_dir)?;
    let line = lines::standby(settings, files, number, guest(settings).qemu(&VmPaths::new(&dir)));
    let mark = timeline.mark();
    let mut standby = Proc::spawn(host, "standby", &line, &dir, timeline)?;
    let waiting = |e: &Entry| matches!(e.told_by("standby"), Some(Event::Waiting(_)));
    let waits = || timeline.wait(mark, Duration::ZERO, waiting).is_ok_and(|e| e.is_some());
    poll(topology.patience(), || waits() || !standby.is_alive())?;
    ensure!(standby.is_alive() && waits(), "the standby does not wait for a primary:\n{}", standby.log_tail(20));
    Ok(standby)
}

/// Waits until `server`, a process of this machine, listens on the TCP port.
fn listening(server: &mut Proc, port: u16, patience: Duration) -> Result<()> {
    // Columns of /proc/net/tcp: slot, local address:port, remote address:port, state (0A: listening), ...
    let listens = |line: &str| {
        let columns: Vec<&str> = line.split_ascii_whitespace().take(4).collect();
        columns.get(1).is_some_and(|local| local.ends_with(&format!(":{port:04X}"))) && columns.get(3) == Some(&"0A")
    };
    let pid = server.pid();
    let table = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
    let ready = || table("tcp").lines().any(listens) || table("tcp6").lines().any(listens);
    poll(patience, || ready() || !server.is_alive())?;
    ensure!(server.is_alive() && ready(), "{} does not listen on port {port}:\n{}", server.name, server.log_tail(20));
    Ok(())
}
