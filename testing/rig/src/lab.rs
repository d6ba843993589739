//! Hosts that are virtual machines, made by `scripts/lab pair --lan` (docs/LAB.md).
//!
//! ```text
//!        client (.3), a namespace here      10.77.0.0/24, the guest is .10
//!        ┌── lab-lan ──┐ hub of the lab, which counts what comes from whom
//!        │             │
//!   ┌─ VM a ──────┐  ┌─ VM b ──────┐
//!   │ eth1        │  │ eth1        │
//!   │ br0  (.1)   │  │ br0  (.2)   │ bridge
//!   │ tap0        │  │ tap0        │ <- the gate's far side
//!   │ eth0 ───────┼──┼─────── eth0 │ 10.78.0.1, .2: the replication link, with an RDMA device on it
//!   └─────────────┘  └─────────────┘
//! ```
//!
//! The VMs see this machine's programs at the same paths; what they write stays in their memory. Everything in them is
//! emulated: starting a program takes 100 ms, and QEMU inside is an emulation in an emulation.

use crate::{
    guest::MAC,
    hosts::{self, Blow, CLIENT_IP, PRIMARY_LAN_IP, Place, STANDBY_LAN_IP, TAP},
    netns,
    prerequisite::Missing,
    process::Line,
    timeline::poll,
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    cell::Cell,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Whether a lab with a LAN is around us.
#[must_use]
pub fn is_here() -> bool {
    std::env::var_os("LAB_SOCK").is_some() && std::env::var_os("LAB_LAN").is_some()
}

/// A verb of the lab, as its program would send it (`testing/lab/server.py`), but at once: starting that program would delay
/// the fault by a tenth of a second. Gives what the lab says.
fn verb(words: &[&str]) -> Result<String> {
    let path = std::env::var_os("LAB_SOCK").context("LAB_SOCK is not set")?;
    let mut lab = UnixStream::connect(&path).with_context(|| PathBuf::from(&path).display().to_string())?;
    let request = json!({ "argv": words, "cwd": "/" });
    lab.write_all(format!("{request}\n").as_bytes())?;
    let (mut said, mut complaint) = (Vec::new(), Vec::new());
    loop {
        let mut head = [0; 5];
        lab.read_exact(&mut head).context("the lab ended")?;
        let [kind, len @ ..] = head;
        let mut data = Vec::new();
        (&lab).take(u32::from_be_bytes(len).into()).read_to_end(&mut data)?;
        match kind {
            b'o' => said.extend(data),
            b'e' => complaint.extend(data),
            b'x' if data == b"0" => return Ok(String::from_utf8_lossy(&said).into_owned()),
            _ => bail!("lab {}: {}", words.join(" "), String::from_utf8_lossy(&complaint).trim()),
        }
    }
}

/// A virtual machine of the lab.
#[derive(Debug)]
pub struct Vm {
    name: &'static str,
    dead: Cell<bool>,
    clock_ahead_ms: Cell<f64>,
}

impl Vm {
    /// Takes it as it is: an earlier run may have used it, or killed it.
    fn take(name: &'static str, address: &str) -> Result<Self> {
        let vm = Self { name, dead: Cell::new(false), clock_ahead_ms: Cell::new(0.0) };
        if verb(&["exec", name, "true"]).is_err() {
            verb(&["start", name])?;
        }
        vm.connect(address)?;
        Ok(vm)
    }

    fn kill(&self) -> Result<()> {
        verb(&["kill", self.name])?;
        self.dead.set(true);
        Ok(())
    }

    fn revive(&self, address: &str) -> Result<()> {
        if self.dead.get() {
            verb(&["start", self.name])?;
            self.dead.set(false);
            self.connect(address)?;
        }
        Ok(())
    }

    /// Bridge and TAP device on the LAN, as a host has them; and how wrong its clock is.
    fn connect(&self, address: &str) -> Result<()> {
        let script = format!(
            "[ ! -e /sys/class/net/br0 ] || exit 0
            ip -batch - <<END || exit
            link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
            address add {address}/24 dev br0
            tuntap add dev {TAP} mode tap
            link set eth1 master br0
            link set {TAP} master br0
END
            for device in br0 eth1 {TAP}; do
                echo 1 >/proc/sys/net/ipv6/conf/$device/disable_ipv6
            done
            ip -batch - <<END
            link set br0 up
            link set eth1 up
            link set {TAP} up
END"
        );
        verb(&["exec", self.name, "sh", "-c", &script])?;
        let mut ahead = None;
        poll(Duration::from_secs(10), || {
            ahead = clock_ahead_ms(self.name);
            ahead.is_some()
        })?;
        let ahead = ahead.with_context(|| format!("the lab did not measure the clock of VM {}", self.name))?;
        self.clock_ahead_ms.set(ahead);
        Ok(())
    }
}

/// The last of the lab's measurements.
fn clock_ahead_ms(name: &str) -> Option<f64> {
    let log = PathBuf::from(std::env::var_os("LAB_OUT")?).join("events.log");
    let text = std::fs::read_to_string(log).ok()?;
    let mut events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    // What was measured before its last start is about a clock that is gone.
    let fate = |e: &Value| e["host"] == name && (e["event"] == "clock" || e["event"] == "start");
    events.rfind(fate)?["guest_minus_host_ms"].as_f64()
}

impl hosts::Host for Vm {
    fn name(&self) -> &str {
        self.name
    }

    fn command(&self, line: &Line) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "lab", "exec", self.name, "--"]).args(&line.0);
        command
    }

    fn make_dir(&self, path: &Path) -> Result<()> {
        self.run("mkdir", &["-p", &path.to_string_lossy()]).map(drop)
    }

    fn exists(&self, path: &Path) -> bool {
        verb(&["exec", self.name, "test", "-e", &path.to_string_lossy()]).is_ok()
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>> {
        verb(&["exec", self.name, "cat", &path.to_string_lossy()]).map(String::into_bytes)
    }

    fn executes(&self, monitor: &Path, patience: Duration) -> Result<bool> {
        if self.dead.get() {
            return Ok(false);
        }
        let rig = std::env::current_exe().context("own path")?;
        let (monitor, patience) = (monitor.to_string_lossy(), format!("{}ms", patience.as_millis()));
        let args = ["executes", "--monitor", &monitor, "--patience", &patience];
        Ok(self.run(&rig.to_string_lossy(), &args)?.trim() == "true")
    }

    fn qemus(&self) -> Vec<u32> {
        Vec::new()
    }

    fn freeze(&self) -> Result<()> {
        verb(&["freeze", self.name]).map(drop)
    }

    fn thaw(&self) -> Result<()> {
        verb(&["thaw", self.name]).map(drop)
    }

    /// Those that reached the LAN. The lab counts them outside the VM, so death and frost do not matter; but a frame
    /// that was on its way inside when the VM was frozen counts only afterwards.
    fn frames_out(&self) -> Result<u64> {
        let stats: Value = serde_json::from_str(&verb(&["stats"])?).context("the lab's counters")?;
        let senders = stats.get(format!("lan from {}", self.name)).context("the lab counts no frames of its LAN")?;
        Ok(senders.get(MAC).and_then(Value::as_u64).unwrap_or(0))
    }

    fn clock_ahead_ms(&self) -> f64 {
        self.clock_ahead_ms.get()
    }

    fn sidecar_ticks(&self) -> Option<u64> {
        None
    }

    fn kill_data_path(&self, _protect: u32) -> Result<()> {
        // (`protect` is the lab's program here.) The supervisor is the oldest process of that name.
        let script = "pkill -KILL -x -P \"$(pgrep -o -x afterimage)\" afterimage";
        self.run("sh", &["-c", script]).map(drop)
    }
}

/// The two VMs, and the client on this machine.
#[derive(Debug)]
pub struct Pair {
    primary: Vm,
    standby: Vm,
    client: netns::Host,
    /// The client's network device.
    lan: String,
}

impl Pair {
    /// Takes the lab that is around us.
    ///
    /// # Errors
    /// [`Missing`] if there is none, or it has no LAN in a namespace of its own; something in a VM fails.
    pub fn take() -> Result<Self> {
        let remedy = "Use scripts/demo --hosts lab, or scripts/lab pair --lan --lan-netns NAME -- scripts/demo";
        let missing = || Missing::error("there is no lab with a LAN in a network namespace around this run", remedy);
        let netns = std::env::var("LAB_LAN_NETNS").ok().filter(|name| !name.is_empty()).ok_or_else(missing)?;
        let lan = std::env::var("LAB_LAN").map_err(|_| missing())?;
        let client = netns::Host::existing(Place::Client, netns)?;
        client.without_ipv6()?;
        client.ip(&format!("address replace {CLIENT_IP}/24 dev {lan}"))?;
        client.ip(&format!("link set {lan} up"))?;
        verb(&["link", "both", "clear"])?;
        let primary = Vm::take("a", PRIMARY_LAN_IP)?;
        let standby = Vm::take("b", STANDBY_LAN_IP)?;
        let pair = Self { primary, standby, client, lan };
        pair.forget_guest()?;
        Ok(pair)
    }

    /// The bridges believe that the guest is where an earlier one was. It says where it is when ARP asks.
    fn forget_guest(&self) -> Result<()> {
        self.client.ip(&format!("neigh flush dev {}", self.lan)).map(drop)
    }

    fn vm(&self, place: Place) -> Result<&Vm> {
        match place {
            Place::Primary => Ok(&self.primary),
            Place::Standby => Ok(&self.standby),
            Place::Client => bail!("the client's host is no VM"),
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // The namespace and the VMs are the lab's.
        if let Err(error) = self.client.kill_all() {
            eprintln!("cleaning up {}: {error:#}", self.client.netns);
        }
    }
}

impl hosts::Topology for Pair {
    fn host(&self, place: Place) -> &dyn hosts::Host {
        match place {
            Place::Primary => &self.primary,
            Place::Standby => &self.standby,
            Place::Client => &self.client,
        }
    }

    fn prepare_death(&self, place: Place) -> Result<Blow<'_>> {
        let vm = self.vm(place)?;
        Ok(Box::new(move || vm.kill()))
    }

    fn prepare_cut(&self) -> Result<Blow<'_>> {
        Ok(Box::new(|| verb(&["link", "both", "cut=1"]).map(drop)))
    }

    fn prepare_rdma_cut(&self) -> Result<Blow<'_>> {
        // RoCE v2's port (IANA).
        Ok(Box::new(|| verb(&["link", "both", "port=4791", "cut=1"]).map(drop)))
    }

    fn mute_datagrams(&self, _place: Place) -> Result<()> {
        Err(Missing::error("the lab does not tell datagrams from other traffic", "Use --hosts netns"))
    }

    fn restore(&self) -> Result<()> {
        verb(&["link", "both", "clear"])?;
        self.primary.revive(PRIMARY_LAN_IP)?;
        self.standby.revive(STANDBY_LAN_IP)
    }

    fn reset(&self) -> Result<()> {
        self.client.kill_all()?;
        for vm in [&self.primary, &self.standby] {
            if !vm.dead.get() {
                hosts::Host::thaw(vm)?;
                let script = "pkill -KILL '^(afterimage|qemu-system)'; rm -rf /dev/shm/afterimage-rig*/*";
                verb(&["exec", vm.name, "sh", "-c", script])?;
            }
        }
        self.restore()?;
        self.forget_guest()
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(180)
    }
}

/// That this guest can be played there.
///
/// # Errors
/// It cannot.
pub fn check_guest(guest: crate::guest::Kind) -> Result<()> {
    ensure!(
        guest == crate::guest::Kind::Tiny,
        "the lab's VMs are too slow for the {} guest: --guest tiny",
        guest.name()
    );
    Ok(())
}
