//! The checksum of a slab that comes piece by piece, computed on the way: when the last byte is there, little is left to do.
//! A link that is slower than the processor then delivers a slab as soon as it has it.

use super::FreeSlab;
use crate::wire::{
    WireError,
    slab::{HEADER_LEN, SlabHeader},
};

/// Fewer new bytes than this wait for more: each piece costs a call.
const STEP: usize = 64 << 10;

/// How far a slab's body was checksummed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ahead {
    /// Bytes of the body, from its beginning.
    body: usize,
    crc: u32,
}

impl Ahead {
    /// The first `have` bytes of the slab have arrived, and stay as they are. Goes over what is new, if that is worth it.
    pub fn advance(&mut self, slab: &FreeSlab, have: usize) {
        let arrived = have.min(slab.len()).saturating_sub(HEADER_LEN);
        if arrived >= self.body + STEP {
            let new = &slab.bytes()[HEADER_LEN + self.body..HEADER_LEN + arrived];
            *self = Self { body: arrived, crc: crc32c::crc32c_append(self.crc, new) };
        }
    }

    /// Goes over the rest of the body, and compares.
    pub(super) fn finish(self, header: &SlabHeader, body: &[u8]) -> Result<(), WireError> {
        match body.get(self.body..) {
            Some(rest) => header.check_crc(crc32c::crc32c_append(self.crc, rest)),
            // More was said to have arrived than the header has: it is taken at its word, and all of it checked.
            None => header.check_body(body),
        }
    }
}
