//! Who holds the memory of a RAM block, and the checks before it is mapped.

use crate::id::PAGE_SIZE;
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{SealFlags, fcntl_get_seals, fstatfs};
use std::{any::Any, fmt, fs::File, io, ptr::NonNull};

/// Memory that stays where it is while this value lives. Only raw pointers into it exist: see [`crate::ram`].
pub struct Mapping {
    at: NonNull<u8>,
    len: usize,
    /// Kept only to be dropped: then the memory may go.
    _owner: Box<dyn Any + Send + Sync>,
}

// SAFETY: the pointer is to memory that no thread owns; who reads and writes it goes through raw pointers, and the owner may
// be sent as well.
unsafe impl Send for Mapping {}
// SAFETY: as above: a shared reference gives out nothing but the address and the length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// The first byte's address.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.at.as_ptr()
    }

    /// The first byte's address, to write to.
    #[must_use]
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.at.as_ptr()
    }

    /// Bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "mappings are never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// `len` bytes from `offset` of `file`, shared. The end of the last huge page may be mapped as well, and is not part of it.
    pub(super) fn of_file(file: &File, offset: u64, len: usize) -> Result<Self, RamError> {
        let pages = page_size_of(file).map_err(RamError::Pages)?;
        check(file, offset, len, pages)?;
        let failed = |source| RamError::Map { bytes: len, source };
        let whole = len.checked_next_multiple_of(pages).ok_or(RamError::Empty)?;
        Self::ours(MmapOptions::new().offset(offset).len(whole).map_raw(file).map_err(failed)?, len)
    }

    /// Private zeros.
    pub(super) fn anonymous(len: usize) -> Result<Self, RamError> {
        let map = MmapOptions::new().len(len).map_anon().map_err(|source| RamError::Map { bytes: len, source })?;
        Self::ours(map.into(), len)
    }

    fn ours(map: MmapRaw, len: usize) -> Result<Self, RamError> {
        whole_pages(len)?;
        let at = NonNull::new(map.as_mut_ptr()).filter(|_| len > 0).ok_or(RamError::Empty)?;
        Ok(Self { at, len, _owner: Box::new(map) })
    }

    /// # Safety
    /// See [`super::SharedRam::of_another`].
    // No program calls this: for a VMM that has mapped its guest's RAM itself.
    pub(super) unsafe fn of_another(
        at: NonNull<u8>,
        len: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Result<Self, RamError> {
        let address = at.addr().get();
        if len == 0 || isize::try_from(len).is_err() || address.checked_add(len).is_none() {
            return Err(RamError::Empty);
        }
        if !address.is_multiple_of(PAGE_SIZE) {
            return Err(RamError::Unaligned { what: "address", value: address as u64, pages: PAGE_SIZE });
        }
        whole_pages(len)?;
        Ok(Self { at, len, _owner: owner })
    }
}

impl From<MmapRaw> for Mapping {
    fn from(map: MmapRaw) -> Self {
        let len = map.len();
        Self::ours(map, len).expect("memmap2 maps no empty memory, and none at address 0")
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapping({} bytes)", self.len)
    }
}

/// Why memory cannot be the memory of a RAM block.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RamError {
    /// No bytes, or more than an address space has.
    #[error("a RAM block has at least one byte, and fewer than {}", isize::MAX)]
    Empty,
    /// It does not begin where a page does.
    #[error("{what} {value:#x} is not a multiple of {pages}, the size of its pages")]
    Unaligned {
        /// The offset in the file, or the address.
        what: &'static str,
        /// Its value.
        value: u64,
        /// Bytes of a page.
        pages: usize,
    },
    /// Its last page is not whole: no checkpoint would have that.
    #[error("{len} bytes of RAM are not whole pages: take a multiple of {PAGE_SIZE}")]
    Partial {
        /// Its length.
        len: usize,
    },
    /// It ends beyond the file: a page fault there would end the process.
    #[error("the RAM file has {have} bytes, the RAM block needs {len} from {offset:#x} on")]
    Short {
        /// Where it begins in the file.
        offset: u64,
        /// Its length.
        len: usize,
        /// The file's length.
        have: u64,
    },
    /// A memfd that nobody may map writable any more.
    #[error("the memfd is sealed against writing (F_SEAL_WRITE or F_SEAL_FUTURE_WRITE): it can be no RAM block")]
    Sealed,
    /// The file system does not tell its page size.
    #[error("the page size of the RAM file: {0}")]
    Pages(#[source] io::Error),
    /// The system refuses.
    #[error("{bytes} bytes of RAM cannot be mapped: {source}")]
    Map {
        /// Of how many bytes.
        bytes: usize,
        /// What it said.
        source: io::Error,
    },
}

impl From<RamError> for io::Error {
    fn from(error: RamError) -> Self {
        let kind = match &error {
            RamError::Pages(source) | RamError::Map { source, .. } => source.kind(),
            _ => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}

/// Pages are what is copied, so a rest would never be.
fn whole_pages(len: usize) -> Result<(), RamError> {
    if len.is_multiple_of(PAGE_SIZE) { Ok(()) } else { Err(RamError::Partial { len }) }
}

fn check(file: &File, offset: u64, len: usize, pages: usize) -> Result<(), RamError> {
    if !offset.is_multiple_of(pages as u64) {
        return Err(RamError::Unaligned { what: "offset", value: offset, pages });
    }
    let have = file.metadata().map_err(|source| RamError::Map { bytes: len, source })?.len();
    if offset.checked_add(len as u64).is_none_or(|end| end > have) {
        return Err(RamError::Short { offset, len, have });
    }
    let against_writing = SealFlags::WRITE | SealFlags::FUTURE_WRITE;
    // Only a memfd, or another file on tmpfs or hugetlbfs, has seals.
    match fcntl_get_seals(file) {
        Ok(seals) if seals.intersects(against_writing) => Err(RamError::Sealed),
        _ => Ok(()),
    }
}

/// Bytes of the pages that a mapping of `file` has: those of hugetlbfs, or 4096.
///
/// # Errors
/// The system does not tell of the file's file system.
pub fn page_size_of(file: &File) -> io::Result<usize> {
    /// `HUGETLBFS_MAGIC` of <linux/magic.h>.
    const HUGETLBFS: u64 = 0x9584_58f6;
    let fs = fstatfs(file)?;
    let is_huge = u64::try_from(fs.f_type).is_ok_and(|kind| kind == HUGETLBFS);
    Ok(if is_huge { usize::try_from(fs.f_bsize).map_err(io::Error::other)? } else { PAGE_SIZE })
}
