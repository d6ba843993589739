//! Guest RAM as shared memory: the core's only `unsafe`.
//!
//! A waiting QEMU maps the same file. Two rules keep that sound: no Rust reference to the memory ever exists, only raw
//! pointers and copies of bytes; and no value read from it is trusted twice. (vm-memory's `volatile_memory` has the long
//! form of the argument.)
#![allow(unsafe_code)]

use crate::id::PAGE_SIZE;
use memmap2::{MmapOptions, MmapRaw};
use std::{fs::File, io, sync::Arc};

/// The memory of one RAM block.
#[derive(Debug)]
pub struct SharedRam {
    map: Arc<MmapRaw>,
}

impl SharedRam {
    /// Maps the first `len` bytes of `file`, shared with whoever else maps it.
    ///
    /// # Errors
    /// When the file is shorter (a page fault would end the process), or the system refuses.
    pub fn map(file: &File, len: usize) -> io::Result<Self> {
        let have = file.metadata()?.len();
        if have < len as u64 {
            let text = format!("the RAM file has {have} bytes, the RAM block {len}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(Self { map: Arc::new(MmapOptions::new().len(len).map_raw(file)?) })
    }

    /// Private memory of `len` bytes of zeros.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        Ok(Self { map: Arc::new(MmapOptions::new().len(len).map_anon()?.into()) })
    }

    /// Bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "mappings are never empty")]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// The mapping itself, for a device that reads it: whoever registers it keeps it alive by this.
    #[must_use]
    pub fn mapping(&self) -> &Arc<MmapRaw> {
        &self.map
    }

    /// Copies `data` to `offset`.
    ///
    /// # Panics
    /// When that is not inside: callers have checked foreign offsets with [`SharedRam::contains`].
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        assert!(self.contains(offset as u64, data.len() as u64), "write outside the RAM block");
        // SAFETY: `offset` is inside the mapping (asserted), so the sum stays in one allocation.
        let to = unsafe { self.map.as_mut_ptr().add(offset) };
        // SAFETY: `to..to + len` is inside the mapping (asserted), which lives as long as `self`; `data` is a Rust slice,
        // which cannot overlap a mapping that no reference to is ever made; any byte is a valid u8. QEMU may look at the
        // memory meanwhile, but does nothing with it before the takeover.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
    }

    /// Makes the `len` bytes from `offset` on zeros, without touching pages that are zeros already: a fresh file stays sparse.
    ///
    /// # Panics
    /// When that is not inside.
    pub fn write_zeros(&mut self, offset: usize, len: usize) {
        const ZERO: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
        let mut page = [0; PAGE_SIZE];
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let n = PAGE_SIZE.min(end - at);
            self.read(at, &mut page[..n]);
            if page[..n] != ZERO[..n] {
                self.write(at, &ZERO[..n]);
            }
            at += n;
        }
    }

    /// Copies from `offset` into `buffer`.
    ///
    /// # Panics
    /// When that is not inside.
    pub fn read(&self, offset: usize, buffer: &mut [u8]) {
        assert!(self.contains(offset as u64, buffer.len() as u64), "read outside the RAM block");
        // SAFETY: as in `write`.
        let from = unsafe { self.map.as_ptr().add(offset) };
        // SAFETY: as in `write`, with source and destination exchanged; `buffer` is exclusively ours.
        unsafe { std::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), buffer.len()) };
    }

    /// Whether `len` bytes from `offset` on are inside.
    #[must_use]
    pub fn contains(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.len() as u64)
    }
}
