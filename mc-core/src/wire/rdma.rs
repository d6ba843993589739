//! RDMA: the endpoint, once per session beside the hello; and messages, SENDs on the reliable queue pair.
//!
//! ```text
//! endpoint:  0 magic "AIE1"  4 version u16   6 queue pairs u8 (1..=8)   7 flags u8 (1: has a beat queue pair, 2: beats go
//!            to the group)   8 GID 16       24 LID u16   26 zero u16   28 path MTU u32 (bytes)
//!           32 receives u32 36 PSN u32      40 queue pair numbers 8 x u32
//!           72 beat queue pair u32          76 beat Q_Key u32
//!           80 incarnation u64              88 beat group GID 16      104 zero 12     116 CRC32C of bytes 0..116
//!
//! message:   0 kind u8   1 zero u8   2 credits u16   4 serial u32   8 body 64   72 zero u32   76 CRC32C of bytes 0..76
//! ```
//!
//! | kind | body |
//! |---|---|
//! | 1 control | a control record |
//! | 2 slab | slot u32, bytes u32: all of the slab was written before into the slot, which is used up |
//! | 3 slot | slot u32, bytes u32, address u64, rkey u32: the receiver may write one slab there |
//! | 4 credits | none |
//! | 5 bye | none: the sender closes the link; the last message |
//! | 6 part | slot u32, bytes u32: so much of a slab, from its beginning, was written into the slot so far. A hint: it may be missing |
//!
//! Slabs are not in messages: they are written to where a slot says (RDMA WRITE), then announced. Slots are used in the order
//! in which they were offered, and each once. `credits` says how many receives the sender of the message has posted again
//! since its last message: as many messages more may be sent to it. `serial` counts the messages of one direction from 0.

use super::{VERSION, WireError, check_crc, check_magic, check_version, control, view};
use crate::id::Incarnation;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

/// "AIE1".
pub const MAGIC: u32 = u32::from_le_bytes(*b"AIE1");
/// Bytes of an endpoint.
pub const ENDPOINT_LEN: usize = 120;
/// Bytes of every message.
pub const MESSAGE_LEN: usize = 80;
/// Queue pairs of a link at most.
pub const MAX_QUEUES: usize = 8;
/// Receives that a peer may claim to have posted: no device has more, and a credit counter holds it.
const MAX_RECEIVES: u32 = 1 << 15;
const ENDPOINT: &str = "RDMA endpoint";
const MESSAGE: &str = "RDMA message";

/// Where one side of a link can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The port's GID.
    pub gid: [u8; 16],
    /// The port's LID; 0 on Ethernet.
    pub lid: u16,
    /// Bytes of a packet's payload that the port allows. The smaller of both is used.
    pub mtu: u32,
    /// Receives posted on the first queue pair: messages that may be sent before any credit is returned.
    pub receives: u32,
    /// First packet sequence number of all its queue pairs: 24 bits.
    pub psn: u32,
    /// The queue pairs. The first carries the messages, and the data if it is alone.
    pub queues: Queues,
    /// Where beats go, if over UD.
    pub beats: Option<Beats>,
    /// The session's.
    pub incarnation: Incarnation,
}

/// Numbers of queue pairs, 1 to [`MAX_QUEUES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    count: u8,
    numbers: [u32; MAX_QUEUES],
}

impl Queues {
    /// `None` for none or too many.
    #[must_use]
    pub fn new(numbers: &[u32]) -> Option<Self> {
        let count = u8::try_from(numbers.len()).ok()?;
        let mut all = [0; MAX_QUEUES];
        all.get_mut(..numbers.len())?.copy_from_slice(numbers);
        (count > 0).then_some(Self { count, numbers: all })
    }

    /// The numbers.
    #[must_use]
    pub fn numbers(&self) -> &[u32] {
        &self.numbers[..usize::from(self.count)]
    }
}

/// A keepalive's address: a UD queue pair at the endpoint's GID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beats {
    /// Its number.
    pub queue: u32,
    /// Its key; the top bit is 0 (IBTA 10.2.5: the others are privileged).
    pub qkey: u32,
    /// The multicast group that beats go to, if not to the queue pair.
    pub group: Option<[u8; 16]>,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEndpoint {
    magic: le::U32,
    version: le::U16,
    count: u8,
    flags: u8,
    gid: [u8; 16],
    lid: le::U16,
    zero: le::U16,
    mtu: le::U32,
    receives: le::U32,
    psn: le::U32,
    queues: [le::U32; MAX_QUEUES],
    beat_queue: le::U32,
    qkey: le::U32,
    incarnation: le::U64,
    group: [u8; 16],
    zero2: [u8; 12],
    crc: le::U32,
}
const _: () = assert!(size_of::<RawEndpoint>() == ENDPOINT_LEN);

const HAS_BEATS: u8 = 1;
const HAS_GROUP: u8 = 2;

impl Endpoint {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ENDPOINT_LEN] {
        let group = self.beats.and_then(|b| b.group);
        let flags = if self.beats.is_some() { HAS_BEATS } else { 0 } | if group.is_some() { HAS_GROUP } else { 0 };
        let mut raw = RawEndpoint {
            magic: MAGIC.into(),
            version: VERSION.into(),
            count: self.queues.count,
            flags,
            gid: self.gid,
            lid: self.lid.into(),
            zero: 0.into(),
            mtu: self.mtu.into(),
            receives: self.receives.into(),
            psn: self.psn.into(),
            queues: self.queues.numbers.map(Into::into),
            beat_queue: self.beats.map_or(0, |b| b.queue).into(),
            qkey: self.beats.map_or(0, |b| b.qkey).into(),
            incarnation: self.incarnation.0.into(),
            group: group.unwrap_or_default(),
            zero2: [0; 12],
            crc: 0.into(),
        };
        raw.crc = crc32c::crc32c(&raw.as_bytes()[..ENDPOINT_LEN - 4]).into();
        let mut out = [0; ENDPOINT_LEN];
        out.copy_from_slice(raw.as_bytes());
        out
    }

    /// Checks and reads an endpoint.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let raw: &RawEndpoint = view(ENDPOINT, bytes)?;
        check_magic(ENDPOINT, raw.magic.get(), MAGIC)?;
        check_crc(ENDPOINT, raw.crc.get(), &bytes[..ENDPOINT_LEN - 4])?;
        check_version(ENDPOINT, raw.version.get())?;
        let numbers = raw.queues.map(le::U32::get);
        let queues = numbers.get(..usize::from(raw.count)).and_then(Queues::new);
        let queues = queues.ok_or_else(|| field(ENDPOINT, "queue pairs", raw.count.into(), "1 to 8 are allowed"))?;
        let (mtu, receives, qkey) = (raw.mtu.get(), raw.receives.get(), raw.qkey.get());
        if !mtu.is_power_of_two() || !(256..=4096).contains(&mtu) {
            return Err(field(ENDPOINT, "path MTU", mtu.into(), "none of 256, 512, 1024, 2048, 4096"));
        }
        if !(2..=MAX_RECEIVES).contains(&receives) {
            return Err(field(ENDPOINT, "receives", receives.into(), "outside 2 to 32768"));
        }
        let wide = |number: &u32| *number >= 1 << 24;
        let largest = queues.numbers().iter().copied().chain([raw.psn.get(), raw.beat_queue.get()]).find(wide);
        if let Some(number) = largest {
            return Err(field(ENDPOINT, "queue pair or PSN", number.into(), "more than 24 bits"));
        }
        let group = (raw.flags & HAS_GROUP != 0).then_some(raw.group);
        let beats = Beats { queue: raw.beat_queue.get(), qkey: qkey & !(1 << 31), group };
        Ok(Self {
            gid: raw.gid,
            lid: raw.lid.get(),
            mtu,
            receives,
            psn: raw.psn.get(),
            queues,
            beats: (raw.flags & HAS_BEATS != 0).then_some(beats),
            incarnation: Incarnation(raw.incarnation.get()),
        })
    }
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Receives posted again since the sender's last message.
    pub credits: u16,
    /// 0, 1, 2, ... in each direction; wraps.
    pub serial: u32,
    /// What it says.
    pub body: Body,
}

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// A control record, still to be decoded.
    Control([u8; control::LEN]),
    /// A slab is complete.
    Slab {
        /// The slot that it is in.
        slot: u32,
        /// Its bytes, header included.
        len: u32,
    },
    /// Room for a slab.
    Slot(Slot),
    /// A slab is on its way; a hint, so that its checksum can be computed meanwhile.
    Part {
        /// The slot that it is written into.
        slot: u32,
        /// Bytes of it that are there, from its beginning.
        len: u32,
    },
    /// Only credits.
    Credits,
    /// The sender closes the link.
    Bye,
}

/// Room for one slab, in the memory of the message's sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Counts from 0; wraps.
    pub number: u32,
    /// Bytes.
    pub len: u32,
    /// Where it begins.
    pub addr: u64,
    /// The key of its region.
    pub rkey: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawMessage {
    kind: u8,
    zero: u8,
    credits: le::U16,
    serial: le::U32,
    body: [u8; control::LEN],
    zero2: le::U32,
    crc: le::U32,
}
const _: () = assert!(size_of::<RawMessage>() == MESSAGE_LEN);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSlot {
    number: le::U32,
    len: le::U32,
    addr: le::U64,
    rkey: le::U32,
    zero: [u8; control::LEN - 20],
}
const _: () = assert!(size_of::<RawSlot>() == control::LEN);

impl RawSlot {
    fn bytes(number: u32, len: u32, addr: u64, rkey: u32) -> [u8; control::LEN] {
        let zero = [0; control::LEN - 20];
        let raw = Self { number: number.into(), len: len.into(), addr: addr.into(), rkey: rkey.into(), zero };
        zerocopy::transmute!(raw)
    }
}

impl Message {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; MESSAGE_LEN] {
        let (kind, body) = match self.body {
            Body::Control(record) => (1, record),
            Body::Slab { slot, len } => (2, RawSlot::bytes(slot, len, 0, 0)),
            Body::Slot(Slot { number, len, addr, rkey }) => (3, RawSlot::bytes(number, len, addr, rkey)),
            Body::Credits => (4, [0; control::LEN]),
            Body::Bye => (5, [0; control::LEN]),
            Body::Part { slot, len } => (6, RawSlot::bytes(slot, len, 0, 0)),
        };
        let mut raw = RawMessage {
            kind,
            zero: 0,
            credits: self.credits.into(),
            serial: self.serial.into(),
            body,
            zero2: 0.into(),
            crc: 0.into(),
        };
        raw.crc = crc32c::crc32c(&raw.as_bytes()[..MESSAGE_LEN - 4]).into();
        zerocopy::transmute!(raw)
    }

    /// Checks and reads a message. What a slot or a slab says is the link's to judge.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let raw: &RawMessage = view(MESSAGE, bytes)?;
        check_crc(MESSAGE, raw.crc.get(), &bytes[..MESSAGE_LEN - 4])?;
        let slot: RawSlot = zerocopy::transmute!(raw.body);
        let (number, len) = (slot.number.get(), slot.len.get());
        let body = match raw.kind {
            1 => Body::Control(raw.body),
            2 => Body::Slab { slot: number, len },
            3 => Body::Slot(Slot { number, len, addr: slot.addr.get(), rkey: slot.rkey.get() }),
            4 => Body::Credits,
            5 => Body::Bye,
            6 => Body::Part { slot: number, len },
            kind => return Err(field(MESSAGE, "kind", kind.into(), "no such kind")),
        };
        Ok(Self { credits: raw.credits.get(), serial: raw.serial.get(), body })
    }
}

fn field(record: &'static str, field: &'static str, value: u64, why: &'static str) -> WireError {
    WireError::Field { record, field, value, why }
}
