//! Fills a slab with records, merging neighbours: a run of pages costs one record header.

use super::{FreeSlab, SealedSlab};
use crate::{
    id::{BlockId, Epoch, Generation, Incarnation, PAGE_SIZE},
    wire::slab::{HEADER_LEN, KIND_DEVICE, KIND_PAGES, KIND_ZERO, RECORD_LEN, RawRecord, SlabHeader},
};
use zerocopy::{FromBytes, IntoBytes};

/// The slab has no room for what was offered; seal it and take another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("slab is full")]
pub struct SlabFull;

/// Which checkpoint a slab belongs to, and where in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabMeta {
    /// The connection.
    pub incarnation: Incarnation,
    /// The generation.
    pub generation: Generation,
    /// The epoch.
    pub epoch: Epoch,
    /// 0.. within the epoch.
    pub index: u32,
}

/// The record that the next page may join.
#[derive(Clone, Copy, Debug)]
struct Open {
    at: usize,
    kind: u8,
    block: BlockId,
    next_offset: u64,
}

/// A slab being filled: the only way to write one.
#[derive(Debug)]
pub struct SlabWriter {
    slab: FreeSlab,
    used: usize,
    records: u32,
    pages: u32,
    open: Option<Open>,
}

impl SlabWriter {
    pub(super) fn new(slab: FreeSlab) -> Self {
        Self { slab, used: HEADER_LEN, records: 0, pages: 0, open: None }
    }

    /// Whether nothing was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Copies one page in. The only copy on the primary's side.
    pub fn page(&mut self, block: BlockId, offset: u64, data: &[u8; PAGE_SIZE]) -> Result<(), SlabFull> {
        let header = if self.joins(KIND_PAGES, block, offset) { 0 } else { RECORD_LEN };
        if self.used + header + PAGE_SIZE > self.slab.len() {
            return Err(SlabFull);
        }
        self.join_or_begin(KIND_PAGES, block, offset);
        self.append(data);
        Ok(())
    }

    /// Notes a page of zeros.
    pub fn zero(&mut self, block: BlockId, offset: u64) -> Result<(), SlabFull> {
        if !self.joins(KIND_ZERO, block, offset) && self.used + RECORD_LEN > self.slab.len() {
            return Err(SlabFull);
        }
        self.join_or_begin(KIND_ZERO, block, offset);
        Ok(())
    }

    /// Copies as much of `data` as fits, as device state from `offset` on; says how much that was.
    pub fn device(&mut self, offset: u64, data: &[u8]) -> Result<usize, SlabFull> {
        let room = (self.slab.len() - self.used).saturating_sub(RECORD_LEN) / 8 * 8;
        let take = data.len().min(room);
        if take == 0 && !data.is_empty() {
            return Err(SlabFull);
        }
        if take > 0 {
            self.open = None;
            self.begin(KIND_DEVICE, BlockId(0), u32::try_from(take).map_err(|_| SlabFull)?, offset);
            self.append(&data[..take]);
            let padding = take.next_multiple_of(8) - take;
            self.append(&[0; 8][..padding]);
        }
        Ok(take)
    }

    /// Ends writing: header, checksums, immutable from here on.
    #[must_use]
    pub fn seal(mut self, meta: SlabMeta) -> SealedSlab {
        let body = &self.slab.memory()[HEADER_LEN..self.used];
        let header = SlabHeader {
            incarnation: meta.incarnation,
            generation: meta.generation,
            epoch: meta.epoch,
            index: meta.index,
            records: self.records,
            body_len: u32::try_from(body.len()).expect("slabs are at most 16 MiB"),
            pages: self.pages,
            body_crc: crc32c::crc32c(body),
        };
        self.slab.memory()[..HEADER_LEN].copy_from_slice(&header.encode());
        SealedSlab::new(header, self.slab)
    }

    /// Gives the slab back unsealed.
    #[must_use]
    pub fn abandon(self) -> FreeSlab {
        self.slab
    }

    fn joins(&self, kind: u8, block: BlockId, offset: u64) -> bool {
        self.open.is_some_and(|o| o.kind == kind && o.block == block && o.next_offset == offset)
    }

    fn join_or_begin(&mut self, kind: u8, block: BlockId, offset: u64) {
        if self.joins(kind, block, offset) {
            let at = self.open.expect("joins").at;
            let (record, _) = RawRecord::mut_from_prefix(&mut self.slab.memory()[at..]).expect("begun at `at`");
            record.count.set(record.count.get() + 1);
        } else {
            let at = self.used;
            self.begin(kind, block, 1, offset);
            self.open = Some(Open { at, kind, block, next_offset: offset });
        }
        self.pages += 1;
        if let Some(open) = &mut self.open {
            open.next_offset = open.next_offset.saturating_add(PAGE_SIZE as u64);
        }
    }

    fn begin(&mut self, kind: u8, block: BlockId, count: u32, offset: u64) {
        let record = RawRecord { kind, zero: 0, block: block.0.into(), count: count.into(), offset: offset.into() };
        self.append(record.as_bytes());
        self.records += 1;
    }

    fn append(&mut self, bytes: &[u8]) {
        let end = self.used + bytes.len();
        self.slab.memory()[self.used..end].copy_from_slice(bytes);
        self.used = end;
    }
}
