//! Every byte that crosses a wire, and nothing else. `docs/PROTOCOL.md` is this module in prose: change both.
//!
//! | module | record | carried by |
//! |---|---|---|
//! | [`session`] | hello, profile, refusal: variable, once per connection | the control connection |
//! | [`slab`] | a slab: header, runs of pages, device state; 64 bytes and up | the data path |
//! | [`control`] | commit, ACK, NACK, …: 64 bytes | the data path, in order with the slabs |
//! | [`rdma`] | endpoint: 120 bytes, once per session; messages: 80 bytes | the control connection; SENDs beside RDMA writes |
//! | [`beat`] | keepalive: 96 bytes, authenticated | datagrams |
//! | [`arbiter`] | request: 424 bytes, answer: 264 | a connection to the witness |
//!
//! Integers are little endian. Each record begins with a magic number of its own and carries a CRC32C or a MAC; a parser
//! here takes a slice, bounds everything, and never panics.

pub mod arbiter;
pub mod beat;
pub mod control;
pub mod rdma;
pub mod session;
pub mod slab;

use crate::id::{Name, NameError};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The version of every record. What a session may be is versioned apart: its hello offers a range ([`session::VERSIONS`]).
pub const VERSION: u16 = 2;

/// Why bytes from a peer were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Fewer bytes than the record has.
    #[error("{record}: {have} bytes, needs {need}")]
    Short {
        /// Which record.
        record: &'static str,
        /// Bytes there.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// It does not begin with its magic number: not our protocol, or out of step.
    #[error("{record}: magic {found:#010x}, expected {expected:#010x}")]
    Magic {
        /// Which record.
        record: &'static str,
        /// Found.
        found: u32,
        /// Expected.
        expected: u32,
    },
    /// A version that this build does not speak.
    #[error("{record}: version {found}, this build speaks {}", range(*spoken))]
    Version {
        /// Which record.
        record: &'static str,
        /// Found.
        found: u16,
        /// Lowest and highest that this build speaks.
        spoken: (u16, u16),
    },
    /// The checksum does not match the bytes.
    #[error("{record}: CRC32C {found:#010x}, computed {computed:#010x}")]
    Checksum {
        /// Which record.
        record: &'static str,
        /// In the record.
        found: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// A field holds what it must not.
    #[error("{record}: field {field} = {value}: {why}")]
    Field {
        /// Which record.
        record: &'static str,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A name is none.
    #[error("{record}: {source}")]
    Name {
        /// Which record.
        record: &'static str,
        /// Why.
        source: NameError,
    },
    /// The authentication code is wrong: another group, a forgery, or damage.
    #[error("{record}: authentication failed")]
    Unauthentic {
        /// Which record.
        record: &'static str,
    },
}

fn range((lowest, highest): (u16, u16)) -> String {
    if lowest == highest { lowest.to_string() } else { format!("{lowest} to {highest}") }
}

/// A [`Name`] in 48 bytes: length, then the text, padded with zeros. Length 0 stands for "none".
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct WireName {
    len: u8,
    bytes: [u8; Name::MAX],
}

impl WireName {
    /// "None".
    pub const NONE: Self = Self { len: 0, bytes: [0; Name::MAX] };

    /// The name, `None` for length 0.
    pub fn get(&self, record: &'static str) -> Result<Option<Name>, WireError> {
        let len = usize::from(self.len);
        if len == 0 {
            return Ok(None);
        }
        let text = self.bytes.get(..len).ok_or(WireError::Name { record, source: NameError::Length(len) })?;
        let text = std::str::from_utf8(text).map_err(|_| WireError::Name { record, source: NameError::Characters })?;
        Name::new(text).map(Some).map_err(|source| WireError::Name { record, source })
    }

    /// The name, which must be there.
    pub fn require(&self, record: &'static str) -> Result<Name, WireError> {
        self.get(record)?.ok_or(WireError::Name { record, source: NameError::Length(0) })
    }
}

impl From<Name> for WireName {
    fn from(name: Name) -> Self {
        let text = name.as_str().as_bytes();
        let mut bytes = [0; Name::MAX];
        bytes[..text.len()].copy_from_slice(text);
        Self { len: u8::try_from(text.len()).expect("a Name has at most 47 bytes"), bytes }
    }
}

/// The first `size_of::<T>()` bytes as a `T`.
pub(crate) fn view<'a, T>(record: &'static str, bytes: &'a [u8]) -> Result<&'a T, WireError>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    T::ref_from_prefix(bytes).map(|(t, _)| t).map_err(|_| WireError::Short {
        record,
        have: bytes.len(),
        need: size_of::<T>(),
    })
}

/// Fails unless `found` is the magic number.
pub(crate) fn check_magic(record: &'static str, found: u32, expected: u32) -> Result<(), WireError> {
    if found == expected { Ok(()) } else { Err(WireError::Magic { record, found, expected }) }
}

/// Fails unless this build speaks `found`.
pub(crate) fn check_version(record: &'static str, found: u16) -> Result<(), WireError> {
    if found == VERSION { Ok(()) } else { Err(WireError::Version { record, found, spoken: (VERSION, VERSION) }) }
}

/// Fails unless the CRC32C of `bytes` is `found`.
pub(crate) fn check_crc(record: &'static str, found: u32, bytes: &[u8]) -> Result<(), WireError> {
    let computed = crc32c::crc32c(bytes);
    if found == computed { Ok(()) } else { Err(WireError::Checksum { record, found, computed }) }
}
