//! Hosts as network namespaces.
//!
//! ```text
//!        client (.3)                        10.77.0.0/24, the guest is .10
//!        ┌──── lan ────┐ bridge
//!      veth           veth
//!        │             │
//!   ┌─ primary ─┐  ┌─ standby ─┐
//!   │ lan       │  │ lan       │
//!   │ br0  (.1) │  │ br0  (.2) │ bridge
//!   │ tap0      │  │ tap0      │ <- the gate's far side
//!   │ rep ──────┼──┼────── rep │ 10.78.0.1, .2: the replication link
//!   └───────────┘  └───────────┘
//! ```
//!
//! Bridges forward at once (no spanning tree, no delay), and IPv6 is off: nothing but the guest and what is asked of it
//! is on the wire. Names carry the rig's process id, so that several rigs can run at a time.

mod silencer;

use crate::{
    hosts::{self, Blow, CLIENT_IP, PRIMARY_LAN_IP, PRIMARY_REP_IP, Place, STANDBY_LAN_IP, STANDBY_REP_IP, TAP},
    prerequisite::Missing,
    process::{Line, Stat, all_pids, children, signal, stat},
    qmp,
};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use silencer::Silencer;
use std::{
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// Where files are memory, if this machine has it.
pub const SHM: &str = "/dev/shm";
/// What the names of temporary directories begin with; the rig's process id and a dash follow.
pub const TEMPORARY: &str = "afterimage-rig";
/// A rule of routing that loses datagrams which come over the replication link, as `ip rule` shows it.
const MUTE: &str = "iif rep ipproto udp blackhole";
/// How long processes may take to die, and links to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A host.
#[derive(Clone, Debug)]
pub struct Host {
    /// Which one.
    pub place: Place,
    /// Name of its network namespace.
    pub netns: String,
    /// What `/proc/PID/ns/net` shows for its processes.
    identity: String,
}

impl Host {
    fn create(prefix: &str, place: Place) -> Result<Self> {
        let netns = format!("{prefix}-{}", place.short());
        run("ip", &["netns", "add", &netns])?;
        let host = Self::existing(place, netns)?;
        host.without_ipv6()?;
        host.ip("link set lo up")?;
        Ok(host)
    }

    /// The host that a namespace is already.
    pub(crate) fn existing(place: Place, netns: String) -> Result<Self> {
        let inode = std::fs::metadata(format!("/run/netns/{netns}")).with_context(|| netns.clone())?.ino();
        Ok(Self { place, netns, identity: format!("net:[{inode}]") })
    }

    /// (Kernels without IPv6 have nothing to switch off.)
    pub(crate) fn without_ipv6(&self) -> Result<()> {
        let script = "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do [ ! -e $f ] || echo 1 >$f; done";
        self.run("sh", &["-c", script]).map(drop)
    }

    /// Runs a program here and gives its output.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        run("ip", &[&["netns", "exec", &self.netns, program], args].concat())
    }

    /// One `ip` command.
    pub fn ip(&self, command: &str) -> Result<String> {
        let words: Vec<&str> = ["-n", &self.netns].into_iter().chain(command.split_ascii_whitespace()).collect();
        run("ip", &words)
    }

    /// Everything that runs here, whoever started it. Dead processes that nobody asked about yet do not count.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        let here = |pid: &u32| {
            std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|l| l.as_os_str() == &*self.identity)
        };
        all_pids().filter(here).collect()
    }

    /// Kills everything that runs here, until there is nothing left.
    pub fn kill_all(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let pids = self.pids();
            if pids.is_empty() {
                return Ok(());
            }
            ensure!(start.elapsed() < PATIENCE, "{}: processes {pids:?} do not die", self.netns);
            pids.iter().for_each(|pid| signal(*pid, Signal::KILL));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn stop_all(&self) {
        let mut frozen = Vec::new();
        loop {
            // A process may have been started while we looked.
            let new: Vec<u32> = self.pids().into_iter().filter(|pid| !frozen.contains(pid)).collect();
            if new.is_empty() {
                return;
            }
            new.iter().for_each(|pid| signal(*pid, Signal::STOP));
            frozen.extend(new);
        }
    }

    fn continue_all(&self) {
        self.pids().iter().for_each(|pid| signal(*pid, Signal::CONT));
    }
}

impl hosts::Host for Host {
    fn name(&self) -> &str {
        &self.netns
    }

    // `ip netns exec` and `setpriv` replace themselves with what they start: the process id stays.
    fn command(&self, line: &Line) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns, "setpriv", "--pdeathsig", "KILL", "--"]).args(&line.0);
        command
    }

    fn make_dir(&self, path: &Path) -> Result<()> {
        std::fs::create_dir_all(path).with_context(|| path.display().to_string())
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>> {
        std::fs::read(path).with_context(|| path.display().to_string())
    }

    fn executes(&self, monitor: &Path, patience: Duration) -> Result<bool> {
        qmp::executes(monitor, patience)
    }

    fn qemus(&self) -> Vec<u32> {
        self.pids().into_iter().filter(|pid| stat(*pid).is_some_and(|s| is_qemu(&s))).collect()
    }

    fn freeze(&self) -> Result<()> {
        self.stop_all();
        Ok(())
    }

    fn thaw(&self) -> Result<()> {
        self.continue_all();
        Ok(())
    }

    /// Those that came out of its TAP device.
    fn frames_out(&self) -> Result<u64> {
        let path = format!("/sys/class/net/{TAP}/statistics/rx_packets");
        let text = self.run("cat", &[&path])?;
        text.trim().parse().with_context(|| format!("{path} of {}: '{text}'", self.netns))
    }

    fn clock_ahead_ms(&self) -> f64 {
        0.0
    }

    fn sidecar_ticks(&self) -> Option<u64> {
        let stats = self.pids().into_iter().filter_map(stat);
        Some(stats.filter(|s| !is_qemu(s)).map(|s| s.cpu_ticks).sum())
    }

    fn kill_data_path(&self, protect: u32) -> Result<()> {
        signal(data_path(protect)?, Signal::KILL);
        Ok(())
    }
}

fn is_qemu(stat: &Stat) -> bool {
    stat.name.starts_with("qemu-system")
}

/// The data path of the sidecar `protect`: the child of its process that is not QEMU.
///
/// # Errors
/// There is none.
pub fn data_path(protect: u32) -> Result<u32> {
    let own = |pid: &u32| stat(*pid).is_some_and(|s| !is_qemu(&s));
    children(protect).into_iter().find(own).context("protect has no data path process")
}

/// The three hosts and their links. Dropped: all gone, with everything that ran there.
#[derive(Debug)]
pub struct Topology {
    /// Where the VM runs at first.
    pub primary: Host,
    /// Where its after-image is.
    pub standby: Host,
    /// Where the client and the witness are.
    pub client: Host,
    _sweeper: Sweeper,
}

/// Removes what was made, also when making it failed half-way.
#[derive(Debug)]
struct Sweeper(Vec<Host>);

impl Drop for Sweeper {
    fn drop(&mut self) {
        for host in &self.0 {
            host.continue_all();
            if let Err(error) = host.kill_all().and_then(|()| run("ip", &["netns", "del", &host.netns])) {
                eprintln!("cleaning up {}: {error:#}", host.netns);
            }
        }
    }
}

impl Topology {
    /// Makes them.
    ///
    /// # Errors
    /// [`Missing`] if this machine allows no network namespaces.
    pub fn create() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("ai{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut sweeper = Sweeper(Vec::new());
        for place in [Place::Client, Place::Primary, Place::Standby] {
            let host = Host::create(&prefix, place).map_err(|e| {
                Missing::error(
                    format!("cannot make network namespaces: {e:#}"),
                    "Run as root, outside of unprivileged containers",
                )
            })?;
            sweeper.0.push(host);
        }
        let [client, primary, standby] = sweeper.0.as_slice() else { bail!("three hosts were made") };
        let (client, primary, standby) = (client.clone(), primary.clone(), standby.clone());
        bridge(&client, "lan", CLIENT_IP)?;
        connect(&primary, &client, PRIMARY_LAN_IP)?;
        connect(&standby, &client, STANDBY_LAN_IP)?;
        primary.ip(&format!("link add rep type veth peer name rep netns {}", standby.netns))?;
        for (host, address) in [(&primary, PRIMARY_REP_IP), (&standby, STANDBY_REP_IP)] {
            host.ip(&format!("address add {address}/24 dev rep"))?;
            host.ip("link set rep up")?;
        }
        let hosts = Self { primary, standby, client, _sweeper: sweeper };
        hosts.settle()?;
        Ok(hosts)
    }

    /// Waits until the kernel has noticed all carriers, and the bridges forward: it does both in its own time, and
    /// drops what comes before.
    fn settle(&self) -> Result<()> {
        let forwarding = "[ $(cat /sys/class/net/$l/operstate) = up ] && \
                          [ $(cat /sys/class/net/$l/brport/state 2>/dev/null || echo 3) = 3 ]";
        let seconds = PATIENCE.as_secs().to_string();
        for (host, links) in [(&self.client, "pri sby"), (&self.primary, "lan rep"), (&self.standby, "lan rep")] {
            let script = format!("for l in {links}; do until {forwarding}; do sleep 0.01; done; done");
            host.run("timeout", &[&seconds, "sh", "-c", &script])
                .with_context(|| format!("links of {}", host.netns))?;
        }
        Ok(())
    }

    fn at(&self, place: Place) -> &Host {
        match place {
            Place::Primary => &self.primary,
            Place::Standby => &self.standby,
            Place::Client => &self.client,
        }
    }
}

impl hosts::Topology for Topology {
    fn host(&self, place: Place) -> &dyn hosts::Host {
        self.at(place)
    }

    /// First nothing leaves it any more, then everything on it is killed, then its links lose their carrier.
    fn prepare_death(&self, place: Place) -> Result<Blow<'_>> {
        let host = self.at(place);
        let mut silencer = Silencer::prepare(host, &["rep", "lan"])?;
        Ok(Box::new(move || {
            silencer.fire()?;
            host.kill_all()?;
            ["rep", "lan"].iter().try_for_each(|link| host.ip(&format!("link set {link} down")).map(drop))
        }))
    }

    fn prepare_cut(&self) -> Result<Blow<'_>> {
        let mut silencers = [Silencer::prepare(&self.primary, &["rep"])?, Silencer::prepare(&self.standby, &["rep"])?];
        Ok(Box::new(move || silencers.iter_mut().try_for_each(Silencer::fire)))
    }

    fn prepare_rdma_cut(&self) -> Result<Blow<'_>> {
        Err(Missing::error("network namespaces have no RDMA devices", "Use --hosts lab"))
    }

    // (A rule of routing: neither a packet filter nor a queue that tells protocols apart is in every kernel.)
    fn mute_datagrams(&self, place: Place) -> Result<()> {
        // The rule that what comes here is for us is the first, and must not be.
        let rules =
            ["rule add pref 2 lookup local", "rule del pref 0", "rule add pref 1 iif rep ipproto udp blackhole"];
        rules.iter().try_for_each(|rule| self.at(place).ip(rule).map(drop))
    }

    fn restore(&self) -> Result<()> {
        for host in [&self.primary, &self.standby] {
            if host.ip("rule show")?.contains(MUTE) {
                let rules = ["rule del pref 1", "rule add pref 0 lookup local", "rule del pref 2"];
                rules.iter().try_for_each(|rule| host.ip(rule).map(drop))?;
            }
            let disciplines = host.run("tc", &["qdisc", "show"])?;
            for link in ["rep", "lan"] {
                if disciplines.lines().any(|l| l.contains("blackhole") && l.contains(&format!("dev {link} "))) {
                    host.run("tc", &["qdisc", "del", "dev", link, "root"])?;
                }
                host.ip(&format!("link set {link} up"))?;
            }
        }
        self.settle()
    }

    fn reset(&self) -> Result<()> {
        for host in [&self.primary, &self.standby, &self.client] {
            host.continue_all();
            host.kill_all()?;
        }
        self.restore()?;
        self.client.ip("neigh flush dev lan").map(drop)
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(180)
    }
}

fn bridge(host: &Host, name: &str, address: &str) -> Result<()> {
    host.ip(&format!("link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"))?;
    host.ip(&format!("address add {address}/24 dev {name}"))?;
    host.ip(&format!("link set {name} up")).map(drop)
}

/// A host with a bridge and a TAP device, on the client's LAN.
fn connect(host: &Host, client: &Host, address: &str) -> Result<()> {
    bridge(host, "br0", address)?;
    let port = host.place.short();
    host.ip(&format!("link add lan type veth peer name {port} netns {}", client.netns))?;
    host.ip(&format!("tuntap add dev {TAP} mode tap"))?;
    for device in ["lan", TAP] {
        host.ip(&format!("link set {device} master br0"))?;
        host.ip(&format!("link set {device} up"))?;
    }
    client.ip(&format!("link set {port} master lan"))?;
    client.ip(&format!("link set {port} up")).map(drop)
}

/// Removes hosts and RAM files whose rig is gone, with everything that runs there. Says which.
pub fn clean() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((rig, place)) = owner(&name) else { continue };
        if !Path::new(&format!("/proc/{rig}")).exists() {
            drop(Sweeper(vec![Host::existing(place, name.clone())?]));
            removed.push(name);
        }
    }
    for entry in std::fs::read_dir(SHM).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let rig = name.strip_prefix(TEMPORARY).and_then(|rest| rest.split_once('-')).map(|(rig, _)| rig.parse::<u32>());
        if let Some(Ok(rig)) = rig
            && !Path::new(&format!("/proc/{rig}")).exists()
        {
            std::fs::remove_dir_all(entry.path()).with_context(|| name.clone())?;
            removed.push(name);
        }
    }
    Ok(removed)
}

/// The rig's process id and the place that are in a namespace's name; None if it is not one of ours.
fn owner(name: &str) -> Option<(u32, Place)> {
    let (prefix, place) = name.strip_prefix("ai")?.split_once('-')?;
    let (rig, count) = prefix.split_once('x')?;
    count.parse::<u32>().ok()?;
    let place = [Place::Primary, Place::Standby, Place::Client].into_iter().find(|p| p.short() == place)?;
    Some((rig.parse().ok()?, place))
}

/// Runs a program to its end.
fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {} {}", args.join(" "), output.status, said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_ours() {
        assert_eq!(owner("ai123x0-pri"), Some((123, Place::Primary)));
        for other in ["", "ai", "ai-pri", "aix0-pri", "ai12-pri", "ai12x0-web", "air1x0-cli", "mail12x0-pri"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
