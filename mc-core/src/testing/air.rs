//! A keepalive group without a network: every member hears every other, as far as the faults allow.

use super::Rng;
use crate::{transport::Keepalive, wire::beat};
use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Datagrams that wait at one member at most; more are lost, as with a full socket buffer.
const INBOX: usize = 256;

#[derive(Clone, Copy, Debug)]
struct Datagram {
    bytes: [u8; beat::LEN + 1],
    len: usize,
}

#[derive(Debug)]
struct Air {
    inboxes: Vec<VecDeque<Datagram>>,
    isolated: Vec<bool>,
    loss_per_mille: u64,
    rng: Rng,
}

impl Air {
    fn carry(&mut self, from: Option<usize>, to: usize, bytes: &[u8]) {
        let cut_off = self.isolated[to] || from.is_some_and(|f| self.isolated[f]);
        let lost = self.rng.below(1000) < self.loss_per_mille;
        if cut_off || lost || self.inboxes[to].len() == INBOX {
            return;
        }
        let len = bytes.len().min(beat::LEN + 1);
        let mut datagram = Datagram { bytes: [0; beat::LEN + 1], len };
        datagram.bytes[..len].copy_from_slice(&bytes[..len]);
        self.inboxes[to].push_back(datagram);
    }
}

#[derive(Debug)]
struct Shared {
    air: Mutex<Air>,
    arrival: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Air> {
        self.air.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A group of `members`, numbered from 0, that loses nothing until told to. `seed` decides which beats a loss hits.
#[must_use]
pub fn group(members: usize, seed: u64) -> (Vec<MemoryKeepalive>, KeepaliveFaults) {
    let air = Air {
        inboxes: (0..members).map(|_| VecDeque::with_capacity(INBOX)).collect(),
        isolated: vec![false; members],
        loss_per_mille: 0,
        rng: Rng::new(seed),
    };
    let shared = Arc::new(Shared { air: Mutex::new(air), arrival: Condvar::new() });
    let keepalives = (0..members).map(|member| MemoryKeepalive { shared: Arc::clone(&shared), member }).collect();
    (keepalives, KeepaliveFaults { shared })
}

/// What a test does to a group. Clones act on the same one.
#[derive(Clone, Debug)]
pub struct KeepaliveFaults {
    shared: Arc<Shared>,
}

impl KeepaliveFaults {
    /// So many datagrams of a thousand are lost from now on.
    pub fn set_loss(&self, per_mille: u64) {
        self.shared.lock().loss_per_mille = per_mille;
    }

    /// Cuts one member off from all others, or lets it back in. What it had received stays.
    pub fn isolate(&self, member: usize, isolated: bool) {
        self.shared.lock().isolated[member] = isolated;
    }

    /// Delivers any bytes to one member, as a stranger might.
    pub fn inject(&self, to: usize, bytes: &[u8]) {
        self.shared.lock().carry(None, to, bytes);
        self.shared.arrival.notify_all();
    }
}

/// One member of a [`group`].
#[derive(Debug)]
pub struct MemoryKeepalive {
    shared: Arc<Shared>,
    member: usize,
}

impl Keepalive for MemoryKeepalive {
    fn send(&mut self, beat: &[u8; beat::LEN]) -> io::Result<()> {
        let mut air = self.shared.lock();
        for to in (0..air.inboxes.len()).filter(|to| *to != self.member) {
            air.carry(Some(self.member), to, beat);
        }
        self.shared.arrival.notify_all();
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8; beat::LEN + 1]) -> io::Result<Option<usize>> {
        let datagram = self.shared.lock().inboxes[self.member].pop_front();
        Ok(datagram.map(|d| {
            buffer[..d.len].copy_from_slice(&d.bytes[..d.len]);
            d.len
        }))
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let nothing_there = |air: &mut Air| air.inboxes[self.member].is_empty();
        let waited = self.shared.arrival.wait_timeout_while(self.shared.lock(), timeout, nothing_there);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(member: &mut MemoryKeepalive) -> usize {
        let mut buffer = [0; beat::LEN + 1];
        std::iter::from_fn(|| member.receive(&mut buffer).unwrap()).count()
    }

    #[test]
    fn every_other_member_hears_a_beat_and_the_sender_does_not() {
        let (mut members, _) = group(3, 1);
        members[1].send(&[7; beat::LEN]).unwrap();
        assert_eq!(members.iter_mut().map(heard).collect::<Vec<_>>(), [1, 0, 1]);
    }

    #[test]
    fn loss_and_isolation_are_what_the_test_asked_for() {
        let (mut members, faults) = group(2, 1);
        faults.set_loss(500);
        (0..100).for_each(|_| members[0].send(&[7; beat::LEN]).unwrap());
        assert!((20..80).contains(&heard(&mut members[1])));
        faults.set_loss(0);
        faults.isolate(0, true);
        members[0].send(&[7; beat::LEN]).unwrap();
        assert_eq!(heard(&mut members[1]), 0);
        faults.isolate(0, false);
        members[0].send(&[7; beat::LEN]).unwrap();
        assert_eq!(heard(&mut members[1]), 1);
    }
}
