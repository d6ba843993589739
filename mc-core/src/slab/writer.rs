//! Fills a slab with records, merging neighbours: a run of pages costs one record header.
//!
//! Pages come in by a copy ([`SlabWriter::page`]), or a place is kept for them ([`SlabWriter::reserve`]), which a capture
//! engine ([`crate::capture`]) fills. Either way the bytes are the same.

use super::{Attachment, FreeSlab, SealedSlab};
use crate::{
    id::{BlockId, Epoch, Generation, Incarnation, PAGE_SIZE},
    ram::{self, SharedRam},
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

/// Pages that are still to be copied into the slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where they come from: the RAM block.
    pub block: BlockId,
    /// Of the first page, in the block.
    pub offset: u64,
    /// How many, contiguous there and here.
    pub pages: u32,
    /// Of the first page, in the slab's memory.
    pub at: usize,
}

impl Place {
    /// Bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "places are never empty")]
    pub fn len(&self) -> usize {
        self.pages as usize * PAGE_SIZE
    }
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
    /// The body's checksum, if it was computed ahead of [`SlabWriter::seal`] and nothing was written since.
    sum: Option<u32>,
}

impl SlabWriter {
    pub(super) fn new(slab: FreeSlab) -> Self {
        let mut this = Self { slab, used: HEADER_LEN, records: 0, pages: 0, open: None, sum: None };
        this.landed();
        this
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
        self.join_or_begin(KIND_PAGES, block, offset, 1);
        self.append(data);
        Ok(())
    }

    /// Keeps a place for as many of `pages` pages as fit, and says for how many. Their bytes are to be there before
    /// [`SlabWriter::seal`]: see [`SlabWriter::places`].
    pub fn reserve(&mut self, block: BlockId, offset: u64, pages: u32) -> Result<u32, SlabFull> {
        let joins = self.joins(KIND_PAGES, block, offset);
        let header = if joins { 0 } else { RECORD_LEN };
        let room = (self.slab.len() - self.used).saturating_sub(header) / PAGE_SIZE;
        let pages = pages.min(u32::try_from(room).unwrap_or(u32::MAX));
        if pages == 0 {
            return Err(SlabFull);
        }
        self.join_or_begin(KIND_PAGES, block, offset, pages);
        let at = self.used;
        self.used += pages as usize * PAGE_SIZE;
        let places = &mut self.slab.memory.capture.get_or_insert_default().places;
        match places.last_mut() {
            // The record's earlier pages may have landed already: then it is a place of its own.
            Some(last) if joins && last.at + last.len() == at => last.pages += pages,
            _ => places.push(Place { block, offset, pages, at }),
        }
        Ok(pages)
    }

    /// What was reserved and has not landed, in the order of the slab.
    #[must_use]
    pub fn places(&self) -> &[Place] {
        self.slab.memory.capture.as_ref().map_or(&[], |capture| &capture.places)
    }

    /// Has `copy` fill all places: it is handed each, and its memory.
    pub fn fill(&mut self, mut copy: impl FnMut(&Place, &mut [u8])) {
        let super::Memory { map, capture, .. } = &mut self.slab.memory;
        for place in capture.iter().flat_map(|capture| &capture.places) {
            copy(place, &mut map[place.at..place.at + place.len()]);
        }
        self.landed();
    }

    /// Fills all places from guest RAM, past the caches.
    ///
    /// # Panics
    /// When guest RAM does not have one of them.
    pub fn stream(&mut self, blocks: &[SharedRam]) {
        let super::Memory { map, capture, .. } = &mut self.slab.memory;
        if let Some(capture) = capture {
            ram::stream(blocks, &capture.places, map);
        }
        self.landed();
    }

    /// Computes the checksum now, on whichever thread has the slab, so that [`SlabWriter::seal`] need not. Whatever is
    /// written afterwards voids it.
    pub fn checksum(&mut self) {
        debug_assert!(self.places().is_empty(), "summed before its pages landed");
        self.sum = Some(self.body_crc());
    }

    fn body_crc(&self) -> u32 {
        crc32c::crc32c(&self.slab.memory.map[HEADER_LEN..self.used])
    }

    /// All places are filled. For an engine whose bytes land by themselves.
    pub fn landed(&mut self) {
        if let Some(capture) = &mut self.slab.memory.capture {
            capture.places.clear();
        }
    }

    /// All of the slab's memory, for an engine that registers it; never empty. Records are in it: do not write.
    pub fn memory(&mut self) -> &mut [u8] {
        self.slab.memory()
    }

    /// See [`FreeSlab::capture_attachment`].
    pub fn capture_attachment(&mut self) -> &mut Attachment {
        self.slab.capture_attachment()
    }

    /// Notes a page of zeros.
    pub fn zero(&mut self, block: BlockId, offset: u64) -> Result<(), SlabFull> {
        if !self.joins(KIND_ZERO, block, offset) && self.used + RECORD_LEN > self.slab.len() {
            return Err(SlabFull);
        }
        self.join_or_begin(KIND_ZERO, block, offset, 1);
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
    ///
    /// # Panics
    /// When a reserved place was never filled.
    #[must_use]
    pub fn seal(mut self, meta: SlabMeta) -> SealedSlab {
        assert!(self.places().is_empty(), "sealed before its pages landed");
        debug_assert!(self.sum.is_none_or(|sum| sum == self.body_crc()), "written to after its checksum");
        let body_crc = self.sum.unwrap_or_else(|| self.body_crc());
        let body_len = self.used - HEADER_LEN;
        let header = SlabHeader {
            incarnation: meta.incarnation,
            generation: meta.generation,
            epoch: meta.epoch,
            index: meta.index,
            records: self.records,
            body_len: u32::try_from(body_len).expect("slabs are at most 16 MiB"),
            pages: self.pages,
            body_crc,
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

    fn join_or_begin(&mut self, kind: u8, block: BlockId, offset: u64, pages: u32) {
        self.sum = None;
        if self.joins(kind, block, offset) {
            let at = self.open.expect("joins").at;
            let (record, _) = RawRecord::mut_from_prefix(&mut self.slab.memory()[at..]).expect("begun at `at`");
            record.count.set(record.count.get() + pages);
        } else {
            let at = self.used;
            self.begin(kind, block, pages, offset);
            self.open = Some(Open { at, kind, block, next_offset: offset });
        }
        self.pages += pages;
        if let Some(open) = &mut self.open {
            open.next_offset = open.next_offset.saturating_add(u64::from(pages) * PAGE_SIZE as u64);
        }
    }

    fn begin(&mut self, kind: u8, block: BlockId, count: u32, offset: u64) {
        let record = RawRecord { kind, zero: 0, block: block.0.into(), count: count.into(), offset: offset.into() };
        self.append(record.as_bytes());
        self.records += 1;
    }

    fn append(&mut self, bytes: &[u8]) {
        self.sum = None;
        let end = self.used + bytes.len();
        self.slab.memory()[self.used..end].copy_from_slice(bytes);
        self.used = end;
    }
}
