//! What a node says to the witness, and the answer.
//!
//! ```text
//! register (160): 0 generation u64 (0 = none)   8 mode u16 (0 none, 1 solo, 2 protected)   10 zero 6
//!                16 owner's name 48      64 owner's id 16      80 owner's instance u64
//!                88 standby's name 48   136 standby's id 16   152 standby's instance u64
//!
//! request (424):  0 magic "AIA2"   4 kind u16   6 version u16   8 id u64 (echoed in the answer)
//!                16 VM's name 48      64 asker's id 16   80 boot u64 (of the witness that it talks to; 0 unknown)
//!                88 expect u64        96 new: register 160   256 seen: register 160   416 zero 4
//!               420 CRC32C of bytes 0..420
//!
//! answer (264):   0 magic "AIW2"   4 kind u16   6 version u16   8 id u64
//!                16 VM's name 48      64 witness's id 16 80 boot u64
//!                88 probe age u32 (ms since the witness last proved that it can store; all ones: never)
//!                92 refusal u16       94 standing u16    96 held: register 160   256 zero 4
//!               260 CRC32C of bytes 0..260
//! ```
//!
//! | request | | answer | |
//! |---|---|---|---|
//! | 1 read | | 3 holds | what it holds |
//! | 2 compare-and-swap | `new` is what it shall hold, of generation expect + 1 | 4 won, 5 lost | what it holds |
//! | | | 6 failed | could not be stored; nothing changed |
//! | | | 7 refused | the swap was not tried: see [`Refusal`] |
//!
//! Every request carries the highest register that its node has ever seen, and every answer what the witness holds.
//! The record that a witness keeps per VM is [`Stored`], 224 bytes.

use super::{VERSION, WireError, WireName, check_crc, check_magic, check_version, view};
use crate::{
    id::{Generation, Name, Node, NodeId, WitnessId},
    register::{Mode, Owner, Register, Swap},
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

/// "AIA2".
pub const REQUEST_MAGIC: u32 = u32::from_le_bytes(*b"AIA2");
/// "AIW2".
pub const ANSWER_MAGIC: u32 = u32::from_le_bytes(*b"AIW2");
/// "AIR2".
pub const STORED_MAGIC: u32 = u32::from_le_bytes(*b"AIR2");
/// Bytes of every request.
pub const REQUEST_LEN: usize = 424;
/// Bytes of every answer.
pub const ANSWER_LEN: usize = 264;
/// Bytes of a stored register.
pub const STORED_LEN: usize = 224;
const REQUEST: &str = "arbiter request";
const ANSWER: &str = "arbiter answer";
const STORED: &str = "stored register";

/// Who asks, and what it knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Asker {
    /// The node.
    pub node: NodeId,
    /// The highest register of this VM that it has ever read or won.
    pub seen: Option<Register>,
    /// The witness process that it believes to talk to, by that one's last answer; 0 if it does not know.
    pub boot: u64,
}

/// A node's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// Chosen by who asks, echoed by the answer.
    pub id: u64,
    /// Which VM's register.
    pub vm: Name,
    /// Who asks.
    pub asker: Asker,
    /// What for.
    pub ask: Ask,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ask {
    /// What does the register hold?
    Read,
    /// Change what it holds.
    Cas(Swap),
}

/// The witness's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Answer {
    /// Of the request.
    pub id: u64,
    /// Of the request.
    pub vm: Name,
    /// Who answers.
    pub witness: WitnessId,
    /// Which process of that witness: random, drawn at its start.
    pub boot: u64,
    /// Milliseconds since it last stored something for a test; `None`: it never could.
    pub probe_age_ms: Option<u32>,
    /// Whether swaps are tried at all.
    pub standing: Standing,
    /// What came of the request.
    pub outcome: Outcome,
    /// What the register holds.
    pub held: Option<Register>,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// To a read.
    Holds,
    /// The swap took place.
    Won,
    /// It did not: the register had another generation.
    Lost,
    /// The witness could not make it durable; the register is as it was.
    Failed,
    /// The swap was not tried.
    Refused(Refusal),
}

/// Why a swap is not tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The asker does not know this witness process: it has to read first.
    StaleBoot,
    /// The witness has started, and waits for the nodes of this VM to tell what they have seen.
    Waiting,
    /// The nodes have seen what the witness does not hold, and do not agree: an operator decides.
    Disputed,
    /// The register names others.
    NotEntitled,
}

/// Whether a VM's register can be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Yes.
    #[default]
    Settled,
    /// Not before the nodes that it names have told what they have seen.
    Waiting,
    /// Not before an operator decides.
    Disputed,
}

/// A register as a witness keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stored {
    /// Which VM's.
    pub vm: Name,
    /// The register.
    pub register: Register,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawOwner {
    name: WireName,
    id: [u8; 16],
    instance: le::U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRegister {
    generation: le::U64,
    mode: le::U16,
    zero: [u8; 6],
    owner: RawOwner,
    standby: RawOwner,
}
const _: () = assert!(size_of::<RawRegister>() == 160);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRequest {
    magic: le::U32,
    kind: le::U16,
    version: le::U16,
    id: le::U64,
    vm: WireName,
    asker: [u8; 16],
    boot: le::U64,
    expect: le::U64,
    new: RawRegister,
    seen: RawRegister,
    zero: [u8; 4],
    crc: le::U32,
}
const _: () = assert!(size_of::<RawRequest>() == REQUEST_LEN);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawAnswer {
    magic: le::U32,
    kind: le::U16,
    version: le::U16,
    id: le::U64,
    vm: WireName,
    witness: [u8; 16],
    boot: le::U64,
    probe_age: le::U32,
    refusal: le::U16,
    standing: le::U16,
    held: RawRegister,
    zero: [u8; 4],
    crc: le::U32,
}
const _: () = assert!(size_of::<RawAnswer>() == ANSWER_LEN);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawStored {
    magic: le::U32,
    zero: le::U16,
    version: le::U16,
    vm: WireName,
    register: RawRegister,
    zero2: [u8; 4],
    crc: le::U32,
}
const _: () = assert!(size_of::<RawStored>() == STORED_LEN);

/// Fills in the checksum, which is the last field of each record.
fn sealed<const LEN: usize>(raw: &(impl IntoBytes + Immutable)) -> [u8; LEN] {
    let mut out = [0; LEN];
    out.copy_from_slice(raw.as_bytes());
    let crc = crc32c::crc32c(&out[..LEN - 4]);
    out[LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn encode_owner(owner: Owner) -> RawOwner {
    RawOwner { name: owner.node.name.into(), id: owner.node.id.0, instance: owner.instance.into() }
}

fn encode_register(register: Option<&Register>) -> RawRegister {
    let Some(r) = register else {
        return RawRegister::new_zeroed();
    };
    let (mode, standby) = match r.mode {
        Mode::Solo => (1, RawOwner::new_zeroed()),
        Mode::Protected { standby } => (2, encode_owner(standby)),
    };
    RawRegister {
        generation: r.generation.0.into(),
        mode: le::U16::new(mode),
        zero: [0; 6],
        owner: encode_owner(r.owner),
        standby,
    }
}

fn decode_owner(record: &'static str, raw: &RawOwner) -> Result<Owner, WireError> {
    let node = Node { name: raw.name.require(record)?, id: NodeId(raw.id) };
    Ok(Owner { node, instance: raw.instance.get() })
}

fn decode_register(record: &'static str, raw: &RawRegister) -> Result<Option<Register>, WireError> {
    let generation = Generation(raw.generation.get());
    let mode = match raw.mode.get() {
        0 if generation == Generation(0) => return Ok(None),
        1 => Mode::Solo,
        2 => Mode::Protected { standby: decode_owner(record, &raw.standby)? },
        mode => return Err(field(record, "mode", u64::from(mode), "no such mode")),
    };
    if generation == Generation(0) {
        return Err(field(record, "generation", 0, "a register that holds something has a generation"));
    }
    if generation > Generation::MAX {
        return Err(field(record, "generation", generation.0, "more than 2^63 - 1"));
    }
    Ok(Some(Register { generation, owner: decode_owner(record, &raw.owner)?, mode }))
}

fn field(record: &'static str, field: &'static str, value: u64, why: &'static str) -> WireError {
    WireError::Field { record, field, value, why }
}

impl Request {
    /// The request's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_LEN] {
        let (kind, expect, new) = match &self.ask {
            Ask::Read => (1, 0, None),
            Ask::Cas(swap) => (2, swap.expect.0, Some(&swap.new)),
        };
        sealed(&RawRequest {
            magic: REQUEST_MAGIC.into(),
            kind: le::U16::new(kind),
            version: VERSION.into(),
            id: self.id.into(),
            vm: self.vm.into(),
            asker: self.asker.node.0,
            boot: self.asker.boot.into(),
            expect: expect.into(),
            new: encode_register(new),
            seen: encode_register(self.asker.seen.as_ref()),
            zero: [0; 4],
            crc: 0.into(),
        })
    }

    /// Checks and reads a request.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let raw: &RawRequest = view(REQUEST, bytes)?;
        check_magic(REQUEST, raw.magic.get(), REQUEST_MAGIC)?;
        check_crc(REQUEST, raw.crc.get(), &bytes[..REQUEST_LEN - 4])?;
        check_version(REQUEST, raw.version.get())?;
        let ask = match raw.kind.get() {
            1 => Ask::Read,
            2 => decode_cas(Generation(raw.expect.get()), decode_register(REQUEST, &raw.new)?)?,
            kind => return Err(field(REQUEST, "kind", u64::from(kind), "no such kind")),
        };
        let seen = decode_register(REQUEST, &raw.seen)?;
        let asker = Asker { node: NodeId(raw.asker), seen, boot: raw.boot.get() };
        Ok(Self { id: raw.id.get(), vm: raw.vm.require(REQUEST)?, asker, ask })
    }
}

fn decode_cas(expect: Generation, new: Option<Register>) -> Result<Ask, WireError> {
    let new = new.ok_or_else(|| field(REQUEST, "new", 0, "a swap carries a register"))?;
    if expect.0.checked_add(1) != Some(new.generation.0) {
        return Err(field(REQUEST, "generation", new.generation.0, "a swap installs expect + 1"));
    }
    Ok(Ask::Cas(Swap { expect, new, contested: false }))
}

impl Answer {
    /// The answer's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ANSWER_LEN] {
        let (kind, refusal) = match self.outcome {
            Outcome::Holds => (3, 0),
            Outcome::Won => (4, 0),
            Outcome::Lost => (5, 0),
            Outcome::Failed => (6, 0),
            Outcome::Refused(refusal) => (7, code(&REFUSALS, &refusal)),
        };
        sealed(&RawAnswer {
            magic: ANSWER_MAGIC.into(),
            kind: le::U16::new(kind),
            version: VERSION.into(),
            id: self.id.into(),
            vm: self.vm.into(),
            witness: self.witness.0,
            boot: self.boot.into(),
            probe_age: self.probe_age_ms.unwrap_or(u32::MAX).into(),
            refusal: refusal.into(),
            standing: code(&STANDINGS, &self.standing).into(),
            held: encode_register(self.held.as_ref()),
            zero: [0; 4],
            crc: 0.into(),
        })
    }

    /// Checks and reads an answer.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let raw: &RawAnswer = view(ANSWER, bytes)?;
        check_magic(ANSWER, raw.magic.get(), ANSWER_MAGIC)?;
        check_crc(ANSWER, raw.crc.get(), &bytes[..ANSWER_LEN - 4])?;
        check_version(ANSWER, raw.version.get())?;
        let held = decode_register(ANSWER, &raw.held)?;
        let outcome = match raw.kind.get() {
            3 => Outcome::Holds,
            4 if held.is_none() => return Err(field(ANSWER, "held", 0, "whoever won finds a register")),
            4 => Outcome::Won,
            5 => Outcome::Lost,
            6 => Outcome::Failed,
            7 => Outcome::Refused(pick(&REFUSALS, "refusal", raw.refusal.get())?),
            kind => return Err(field(ANSWER, "kind", u64::from(kind), "no such kind")),
        };
        Ok(Self {
            id: raw.id.get(),
            vm: raw.vm.require(ANSWER)?,
            witness: WitnessId(raw.witness),
            boot: raw.boot.get(),
            probe_age_ms: Some(raw.probe_age.get()).filter(|age| *age != u32::MAX),
            standing: pick(&STANDINGS, "standing", raw.standing.get())?,
            outcome,
            held,
        })
    }
}

impl Stored {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; STORED_LEN] {
        sealed(&RawStored {
            magic: STORED_MAGIC.into(),
            zero: 0.into(),
            version: VERSION.into(),
            vm: self.vm.into(),
            register: encode_register(Some(&self.register)),
            zero2: [0; 4],
            crc: 0.into(),
        })
    }

    /// Checks and reads a record.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let raw: &RawStored = view(STORED, bytes)?;
        check_magic(STORED, raw.magic.get(), STORED_MAGIC)?;
        check_crc(STORED, raw.crc.get(), &bytes[..STORED_LEN - 4])?;
        check_version(STORED, raw.version.get())?;
        let register = decode_register(STORED, &raw.register)?;
        let register = register.ok_or_else(|| field(STORED, "generation", 0, "nothing is stored"))?;
        Ok(Self { vm: raw.vm.require(STORED)?, register })
    }
}

const REFUSALS: [Refusal; 4] = [Refusal::StaleBoot, Refusal::Waiting, Refusal::Disputed, Refusal::NotEntitled];
const STANDINGS: [Standing; 3] = [Standing::Settled, Standing::Waiting, Standing::Disputed];

/// Codes count from 1, so that a zeroed record means nothing.
fn code<T: PartialEq>(all: &[T], value: &T) -> u16 {
    let index = all.iter().position(|v| v == value).unwrap_or_default();
    u16::try_from(index + 1).unwrap_or_default()
}

fn pick<T: Copy>(all: &[T], name: &'static str, code: u16) -> Result<T, WireError> {
    let index = usize::from(code.wrapping_sub(1));
    all.get(index).copied().ok_or_else(|| field(ANSWER, name, code.into(), "no such code"))
}
