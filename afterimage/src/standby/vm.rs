//! The VM that waits: a stock QEMU over a shared RAM file, the image that writes into the same file, and the takeover.

use crate::{
    config::StandbyConfig,
    qemu::{
        blocks,
        control::run_state,
        profile::Profile,
        qmp::{Qmp, QmpError, Watched, instance_id, kill_instance},
        standby::{StandbyConfig as VmConfig, StandbyVm, TakeoverTimes},
        stream::StandbyStream,
    },
};
use anyhow::{Context, Result};
use mc_core::{
    id::{BlockId, Node},
    image::Image,
    ram::SharedRam,
    register::Owner,
};
use std::{
    fs::{File, OpenOptions},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// For a QEMU that an earlier standby may have left behind to answer.
const PREDECESSOR: Duration = Duration::from_secs(2);

/// The waiting VM.
#[derive(Debug)]
pub(super) struct WaitingVm {
    /// Gone only while a QEMU that died cannot be started again.
    vm: Option<StandbyVm>,
    launch: VmConfig,
    /// Of the primary's VM; ours was found to match.
    profile: Profile,
    /// The block that is the RAM file.
    shared: BlockId,
    ram_file: PathBuf,
}

impl WaitingVm {
    /// Starts a QEMU for a primary with this profile, and compares.
    pub(super) fn start(config: &StandbyConfig, theirs: &Profile) -> Result<Self> {
        let ram_file = config.ram_file();
        let shared = blocks::main_block(&theirs.blocks).context("the primary's profile has no RAM block")?;
        let main_ram = theirs.blocks[usize::from(shared.0)].clone();
        let run_dir = config.run_dir.join(config.vm.to_string());
        std::fs::create_dir_all(&run_dir).with_context(|| run_dir.display().to_string())?;
        dismiss_predecessor(&run_dir)?;
        make_file(&ram_file, main_ram.used_length)?;
        let launch = VmConfig { argv: config.qemu.clone(), run_dir, ram_file: ram_file.clone(), main_ram };
        let vm = Some(StandbyVm::launch(launch.clone())?);
        let mut waiting = Self { vm, launch, profile: theirs.clone(), shared, ram_file };
        let differences = theirs.mismatches(&waiting.profile()?);
        let what = "this standby's VM differs from the primary's";
        anyhow::ensure!(differences.is_empty(), "{what}: {}", differences.join("; "));
        Ok(waiting)
    }

    fn vm(&mut self) -> Result<&mut StandbyVm> {
        self.vm.as_mut().context("the waiting QEMU died, and does not start again")
    }

    /// Of the waiting QEMU, for the primary to compare as well.
    pub(super) fn profile(&mut self) -> Result<Profile> {
        Ok(self.vm()?.profile()?)
    }

    /// Who we are, once we took over.
    pub(super) fn owner(&mut self, node: Node) -> Result<Owner> {
        Ok(Owner { node, instance: self.vm()?.instance()? })
    }

    /// The image over the RAM file; blocks that are not in it are kept in private memory.
    pub(super) fn image(&self) -> Result<Image> {
        let main = usize::from(self.shared.0);
        let file = File::options().read(true).write(true).open(&self.ram_file)?;
        let blocks = self.profile.blocks.iter().enumerate().map(|(index, block)| {
            let len = usize::try_from(block.used_length).context("RAM block size")?;
            let ram = if index == main { SharedRam::map(&file, len) } else { SharedRam::anonymous(len) };
            ram.with_context(|| format!("memory for RAM block {} ({len} bytes)", block.name))
        });
        Ok(Image::new(blocks.collect::<Result<_>>()?))
    }

    /// QEMU's process, to be watched when this is gone.
    pub(super) fn watch(&mut self) -> Result<Watched> {
        Ok(Watched::new(self.vm()?.pid())?)
    }

    /// Whether QEMU still waits, or runs.
    pub(super) fn is_alive(&mut self) -> bool {
        self.vm.as_mut().is_some_and(StandbyVm::is_alive)
    }

    /// A QEMU that died is started again over the same RAM file.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.vm = match self.vm.take() {
            Some(vm) => Some(vm.restart()?),
            None => Some(StandbyVm::launch(self.launch.clone())?),
        };
        Ok(())
    }

    /// The VM is ours: feeds it what the RAM file does not hold, and waits until it runs.
    pub(super) fn take_over(&mut self, image: &Image) -> Result<TakeoverTimes> {
        let block = |index: usize| BlockId(u16::try_from(index).expect("profiles have at most 256 blocks"));
        let others = (0..self.profile.blocks.len()).map(block).filter(|id| *id != self.shared);
        let others: Vec<(BlockId, Vec<u8>)> = others.map(|id| (id, image.block(id))).collect();
        let others: Vec<(BlockId, &[u8])> = others.iter().map(|(id, bytes)| (*id, bytes.as_slice())).collect();
        let vm = self.vm.as_mut().context("the waiting QEMU died, and does not start again")?;
        let feed = StandbyStream {
            machine: &self.profile.machine,
            blocks: &self.profile.blocks,
            shared: self.shared,
            others: &others,
            device: image.device(),
        };
        let times = vm.take_over(&feed)?;
        // QEMU has it mapped; its name has served.
        let _ = std::fs::remove_file(&self.ram_file);
        Ok(times)
    }
}

/// A standby that was killed left its QEMU behind. One that still waits ends now; one that runs a VM is not ours to end.
fn dismiss_predecessor(run_dir: &Path) -> Result<()> {
    let path = run_dir.join("standby.qmp");
    let mut qmp = match Qmp::connect(&path, PREDECESSOR) {
        Ok(qmp) => qmp,
        Err(QmpError::Connect { .. }) => return Ok(()),
        Err(error) => return Err(anyhow::Error::from(error).context("a QEMU of an earlier standby")),
    };
    let state = run_state(&mut qmp)?;
    if state != "inmigrate" {
        anyhow::bail!(
            "a QEMU of an earlier standby runs a VM that it took over ({state}; control socket {}): protect that one, or end it",
            path.display()
        );
    }
    let pid = qmp.peer_pid()?;
    tracing::warn!(pid, "an earlier standby's QEMU still waits; ending it");
    let ending = || format!("ending an earlier standby's QEMU, process {pid}");
    kill_instance(pid, instance_id(pid)?).with_context(ending)?;
    qmp.wait_closed(PREDECESSOR).with_context(ending)?;
    // A dying process closes its sockets one by one: until the last one is gone its place is taken.
    let deadline = Instant::now() + PREDECESSOR;
    while UnixStream::connect(&path).is_ok() {
        anyhow::ensure!(Instant::now() < deadline, "{} is still served, though its QEMU was killed", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The RAM file, all of it allocated: a page fault that finds the disk full would end us in the middle of an epoch.
fn make_file(path: &Path, len: u64) -> Result<()> {
    let what = || format!("RAM file {} ({len} bytes)", path.display());
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).with_context(what)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len).with_context(what)?;
    Ok(())
}

impl Drop for WaitingVm {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.ram_file);
    }
}
