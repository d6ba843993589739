//! Which intervals are in force: RFC 5880 6.8.2 to 6.8.4, 6.8.7 and 6.8.12.
//!
//! ```text
//!        parameters change               first beat with them leaves          final, echoing that beat
//!  Settled ------------------> Wanted ---------------------------> Polling ----------------------------> Settled
//!     ^                          ^                                    |
//!     |                          +---------- change again ------------+
//! ```
//!
//! New parameters are advertised in the next beat. What would make a live peer look dead waits for the peer's final:
//! sending less often (it must have raised its detection time first), and expecting more often (it must have sped up
//! first). What cannot hurt is in force at once: sending more often, expecting less often, another multiplier.
//!
//! **One wish for both sides.** A side's interval bounds only half of what an operator means by "beats every 5 ms": the peer's
//! own interval bounds the other half, and the slower of the two is in force. A *proposal* therefore goes out as a poll that
//! is marked `for_both`; the peer takes the parameters for its own (no shorter than what its machine can time, its *floor*),
//! polls in its turn, and so both directions end up with them. Repeated polls are harmless: taking what one has is no
//! change. Two proposals that cross would swap places for ever; of two, the lower member's stands.
//!
//! **What the peer may hold against us** ([`Timing::patience`]): its detection time follows the newest of our beats that it
//! has heard. From the first word of a change until the peer echoes a beat that has it, that may be the old parameters
//! or any that were advertised since, so the shortest of them counts.
//!
//! The RFC does not say how a late final of an older poll is told from that of the newest (6.5). Our beats echo the newest
//! `sent at` received, so a final counts only if what it echoes is not older than the first beat with the new parameters.

use super::config::{MAX_INTERVAL, MIN_INTERVAL, Parameters};
use crate::wire::beat::Beat;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Poll {
    Settled,
    Wanted,
    Polling { since: u64 },
}

/// What of our transmit side the peer may have heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Told {
    /// It has the newest.
    Known,
    /// The newest has not left yet.
    Not,
    /// The first beat with the newest left then.
    Sent { since: u64 },
}

/// Our parameters, as advertised and as in force, and the poll that closes the gap between them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Timing {
    advertised: Parameters,
    tx_us: u32,
    rx_us: u32,
    poll: Poll,
    /// The poll proposes them to the peer as well.
    for_both: bool,
    /// No peer makes us beat or listen faster than this, µs.
    floor_us: u32,
    told: Told,
    /// The shortest transmit interval, and the smallest multiplier, that the peer may hold of us.
    held: (u32, u8),
}

impl Timing {
    pub(super) fn new(parameters: Parameters) -> Self {
        Self {
            advertised: parameters,
            tx_us: parameters.tx_us,
            rx_us: parameters.rx_us,
            poll: Poll::Settled,
            for_both: false,
            floor_us: u32::try_from(MIN_INTERVAL.as_micros()).unwrap_or(u32::MAX),
            told: Told::Known, // nobody holds anything else
            held: (parameters.tx_us, parameters.multiplier),
        }
    }

    /// No proposal of the peer's makes our intervals shorter than this.
    pub(super) fn set_floor(&mut self, floor: Duration) {
        let floor = floor.clamp(MIN_INTERVAL, MAX_INTERVAL);
        self.floor_us = u32::try_from(floor.as_micros()).unwrap_or(u32::MAX);
    }

    pub(super) fn advertised(&self) -> Parameters {
        self.advertised
    }

    /// Takes new parameters. The rule holds before the peer is heard, too: it may hear us all the same.
    pub(super) fn change(&mut self, new: Parameters) {
        let intervals_changed = (new.tx_us, new.rx_us) != (self.advertised.tx_us, self.advertised.rx_us);
        if new != self.advertised {
            self.told = Told::Not;
            self.held = (self.held.0.min(new.tx_us), self.held.1.min(new.multiplier));
        }
        self.advertised = new;
        self.for_both = false;
        if intervals_changed {
            self.tx_us = self.tx_us.min(new.tx_us);
            self.rx_us = self.rx_us.max(new.rx_us);
            self.poll = Poll::Wanted;
        }
    }

    /// Takes new parameters, and asks the peer to take them, too. Polls even if ours do not change.
    pub(super) fn propose(&mut self, new: Parameters) {
        self.change(new);
        self.poll = Poll::Wanted;
        self.for_both = true;
    }

    /// The peer proposes parameters. Says whether ours changed.
    pub(super) fn proposed(&mut self, beat: &Beat, ours_stands: bool) -> bool {
        if self.for_both && ours_stands && self.polling() {
            return false;
        }
        let interval = |us: u32| Duration::from_micros(us.max(self.floor_us).into());
        let wished =
            Parameters::new(interval(beat.desired_tx_us), interval(beat.required_rx_us), beat.detect_multiplier);
        let Some(wished) = wished.ok().filter(|wished| *wished != self.advertised) else { return false };
        self.change(wished);
        true
    }

    /// Whether beats that bear the poll flag propose our parameters to the peer.
    pub(super) fn proposing(&self) -> bool {
        self.for_both && self.polling()
    }

    /// A beat with the advertised parameters leaves. Says whether it bears the poll flag; one with the final flag must
    /// not (6.5).
    pub(super) fn beat_leaves(&mut self, sent_at: u64, is_final: bool) -> bool {
        if self.poll == Poll::Wanted {
            self.poll = Poll::Polling { since: sent_at };
        }
        if self.told == Told::Not {
            self.told = Told::Sent { since: sent_at };
        }
        self.poll != Poll::Settled && !is_final
    }

    /// The peer's newest beat arrived: it may end our poll.
    pub(super) fn beat_arrived(&mut self, beat: &Beat) {
        if let Told::Sent { since } = self.told
            && beat.echo >= since
        {
            self.held = (self.advertised.tx_us, self.advertised.multiplier);
            self.told = Told::Known;
        }
        if let Poll::Polling { since } = self.poll
            && beat.is_final
            && beat.echo >= since
        {
            (self.tx_us, self.rx_us) = (self.advertised.tx_us, self.advertised.rx_us);
            self.poll = Poll::Settled;
            self.for_both = false;
        }
    }

    /// Whether the peer has yet to confirm our newest parameters.
    pub(super) fn polling(&self) -> bool {
        self.poll != Poll::Settled
    }

    /// How often we send, before jitter: the slower of what we desire and what the peer accepts.
    pub(super) fn transmit_interval(&self, peer: Option<&Beat>) -> Duration {
        let accepted = peer.map_or(0, |beat| beat.required_rx_us);
        Duration::from_micros(self.tx_us.max(accepted).into()).min(MAX_INTERVAL)
    }

    /// How often the peer has agreed to send.
    pub(super) fn receive_interval(&self, peer: &Beat) -> Duration {
        Duration::from_micros(self.rx_us.max(peer.desired_tx_us).into()).min(MAX_INTERVAL)
    }

    /// How long the peer bears our silence at least, whatever it has heard of a change that is under way. Its own receive
    /// interval never falls below the one of its newest beat: to expect more often it needs our final, and we give that
    /// only to a beat that says so.
    pub(super) fn patience(&self, peer: Option<&Beat>) -> Duration {
        let accepted = peer.map_or(0, |beat| beat.required_rx_us);
        let interval = Duration::from_micros(self.held.0.max(accepted).into()).min(MAX_INTERVAL);
        interval * self.held.1.into()
    }

    /// How long the peer may be silent (6.8.4).
    pub(super) fn detection_time(&self, peer: &Beat) -> Duration {
        self.receive_interval(peer) * peer.detect_multiplier.into()
    }
}

/// Shortens `interval` by 10 to 25 %: the jitter that 6.8.7 asks of a multiplier of 1, for every multiplier.
///
/// Jitter keeps sessions from marching in step; its lower bound of 10 % is slack on the wire for the last beat before the
/// detection time is over, so that a multiplier of K survives K - 1 losses in a row. Drawn from a hash of the session, the
/// member and the sequence (splitmix64's mixer), because a machine is a value and has no dice. So whoever hears a beat knows when
/// the next one is due: so long after it.
#[must_use]
pub fn jittered(interval: Duration, incarnation: u64, member: u8, sequence: u64) -> Duration {
    let mut z = incarnation ^ u64::from(member).rotate_right(8) ^ sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let percent = 75 + ((z ^ (z >> 31)) % 16) as u32;
    interval * percent / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_keeps_to_its_bounds_and_moves() {
        let interval = Duration::from_millis(10);
        let drawn: Vec<_> = (1..=1000).map(|n| jittered(interval, 7, 1, n)).collect();
        assert!(drawn.iter().all(|d| (interval * 75 / 100..=interval * 90 / 100).contains(d)));
        let distinct: std::collections::BTreeSet<_> = drawn.iter().collect();
        assert_eq!(distinct.len(), 16);
        assert!(drawn != (1..=1000).map(|n| jittered(interval, 7, 2, n)).collect::<Vec<_>>(), "members march in step");
    }
}
