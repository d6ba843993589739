//! The VM that waits: a stock QEMU over a shared RAM file, the image that writes into the same file, and the takeover.

use crate::{
    config::StandbyConfig,
    qemu::{
        profile::Profile,
        qmp::instance_id,
        standby::{StandbyVm, TakeoverFeed, TakeoverTimings},
    },
};
use anyhow::{Context, Result};
use mc_core::{
    id::{BlockId, Name},
    image::Image,
    ram::SharedRam,
    register::Owner,
};
use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
};

/// The waiting VM.
#[derive(Debug)]
pub(super) struct WaitingVm {
    vm: StandbyVm,
    /// Of the primary's VM; ours was found to match.
    profile: Profile,
    node: Name,
    ram_file: PathBuf,
}

impl WaitingVm {
    /// Starts a QEMU for a primary with this profile, and compares.
    pub(super) fn start(config: &StandbyConfig, theirs: &Profile) -> Result<Self> {
        let ram_file = config.ram_dir.join(format!("afterimage-{}.ram", config.vm));
        let (_, shared) = theirs.main_block().context("the primary's profile has no RAM block")?;
        make_file(&ram_file, shared.used_length)?;
        let mut vm = StandbyVm::launch(&config.qemu, &config.run_dir, &ram_file, shared)?;
        let ours = vm.profile()?;
        let differences = theirs.mismatches(&ours);
        anyhow::ensure!(
            differences.is_empty(),
            "this standby's VM differs from the primary's:\n  {}",
            differences.join("\n  ")
        );
        Ok(Self { vm, profile: theirs.clone(), node: config.node, ram_file })
    }

    /// Of the waiting QEMU, for the primary to compare as well.
    pub(super) fn profile(&mut self) -> Result<Profile> {
        Ok(self.vm.profile()?)
    }

    /// Who we are, once we took over.
    pub(super) fn owner(&self) -> Result<Owner> {
        Ok(Owner { node: self.node, instance: instance_id(self.vm.pid())? })
    }

    /// The image over the RAM file; blocks that are not in it are kept in private memory.
    pub(super) fn image(&self) -> Result<Image> {
        let main = self.main_index();
        let file = File::options().read(true).write(true).open(&self.ram_file)?;
        let blocks = self.profile.blocks.iter().enumerate().map(|(index, block)| {
            let len = usize::try_from(block.used_length).context("RAM block size")?;
            let ram = if index == main { SharedRam::map(&file, len) } else { SharedRam::anonymous(len) };
            ram.with_context(|| format!("memory for RAM block {} ({len} bytes)", block.name))
        });
        Ok(Image::new(blocks.collect::<Result<_>>()?))
    }

    fn main_index(&self) -> usize {
        self.profile.main_block().map_or(0, |(index, _)| index)
    }

    /// Whether QEMU still waits.
    pub(super) fn is_alive(&mut self) -> bool {
        self.vm.is_alive()
    }

    /// A QEMU that died is started again over the same RAM file.
    pub(super) fn restart(&mut self) -> Result<()> {
        Ok(self.vm.restart()?)
    }

    /// The VM is ours: feeds it what the RAM file does not hold, and waits until it runs.
    pub(super) fn take_over(&mut self, image: &Image) -> Result<TakeoverTimings> {
        let main = self.main_index();
        let block =
            |index: usize| image.block(BlockId(u16::try_from(index).expect("profiles have at most 256 blocks")));
        let others = (0..self.profile.blocks.len()).filter(|index| *index != main);
        let others: Vec<(usize, Vec<u8>)> = others.map(|index| (index, block(index))).collect();
        let contents: Vec<(usize, &[u8])> = others.iter().map(|(index, bytes)| (*index, bytes.as_slice())).collect();
        let feed = TakeoverFeed {
            machine: &self.profile.machine,
            blocks: &self.profile.blocks,
            contents: &contents,
            device: image.device(),
        };
        let timings = self.vm.take_over(feed)?;
        // QEMU has it mapped; its name has served.
        let _ = std::fs::remove_file(&self.ram_file);
        Ok(timings)
    }
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
