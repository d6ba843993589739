//! Queue pairs: their states, what is posted on them, and where datagrams go.

use super::{Address, Cq, Domain, Region, check, made};
use crate::types::{Access, Gid, PORT, Piece, PostError, QpSizes, RcPath, Request, Work, mtu_code};
use rdma_sys as sys;
use std::{
    ffi::c_int,
    fmt, io,
    mem::zeroed,
    ptr::{NonNull, null_mut},
    sync::{Arc, Mutex, PoisonError},
};

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
            a.port_num = PORT;
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

    fn apply(&self, a: &mut sys::ibv_qp_attr, mask: Mask) -> io::Result<()> {
        // SAFETY: the queue pair exists, `a` outlives the call.
        self.with(|qp| check(unsafe { sys::ibv_modify_qp(qp, a, mask.0.cast_signed()) }))
    }

    /// RESET to RTS, for datagrams with this Q_Key.
    pub fn ready_datagram(&self, qkey: u32) -> io::Result<()> {
        let mask = Mask::IBV_QP_PKEY_INDEX | Mask::IBV_QP_PORT | Mask::IBV_QP_QKEY;
        self.modify(sys::ibv_qp_state::IBV_QPS_INIT, mask, |a| (a.port_num, a.qkey) = (PORT, qkey))?;
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
        assert!(at.checked_add(len as usize).is_some_and(|end| end <= region.len()), "a receive outside its region");
        let mut piece = Piece { addr: region.addr() + at as u64, length: len, lkey: region.lkey() };
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
    (a.is_global, a.port_num, a.dlid) = (1, PORT, lid);
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
