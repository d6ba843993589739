//! A network for VMs: a namespace of the test's own with a bridge, a TAP device per node, and a client of the guest's
//! service.

use crate::{
    guest::Vm,
    proc::{LONG, Proc, until},
    world::{Standby, StandbyOptions, World, free_addr},
};
use mc_core::testing::skip;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::{
    fs::File,
    net::UdpSocket,
    os::fd::AsFd,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// Where the guest is (testing/guests/README.md).
const GUEST: &str = "10.77.0.10:7777";

/// The namespace; deleted when dropped.
pub(crate) struct Network(String);

impl Network {
    /// A new one, with the calling thread in it, and so everything that it starts. `None`, with the reason printed,
    /// where that cannot be.
    pub(crate) fn enter(nodes: &[&str]) -> Option<Self> {
        Self::try_enter(nodes).map_err(skip).ok()
    }

    fn try_enter(nodes: &[&str]) -> Result<Self, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ai-e2e-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ip(&format!("netns add {name}"))?;
        let network = Self(name);
        let file = File::open(format!("/run/netns/{}", network.0)).map_err(|e| e.to_string())?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|e| e.to_string())?;
        ip("link set lo up")?;
        ip("link add br0 type bridge forward_delay 0")?;
        ip("addr add 10.77.0.1/24 dev br0")?;
        ip("link set br0 up")?;
        for node in nodes {
            ip(&format!("tuntap add dev {} mode tap", tap(node)))?;
            ip(&format!("link set {} master br0 up", tap(node)))?;
        }
        Ok(network)
    }
}

/// Deletes a node's TAP device, whoever has it open.
pub(crate) fn delete_tap(node: &str) {
    ip(&format!("link del {}", tap(node))).unwrap();
}

/// Makes it again, in the bridge.
pub(crate) fn make_tap(node: &str) {
    ip(&format!("tuntap add dev {} mode tap", tap(node))).unwrap();
    ip(&format!("link set {} master br0 up", tap(node))).unwrap();
}

/// Sets it "up" or "down".
pub(crate) fn set_tap(node: &str, state: &str) {
    ip(&format!("link set {} {state}", tap(node))).unwrap();
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = ip(&format!("netns del {}", self.0));
    }
}

/// `ip ARGS`, in the thread's namespace.
fn ip(args: &str) -> Result<(), String> {
    let done = Command::new("ip").args(args.split(' ')).output().map_err(|e| format!("ip: {e}"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    if done.status.success() { Ok(()) } else { Err(format!("ip {args}: {}", said.trim())) }
}

/// A node's TAP device.
pub(crate) fn tap(node: &str) -> String {
    format!("tap-{node}")
}

/// `--nic`'s value on a node.
pub(crate) fn nic(dir: &Path, node: &str) -> String {
    format!("{}={}", socket(dir, node), tap(node))
}

fn socket(dir: &Path, node: &str) -> String {
    dir.join(format!("{node}.net")).display().to_string()
}

/// What gives a VM on `node` its NIC.
pub(crate) fn device(dir: &Path, node: &str) -> Vec<String> {
    let netdev = format!("stream,id=n0,server=on,addr.type=unix,addr.path={}", socket(dir, node));
    let device = "ne2k_isa,netdev=n0,iobase=0x300,irq=9,mac=52:54:00:00:00:0a";
    ["-netdev", &netdev, "-device", device].map(str::to_owned).to_vec()
}

/// A running VM on a node, with a NIC.
pub(crate) fn vm(world: &World, node: &str) -> Vm {
    let more = device(world.dir.path(), node);
    world.vm("vm", &more.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A standby of a VM with a NIC, on a node.
pub(crate) fn standby(world: &World, node: &str, begins: &'static str) -> Standby {
    let mut qemu = world.standby_qemu(node, None);
    qemu.extend(device(world.dir.path(), node));
    let flags = vec!["--nic".to_owned(), nic(world.dir.path(), node)];
    world.standby_with(node, &StandbyOptions { qemu: Some(qemu), flags, begins, ..StandbyOptions::default() })
}

/// `protect` of it.
pub(crate) fn protect(world: &World, node: &str, name: &str, qmp: &Path, to: &Standby) -> Proc {
    world.protect(node, name, qmp, to.addr, &format!("--nic {}", nic(world.dir.path(), node)))
}

/// The VM on node a, protected by node b; the guest's client has been served.
pub(crate) fn pair(world: &World) -> (Vm, Proc, Standby, Client) {
    let vm = vm(world, "a");
    let mut standby = standby(world, "b", "waiting");
    let mut protect = protect(world, "a", "a", &vm.qmp, &standby);
    protect.wait_event("protected");
    standby.proc.wait_event("protected");
    let mut client = Client::new();
    client.is_served(5);
    (vm, protect, standby, client)
}

/// `protect` of a VM that has no standby, and its client, which is served.
pub(crate) fn alone(world: &World, vm: &Vm) -> (Proc, Client) {
    let protect = world.protect("a", "a", &vm.qmp, free_addr(), &format!("--nic {}", nic(world.dir.path(), "a")));
    world.wait_role("a", "solo");
    let mut client = Client::new();
    client.is_served(5);
    (protect, client)
}

/// The guest's only client: it numbers its requests, and repeats each until it is answered. The guest refuses a number
/// that shows that it forgot a request it had answered, or served one that was delivered by two machines.
#[derive(Debug)]
pub(crate) struct Client {
    socket: UdpSocket,
    seq: u32,
}

impl Client {
    pub(crate) fn new() -> Self {
        let socket = UdpSocket::bind("10.77.0.1:0").unwrap();
        socket.connect(GUEST).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self { socket, seq: 0 }
    }

    /// Has `n` requests served, one after the other.
    pub(crate) fn is_served(&mut self, n: u32) {
        for _ in 0..n {
            self.seq += 1;
            let status = until(&format!("request {} is answered", self.seq), || self.ask());
            assert!(
                matches!(status, 1 | 2),
                "request {} was refused ({status}): something was lost, or doubled",
                self.seq
            );
        }
    }

    /// Whether nobody answers for a while.
    pub(crate) fn hears_nothing(&mut self) -> bool {
        self.seq += 1;
        let silent = (0..5).all(|_| self.ask().is_none());
        if silent {
            self.seq -= 1;
        }
        silent
    }

    fn ask(&self) -> Option<u32> {
        let words = [self.seq, 0, 0, 0, 0];
        let request: Vec<u8> = b"AIQ1".iter().copied().chain(words.iter().flat_map(|w| w.to_le_bytes())).collect();
        let _ = self.socket.send(&request); // nobody may be there
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(100).min(LONG) {
            let mut reply = [0; 256];
            let Ok(n) = self.socket.recv(&mut reply) else {
                std::thread::sleep(Duration::from_millis(1)); // "no route to host" comes at once
                continue;
            };
            let word = |at: usize| Some(u32::from_le_bytes(*reply[..n].get(at..)?.first_chunk()?));
            if reply.starts_with(b"AIQ1") && word(4) == Some(self.seq) {
                return word(20);
            }
        }
        None
    }
}
