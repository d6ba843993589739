//! The standby's command line for a rehearsal: the same VM, joined to nothing that the waiting QEMU or anybody else uses.
//!
//! What the VM's state depends on stays: machine, CPU, devices, disks, and the *kind* of each back end (slirp has state of its
//! own in the stream, a TAP device gives a NIC its header of offloads). What reaches out of the process is cut off or goes: the
//! guest never runs in a rehearsal, so nothing of it is missed. What is not known is refused, by name: its effect on
//! others is not known either.

mod backends;
mod netdev;

use super::line::Line;
use crate::argv::{CommandLine, Item, Params};
use std::path::Path;

/// An option that cannot be cut off from the outside.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{option}: {why}, so no rehearsal is possible: change the standby's command line, or skip rehearsals with \
     --no-rehearsal"
)]
pub struct NotIsolated {
    /// The option, as it was written.
    pub option: String,
    /// Why not.
    pub why: String,
}

/// Makes the VM: stay as they are.
const KEPT: &[&str] = &[
    "L",
    "accel",
    "acpitable",
    "action",
    "append",
    "bios",
    "boot",
    "cdrom",
    "compat",
    "cpu",
    "dtb",
    "echr",
    "enable-fips",
    "enable-kvm",
    "fda",
    "fdb",
    "fw_cfg",
    "g",
    "global",
    "hda",
    "hdb",
    "hdc",
    "hdd",
    "icount",
    "initrd",
    "iscsi",
    "k",
    "kernel",
    "m",
    "machine",
    "msg",
    "mtdblock",
    "name",
    "no-acpi",
    "no-fd-bootchk",
    "no-hpet",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nodefconfig",
    "nouserconfig",
    "numa",
    "one-insn-per-tb",
    "only-migratable",
    "option-rom",
    "pflash",
    "prom-env",
    "rotate",
    "rtc",
    "sd",
    "seed",
    "semihosting",
    "semihosting-config",
    "singlestep",
    "smbios",
    "smp",
    "snapshot",
    "tb-size",
    "usb",
    "uuid",
    "vga",
    "watchdog",
    "watchdog-action",
    "win2k-hack",
];

/// Reach out of the process, or look into it, without being part of the VM: go. (Users, directories and sandboxes too: the
/// rehearsal is this program's own child for a moment, and never runs the guest.)
const DROPPED: &[&str] = &[
    "D",
    "S",
    "alt-grab",
    "async-teardown",
    "chroot",
    "ctrl-grab",
    "curses",
    "d",
    "daemonize",
    "dfilter",
    "display",
    "enable-sync-profile",
    "full-screen",
    "gdb",
    "incoming",
    "jitdump",
    "mon",
    "monitor",
    "no-frame",
    "no-quit",
    "perfmap",
    "pidfile",
    "plugin",
    "portrait",
    "qmp",
    "qmp-pretty",
    "run-with",
    "runas",
    "s",
    "sandbox",
    "sdl",
    "show-cursor",
    "spice",
    "trace",
    "vnc",
];

/// The rehearsal's command line, without memory, incoming migration and control socket. `dir` is its own.
pub(super) fn isolate(line: &Line, dir: &Path) -> Result<CommandLine, NotIsolated> {
    let mut isolation = Isolation { dir, sockets: 0 };
    let mut items = Vec::with_capacity(line.line.items.len() + 3);
    for item in &line.line.items {
        items.extend(isolation.item(item)?);
    }
    items.push(Item::option("display", "none"));
    items.push(Item::option("monitor", "none"));
    items.push(Item { written: "-S".into(), value: None });
    Ok(CommandLine { program: line.line.program.clone(), items })
}

fn refuse<T>(item: &Item, why: impl Into<String>) -> Result<T, NotIsolated> {
    Err(NotIsolated { option: item.to_string(), why: why.into() })
}

struct Isolation<'a> {
    dir: &'a Path,
    /// Private sockets made so far.
    sockets: usize,
}

impl Isolation<'_> {
    fn item(&mut self, item: &Item) -> Result<Option<Item>, NotIsolated> {
        let name = item.name();
        if name.is_empty() || KEPT.contains(&name) {
            return Ok(Some(item.clone()));
        }
        if DROPPED.contains(&name) {
            return Ok(None);
        }
        if name == "nographic" {
            // The other half of it, `-display none`, is there in any case; the serial port's stdio is not wanted.
            return Ok(Some(Item::option("machine", "graphics=off")));
        }
        let Some(params) = item.params() else { return refuse(item, "a rehearsal does not know this option") };
        match name {
            "netdev" | "nic" | "net" => self.netdev(item, &params).map(Some),
            "serial" | "parallel" | "debugcon" | "virtioconsole" => Ok(Some(backends::port(item))),
            "chardev" => Ok(Some(backends::chardev(item, &params))),
            "object" => backends::object(item, &params),
            "device" => backends::device(item, &params).map(Some),
            "blockdev" | "drive" => backends::disk(item, &params).map(Some),
            "audiodev" | "audio" => Ok(Some(backends::audio(item, &params))),
            "fsdev" | "virtfs" => backends::folder(item, &params).map(Some),
            "overcommit" => Ok(Some(backends::overcommit(item, params))),
            "usbdevice" => backends::usb(item).map(Some),
            "set" => backends::set(item).map(Some),
            "tpmdev" => refuse(item, "a TPM has one user at a time"),
            "readconfig" => refuse(item, "what is in that file cannot be cut off: write its options out"),
            _ => refuse(item, "a rehearsal does not know this option"),
        }
    }

    /// A path in the rehearsal's own directory.
    fn socket(&mut self) -> String {
        self.sockets += 1;
        self.dir.join(format!("n{}", self.sockets - 1)).display().to_string()
    }

    fn netdev(&mut self, item: &Item, params: &Params) -> Result<Item, NotIsolated> {
        netdev::rewrite(item, params, || self.socket())
    }
}

#[cfg(test)]
mod tests;
