//! The standby's after-image: every RAM block, and the newest device state. Only whole committed epochs get here (and the
//! slabs of a full synchronisation, before which there was nothing).

use crate::{
    id::{BlockId, PAGE_SIZE},
    ram::SharedRam,
    slab::SealedSlab,
    wire::{WireError, slab::Record},
};

/// Bytes of device state at most. A `pc` machine has 13 KB; a GPU with its memory in the stream is not for us.
pub const MAX_DEVICE: u64 = 64 << 20;

/// Why a slab does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Its bytes make no sense.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It speaks of a RAM block that the profile does not have.
    #[error("{0}: the profile has {1} RAM blocks")]
    Block(BlockId, usize),
    /// It writes beyond a RAM block's end.
    #[error("{block}: {len} bytes at {offset:#x} are outside its {size} bytes")]
    Range {
        /// Which block.
        block: BlockId,
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
        /// The block's size.
        size: u64,
    },
    /// Its device state is longer than [`MAX_DEVICE`].
    #[error("device state ends at {0} bytes, the limit is {MAX_DEVICE}")]
    Device(u64),
}

/// The image.
#[derive(Debug)]
pub struct Image {
    blocks: Vec<SharedRam>,
    device: Vec<u8>,
}

impl Image {
    /// Blocks in the order of the profile.
    #[must_use]
    pub fn new(blocks: Vec<SharedRam>) -> Self {
        Self { blocks, device: Vec::new() }
    }

    /// Whether every record of the slab fits. Nothing is written.
    pub fn check(&self, slab: &SealedSlab) -> Result<(), ImageError> {
        slab.records().try_for_each(|record| self.check_record(&record?))
    }

    fn check_record(&self, record: &Record<'_>) -> Result<(), ImageError> {
        let (block, offset, len) = match *record {
            Record::Pages { block, offset, data } => (block, offset, data.len() as u64),
            Record::Zero { block, offset, pages } => (block, offset, u64::from(pages) * PAGE_SIZE as u64),
            Record::Device { offset, data } => {
                let end = offset.saturating_add(data.len() as u64);
                return if end <= MAX_DEVICE { Ok(()) } else { Err(ImageError::Device(end)) };
            }
        };
        let ram = self.blocks.get(usize::from(block.0)).ok_or(ImageError::Block(block, self.blocks.len()))?;
        if ram.contains(offset, len) {
            return Ok(());
        }
        Err(ImageError::Range { block, offset, len, size: ram.len() as u64 })
    }

    /// Writes a slab that passed [`Image::check`]: the standby's only copy.
    ///
    /// # Panics
    /// When it did not pass.
    pub fn apply(&mut self, slab: &SealedSlab) {
        for record in slab.records() {
            match record.expect("checked before it was staged") {
                Record::Pages { block, offset, data } => self.ram(block).write(at(offset), data),
                Record::Zero { block, offset, pages } => {
                    self.ram(block).write_zeros(at(offset), pages as usize * PAGE_SIZE);
                }
                Record::Device { offset, data } => self.put_device(at(offset), data),
            }
        }
    }

    /// Device state is replaced as a whole by every epoch: its first piece starts it anew.
    fn put_device(&mut self, offset: usize, data: &[u8]) {
        self.device.truncate(offset);
        self.device.resize(offset, 0);
        self.device.extend_from_slice(data);
    }

    fn ram(&mut self, block: BlockId) -> &mut SharedRam {
        &mut self.blocks[usize::from(block.0)]
    }

    /// The newest committed device state.
    #[must_use]
    pub fn device(&self) -> &[u8] {
        &self.device
    }

    /// The whole content of one block, copied.
    #[must_use]
    pub fn block(&self, block: BlockId) -> Vec<u8> {
        let ram = &self.blocks[usize::from(block.0)];
        let mut bytes = vec![0; ram.len()];
        ram.read(0, &mut bytes);
        bytes
    }
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).expect("inside a mapping, so it fits")
}
