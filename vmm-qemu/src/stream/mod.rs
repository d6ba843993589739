//! QEMU's migration stream and its COLO messages, without any I/O. All integers are big endian.
//!
//! ```text
//! stream    "QEVM" u32=3 | 07 u32 n, machine name | 05 subsection… | 08 command… | sections | 00 EOF | 06 u32 n, JSON
//! section   01 START u32 id, idstr, u32 instance, u32 version, body, footer    idstr = u8 n, n bytes
//!           02 PART / 03 END u32 id, body, footer                              footer = 7e u32 id
//!           04 FULL as START: device state. Its body says nowhere how long it is
//! RAM body  u64 = offset in the block | flags, until EOS:
//!           004 MEM_SIZE, START only: u64 total | 004, then blocks until their lengths reach it: idstr, u64 length
//!               (+ u64 guest address with x-ignore-shared)
//!           008 PAGE [idstr], 4096 bytes       002 ZERO [idstr], u8 0       020 CONTINUE: same block, no idstr
//!           010 EOS
//! COLO      u32 each; primary: 1 REQUEST, 3 VMSTATE_SEND, 4 VMSTATE_SIZE (+ u64)
//!           secondary: 0 READY, 2 REPLY, 5 VMSTATE_RECEIVED, 6 VMSTATE_LOADED
//! ```
//!
//! (As observed on the wire of QEMU 7.2 and 10.0.)
//!
//! Device state is opaque here. What we call *device state* is always FULL sections with the EOF byte behind them, both
//! from the first checkpoint, where it has to be cut out of the stream, and from the later ones, where it has a length.

mod cursor;
mod emit;
#[cfg(feature = "testing")]
pub mod fuzz;
mod header;
mod parser;
mod problem;
mod records;
mod search;

pub use emit::{Emitter, StandbyStream, StandbyStreamError};
pub use parser::{Fed, Kind, Outcome, Parser};
pub use problem::{Problem, StreamError};

/// Bytes of device state at most. 13 KB is usual; a big display's registers and queues make it a few hundred.
pub const MAX_DEVICE: usize = 64 << 20;
/// Bytes of the JSON behind the first device state at most. 99 KB is usual.
pub const MAX_DESCRIPTION: usize = 8 << 20;
/// Bytes of a machine's name at most.
pub const MAX_MACHINE: usize = 64;

const MAGIC: u32 = 0x5145_564d;
const VERSION: u32 = 3;
const RAM_VERSION: u32 = 4;
const IGNORE_SHARED: &[u8] = b"x-ignore-shared";
const CAPABILITIES: &[u8] = b"configuration/capabilities";

mod element {
    pub(super) const EOF: u8 = 0;
    pub(super) const START: u8 = 1;
    pub(super) const PART: u8 = 2;
    pub(super) const END: u8 = 3;
    pub(super) const FULL: u8 = 4;
    pub(super) const SUBSECTION: u8 = 5;
    pub(super) const DESCRIPTION: u8 = 6;
    pub(super) const CONFIGURATION: u8 = 7;
    pub(super) const COMMAND: u8 = 8;
    pub(super) const FOOTER: u8 = 0x7e;
}

mod flag {
    pub(super) const ZERO: u64 = 0x002;
    pub(super) const MEM_SIZE: u64 = 0x004;
    pub(super) const PAGE: u64 = 0x008;
    pub(super) const EOS: u64 = 0x010;
    pub(super) const CONTINUE: u64 = 0x020;
    pub(super) const MASK: u64 = 0xfff;
}

mod command {
    pub(super) const ENABLE_COLO: u16 = 8;
    pub(super) const SWITCHOVER_START: u16 = 11;
}

/// COLO's messages.
pub mod message {
    /// From the secondary: checkpoint 0 is loaded, go on.
    pub const READY: u32 = 0;
    /// From the primary: may I take a checkpoint?
    pub const REQUEST: u32 = 1;
    /// From the secondary: yes.
    pub const REPLY: u32 = 2;
    /// From the primary: here it comes.
    pub const VMSTATE_SEND: u32 = 3;
    /// From the primary: so long is the device state (u64).
    pub const VMSTATE_SIZE: u32 = 4;
    /// From the secondary: all has arrived.
    pub const VMSTATE_RECEIVED: u32 = 5;
    /// From the secondary: and is loaded. The VM runs on.
    pub const VMSTATE_LOADED: u32 = 6;
}
