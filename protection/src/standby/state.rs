//! All of a VM but its main memory, copied out of the image: for a takeover, a rehearsal, an export, each on a thread of its own.

use mc_core::{
    id::{BlockId, PAGE_SIZE},
    image::Image,
    ram::SharedRam,
};
use std::{
    io::{self, Write},
    sync::atomic::{AtomicBool, Ordering},
};
use vmm_qemu::{
    blocks::RamBlock,
    profile::Profile,
    stream::{Emitter, StandbyStream},
};

/// Bytes of the main memory that are read at a time.
const PIECE: usize = 1 << 20;

/// What the image holds besides the main memory, as of one committed epoch.
#[derive(Clone, Debug)]
pub(super) struct VmState {
    pub(super) machine: String,
    pub(super) blocks: Vec<RamBlock>,
    /// The main memory.
    pub(super) shared: BlockId,
    pub(super) others: Vec<(BlockId, Vec<u8>)>,
    pub(super) device: Vec<u8>,
}

impl VmState {
    /// Copies it out.
    pub(super) fn copy(profile: &Profile, shared: BlockId, image: &Image) -> Self {
        let block = |index: usize| BlockId(u16::try_from(index).expect("profiles have at most 256 blocks"));
        let others = (0..profile.blocks.len()).map(block).filter(|id| *id != shared);
        Self {
            machine: profile.machine.clone(),
            blocks: profile.blocks.clone(),
            shared,
            others: others.map(|id| (id, image.block(id))).collect(),
            device: image.device().to_vec(),
        }
    }

    /// Calls `with` with what a waiting QEMU is fed.
    pub(super) fn fed<T>(&self, with: impl FnOnce(&StandbyStream<'_>) -> T) -> T {
        let others: Vec<_> = self.others.iter().map(|(id, bytes)| (*id, bytes.as_slice())).collect();
        with(&StandbyStream {
            machine: &self.machine,
            blocks: &self.blocks,
            shared: self.shared,
            others: &others,
            device: &self.device,
        })
    }

    /// Writes it as a stream that a stock `qemu -incoming` loads: with the main memory, or, without it, for a QEMU whose
    /// main memory is a file that has it already.
    ///
    /// # Errors
    /// `Interrupted` once `stop` is set: what was written is then worth nothing.
    pub(super) fn write(&self, out: impl Write, main: Option<&SharedRam>, stop: &AtomicBool) -> io::Result<()> {
        let mut emitter = Emitter::new(out, &self.blocks);
        emitter.header(&self.machine, false)?;
        emitter.ram_start(false)?;
        emitter.ram_end_begin()?;
        for (block, content) in &self.others {
            pages(&mut emitter, *block, 0, content)?;
        }
        if let Some(main) = main {
            self.write_main(&mut emitter, main, stop)?;
        }
        emitter.section_end()?;
        emitter.finish(&self.device, b"{}")
    }

    fn write_main<W: Write>(
        &self,
        emitter: &mut Emitter<'_, W>,
        main: &SharedRam,
        stop: &AtomicBool,
    ) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        for at in (0..main.len()).step_by(PIECE) {
            let piece = &mut piece[..PIECE.min(main.len() - at)];
            main.read(at, piece);
            // Looked at after the read: whoever sets it may change the memory from then on.
            if stop.load(Ordering::Acquire) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            pages(emitter, self.shared, at as u64, piece)?;
        }
        Ok(())
    }
}

fn pages<W: Write>(emitter: &mut Emitter<'_, W>, block: BlockId, from: u64, content: &[u8]) -> io::Result<()> {
    for (index, page) in (0..).zip(content.as_chunks::<PAGE_SIZE>().0) {
        emitter.page(block, from + index * PAGE_SIZE as u64, page)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_qemu::stream::fuzz;

    #[test]
    fn a_write_that_is_called_off_ends() {
        let blocks = fuzz::blocks();
        let len = usize::try_from(blocks[0].used_length).unwrap();
        let state =
            VmState { machine: "pc".into(), blocks, shared: BlockId(0), others: Vec::new(), device: vec![4, 0] };
        let main = SharedRam::anonymous(len).unwrap();
        let (mut out, stop) = (Vec::new(), AtomicBool::new(false));
        state.write(&mut out, Some(&main), &stop).unwrap();
        assert!(out.len() > len / PAGE_SIZE * 8);
        stop.store(true, Ordering::Release);
        let error = state.write(&mut Vec::new(), Some(&main), &stop).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }
}
