//! Control records: 64 bytes, in order with the slabs (on RDMA: an inline SEND).
//!
//! ```text
//!  0 magic "AIC1"   4 kind u16   6 version u16   8 incarnation u64
//! 16 generation u64             24 epoch u64
//! 32 a u64          40 b u64    48 c u64        56 flags u32  60 CRC32C of bytes 0..60
//! ```
//!
//! | kind | from | a | b | c |
//! |---|---|---|---|---|
//! | 1 commit | primary | slabs in the epoch | bytes in them | bytes of device state |
//! | 2 ACK | standby | free staging slabs | 0 | 0 |
//! | 3 NACK | standby | [`NackReason`] | 0 | 0 |
//! | 4 rehearse | primary | 0 | 0 | 0 |
//! | 5 goodbye | either | [`GoodbyeReason`] | 0 | 0 |
//! | 6 rerouted | either | items that arrived by RDMA | 0 | 0 |
//! | 7 rehearsed | standby | 0 | 0 | 0 |
//! | 8 words | standby, before a NACK | 24 bytes of UTF-8, padded with zeros | | |
//!
//! Flags: 1, of a commit: the VM's output was held when this epoch was captured.
//!
//! Rerouted is the first record of a connection that takes over from RDMA, and no other link carries it; its generation and
//! epoch are 0. See [`crate::failover`].

use super::{VERSION, WireError, check_crc, check_magic, check_version, view};
use crate::id::{Epoch, Generation, Incarnation};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

/// "AIC1".
pub const MAGIC: u32 = u32::from_le_bytes(*b"AIC1");
/// Bytes of every control record.
pub const LEN: usize = 64;
/// Bytes of text in a record of words.
pub const WORDS: usize = 24;
const HELD: u32 = 1;
const RECORD: &str = "control record";

/// A control record, with the session that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Control {
    /// The connection; a record of another one is refused.
    pub incarnation: Incarnation,
    /// The generation that is replicated.
    pub generation: Generation,
    /// The epoch spoken of.
    pub epoch: Epoch,
    /// What is said.
    pub body: Body,
}

/// What a control record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Body {
    /// All slabs of the epoch were sent before this record.
    Commit {
        /// How many slabs; their indices are 0..slabs.
        slabs: u32,
        /// Bytes in them, headers included.
        bytes: u64,
        /// Bytes of device state among them.
        device_bytes: u64,
        /// The VM's output was held when the epoch was captured: nobody has seen what this epoch does not have.
        held: bool,
    },
    /// The standby's software has the whole epoch, checked it, and will not lose it (I2).
    Ack {
        /// Slabs that the standby can still stage.
        free_slabs: u32,
    },
    /// The standby cannot commit the epoch, now or ever.
    Nack(NackReason),
    /// From this epoch on the VM may have another make: rehearse the first that is committed at or after it.
    Rehearse,
    /// A throw-away copy of the VM has loaded this epoch.
    Rehearsed,
    /// A part of what a NACK that follows is about, in words.
    Words([u8; WORDS]),
    /// The sender closes the session on purpose.
    Goodbye(GoodbyeReason),
    /// From link to link: the first path failed, what follows comes this way.
    Rerouted {
        /// So many slabs and control records of the receiver's arrived by the first path; it sends the rest again.
        received: u64,
    },
}

/// Why an epoch is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NackReason {
    /// It needs more staging than the standby has, and no spill file is configured.
    TooLarge,
    /// It is not the epoch after the last one, or slabs are missing or twice.
    OutOfOrder,
    /// Its content does not fit the agreed profile.
    Malformed,
    /// The standby could not write its image or its spill file.
    Storage,
    /// The standby's QEMU could not load it.
    Rehearsal,
}

/// Why a session ends on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GoodbyeReason {
    /// The operator ended protection; the register was set to solo before.
    Unprotected,
    /// The guest shut down.
    GuestGone,
    /// The sender lost the arbitration.
    Fenced,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: le::U32,
    kind: le::U16,
    version: le::U16,
    incarnation: le::U64,
    generation: le::U64,
    epoch: le::U64,
    a: le::U64,
    b: le::U64,
    c: le::U64,
    flags: le::U32,
    crc: le::U32,
}
const _: () = assert!(size_of::<Raw>() == LEN);

impl Control {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; LEN] {
        let (kind, a, b, c) = match self.body {
            Body::Commit { slabs, bytes, device_bytes, .. } => (1, u64::from(slabs), bytes, device_bytes),
            Body::Ack { free_slabs } => (2, u64::from(free_slabs), 0, 0),
            Body::Nack(reason) => (3, reason.code(), 0, 0),
            Body::Rehearse => (4, 0, 0, 0),
            Body::Goodbye(reason) => (5, reason.code(), 0, 0),
            Body::Rerouted { received } => (6, received, 0, 0),
            Body::Rehearsed => (7, 0, 0, 0),
            Body::Words(text) => {
                let [a, b, c] = [0, 8, 16].map(|at| le::U64::from_bytes(std::array::from_fn(|i| text[at + i])).get());
                (8, a, b, c)
            }
        };
        let held = matches!(self.body, Body::Commit { held: true, .. });
        let mut raw = Raw {
            magic: MAGIC.into(),
            kind: le::U16::new(kind),
            version: VERSION.into(),
            incarnation: self.incarnation.0.into(),
            generation: self.generation.0.into(),
            epoch: self.epoch.0.into(),
            a: a.into(),
            b: b.into(),
            c: c.into(),
            flags: if held { HELD } else { 0 }.into(),
            crc: 0.into(),
        };
        raw.crc = crc32c::crc32c(&raw.as_bytes()[..LEN - 4]).into();
        let mut out = [0; LEN];
        out.copy_from_slice(raw.as_bytes());
        out
    }

    /// Checks and reads a record.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let raw: &Raw = view(RECORD, bytes)?;
        check_magic(RECORD, raw.magic.get(), MAGIC)?;
        check_crc(RECORD, raw.crc.get(), &bytes[..LEN - 4])?;
        check_version(RECORD, raw.version.get())?;
        let a = raw.a.get();
        let body = match raw.kind.get() {
            1 => Body::Commit {
                slabs: small("slabs", a)?,
                bytes: raw.b.get(),
                device_bytes: raw.c.get(),
                held: raw.flags.get() & HELD != 0,
            },
            2 => Body::Ack { free_slabs: small("free_slabs", a)? },
            3 => Body::Nack(NackReason::from_code(a)?),
            4 => Body::Rehearse,
            5 => Body::Goodbye(GoodbyeReason::from_code(a)?),
            6 => Body::Rerouted { received: a },
            7 => Body::Rehearsed,
            8 => {
                let text = [raw.a, raw.b, raw.c].map(|part| part.to_bytes());
                Body::Words(std::array::from_fn(|i| text[i / 8][i % 8]))
            }
            kind => return Err(field("kind", u64::from(kind), "no such kind")),
        };
        Ok(Self {
            incarnation: Incarnation(raw.incarnation.get()),
            generation: Generation(raw.generation.get()),
            epoch: Epoch(raw.epoch.get()),
            body,
        })
    }
}

fn field(field: &'static str, value: u64, why: &'static str) -> WireError {
    WireError::Field { record: RECORD, field, value, why }
}

fn small(name: &'static str, value: u64) -> Result<u32, WireError> {
    u32::try_from(value).map_err(|_| field(name, value, "more than 32 bits"))
}

impl NackReason {
    const ALL: [Self; 5] = [Self::TooLarge, Self::OutOfOrder, Self::Malformed, Self::Storage, Self::Rehearsal];

    fn code(self) -> u64 {
        1 + Self::ALL.iter().position(|r| *r == self).map_or(0, |i| i as u64)
    }

    fn from_code(code: u64) -> Result<Self, WireError> {
        pick(&Self::ALL, code)
    }
}

impl GoodbyeReason {
    const ALL: [Self; 3] = [Self::Unprotected, Self::GuestGone, Self::Fenced];

    fn code(self) -> u64 {
        1 + Self::ALL.iter().position(|r| *r == self).map_or(0, |i| i as u64)
    }

    fn from_code(code: u64) -> Result<Self, WireError> {
        pick(&Self::ALL, code)
    }
}

/// Codes count from 1, so that a zeroed record means nothing.
fn pick<T: Copy>(all: &[T], code: u64) -> Result<T, WireError> {
    let index = usize::try_from(code.wrapping_sub(1)).unwrap_or(usize::MAX);
    all.get(index).copied().ok_or_else(|| field("reason", code, "no such reason"))
}
