//! Which options QEMU knows, and which of them take a value: qemu-options.hx of 7.2, and what came and went until 11.

/// Take the next word.
const VALUED: &[&str] = &[
    "accel",
    "acpitable",
    "action",
    "add-fd",
    "append",
    "audio",
    "audiodev",
    "bios",
    "blockdev",
    "boot",
    "cdrom",
    "chardev",
    "chroot",
    "compat",
    "cpu",
    "d",
    "D",
    "debugcon",
    "device",
    "dfilter",
    "display",
    "drive",
    "dtb",
    "dump-vmstate",
    "echr",
    "fda",
    "fdb",
    "fsdev",
    "fw_cfg",
    "g",
    "gdb",
    "global",
    "hda",
    "hdb",
    "hdc",
    "hdd",
    "icount",
    "incoming",
    "initrd",
    "iscsi",
    "k",
    "kernel",
    "L",
    "loadvm",
    "m",
    "machine",
    "mem-path",
    "mon",
    "monitor",
    "msg",
    "mtdblock",
    "name",
    "net",
    "netdev",
    "nic",
    "numa",
    "object",
    "option-rom",
    "overcommit",
    "parallel",
    "pflash",
    "pidfile",
    "plugin",
    "prom-env",
    "qmp",
    "qmp-pretty",
    "qtest",
    "qtest-log",
    "readconfig",
    "rotate",
    "rtc",
    "run-with",
    "runas",
    "sandbox",
    "sd",
    "seed",
    "semihosting-config",
    "serial",
    "set",
    "shim",
    "smbios",
    "smp",
    "soundhw",
    "spice",
    "tb-size",
    "tpmdev",
    "trace",
    "usbdevice",
    "uuid",
    "vga",
    "virtfs",
    "virtioconsole",
    "vnc",
    "watchdog",
    "watchdog-action",
    "writeconfig",
    "xen-domid",
];

/// Stand alone.
const FLAGS: &[&str] = &[
    "S",
    "alt-grab",
    "async-teardown",
    "audio-help",
    "ctrl-grab",
    "curses",
    "daemonize",
    "enable-fips",
    "enable-kvm",
    "enable-sync-profile",
    "full-screen",
    "h",
    "help",
    "jitdump",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-frame",
    "no-hpet",
    "no-kvm",
    "no-quit",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nodefconfig",
    "nographic",
    "nouserconfig",
    "old-param",
    "one-insn-per-tb",
    "only-migratable",
    "perfmap",
    "portrait",
    "preconfig",
    "s",
    "sdl",
    "semihosting",
    "show-cursor",
    "singlestep",
    "snapshot",
    "usb",
    "version",
    "win2k-hack",
    "xen-attach",
    "xen-create",
    "xen-domid-restrict",
];

/// Whether the option takes the next word; `None` of one that is not known.
pub(super) fn takes_value(name: &str) -> Option<bool> {
    if VALUED.contains(&name) { Some(true) } else { FLAGS.contains(&name).then_some(false) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::testing::skip;
    use std::process::Command;

    /// Against the QEMU that is here, if there is one: each option of its `-help` that is followed by a blank and a word.
    #[test]
    fn qemu_agrees() {
        let Ok(help) = Command::new("qemu-system-x86_64").arg("-help").output() else {
            skip("no qemu-system-x86_64");
            return;
        };
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        let mut seen = 0;
        for line in help.lines().filter(|line| line.starts_with('-')) {
            let (names, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            for name in names.split('/').map(|name| name.trim_start_matches('-')) {
                seen += 1;
                let valued = !rest.is_empty() && !rest.starts_with([' ', '\t', 'o']) && !FLAGS.contains(&name);
                let known = takes_value(name);
                assert!(known.is_some(), "{line:?} is not known");
                assert!(known == Some(true) || !valued, "{line:?} takes a value");
            }
        }
        assert!(seen > 100, "{seen} options in the help");
    }
}
