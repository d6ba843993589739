//! The emitter: writes the stream that a standby's QEMU loads.
//!
//! With `x-ignore-shared` ([`StandbyStream`]) the main memory is not sent: the standby's QEMU has it already, as a shared
//! file. What remains is a few hundred KiB, whatever the size of the VM.
//!
//! ```text
//! header (+ capability) | START ram: MEM_SIZE, blocks (guest address 0), EOS | END ram: pages, EOS | device state with
//! its EOF byte | 06 u32=2 "{}"
//! ```
//!
//! QEMU waits for the description at the end, but does not read it. It checks the guest address of shared blocks only, and
//! the main memory's is 0.

use super::{CAPABILITIES, IGNORE_SHARED, MAGIC, MAX_DEVICE, MAX_MACHINE, RAM_VERSION, VERSION, element, flag};
use crate::blocks::{self, BlocksError, RamBlock};
use mc_core::id::{BlockId, PAGE_SIZE};
use std::io::{self, Write};

/// The id of the RAM section: any will do.
const RAM_ID: u32 = 2;
const ZERO_PAGE: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// Writes a stream, element by element. Call in the order of the methods.
#[derive(Debug)]
pub struct Emitter<'a, W> {
    out: W,
    blocks: &'a [RamBlock],
    last_block: Option<BlockId>,
}

impl<'a, W: Write> Emitter<'a, W> {
    /// Writes to `out`, which should be buffered.
    pub fn new(out: W, blocks: &'a [RamBlock]) -> Self {
        Self { out, blocks, last_block: None }
    }

    /// Magic, version and machine, and the capability x-ignore-shared if it is to be used.
    pub fn header(&mut self, machine: &str, ignore_shared: bool) -> io::Result<()> {
        self.out.write_all(&MAGIC.to_be_bytes())?;
        self.out.write_all(&VERSION.to_be_bytes())?;
        self.out.write_all(&[element::CONFIGURATION])?;
        self.out.write_all(&length32(machine.len())?)?;
        self.out.write_all(machine.as_bytes())?;
        if ignore_shared {
            self.out.write_all(&[element::SUBSECTION])?;
            self.idstr(CAPABILITIES)?;
            self.out.write_all(&1u32.to_be_bytes())?;
            self.out.write_all(&1u32.to_be_bytes())?;
            self.idstr(IGNORE_SHARED)?;
        }
        Ok(())
    }

    /// The START section: all blocks.
    pub fn ram_start(&mut self, ignore_shared: bool) -> io::Result<()> {
        self.out.write_all(&[element::START])?;
        self.out.write_all(&RAM_ID.to_be_bytes())?;
        self.idstr(b"ram")?;
        self.out.write_all(&0u32.to_be_bytes())?;
        self.out.write_all(&RAM_VERSION.to_be_bytes())?;
        let total: u64 = self.blocks.iter().map(|block| block.used_length).sum();
        self.out.write_all(&(total | flag::MEM_SIZE).to_be_bytes())?;
        for block in self.blocks {
            self.idstr(block.name.as_bytes())?;
            self.out.write_all(&block.used_length.to_be_bytes())?;
            if ignore_shared {
                self.out.write_all(&0u64.to_be_bytes())?;
            }
        }
        self.section_end()
    }

    /// Opens the END section: pages follow.
    pub fn ram_end_begin(&mut self) -> io::Result<()> {
        self.out.write_all(&[element::END])?;
        self.out.write_all(&RAM_ID.to_be_bytes())?;
        self.last_block = None;
        Ok(())
    }

    /// One page, with its content or as zeros.
    ///
    /// # Panics
    /// If `block` is none of the blocks: a mistake of the caller's.
    pub fn page(&mut self, block: BlockId, offset: u64, data: &[u8; PAGE_SIZE]) -> io::Result<()> {
        let zero = data == &ZERO_PAGE;
        let kind = if zero { flag::ZERO } else { flag::PAGE };
        if self.last_block == Some(block) {
            self.out.write_all(&(offset | kind | flag::CONTINUE).to_be_bytes())?;
        } else {
            self.out.write_all(&(offset | kind).to_be_bytes())?;
            self.idstr(self.blocks[usize::from(block.0)].name.as_bytes())?;
            self.last_block = Some(block);
        }
        if zero { self.out.write_all(&[0]) } else { self.out.write_all(data) }
    }

    /// Ends a section of RAM.
    pub fn section_end(&mut self) -> io::Result<()> {
        self.out.write_all(&flag::EOS.to_be_bytes())?;
        self.out.write_all(&[element::FOOTER])?;
        self.out.write_all(&RAM_ID.to_be_bytes())
    }

    /// Device state with its EOF byte, then `description` (JSON), and all is flushed.
    pub fn finish(&mut self, device: &[u8], description: &[u8]) -> io::Result<()> {
        self.out.write_all(device)?;
        self.out.write_all(&[element::DESCRIPTION])?;
        self.out.write_all(&length32(description.len())?)?;
        self.out.write_all(description)?;
        self.out.flush()
    }

    fn idstr(&mut self, text: &[u8]) -> io::Result<()> {
        let len = u8::try_from(text.len()).map_err(|_| too_long())?;
        self.out.write_all(&[len])?;
        self.out.write_all(text)
    }
}

fn length32(len: usize) -> io::Result<[u8; 4]> {
    u32::try_from(len).map(u32::to_be_bytes).map_err(|_| too_long())
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "a text too long for QEMU's stream")
}

/// What a standby's QEMU needs at takeover, besides the file that is its main memory.
#[derive(Clone, Copy, Debug)]
pub struct StandbyStream<'a> {
    /// The primary's machine, as `pc-i440fx-7.2`.
    pub machine: &'a str,
    /// All blocks of the profile, in its order.
    pub blocks: &'a [RamBlock],
    /// The block that is the shared file.
    pub shared: BlockId,
    /// Every other block, whole.
    pub others: &'a [(BlockId, &'a [u8])],
    /// The device state with its EOF byte.
    pub device: &'a [u8],
}

/// Why a [`StandbyStream`] cannot be loaded by any QEMU. Known before anything is written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StandbyStreamError {
    /// The blocks themselves.
    #[error(transparent)]
    Blocks(#[from] BlocksError),
    /// A machine name that is empty or too long.
    #[error("machine name of {0} bytes, expected 1 to {MAX_MACHINE}")]
    Machine(usize),
    /// A block that is missing, there twice, or of the wrong length.
    #[error("RAM block {name:?}: {found} bytes of content, expected {expected}")]
    Content {
        /// Which.
        name: String,
        /// Bytes given.
        found: u64,
        /// Bytes expected.
        expected: u64,
    },
    /// A block id beyond the blocks.
    #[error("there is no {0}")]
    NoBlock(BlockId),
    /// Device state that is none.
    #[error("the device state of {0} bytes is not a full section and an end (0x04 … 0x00)")]
    Device(usize),
}

impl StandbyStream<'_> {
    /// Whether it is complete.
    pub fn check(&self) -> Result<(), StandbyStreamError> {
        blocks::check(self.blocks)?;
        if self.machine.is_empty() || self.machine.len() > MAX_MACHINE {
            return Err(StandbyStreamError::Machine(self.machine.len()));
        }
        let ids = self.others.iter().map(|(id, _)| *id).chain([self.shared]);
        if let Some(beyond) = ids.into_iter().find(|id| usize::from(id.0) >= self.blocks.len()) {
            return Err(StandbyStreamError::NoBlock(beyond));
        }
        for (index, block) in self.blocks.iter().enumerate() {
            let given = self.others.iter().filter(|(id, _)| usize::from(id.0) == index);
            let found: u64 = given.map(|(_, content)| content.len() as u64).sum();
            let expected = if usize::from(self.shared.0) == index { 0 } else { block.used_length };
            if found != expected {
                return Err(StandbyStreamError::Content { name: block.name.clone(), found, expected });
            }
        }
        let ends = (self.device.first(), self.device.last()) == (Some(&element::FULL), Some(&element::EOF));
        if !ends || self.device.len() > MAX_DEVICE {
            return Err(StandbyStreamError::Device(self.device.len()));
        }
        Ok(())
    }

    /// Writes it. Zero pages too: a fresh QEMU's ROM blocks are not zero.
    pub fn write(&self, out: impl Write) -> io::Result<()> {
        self.check().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let mut emitter = Emitter::new(out, self.blocks);
        emitter.header(self.machine, true)?;
        emitter.ram_start(true)?;
        emitter.ram_end_begin()?;
        for (block, content) in self.others {
            let mut offset = 0;
            for page in content.as_chunks::<PAGE_SIZE>().0 {
                emitter.page(*block, offset, page)?;
                offset += PAGE_SIZE as u64;
            }
        }
        emitter.section_end()?;
        emitter.finish(self.device, b"{}")
    }
}
