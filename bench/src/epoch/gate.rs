//! The gate: holds the guest's messages until their epoch is committed, and measures for how long.

use super::{clock::now_ns, guest::MESSAGE};
use mc_core::{
    gate::{GateStats, OutputGate, WaitFd},
    histogram::Histogram,
    id::Epoch,
};
use std::{
    collections::VecDeque,
    io::{self, Read},
    os::{fd::AsFd, unix::net::UnixStream},
    time::Duration,
};

/// The messages of an epoch.
#[derive(Debug)]
struct Batch {
    epoch: Epoch,
    /// When its barrier was set.
    since: u64,
    sent: VecDeque<u64>,
}

/// The gate.
#[derive(Debug)]
pub struct Gate {
    socket: UnixStream,
    /// The start of a message whose end is on its way.
    partial: Vec<u8>,
    holding: bool,
    shut: bool,
    /// When each was sent; of the open batch.
    open: VecDeque<u64>,
    batches: VecDeque<Batch>,
    hold: Histogram,
    commit: Histogram,
    /// Number of the newest message.
    last: Option<u64>,
    stats: GateStats,
}

impl Gate {
    /// Over the guest's socket.
    #[must_use]
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            partial: Vec::with_capacity(MESSAGE),
            holding: false,
            shut: false,
            open: VecDeque::with_capacity(1024),
            batches: VecDeque::with_capacity(64),
            hold: Histogram::new(),
            commit: Histogram::new(),
            last: None,
            stats: GateStats::default(),
        }
    }

    /// From when a message was sent until it was let out; of those that were held.
    #[must_use]
    pub fn hold_times(&self) -> &Histogram {
        &self.hold
    }

    /// From an epoch's barrier, at the end of its pause, until its ACK let it go.
    #[must_use]
    pub fn commit_times(&self) -> &Histogram {
        &self.commit
    }

    /// Forgets its times so far.
    pub fn reset(&mut self) {
        self.hold.clear();
        self.commit.clear();
    }

    /// Takes in everything that the guest has sent.
    fn drain(&mut self) -> io::Result<()> {
        let mut buffer = [0; 256 * MESSAGE];
        loop {
            match rustix::net::recv(&self.socket, &mut buffer, rustix::net::RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((_, len)) => self.take(&buffer[..len])?,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn take(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let mut word = [0; 8];
        loop {
            let missing = MESSAGE - self.partial.len();
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            self.partial.extend_from_slice(now);
            if self.partial.len() < MESSAGE {
                return Ok(());
            }
            bytes = later;
            (&self.partial[8..]).read_exact(&mut word)?;
            let number = u64::from_le_bytes(word);
            if let Some(last) = self.last.replace(number).filter(|last| number != last + 1) {
                return Err(io::Error::other(format!("message {number} after {last}")));
            }
            (&self.partial[..8]).read_exact(&mut word)?;
            self.partial.clear();
            if self.holding && !self.shut {
                self.open.push_back(u64::from_le_bytes(word));
                self.stats.held_packets += 1;
            } else {
                self.stats.released_packets += u64::from(!self.shut);
            }
        }
    }

    fn let_out(&mut self, batch: &Batch) {
        let (now, count) = (now_ns(), batch.sent.len() as u64);
        self.commit.record(Duration::from_nanos(now.saturating_sub(batch.since)));
        batch.sent.iter().for_each(|sent| self.hold.record(Duration::from_nanos(now.saturating_sub(*sent))));
        self.stats.held_packets -= count;
        self.stats.released_packets += count;
    }
}

impl OutputGate for Gate {
    fn poll(&mut self) -> io::Result<()> {
        self.drain()
    }

    fn hold(&mut self) {
        self.holding = true;
    }

    fn barrier(&mut self, epoch: Epoch) -> io::Result<()> {
        self.drain()?;
        let sent = std::mem::take(&mut self.open);
        self.batches.push_back(Batch { epoch, since: now_ns(), sent });
        Ok(())
    }

    fn release(&mut self, epoch: Epoch) -> io::Result<()> {
        while self.batches.front().is_some_and(|batch| batch.epoch <= epoch) {
            if let Some(batch) = self.batches.pop_front() {
                self.let_out(&batch);
            }
        }
        Ok(())
    }

    fn open(&mut self) -> io::Result<()> {
        self.holding = false;
        Ok(())
    }

    fn shut(&mut self) {
        self.shut = true;
    }

    fn stats(&self) -> GateStats {
        self.stats
    }

    fn wait_fds<'a>(&'a self, each: &mut dyn FnMut(WaitFd<'a>)) {
        each(WaitFd { fd: self.socket.as_fd(), read: true, write: false });
    }
}
