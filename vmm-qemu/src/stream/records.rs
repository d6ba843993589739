//! RAM: the list of blocks, and the pages.

use super::{
    Problem,
    cursor::{Cursor, Halt, text},
    flag,
    parser::{Parser, Section, State},
};
use crate::blocks;
use mc_core::{
    id::{BlockId, PAGE_SIZE},
    source::{CheckpointSink, NoRoom},
};

impl Parser {
    /// `left` bytes of blocks are still to be announced; `None` before the total has been read.
    pub(super) fn block_list(&mut self, cursor: &mut Cursor<'_>, left: Option<u64>) -> Result<(), Halt> {
        match left {
            None => {
                let word = cursor.u64()?;
                let flags = word & flag::MASK;
                if flags != flag::MEM_SIZE {
                    return Err(Problem::Flags(flags, "the list of blocks has to come first").into());
                }
                self.state = State::BlockList { left: Some(word & !flag::MASK) };
                Ok(())
            }
            Some(0) => {
                if let Some(missing) = self.announced.iter().position(|announced| !announced) {
                    return Err(Problem::MissingBlock(self.blocks[missing].name.clone()).into());
                }
                self.state = State::Records(Section::More);
                Ok(())
            }
            Some(left) => self.announce(cursor, left),
        }
    }

    fn announce(&mut self, cursor: &mut Cursor<'_>, left: u64) -> Result<(), Halt> {
        let (name, found) = (cursor.idstr()?, cursor.u64()?);
        if self.ignore_shared {
            cursor.u64()?;
        }
        let Some(BlockId(id)) = blocks::by_name(&self.blocks, name) else {
            return Err(Problem::UnknownBlock(text(name)).into());
        };
        let expected = self.blocks[usize::from(id)].used_length;
        if found != expected {
            return Err(Problem::BlockLength { name: text(name), found, expected }.into());
        }
        if std::mem::replace(&mut self.announced[usize::from(id)], true) {
            return Err(Problem::BlockTwice(text(name)).into());
        }
        let left = left.checked_sub(found).ok_or(Problem::Total(found.saturating_sub(left)))?;
        self.state = State::BlockList { left: Some(left) };
        Ok(())
    }

    /// One record. The hot path: a page is looked at once, in place.
    pub(super) fn record(
        &mut self,
        cursor: &mut Cursor<'_>,
        section: Section,
        sink: &mut dyn CheckpointSink,
    ) -> Result<(), Halt> {
        let word = cursor.u64()?;
        let (offset, flags) = (word & !flag::MASK, word & flag::MASK);
        match flags & !flag::CONTINUE {
            flag::PAGE => {
                let block = self.block(cursor, flags, offset)?;
                let page = cursor.array::<PAGE_SIZE>()?;
                sink.page(block, offset, page).map_err(|NoRoom| Halt::NoRoom)?;
                self.last_block = Some(block);
                Ok(())
            }
            flag::ZERO => {
                let block = self.block(cursor, flags, offset)?;
                match cursor.u8()? {
                    0 => sink.zero(block, offset).map_err(|NoRoom| Halt::NoRoom)?,
                    fill => return Err(Problem::Fill(fill).into()),
                }
                self.last_block = Some(block);
                Ok(())
            }
            flag::EOS if word == flag::EOS => {
                self.state = State::Footer(section);
                Ok(())
            }
            _ => Err(Problem::Flags(flags, refused(flags)).into()),
        }
    }

    fn block(&self, cursor: &mut Cursor<'_>, flags: u64, offset: u64) -> Result<BlockId, Halt> {
        let block = if flags & flag::CONTINUE == 0 {
            let name = cursor.idstr()?;
            blocks::by_name(&self.blocks, name).ok_or_else(|| Problem::UnknownBlock(text(name)))?
        } else {
            self.last_block.ok_or(Problem::NoBlock)?
        };
        let found = &self.blocks[usize::from(block.0)];
        // Both are multiples of the page size: the low bits of the one were flags, the other was checked by `new`.
        if offset >= found.used_length {
            let (name, length) = (found.name.clone(), found.used_length);
            return Err(Problem::Offset { name, offset, length }.into());
        }
        Ok(block)
    }
}

/// What to do about flags that stand for a capability (QEMU's `RAM_SAVE_FLAG_*`).
fn refused(flags: u64) -> &'static str {
    match flags {
        f if f & flag::MEM_SIZE != 0 => "a second list of blocks",
        f if f & 0x040 != 0 => "switch the capability xbzrle off",
        f if f & 0x080 != 0 => "an RDMA migration, expected a unix socket",
        f if f & 0x100 != 0 => "switch the capability compress off",
        f if f & 0x200 != 0 => "switch the capability multifd off",
        _ => "not known",
    }
}
