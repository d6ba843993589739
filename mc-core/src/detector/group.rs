//! [`Group`]: every member watches every other, with a [`Detector`] for each, behind one keepalive.
//!
//! ```text
//!                     by member            +-- Detector of 2 --+   beats for 2 ---+
//!   beats that arrive ----------> Group ---|                   |                  +--> one rising sequence, to all
//!                                          +-- Detector of 3 --+   beats for 3 ---+
//! ```
//!
//! Each pair keeps a session of its own, with its own poll and final, as RFC 5880 has it; but every beat goes to everybody, as
//! a multicast datagram or one to each, and proves to all who hear it that its sender lives. Hence the group renumbers: a
//! peer hears those beats for others in one sequence with its own. Whom the echo, poll and final are for is in the beat.
//!
//! No program uses it: a pair has one peer each, whom a [`Detector`] watches whose beats are for nobody in particular, and a
//! group of two would put other bytes into them ([`Beat::meant_for`](crate::wire::beat::Beat)). It stays, behind the feature
//! `group`, for a third member: the wire format has it, and `tests/group.rs` holds both to it.
//!
//! A silent member is suspected by each of the others for itself, and nobody else is: what one detector concludes does not
//! touch the others.

use super::{Action, Config, Detector, Event};
use crate::{id::Time, machine::Machine};

/// A detector for each peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    member: u8,
    peers: Vec<(u8, Detector)>,
    sequence: u64,
    foreign: u64,
    own: u64,
}

/// What is to be done, and about which peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupAction {
    /// Who is heard, suspect, or meant by the beat. A beat goes to all members all the same, and [`Action::Drain`] is for
    /// the one keepalive that they share.
    pub peer: u8,
    /// What.
    pub action: Action,
}

impl Group {
    /// Watches `peers`, from `now` on. Our own number and doubles among them are passed over.
    #[must_use]
    pub fn new(config: Config, peers: &[u8], now: Time) -> Self {
        let mut numbers = peers.to_vec();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.retain(|peer| *peer != config.member);
        let peers = numbers.into_iter().map(|peer| (peer, Detector::new(config, now))).collect();
        Self { member: config.member, peers, sequence: 0, foreign: 0, own: 0 }
    }

    /// Each peer's detector, for its state and counters.
    pub fn detectors(&self) -> impl Iterator<Item = (u8, &Detector)> {
        self.peers.iter().map(|(peer, detector)| (*peer, detector))
    }

    /// The detector of one peer.
    #[must_use]
    pub fn detector(&self, peer: u8) -> Option<&Detector> {
        self.detectors().find_map(|(number, detector)| (number == peer).then_some(detector))
    }

    /// Beats of nobody that we watch.
    #[must_use]
    pub fn foreign(&self) -> u64 {
        self.foreign
    }

    /// Our own beats, come back.
    #[must_use]
    pub fn own(&self) -> u64 {
        self.own
    }
}

impl Machine for Group {
    type Event = Event;
    type Action = GroupAction;

    fn handle(&mut self, now: Time, event: Event) {
        let Event::BeatReceived(beat) = event else {
            // (A detector that has not asked for `Drained` ignores it.)
            self.peers.iter_mut().for_each(|(_, detector)| detector.handle(now, event));
            return;
        };
        if beat.member == self.member {
            self.own += 1;
        } else if let Some((_, detector)) = self.peers.iter_mut().find(|(peer, _)| *peer == beat.member) {
            detector.handle(now, event);
        } else {
            self.foreign += 1;
        }
    }

    fn poll_action(&mut self) -> Option<GroupAction> {
        let next = |(peer, detector): &mut (u8, Detector)| detector.poll_action().map(|action| (*peer, action));
        let (peer, mut action) = self.peers.iter_mut().find_map(next)?;
        if let Action::SendBeat(beat) = &mut action {
            self.sequence += 1;
            (beat.sequence, beat.meant_for) = (self.sequence, peer);
        }
        Some(GroupAction { peer, action })
    }

    fn deadline(&self) -> Option<Time> {
        self.peers.iter().filter_map(|(_, detector)| detector.deadline()).min()
    }

    fn handle_timeout(&mut self, now: Time) {
        for (_, detector) in &mut self.peers {
            if detector.deadline().is_some_and(|at| at <= now) {
                detector.handle_timeout(now);
            }
        }
    }
}
