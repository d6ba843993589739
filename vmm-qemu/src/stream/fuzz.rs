//! Entry points for fuzz targets: feed a parser arbitrary bytes in arbitrary pieces.

use super::{Kind, Outcome, Parser, StreamError};
use crate::blocks::RamBlock;
use mc_core::{
    id::{BlockId, PAGE_SIZE},
    source::{CheckpointSink, NoRoom},
};

/// A sink that keeps nothing, checks what must hold of everything it is given, and now and then has no room.
#[derive(Debug)]
struct Doubting<'a> {
    blocks: &'a [RamBlock],
    /// Refuses every so many offers; 0 for never.
    refuse_every: u32,
    offers: u32,
}

impl Doubting<'_> {
    fn offer(&mut self) -> Result<(), NoRoom> {
        self.offers = self.offers.wrapping_add(1);
        if self.refuse_every != 0 && self.offers.is_multiple_of(self.refuse_every) { Err(NoRoom) } else { Ok(()) }
    }

    fn place(&mut self, block: BlockId, offset: u64) -> Result<(), NoRoom> {
        let length = self.blocks[usize::from(block.0)].used_length;
        assert!(
            offset.is_multiple_of(PAGE_SIZE as u64) && offset + PAGE_SIZE as u64 <= length,
            "a page outside its block"
        );
        self.offer()
    }
}

impl CheckpointSink for Doubting<'_> {
    fn page(&mut self, block: BlockId, offset: u64, _: &[u8; PAGE_SIZE]) -> Result<(), NoRoom> {
        self.place(block, offset)
    }

    fn zero(&mut self, block: BlockId, offset: u64) -> Result<(), NoRoom> {
        self.place(block, offset)
    }

    fn device(&mut self, data: &[u8]) -> Result<usize, NoRoom> {
        assert!(!data.is_empty(), "empty device state was offered");
        self.offer()?;
        Ok(data.len().min(1 + self.offers as usize % 5000))
    }
}

/// The RAM blocks that [`run`] expects: those of the test captures.
#[must_use]
pub fn blocks() -> Vec<RamBlock> {
    let list: [(&str, u64); 6] = [
        ("pc.ram", 0x100_2000),
        ("/rom@etc/acpi/tables", 0x2_0000),
        ("pc.rom", 0x2_0000),
        ("pc.bios", 0x1_0000),
        ("/rom@etc/table-loader", 0x1000),
        ("/rom@etc/acpi/rsdp", 0x1000),
    ];
    list.iter().map(|&(name, used_length)| RamBlock { name: name.into(), used_length }).collect()
}

/// Parses `data`, whose first two bytes choose the kind of stream, the pieces and how often the sink refuses.
///
/// # Errors
/// Those of the parser: expected.
///
/// # Panics
/// When the parser breaks a promise: a bug.
pub fn run(data: &[u8]) -> Result<(), StreamError> {
    let [choice, pieces, stream @ ..] = data else { return Ok(()) };
    let kind = if choice & 1 == 0 { Kind::Plain } else { Kind::Colo };
    let blocks = blocks();
    let mut parser = Parser::new(kind, blocks.clone())?;
    let mut sink = Doubting { blocks: &blocks, refuse_every: u32::from(choice >> 1), offers: 0 };
    let piece = 1 + usize::from(*pieces) * usize::from(*pieces);
    let (mut start, mut end) = (0, 0);
    while end < stream.len() {
        end = (end + piece).min(stream.len());
        // A sink that refuses everything (refuse_every = 1) would be asked for ever.
        for _ in 0..1 + piece.div_ceil(8) * 2 {
            let fed = parser.feed(&stream[start..end], &mut sink)?;
            start += fed.used;
            match fed.outcome {
                Outcome::More(wanted) => {
                    assert!(wanted > end - start, "asks for {wanted} bytes, and has {}", end - start);
                    break;
                }
                Outcome::NoRoom | Outcome::Captured | Outcome::Ready => {}
            }
        }
    }
    Ok(())
}
