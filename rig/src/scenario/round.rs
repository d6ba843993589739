//! One run, up to the fault: witness, standby, VM, protection, client; and all of it down again.

use super::{Settings, asker::Asker, status};
use crate::{
    guest::{Kind, VmPaths},
    hosts::{CLIENT_IP, Host, Place, STANDBY_REP_IP, TAP, Topology},
    process::{Line, Proc},
    serial::Serial,
    stats::Latencies,
    timeline::{Timeline, pass, poll},
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// The VM's name.
const VM: &str = "demo";
const WITNESS_PORT: u16 = 7101;
const STANDBY_PORT: u16 = 7100;
/// Everything that runs.
#[derive(Debug)]
pub struct Round<'a> {
    /// What it is about.
    pub settings: &'a Settings,
    /// Where.
    pub topology: &'a dyn Topology,
    /// What happened, but for the replies.
    pub timeline: Timeline,
    dir: PathBuf,
    standbys: u32,
    pub(super) witness: Proc,
    pub(super) standby: Proc,
    pub(super) protect: Option<Proc>,
    client: Asker<'a>,
    _qemu: Proc,
}

impl<'a> Round<'a> {
    /// Starts the witness, the standby and the VM, all of them new, in `dir`.
    ///
    /// # Errors
    /// Something does not start; the message has the end of its log.
    pub fn start(settings: &'a Settings, topology: &'a dyn Topology, dir: &Path, timeline: Timeline) -> Result<Self> {
        for place in [Place::Primary, Place::Standby, Place::Client] {
            // Logs are kept here, wherever the host keeps its own files.
            let dir = dir.join(place.short());
            std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
            topology.host(place).make_dir(&dir)?;
        }
        let witness = start_witness(settings, topology, dir, &timeline)?;
        let standby = start_standby(settings, topology, dir, 0, &timeline)?;
        let paths = VmPaths::new(&dir.join("pri"));
        let primary = topology.host(Place::Primary);
        let line = settings.guest.primary(primary, &paths)?;
        let mut qemu = Proc::spawn(primary, "qemu", &line, &dir.join("pri"), &timeline)?;
        let there = || primary.exists(&paths.nic()) && primary.exists(&paths.qmp());
        let ready = poll(topology.patience(), || there() || !qemu.is_alive())?;
        ensure!(ready && qemu.is_alive(), "QEMU does not start:\n{}", qemu.log_tail(10));
        timeline.note("VM started");
        let (client, dir) = (Asker::new(settings, topology, dir, &timeline), dir.to_owned());
        let round = Self {
            settings,
            topology,
            timeline,
            dir,
            standbys: 1,
            witness,
            standby,
            protect: None,
            client,
            _qemu: qemu,
        };
        Ok(round)
    }

    /// The VM's files on the primary host.
    #[must_use]
    pub fn primary_vm(&self) -> VmPaths {
        VmPaths::new(&self.dir.join("pri"))
    }

    /// The waiting VM's files on the standby host, the newest if there were several.
    #[must_use]
    pub fn standby_vm(&self) -> VmPaths {
        VmPaths::new(&standby_dir(&self.dir, self.standbys - 1))
    }

    /// Gives the unprotected VM a network until it serves, and measures its replies if asked to. The Linux guest needs
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
        let (primary, vm) = (self.topology.host(Place::Primary), self.primary_vm());
        let plug = plug(self.settings, primary, &vm, &self.dir.join("pri"), &self.timeline)?;
        wait_booted(guest.kind, primary, &vm)?;
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

    /// Starts `afterimage protect`, and waits until the VM is protected. An earlier one hands over.
    ///
    /// # Errors
    /// It ends, or is not there in time.
    pub fn protect(&mut self) -> Result<()> {
        let mark = self.timeline.mark();
        let s = self.settings;
        let line = Line::new(&s.afterimage)
            .args(["protect", "--vm", VM, "--node", "host-a"])
            .flag("--qmp", self.primary_vm().qmp())
            .flag("--to", format!("{STANDBY_REP_IP}:{STANDBY_PORT}"))
            .flag("--arbiter", arbiter())
            .flag("--epoch", &s.epoch)
            .flag("--nic", nic(&self.primary_vm()))
            .flag("--run-dir", self.dir.join("pri"))
            .flag("--state-dir", self.state_dir(Place::Primary));
        let line = common(s, line);
        let (primary, patience) = (self.topology.host(Place::Primary), self.topology.patience());
        let mut protect = Proc::spawn(primary, "protect", &line, &self.dir.join("pri"), &self.timeline)?;
        let mut found = None;
        poll(patience, || {
            found = self.timeline.wait(mark, Duration::ZERO, |e| e.is("protect", "protected")).ok().flatten();
            found.is_some() || !protect.is_alive()
        })?;
        if found.is_none() {
            let how = if protect.is_alive() { "does not say so" } else { "has ended" };
            eprintln!("{}", protect_log(&protect, &self.standby));
            bail!("the VM is not protected within {patience:?}: protect {how}");
        }
        self.protect = Some(protect);
        Ok(())
    }

    /// Starts another standby, after the last one died.
    ///
    /// # Errors
    /// It does not come up.
    pub fn new_standby(&mut self) -> Result<()> {
        self.standby = start_standby(self.settings, self.topology, &self.dir, self.standbys, &self.timeline)?;
        self.standbys += 1;
        Ok(())
    }

    /// Starts the witness again, over the state that it had.
    ///
    /// # Errors
    /// It does not come up.
    pub fn restart_witness(&mut self) -> Result<()> {
        self.witness = start_witness(self.settings, self.topology, &self.dir, &self.timeline)?;
        Ok(())
    }

    /// The VM's client.
    pub fn client(&mut self) -> &mut Asker<'a> {
        &mut self.client
    }

    /// `afterimage status --json` of the primary's sidecar; null if it has none to give.
    #[must_use]
    pub fn status(&self) -> Value {
        let program = self.settings.afterimage.to_string_lossy();
        let run_dir = self.dir.join("pri");
        let args = ["status", "--vm", VM, "--role", "primary", "--json", "--run-dir", &run_dir.to_string_lossy()];
        let output = self.topology.host(Place::Primary).run(&program, &args).unwrap_or_default();
        serde_json::from_str(&output).unwrap_or(Value::Null)
    }

    fn state_dir(&self, place: Place) -> PathBuf {
        state_dir(&self.dir, place)
    }

    /// `afterimage why` on one of the two hosts; None if it cannot be asked, as a dead one, or has nothing to tell.
    #[must_use]
    pub fn why(&self, place: Place, more: &[&str]) -> Option<String> {
        let (program, state_dir) = (self.settings.afterimage.to_string_lossy(), self.state_dir(place));
        let state_dir = state_dir.to_string_lossy();
        let args: Vec<&str> = ["why", "--vm", VM, "--state-dir", &state_dir].iter().chain(more).copied().collect();
        self.topology.host(place).run(&program, &args).ok()
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

    /// Whether the VM at `place` executes now.
    ///
    /// # Errors
    /// There is a QEMU that does not answer.
    pub fn executes(&self, place: Place) -> Result<bool> {
        let vm = if place == Place::Primary { self.primary_vm() } else { self.standby_vm() };
        self.topology.host(place).executes(&vm.observer())
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
        self.protect.as_ref().map_or_else(String::new, |protect| protect_log(protect, &self.standby))
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

/// Waits until the guest says that it serves. The Linux guest needs a network for that.
///
/// # Errors
/// It does not come up.
pub fn wait_booted(kind: Kind, host: &dyn Host, vm: &VmPaths) -> Result<()> {
    let sign = if kind == Kind::Tiny { "CNT " } else { "READY" };
    let up = || host.read(&vm.serial()).is_ok_and(|text| String::from_utf8_lossy(&text).contains(sign));
    ensure!(poll(kind.boot_patience(), up)?, "the guest does not come up; see {}", vm.serial().display());
    Ok(())
}

fn protect_log(protect: &Proc, standby: &Proc) -> String {
    format!("--- protect:\n{}\n--- standby:\n{}", protect.log_tail(20), standby.log_tail(20))
}

fn arbiter() -> String {
    format!("witness://{CLIENT_IP}:{WITNESS_PORT}")
}

fn nic(vm: &VmPaths) -> String {
    format!("{}={TAP}", vm.nic().display())
}

/// What both sidecars are told alike.
fn common(settings: &Settings, line: Line) -> Line {
    let line = line
        .flag("--beat-interval", &settings.beat_interval)
        .flag("--detect-multiplier", settings.detect_multiplier.to_string());
    settings.flags.iter().fold(line, |line, (name, value)| line.flag(name, value))
}

fn start_witness(settings: &Settings, topology: &dyn Topology, dir: &Path, timeline: &Timeline) -> Result<Proc> {
    let line = Line::new(&settings.afterimage)
        .args(["witness", "--listen", &format!("{CLIENT_IP}:{WITNESS_PORT}")])
        .flag("--state", dir.join("cli/witness"));
    let mut witness = Proc::spawn(topology.host(Place::Client), "witness", &line, &dir.join("cli"), timeline)?;
    listening(&mut witness, WITNESS_PORT, topology.patience())?;
    Ok(witness)
}

/// Where a host's journals are: its own, and kept when its sidecar is started anew.
fn state_dir(dir: &Path, place: Place) -> PathBuf {
    dir.join(place.short()).join("state")
}

fn standby_dir(dir: &Path, number: u32) -> PathBuf {
    dir.join("sby").join(number.to_string())
}

fn start_standby(
    settings: &Settings,
    topology: &dyn Topology,
    root: &Path,
    number: u32,
    timeline: &Timeline,
) -> Result<Proc> {
    let dir = standby_dir(root, number);
    let host = topology.host(Place::Standby);
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    // (A host that comes back from the dead may have lost what it had.)
    host.make_dir(&dir)?;
    host.make_dir(&settings.ram_dir)?;
    let vm = VmPaths::new(&dir);
    let line = Line::new(&settings.afterimage)
        .args(["standby", "--vm", VM, "--node", "host-b"])
        .flag("--listen", format!("{STANDBY_REP_IP}:{STANDBY_PORT}"))
        .flag("--arbiter", arbiter())
        .flag("--nic", nic(&vm))
        .flag("--run-dir", &dir)
        .flag("--state-dir", state_dir(root, Place::Standby))
        .flag("--ram-dir", &settings.ram_dir)
        .flag("--spill", dir.join("spill"));
    let line = common(settings, line).args(["--"]).args(settings.guest.qemu(&vm).0);
    let mark = timeline.mark();
    let mut standby = Proc::spawn(host, "standby", &line, &dir, timeline)?;
    let waits = || timeline.wait(mark, Duration::ZERO, |e| e.is("standby", "waiting")).is_ok_and(|e| e.is_some());
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
