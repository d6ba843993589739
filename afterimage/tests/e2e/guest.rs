//! The tiny guest, and what it prints.

use crate::proc::{Proc, until};
use mc_core::testing::skip;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

/// What this machine runs the guest with.
#[derive(Debug)]
pub(crate) struct Machine {
    bios: PathBuf,
    kvm: bool,
    shim: PathBuf,
}

impl Machine {
    /// Builds the guest and finds the accelerator, once. `None`, with the reason printed: this machine cannot.
    pub(crate) fn find() -> Option<&'static Self> {
        static FOUND: OnceLock<Result<Machine, String>> = OnceLock::new();
        match FOUND.get_or_init(Self::prepare) {
            Ok(machine) => Some(machine),
            Err(why) => {
                skip(why);
                None
            }
        }
    }

    fn prepare() -> Result<Self, String> {
        for (program, package) in [("qemu-system-x86_64", "qemu-system-x86"), ("gcc", "gcc")] {
            let found = Command::new(program).arg("--version").stdout(Stdio::null()).status();
            found.map_err(|e| format!("{program}: {e} (package {package})"))?;
        }
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/guests");
        let built = Command::new(&script).arg("--out").arg(&out).args(["tiny", "tcg-shim"]).output();
        let built = built.map_err(|e| format!("{}: {e}", script.display()))?;
        assert!(built.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&built.stderr));
        let mut machine = Self { bios: out.join("tiny.bin"), kvm: true, shim: out.join("tcgshim.so") };
        machine.kvm = machine.boots();
        println!("the tiny guest runs under {}", if machine.kvm { "KVM" } else { "TCG" });
        Ok(machine)
    }

    /// Whether it prints within 2 s.
    fn boots(&self) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let serial = Serial(dir.path().join("serial"));
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(self.words(&self.bios, &serial)).stderr(Stdio::null()).stdin(Stdio::null());
        let Ok(mut qemu) = qemu.spawn() else { return false };
        let start = Instant::now();
        while serial.counts().is_empty() && start.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = qemu.kill();
        let _ = qemu.wait();
        !serial.counts().is_empty()
    }

    fn words(&self, bios: &Path, serial: &Serial) -> Vec<String> {
        let accel = if self.kvm { "kvm" } else { "tcg" };
        // 16392K: under TCG, QEMU 7.2 loses dirty pages of a rounder size.
        let machine = ["-accel", accel, "-M", "pc", "-cpu", "qemu64", "-m", "16392K", "-smp", "1"];
        let quiet = ["-nodefaults", "-no-user-config", "-display", "none"];
        let mut words: Vec<String> = machine.iter().chain(&quiet).map(|w| (*w).to_owned()).collect();
        words.extend(["-bios".to_owned(), bios.display().to_string()]);
        words.extend(["-serial".to_owned(), format!("file:{}", serial.0.display())]);
        words
    }

    /// QEMU and its arguments; `dirty`: another number of test pages than 64.
    pub(crate) fn qemu(&self, dir: &Path, serial: &Serial, dirty: Option<u32>) -> Vec<String> {
        let mut bios = self.bios.clone();
        if let Some(pages) = dirty {
            let mut image = fs::read(&self.bios).unwrap();
            image[0x10..0x14].copy_from_slice(&pages.to_le_bytes());
            bios = dir.join("dirty.bin");
            fs::write(&bios, image).unwrap();
        }
        let mut line = self.shim(dir);
        line.push("qemu-system-x86_64".to_owned());
        line.extend(self.words(&bios, serial));
        line
    }

    /// Under TCG a primary needs the preload library, and a standby may become one. A copy of it: `LD_PRELOAD` cannot
    /// express a path with spaces.
    fn shim(&self, dir: &Path) -> Vec<String> {
        if self.kvm {
            return Vec::new();
        }
        let shim = dir.join("tcgshim.so");
        if !shim.exists() {
            fs::copy(&self.shim, &shim).unwrap();
        }
        vec!["env".to_owned(), format!("LD_PRELOAD={}", shim.display())]
    }
}

/// A guest's serial log.
#[derive(Clone, Debug)]
pub(crate) struct Serial(pub(crate) PathBuf);

impl Serial {
    fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.0).unwrap_or_default()).into_owned()
    }

    /// The ticks that were printed whole.
    pub(crate) fn counts(&self) -> Vec<u32> {
        let text = self.text();
        let whole = text.split_inclusive('\n').filter(|l| l.ends_with('\n'));
        whole.filter_map(|l| u32::from_str_radix(l.trim_end().strip_prefix("CNT ")?, 16).ok()).collect()
    }

    pub(crate) fn last(&self) -> u32 {
        self.counts().last().copied().unwrap_or(0)
    }

    /// Waits until the guest has counted on, by a few ticks.
    pub(crate) fn goes_on(&self) {
        let from = self.last();
        until(&format!("{} counts on from {from}", self.0.display()), || (self.last() >= from + 5).then_some(()));
    }

    /// Asserts that no memory was wrong, and that no tick was left out or seen twice.
    pub(crate) fn assert_sound(&self) {
        let (text, counts) = (self.text(), self.counts());
        assert!(!text.contains(['X', '!']), "{}: the guest found wrong memory: {text}", self.0.display());
        let gap = counts.windows(2).find(|w| w[1] != w[0] + 1);
        assert_eq!(gap, None, "{}: {} counts", self.0.display(), counts.len());
    }

    /// Asserts that `next` goes on where this one ended: at the tick after the last one at the latest.
    pub(crate) fn assert_continued_by(&self, next: &Self) {
        let last = self.last();
        until("the standby has counted further", || (next.last() > last).then_some(()));
        self.assert_sound();
        next.assert_sound();
        let first = next.counts()[0];
        // A takeover in the middle of a line cuts off its beginning: then the first whole line is the next one.
        let cut = u32::from(!next.text().starts_with("CNT "));
        assert!(first <= last + 1 + cut, "the primary counted to {last}, the standby begins with {first}");
    }
}

/// A QEMU that the test started, with a guest in it.
pub(crate) struct Vm {
    pub(crate) proc: Proc,
    pub(crate) qmp: PathBuf,
    /// A second control connection, for the test.
    pub(crate) look: PathBuf,
    pub(crate) serial: Serial,
}
