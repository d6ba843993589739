//! What the tests with QEMU share: the fixtures, a sink in memory, and QEMUs with the tiny guest.

#![allow(dead_code, reason = "each test uses its part")]
#![allow(missing_docs, unreachable_pub, reason = "a test")]

use mc_core::{
    id::{BlockId, PAGE_SIZE},
    source::{CheckpointSink, NoRoom},
    testing::skip,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};
use vmm_qemu::{blocks::RamBlock, qmp::Qmp};

/// Against hangs only.
pub const PATIENCE: Duration = Duration::from_secs(40);

pub fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let packed = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    zstd::decode_all(&packed[..]).unwrap()
}

/// A whole VM in memory, as a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    pub blocks: Vec<RamBlock>,
    pub ram: Vec<Vec<u8>>,
    pub device: Vec<u8>,
    /// Pages and zero pages taken.
    pub pages: usize,
    pub zeros: usize,
    /// Refuses every so many offers; 0 for never.
    pub refuse_every: usize,
    pub offers: usize,
}

impl Memory {
    pub fn new(blocks: &[RamBlock]) -> Self {
        let ram = blocks.iter().map(|block| vec![0; usize::try_from(block.used_length).unwrap()]).collect();
        Self { blocks: blocks.to_vec(), ram, device: Vec::new(), pages: 0, zeros: 0, refuse_every: 0, offers: 0 }
    }

    pub fn block(&self, name: &str) -> &[u8] {
        &self.ram[self.blocks.iter().position(|block| block.name == name).unwrap()]
    }

    fn offer(&mut self) -> Result<(), NoRoom> {
        self.offers += 1;
        if self.refuse_every > 0 && self.offers.is_multiple_of(self.refuse_every) { Err(NoRoom) } else { Ok(()) }
    }

    fn place(&mut self, block: BlockId, offset: u64) -> &mut [u8] {
        let offset = usize::try_from(offset).unwrap();
        &mut self.ram[usize::from(block.0)][offset..offset + PAGE_SIZE]
    }
}

impl CheckpointSink for Memory {
    fn page(&mut self, block: BlockId, offset: u64, data: &[u8; PAGE_SIZE]) -> Result<(), NoRoom> {
        self.offer()?;
        self.pages += 1;
        self.place(block, offset).copy_from_slice(data);
        Ok(())
    }

    fn zero(&mut self, block: BlockId, offset: u64) -> Result<(), NoRoom> {
        self.offer()?;
        self.zeros += 1;
        self.place(block, offset).fill(0);
        Ok(())
    }

    fn device(&mut self, data: &[u8]) -> Result<usize, NoRoom> {
        self.offer()?;
        // Now and then takes a part only.
        let taken = if self.refuse_every > 0 { data.len().min(1000) } else { data.len() };
        self.device.extend_from_slice(&data[..taken]);
        Ok(taken)
    }
}

/// `kvm` where the tiny guest runs under it.
pub fn accel() -> &'static str {
    static ACCEL: OnceLock<&str> = OnceLock::new();
    ACCEL.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut guest = Guest::try_start(dir.path(), "probe", "kvm", &[]);
        while let Some(running) = &mut guest {
            if running.exited() || Instant::now() > deadline {
                break;
            }
            if !running.counts().is_empty() {
                return "kvm";
            }
            thread::sleep(Duration::from_millis(10));
        }
        "tcg"
    })
}

/// Says so and returns false where checkpoints cannot be tested.
pub fn checkpoints_possible() -> bool {
    if accel() == "kvm" {
        return true;
    }
    skip("no KVM that runs the tiny guest, and QEMU 7.2 under TCG deadlocks at its first checkpoint");
    false
}

/// The command of a QEMU with the tiny guest; 16 MiB + 8 KiB, so that TCG loses no dirty pages.
pub fn command(dir: &Path, accel: &str) -> Vec<String> {
    let bios = dir.join("tiny.bin");
    if !bios.exists() {
        fs::write(&bios, fixture("tiny_64_100_1.bin.zst")).unwrap();
    }
    let fixed = "-M pc -cpu qemu64 -m 16392K -smp 1 -nodefaults -no-user-config -display none";
    let mut argv = vec!["qemu-system-x86_64".to_owned(), "-accel".into(), accel.into()];
    argv.extend(fixed.split(' ').map(str::to_owned));
    argv.extend(["-bios".into(), bios.display().to_string()]);
    argv
}

/// A running QEMU with the tiny guest. Killed at the end.
#[derive(Debug)]
pub struct Guest {
    pub child: Child,
    pub qmp_path: PathBuf,
    pub serial: PathBuf,
}

impl Guest {
    pub fn try_start(dir: &Path, name: &str, accel: &str, more: &[&str]) -> Option<Self> {
        let mut argv = command(dir, accel);
        argv.extend(more.iter().map(|text| (*text).to_owned()));
        Self::spawn(dir, name, &argv)
    }

    /// Starts it, and waits until the guest counts.
    pub fn start(dir: &Path, name: &str, accel: &str, more: &[&str]) -> Self {
        let mut guest = Self::try_start(dir, name, accel, more).expect("qemu-system-x86_64 is not installed");
        guest.wait_for(3);
        guest
    }

    pub fn spawn(dir: &Path, name: &str, argv: &[String]) -> Option<Self> {
        let (qmp_path, serial) = (dir.join(format!("{name}.qmp")), dir.join(format!("{name}.serial")));
        let child = Command::new(&argv[0])
            .args(&argv[1..])
            .args(["-serial", &format!("file:{}", serial.display())])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", qmp_path.display())])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        Some(Self { child, qmp_path, serial })
    }

    pub fn qmp(&self) -> Qmp {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Qmp::connect(&self.qmp_path, PATIENCE) {
                Ok(qmp) => return qmp,
                Err(error) if Instant::now() > deadline => panic!("{error}"),
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    pub fn exited(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub fn counts(&self) -> Vec<u32> {
        counts(&self.serial)
    }

    pub fn wait_for(&mut self, count: u32) {
        let deadline = Instant::now() + PATIENCE;
        while self.counts().last().is_none_or(|last| *last < count) {
            assert!(!self.exited(), "QEMU ended");
            assert!(Instant::now() < deadline, "the guest does not count: {:?}", self.counts().last());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for five more counts.
    pub fn assert_runs(&mut self) {
        let now = self.counts().last().copied().unwrap_or(0);
        self.wait_for(now + 5);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The guest's counter, as far as it has printed it. Fails when the guest found one of its pages changed.
pub fn counts(serial: &Path) -> Vec<u32> {
    let text = fs::read(serial).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    assert!(!text.contains('X'), "the guest found a page with the wrong content");
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().filter_map(|line| u32::from_str_radix(line.trim().strip_prefix("CNT ")?, 16).ok()).collect()
}
