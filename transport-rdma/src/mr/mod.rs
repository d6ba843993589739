//! Registered memory: a whole shared mapping, pinned for a device.
//!
//! ```text
//! mapping ──check memlock──> touch, by threads ──> a Region per chunk ──> RegisteredMemory ──locate──> pieces
//! ```
//!
//! Nearly all of the time goes into pages that are not there yet; so threads populate them first, and what the verb then
//! costs is reported by itself. Huge pages (a file on hugetlbfs, a memfd made for them) make both several times cheaper.
//!
//! Every region holds the mapping, and whoever has work in flight holds the [`RegisteredMemory`]: deregistration always
//! comes before the unmapping.
//!
//! A region keeps the pages that it pinned; a hole punched into the file under it (`MADV_REMOVE`, `FALLOC_FL_PUNCH_HOLE`)
//! gives everybody else new ones. From then on the device reads, with success, what nobody writes any more, and nothing tells
//! us so. So guest RAM must not be registered of a guest with a device that discards pages, as with VFIO
//! (`ram_block_discard_disable`, QEMU system/physmem.c): `virtio-balloon` and its free page reporting, `hv-balloon`,
//! `virtio-mem`. Whoever registers it has to refuse those.

mod chunks;
pub mod measure;

pub use chunks::{Chunks, MAX_CHUNK, Span};
pub use mc_core::ram::page_size_of;

use crate::{
    ffi::{self, Domain, Region},
    memlock::{self, MemlockError},
    types::Access,
};
use mc_core::{id::PAGE_SIZE, ram::Mapping};
use std::{
    io,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// How to register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterOptions {
    /// Threads that touch the memory beforehand; 0: it is not touched.
    pub threads: usize,
    /// Bytes of a region at most; see [`Chunks`].
    pub chunk_bytes: usize,
    /// Bytes of the mapping's pages: [`page_size_of`] its file.
    pub page_size: usize,
}

impl Default for RegisterOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(8);
        Self { threads, chunk_bytes: MAX_CHUNK, page_size: PAGE_SIZE }
    }
}

/// Where the time of a registration went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Timings {
    /// Until every page was there.
    pub touch: Duration,
    /// In the verb.
    pub register: Duration,
}

/// A part of registered memory, for work requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// Where it begins.
    pub addr: u64,
    /// Bytes.
    pub len: usize,
    /// For our own work requests.
    pub lkey: u32,
    /// For the peer's.
    pub rkey: u32,
}

/// Why memory cannot be registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MrError {
    /// The limit is too low.
    #[error(transparent)]
    Memlock(#[from] MemlockError),
    /// A page cannot be had: no memory, or no huge page, is left, or the mapping is not writable.
    #[error("touching {bytes} bytes at {offset:#x} of memory that is to be registered: {source}")]
    Touch {
        /// Where.
        offset: usize,
        /// How many.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The device, or the kernel for it, refused.
    #[error("{device}: registering {bytes} bytes at {offset:#x} of {total}: {source}")]
    Register {
        /// The device.
        device: String,
        /// Where.
        offset: usize,
        /// How many.
        bytes: usize,
        /// Of how many in all.
        total: usize,
        /// What the system said.
        source: io::Error,
    },
}

/// A mapping, registered as a whole.
#[derive(Debug)]
pub struct RegisteredMemory {
    // Each holds the mapping.
    regions: Vec<Region>,
    chunks: Chunks,
    timings: Timings,
}

impl RegisteredMemory {
    /// Registers all of `map`. Its content is not changed, not even while others write to it.
    ///
    /// # Errors
    /// Nothing stays registered then.
    pub fn register(
        domain: &Arc<Domain>,
        map: &Arc<Mapping>,
        access: Access,
        options: &RegisterOptions,
    ) -> Result<Self, MrError> {
        let (len, device) = (map.len(), domain.context().name());
        let failed =
            |offset, bytes, source| MrError::Register { device: device.to_owned(), offset, bytes, total: len, source };
        let limits = domain.context().limits().map_err(|source| failed(0, len, source))?;
        let chunks = Chunks::new(len, options.chunk_bytes, limits.max_mr_size, options.page_size);
        memlock::check(len)?;
        let began = Instant::now();
        touch(map, options.threads)?;
        let touched = Instant::now();
        let region = |span: Span| {
            Region::of_mapping(domain, map, span.offset, span.len, access)
                .map_err(|source| failed(span.offset, span.len, source))
        };
        let regions = chunks.all().map(region).collect::<Result<_, _>>()?;
        let timings = Timings { touch: touched - began, register: touched.elapsed() };
        Ok(Self { regions, chunks, timings })
    }

    /// The pieces of `offset..offset + len`: one, or more where that crosses chunks.
    ///
    /// # Panics
    /// When they are not inside.
    pub fn locate(&self, offset: usize, len: usize) -> impl Iterator<Item = Located> {
        self.chunks.spans(offset, len).map(|span| {
            let region = &self.regions[span.chunk];
            let inside = (span.offset % self.chunks.chunk_bytes()) as u64;
            Located { addr: region.addr() + inside, len: span.len, lkey: region.lkey(), rkey: region.rkey() }
        })
    }

    /// Where the time went.
    #[must_use]
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// How many regions it took.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn regions(&self) -> usize {
        self.regions.len()
    }

    /// Ends all access, of all regions, while work may be under way.
    ///
    /// # Errors
    /// The first of those that failed: the device may still write there. Can be called again.
    #[cfg(feature = "testing")]
    pub fn deregister(&self) -> io::Result<()> {
        self.regions.iter().map(Region::deregister).fold(Ok(()), io::Result::and)
    }
}

/// Bytes that a thread touches at a time; a multiple of most page sizes.
const STRIPE: usize = 32 << 20;

/// Makes every page present, and those that were not writable, without changing any.
fn touch(map: &Mapping, threads: usize) -> Result<(), MrError> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), MrError> {
        loop {
            let offset = next.fetch_add(STRIPE, Ordering::Relaxed);
            if offset >= map.len() {
                return Ok(());
            }
            let bytes = STRIPE.min(map.len() - offset);
            populate(map, offset, bytes).map_err(|source| MrError::Touch { offset, bytes, source })?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(map.len().div_ceil(STRIPE))).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("touching does not panic"))
    })
}

/// Asking whether pages are there is many times cheaper than having each of them populated once more.
fn populate(map: &Mapping, offset: usize, bytes: usize) -> io::Result<()> {
    if ffi::is_resident(map, offset, bytes) {
        return Ok(());
    }
    match ffi::populate(map, offset, bytes) {
        // Before Linux 5.14 there is no such advice (madvise(2)).
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            ffi::touch(map, offset, bytes);
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::ram::SharedRam;
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::{fs::File, os::unix::fs::FileExt};

    fn mapping(file: &File, len: usize) -> Arc<Mapping> {
        Arc::clone(SharedRam::map(file, len).unwrap().mapping())
    }

    /// Both ways of making pages present, the kernel's and that for kernels which have none.
    #[test]
    fn touched_memory_is_there_and_holds_what_it_held() {
        let ways: [fn(&Mapping); 2] = [|map| touch(map, 2).unwrap(), |map| ffi::touch(map, 0, map.len())];
        for way in ways {
            let file = File::from(memfd_create("touched", MemfdFlags::CLOEXEC).unwrap());
            file.set_len(9 * 4096).unwrap();
            file.write_all_at(b"as it was", 3 * 4096 - 4).unwrap();
            let map = mapping(&file, 9 * 4096);
            assert!(!ffi::is_resident(&map, 0, map.len()));
            way(&map);
            assert!(ffi::is_resident(&map, 0, map.len()));
            let mut content = vec![0; 9 * 4096];
            file.read_exact_at(&mut content, 0).unwrap();
            assert_eq!(&content[3 * 4096 - 4..3 * 4096 + 5], b"as it was");
            assert_eq!(content.iter().filter(|byte| **byte != 0).count(), 9);
        }
    }

    #[test]
    fn memory_that_cannot_be_touched_is_an_error_that_says_where() {
        let file = File::from(memfd_create("short", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(8 * 4096).unwrap();
        let map = mapping(&file, 8 * 4096);
        file.set_len(4096).unwrap(); // Its end is gone.
        let said = touch(&map, 1).unwrap_err().to_string();
        assert!(said.contains("touching 32768 bytes at 0x0"), "{said}");
    }
}
