//! Guest RAM as shared memory: the core's only `unsafe`.
//!
//! A waiting QEMU maps the same file. Two rules keep that sound: no Rust reference to the memory ever exists, only raw
//! pointers and copies of bytes; and no value read from it is trusted twice. (vm-memory's `volatile_memory` has the long
//! form of the argument.)
#![allow(unsafe_code)]

mod mapping;

pub use mapping::{Mapping, RamError, page_size_of};

use crate::{id::PAGE_SIZE, slab::Place};
use std::{any::Any, fs::File, ptr::NonNull, sync::Arc};

/// The memory of one RAM block.
#[derive(Debug)]
pub struct SharedRam {
    map: Arc<Mapping>,
}

impl SharedRam {
    /// Maps the first `len` bytes of `file`: [`SharedRam::map_at`].
    pub fn map(file: &File, len: usize) -> Result<Self, RamError> {
        Self::map_at(file, 0, len)
    }

    /// Maps `len` bytes of `file` from `offset` on, shared with whoever else maps them: a RAM block in a file, in a memfd, or
    /// in huge pages. `file` may be closed afterwards.
    ///
    /// Who may shorten the file can end this process by it: its next access is a fault (`SIGBUS`). A memfd that is
    /// sealed against that (`F_SEAL_SHRINK`, as QEMU's are) is safe from it.
    ///
    /// # Errors
    /// When the offset is not a multiple of the file's page size ([`page_size_of`]), the block ends beyond the file's end, a
    /// memfd is sealed against writing, or the system refuses (a file that is open for reading only; no huge pages left).
    pub fn map_at(file: &File, offset: u64, len: usize) -> Result<Self, RamError> {
        Ok(Self { map: Arc::new(Mapping::of_file(file, offset, len)?) })
    }

    /// Private memory of `len` bytes of zeros.
    pub fn anonymous(len: usize) -> Result<Self, RamError> {
        Ok(Self { map: Arc::new(Mapping::anonymous(len)?) })
    }

    /// Memory of `len` bytes at `at` that somebody else has mapped, such as a VMM in this process. `owner` is dropped with the
    /// last user of the memory, which may be a device that has it registered.
    ///
    /// # Errors
    /// When there are no bytes, or `at` is not the beginning of a page.
    ///
    /// # Safety
    /// Until `owner` is dropped,
    /// * `at..at + len` stays mapped there, readable and writable; a file behind it is not made shorter;
    /// * no Rust reference to any of it exists anywhere; who else uses it does so by raw pointers or from another process;
    /// * nobody writes to what is being read here or reads what is being written here, but who can live with torn values:
    ///   as with memory that a QEMU shares, the VM is stopped while a checkpoint is copied, and does not run while an image is
    ///   written.
    // No program calls this: for a VMM that has mapped its guest's RAM itself.
    pub unsafe fn of_another(at: NonNull<u8>, len: usize, owner: Box<dyn Any + Send + Sync>) -> Result<Self, RamError> {
        // SAFETY: the caller promises what is asked for.
        let map = unsafe { Mapping::of_another(at, len, owner) };
        Ok(Self { map: Arc::new(map?) })
    }

    /// Bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "mappings are never empty")]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// The mapping itself, for a device that reads it: whoever registers it keeps it alive by this.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
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

/// Copies every place of a slab from guest RAM into `slab`, the slab's memory, as [`SharedRam::read`] would, but past the
/// caches: with stores that do not fetch first what they overwrite, while the next page, wherever it is, is on its way. When
/// this returns the bytes are there for every thread that learns of it.
///
/// # Panics
/// When a place is not inside its RAM block, or not inside the slab.
pub(crate) fn stream(blocks: &[SharedRam], places: &[Place], slab: &mut [u8]) {
    let source = |place: &Place| {
        let ram = &blocks[usize::from(place.block.0)];
        assert!(ram.contains(place.offset, place.len() as u64), "read outside the RAM block");
        ram.map.as_ptr().wrapping_add(usize::try_from(place.offset).expect("inside a mapping, so it fits"))
    };
    let _fence = kernel::Fence;
    for (index, place) in places.iter().enumerate() {
        let (from, to) = (source(place), &mut slab[place.at..place.at + place.len()]);
        let following = places.get(index + 1).map_or(from, source);
        for (page, to) in to.chunks_exact_mut(PAGE_SIZE).enumerate() {
            let from = from.wrapping_add(page * PAGE_SIZE);
            let last = page + 1 == place.pages as usize;
            let next = if last { following } else { from.wrapping_add(PAGE_SIZE) };
            // SAFETY: a page of the place, which is inside a mapping (asserted) that the borrow of `blocks` keeps.
            unsafe { kernel::copy_page(from, next, to) };
        }
    }
}

/// Streaming copies where SSE2 is, which is every x86-64: AVX2's wider stores were no faster when measured, and would need to
/// be looked for at run time. Miri, which checks the loop, has neither these stores nor prefetches: plain copies stand in for them.
#[cfg(target_arch = "x86_64")]
mod kernel {
    #[cfg(not(miri))]
    use std::arch::x86_64::{__m128i, _MM_HINT_NTA, _mm_loadu_si128, _mm_prefetch, _mm_sfence, _mm_stream_si128};

    /// What one streaming store should be part of: a part of a line costs as much as all of it.
    const LINE: usize = 64;

    /// Streamed bytes are ordered before whatever its thread does after dropping it, also when that is unwinding.
    pub(super) struct Fence;

    impl Drop for Fence {
        fn drop(&mut self) {
            #[cfg(not(miri))]
            // SAFETY: SSE, which every x86-64 has; it touches no memory.
            unsafe {
                _mm_sfence();
            }
        }
    }

    /// Copies a page to `to`, and fetches the one at `next` meanwhile. Lines that `to` has only a part of are written through
    /// the cache: their other part is a record's header, which is there already.
    ///
    /// # Safety
    /// `from` must be readable for as many bytes as `to` has.
    pub(super) unsafe fn copy_page(from: *const u8, next: *const u8, to: &mut [u8]) {
        let at = to.as_ptr().align_offset(LINE).min(to.len());
        let whole = (to.len() - at) / LINE * LINE;
        // A line of where the next page goes, most likely: not for the line's sake but for the translation of its address.
        prefetch(to.as_ptr().wrapping_add(to.len() + LINE / 2));
        let (head, rest) = to.split_at_mut(at);
        let (lines, tail) = rest.split_at_mut(whole);
        // SAFETY: `head` is the first part of `to`; the two cannot overlap (see `SharedRam::write`).
        unsafe { std::ptr::copy_nonoverlapping(from, head.as_mut_ptr(), head.len()) };
        for (index, line) in lines.chunks_exact_mut(LINE).enumerate() {
            prefetch(next.wrapping_add(index * LINE));
            // SAFETY: as many bytes from there on are readable as `line`, a part of `to`, has.
            unsafe { copy_line(from.wrapping_add(at + index * LINE), line) };
        }
        prefetch(next.wrapping_add(whole));
        // SAFETY: as for `head`, with the last part of `to`.
        unsafe { std::ptr::copy_nonoverlapping(from.wrapping_add(at + whole), tail.as_mut_ptr(), tail.len()) };
    }

    #[cfg(not(miri))]
    fn prefetch(line: *const u8) {
        // SAFETY: a prefetch reads nothing and never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_NTA>(line.cast()) };
    }

    #[cfg(miri)]
    fn prefetch(_line: *const u8) {}

    /// # Safety
    /// `from` must be readable for a line; `to` must be an aligned line.
    #[cfg(miri)]
    unsafe fn copy_line(from: *const u8, to: &mut [u8]) {
        assert!(to.len() == LINE && to.as_ptr().cast::<[u128; 4]>().is_aligned());
        // SAFETY: readable (the caller's promise); the two cannot overlap (see `SharedRam::write`).
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
    }

    /// # Safety
    /// `from` must be readable for a line; `to` must be an aligned line.
    #[cfg(not(miri))]
    unsafe fn copy_line(from: *const u8, to: &mut [u8]) {
        const PART: usize = size_of::<__m128i>();
        debug_assert!(to.len() == LINE && to.as_ptr().cast::<[u128; 4]>().is_aligned());
        for part in (0..LINE).step_by(PART) {
            // SAFETY: inside the line at `from`; the load needs no alignment, and any bytes are a value.
            let value = unsafe { _mm_loadu_si128(from.wrapping_add(part).cast()) };
            // SAFETY: inside `to`, which is exclusively ours and aligned to more than 16; a `Fence` is dropped before anybody
            // else can hear of it.
            unsafe { _mm_stream_si128(to.as_mut_ptr().wrapping_add(part).cast(), value) };
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod kernel {
    /// Ordinary stores need none.
    pub(super) struct Fence;

    /// Copies a page to `to`.
    ///
    /// # Safety
    /// `from` must be readable for as many bytes as `to` has.
    pub(super) unsafe fn copy_page(from: *const u8, _next: *const u8, to: &mut [u8]) {
        // SAFETY: readable (the caller's promise); the two cannot overlap (see `SharedRam::write`).
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
    }
}

/// What `scripts/check` has Miri look at: every pointer of this module, over memory without a file.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::BlockId;
    use std::{
        alloc::{Layout, alloc_zeroed, dealloc},
        sync::atomic::{AtomicBool, Ordering},
    };

    fn ram(pages: usize, seed: usize) -> SharedRam {
        let mut ram = SharedRam::anonymous(pages * PAGE_SIZE).unwrap();
        let bytes: Vec<u8> = (0..ram.len()).map(|at| (at * 31 / 7 + seed).to_le_bytes()[0]).collect();
        ram.write(0, &bytes);
        ram
    }

    /// Pages of the heap, given back when this is dropped.
    struct Heap(NonNull<u8>, Layout, Arc<AtomicBool>);

    // SAFETY: nobody else has the pages.
    unsafe impl Send for Heap {}
    // SAFETY: a shared reference has no use for them.
    unsafe impl Sync for Heap {}

    impl Drop for Heap {
        fn drop(&mut self) {
            self.2.store(true, Ordering::Release);
            // SAFETY: allocated in `heap` with this layout, and given back once.
            unsafe { dealloc(self.0.as_ptr(), self.1) };
        }
    }

    fn heap(pages: usize) -> (NonNull<u8>, Box<Heap>, Arc<AtomicBool>) {
        let (layout, gone) =
            (Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).unwrap(), Arc::new(AtomicBool::new(false)));
        // SAFETY: the layout is not empty.
        let at = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap();
        (at, Box::new(Heap(at, layout, Arc::clone(&gone))), gone)
    }

    #[test]
    fn memory_of_another_is_used_in_place_and_its_owner_outlives_the_last_user() {
        let (at, owner, gone) = heap(2);
        // SAFETY: the pages stay until `owner` is dropped, and nobody has a reference to them.
        let mut ram = unsafe { SharedRam::of_another(at, 2 * PAGE_SIZE, owner) }.unwrap();
        ram.write(PAGE_SIZE, b"here");
        // SAFETY: the owner lives, and this thread is not writing.
        assert_eq!(unsafe { at.as_ptr().wrapping_add(PAGE_SIZE).read() }, b'h');
        assert_eq!(bytes(&ram, PAGE_SIZE, 4), b"here");
        let device = Arc::clone(ram.mapping());
        drop(ram);
        assert!(!gone.load(Ordering::Acquire), "a device still has it");
        drop(device);
        assert!(gone.load(Ordering::Acquire));
    }

    #[test]
    fn memory_of_another_begins_with_a_page_and_has_bytes() {
        let (at, owner, gone) = heap(1);
        // SAFETY: inside the page.
        let inside = unsafe { at.byte_add(8) };
        // SAFETY: the bytes stay until the owner is dropped.
        let refused = unsafe { SharedRam::of_another(inside, 8, owner) }.unwrap_err();
        assert!(refused.to_string().contains("is not a multiple of 4096"), "{refused}");
        assert!(gone.load(Ordering::Acquire), "who is refused owns nothing");
        for len in [0, usize::MAX] {
            // SAFETY: refused before anybody looks there.
            let refused = unsafe { SharedRam::of_another(NonNull::dangling(), len, Box::new(())) };
            assert!(matches!(refused, Err(RamError::Empty)), "{refused:?}");
        }
        let (at, owner, _) = heap(2);
        // SAFETY: the pages stay until `owner` is dropped.
        let part = unsafe { SharedRam::of_another(at, PAGE_SIZE + 8, owner) };
        assert!(matches!(part, Err(RamError::Partial { .. })), "{part:?}");
    }

    fn bytes(ram: &SharedRam, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        ram.read(offset, &mut bytes);
        bytes
    }

    #[test]
    fn bytes_go_in_and_come_out_up_to_the_last() {
        let mut ram = ram(2, 0);
        ram.write(ram.len() - 3, b"end");
        ram.write(ram.len(), b"");
        assert_eq!(bytes(&ram, 2 * PAGE_SIZE - 3, 3), b"end");
        ram.write_zeros(5, 2 * PAGE_SIZE - 5);
        assert_eq!(bytes(&ram, 5, 2 * PAGE_SIZE - 5), vec![0; 2 * PAGE_SIZE - 5]);
        assert!(!ram.contains(u64::MAX, 2) && !ram.contains(2 * PAGE_SIZE as u64, 1));
    }

    #[test]
    #[should_panic(expected = "outside the RAM block")]
    fn a_read_behind_the_end_is_refused() {
        bytes(&ram(1, 0), PAGE_SIZE - 1, 2);
    }

    #[test]
    fn pages_stream_to_any_alignment() {
        let blocks = [ram(3, 1), ram(1, 2)];
        for skew in [0, 1, 16, 63] {
            let place = |block, page: u64, pages, at| Place {
                block: BlockId(block),
                offset: page * PAGE_SIZE as u64,
                pages,
                at,
            };
            // The last page of each block, so that what is fetched ahead may be outside.
            let places = [place(0, 1, 2, skew), place(1, 0, 1, skew + 2 * PAGE_SIZE + 16)];
            let mut slab = vec![0; 3 * PAGE_SIZE + 16 + skew];
            stream(&blocks, &places, &mut slab);
            for place in &places {
                let from =
                    bytes(&blocks[usize::from(place.block.0)], usize::try_from(place.offset).unwrap(), place.len());
                assert!(slab[place.at..place.at + place.len()] == from, "skewed by {skew}");
            }
        }
    }
}
