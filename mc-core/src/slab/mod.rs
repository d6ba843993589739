//! Slabs: fixed-size buffers that *are* the wire image. A page is copied into one, once, while the VM is paused; the same
//! bytes go out; at the standby they are received into one, and copied once more, into the image.
//!
//! ```text
//! SlabPool ──take──> FreeSlab ──writer──> SlabWriter ──seal──> SealedSlab ──Op::Write──> (transport)
//!    ^                  │  ^                                                                  │
//!    └──────put─────────┘  └──────────────────────── recycle <── Completion::Written ─────────┘
//!
//! standby:  FreeSlab ──Op::Post──> (transport) ──Completion::Arrived──> SealedSlab ──recycle──> FreeSlab
//! ```
//!
//! Each arrow takes `self`: a slab in flight cannot be written, a free one cannot be sent (the typestate of I7: what is not
//! in the pool is in exactly one place, and the pool never makes more than its cap).

mod ahead;
mod pool;
mod writer;

pub use ahead::Ahead;
pub use pool::{PoolStats, SlabPool};
pub use writer::{Place, SlabFull, SlabMeta, SlabWriter};

use crate::wire::{
    WireError,
    slab::{HEADER_LEN, Records, SlabHeader},
};
use memmap2::MmapMut;
use std::any::Any;

/// What a transport keeps with a slab from one use to the next: a memory registration. It goes before the memory does.
pub type Attachment = Option<Box<dyn Any + Send>>;

/// The memory of a slab: a mapping of its own.
#[derive(Debug)]
struct Memory {
    // Fields are dropped in this order.
    attachment: Attachment,
    /// `None` until it is used: pages that are handed over one by one need none of it.
    capture: Option<Box<Capture>>,
    map: MmapMut,
}

/// What capturing keeps with a slab, so that a warm one is neither registered again nor allocates.
#[derive(Debug, Default)]
struct Capture {
    /// The engine's: its registration is of another domain than the transport's.
    attachment: Attachment,
    /// The writer's: what has not landed.
    places: Vec<Place>,
}

/// A slab that nobody uses.
#[derive(Debug)]
pub struct FreeSlab {
    memory: Memory,
}

impl FreeSlab {
    pub(crate) fn allocate(size: usize) -> std::io::Result<Self> {
        let map = MmapMut::map_anon(size)?;
        Ok(Self { memory: Memory { attachment: None, capture: None, map } })
    }

    /// Bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a slab is never empty memory")]
    pub fn len(&self) -> usize {
        self.memory.map.len()
    }

    /// For the transport: what it keeps with this slab.
    pub fn attachment(&mut self) -> &mut Attachment {
        &mut self.memory.attachment
    }

    /// Begins to fill it with a checkpoint's records.
    #[must_use]
    pub fn writer(self) -> SlabWriter {
        SlabWriter::new(self)
    }

    /// The memory, for a transport that receives into it.
    pub fn receive_buffer(&mut self) -> &mut [u8] {
        &mut self.memory.map
    }

    /// What arrived in [`FreeSlab::receive_buffer`], once its header, length and body checksum are right.
    pub fn arrived(self) -> Result<SealedSlab, (Self, WireError)> {
        self.arrived_after(Ahead::default())
    }

    /// As [`FreeSlab::arrived`], with what was checksummed of this slab while it came.
    pub fn arrived_after(self, ahead: Ahead) -> Result<SealedSlab, (Self, WireError)> {
        let bytes = &self.memory.map;
        let checked = SlabHeader::decode(bytes, bytes.len())
            .and_then(|h| ahead.finish(&h, &bytes[HEADER_LEN..HEADER_LEN + h.body_len as usize]).map(|()| h));
        match checked {
            Ok(header) => Ok(SealedSlab { header, memory: self.memory }),
            Err(error) => Err((self, error)),
        }
    }

    /// For a capture engine: what it keeps with this slab, beside the transport's [`FreeSlab::attachment`].
    pub fn capture_attachment(&mut self) -> &mut Attachment {
        &mut self.memory.capture.get_or_insert_default().attachment
    }

    pub(crate) fn memory(&mut self) -> &mut [u8] {
        &mut self.memory.map
    }

    /// What is in it, whatever that is.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory.map
    }
}

/// A finished slab: immutable, checksummed, owned by whoever sends, stages or applies it.
#[derive(Debug)]
pub struct SealedSlab {
    header: SlabHeader,
    memory: Memory,
}

impl SealedSlab {
    pub(crate) fn new(header: SlabHeader, slab: FreeSlab) -> Self {
        Self { header, memory: slab.memory }
    }

    /// Its header, decoded.
    #[must_use]
    pub fn header(&self) -> &SlabHeader {
        &self.header
    }

    /// Exactly what goes on the wire.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.memory.map[..HEADER_LEN + self.header.body_len as usize]
    }

    /// All of its memory, for a transport that registers it. It begins with [`SealedSlab::as_bytes`].
    #[must_use]
    pub fn memory(&self) -> &[u8] {
        &self.memory.map
    }

    /// For the transport: what it keeps with this slab.
    pub fn attachment(&mut self) -> &mut Attachment {
        &mut self.memory.attachment
    }

    /// Its records; each is bounded here, but block numbers and offsets are the image's to judge.
    #[must_use]
    pub fn records(&self) -> Records<'_> {
        Records::new(&self.header, &self.as_bytes()[HEADER_LEN..])
    }

    /// Ends its life as this checkpoint's slab.
    #[must_use]
    pub fn recycle(self) -> FreeSlab {
        FreeSlab { memory: self.memory }
    }
}
