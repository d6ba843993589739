//! Registered memory.

use super::{Domain, check, made};
use crate::{memlock, types::Access};
use mc_core::{
    ram::Mapping,
    slab::{FreeSlab, SealedSlab, SlabWriter},
};
use memmap2::MmapMut;
use rdma_sys as sys;
use std::{
    fmt, io,
    ptr::null_mut,
    sync::{
        Arc,
        atomic::{AtomicPtr, AtomicU8, Ordering},
    },
};

impl Access {
    pub(super) fn flags(self) -> u32 {
        match self {
            Self::Read => 0,
            Self::LocalWrite => sys::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0,
            // IBTA: remote write needs local write.
            Self::RemoteWrite => {
                sys::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0 | sys::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0
            }
        }
    }
}

/// Registered memory.
pub struct Region {
    /// Null once deregistered.
    raw: AtomicPtr<sys::ibv_mr>,
    addr: u64,
    len: usize,
    lkey: u32,
    rkey: u32,
    access: Access,
    domain: Arc<Domain>,
    /// What is registered, if the region owns it.
    memory: Memory,
}

/// Who keeps the memory.
#[derive(Debug)]
enum Memory {
    /// Its slab.
    Elsewhere,
    Owned(MmapMut),
    /// A reference of ours, so that it outlives the region.
    Shared {
        _map: Arc<Mapping>,
    },
}

impl Region {
    /// Registers the whole of `slab`'s memory. The slab keeps it; see the module's words on memory.
    pub fn of_slab(domain: &Arc<Domain>, slab: &mut FreeSlab, access: Access) -> io::Result<Self> {
        let memory = slab.receive_buffer();
        Self::register(domain, memory.as_mut_ptr(), memory.len(), access, Memory::Elsewhere)
    }

    /// Registers the whole memory of a slab that is being filled: a capture engine writes into the places that the writer
    /// keeps. The writer must not be used while it does.
    pub fn of_writer(domain: &Arc<Domain>, slab: &mut SlabWriter, access: Access) -> io::Result<Self> {
        let memory = slab.memory();
        Self::register(domain, memory.as_mut_ptr(), memory.len(), access, Memory::Elsewhere)
    }

    /// Registers what a sealed slab sends, for reading only.
    pub fn of_sealed(domain: &Arc<Domain>, slab: &SealedSlab) -> io::Result<Self> {
        let memory = slab.memory();
        Self::register(domain, memory.as_ptr().cast_mut(), memory.len(), Access::Read, Memory::Elsewhere)
    }

    /// Fresh memory of `len` bytes, for messages.
    pub fn buffer(domain: &Arc<Domain>, len: usize) -> io::Result<Self> {
        let mut map = MmapMut::map_anon(len)?;
        Self::register(domain, map.as_mut_ptr(), len, Access::LocalWrite, Memory::Owned(map))
    }

    /// Registers `len` bytes from `at` on of a shared mapping.
    ///
    /// # Panics
    /// When they are not inside.
    pub fn of_mapping(
        domain: &Arc<Domain>,
        map: &Arc<Mapping>,
        at: usize,
        len: usize,
        access: Access,
    ) -> io::Result<Self> {
        assert!(at.checked_add(len).is_some_and(|end| end <= map.len()), "a region outside its mapping");
        let addr = map.as_mut_ptr().wrapping_add(at);
        Self::register(domain, addr, len, access, Memory::Shared { _map: Arc::clone(map) })
    }

    fn register(domain: &Arc<Domain>, addr: *mut u8, len: usize, access: Access, memory: Memory) -> io::Result<Self> {
        // SAFETY: the domain exists. `addr` and `len` are all of, or inside, a mapping that is there during the call; later
        // the pages stay pinned until the deregistration (module, "Memory"). Nobody holds a reference to memory while the
        // device may write to it: slabs that were posted belong to the transport, buffers are only copied from, shared
        // mappings are raw.
        let raw = made(unsafe {
            sys::ibv_reg_mr_iova2(domain.raw.as_ptr(), addr.cast(), len, addr.addr() as u64, access.flags())
        })?;
        // SAFETY: a region that was just made; the keys never change.
        let mr = unsafe { raw.as_ref() };
        let (lkey, rkey) = (mr.lkey, mr.rkey);
        memlock::charge(len);
        let domain = Arc::clone(domain);
        let raw = AtomicPtr::new(raw.as_ptr());
        Ok(Self { raw, addr: addr.addr() as u64, len, lkey, rkey, access, domain, memory })
    }

    /// Ends all access. When it has returned success, no byte lands any more, and no work request can name it. The second
    /// call does nothing.
    ///
    /// # Errors
    /// The device may still write: what must not change meanwhile must not be trusted.
    pub fn deregister(&self) -> io::Result<()> {
        let raw = self.raw.swap(null_mut(), Ordering::AcqRel);
        if raw.is_null() {
            return Ok(());
        }
        // SAFETY: `raw` is a region of ours, taken out above, so that nobody deregisters it twice.
        let returned = check(unsafe { sys::ibv_dereg_mr(raw) });
        match returned {
            Ok(()) => memlock::release(self.len),
            Err(_) => self.raw.store(raw, Ordering::Release),
        }
        returned
    }

    /// Where it begins, for work requests and the peer.
    #[must_use]
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// Bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "regions are never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The key that the peer needs.
    #[must_use]
    pub fn rkey(&self) -> u32 {
        self.rkey
    }

    /// The key that our own work requests need.
    #[must_use]
    pub fn lkey(&self) -> u32 {
        self.lkey
    }

    /// Whether it is of this domain, still registered, and allows `access`.
    #[must_use]
    pub fn serves(&self, domain: &Arc<Domain>, access: Access) -> bool {
        Arc::ptr_eq(&self.domain, domain) && self.access >= access && !self.raw.load(Ordering::Acquire).is_null()
    }

    /// Copies out what was received at `at` of a [`Region::buffer`].
    ///
    /// # Panics
    /// When that is not inside, or the memory is not the region's own.
    pub fn copy_out(&self, at: usize, to: &mut [u8]) {
        let Memory::Owned(map) = &self.memory else { panic!("a region without memory of its own") };
        assert!(at.checked_add(to.len()).is_some_and(|end| end <= map.len()), "outside the region");
        let from = map.as_ptr().wrapping_add(at);
        // SAFETY: inside the mapping (asserted), which is ours; `to` is exclusively the caller's. The receive that filled
        // these bytes has completed, and is posted again only after this.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
    }

    /// Fills part of a [`Region::buffer`] that is only sent from.
    ///
    /// # Panics
    /// When that is not inside, or the memory is not the region's own.
    #[cfg(feature = "testing")]
    pub fn copy_in(&mut self, at: usize, bytes: &[u8]) {
        let Memory::Owned(map) = &mut self.memory else { panic!("a region without memory of its own") };
        map[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// Whether all pages of `len` bytes from `at` on (page aligned) are in memory, as far as the kernel tells (mincore(2)).
///
/// # Panics
/// When they are not inside.
#[must_use]
pub fn is_resident(map: &Mapping, at: usize, len: usize) -> bool {
    assert!(at.checked_add(len).is_some_and(|end| end <= map.len()), "outside the mapping");
    let mut pages = vec![0_u8; len.div_ceil(4096)];
    // SAFETY: the range is inside a mapping of ours (asserted), whose content is not touched; `pages` has a byte for each.
    let returned = unsafe { libc::mincore(map.as_mut_ptr().wrapping_add(at).cast(), len, pages.as_mut_ptr()) };
    returned == 0 && pages.iter().all(|page| page & 1 != 0)
}

/// Has the kernel make the pages of `len` bytes from `at` on (page aligned) present and writable; it changes no byte.
///
/// # Errors
/// There is no memory; the mapping is not writable; `EINVAL` before Linux 5.14 (madvise(2)).
///
/// # Panics
/// When they are not inside.
pub fn populate(map: &Mapping, at: usize, len: usize) -> io::Result<()> {
    assert!(at.checked_add(len).is_some_and(|end| end <= map.len()), "outside the mapping");
    let from = map.as_mut_ptr().wrapping_add(at).cast();
    // SAFETY: the range is inside a mapping that lives as long as the borrow (asserted); its content does not change.
    Ok(unsafe { rustix::mm::madvise(from, len, rustix::mm::Advice::LinuxPopulateWrite) }?)
}

/// Makes the pages of `len` bytes from `at` on present and writable, and changes no byte, not even one that somebody else
/// is changing. For kernels that cannot populate by themselves.
///
/// # Panics
/// When they are not inside.
pub fn touch(map: &Mapping, at: usize, len: usize) {
    assert!(at.checked_add(len).is_some_and(|end| end <= map.len()), "outside the mapping");
    for at in (at..at + len).step_by(4096) {
        // SAFETY: inside the mapping (asserted), which is readable and writable and lives as long as the borrow; bytes are
        // always aligned; no Rust reference to the memory exists, as with all shared mappings (mc_core::ram).
        let byte = unsafe { AtomicU8::from_ptr(map.as_mut_ptr().wrapping_add(at)) };
        let value = byte.load(Ordering::Relaxed);
        // If it has changed meanwhile, then somebody has written, and the page is there.
        let _ = byte.compare_exchange(value, value, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} bytes, rkey {:#x})", self.len, self.rkey)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Err(error) = self.deregister() {
            tracing::error!(%error, "ibv_dereg_mr failed; the memory stays pinned");
            self.domain.lost.store(true, Ordering::Release);
            // The device may still write: its memory must not go back to the system.
            let memory = std::mem::replace(&mut self.memory, Memory::Elsewhere);
            std::mem::forget(memory);
        }
    }
}
