//! The guests: QEMU's command lines, and which accelerator boots which guest on this machine.
//!
//! `guests/README.md` says what they do. Under TCG QEMU 7.2 needs two work-arounds as a primary: a RAM size that is no
//! multiple of 256 KiB (used always; it does no harm), and a preload library.

use crate::{
    hosts::Host,
    prerequisite::{self, Missing},
    process::Line,
    timeline,
};
use anyhow::{Context, Result};
use clap::ValueEnum;
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// The NIC's address, of every guest.
pub const MAC: &str = "52:54:00:00:00:0a";

/// Which guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A few hundred bytes in place of the BIOS; up in 0.1 s; a counter over UDP.
    Tiny,
    /// The distribution's kernel and one program; a counter over TCP.
    Linux,
}

impl Kind {
    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Linux => "linux",
        }
    }

    /// Where its service listens.
    #[must_use]
    pub fn port(self) -> u16 {
        match self {
            Self::Tiny => 7777,
            Self::Linux => 7000,
        }
    }

    /// How long it may take to boot, at the worst.
    #[must_use]
    pub fn boot_patience(self) -> Duration {
        Duration::from_secs(if self == Self::Tiny { 10 } else { 120 })
    }
}

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// The kernel's.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Accel {
    /// As QEMU calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// What `scripts/guests` built.
#[derive(Clone, Debug)]
pub struct Images {
    dir: PathBuf,
}

impl Images {
    /// Looks for what `kind` needs in `dir`.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn find(dir: &Path, kind: Kind) -> Result<Self> {
        let needed: &[&str] = match kind {
            Kind::Tiny => &["tiny.bin", "tcgshim.so"],
            Kind::Linux => &["vmlinuz", "initrd", "tcgshim.so"],
        };
        needed.iter().try_for_each(|name| prerequisite::file(&dir.join(name), "scripts/guests builds it"))?;
        Ok(Self { dir: dir.canonicalize().with_context(|| dir.display().to_string())? })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// The files of one VM on one host.
#[derive(Clone, Debug)]
pub struct VmPaths {
    dir: PathBuf,
}

impl VmPaths {
    /// Below `dir`; keep it short, these are sockets.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// QEMU's monitor for the product.
    #[must_use]
    pub fn qmp(&self) -> PathBuf {
        self.dir.join("qmp.sock")
    }

    /// QEMU's monitor for the rig.
    #[must_use]
    pub fn observer(&self) -> PathBuf {
        self.dir.join("look.sock")
    }

    /// The NIC.
    #[must_use]
    pub fn nic(&self) -> PathBuf {
        self.dir.join("nic.sock")
    }

    /// What the guest prints.
    #[must_use]
    pub fn serial(&self) -> PathBuf {
        self.dir.join("serial.txt")
    }
}

/// A guest that can be started.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Which one.
    pub kind: Kind,
    /// On what.
    pub accel: Accel,
    /// Pages that the Linux guest rewrites every 100 ms (the tiny one: 64, a hundred times a second).
    pub pages: u32,
    images: Images,
}

impl Guest {
    /// `accel`: None takes KVM if it boots this guest here, else TCG.
    ///
    /// # Errors
    /// [`Missing`]: an accelerator was asked for that does not boot it.
    pub fn new(kind: Kind, accel: Option<Accel>, pages: u32, images: Images) -> Result<Self> {
        let mut guest = Self { kind, accel: Accel::Kvm, pages, images };
        if accel == Some(Accel::Tcg) || !guest.boots()? {
            if accel == Some(Accel::Kvm) {
                let what = format!("KVM does not boot the {} guest on this machine", kind.name());
                return Err(Missing::error(what, "Use --accel tcg, or --accel auto"));
            }
            guest.accel = Accel::Tcg;
        }
        Ok(guest)
    }

    /// Tries it out, without a network.
    fn boots(&self) -> Result<bool> {
        if !Path::new("/dev/kvm").exists() {
            return Ok(false);
        }
        let dir = tempfile::tempdir().context("temporary directory")?;
        let serial = dir.path().join("serial.txt");
        let words = self.machine(&serial);
        let mut qemu = Command::new(&words.0[0])
            .args(&words.0[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("qemu-system-x86_64")?;
        let (sign, patience) = match self.kind {
            Kind::Tiny => ("CNT ", Duration::from_secs(2)),
            Kind::Linux => ("no eth0", Duration::from_secs(10)),
        };
        let mut booted = false;
        let answer = timeline::poll(patience, || {
            booted = std::fs::read(&serial).is_ok_and(|text| String::from_utf8_lossy(&text).contains(sign));
            booted || !matches!(qemu.try_wait(), Ok(None))
        });
        let _ = qemu.kill();
        let _ = qemu.wait();
        answer.map(|_| booted)
    }

    /// Everything but the NIC and the monitors.
    fn machine(&self, serial: &Path) -> Line {
        let file = |path: &Path| format!("file:{}", path.display());
        let line = Line::new("qemu-system-x86_64")
            .args(["-accel", self.accel.name(), "-cpu", "qemu64", "-M", "pc-i440fx-7.2", "-smp", "1"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .flag("-serial", file(serial));
        match self.kind {
            Kind::Tiny => line.args(["-m", "16392K"]).flag("-bios", self.images.path("tiny.bin")),
            Kind::Linux => {
                let append = format!("console=ttyS0 quiet panic=-1 nokaslr no_timer_check np={} ms=100", self.pages);
                line.args(["-m", "131080K"])
                    .flag("-kernel", self.images.path("vmlinuz"))
                    .flag("-initrd", self.images.path("initrd"))
                    .flag("-append", append)
            }
        }
    }

    /// A stock QEMU, as a standby's sidecar wants it: without a monitor for the product.
    #[must_use]
    pub fn qemu(&self, paths: &VmPaths) -> Line {
        let device = match self.kind {
            Kind::Tiny => format!("ne2k_isa,netdev=n0,iobase=0x300,irq=9,mac={MAC}"),
            Kind::Linux => format!("virtio-net-pci,netdev=n0,mac={MAC},romfile="),
        };
        self.machine(&paths.serial())
            .flag("-netdev", format!("stream,id=n0,server=on,addr.type=unix,addr.path={}", paths.nic().display()))
            .flag("-device", device)
            .flag("-qmp", monitor(&paths.observer()))
    }

    /// The same as a primary: with that monitor, and under TCG with the preload library.
    ///
    /// # Errors
    /// The library cannot be copied to the VM's directory on `host`.
    pub fn primary(&self, host: &dyn Host, paths: &VmPaths) -> Result<Line> {
        let qemu = self.qemu(paths).flag("-qmp", monitor(&paths.qmp()));
        if self.accel == Accel::Kvm {
            return Ok(qemu);
        }
        // A copy: LD_PRELOAD cannot express a path with spaces or colons.
        let shim = paths.dir.join("tcgshim.so");
        host.run("cp", &[&self.images.path("tcgshim.so").to_string_lossy(), &shim.to_string_lossy()])?;
        Ok(Line::new("env").args([format!("LD_PRELOAD={}", shim.display())]).args(qemu.0))
    }
}

fn monitor(path: &Path) -> String {
    format!("unix:{},server=on,wait=off", path.display())
}
