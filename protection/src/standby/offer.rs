//! A primary that wants to be protected: whether this host could run its VM, and the QEMU that waits for it.

use super::settings::Settings;
use super::{
    main_loop::{NIC_PATIENCE, Node},
    vm::WaitingVm,
};
use crate::room::Room;
use anyhow::{Context, Result};
use mc_core::driver::SpillFile;
use node::{
    events::{Event, QemuCommandChanged, emit},
    exit, files,
    standby::{Ready, Refusal, StandbyLoop, refusal},
};
use std::path::Path;
use vmm_qemu::{blocks, profile::Profile};

impl Node {
    /// A VM without its network is not taken on.
    pub(super) fn has_network(&mut self) -> Result<(), Refusal> {
        let mended = self.gate.mend_ports(&self.config.nics);
        mended.or_else(|error| {
            refusal("network", format!("a NIC of the VM would not work on the standby's host: {error}"))
        })
    }

    /// Whether there is room for the VM beside what runs here.
    pub(super) fn has_room(&self, profile: &[u8]) -> Result<(), Refusal> {
        let profile = Profile::from_json(profile);
        let profile = profile.or_else(|error| refusal("profile", format!("the primary: {error}")))?;
        self.room_for(&profile, self.vm.as_ref().map(WaitingVm::ram_path))
    }

    /// `replaced`: a file that makes way.
    fn room_for(&self, profile: &Profile, replaced: Option<&Path>) -> Result<(), Refusal> {
        let main = blocks::main_block(&profile.blocks).map_or(0, |id| usize::from(id.0));
        let sum = |blocks: &[blocks::RamBlock]| blocks.iter().fold(0, |sum: u64, b| sum.saturating_add(b.used_length));
        let file = profile.blocks.get(main).map_or(0, |block| block.used_length);
        let dir = &self.config.ram_dir;
        let room = Room::look(dir, replaced);
        let room = room.or_else(|error| refusal("room", format!("directory {}: {error}", dir.display())))?;
        room.fits(file, sum(&profile.blocks) - file).or_else(|why| refusal("room", why))
    }

    /// A QEMU that waits, and an image over its RAM. The QEMU of a copy that was lost makes way, its memory does not. Where there is no
    /// room for both, it goes first.
    pub(super) fn prepare_vm(&mut self, profile: &[u8]) -> Result<Ready> {
        let theirs = Profile::from_json(profile).context("the primary")?;
        if self.vm.is_some() && self.room_for(&theirs, None).is_err() {
            self.make_room()?;
        }
        let mut lost = self.vm.take();
        lost.iter_mut().for_each(WaitingVm::rest);
        match self.start_vm(&theirs) {
            Ok((vm, ready)) => {
                (self.vm, self.lost) = (Some(vm), lost);
                Ok(ready)
            }
            Err(error) => {
                self.vm = lost;
                Err(error)
            }
        }
    }

    fn start_vm(&mut self, theirs: &Profile) -> Result<(WaitingVm, Ready)> {
        let started = WaitingVm::start(&self.config, theirs);
        self.unstartable = started.as_ref().err().map(exit::words);
        let mut vm = started?;
        let profile = vm.profile()?.to_json();
        let image = vm.image()?;
        if !vm.notes().is_empty() {
            tracing::warn!(notes = vm.notes().join("; "), "the standby's QEMU command was changed");
            emit(Event::QemuCommandChanged(QemuCommandChanged { notes: vm.notes().to_vec() }));
        }
        self.gate.connect(NIC_PATIENCE)?;
        let instance = vm.owner(self.run.this)?.instance;
        Ok((vm, Ready { profile, image, instance }))
    }
}

/// The spill file: made anew beside the configured name, so that nobody's file is touched, and unlinked at once, so that it
/// ends with this process.
pub(super) fn spill_file(config: &Settings) -> Result<Option<SpillFile>> {
    let Some(path) = &config.spill else { return Ok(None) };
    let mut name =
        path.file_name().with_context(|| format!("spill file {}: not a file's name", path.display()))?.to_owned();
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).context("a random number")?;
    name.push(format!(".{:016x}", u64::from_le_bytes(random)));
    let path = path.with_file_name(name);
    let what = || format!("spill file {}", path.display());
    let file = files::create(&path).with_context(what)?;
    std::fs::remove_file(&path).with_context(what)?;
    Ok(Some(SpillFile::new(file)))
}
