//! A datagram queue pair with its completion queues, buffers and credits, which heals itself.
//!
//! ```text
//!            a send or a receive failed                 `receive` has read everything
//!   Ready --------------------------------> Failed -------------------------------------> Ready, next era
//!                                              |     RESET, INIT, RTR, RTS; all receives
//!                                              +---> posted; the number stays the same
//!                                           sends are lost
//! ```
//!
//! A datagram queue pair fails when a packet cannot leave (SoftRoCE, when its network interface goes down: no route) or when
//! one is longer than its buffer; every device drops all sends from then on. Its number, which others know, outlives a reset.
//! Completions of before a reset are told by their identifiers: a receive's names its *era*, a send's its place in the
//! order of sends.
//!
//! Credits are our own: a device need not refuse what it has no room for (SoftRoCE never does, others answer ENOMEM).

use super::UdOptions;
use crate::{
    ffi::{Address, Channel, Cq, Domain, Qp, Region, status_words},
    types::{Completion, Gid, QpSizes, Request, Work},
};
use mc_core::wire::beat;
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

/// The global routing header that precedes every datagram in its buffer, or the room for it (ibv_post_recv(3)).
const HEADER: usize = 40;
/// The longest datagram: the largest MTU that there is (IBTA; RoCE has none larger). A longer one would fail the queue pair, and
/// anybody could send it.
const LONGEST: usize = 4096;
const SLOT: usize = HEADER + LONGEST;
/// Twice as many entries as can be outstanding: those of before a reset may still be there.
const SPARE: u32 = 2;

/// What went wrong without being an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdCounts {
    /// Beats that could not leave.
    pub lost: u64,
    /// Times the queue pair had failed, and was made ready again.
    pub recoveries: u64,
}

/// A datagram that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    /// Bytes of it in the buffer.
    pub(super) len: usize,
    /// The queue pair that sent it.
    pub(super) queue: u32,
    /// The port that sent it; zeros if it does not say.
    pub(super) from: Gid,
}

#[derive(Debug)]
pub(super) struct Queue {
    /// First, so that it is gone before its buffers are.
    qp: Qp,
    buffers: Region,
    send_cq: Arc<Cq>,
    receive_cq: Arc<Cq>,
    channel: Arc<Channel>,
    options: UdOptions,
    /// Sends so far; the newest one's identifier.
    posted: u64,
    /// The newest send that asked for a completion.
    signaled: u64,
    /// Sends up to this one have completed.
    completed: u64,
    /// How often the queue pair was made ready.
    era: u32,
    failed: bool,
    /// Found while arming.
    ready: Option<Completion>,
    counts: UdCounts,
}

impl Queue {
    pub(super) fn new(domain: &Arc<Domain>, options: UdOptions) -> io::Result<Self> {
        if options.qkey >> 31 != 0 || options.sends < 2 || options.receives == 0 {
            let why = "a Q_Key's top bit must be 0, and there must be two sends and a receive at least";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let context = domain.context();
        let channel = Channel::new(context)?;
        let send_cq = Cq::new(context, options.sends * SPARE, None)?;
        let receive_cq = Cq::new(context, options.receives * SPARE, Some(&channel))?;
        let buffers = Region::buffer(domain, options.receives as usize * SLOT)?;
        let inline = u32::try_from(beat::LEN).map_err(io::Error::other)?;
        let sizes = QpSizes { send: options.sends, receive: options.receives, pieces: 1, inline };
        let qp = Qp::datagram(domain, &send_cq, &receive_cq, sizes)?;
        let (counts, ready) = (UdCounts::default(), None);
        let mut queue = Self {
            qp,
            buffers,
            send_cq,
            receive_cq,
            channel,
            options,
            posted: 0,
            signaled: 0,
            completed: 0,
            era: 0,
            failed: false,
            ready,
            counts,
        };
        queue.make_ready()?;
        Ok(queue)
    }

    pub(super) fn number(&self) -> u32 {
        self.qp.number()
    }

    pub(super) fn qkey(&self) -> u32 {
        self.options.qkey
    }

    #[cfg(feature = "testing")]
    pub(super) fn counts(&self) -> UdCounts {
        self.counts
    }

    #[cfg(feature = "group")]
    pub(super) fn multicast(&self, group: Gid, join: bool) -> io::Result<()> {
        self.qp.multicast(group, join)
    }

    /// RESET to RTS, and every buffer posted.
    fn make_ready(&mut self) -> io::Result<()> {
        self.qp.ready_datagram(self.options.qkey)?;
        (0..self.options.receives).try_for_each(|slot| self.post(slot))
    }

    fn recover(&mut self) -> io::Result<()> {
        self.qp.reset()?;
        self.era = self.era.wrapping_add(1);
        while self.receive_cq.poll()?.is_some() {}
        while self.send_cq.poll()?.is_some() {}
        (self.signaled, self.completed) = (self.posted, self.posted);
        self.make_ready()?;
        self.failed = false;
        self.counts.recoveries += 1;
        Ok(())
    }

    fn post(&self, slot: u32) -> io::Result<()> {
        let id = u64::from(self.era) << 32 | u64::from(slot);
        let len = u32::try_from(SLOT).map_err(io::Error::other)?;
        self.qp.post_receive(id, &self.buffers, slot as usize * SLOT, len)
    }

    /// Sends, or loses; waits for nobody.
    pub(super) fn send(&mut self, bytes: &[u8], to: &Address, qpn: u32, qkey: u32) -> io::Result<()> {
        self.reap()?;
        let sends = u64::from(self.options.sends);
        if self.failed || self.posted - self.completed >= sends {
            self.counts.lost += 1;
            return Ok(());
        }
        let id = self.posted + 1;
        // Of a full queue, one at least will be heard of: no credit is ever lost.
        let signaled = id - self.signaled >= sends.div_ceil(4);
        match self.qp.post(&[Request { id, signaled, work: Work::Datagram { bytes, to, qpn, qkey } }]) {
            Ok(()) => {
                self.posted = id;
                self.signaled = if signaled { id } else { self.signaled };
                Ok(())
            }
            Err(error) if error.source.kind() == io::ErrorKind::OutOfMemory => {
                self.counts.lost += 1;
                Ok(())
            }
            Err(error) => Err(error.source),
        }
    }

    /// Takes back the credits of completed sends.
    fn reap(&mut self) -> io::Result<()> {
        while let Some(done) = self.send_cq.poll()? {
            if done.id > self.completed {
                self.completed = done.id;
                self.fail_if(&done, "sending");
            }
        }
        Ok(())
    }

    fn fail_if(&mut self, done: &Completion, doing: &str) {
        if done.status != 0 && !self.failed {
            self.failed = true;
            tracing::debug!(status = status_words(done.status), "beats: {doing} failed; the queue pair starts anew");
        }
    }

    /// The next datagram; what does not fit into `buffer` is cut off.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
        while let Some(done) = self.next()? {
            let (era, slot) = (done.id >> 32, done.id & u64::from(u32::MAX));
            if era != u64::from(self.era) {
                continue;
            }
            let slot = u32::try_from(slot).map_err(io::Error::other)?;
            if done.status != 0 {
                self.fail_if(&done, "receiving");
                continue;
            }
            let datagram = self.read(slot, &done, buffer);
            // One that cannot be posted again is missed until the next recovery.
            if self.post(slot).is_err() {
                self.failed = true;
            }
            return Ok(Some(datagram));
        }
        self.reap()?;
        if self.failed {
            self.recover()?;
        }
        Ok(None)
    }

    fn next(&mut self) -> io::Result<Option<Completion>> {
        match self.ready.take() {
            Some(done) => Ok(Some(done)),
            None => self.receive_cq.poll(),
        }
    }

    fn read(&self, slot: u32, done: &Completion, buffer: &mut [u8]) -> Datagram {
        let at = slot as usize * SLOT;
        let len = (done.bytes as usize).saturating_sub(HEADER).min(buffer.len());
        self.buffers.copy_out(at + HEADER, &mut buffer[..len]);
        let mut header = [0; HEADER];
        self.buffers.copy_out(at, &mut header);
        let from = if done.routed { source(&header) } else { [0; 16] };
        Datagram { len, queue: done.from, from }
    }

    /// Makes the descriptor readable by the next datagram. True: there is something to do already.
    pub(super) fn arm(&mut self) -> io::Result<bool> {
        if self.ready.is_some() || self.failed {
            return Ok(true);
        }
        self.channel.clear();
        self.receive_cq.arm()?;
        // One that came before the queue was armed makes nothing readable.
        self.ready = self.receive_cq.poll()?;
        Ok(self.ready.is_some())
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// Where a datagram comes from, by its header: IPv6's, or InfiniBand's of the same form; or 20 bytes of anything, then IPv4's
/// (RoCE v2 annex A17.4.5.2).
fn source(header: &[u8; HEADER]) -> Gid {
    let mut gid = [0; 16];
    // IPv4: version 4 and 5 words of header, and UDP. An IPv6 header has part of its destination there, so that a
    // coincidence must also pass the checksum.
    let v4 = &header[20..];
    if v4[0] == 0x45 && v4[9] == 17 && ones_sum(v4) == 0xffff {
        gid[10..12].fill(0xff);
        gid[12..].copy_from_slice(&v4[12..16]);
    } else {
        gid.copy_from_slice(&header[8..24]);
    }
    gid
}

/// The ones' complement sum of an IPv4 header: all ones if its checksum is right (RFC 1071).
fn ones_sum(header: &[u8]) -> u32 {
    let sum: u32 = header.chunks_exact(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
    (sum & 0xffff) + (sum >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_found_in_both_kinds_of_header() {
        let mut v6 = [0; HEADER];
        v6[0] = 0x60;
        let from: Gid = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        v6[8..24].copy_from_slice(&from);
        assert_eq!(source(&v6), from);

        // The example of RFC 1071's readers: 45 00 00 73 ... checksum b8 61, from 192.168.0.1.
        let ip = [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 17, 0xb8, 0x61, 192, 168, 0, 1, 192, 168, 0, 199];
        let mut v4 = [0x6f; HEADER];
        v4[20..].copy_from_slice(&ip);
        assert_eq!(source(&v4)[10..], [0xff, 0xff, 192, 168, 0, 1]);
        v4[39] += 1;
        assert_ne!(source(&v4)[10..], [0xff, 0xff, 192, 168, 0, 1], "the checksum is wrong");
    }
}
