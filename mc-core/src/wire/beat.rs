//! A beat: one datagram of 96 bytes, authenticated with the key from the hello.
//!
//! ```text
//!  0 magic "AIB1"   4 version u16   6 flags u16 (1 poll, 2 final, 4 for both)   8 incarnation u64
//! 16 generation u64                24 last committed epoch u64
//! 32 sequence u64                  40 sent at u64 (sender's clock, ns)
//! 48 echo of the newest `sent at` received u64 (0: none)   56 ns between receiving that and sending this u64
//! 64 desired transmit interval µs u32   68 required receive interval µs u32
//! 72 detect multiplier u8   73 state u8   74 member u8   75 the member that echo, poll and final are for u8 (0: all)   76 zero 4
//! 80 BLAKE3 keyed hash of bytes 0..80, first 16 bytes
//! ```
//!
//! The vocabulary (desired transmit, required receive, detect multiplier, poll, final) is RFC 5880's; the frame is ours.

use super::{VERSION, WireError, check_magic, check_version, view};
use crate::id::{Epoch, Generation, Incarnation};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

/// "AIB1".
pub const MAGIC: u32 = u32::from_le_bytes(*b"AIB1");
/// Bytes of every beat.
pub const LEN: usize = 96;
const SIGNED: usize = 80;
const RECORD: &str = "beat";

/// The secret that beats of one session are signed with: drawn by the primary, carried by the hello.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BeatKey(pub [u8; 32]);

impl std::fmt::Debug for BeatKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BeatKey(…)")
    }
}

/// What the sender thinks of the session (RFC 5880's `Sta`, by other names).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BeatState {
    /// It has not heard the other side yet.
    Waiting = 1,
    /// It hears the other side.
    Up = 2,
    /// It suspects the other side.
    Suspect = 3,
}

/// A beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Beat {
    /// The session.
    pub incarnation: Incarnation,
    /// The sender's generation.
    pub generation: Generation,
    /// The last epoch that the sender knows to be committed.
    pub committed: Epoch,
    /// Counts from 1; a beat whose number is not higher than the last one's is a duplicate or late.
    pub sequence: u64,
    /// The sender's clock, ns.
    pub sent_at: u64,
    /// The newest `sent_at` that the sender received, 0 for none.
    pub echo: u64,
    /// ns that passed at the sender since it received that.
    pub echo_delay: u64,
    /// How often the sender would like to send, µs.
    pub desired_tx_us: u32,
    /// How often the sender is willing to receive, µs.
    pub required_rx_us: u32,
    /// After this many missed beats the *receiver* of this beat suspects its sender.
    pub detect_multiplier: u8,
    /// See [`BeatState`].
    pub state: BeatState,
    /// The sender's number in the group, from 1.
    pub member: u8,
    /// The member that the echo, and poll and final, are meant for; 0: whoever hears it (there are only two).
    pub meant_for: u8,
    /// The sender wants its new parameters confirmed.
    pub poll: bool,
    /// The sender confirms.
    pub is_final: bool,
    /// With poll: the sender's parameters are wished of the receiver as well. A receiver that does not know the flag answers
    /// the poll all the same, and keeps its own.
    pub for_both: bool,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: le::U32,
    version: le::U16,
    flags: le::U16,
    incarnation: le::U64,
    generation: le::U64,
    committed: le::U64,
    sequence: le::U64,
    sent_at: le::U64,
    echo: le::U64,
    echo_delay: le::U64,
    desired_tx_us: le::U32,
    required_rx_us: le::U32,
    detect_multiplier: u8,
    state: u8,
    member: u8,
    meant_for: u8,
    zero: [u8; 4],
    mac: [u8; 16],
}
const _: () = assert!(size_of::<Raw>() == LEN);

fn mac(key: &BeatKey, bytes: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&blake3::keyed_hash(&key.0, bytes).as_bytes()[..16]);
    out
}

impl Beat {
    /// The datagram.
    #[must_use]
    pub fn encode(&self, key: &BeatKey) -> [u8; LEN] {
        let mut raw = Raw {
            magic: MAGIC.into(),
            version: VERSION.into(),
            flags: (u16::from(self.poll) | u16::from(self.is_final) << 1 | u16::from(self.for_both) << 2).into(),
            incarnation: self.incarnation.0.into(),
            generation: self.generation.0.into(),
            committed: self.committed.0.into(),
            sequence: self.sequence.into(),
            sent_at: self.sent_at.into(),
            echo: self.echo.into(),
            echo_delay: self.echo_delay.into(),
            desired_tx_us: self.desired_tx_us.into(),
            required_rx_us: self.required_rx_us.into(),
            detect_multiplier: self.detect_multiplier,
            state: self.state as u8,
            member: self.member,
            meant_for: self.meant_for,
            zero: [0; 4],
            mac: [0; 16],
        };
        raw.mac = mac(key, &raw.as_bytes()[..SIGNED]);
        let mut out = [0; LEN];
        out.copy_from_slice(raw.as_bytes());
        out
    }

    /// What it says to `member`: that the sender lives, to everybody; the rest only to whom it is meant for.
    #[must_use]
    pub fn as_heard_by(self, member: u8) -> Self {
        if [0, member].contains(&self.meant_for) {
            return self;
        }
        Self { echo: 0, echo_delay: 0, poll: false, is_final: false, for_both: false, ..self }
    }

    /// Checks and reads a datagram. Only one of exactly [`LEN`] bytes with the session's key is a beat.
    pub fn decode(bytes: &[u8], key: &BeatKey) -> Result<Self, WireError> {
        let raw: &Raw = view(RECORD, bytes)?;
        check_magic(RECORD, raw.magic.get(), MAGIC)?;
        check_version(RECORD, raw.version.get())?;
        // blake3::Hash compares in constant time, but not when truncated; fold the difference instead.
        let wanted = mac(key, &bytes[..SIGNED]);
        if bytes.len() != LEN || wanted.iter().zip(raw.mac).fold(0, |d, (a, b)| d | (a ^ b)) != 0 {
            return Err(WireError::Unauthentic { record: RECORD });
        }
        let field = |field, value, why| WireError::Field { record: RECORD, field, value, why };
        let state = match raw.state {
            1 => BeatState::Waiting,
            2 => BeatState::Up,
            3 => BeatState::Suspect,
            other => return Err(field("state", u64::from(other), "no such state")),
        };
        if raw.detect_multiplier == 0 {
            return Err(field("detect_multiplier", 0, "RFC 5880 6.8.6: must not be zero"));
        }
        let flags = raw.flags.get();
        Ok(Self {
            incarnation: Incarnation(raw.incarnation.get()),
            generation: Generation(raw.generation.get()),
            committed: Epoch(raw.committed.get()),
            sequence: raw.sequence.get(),
            sent_at: raw.sent_at.get(),
            echo: raw.echo.get(),
            echo_delay: raw.echo_delay.get(),
            desired_tx_us: raw.desired_tx_us.get(),
            required_rx_us: raw.required_rx_us.get(),
            detect_multiplier: raw.detect_multiplier,
            state,
            member: raw.member,
            meant_for: raw.meant_for,
            poll: flags & 1 != 0,
            is_final: flags & 2 != 0,
            for_both: flags & 4 != 0,
        })
    }
}
