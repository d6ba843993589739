//! The settings: the one place from which the flags, the keys of a file, `config check`, `--save`, `afterimage set` and
//! docs/SETTINGS.md come.

use super::{
    NicSpec, OnCapWish,
    setting::{Kind::*, PAIR, PROBE, PROTECT, STANDBY, Setting, Usual::*, WITNESS, any, listener, setting, text},
};
use mc_core::id::Name;
use node::{
    address::{Listen, LocalAddr},
    arbiter::{ArbiterSpec, HostPort},
};
use std::time::Duration;
use toml::Value;

const MS: f64 = 1e3;
const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * KIB;
const BOTH: u8 = PAIR | PROBE;
const ALL: u8 = WITNESS | PAIR;

/// All of them, in the order in which they are shown.
#[rustfmt::skip]
pub(super) static SETTINGS: &[Setting] = &[
    setting(PAIR, "vm", "NAME", Text(text::<Name>), Needed("web"),
        "The VM's name: the same on both hosts and at the arbiter; 1 to 47 bytes"),
    setting(PAIR, "node", "NAME", Text(text::<Name>), Follows("its hostname"),
        "This host's name in the register"),
    setting(WITNESS, "listen", "ADDR:PORT", Text(text::<Listen>), Is("127.0.0.1:7400"),
        "Where to listen"),
    setting(WITNESS, "state", "DIR", Text(any), Needed(node::journal::STATE_DIR),
        "The directory of its identity and its registers, a small file per VM; made if its parent exists. Keep it: a witness that \
         forgot is another witness, and has to ask the nodes"),
    setting(PROTECT, "qmp", "SOCKET", Text(any), Needed("/run/web.qmp"),
        "The QMP socket of the running QEMU"),
    setting(PROTECT, "to", "HOST:PORT", Text(text::<HostPort>), Needed("10.0.1.2:7410"),
        "The standby"),
    setting(STANDBY, "listen", "ADDR:PORT", Text(text::<Listen>), Is("127.0.0.1:7410"),
        "Where to wait for the primary"),
    setting(PAIR, "arbiter", "SPEC", Text(text::<ArbiterSpec>), Needed("manual"),
        "Who arbitrates: witness://HOST:PORT, or manual (an operator does)"),
    Setting { once: true, ..setting(PAIR, "accept_witness", "", Switch, Nothing,
        "Accept another witness than the one that this node knows, once: when the old one is gone for good. While it runs: \
         `afterimage accept-witness`") },
    setting(PROTECT, "epoch", "TIME", Time("1ms", "60s"), Is("20ms"),
        "From one checkpoint to the next, at least: what the VM sends waits about this long").was("epoch_ms", MS).live(),
    Setting { each: Some("nic"), ..setting(PAIR, "nics", "SOCKET=TAP", List(text::<NicSpec>, None), Nothing,
        "A NIC of the VM: the unix socket of its `-netdev stream`, and the TAP device to connect it to. Once per NIC, in order") },
    setting(STANDBY, "ram_dir", "DIR", Text(any), Is("/dev/shm"),
        "Where the file lies that is the VM's RAM: a tmpfs"),
    setting(STANDBY, "spill", "FILE", Text(any), Nothing,
        "A file for what is larger than staging, the first full synchronisation above all. Without it, a checkpoint that does \
         not fit ends the protection. It has no name while it is in use: a file of this name is left alone"),
    setting(STANDBY, "no_rehearsal", "", Switch, Nothing,
        "Call a VM protected although nobody has tried whether its state can be loaded here. (Otherwise the first state, and \
         the first after each change of the VM's devices, is loaded into a QEMU that is thrown away.)"),
    setting(PAIR, "beat_interval", "TIME", Time("100us", "10s"), Is("10ms"),
        "How often to tell the other side that this one lives").was("beat_interval_ms", MS),
    setting(PAIR, "beat_min_rx", "TIME", Time("100us", "10s"), Follows("--beat-interval"),
        "Never hear the other side more often than this").was("beat_min_rx_ms", MS),
    setting(PAIR, "detect_multiplier", "N", Number(2, 255), Is("5"),
        "After this many missed beats the other side is suspect")
        .note("1 bears no lost beat: the first that is lost, or late, would be a death"),
    setting(PAIR, "stall_after", "TIME", Time("500ms", "600s"), Follows("four times the detection time, at least 1s"),
        "When this side's own loop has made no progress for so long its beats stop, so that the other side may go on")
        .was("stall_after_ms", MS),
    setting(PROTECT, "commit_deadline", "TIME", Time("1ms", "600s"), Follows("ten detection times or ten epochs, at least 2s"),
        "How long a checkpoint may wait for the standby's ACK: then the standby is suspect, whatever its beats say; at least the \
         detection time and two epochs. A link that falls back from RDMA has longer")
        .was("commit_deadline_ms", MS),
    setting(PROTECT, "staging", "SIZE", Size("512KiB", "1024GiB"), Is("64MiB"),
        "Memory for checkpoints on their way, never exceeded, and at least two slabs").was("staging_mib", MIB).live(),
    setting(STANDBY, "staging", "SIZE", Size("512KiB", "1024GiB"), Is("64MiB"),
        "Memory for checkpoints that are not committed yet, never exceeded").was("staging_mib", MIB),
    setting(PROTECT, "on_cap", "POLICY", Text(text::<OnCapWish>), Is("throttle"),
        "What to do about a checkpoint that is larger: throttle (the VM is held while it is sent), grow:SIZE (so much memory \
         more, then the VM is held), unprotect (the VM is not held: protection is given up)").live(),
    setting(PROTECT, "slab", "SIZE", Size("256KiB", "16MiB"), Is("1MiB"),
        "The unit that staging is divided into, whole pages of 4KiB").was("slab_kib", KIB),
    setting(PROTECT, "window", "N", Number(1, 64), Is("2"),
        "Checkpoints that may be on their way at once"),
    setting(PROTECT, "held_limit", "SIZE", Size("1KiB", "1024GiB"), Is("64MiB"),
        "Output that may be held; what the VM sends beyond that is dropped, as by a full queue").was("held_limit_mib", MIB),
    setting(PAIR, "run_dir", "DIR", Text(any), Is("/run/afterimage"),
        "Where sockets and locks live"),
    setting(PAIR, "state_dir", "DIR", Text(any), Is(node::journal::STATE_DIR),
        "Where its journal is kept, for `afterimage why`"),
    setting(ALL, "metrics", "ADDR:PORT", Text(listener), Follows("nowhere"),
        "Where to serve metrics for Prometheus; a port alone means on loopback"),
    setting(PROTECT, "bind", "IP", Text(text::<LocalAddr>), Follows("the one that the route uses"),
        "The local address of the connection to the standby and of its beats"),
    setting(PROTECT, "unheld", "NAME,...", List(any, Some(',')), Nothing,
        "Protect the VM although nothing holds these outputs of it (netdevs, disks, chardevs, devices, by the names that a \
         refusal tells): what leaves by them may be taken back by a takeover, and `status` exits with 3"),
    setting(PROTECT, "force_writable_disks", "", Switch, Nothing,
        "The same as --unheld with every disk that the VM can write to"),
    setting(PROTECT, "once", "", Switch, Nothing,
        "End when no standby is found within 10 s, when the standby refuses, or when the arbiter cannot be reached at the start. \
         Without it `protect` stays, being the VM's way to its network, and looks for a standby again and again"),
    setting(PROTECT, "rejoin", "", Switch, Nothing,
        "When this host was fenced (the standby runs the VM), stand by for the VM here, as the section `[standby]` of --config \
         says"),
    setting(STANDBY, "qemu", "QEMU ARGS", List(any, None), Needed("qemu-system-x86_64"),
        "QEMU and its arguments, as on the primary"),
    setting(BOTH, "transport", "KIND", Word(&["rdma", "tcp", "auto"]), Is("auto"),
        "What carries checkpoints: rdma, tcp, or auto: RDMA where both sides have it, else TCP, saying why"),
    setting(BOTH, "keepalive", "KIND", Word(&["ud", "udp", "both"]),
        Follows("both with --transport auto, once RDMA is in use; ud with rdma; udp with tcp"),
        "What carries beats: ud (RDMA datagrams), udp, or both (suspicion only when both are silent)"),
    setting(BOTH, "beat_port", "PORT", Number(0, 65_535),
        Follows("of `protect` and `probe`: 0; of `standby` and `serve`: the number of --listen, if that is free"),
        "This side's UDP port for beats; 0: any that is free"),
    setting(BOTH, "rdma_device", "NAME", Text(any),
        Follows("the one with the address of the connection, else the first whose port is up"),
        "The RDMA device; `afterimage rdma devices` lists them"),
    setting(BOTH, "rdma_gid_index", "N", Number(0, 255),
        Follows("the one with the address of the connection, else one that fits"),
        "The entry of its GID table"),
    setting(BOTH, "rdma_timeout", "N", Number(8, 22), Follows("from size and rate, at least 14, which is 67 ms"),
        "How long the device waits for one answer of the other side's: 4.096 us x 2^N").note("1 ms to 17 s"),
    setting(BOTH, "rdma_retry", "N", Number(0, 6), Is("6"),
        "How often it tries again before it gives RDMA up").note("7 means for ever on some devices"),
];

/// Those of one command.
pub(super) fn of(on: u8) -> impl Iterator<Item = &'static Setting> + Clone {
    SETTINGS.iter().filter(move |setting| setting.on & on != 0)
}

/// What may stand in one section of a file.
pub(super) fn keys(on: u8) -> impl Iterator<Item = &'static str> + Clone {
    of(on).filter(|setting| !setting.once).map(|setting| setting.key)
}

/// Those that `afterimage set` changes.
pub(crate) fn live() -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().filter(|setting| setting.live)
}

/// Reads a value of both sides of a pair that another command's flag has under another name.
fn read(key: &str, said: &str) -> Result<Value, String> {
    let setting = of(PAIR).find(|setting| setting.key == key);
    setting.ok_or_else(|| format!("there is no setting {key}"))?.read(said)
}

/// Reads "5ms": how often a side beats.
pub(crate) fn parse_beat_interval(said: &str) -> Result<Duration, String> {
    read("beat_interval", said).and_then(|_| super::parse_duration(said))
}

/// Reads "5": after how many missed beats the other side is suspect.
pub(crate) fn parse_multiplier(said: &str) -> Result<u8, String> {
    let number = read("detect_multiplier", said)?.as_integer().and_then(|number| u8::try_from(number).ok());
    number.ok_or_else(|| format!("invalid number {said:?}"))
}
