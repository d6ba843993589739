//! RAM blocks: what QEMU calls a stretch of guest memory with a name (`pc.ram`, `pc.bios`, an option ROM).

use mc_core::id::{BlockId, PAGE_SIZE};
use serde::{Deserialize, Serialize};

/// Blocks of one VM at most. A machine with a few devices has ten.
pub const MAX_BLOCKS: usize = 256;
/// Bytes of a block's name at most: the stream has one byte for the length.
pub const MAX_NAME: usize = 255;
/// Bytes of a block at most: x86 addresses no more.
const MAX_LENGTH: u64 = 1 << 52;

/// One RAM block. Its index in the profile is its [`BlockId`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RamBlock {
    /// QEMU's name.
    pub name: String,
    /// Bytes in use, a multiple of the page size.
    pub used_length: u64,
}

/// Why a list of RAM blocks is not usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlocksError {
    /// None, or too many.
    #[error("{0} RAM blocks, expected 1 to {MAX_BLOCKS}")]
    Count(usize),
    /// A name of no or too many bytes.
    #[error("RAM block {index} has a name of {len} bytes, expected 1 to {MAX_NAME}")]
    Name {
        /// Which one.
        index: usize,
        /// Bytes.
        len: usize,
    },
    /// Two with one name.
    #[error("two RAM blocks are called {0:?}")]
    Twice(String),
    /// A length that is zero, absurd, or no multiple of the page size.
    #[error("RAM block {name:?} has {length} bytes, expected a multiple of {PAGE_SIZE}")]
    Length {
        /// Which one.
        name: String,
        /// Bytes.
        length: u64,
    },
}

/// Whether `blocks` can be a VM's.
pub fn check(blocks: &[RamBlock]) -> Result<(), BlocksError> {
    if blocks.is_empty() || blocks.len() > MAX_BLOCKS {
        return Err(BlocksError::Count(blocks.len()));
    }
    for (index, block) in blocks.iter().enumerate() {
        if block.name.is_empty() || block.name.len() > MAX_NAME {
            return Err(BlocksError::Name { index, len: block.name.len() });
        }
        if blocks[..index].iter().any(|earlier| earlier.name == block.name) {
            return Err(BlocksError::Twice(block.name.clone()));
        }
        let length = block.used_length;
        if length == 0 || length > MAX_LENGTH || length % PAGE_SIZE as u64 != 0 {
            return Err(BlocksError::Length { name: block.name.clone(), length });
        }
    }
    Ok(())
}

/// The main memory: the largest block. That one is shared with the standby's QEMU; the others are small.
#[must_use]
pub fn main_block(blocks: &[RamBlock]) -> Option<BlockId> {
    let (index, _) = blocks.iter().enumerate().max_by_key(|(_, block)| block.used_length)?;
    u16::try_from(index).ok().map(BlockId)
}

/// The block with that name.
#[must_use]
pub(crate) fn by_name(blocks: &[RamBlock], name: &[u8]) -> Option<BlockId> {
    let index = blocks.iter().position(|block| block.name.as_bytes() == name)?;
    u16::try_from(index).ok().map(BlockId)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(name: &str, used_length: u64) -> RamBlock {
        RamBlock { name: name.into(), used_length }
    }

    #[test]
    fn refuses_what_cannot_be() {
        assert_eq!(check(&[]), Err(BlocksError::Count(0)));
        assert_eq!(check(&[block("", 4096)]), Err(BlocksError::Name { index: 0, len: 0 }));
        assert!(matches!(check(&[block("a", 4097)]), Err(BlocksError::Length { length: 4097, .. })));
        assert!(matches!(check(&[block("a", u64::MAX - 4095)]), Err(BlocksError::Length { .. })));
        assert_eq!(check(&[block("a", 4096), block("a", 8192)]), Err(BlocksError::Twice("a".into())));
        assert_eq!(check(&vec![block("a", 4096); MAX_BLOCKS + 1]), Err(BlocksError::Count(MAX_BLOCKS + 1)));
    }

    #[test]
    fn the_largest_is_the_main_memory() {
        let blocks = [block("pc.bios", 65536), block("pc.ram", 1 << 24), block("pc.rom", 131_072)];
        assert_eq!(main_block(&blocks), Some(BlockId(1)));
        assert_eq!(by_name(&blocks, b"pc.rom"), Some(BlockId(2)));
        assert_eq!(by_name(&blocks, b"vga.vram"), None);
    }
}
