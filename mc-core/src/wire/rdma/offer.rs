//! What the two sides of a link tell each other when the system's connection manager (rdma_cm(7)) connects them: the part of
//! an [`Endpoint`](super::Endpoint) that it does not know. It rides as the private data of the request, and of its acceptance.
//!
//! ```text
//! offer:     0 magic "AIO1"  4 version u16   6 queue pairs u8 (1)   7 flags u8 (as an endpoint's)   8 incarnation u64
//!           16 receives u32 20 beat queue pair u32                 24 beat Q_Key u32  28 beat group GID 16
//!           44 CRC32C of bytes 0..44
//! ```
//!
//! A request has room for 56 bytes (rdma_connect(3): `RDMA_PS_TCP`); what follows the offer there is zeros, and ignored.
//! GID, LID, queue pair, MTU and sequence numbers are the connection manager's to say.

use super::{Beats, HAS_BEATS, HAS_GROUP, MAX_RECEIVES, field};
use crate::{
    id::Incarnation,
    wire::{VERSION, WireError, check_crc, check_magic, check_version, view},
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

/// "AIO1".
pub const OFFER_MAGIC: u32 = u32::from_le_bytes(*b"AIO1");
/// Bytes of an offer.
pub const OFFER_LEN: usize = 48;
const OFFER: &str = "rdma_cm offer";

/// One side of a link that the connection manager makes. It has one queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Receives posted: messages that may be sent before any credit is returned.
    pub receives: u32,
    /// Where beats go, if over UD.
    pub beats: Option<Beats>,
    /// The session's.
    pub incarnation: Incarnation,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawOffer {
    magic: le::U32,
    version: le::U16,
    count: u8,
    flags: u8,
    incarnation: le::U64,
    receives: le::U32,
    beat_queue: le::U32,
    qkey: le::U32,
    group: [u8; 16],
    crc: le::U32,
}
const _: () = assert!(size_of::<RawOffer>() == OFFER_LEN);

impl Offer {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; OFFER_LEN] {
        let group = self.beats.and_then(|b| b.group);
        let flags = if self.beats.is_some() { HAS_BEATS } else { 0 } | if group.is_some() { HAS_GROUP } else { 0 };
        let mut raw = RawOffer {
            magic: OFFER_MAGIC.into(),
            version: VERSION.into(),
            count: 1,
            flags,
            incarnation: self.incarnation.0.into(),
            receives: self.receives.into(),
            beat_queue: self.beats.map_or(0, |b| b.queue).into(),
            qkey: self.beats.map_or(0, |b| b.qkey).into(),
            group: group.unwrap_or_default(),
            crc: 0.into(),
        };
        raw.crc = crc32c::crc32c(&raw.as_bytes()[..OFFER_LEN - 4]).into();
        zerocopy::transmute!(raw)
    }

    /// Checks and reads an offer.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let raw: &RawOffer = view(OFFER, bytes)?;
        check_magic(OFFER, raw.magic.get(), OFFER_MAGIC)?;
        check_crc(OFFER, raw.crc.get(), &bytes[..OFFER_LEN - 4])?;
        check_version(OFFER, raw.version.get())?;
        if raw.count != 1 {
            return Err(field(OFFER, "queue pairs", raw.count.into(), "rdma_cm connects one"));
        }
        let (receives, queue) = (raw.receives.get(), raw.beat_queue.get());
        if !(2..=MAX_RECEIVES).contains(&receives) {
            return Err(field(OFFER, "receives", receives.into(), "outside 2 to 32768"));
        }
        if queue >= 1 << 24 {
            return Err(field(OFFER, "beat queue pair", queue.into(), "more than 24 bits"));
        }
        let group = (raw.flags & HAS_GROUP != 0).then_some(raw.group);
        let beats = Beats { queue, qkey: raw.qkey.get() & !(1 << 31), group };
        let beats = (raw.flags & HAS_BEATS != 0).then_some(beats);
        Ok(Self { receives, beats, incarnation: Incarnation(raw.incarnation.get()) })
    }
}
