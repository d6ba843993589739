//! Safe, owned handles over libibverbs (ibv_*(3)): the crate's only `unsafe`.
//!
//! ```text
//!   Context ──> Domain (PD) ──> Region (MR)          one Domain per peer and incarnation
//!      │           ├──────────> Qp ──> posts, state changes
//!      │           └──────────> Address (AH)
//!      └──> Channel ──> Cq
//! ```
//!
//! | file | what |
//! |---|---|
//! | `ffi.rs` | devices, domains, completion queues |
//! | `ffi/library.rs` | the verbs themselves, from a library that is opened when it is wanted |
//! | `ffi/region.rs` | memory: registered, deregistered, looked at |
//! | `ffi/queue.rs` | queue pairs: states, what is posted; addresses of datagrams |
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

use crate::types::{Completion, Gid, Limits, Port, lane_mbit, lanes, mtu_bytes};
use rdma_sys as sys;
use std::{
    ffi::{CStr, CString, c_int},
    fmt,
    io::{self, Error},
    mem::zeroed,
    os::fd::{AsFd, BorrowedFd},
    ptr::{NonNull, null_mut},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

mod library;
mod queue;
mod region;

pub use library::{LibraryError, open as open_library};
pub use queue::{CHAIN, Qp};
pub use region::{Region, is_resident, populate, touch};

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
    /// `ENOSYS`: the kernel has no RDMA, or the host no library ([`open_library`] tells them apart); not found: no such device; otherwise what the driver says.
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
