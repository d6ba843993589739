//! The settings: the one place from which the flags, the keys of a file, `config check`, `--save`, `afterimage set` and
//! docs/SETTINGS.md come.

use super::{
    NicSpec,
    setting::{
        Kind::*, PAIR, PROBE, PROTECT, STANDBY, Setting, Usual::*, WITNESS, any, listener, setting, something, text,
    },
};
use api::{EPOCH, OnCapWish, STAGING};
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
        "Address to listen at"),
    setting(WITNESS, "state", "DIR", Text(something), Needed(node::journal::STATE_DIR),
        "Directory for its identity and its registers, a small file per VM; created if its parent exists. Keep it: a witness that \
         lost it counts as another witness, and must ask the nodes"),
    setting(PROTECT, "qmp", "SOCKET", Text(something), Needed("/run/web.qmp"),
        "The QMP socket of the running QEMU"),
    setting(PROTECT, "to", "HOST:PORT", Text(text::<HostPort>), Needed("10.0.1.2:7410"),
        "The standby"),
    setting(STANDBY, "listen", "ADDR:PORT", Text(text::<Listen>), Is("127.0.0.1:7410"),
        "Address to listen at for the primary"),
    setting(PAIR, "arbiter", "SPEC", Text(text::<ArbiterSpec>), Needed("manual"),
        "The arbiter: witness://HOST:PORT, or manual (an operator decides)"),
    Setting { once: true, ..setting(PAIR, "accept_witness", "", Switch, Nothing,
        "Accept, once, a new witness in place of the one that this node knows: when the old one is gone for good. For a process \
         that runs already: `afterimage accept-witness`") },
    setting(PROTECT, "epoch", "TIME", Time(EPOCH.0, EPOCH.1), Is("20ms"),
        "Shortest time from one checkpoint to the next; the VM's output waits for about this long").was("epoch_ms", MS).live(),
    Setting { each: Some("nic"), ..setting(PAIR, "nics", "SOCKET=TAP", List(text::<NicSpec>, None), Nothing,
        "A NIC of the VM: the unix socket of its `-netdev stream`, and the TAP device to connect it to. Once per NIC, in order") },
    setting(STANDBY, "ram_dir", "DIR", Text(something), Is("/dev/shm"),
        "Directory for the file that is the VM's RAM; use a tmpfs"),
    setting(STANDBY, "spill", "FILE", Text(something), Nothing,
        "File for what does not fit into staging, above all the full synchronisation. Without it, a checkpoint that does not fit \
         ends protection. The file is unlinked while it is in use; an existing file of this name is left alone"),
    setting(STANDBY, "no_rehearsal", "", Switch, Nothing,
        "Call a VM protected without a rehearsal, that is without having loaded its state here. (A rehearsal loads the first \
         state, and the first after each change of the VM's devices, into a QEMU that is thrown away.)"),
    setting(PAIR, "beat_interval", "TIME", Time("100us", "10s"), Is("10ms"),
        "Time between two beats to the other side").was("beat_interval_ms", MS),
    setting(PAIR, "beat_min_rx", "TIME", Time("100us", "10s"), Follows("--beat-interval"),
        "Shortest interval at which this side is willing to receive beats").was("beat_min_rx_ms", MS),
    setting(PAIR, "detect_multiplier", "N", Number(2, 255), Is("5"),
        "Missed beats after which the other side is suspected")
        .note("with 1, a single lost or late beat would count as a death"),
    setting(PAIR, "stall_after", "TIME", Time("500ms", "600s"), Follows("four times the detection time, at least 1s"),
        "Stop this side's beats when its own loop has made no progress for this long, so that the other side may go on")
        .was("stall_after_ms", MS),
    setting(PROTECT, "commit_deadline", "TIME", Time("1ms", "600s"), Follows("ten detection times or ten epochs, at least 2s"),
        "Longest time that a checkpoint may wait for the standby's ACK; after that the standby is suspected, whatever its beats \
         say. At least the detection time and two epochs; longer while a link falls back from RDMA")
        .was("commit_deadline_ms", MS),
    setting(PROTECT, "staging", "SIZE", Size(STAGING.0, STAGING.1), Is("64MiB"),
        "Most memory that checkpoints on their way may take; at least two slabs").was("staging_mib", MIB).live(),
    setting(STANDBY, "staging", "SIZE", Size(STAGING.0, STAGING.1), Is("64MiB"),
        "Most memory that checkpoints may take before they are committed").was("staging_mib", MIB),
    setting(PROTECT, "on_cap", "POLICY", Text(text::<OnCapWish>), Is("throttle"),
        "What to do with a checkpoint that does not fit into staging: throttle (pause the VM while it is sent), grow:SIZE (take \
         up to SIZE more memory, then throttle), unprotect (give protection up, rather than pause the VM)").live(),
    setting(PROTECT, "slab", "SIZE", Size("256KiB", "16MiB"), Is("1MiB"),
        "Size of one slab, the unit of staging; whole pages of 4KiB").was("slab_kib", KIB),
    setting(PROTECT, "window", "N", Number(1, 64), Is("2"),
        "Checkpoints that may be on their way at the same time"),
    setting(PROTECT, "held_limit", "SIZE", Size("1KiB", "1024GiB"), Is("64MiB"),
        "Most output that may be held; what the VM sends beyond that is dropped, as by a full queue").was("held_limit_mib", MIB),
    setting(PAIR, "run_dir", "DIR", Text(something), Is(api::RUN_DIR),
        "Directory for sockets and locks"),
    setting(PAIR, "state_dir", "DIR", Text(something), Is(node::journal::STATE_DIR),
        "Directory for the journal, which `afterimage why` reads"),
    setting(ALL, "metrics", "ADDR:PORT", Text(listener), Follows("not served"),
        "Address to serve Prometheus metrics at; a port alone means loopback"),
    setting(PROTECT, "bind", "IP", Text(text::<LocalAddr>), Follows("the route's"),
        "Local address for the connection to the standby and for beats"),
    setting(PROTECT, "unheld", "NAME,...", List(something, Some(',')), Nothing,
        "Protect the VM although these outputs of it are not held (netdevs, disks, chardevs, devices, by the names in the \
         refusal): a takeover may take back what left by them, and `status` exits with 3"),
    setting(PROTECT, "force_writable_disks", "", Switch, Nothing,
        "Like --unheld with every disk that the VM can write to"),
    setting(PROTECT, "once", "", Switch, Nothing,
        "End if no standby is found within 10 s, if the standby refuses, or if the arbiter cannot be reached at the start. Without \
         this flag `protect` stays, because the VM's network passes through it, and keeps looking for a standby"),
    setting(PROTECT, "rejoin", "", Switch, Nothing,
        "After this host was fenced (the standby runs the VM), become the VM's standby, with the section `[standby]` of --config"),
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
    setting(BOTH, "rdma_device", "NAME", Text(something),
        Follows("the one with the address of the connection, else the first whose port is up"),
        "The RDMA device; `afterimage rdma devices` lists them"),
    setting(BOTH, "rdma_gid_index", "N", Number(0, 255),
        Follows("the one with the address of the connection, else one that fits"),
        "The entry of its GID table"),
    setting(BOTH, "rdma_timeout", "N", Number(8, 22), Follows("from size and rate, at least 14, which is 67 ms"),
        "How long the device waits for one answer of the other side's: 4.096 us x 2^N").note("1 ms to 17 s"),
    setting(BOTH, "rdma_retry", "N", Number(0, 6), Is("6"),
        "How often it tries again before it gives RDMA up").note("some devices retry for ever at 7"),
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
