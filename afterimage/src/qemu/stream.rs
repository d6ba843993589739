//! Sans-io parser of what a COLO primary sends: QEMU's migration stream, then checkpoints. Bytes in, items out.
//!
//! ```text
//! Header ─> Top ─RAM START/PART─> (Setup) ─> Ram ─EOS─> Footer ─> Top …            precopy, the VM runs
//!                                             RAM END ─> Footer ─> Blob ─> Device0 ─> [Captured]        stopped
//! [READY] ─> Request ─> [Ready] … [REPLY] ─> Send ─> Top (checkpoint) ─RAM END─> Ram ─> Footer ─> Eof ─> Size ─> Device ─>
//! [Captured] ─> Request …
//! ```
//!
//! Sources: QEMU 7.2 `migration/savevm.c` (sections), `migration/ram.c` (`RAM_SAVE_FLAG_*`), `migration/colo.c` (messages).
//! Integers are big endian. `CONTINUE` refers to the last named RAM block, also across sections and checkpoints.
//!
//! Nothing is consumed by looking: [`Parser::peek`] says what comes next, [`Parser::advance`] takes it. So an item that its
//! receiver has no room for is simply looked at again later.

use super::profile::RamBlock;
use mc_core::{
    id::{BlockId, PAGE_SIZE},
    image::MAX_DEVICE,
};

const MAGIC: u32 = 0x5145_564d;
const VERSION: u32 = 3;
/// Bytes of a name (a section's, a machine's) at most; block names have a length byte.
const MAX_NAME: usize = 256;
/// RAM blocks at most.
pub const MAX_BLOCKS: usize = 256;
/// Bytes of the VM's description, JSON, after the first device state, at most.
const MAX_DESCRIPTION: usize = 16 << 20;

const SECTION_EOF: u8 = 0x00;
const SECTION_START: u8 = 0x01;
const SECTION_PART: u8 = 0x02;
const SECTION_END: u8 = 0x03;
const SUBSECTION: u8 = 0x05;
const VMDESCRIPTION: u8 = 0x06;
const CONFIGURATION: u8 = 0x07;
const COMMAND: u8 = 0x08;
const FOOTER: u8 = 0x7e;

const RAM_ZERO: u64 = 0x002;
const RAM_MEM_SIZE: u64 = 0x004;
const RAM_PAGE: u64 = 0x008;
const RAM_EOS: u64 = 0x010;
const RAM_CONTINUE: u64 = 0x020;

const MSG_REQUEST: u32 = 1;
const MSG_VMSTATE_SEND: u32 = 3;
const MSG_VMSTATE_SIZE: u32 = 4;

/// Why a stream was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {at}: {what}")]
pub struct StreamError {
    /// Bytes of the stream before the offending element.
    pub at: u64,
    /// What is wrong.
    pub what: String,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// Nothing that anyone needs to hear of.
    Nothing,
    /// A page.
    Page {
        /// Its block in the profile.
        block: BlockId,
        /// Where in it.
        offset: u64,
        /// Its bytes.
        data: &'a [u8; PAGE_SIZE],
    },
    /// A page of zeros.
    Zero {
        /// Its block in the profile.
        block: BlockId,
        /// Where in it.
        offset: u64,
    },
    /// Some device state; a receiver may take fewer bytes.
    Device(&'a [u8]),
    /// The VM runs, and QEMU asks for leave to checkpoint.
    Request,
    /// The VM is stopped, and everything was said.
    Captured,
}

/// An item, and what taking it means.
#[derive(Clone, Copy, Debug)]
pub struct Next<'a> {
    /// The item.
    pub item: Item<'a>,
    len: usize,
    cursor: Cursor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Header,
    Subsections,
    /// Between sections; `checkpoint` once COLO's loop has begun.
    Top {
        checkpoint: bool,
    },
    Setup {
        left: u64,
        blocks: u16,
    },
    Ram {
        end: bool,
    },
    Footer {
        end: bool,
    },
    /// After the first RAM END: device state of unknown length, then a description that tells where it ended.
    Blob,
    /// Device state, and then `skip` bytes that are not.
    Device {
        left: u64,
        skip: u32,
    },
    Skip {
        left: u32,
    },
    Captured,
    Request,
    Send,
    Eof,
    Size,
}

#[derive(Clone, Copy, Debug)]
struct Cursor {
    phase: Phase,
    checkpoints: bool,
    section: u32,
    last: Option<BlockId>,
    at: u64,
}

/// The parser. It holds no bytes of the stream.
#[derive(Clone, Debug)]
pub struct Parser {
    blocks: Vec<RamBlock>,
    cursor: Cursor,
}

type Step<'a> = Result<Option<Next<'a>>, StreamError>;

/// Reads big-endian fields off the front of a slice; `None` when more bytes are needed.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(n)?)?;
        self.at += n;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_be_bytes)
    }

    /// A length byte, then a name.
    fn name(&mut self) -> Option<&'a [u8]> {
        let len = self.u8()?;
        self.take(len.into())
    }
}

/// `?` for "more bytes are needed".
macro_rules! need {
    ($field:expr) => {
        match $field {
            Some(value) => value,
            None => return Ok(None),
        }
    };
}

impl Parser {
    /// For a VM with these RAM blocks, in the profile's order.
    #[must_use]
    pub fn new(blocks: Vec<RamBlock>) -> Self {
        let cursor = Cursor { phase: Phase::Header, checkpoints: false, section: 0, last: None, at: 0 };
        Self { blocks, cursor }
    }

    /// What `bytes`, the stream from where we stand, begin with. `None`: more bytes are needed, at most [`Parser::reach`].
    pub fn peek<'a>(&self, bytes: &'a [u8]) -> Step<'a> {
        let fields = Fields { bytes, at: 0 };
        match self.cursor.phase {
            Phase::Header => self.header(fields),
            Phase::Subsections => self.subsections(fields),
            Phase::Top { checkpoint } => self.top(fields, checkpoint),
            Phase::Setup { left, blocks } => self.setup(fields, left, blocks),
            Phase::Ram { end } => self.ram(fields, end),
            Phase::Footer { end } => self.footer(fields, end),
            Phase::Blob => self.blob(bytes),
            Phase::Device { left, skip } => self.device(bytes, left, skip),
            Phase::Skip { left } => self.skip(bytes, left),
            Phase::Captured => self.next(Item::Captured, 0, Phase::Request),
            Phase::Request => self.message(fields, MSG_REQUEST, Item::Request, Phase::Send),
            Phase::Send => self.message(fields, MSG_VMSTATE_SEND, Item::Nothing, Phase::Top { checkpoint: true }),
            Phase::Eof => self.eof(fields),
            Phase::Size => self.size(fields),
        }
    }

    /// Takes an item.
    pub fn advance(&mut self, next: &Next<'_>) -> usize {
        self.cursor = next.cursor;
        next.len
    }

    /// Takes `taken` bytes of an [`Item::Device`] that offered more.
    pub fn advance_device(&mut self, taken: usize) -> usize {
        if let Phase::Device { left, skip } = self.cursor.phase {
            let left = left - taken as u64;
            self.cursor.at += taken as u64;
            self.cursor.phase = after_device(left, skip);
        }
        taken
    }

    /// Whether the VM is stopped and its checkpoint is on its way: then every moment counts.
    #[must_use]
    pub fn in_checkpoint(&self) -> bool {
        self.cursor.checkpoints && self.cursor.phase != Phase::Request
    }

    /// How many bytes [`Parser::peek`] may want to see at once.
    #[must_use]
    pub fn reach(&self) -> usize {
        match self.cursor.phase {
            Phase::Blob => usize::try_from(MAX_DEVICE).unwrap_or(usize::MAX) + MAX_DESCRIPTION,
            _ => PAGE_SIZE + 2 * MAX_NAME,
        }
    }

    /// Whether the stream may end here, between two checkpoints.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.cursor.at
    }

    fn bad<T>(&self, what: impl Into<String>) -> Result<T, StreamError> {
        Err(StreamError { at: self.cursor.at, what: what.into() })
    }

    fn next<'a>(&self, item: Item<'a>, len: usize, phase: Phase) -> Step<'a> {
        let cursor = Cursor { phase, at: self.cursor.at + len as u64, ..self.cursor };
        Ok(Some(Next { item, len, cursor }))
    }

    fn header<'a>(&self, mut f: Fields<'a>) -> Step<'a> {
        let (magic, version) = (need!(f.u32()), need!(f.u32()));
        if (magic, version) != (MAGIC, VERSION) {
            return self.bad(format!("not a QEMU migration stream (magic {magic:#x}, version {version})"));
        }
        let kind = need!(f.u8());
        if kind != CONFIGURATION {
            return self.bad(format!("expected the configuration, got section type {kind:#x}"));
        }
        let len = need!(f.u32()) as usize;
        if len > MAX_NAME {
            return self.bad(format!("a machine name of {len} bytes"));
        }
        need!(f.take(len));
        self.next(Item::Nothing, f.at, Phase::Subsections)
    }

    /// Subsections of the configuration: capabilities, target page bits, UUID.
    fn subsections<'a>(&self, mut f: Fields<'a>) -> Step<'a> {
        if need!(f.u8()) != SUBSECTION {
            return self.next(Item::Nothing, 0, Phase::Top { checkpoint: false });
        }
        let name = need!(f.name());
        need!(f.u32());
        match name {
            b"configuration/capabilities" => {
                for _ in 0..need!(f.u32()).min(256) {
                    need!(f.name());
                }
            }
            b"configuration/target-page-bits" => drop(need!(f.u32())),
            b"configuration/uuid" => drop(need!(f.take(16))),
            other => return self.bad(format!("configuration subsection {:?}", String::from_utf8_lossy(other))),
        }
        self.next(Item::Nothing, f.at, Phase::Subsections)
    }

    fn top<'a>(&self, mut f: Fields<'a>, checkpoint: bool) -> Step<'a> {
        match need!(f.u8()) {
            COMMAND => {
                need!(f.u16());
                let len = need!(f.u16());
                need!(f.take(len.into()));
                self.next(Item::Nothing, f.at, Phase::Top { checkpoint })
            }
            SECTION_START if !checkpoint => self.ram_start(f),
            kind @ (SECTION_PART | SECTION_END) => {
                let section = need!(f.u32());
                if section != self.cursor.section {
                    return self.bad(format!("section {section}, RAM is section {}", self.cursor.section));
                }
                self.next(Item::Nothing, f.at, Phase::Ram { end: kind == SECTION_END })
            }
            kind => self.bad(format!("section type {kind:#x} where RAM was expected")),
        }
    }

    fn ram_start<'a>(&self, mut f: Fields<'a>) -> Step<'a> {
        let (section, name) = (need!(f.u32()), need!(f.name()));
        let (_instance, version) = (need!(f.u32()), need!(f.u32()));
        if name != b"ram" || version != 4 {
            let name = String::from_utf8_lossy(name);
            return self.bad(format!("section {name:?} version {version} before RAM: is a disk being migrated?"));
        }
        let mut next = self.next(Item::Nothing, f.at, Phase::Ram { end: false })?;
        if let Some(next) = &mut next {
            next.cursor.section = section;
        }
        Ok(next)
    }

    /// The list of RAM blocks: each must be as the profile has it.
    fn setup<'a>(&self, mut f: Fields<'a>, left: u64, blocks: u16) -> Step<'a> {
        let (name, len) = (need!(f.name()), need!(f.u64()));
        let text = String::from_utf8_lossy(name);
        if usize::from(blocks) >= MAX_BLOCKS {
            return self.bad(format!("more than {MAX_BLOCKS} RAM blocks"));
        }
        match self.blocks.iter().find(|b| b.name.as_bytes() == name) {
            None => return self.bad(format!("RAM block {text:?} is not in the profile")),
            Some(b) if b.used_length != len => {
                return self.bad(format!("RAM block {text:?} has {len} bytes, the profile says {}", b.used_length));
            }
            Some(_) if len > left => return self.bad(format!("RAM block {text:?} exceeds the announced total")),
            Some(_) => {}
        }
        let phase = match left - len {
            0 => Phase::Ram { end: false },
            left => Phase::Setup { left, blocks: blocks + 1 },
        };
        self.next(Item::Nothing, f.at, phase)
    }

    fn ram<'a>(&self, mut f: Fields<'a>, end: bool) -> Step<'a> {
        let word = need!(f.u64());
        let (offset, flags) = (word & !(PAGE_SIZE as u64 - 1), word & (PAGE_SIZE as u64 - 1));
        match flags {
            RAM_MEM_SIZE if !self.cursor.checkpoints => {
                self.next(Item::Nothing, f.at, Phase::Setup { left: offset, blocks: 0 })
            }
            RAM_EOS => self.next(Item::Nothing, f.at, Phase::Footer { end }),
            _ if flags & !RAM_CONTINUE == RAM_PAGE || flags & !RAM_CONTINUE == RAM_ZERO => {
                self.page(f, offset, flags, end)
            }
            _ => self.bad(format!("RAM flags {flags:#x}: an option of migration that is not spoken here")),
        }
    }

    fn page<'a>(&self, mut f: Fields<'a>, offset: u64, flags: u64, end: bool) -> Step<'a> {
        let block = if flags & RAM_CONTINUE == 0 {
            let name = need!(f.name());
            let found = self.blocks.iter().position(|b| b.name.as_bytes() == name);
            found.and_then(|index| u16::try_from(index).ok()).map(BlockId)
        } else {
            self.cursor.last
        };
        let Some(block) = block else { return self.bad("a page of a RAM block that is not in the profile") };
        let size = self.blocks[usize::from(block.0)].used_length;
        if offset.checked_add(PAGE_SIZE as u64).is_none_or(|past| past > size) {
            return self.bad(format!("a page at {offset:#x} of {block}, which has {size:#x} bytes"));
        }
        let item = if flags & RAM_ZERO != 0 {
            match need!(f.u8()) {
                0 => Item::Zero { block, offset },
                fill => return self.bad(format!("a page filled with {fill:#x}")),
            }
        } else {
            let bytes = need!(f.take(PAGE_SIZE));
            Item::Page { block, offset, data: bytes.try_into().expect("PAGE_SIZE bytes were taken") }
        };
        let mut next = self.next(item, f.at, Phase::Ram { end })?;
        if let Some(next) = &mut next {
            next.cursor.last = Some(block);
        }
        Ok(next)
    }

    fn footer<'a>(&self, mut f: Fields<'a>, end: bool) -> Step<'a> {
        let (kind, section) = (need!(f.u8()), need!(f.u32()));
        if (kind, section) != (FOOTER, self.cursor.section) {
            return self.bad(format!("a footer of RAM was expected, got {kind:#x} {section}"));
        }
        let phase = match (end, self.cursor.checkpoints) {
            (false, checkpoint) => Phase::Top { checkpoint },
            (true, false) => Phase::Blob,
            (true, true) => Phase::Eof,
        };
        self.next(Item::Nothing, f.at, phase)
    }

    /// Device sections carry no length. The first time, their end is where the description begins: EOF, its type, its
    /// length, and JSON that parses.
    fn blob<'a>(&self, bytes: &'a [u8]) -> Step<'a> {
        let mark = [SECTION_EOF, VMDESCRIPTION];
        let mut from = 0;
        while let Some(found) = find(&bytes[from..], &mark) {
            let at = from + found;
            let mut f = Fields { bytes, at: at + 2 };
            let len = need!(f.u32()) as usize;
            let json = (2..=MAX_DESCRIPTION).contains(&len).then(|| f.take(len));
            match json {
                Some(None) if bytes[f.at..].starts_with(b"{\"") => return Ok(None),
                Some(Some(json)) if serde_json::from_slice::<serde::de::IgnoredAny>(json).is_ok() => {
                    let skip = u32::try_from(1 + 4 + len).expect("bounded");
                    return self.next(Item::Nothing, 0, Phase::Device { left: at as u64 + 1, skip });
                }
                _ => from = at + 1,
            }
        }
        if bytes.len() >= self.reach() {
            return self.bad("no end of the device state was found");
        }
        Ok(None)
    }

    fn device<'a>(&self, bytes: &'a [u8], left: u64, skip: u32) -> Step<'a> {
        let len = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if len == 0 {
            return Ok(None);
        }
        self.next(Item::Device(&bytes[..len]), len, after_device(left - len as u64, skip))
    }

    fn skip<'a>(&self, bytes: &'a [u8], left: u32) -> Step<'a> {
        let len = bytes.len().min(left as usize);
        if len == 0 {
            return Ok(None);
        }
        let left = left - u32::try_from(len).expect("at most `left`");
        let phase = if left == 0 { Phase::Captured } else { Phase::Skip { left } };
        let mut next = self.next(Item::Nothing, len, phase)?;
        if let Some(next) = &mut next {
            next.cursor.checkpoints = true;
        }
        Ok(next)
    }

    fn message<'a>(&self, mut f: Fields<'a>, expected: u32, item: Item<'a>, phase: Phase) -> Step<'a> {
        let found = need!(f.u32());
        if found != expected {
            return self.bad(format!("COLO message {found}, expected {expected}"));
        }
        self.next(item, f.at, phase)
    }

    fn eof<'a>(&self, mut f: Fields<'a>) -> Step<'a> {
        match need!(f.u8()) {
            SECTION_EOF => self.next(Item::Nothing, f.at, Phase::Size),
            kind => self.bad(format!("section type {kind:#x} after a checkpoint's RAM")),
        }
    }

    fn size<'a>(&self, mut f: Fields<'a>) -> Step<'a> {
        let (message, size) = (need!(f.u32()), need!(f.u64()));
        if message != MSG_VMSTATE_SIZE {
            return self.bad(format!("COLO message {message}, expected {MSG_VMSTATE_SIZE}"));
        }
        if size == 0 || size > MAX_DEVICE {
            return self.bad(format!("device state of {size} bytes; the limit is {MAX_DEVICE}"));
        }
        self.next(Item::Nothing, f.at, Phase::Device { left: size, skip: 0 })
    }
}

fn after_device(left: u64, skip: u32) -> Phase {
    match (left, skip) {
        (0, 0) => Phase::Captured,
        (0, left) => Phase::Skip { left },
        (left, skip) => Phase::Device { left, skip },
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

/// Feeds arbitrary bytes, in chunks whose sizes come from the bytes themselves: for fuzzing. Returns the items seen.
pub fn fuzz(bytes: &[u8]) -> usize {
    let blocks = [("pc.ram", 16 << 20), ("pc.bios", 64 << 10)];
    let blocks = blocks.map(|(name, used_length)| RamBlock { name: name.to_owned(), used_length });
    let mut parser = Parser::new(blocks.to_vec());
    let (mut start, mut end, mut items) = (0, 0, 0);
    while end < bytes.len() {
        end = (end + 1 + usize::from(bytes[end]) * 16).min(bytes.len());
        loop {
            match parser.peek(&bytes[start..end]) {
                Ok(Some(next)) => start += parser.advance(&next),
                Ok(None) => break,
                Err(_) => return items,
            }
            items += 1;
        }
    }
    items
}
