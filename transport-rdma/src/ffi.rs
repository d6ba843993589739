//! Safe, owned handles over libibverbs (ibv_*(3)) and librdmacm (rdma_*(3)): the crate's only `unsafe`.
//!
//! ```text
//!   Context ──> Domain (PD) ──> Region (MR)          one Domain per peer and incarnation
//!      │           ├──────────> Qp ──> posts, state changes
//!      │           └──────────> Address (AH)
//!      └──> Channel ──> Cq
//!
//!   CmId (with its event channel)       on a device of librdmacm's own; queue pairs stay ours
//! ```
//!
//! Every handle keeps what it was made from alive, so nothing is freed under a user's feet, in whatever order they are
//! dropped. What can fail on the way out is a method that says so ([`Qp::destroy`], [`Region::deregister`]): a fence needs
//! the answer. `Drop` tries once more, logs, and never panics.
//!
//! # Memory
//!
//! A [`Region`] is made of a whole mapping only, never of heap memory: the kernel pins a mapping's pages until the region is
//! deregistered, so a device that is late writes into pages that nobody else can own meanwhile, even if the mapping is gone.
#![allow(unsafe_code)]

use crate::memlock;
use crate::types::{
    Access, Completion, Gid, Limits, Patience, Piece, Port, PostError, QpSizes, RcPath, Request, Work, lane_mbit,
    lanes, mtu_bytes, mtu_code,
};
use mc_core::slab::{FreeSlab, SealedSlab, SlabWriter};
use memmap2::{MmapMut, MmapRaw};
use rdma_sys as sys;
use socket2::SockAddr;
use std::{
    ffi::{CStr, CString, c_int},
    fmt,
    io::{self, Error},
    mem::zeroed,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    ptr::{NonNull, null_mut},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering},
    },
    time::Duration,
};

/// Turns what a verb returned (0, an error number, or -1 and `errno`) into a result.
fn check(returned: c_int) -> io::Result<()> {
    match returned {
        0 => Ok(()),
        code if code > 0 => Err(Error::from_raw_os_error(code)),
        _ => Err(Error::last_os_error()),
    }
}

fn made<T>(pointer: *mut T) -> io::Result<NonNull<T>> {
    NonNull::new(pointer).ok_or_else(Error::last_os_error)
}

/// Of a failed clean-up nobody but the log learns: there is no one to tell in a `Drop`.
fn log_failed(what: &str, returned: c_int) {
    if let Err(error) = check(returned) {
        tracing::error!(%error, "{what} failed");
    }
}

/// Declares a handle that owns one pointer of libibverbs.
macro_rules! handle {
    ($(#[$doc:meta])* $name:ident, $raw:ty, { $($field:ident: $type:ty),* $(,)? }, $destroy:path, $what:literal) => {
        $(#[$doc])*
        pub struct $name {
            raw: NonNull<$raw>,
            $($field: $type,)*
        }
        // SAFETY: libibverbs locks its objects (ibv_open_device(3), "thread safe"); the pointer is never shared outside.
        unsafe impl Send for $name {}
        // SAFETY: as above; every method takes what it needs by value or through libibverbs' own locks.
        unsafe impl Sync for $name {}
        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: `raw` came from the matching constructor, is destroyed only here, and everything made from it
                // holds an `Arc` of it, so nothing made from it is left.
                log_failed($what, unsafe { $destroy(self.raw.as_ptr()) });
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    };
}

handle!(
    /// An open device.
    Context, sys::ibv_context, { name: String }, sys::ibv_close_device, "ibv_close_device"
);
handle!(
    /// A protection domain: queue pairs reach the memory of their own domain only.
    Domain, sys::ibv_pd, { context: Arc<Context>, lost: AtomicBool }, sys::ibv_dealloc_pd, "ibv_dealloc_pd"
);
handle!(
    /// Wakes whoever sleeps on its descriptor when an armed [`Cq`] gets a completion.
    Channel, sys::ibv_comp_channel, { _context: Arc<Context> }, sys::ibv_destroy_comp_channel, "ibv_destroy_comp_channel"
);
handle!(
    /// A completion queue.
    Cq, sys::ibv_cq, { channel: Option<Arc<Channel>>, _context: Arc<Context> }, sys::ibv_destroy_cq, "ibv_destroy_cq"
);
handle!(
    /// Where a datagram goes (an address handle).
    Address, sys::ibv_ah, { _domain: Arc<Domain> }, sys::ibv_destroy_ah, "ibv_destroy_ah"
);

impl Context {
    /// Opens the device of that name.
    ///
    /// # Errors
    /// `ENOSYS`: the kernel has no RDMA; not found: no such device; otherwise what the driver says.
    pub fn open(name: &str) -> io::Result<Arc<Self>> {
        let wanted = CString::new(name).map_err(io::Error::other)?;
        let mut count = 0;
        // SAFETY: `count` outlives the call. The list is freed below, on every path.
        let list = made(unsafe { sys::ibv_get_device_list(&raw mut count) })?;
        let mut context = Err(io::ErrorKind::NotFound.into());
        for index in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: the list has `count` entries.
            let device = unsafe { list.as_ptr().wrapping_add(index).read() };
            // SAFETY: `device` is an entry of a list that is not freed yet.
            let name = unsafe { sys::ibv_get_device_name(device) };
            // SAFETY: a device's name is a C string, which lives as long as the list.
            let found = unsafe { CStr::from_ptr(name) };
            if found == wanted.as_c_str() {
                // SAFETY: likewise; an open context outlives the list (ibv_get_device_list(3)).
                context = made(unsafe { sys::ibv_open_device(device) });
            }
        }
        // SAFETY: `list` came from `ibv_get_device_list`, and no entry of it is used from here on.
        unsafe { sys::ibv_free_device_list(list.as_ptr()) };
        Ok(Arc::new(Self { raw: context?, name: name.to_owned() }))
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its limits.
    pub fn limits(&self) -> io::Result<Limits> {
        // SAFETY: a C struct of integers, for which zeros are valid.
        let mut a: sys::ibv_device_attr = unsafe { zeroed() };
        // SAFETY: `raw` is open, `a` outlives the call.
        check(unsafe { sys::ibv_query_device(self.raw.as_ptr(), &raw mut a) })?;
        Ok(Limits {
            max_mr_size: a.max_mr_size,
            max_mr: a.max_mr,
            max_qp: a.max_qp,
            max_qp_wr: a.max_qp_wr,
            max_sge: a.max_sge,
            max_cqe: a.max_cqe,
            max_mcast_grp: a.max_mcast_grp,
            max_qp_rd_atom: a.max_qp_rd_atom,
            atomics: a.atomic_cap != sys::ibv_atomic_cap::IBV_ATOMIC_NONE,
            ports: a.phys_port_cnt,
        })
    }

    /// The state of port `number`.
    pub fn port(&self, number: u8) -> io::Result<Port> {
        // SAFETY: a C struct of integers, for which zeros are valid.
        let mut a: sys::ibv_port_attr = unsafe { zeroed() };
        // SAFETY: `raw` is open, `a` outlives the call.
        check(unsafe { sys::___ibv_query_port(self.raw.as_ptr(), number, &raw mut a) })?;
        Ok(Port {
            active: a.state == sys::ibv_port_state::IBV_PORT_ACTIVE,
            mtu: mtu_bytes(a.active_mtu),
            gids: a.gid_tbl_len,
            ethernet: a.link_layer == ETHERNET,
            lid: a.lid,
            mbit: lanes(a.active_width) * lane_mbit(a.active_speed),
        })
    }

    /// Entry `index` of the port's GID table.
    pub fn gid(&self, port: u8, index: u8) -> io::Result<Gid> {
        // SAFETY: a union of integers, for which zeros are valid.
        let mut gid: sys::ibv_gid = unsafe { zeroed() };
        // SAFETY: `raw` is open, `gid` outlives the call.
        check(unsafe { sys::ibv_query_gid(self.raw.as_ptr(), port, index.into(), &raw mut gid) })?;
        // SAFETY: all bit patterns of the union are bytes.
        Ok(unsafe { gid.raw })
    }
}

/// `IBV_LINK_LAYER_ETHERNET` of <infiniband/verbs.h>.
const ETHERNET: u8 = 2;

impl Domain {
    /// A new domain.
    pub fn new(context: &Arc<Context>) -> io::Result<Arc<Self>> {
        // SAFETY: `context` is open.
        let raw = made(unsafe { sys::ibv_alloc_pd(context.raw.as_ptr()) })?;
        Ok(Arc::new(Self { raw, context: Arc::clone(context), lost: AtomicBool::new(false) }))
    }

    /// The device that it belongs to.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Whether a region was dropped that could not be deregistered: whoever has its key may still write there.
    #[must_use]
    pub fn has_lost_regions(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }
}

impl Channel {
    /// A new channel; its descriptor does not block.
    pub fn new(context: &Arc<Context>) -> io::Result<Arc<Self>> {
        // SAFETY: `context` is open.
        let raw = made(unsafe { sys::ibv_create_comp_channel(context.raw.as_ptr()) })?;
        let this = Self { raw, _context: Arc::clone(context) };
        let flags = rustix::fs::fcntl_getfl(this.as_fd())?;
        rustix::fs::fcntl_setfl(this.as_fd(), flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Arc::new(this))
    }

    /// Takes the events that make the descriptor readable; says how many there were.
    pub fn clear(&self) -> u32 {
        let mut taken = 0;
        loop {
            let (mut cq, mut context) = (null_mut(), null_mut());
            // SAFETY: the channel exists, both pointers outlive the call; the descriptor does not block.
            if unsafe { sys::ibv_get_cq_event(self.raw.as_ptr(), &raw mut cq, &raw mut context) } != 0 {
                return taken;
            }
            taken += 1;
            // SAFETY: `cq` was just handed out by the channel, and its owner cannot have destroyed it: that waits for
            // this acknowledgement (ibv_get_cq_event(3)).
            unsafe { sys::ibv_ack_cq_events(cq, 1) };
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel exists as long as `self`.
        let fd = unsafe { (*self.raw.as_ptr()).fd };
        // SAFETY: the descriptor is open as long as the channel exists, and the borrow is bounded by `self`.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }
}

/// The library's words for a completion's status.
#[must_use]
pub fn status_words(status: u32) -> String {
    // SAFETY: takes every value.
    let words = unsafe { sys::ibv_wc_status_str(status) };
    // SAFETY: it returned a static C string.
    unsafe { CStr::from_ptr(words) }.to_string_lossy().into_owned()
}

impl Cq {
    /// A queue for at least `entries`, woken through `channel` if there is one.
    pub fn new(context: &Arc<Context>, entries: u32, channel: Option<&Arc<Channel>>) -> io::Result<Arc<Self>> {
        let entries = c_int::try_from(entries).map_err(io::Error::other)?;
        let raw_channel = channel.map_or(null_mut(), |c| c.raw.as_ptr());
        // SAFETY: device and channel exist, and are kept alive by the result.
        let raw = made(unsafe { sys::ibv_create_cq(context.raw.as_ptr(), entries, null_mut(), raw_channel, 0) })?;
        Ok(Arc::new(Self { raw, channel: channel.cloned(), _context: Arc::clone(context) }))
    }

    /// The next completion, if any.
    pub fn poll(&self) -> io::Result<Option<Completion>> {
        // SAFETY: a C struct of integers, for which zeros are valid.
        let mut wc: sys::ibv_wc = unsafe { zeroed() };
        // SAFETY: the queue exists, `wc` has room for the one entry asked for.
        match unsafe { sys::ibv_poll_cq(self.raw.as_ptr(), 1, &raw mut wc) } {
            0 => Ok(None),
            1 => Ok(Some(Completion {
                id: wc.wr_id,
                status: wc.status,
                vendor: wc.vendor_err,
                bytes: wc.byte_len,
                from: wc.src_qp,
                routed: wc.wc_flags & sys::ibv_wc_flags::IBV_WC_GRH.0 != 0,
            })),
            _ => Err(io::Error::other("ibv_poll_cq failed: the completion queue has overrun")),
        }
    }

    /// The next completion makes the channel readable. Poll once more afterwards: one may have come just before.
    pub fn arm(&self) -> io::Result<()> {
        debug_assert!(self.channel.is_some(), "armed without a channel");
        // SAFETY: the queue exists.
        check(unsafe { sys::ibv_req_notify_cq(self.raw.as_ptr(), 0) })
    }
}

impl Access {
    fn flags(self) -> u32 {
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
        _map: Arc<MmapRaw>,
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
        map: &Arc<MmapRaw>,
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
}

impl Region {
    /// Fills part of a [`Region::buffer`] that is only sent from.
    ///
    /// # Panics
    /// When that is not inside, or the memory is not the region's own.
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
pub fn is_resident(map: &MmapRaw, at: usize, len: usize) -> bool {
    assert!(at.checked_add(len).is_some_and(|end| end <= map.len()), "outside the mapping");
    let mut pages = vec![0_u8; len.div_ceil(4096)];
    // SAFETY: the range is inside a mapping of ours (asserted), whose content is not touched; `pages` has a byte for each.
    let returned = unsafe { libc::mincore(map.as_mut_ptr().wrapping_add(at).cast(), len, pages.as_mut_ptr()) };
    returned == 0 && pages.iter().all(|page| page & 1 != 0)
}

/// Makes the pages of `len` bytes from `at` on present and writable, and changes no byte, not even one that somebody else
/// is changing. For kernels that cannot populate by themselves.
///
/// # Panics
/// When they are not inside.
pub fn touch(map: &MmapRaw, at: usize, len: usize) {
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

/// Most requests that are rung in at a time: longer chains are split. As many as it takes to make a doorbell cheap.
pub const CHAIN: usize = 16;

/// A queue pair.
pub struct Qp {
    /// `None` once destroyed. Locked, so that no call meets a queue pair that another thread destroys.
    raw: Mutex<Option<Live>>,
    number: u32,
    domain: Arc<Domain>,
    _cqs: [Arc<Cq>; 2],
}

/// A queue pair that exists.
struct Live(NonNull<sys::ibv_qp>);

// SAFETY: as for the other handles; the pointer stays behind the lock.
unsafe impl Send for Live {}

impl fmt::Debug for Qp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Qp({:#x})", self.number)
    }
}

use sys::ibv_qp_attr_mask as Mask;

impl Qp {
    /// A reliable, connected one; its completions go to `send` and `receive`.
    pub fn reliable(domain: &Arc<Domain>, send: &Arc<Cq>, receive: &Arc<Cq>, sizes: QpSizes) -> io::Result<Self> {
        Self::new(domain, send, receive, sizes, sys::ibv_qp_type::IBV_QPT_RC)
    }

    /// One for datagrams.
    pub fn datagram(domain: &Arc<Domain>, send: &Arc<Cq>, receive: &Arc<Cq>, sizes: QpSizes) -> io::Result<Self> {
        Self::new(domain, send, receive, sizes, sys::ibv_qp_type::IBV_QPT_UD)
    }

    fn new(
        domain: &Arc<Domain>,
        send: &Arc<Cq>,
        receive: &Arc<Cq>,
        sizes: QpSizes,
        kind: sys::ibv_qp_type::Type,
    ) -> io::Result<Self> {
        // SAFETY: a C struct of integers and pointers, for which zeros are valid.
        let mut a: sys::ibv_qp_init_attr = unsafe { zeroed() };
        (a.send_cq, a.recv_cq, a.qp_type) = (send.raw.as_ptr(), receive.raw.as_ptr(), kind);
        a.cap.max_send_wr = sizes.send;
        a.cap.max_recv_wr = sizes.receive;
        a.cap.max_send_sge = sizes.pieces;
        a.cap.max_recv_sge = 1;
        a.cap.max_inline_data = sizes.inline;
        // SAFETY: domain and queues exist, and are kept alive by the result; `a` outlives the call.
        let raw = made(unsafe { sys::ibv_create_qp(domain.raw.as_ptr(), &raw mut a) })?;
        // SAFETY: a queue pair that was just made; its number never changes.
        let number = unsafe { raw.as_ref().qp_num };
        let cqs = [Arc::clone(send), Arc::clone(receive)];
        Ok(Self { raw: Mutex::new(Some(Live(raw))), number, domain: Arc::clone(domain), _cqs: cqs })
    }

    /// Its number, for the peer.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its domain.
    #[must_use]
    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    /// Calls `verb` with the queue pair, which exists meanwhile.
    fn with<T>(&self, verb: impl FnOnce(*mut sys::ibv_qp) -> io::Result<T>) -> io::Result<T> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the queue pair was destroyed");
        let raw = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
        verb(raw.as_ref().ok_or_else(gone)?.0.as_ptr())
    }

    fn modify(
        &self,
        state: sys::ibv_qp_state::Type,
        mask: Mask,
        set: impl FnOnce(&mut sys::ibv_qp_attr),
    ) -> io::Result<()> {
        // SAFETY: a C struct of integers, for which zeros are valid.
        let mut a: sys::ibv_qp_attr = unsafe { zeroed() };
        set(&mut a);
        a.qp_state = state;
        self.apply(&mut a, mask | Mask::IBV_QP_STATE)
    }

    /// RESET to INIT: receives may be posted. `remote_write`: whether the peer may write into regions that allow it.
    pub fn init_reliable(&self, remote_write: bool) -> io::Result<()> {
        let access = if remote_write { Access::RemoteWrite } else { Access::LocalWrite };
        let mask = Mask::IBV_QP_PKEY_INDEX | Mask::IBV_QP_PORT | Mask::IBV_QP_ACCESS_FLAGS;
        self.modify(sys::ibv_qp_state::IBV_QPS_INIT, mask, |a| {
            a.port_num = crate::types::PORT;
            a.qp_access_flags = access.flags();
        })
    }

    /// INIT to RTR to RTS: connected.
    pub fn connect(&self, path: &RcPath) -> io::Result<()> {
        let mask = Mask::IBV_QP_AV
            | Mask::IBV_QP_PATH_MTU
            | Mask::IBV_QP_DEST_QPN
            | Mask::IBV_QP_RQ_PSN
            | Mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | Mask::IBV_QP_MIN_RNR_TIMER;
        self.modify(sys::ibv_qp_state::IBV_QPS_RTR, mask, |a| {
            a.path_mtu = mtu_code(path.mtu);
            a.dest_qp_num = path.qpn;
            a.rq_psn = path.peer_psn;
            a.max_dest_rd_atomic = 1;
            a.min_rnr_timer = RNR_TIMER;
            route(&mut a.ah_attr, path.gid, path.lid, path.gid_index);
        })?;
        let mask = Mask::IBV_QP_TIMEOUT
            | Mask::IBV_QP_RETRY_CNT
            | Mask::IBV_QP_RNR_RETRY
            | Mask::IBV_QP_SQ_PSN
            | Mask::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify(sys::ibv_qp_state::IBV_QPS_RTS, mask, |a| {
            (a.timeout, a.retry_cnt, a.rnr_retry) = (path.timeout, path.retry.min(6), path.rnr_retry.min(6));
            a.sq_psn = path.psn;
            a.max_rd_atomic = 1;
        })
    }

    /// RESET or INIT to RTS with what the connection manager has agreed on. Timeouts and retries are ours, and what the peer
    /// may do is what [`Qp::init_reliable`] says. Answers with the path in full.
    pub fn connect_through(&self, id: &CmId, patience: Patience) -> io::Result<RcPath> {
        let (mut a, mask) = id.attributes(sys::ibv_qp_state::IBV_QPS_INIT)?;
        a.qp_access_flags = Access::RemoteWrite.flags();
        self.apply(&mut a, mask)?;
        let (mut to_receive, mask) = id.attributes(sys::ibv_qp_state::IBV_QPS_RTR)?;
        (to_receive.max_dest_rd_atomic, to_receive.min_rnr_timer) = (1, RNR_TIMER);
        self.apply(&mut to_receive, mask)?;
        let (mut to_send, mask) = id.attributes(sys::ibv_qp_state::IBV_QPS_RTS)?;
        let Patience { timeout, retry, rnr_retry } = patience;
        (to_send.timeout, to_send.retry_cnt, to_send.rnr_retry) = (timeout, retry.min(6), rnr_retry.min(6));
        to_send.max_rd_atomic = 1;
        self.apply(&mut to_send, mask)?;
        let way = to_receive.ah_attr;
        Ok(RcPath {
            gid_index: way.grh.sgid_index,
            // SAFETY: all bit patterns of the union are bytes.
            gid: unsafe { way.grh.dgid.raw },
            lid: way.dlid,
            qpn: to_receive.dest_qp_num,
            mtu: mtu_bytes(to_receive.path_mtu),
            psn: to_send.sq_psn,
            peer_psn: to_receive.rq_psn,
            timeout,
            retry: to_send.retry_cnt,
            rnr_retry: to_send.rnr_retry,
        })
    }

    fn apply(&self, a: &mut sys::ibv_qp_attr, mask: Mask) -> io::Result<()> {
        // SAFETY: the queue pair exists, `a` outlives the call.
        self.with(|qp| check(unsafe { sys::ibv_modify_qp(qp, a, mask.0.cast_signed()) }))
    }

    /// RESET to RTS, for datagrams with this Q_Key.
    pub fn ready_datagram(&self, qkey: u32) -> io::Result<()> {
        let mask = Mask::IBV_QP_PKEY_INDEX | Mask::IBV_QP_PORT | Mask::IBV_QP_QKEY;
        self.modify(sys::ibv_qp_state::IBV_QPS_INIT, mask, |a| (a.port_num, a.qkey) = (crate::types::PORT, qkey))?;
        self.modify(sys::ibv_qp_state::IBV_QPS_RTR, Mask(0), |_| {})?;
        self.modify(sys::ibv_qp_state::IBV_QPS_RTS, Mask::IBV_QP_SQ_PSN, |_| {})
    }

    /// To RESET: whatever was posted is forgotten. The number stays, and it can be made ready again. No fence either.
    pub fn reset(&self) -> io::Result<()> {
        self.modify(sys::ibv_qp_state::IBV_QPS_RESET, Mask(0), |_| {})
    }

    /// To ERR: no new work begins, what is posted comes back flushed. No fence: what is on its way may still land.
    pub fn fail(&self) -> io::Result<()> {
        self.modify(sys::ibv_qp_state::IBV_QPS_ERR, Mask(0), |_| {})
    }

    /// Destroys it. When this has returned success, it touches no memory any more. The second call does nothing.
    pub fn destroy(&self) -> io::Result<()> {
        let mut raw = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Live(qp)) = &*raw else { return Ok(()) };
        // SAFETY: the queue pair exists; it is forgotten below once it does not, and the lock keeps everybody away meanwhile.
        check(unsafe { sys::ibv_destroy_qp(qp.as_ptr()) })?;
        *raw = None;
        Ok(())
    }

    /// Posts `requests`, in order, [`CHAIN`] to a doorbell.
    pub fn post(&self, requests: &[Request<'_>]) -> Result<(), PostError> {
        for (round, chain) in requests.chunks(CHAIN).enumerate() {
            self.ring(chain).map_err(|e| PostError { posted: round * CHAIN + e.posted, ..e })?;
        }
        Ok(())
    }

    fn ring(&self, chain: &[Request<'_>]) -> Result<(), PostError> {
        // SAFETY: C structs of integers, pointers and unions of such, for which zeros are valid.
        let mut wrs: [sys::ibv_send_wr; CHAIN] = unsafe { zeroed() };
        let mut inline = [Piece { addr: 0, length: 0, lkey: 0 }; CHAIN];
        for ((request, wr), piece) in chain.iter().zip(&mut wrs).zip(&mut inline) {
            describe(request, wr, piece);
        }
        let first = wrs.as_mut_ptr();
        for index in 1..chain.len() {
            wrs[index - 1].next = first.wrapping_add(index);
        }
        let mut bad = null_mut();
        // SAFETY: the queue pair exists; the chain of `chain.len()` requests and the pieces they name outlive the call, which
        // copies them, and inline data with them. Memory that a piece names is the device's to check: by its local key.
        let rung = self.with(|qp| check(unsafe { sys::ibv_post_send(qp, first, &raw mut bad) }));
        rung.map_err(|source| {
            // (`bad` stays null if the queue pair is gone: then the difference wraps, and nothing was posted.)
            let posted = bad.addr().wrapping_sub(first.addr()) / size_of::<sys::ibv_send_wr>();
            PostError { posted: if posted < chain.len() { posted } else { 0 }, source }
        })
    }

    /// Posts a receive for `len` bytes at `at` of `region`, which must outlive it.
    ///
    /// # Panics
    /// When they are not inside.
    pub fn post_receive(&self, id: u64, region: &Region, at: usize, len: u32) -> io::Result<()> {
        assert!(at.checked_add(len as usize).is_some_and(|end| end <= region.len), "a receive outside its region");
        let mut piece = Piece { addr: region.addr + at as u64, length: len, lkey: region.lkey };
        let mut wr = sys::ibv_recv_wr { wr_id: id, next: null_mut(), sg_list: (&raw mut piece).cast(), num_sge: 1 };
        let mut bad = null_mut();
        // SAFETY: the queue pair exists; `wr` and `piece` outlive the call, which copies them. What lands is inside a
        // registered region (asserted), which has no references to it.
        self.with(|qp| check(unsafe { sys::ibv_post_recv(qp, &raw mut wr, &raw mut bad) }))
    }

    /// Joins or leaves a multicast group. Ethernet needs an IP membership on the same netdev beside it.
    pub fn multicast(&self, group: Gid, join: bool) -> io::Result<()> {
        let gid = sys::ibv_gid { raw: group };
        let verb = if join { sys::ibv_attach_mcast } else { sys::ibv_detach_mcast };
        // SAFETY: the queue pair exists, `gid` outlives the call.
        self.with(|qp| check(unsafe { verb(qp, &raw const gid, 0) }))
    }
}

/// The timer of "receiver not ready": code 12 is 0.64 ms (IBTA table 45).
const RNR_TIMER: u8 = 12;

/// Fills a work request in.
fn describe(request: &Request<'_>, wr: &mut sys::ibv_send_wr, inline: &mut Piece) {
    wr.wr_id = request.id;
    let signaled = if request.signaled { sys::ibv_send_flags::IBV_SEND_SIGNALED.0 } else { 0 };
    wr.send_flags = signaled;
    if let Work::Send(bytes) | Work::Datagram { bytes, .. } = request.work {
        wr.send_flags |= sys::ibv_send_flags::IBV_SEND_INLINE.0;
        wr.opcode = sys::ibv_wr_opcode::IBV_WR_SEND;
        inline.addr = bytes.as_ptr().addr() as u64;
        inline.length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        (wr.sg_list, wr.num_sge) = (std::ptr::from_mut(inline).cast(), 1);
    }
    match request.work {
        Work::Send(_) => {}
        Work::Write { from, to, rkey } => {
            wr.opcode = sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE;
            wr.sg_list = from.as_ptr().cast_mut().cast();
            wr.num_sge = c_int::try_from(from.len()).unwrap_or(c_int::MAX);
            wr.wr.rdma = sys::rdma_t { remote_addr: to, rkey };
        }
        Work::Datagram { to, qpn, qkey, .. } => {
            wr.wr.ud = sys::ud_t { ah: to.raw.as_ptr(), remote_qpn: qpn, remote_qkey: qkey };
        }
        Work::LongDatagram { from, to, qpn, qkey } => {
            wr.opcode = sys::ibv_wr_opcode::IBV_WR_SEND;
            wr.sg_list = from.as_ptr().cast_mut().cast();
            wr.num_sge = c_int::try_from(from.len()).unwrap_or(c_int::MAX);
            wr.wr.ud = sys::ud_t { ah: to.raw.as_ptr(), remote_qpn: qpn, remote_qkey: qkey };
        }
    }
}

fn route(a: &mut sys::ibv_ah_attr, gid: Gid, lid: u16, gid_index: u8) {
    (a.is_global, a.port_num, a.dlid) = (1, crate::types::PORT, lid);
    (a.grh.dgid, a.grh.sgid_index, a.grh.hop_limit) = (sys::ibv_gid { raw: gid }, gid_index, 64);
}

impl Drop for Qp {
    fn drop(&mut self) {
        if let Err(error) = self.destroy() {
            tracing::error!(%error, "ibv_destroy_qp failed");
        }
    }
}

impl Address {
    /// Where datagrams to `gid` go.
    pub fn new(domain: &Arc<Domain>, gid: Gid, lid: u16, gid_index: u8) -> io::Result<Self> {
        // SAFETY: a C struct of integers, for which zeros are valid.
        let mut a: sys::ibv_ah_attr = unsafe { zeroed() };
        route(&mut a, gid, lid, gid_index);
        // SAFETY: the domain exists, `a` outlives the call.
        let raw = made(unsafe { sys::ibv_create_ah(domain.raw.as_ptr(), &raw mut a) })?;
        Ok(Self { raw, _domain: Arc::clone(domain) })
    }
}

/// A connection, or a listener, of the system's connection manager (rdma_cm(7)), with an event channel of its own.
///
/// No queue pair is ever tied to it (rdma_create_qp(3)), so it moves none and destroys none: [`Qp::connect_through`] asks it
/// what to move one with. Dropping it tells the peer (a rejection, or a disconnection), and nothing else.
pub struct CmId {
    raw: NonNull<sys::rdma_cm_id>,
    channel: NonNull<sys::rdma_event_channel>,
}

// SAFETY: librdmacm locks what its objects share, and is not tied to threads (rdma_cm(7)).
unsafe impl Send for CmId {}
// SAFETY: whatever changes the object, events among it, takes it exclusively; by reference it is only read.
unsafe impl Sync for CmId {}

/// What the connection manager reports.
#[derive(Debug)]
pub struct CmEvent {
    /// `RDMA_CM_EVENT_*`.
    pub kind: sys::rdma_cm_event_type::Type,
    /// 0; a negative error number; of a rejection, its reason (IBTA 12.6.7.2).
    pub status: c_int,
    /// What the peer said. On InfiniBand and RoCE padded with zeros.
    pub data: Vec<u8>,
    /// The connection that somebody asks for.
    pub request: Option<CmId>,
}

/// What one side of a connection says to the other.
#[derive(Clone, Copy, Debug)]
pub struct CmOffer<'a> {
    /// Its queue pair.
    pub qpn: u32,
    /// Transport retries, and while no receive is posted, that it proposes; at most 6 are taken.
    pub retries: (u8, u8),
    /// Whatever it likes, to 56 bytes in a request.
    pub data: &'a [u8],
}

fn new_channel() -> io::Result<NonNull<sys::rdma_event_channel>> {
    // SAFETY: has no conditions.
    made(unsafe { sys::rdma_create_event_channel() })
}

/// Only for a channel that no id is on any more.
fn destroy_channel(channel: NonNull<sys::rdma_event_channel>) {
    // SAFETY: every caller has made the channel, gives it up here, and has destroyed the id that was on it.
    unsafe { sys::rdma_destroy_event_channel(channel.as_ptr()) };
}

impl CmId {
    /// A new one, for reliable connections.
    ///
    /// # Errors
    /// `ENODEV`, `ENOENT`: no RDMA device, or no /dev/infiniband/rdma_cm.
    pub fn new() -> io::Result<Self> {
        let channel = new_channel()?;
        let mut raw = null_mut();
        let kind = sys::rdma_port_space::RDMA_PS_TCP;
        // SAFETY: the channel exists, and stays as long as the id; `raw` outlives the call.
        let returned = unsafe { sys::rdma_create_id(channel.as_ptr(), &raw mut raw, null_mut(), kind) };
        match check(returned).and_then(|()| made(raw)) {
            Ok(raw) => Self { raw, channel }.unblocked(),
            Err(error) => {
                destroy_channel(channel);
                Err(error)
            }
        }
    }

    /// Its descriptor must not block: [`CmId::event`] looks whether there is one.
    fn unblocked(self) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(self.as_fd())?;
        rustix::fs::fcntl_setfl(self.as_fd(), flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(self)
    }

    /// Takes over a request that came to a listener, onto a channel of its own.
    fn of_request(raw: NonNull<sys::rdma_cm_id>) -> io::Result<Self> {
        let channel = new_channel();
        let moved = channel.and_then(|channel| {
            // SAFETY: both exist; the caller has given `raw` up, and acknowledged its event; nobody else knows of it.
            let returned = unsafe { sys::rdma_migrate_id(raw.as_ptr(), channel.as_ptr()) };
            check(returned).map(|()| channel).inspect_err(|_| destroy_channel(channel))
        });
        match moved {
            Ok(channel) => Self { raw, channel }.unblocked(),
            Err(error) => {
                // SAFETY: as above; it is forgotten here. The peer is rejected.
                log_failed("rdma_destroy_id", unsafe { sys::rdma_destroy_id(raw.as_ptr()) });
                Err(error)
            }
        }
    }

    fn read(&self) -> &sys::rdma_cm_id {
        // SAFETY: the id exists, and nobody changes it while it is borrowed (`Sync`, above).
        unsafe { self.raw.as_ref() }
    }

    /// The next event, if there is one. The descriptor is readable when there is.
    pub fn event(&mut self) -> io::Result<Option<CmEvent>> {
        let mut raw = null_mut();
        // SAFETY: the channel exists, `raw` outlives the call; the descriptor does not block. The only id on the channel is
        // this one, borrowed exclusively.
        let returned = unsafe { sys::rdma_get_cm_event(self.channel.as_ptr(), &raw mut raw) };
        match check(returned) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            done => done?,
        }
        let pointer = made(raw)?;
        // SAFETY: an event is ours to read until it is acknowledged, below.
        let event = unsafe { pointer.as_ref() };
        let (kind, status, id) = (event.event, event.status, event.id);
        let data = private_data(event);
        // SAFETY: it was just taken from the channel, and `event` is not used from here on.
        check(unsafe { sys::rdma_ack_cm_event(pointer.as_ptr()) })?;
        let is_request = kind == sys::rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_REQUEST;
        // (A request's id is new, and its taker's to destroy: rdma_get_cm_event(3).)
        let request = is_request.then(|| made(id).and_then(Self::of_request)).transpose()?;
        Ok(Some(CmEvent { kind, status, data, request }))
    }

    /// Gives it a local address. Port 0: any.
    pub fn bind(&mut self, address: SocketAddr) -> io::Result<()> {
        let address = SockAddr::from(address);
        // SAFETY: the id exists; the address is a whole one, outlives the call, and is only read.
        check(unsafe { sys::rdma_bind_addr(self.raw.as_ptr(), address.as_ptr().cast_mut().cast()) })
    }

    /// Listens at its address. Each request is an event.
    pub fn listen(&mut self, backlog: u8) -> io::Result<()> {
        // SAFETY: the id exists.
        check(unsafe { sys::rdma_listen(self.raw.as_ptr(), backlog.into()) })
    }

    /// Looks for the device that reaches `to`, from an address of ours if one is given. An event says how it ended.
    pub fn resolve_address(&mut self, from: Option<SocketAddr>, to: SocketAddr, limit: Duration) -> io::Result<()> {
        let (from, to) = (from.map(SockAddr::from), SockAddr::from(to));
        let from = from.as_ref().map_or(null_mut(), |a| a.as_ptr().cast_mut().cast());
        // SAFETY: the id exists; the addresses are whole ones, outlive the call, and are only read. `from` may be null.
        check(unsafe { sys::rdma_resolve_addr(self.raw.as_ptr(), from, to.as_ptr().cast_mut().cast(), millis(limit)) })
    }

    /// Looks for the way there. An event says how it ended.
    pub fn resolve_route(&mut self, limit: Duration) -> io::Result<()> {
        // SAFETY: the id exists.
        check(unsafe { sys::rdma_resolve_route(self.raw.as_ptr(), millis(limit)) })
    }

    /// Asks the peer. A response, a rejection, or a failure follows as an event.
    pub fn connect(&mut self, offer: CmOffer<'_>) -> io::Result<()> {
        let mut param = param_of(offer)?;
        // SAFETY: the id exists; `param` and the data that it names outlive the call, which copies them.
        check(unsafe { sys::rdma_connect(self.raw.as_ptr(), &raw mut param) })
    }

    /// Accepts a request. The peer's confirmation follows as an event.
    pub fn accept(&mut self, offer: CmOffer<'_>) -> io::Result<()> {
        let mut param = param_of(offer)?;
        // SAFETY: as above.
        check(unsafe { sys::rdma_accept(self.raw.as_ptr(), &raw mut param) })
    }

    /// Confirms a response.
    pub fn establish(&mut self) -> io::Result<()> {
        // SAFETY: the id exists, and has no queue pair (rdma_establish(3)).
        check(unsafe { sys::rdma_establish(self.raw.as_ptr()) })
    }

    /// Rejects a request, or a response.
    pub fn reject(&mut self, data: &[u8]) -> io::Result<()> {
        let len = u8::try_from(data.len()).map_err(io::Error::other)?;
        // SAFETY: the id exists; the data outlives the call, which copies it.
        check(unsafe { sys::rdma_reject(self.raw.as_ptr(), data.as_ptr().cast(), len) })
    }

    /// The device that it is on; `None` until the address was resolved.
    #[must_use]
    pub fn device(&self) -> Option<String> {
        let verbs = NonNull::new(self.read().verbs)?;
        // SAFETY: librdmacm keeps the devices of its ids open.
        let device = unsafe { verbs.as_ref() }.device;
        // SAFETY: the device of an open context.
        let name = unsafe { sys::ibv_get_device_name(device) };
        // SAFETY: a device's name is a C string, which lives as long as the device is open.
        Some(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
    }

    /// Our address.
    #[must_use]
    pub fn local(&self) -> Option<SocketAddr> {
        let union = &self.read().route.addr.src_addr_union;
        // SAFETY: integers, which have no invalid bit patterns.
        let v4 = unsafe { union.src_sin };
        // SAFETY: likewise.
        socket_address(v4, unsafe { union.src_sin6 })
    }

    /// The peer's address.
    #[must_use]
    pub fn remote(&self) -> Option<SocketAddr> {
        let union = &self.read().route.addr.dst_addr_union;
        // SAFETY: integers, which have no invalid bit patterns.
        let v4 = unsafe { union.dst_sin };
        // SAFETY: likewise.
        socket_address(v4, unsafe { union.dst_sin6 })
    }

    /// With what to move a queue pair to `state`.
    fn attributes(&self, state: sys::ibv_qp_state::Type) -> io::Result<(sys::ibv_qp_attr, Mask)> {
        // SAFETY: a C struct of integers, for which zeros are valid.
        let mut a: sys::ibv_qp_attr = unsafe { zeroed() };
        let mut mask = 0;
        a.qp_state = state;
        // SAFETY: the id exists, and is not changed (the kernel is asked); `a` and `mask` outlive the call.
        check(unsafe { sys::rdma_init_qp_attr(self.raw.as_ptr(), &raw mut a, &raw mut mask) })?;
        Ok((a, Mask(mask.cast_unsigned())))
    }
}

/// What came with an event, if anything can.
fn private_data(event: &sys::rdma_cm_event) -> Vec<u8> {
    use sys::rdma_cm_event_type as kind;
    let carriers = [
        kind::RDMA_CM_EVENT_CONNECT_REQUEST,
        kind::RDMA_CM_EVENT_CONNECT_RESPONSE,
        kind::RDMA_CM_EVENT_ESTABLISHED,
        kind::RDMA_CM_EVENT_REJECTED,
    ];
    if !carriers.contains(&event.event) {
        return Vec::new();
    }
    // SAFETY: connection events have this member of the union (rdma_get_cm_event(3)).
    let conn = unsafe { &event.param.conn };
    if conn.private_data.is_null() || conn.private_data_len == 0 {
        return Vec::new();
    }
    // SAFETY: the library's copy, of that length, which lives until the event is acknowledged; the caller still borrows it.
    unsafe { std::slice::from_raw_parts(conn.private_data.cast::<u8>(), conn.private_data_len.into()) }.to_vec()
}

/// The parameters point into `offer`, and must not outlive it.
fn param_of(offer: CmOffer<'_>) -> io::Result<sys::rdma_conn_param> {
    // SAFETY: a C struct of integers and a pointer, for which zeros are valid.
    let mut param: sys::rdma_conn_param = unsafe { zeroed() };
    param.private_data = offer.data.as_ptr().cast();
    param.private_data_len = u8::try_from(offer.data.len()).map_err(io::Error::other)?;
    (param.retry_count, param.rnr_retry_count) = (offer.retries.0.min(6), offer.retries.1.min(6));
    (param.responder_resources, param.initiator_depth) = (1, 1);
    param.qp_num = offer.qpn;
    Ok(param)
}

fn socket_address(v4: libc::sockaddr_in, v6: libc::sockaddr_in6) -> Option<SocketAddr> {
    match c_int::from(v4.sin_family) {
        libc::AF_INET => Some((Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)), u16::from_be(v4.sin_port)).into()),
        libc::AF_INET6 => Some((Ipv6Addr::from(v6.sin6_addr.s6_addr), u16::from_be(v6.sin6_port)).into()),
        _ => None,
    }
}

/// As the library wants it; it takes 0 for no time at all.
fn millis(limit: Duration) -> c_int {
    c_int::try_from(limit.as_millis()).unwrap_or(c_int::MAX).max(1)
}

impl AsFd for CmId {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel exists as long as `self`, and nothing changes its descriptor.
        let fd = unsafe { self.channel.as_ref() }.fd;
        // SAFETY: the descriptor is open as long as the channel exists, and the borrow is bounded by `self`.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }
}

impl fmt::Debug for CmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CmId({:?} -> {:?})", self.local(), self.remote())
    }
}

impl Drop for CmId {
    fn drop(&mut self) {
        // SAFETY: the id exists, is destroyed only here, has no queue pair, and all its events are acknowledged
        // (rdma_destroy_id(3) waits for that).
        log_failed("rdma_destroy_id", unsafe { sys::rdma_destroy_id(self.raw.as_ptr()) });
        destroy_channel(self.channel);
    }
}
