//! What a node says to the witness, and the answer. Both are 208 bytes.
//!
//! ```text
//!   0 magic "AIA1"   4 kind u16   6 version u16   8 id u64 (echoed in the answer)
//!  16 vm name 48     64 expect: generation u64
//!  72 register: generation u64 (0 = none), instance u64, mode u16 (0 none, 1 solo, 2 protected), 6 zero bytes,
//!               owner's node 48, standby 48
//! 192 zero 12       204 CRC32C of bytes 0..204
//! ```
//!
//! | kind | | register |
//! |---|---|---|
//! | 1 read | request | none |
//! | 2 compare-and-swap | request | what it shall hold; its generation is expect + 1 |
//! | 3 holds | answer to a read | what it holds |
//! | 4 won | answer to a swap | what it holds |
//! | 5 lost | answer to a swap | what it holds |
//! | 6 failed | answer | none: the witness could not store it; the register is unchanged |

use super::{VERSION, WireError, WireName, check_crc, check_magic, check_version, view};
use crate::{
    id::{Generation, Name},
    register::{Mode, Owner, Register},
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

/// "AIA1".
pub const MAGIC: u32 = u32::from_le_bytes(*b"AIA1");
/// Bytes of every message.
pub const LEN: usize = 208;
const RECORD: &str = "arbiter message";

/// A message to or from the witness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// Chosen by who asks, echoed by the answer.
    pub id: u64,
    /// Which VM's register.
    pub vm: Name,
    /// What is asked or answered.
    pub body: Body,
}

/// What is asked or answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Body {
    /// What does the register hold?
    Read,
    /// If the register's generation is `expect`, hold `new`.
    Cas {
        /// 0 for a vacant register.
        expect: Generation,
        /// Its generation is `expect + 1`.
        new: Register,
    },
    /// The register holds this.
    Holds(Option<Register>),
    /// The swap took place; the register holds this.
    Won(Register),
    /// It did not; the register holds this.
    Lost(Option<Register>),
    /// The witness could not make it durable; the register is as it was.
    Failed,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRegister {
    generation: le::U64,
    instance: le::U64,
    mode: le::U16,
    zero: [u8; 6],
    node: WireName,
    standby: WireName,
}
const _: () = assert!(size_of::<RawRegister>() == 120);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: le::U32,
    kind: le::U16,
    version: le::U16,
    id: le::U64,
    vm: WireName,
    expect: le::U64,
    register: RawRegister,
    zero: [u8; 12],
    crc: le::U32,
}
const _: () = assert!(size_of::<Raw>() == LEN);

fn encode_register(register: Option<&Register>) -> RawRegister {
    let Some(r) = register else {
        return RawRegister::new_zeroed();
    };
    let (mode, standby) = match r.mode {
        Mode::Solo => (1, WireName::NONE),
        Mode::Protected { standby } => (2, standby.into()),
    };
    RawRegister {
        generation: r.generation.0.into(),
        instance: r.owner.instance.into(),
        mode: le::U16::new(mode),
        zero: [0; 6],
        node: r.owner.node.into(),
        standby,
    }
}

fn decode_register(raw: &RawRegister) -> Result<Option<Register>, WireError> {
    let generation = Generation(raw.generation.get());
    let mode = match raw.mode.get() {
        0 if generation == Generation(0) => return Ok(None),
        1 => Mode::Solo,
        2 => Mode::Protected { standby: raw.standby.require(RECORD)? },
        mode => return Err(field("mode", u64::from(mode), "no such mode")),
    };
    if generation == Generation(0) {
        return Err(field("generation", 0, "a register that holds something has a generation"));
    }
    let owner = Owner { node: raw.node.require(RECORD)?, instance: raw.instance.get() };
    Ok(Some(Register { generation, owner, mode }))
}

fn field(field: &'static str, value: u64, why: &'static str) -> WireError {
    WireError::Field { record: RECORD, field, value, why }
}

fn required(register: Option<Register>) -> Result<Register, WireError> {
    register.ok_or_else(|| field("register", 0, "this kind carries a register"))
}

impl Message {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; LEN] {
        let (kind, expect, register) = match &self.body {
            Body::Read => (1, 0, None),
            Body::Cas { expect, new } => (2, expect.0, Some(new)),
            Body::Holds(r) => (3, 0, r.as_ref()),
            Body::Won(r) => (4, 0, Some(r)),
            Body::Lost(r) => (5, 0, r.as_ref()),
            Body::Failed => (6, 0, None),
        };
        let mut raw = Raw {
            magic: MAGIC.into(),
            kind: le::U16::new(kind),
            version: VERSION.into(),
            id: self.id.into(),
            vm: self.vm.into(),
            expect: expect.into(),
            register: encode_register(register),
            zero: [0; 12],
            crc: 0.into(),
        };
        raw.crc = crc32c::crc32c(&raw.as_bytes()[..LEN - 4]).into();
        let mut out = [0; LEN];
        out.copy_from_slice(raw.as_bytes());
        out
    }

    /// Checks and reads a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let raw: &Raw = view(RECORD, bytes)?;
        check_magic(RECORD, raw.magic.get(), MAGIC)?;
        check_crc(RECORD, raw.crc.get(), &bytes[..LEN - 4])?;
        check_version(RECORD, raw.version.get())?;
        let register = decode_register(&raw.register)?;
        let body = match raw.kind.get() {
            1 => Body::Read,
            2 => Self::decode_cas(Generation(raw.expect.get()), required(register)?)?,
            3 => Body::Holds(register),
            4 => Body::Won(required(register)?),
            5 => Body::Lost(register),
            6 => Body::Failed,
            kind => return Err(field("kind", u64::from(kind), "no such kind")),
        };
        Ok(Self { id: raw.id.get(), vm: raw.vm.require(RECORD)?, body })
    }

    fn decode_cas(expect: Generation, new: Register) -> Result<Body, WireError> {
        if expect.0.checked_add(1) != Some(new.generation.0) {
            return Err(field("generation", new.generation.0, "a swap installs expect + 1"));
        }
        Ok(Body::Cas { expect, new })
    }
}
