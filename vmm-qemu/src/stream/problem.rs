//! What can be wrong with a stream.

use super::{MAX_DESCRIPTION, MAX_DEVICE, MAX_MACHINE};
use crate::blocks::BlocksError;

/// A stream that is not what it should be, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {at} of QEMU's stream: {problem}")]
pub struct StreamError {
    /// Bytes since the stream began.
    pub at: u64,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// Not a migration stream.
    #[error("not a migration stream: it begins with {0:#010x}")]
    Magic(u32),
    /// A version that no supported QEMU writes.
    #[error("{what} has version {found}, supported is {supported}")]
    Version {
        /// Of what.
        what: &'static str,
        /// Found.
        found: u32,
        /// Supported.
        supported: u32,
    },
    /// Something too long, or empty.
    #[error("{what} of {len} bytes, expected 1 to {limit}")]
    Length {
        /// What.
        what: &'static str,
        /// Bytes.
        len: u64,
        /// Bytes at most.
        limit: usize,
    },
    /// A text that is none.
    #[error("the machine's name is not printable")]
    Machine,
    /// A subsection of the configuration that is not known.
    #[error("configuration subsection {0:?} is not supported")]
    Subsection(String),
    /// A capability that changes the format.
    #[error("the stream uses migration capability {0:?}, which is not supported here: switch it off")]
    Capability(String),
    /// Pages of another size.
    #[error("guest pages of 2^{0} bytes, supported is 2^12")]
    PageBits(u32),
    /// An element where it does not belong.
    #[error("element type {found:#04x}, expected {expected}")]
    Element {
        /// Found.
        found: u8,
        /// What could have stood there.
        expected: &'static str,
    },
    /// A command of the stream that is not supported.
    #[error("stream command {command} with {len} bytes is not supported{hint}")]
    Command {
        /// Its number.
        command: u16,
        /// Bytes of its payload.
        len: u16,
        /// What to do about it.
        hint: &'static str,
    },
    /// An ordinary migration, where COLO was expected.
    #[error("an ordinary migration: the capability x-colo was not set")]
    NotColo,
    /// A COLO stream, where an ordinary one was expected.
    #[error("a COLO stream, expected an ordinary one")]
    Colo,
    /// Something else than RAM that is sent while the VM runs.
    #[error("section {0:?} is sent while the VM runs; only \"ram\" is supported")]
    Section(String),
    /// A second START of RAM, or a part before it.
    #[error("RAM section out of order: {0}")]
    Order(&'static str),
    /// A section id that nobody announced.
    #[error("section id {found}, expected {expected}")]
    SectionId {
        /// Found.
        found: u32,
        /// The RAM section's.
        expected: u32,
    },
    /// Flags of a RAM record that are not supported.
    #[error("RAM record with flags {0:#05x}: {1}")]
    Flags(u64, &'static str),
    /// A RAM block that the profile does not have.
    #[error("RAM block {0:?} is not in the VM's profile")]
    UnknownBlock(String),
    /// A RAM block of another length than in the profile.
    #[error("RAM block {name:?} has {found} bytes, the VM's profile says {expected}")]
    BlockLength {
        /// Which.
        name: String,
        /// Found.
        found: u64,
        /// In the profile.
        expected: u64,
    },
    /// A RAM block announced twice.
    #[error("RAM block {0:?} is announced twice")]
    BlockTwice(String),
    /// A RAM block of the profile that QEMU does not announce.
    #[error("RAM block {0:?} of the VM's profile is not in the stream")]
    MissingBlock(String),
    /// Blocks and their total do not agree.
    #[error("the RAM blocks have more bytes than their announced total, by {0}")]
    Total(u64),
    /// A page outside its block.
    #[error("page at {offset:#x} of RAM block {name:?}, which has {length:#x} bytes")]
    Offset {
        /// Which block.
        name: String,
        /// Where.
        offset: u64,
        /// Bytes of the block.
        length: u64,
    },
    /// A record that continues a block before any was named.
    #[error("a RAM record without a block's name comes first")]
    NoBlock,
    /// A page filled with something else than zeros.
    #[error("a page filled with {0:#04x}; only zero pages are supported")]
    Fill(u8),
    /// No end of the device state.
    #[error("no end of the device state within {} bytes", MAX_DEVICE + MAX_DESCRIPTION)]
    Endless,
    /// Too many things that look like the end of the device state.
    #[error("too many places look like the end of the device state")]
    Ambiguous,
    /// A COLO message out of order.
    #[error("COLO message {found}, expected {expected}")]
    Message {
        /// Found.
        found: u32,
        /// Expected.
        expected: &'static str,
    },
    /// Device state without the end that it must have.
    #[error("the device state {0}")]
    Device(&'static str),
    /// RAM blocks that no VM can have.
    #[error("the VM's profile: {0}")]
    Profile(#[from] BlocksError),
    /// Bytes after the end.
    #[error("bytes after the end of the stream")]
    Trailing,
}

impl Problem {
    pub(super) fn machine_length(len: u64) -> Self {
        Self::Length { what: "machine name", len, limit: MAX_MACHINE }
    }
}
