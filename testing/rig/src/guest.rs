//! The guests: QEMU's command lines, and which accelerator boots which guest on this machine.
//!
//! `testing/guests/README.md` says what they do. Under TCG QEMU 7.2 needs two work-arounds as a primary: a RAM size that is no
//! multiple of 256 KiB (used always; it does no harm), and a preload library.

use crate::{
    hosts::Host,
    prerequisite::{self, Missing},
    process::Line,
    timeline,
};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// The NIC's address, of every guest.
pub const MAC: &str = "52:54:00:00:00:0a";

/// The network of the second NIC of a guest that has one.
pub const USER_NIC: &str = "n1";

/// Which guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A few hundred bytes in place of the BIOS; up in 0.1 s; a counter over UDP.
    Tiny,
    /// The distribution's kernel and one program; a counter over TCP.
    Linux,
    /// The same kernel, and the distribution's Redis.
    Redis,
}

impl Kind {
    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Linux => "linux",
            Self::Redis => "redis",
        }
    }

    /// Where its service listens.
    #[must_use]
    pub fn port(self) -> u16 {
        match self {
            Self::Tiny => 7777,
            Self::Linux => 7000,
            Self::Redis => 6379,
        }
    }

    /// How long it may take to boot, at the worst.
    #[must_use]
    pub fn boot_patience(self) -> Duration {
        Duration::from_secs(if self == Self::Tiny { 60 } else { 300 })
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
            Kind::Redis => &["vmlinuz", "initrd-redis", "tcgshim.so"],
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

    /// All sockets of its QEMU.
    #[must_use]
    pub fn sockets(&self) -> [PathBuf; 3] {
        [self.qmp(), self.observer(), self.nic()]
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
    /// Pages that the Linux guests rewrite every 100 ms.
    pub pages: u32,
    /// It has a second NIC, whose packets go out by a way of QEMU's own.
    has_user_nic: bool,
    /// The tiny guest's: 64 pages, a hundred times a second, unless another was asked for.
    memory: Memory,
    images: Images,
}

/// What the tiny guest does to its memory.
#[derive(Clone, Debug)]
struct Memory {
    /// RAM, in KiB.
    ram_kib: u32,
    /// The program, if it is not the one that was built.
    program: Option<PathBuf>,
}

/// RAM that is not the tiny guest's test pages: where those begin.
const TINY_BASE_KIB: u32 = 2048;
/// Of the tiny guest, if nothing else was asked for. (Never a multiple of 256 KiB; see above.)
const TINY_RAM_KIB: u32 = 16_392;
/// Offsets of the tiny guest's parameters in its program: `testing/guests/README.md`.
const TINY_PAGES_AT: usize = 0x10;
const TINY_FILL_AT: usize = 0x20;

impl Guest {
    /// `accel`: None takes KVM if it boots this guest here, else TCG.
    ///
    /// # Errors
    /// [`Missing`]: an accelerator was asked for that does not boot it.
    pub fn new(kind: Kind, accel: Option<Accel>, pages: u32, images: Images) -> Result<Self> {
        let memory = Memory { ram_kib: TINY_RAM_KIB, program: None };
        let mut guest = Self { kind, accel: Accel::Kvm, pages, has_user_nic: false, memory, images };
        if accel == Some(Accel::Tcg) || !guest.boots()? {
            if accel == Some(Accel::Kvm) {
                let what = format!("KVM does not boot the {} guest on this machine", kind.name());
                return Err(Missing::error(what, "Use --accel tcg, or --accel auto"));
            }
            guest.accel = Accel::Tcg;
        }
        Ok(guest)
    }

    /// The same guest, but it rewrites so many pages: the tiny one a hundred times a second, the Linux one ten times.
    /// The tiny one's program is a copy in `dir`.
    ///
    /// # Errors
    /// Tiny: they do not fit its RAM, or the copy cannot be made.
    pub fn rewriting(&self, pages: u32, dir: &Path) -> Result<Self> {
        if self.kind != Kind::Tiny {
            return Ok(Self { pages, ..self.clone() });
        }
        self.tiny(TINY_RAM_KIB, pages, 0, dir)
    }

    /// The same guest with a second NIC, which is none of the product's: its packets leave by QEMU's `user` network.
    #[must_use]
    pub fn with_user_nic(self) -> Self {
        Self { has_user_nic: true, ..self }
    }

    /// A tiny guest with so much RAM (and 8 KiB), all of it written: nobody who copies it finds zero pages to skip. It
    /// rewrites 64 of its pages.
    ///
    /// # Errors
    /// It has no RAM to fill, or the program cannot be copied to `dir`.
    pub fn filled(&self, ram_mib: u32, dir: &Path) -> Result<Self> {
        let ram_kib = ram_mib.saturating_mul(1024).saturating_add(8);
        self.tiny(ram_kib, 64, (ram_kib.saturating_sub(TINY_BASE_KIB) / 4).saturating_sub(64), dir)
    }

    /// The tiny guest from the same images, on whatever boots it.
    ///
    /// # Errors
    /// [`Missing`]: it was not built.
    pub fn as_tiny(&self) -> Result<Self> {
        Self::new(Kind::Tiny, None, self.pages, Images::find(&self.images.dir, Kind::Tiny)?)
    }

    /// RAM of the VM, in bytes.
    #[must_use]
    pub fn ram_bytes(&self) -> u64 {
        1024 * u64::from(if self.kind == Kind::Tiny { self.memory.ram_kib } else { 131_080 })
    }

    fn tiny(&self, ram_kib: u32, pages: u32, fill: u32, dir: &Path) -> Result<Self> {
        ensure!(self.kind == Kind::Tiny, "only the tiny guest's program has such parameters");
        let most = ram_kib.saturating_sub(TINY_BASE_KIB) / 4;
        let fits = pages.checked_add(fill).is_some_and(|all| all <= most);
        ensure!(fits, "the tiny guest has room for {most} pages in {ram_kib} KiB of RAM, not for {pages} and {fill}");
        let built = self.images.path("tiny.bin");
        let mut program = std::fs::read(&built).with_context(|| built.display().to_string())?;
        ensure!(program.starts_with(b"TINYGUEST 1"), "{} is not the tiny guest", built.display());
        for (at, value) in [(TINY_PAGES_AT, pages), (TINY_FILL_AT, fill)] {
            let place = program.get_mut(at..at + 4).with_context(|| built.display().to_string())?;
            place.copy_from_slice(&value.to_le_bytes());
        }
        let copy = dir.join(format!("tiny-{ram_kib}-{pages}-{fill}.bin"));
        std::fs::write(&copy, program).with_context(|| copy.display().to_string())?;
        Ok(Self { memory: Memory { ram_kib, program: Some(copy) }, ..self.clone() })
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
            Kind::Tiny => ("CNT ", Duration::from_secs(10)),
            Kind::Linux | Kind::Redis => ("no eth0", Duration::from_secs(10)),
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
            Kind::Tiny => {
                let program = self.memory.program.clone().unwrap_or_else(|| self.images.path("tiny.bin"));
                line.flag("-m", format!("{}K", self.memory.ram_kib)).flag("-bios", program)
            }
            Kind::Linux | Kind::Redis => {
                let initrd = if self.kind == Kind::Linux { "initrd" } else { "initrd-redis" };
                let append = format!("console=ttyS0 quiet panic=-1 nokaslr no_timer_check np={} ms=100", self.pages);
                line.args(["-m", "131080K"])
                    .flag("-kernel", self.images.path("vmlinuz"))
                    .flag("-initrd", self.images.path(initrd))
                    .flag("-append", append)
            }
        }
    }

    /// A stock QEMU, as a standby's sidecar wants it: without a monitor for the product.
    #[must_use]
    pub fn qemu(&self, paths: &VmPaths) -> Line {
        let (first, second) = match self.kind {
            Kind::Tiny => ("ne2k_isa,iobase=0x300,irq=9", "ne2k_isa,iobase=0x320,irq=5"),
            Kind::Linux | Kind::Redis => ("virtio-net-pci,romfile=", "virtio-net-pci,romfile="),
        };
        let line = self
            .machine(&paths.serial())
            .flag("-netdev", format!("stream,id=n0,server=on,addr.type=unix,addr.path={}", paths.nic().display()))
            .flag("-device", format!("{first},netdev=n0,mac={MAC}"))
            .flag("-qmp", monitor(&paths.observer()));
        if !self.has_user_nic {
            return line;
        }
        line.flag("-netdev", format!("user,id={USER_NIC},restrict=on"))
            .flag("-device", format!("{second},netdev={USER_NIC}"))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny(dir: &Path) -> Guest {
        std::fs::write(dir.join("tiny.bin"), [b"TINYGUEST 1".as_slice(), &[0xff; 64]].concat()).unwrap();
        let memory = Memory { ram_kib: TINY_RAM_KIB, program: None };
        let images = Images { dir: dir.to_owned() };
        Guest { kind: Kind::Tiny, accel: Accel::Kvm, pages: 64, has_user_nic: false, memory, images }
    }

    #[test]
    fn the_tiny_guests_parameters_are_patched_into_a_copy() {
        let dir = tempfile::tempdir().unwrap();
        let guest = tiny(dir.path()).filled(4, dir.path()).unwrap();
        let program = std::fs::read(guest.memory.program.as_ref().unwrap()).unwrap();
        // 4 MiB and 8 KiB, less the first 2 MiB and 64 test pages.
        assert_eq!(
            (program[0x10..0x14].to_vec(), program[0x20..0x24].to_vec()),
            (vec![64, 0, 0, 0], vec![194, 1, 0, 0])
        );
        assert_eq!(program[0x14..0x20], [0xff; 12]);
        assert_eq!(guest.ram_bytes(), (4 << 20) + 8192);
    }

    #[test]
    fn more_pages_than_there_is_room_for_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(tiny(dir.path()).rewriting(3586, dir.path()).is_ok());
        let error = tiny(dir.path()).rewriting(3587, dir.path()).unwrap_err().to_string();
        assert!(error.contains("room for 3586 pages"), "{error}");
        assert!(tiny(dir.path()).rewriting(u32::MAX, dir.path()).is_err());
    }
}
