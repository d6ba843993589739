//! The handshake, once per connection, on the control connection.
//!
//! ```text
//! frame:  0 magic "AIH1"   4 kind u16   6 zero u16   8 len u32   12 CRC32C of bytes 0..12 and the body   16 body (len bytes)
//! ```
//!
//! | kind | who | body |
//! |---|---|---|
//! | 1 hello | primary, then standby | 216 bytes, below |
//! | 2 profile | primary, then standby | JSON, at most [`MAX_PROFILE`]: machine, CPU, devices, RAM blocks |
//! | 3 ready | standby | none: the profiles match, send slabs |
//! | 5 endpoint | primary, then standby | 120 bytes, [`super::rdma`]: after the profile, if the hello says so |
//! | 4 refuse | either | UTF-8, at most 1024 bytes: why; then it closes |
//!
//! ```text
//! hello:  0 lowest version u16   2 highest version u16   4 slab size u32   8 staging slabs u32  12 transports u32
//!        16 incarnation u64     24 generation u64       32 vm name 48     80 node name 48
//!       128 beat key 32        160 beat port u16       162 detect multiplier u8   163 purpose u8    164 zero 4
//!       168 desired transmit interval µs u32           172 required receive interval µs u32    176 sender's id 16
//!       192 id of the witness that the sender asks 16 (zeros: it asks none)
//!       208 instance of the sender's copy u64
//! ```
//!
//! `purpose`, since version 3: 0, protect this VM; 1, measure beats. In version 2 it was zero, and a VM of the name
//! "keepalive-probe" stood for the other; that name is still sent, so that a program of version 2 understands. In a hello that
//! knows no version above 2 the name counts, and in any other the purpose.
//!
//! `transports`: bit 0, an RDMA endpoint follows the profile. The standby sets it only if the primary did: then the link is an
//! RDMA one, and this connection stays as the way to fall back to.
//!
//! The primary offers; the standby answers with the version it takes as both lowest and highest, with its own staging,
//! node, id, witness, beat port and intervals, and echoes incarnation, generation, VM, key and slab size.

use super::{WireError, WireName, check_magic, view};
use crate::{
    id::{Generation, Incarnation, Name, Node, NodeId, WitnessId},
    wire::{beat::BeatKey, slab},
};
use std::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

/// "AIH1".
pub const MAGIC: u32 = u32::from_le_bytes(*b"AIH1");
/// Bytes before a frame's body.
pub const FRAME_LEN: usize = 16;
/// Bytes of a hello's body.
pub const HELLO_LEN: usize = 216;
/// Bytes of a profile at most.
pub const MAX_PROFILE: usize = 1 << 20;
/// Bytes of a refusal at most.
pub const MAX_REFUSAL: usize = 1024;
/// The versions of a session that this build knows, lowest and highest. Peers take the highest that both know.
pub const VERSIONS: (u16, u16) = (2, 3);
/// The first version whose hello has a purpose.
const WITH_PURPOSE: u16 = 3;
/// The VM's name that stood for a probe in version 2.
const PROBE_OF_VERSION_2: &str = "keepalive-probe";
const RECORD: &str = "session frame";
const HELLO: &str = "hello";

/// Kinds of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Kind {
    /// See [`Hello`].
    Hello = 1,
    /// The VM's profile, JSON.
    Profile = 2,
    /// The profiles match.
    Ready = 3,
    /// Why not.
    Refuse = 4,
    /// See [`super::rdma::Endpoint`].
    Endpoint = 5,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What follows.
    pub kind: Kind,
    /// Bytes that follow.
    pub len: usize,
    /// Of the bytes before the checksum.
    head_crc: u32,
    crc: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawFrame {
    magic: le::U32,
    kind: le::U16,
    zero: le::U16,
    len: le::U32,
    crc: le::U32,
}
const _: () = assert!(size_of::<RawFrame>() == FRAME_LEN);

/// Header and body of a frame. Bodies longer than their kind allows are cut off by the receiver's [`FrameHeader::decode`].
#[must_use]
pub fn encode_frame(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut raw = RawFrame {
        magic: MAGIC.into(),
        kind: le::U16::new(kind as u16),
        zero: 0.into(),
        len: u32::try_from(body.len()).expect("callers keep to MAX_PROFILE").into(),
        crc: 0.into(),
    };
    raw.crc = crc32c::crc32c_append(crc32c::crc32c(&raw.as_bytes()[..FRAME_LEN - 4]), body).into();
    let mut out = Vec::with_capacity(FRAME_LEN + body.len());
    out.extend_from_slice(raw.as_bytes());
    out.extend_from_slice(body);
    out
}

impl FrameHeader {
    /// Reads the first [`FRAME_LEN`] bytes of a frame, and bounds the rest.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let raw: &RawFrame = view(RECORD, bytes)?;
        check_magic(RECORD, raw.magic.get(), MAGIC)?;
        let len = raw.len.get() as usize;
        let (kind, limit) = match raw.kind.get() {
            1 => (Kind::Hello, HELLO_LEN),
            2 => (Kind::Profile, MAX_PROFILE),
            3 => (Kind::Ready, 0),
            4 => (Kind::Refuse, MAX_REFUSAL),
            5 => (Kind::Endpoint, super::rdma::ENDPOINT_LEN),
            kind => return Err(field(RECORD, "kind", u64::from(kind), "no such kind")),
        };
        if len > limit {
            return Err(field(RECORD, "len", len as u64, "longer than its kind may be"));
        }
        Ok(Self { kind, len, head_crc: crc32c::crc32c(&bytes[..FRAME_LEN - 4]), crc: raw.crc.get() })
    }

    /// Whether this header and `body` are what was sent.
    pub fn check(&self, body: &[u8]) -> Result<(), WireError> {
        let computed = crc32c::crc32c_append(self.head_crc, body);
        if self.crc == computed {
            return Ok(());
        }
        Err(WireError::Checksum { record: RECORD, found: self.crc, computed })
    }
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To protect this VM.
    Protect(Name),
    /// To measure beats between two hosts, where nothing need be protected.
    Probe,
}

impl Purpose {
    /// Its number, and the VM's name beside it.
    fn encode(self) -> (u8, WireName) {
        match self {
            Self::Protect(vm) => (0, vm.into()),
            Self::Probe => (1, Name::new(PROBE_OF_VERSION_2).expect("a name").into()),
        }
    }

    fn decode(highest_version: u16, purpose: u8, vm: &WireName) -> Result<Self, WireError> {
        match purpose {
            _ if highest_version < WITH_PURPOSE => {
                let vm = vm.require(HELLO)?;
                Ok(if vm.as_str() == PROBE_OF_VERSION_2 { Self::Probe } else { Self::Protect(vm) })
            }
            0 => vm.require(HELLO).map(Self::Protect),
            1 => Ok(Self::Probe),
            _ => Err(field(HELLO, "purpose", purpose.into(), "this build knows no such session")),
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protect(vm) => vm.fmt(f),
            Self::Probe => f.write_str("a measurement of beats"),
        }
    }
}

/// A hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Lowest and highest version spoken.
    pub versions: (u16, u16),
    /// Bytes of every slab.
    pub slab_size: u32,
    /// How many slabs the sender can stage.
    pub staging_slabs: u32,
    /// Whether an RDMA endpoint follows.
    pub rdma: bool,
    /// Drawn by the primary.
    pub incarnation: Incarnation,
    /// The generation that will be replicated.
    pub generation: Generation,
    /// What the session is for.
    pub purpose: Purpose,
    /// The sender.
    pub node: Node,
    /// The witness that it asks, to compare; [`WitnessId::NONE`] for one that asks its operator.
    pub witness: WitnessId,
    /// Of the sender's copy, as the register names it: the primary's QEMU process; what the standby draws for this session.
    pub instance: u64,
    /// Signs the beats.
    pub beat_key: BeatKey,
    /// The sender's UDP port for beats, at the address of this connection; 0 for none.
    pub beat_port: u16,
    /// See [`crate::wire::beat`].
    pub detect_multiplier: u8,
    /// See [`crate::wire::beat`].
    pub desired_tx_us: u32,
    /// See [`crate::wire::beat`].
    pub required_rx_us: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHello {
    lowest: le::U16,
    highest: le::U16,
    slab_size: le::U32,
    staging_slabs: le::U32,
    transports: le::U32,
    incarnation: le::U64,
    generation: le::U64,
    vm: WireName,
    node: WireName,
    beat_key: [u8; 32],
    beat_port: le::U16,
    detect_multiplier: u8,
    purpose: u8,
    zero2: [u8; 4],
    desired_tx_us: le::U32,
    required_rx_us: le::U32,
    id: [u8; 16],
    witness: [u8; 16],
    instance: le::U64,
}
const _: () = assert!(size_of::<RawHello>() == HELLO_LEN);

impl Hello {
    /// The body of a hello frame.
    #[must_use]
    pub fn encode(&self) -> [u8; HELLO_LEN] {
        let (purpose, vm) = self.purpose.encode();
        let raw = RawHello {
            lowest: self.versions.0.into(),
            highest: self.versions.1.into(),
            slab_size: self.slab_size.into(),
            staging_slabs: self.staging_slabs.into(),
            transports: u32::from(self.rdma).into(),
            incarnation: self.incarnation.0.into(),
            generation: self.generation.0.into(),
            vm,
            node: self.node.name.into(),
            beat_key: self.beat_key.0,
            beat_port: self.beat_port.into(),
            detect_multiplier: self.detect_multiplier,
            purpose,
            zero2: [0; 4],
            desired_tx_us: self.desired_tx_us.into(),
            required_rx_us: self.required_rx_us.into(),
            id: self.node.id.0,
            witness: self.witness.0,
            instance: self.instance.into(),
        };
        let mut out = [0; HELLO_LEN];
        out.copy_from_slice(raw.as_bytes());
        out
    }

    /// Checks and reads the body of a hello frame. The versions are for [`Hello::negotiate`] to judge, but for one that shows
    /// in the length: version 1 had 208 bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if let ([_, _, low, high, ..], true) = (bytes, bytes.len() == 208) {
            return Err(other_version(u16::from_le_bytes([*low, *high])));
        }
        let raw: &RawHello = view(HELLO, bytes)?;
        let slab_size = raw.slab_size.get();
        if !(slab::MIN_SLAB..=slab::MAX_SLAB).contains(&(slab_size as usize)) {
            return Err(field(HELLO, "slab_size", slab_size.into(), "outside 8 KiB to 16 MiB"));
        }
        if raw.detect_multiplier == 0 {
            return Err(field(HELLO, "detect_multiplier", 0, "must not be zero"));
        }
        Ok(Self {
            versions: (raw.lowest.get(), raw.highest.get()),
            slab_size,
            staging_slabs: raw.staging_slabs.get(),
            rdma: raw.transports.get() & 1 != 0,
            incarnation: Incarnation(raw.incarnation.get()),
            generation: Generation(raw.generation.get()),
            purpose: Purpose::decode(raw.highest.get(), raw.purpose, &raw.vm)?,
            node: Node { name: raw.node.require(HELLO)?, id: NodeId(raw.id) },
            witness: WitnessId(raw.witness),
            instance: raw.instance.get(),
            beat_key: BeatKey(raw.beat_key),
            beat_port: raw.beat_port.get(),
            detect_multiplier: raw.detect_multiplier,
            desired_tx_us: raw.desired_tx_us.get(),
            required_rx_us: raw.required_rx_us.get(),
        })
    }

    /// The highest version that both ranges hold.
    pub fn negotiate(ours: (u16, u16), theirs: (u16, u16)) -> Result<u16, WireError> {
        let highest = ours.1.min(theirs.1);
        if highest < ours.0.max(theirs.0) {
            return Err(other_version(theirs.1));
        }
        Ok(highest)
    }
}

fn other_version(found: u16) -> WireError {
    WireError::Version { record: HELLO, found, spoken: VERSIONS }
}

fn field(record: &'static str, field: &'static str, value: u64, why: &'static str) -> WireError {
    WireError::Field { record, field, value, why }
}
