//! The connection manager.

use super::{check, log_failed, made};
use rdma_sys as sys;
use rdma_sys::ibv_qp_attr_mask as Mask;
use socket2::SockAddr;
use std::{
    ffi::{CStr, c_int},
    fmt, io,
    mem::zeroed,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    ptr::{NonNull, null_mut},
    time::Duration,
};

/// A connection, or a listener, of the system's connection manager (rdma_cm(7)), with an event channel of its own.
///
/// No queue pair is ever tied to it (rdma_create_qp(3)), so it moves none and destroys none: [`super::Qp::connect_through`] asks it
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
    pub(super) fn attributes(&self, state: sys::ibv_qp_state::Type) -> io::Result<(sys::ibv_qp_attr, Mask)> {
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
