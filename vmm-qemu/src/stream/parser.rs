//! The parser: bytes in, pages and device state out into a [`CheckpointSink`].
//!
//! Each step reads one thing and hands it on; only then does the state change and do the bytes count as used. A step that
//! lacks bytes, or whose sink has no room, has done nothing, and is taken again later. Pages go to the sink straight from
//! the input: nothing is copied here, and nothing is allocated once the first checkpoint is over.
//!
//! ```text
//!  Header ─> Subsections ─> Element <───────────────┐
//!                             │ START               │ PART (footer)
//!                             ├──────> BlockList ─> Records ─> Footer
//!                             │ PART, END ─────────────^          │ END
//!                             v commands                          v
//!        Description <─ Device <────────────────────────────── Search
//!  (Captured) │                          COLO only, for ever:
//!             ├─> Ended (Plain)
//!             └─> Request ──(Ready)──> Send ─> Checkpoint ─> Records ─> Footer ─> Eof ─> Size ─> Device ──(Captured)──┐
//!                    ^────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The block that a record without a name continues is remembered over sections and checkpoints, as QEMU does.

use super::{
    MAX_DEVICE, Problem, RAM_VERSION, StreamError, command,
    cursor::{Cursor, Halt, text},
    element, message,
    search::SearchState,
};
use crate::blocks::{self, RamBlock};
use mc_core::{
    id::BlockId,
    source::{CheckpointSink, NoRoom},
};

/// Which kind of stream it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An ordinary migration: one checkpoint, then the end.
    Plain,
    /// A migration that goes over into checkpoints.
    Colo,
}

/// What [`Parser::feed`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fed {
    /// Bytes of the input that are done with. Offer the others again, with more behind them.
    pub used: usize,
    /// Why it stopped.
    pub outcome: Outcome,
}

/// Why [`Parser::feed`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing can be done with fewer than so many bytes (those that were not used count).
    More(usize),
    /// The sink has no room. Make some, then feed the same again.
    NoRoom,
    /// A whole checkpoint is in the sink.
    Captured,
    /// QEMU asks whether it may take a checkpoint.
    Ready,
}

/// A section of RAM, for what comes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    /// Of the first checkpoint, and not its last.
    More,
    /// The first checkpoint's last.
    Last,
    /// A later checkpoint's only one.
    Checkpoint,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Header,
    Subsections,
    Element,
    /// Bytes of blocks that are still to be announced.
    BlockList {
        left: Option<u64>,
    },
    Records(Section),
    Footer(Section),
    Search,
    Device {
        left: usize,
        first: bool,
        description: usize,
    },
    Description {
        left: usize,
    },
    Request,
    Send,
    Checkpoint,
    Eof,
    Size,
    Ended,
}

/// The parser of one stream. See the module.
#[derive(Debug)]
pub struct Parser {
    pub(super) kind: Kind,
    pub(super) blocks: Vec<RamBlock>,
    /// Which of them QEMU announced.
    pub(super) announced: Vec<bool>,
    pub(super) state: State,
    offset: u64,
    #[cfg(feature = "testing")]
    pub(super) machine: Vec<u8>,
    colo: bool,
    pub(super) ignore_shared: bool,
    /// The RAM section's id, once it has started.
    ram: Option<u32>,
    pub(super) last_block: Option<BlockId>,
    pub(super) search: SearchState,
}

impl Parser {
    /// Expects a stream of `kind` from a VM with these blocks; the index of a block is its [`BlockId`].
    pub fn new(kind: Kind, blocks: Vec<RamBlock>) -> Result<Self, StreamError> {
        blocks::check(&blocks).map_err(|error| StreamError { at: 0, problem: error.into() })?;
        Ok(Self {
            kind,
            announced: vec![false; blocks.len()],
            blocks,
            state: State::Header,
            offset: 0,
            #[cfg(feature = "testing")]
            machine: Vec::new(),
            colo: false,
            ignore_shared: false,
            ram: None,
            last_block: None,
            search: SearchState::default(),
        })
    }

    /// The machine that QEMU says it is, as `pc-i440fx-7.2`; empty before the header has been read.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn machine(&self) -> &str {
        std::str::from_utf8(&self.machine).unwrap_or_default()
    }

    /// Bytes used so far.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the first checkpoint is over: from there on nothing is allocated.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn in_checkpoints(&self) -> bool {
        matches!(self.state, State::Request | State::Send | State::Checkpoint | State::Eof | State::Size)
            || matches!(self.state, State::Records(Section::Checkpoint) | State::Footer(Section::Checkpoint))
            || matches!(self.state, State::Device { first: false, .. })
    }

    /// Takes what it can from the front of `input`.
    ///
    /// Until the first checkpoint is captured, `input` must end where the bytes received so far end: that QEMU waits there
    /// for an answer is part of how the end of the device state is found.
    ///
    /// # Errors
    /// A stream that is not what it should be. The parser is of no use afterwards.
    pub fn feed(&mut self, input: &[u8], sink: &mut dyn CheckpointSink) -> Result<Fed, StreamError> {
        let mut used = 0;
        loop {
            let mut cursor = Cursor::new(&input[used..]);
            let step = self.step(&mut cursor, sink);
            let outcome = match step {
                Ok(outcome) => {
                    used += cursor.at;
                    self.offset += cursor.at as u64;
                    outcome
                }
                Err(Halt::Need(bytes)) => Some(Outcome::More(bytes)),
                Err(Halt::NoRoom) => Some(Outcome::NoRoom),
                Err(Halt::Bad(problem)) => return Err(StreamError { at: self.offset + cursor.at as u64, problem }),
            };
            if let Some(outcome) = outcome {
                return Ok(Fed { used, outcome });
            }
        }
    }

    fn step(&mut self, cursor: &mut Cursor<'_>, sink: &mut dyn CheckpointSink) -> Result<Option<Outcome>, Halt> {
        match self.state {
            State::Header => self.header(cursor)?,
            State::Subsections => self.subsection(cursor)?,
            State::Element => self.element(cursor)?,
            State::BlockList { left } => self.block_list(cursor, left)?,
            State::Records(section) => self.record(cursor, section, sink)?,
            State::Footer(section) => self.footer(cursor, section)?,
            State::Search => self.find_end(cursor)?,
            State::Device { left, first, description } => {
                return self.device(cursor, left, first, description, sink);
            }
            State::Description { left } => return self.description(cursor, left),
            State::Request => {
                expect_message(cursor, message::REQUEST, "1 (CHECKPOINT_REQUEST)")?;
                self.state = State::Send;
                return Ok(Some(Outcome::Ready));
            }
            State::Send => {
                expect_message(cursor, message::VMSTATE_SEND, "3 (VMSTATE_SEND)")?;
                self.state = State::Checkpoint;
            }
            State::Checkpoint => self.checkpoint(cursor)?,
            State::Eof => {
                let found = cursor.u8()?;
                expect_element(found, element::EOF, "0x00 (end of sections)")?;
                self.state = State::Size;
            }
            State::Size => self.size(cursor)?,
            State::Ended if cursor.rest().is_empty() => return Ok(Some(Outcome::More(1))),
            State::Ended => return Err(Problem::Trailing.into()),
        }
        Ok(None)
    }

    fn element(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Halt> {
        match cursor.u8()? {
            element::COMMAND => self.command(cursor),
            element::START => self.start(cursor),
            element::PART => self.continue_ram(cursor, Section::More),
            element::END => self.continue_ram(cursor, Section::Last),
            found => Err(Problem::Element { found, expected: "a command or a section of RAM" }.into()),
        }
    }

    fn command(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Halt> {
        let (command, len) = (cursor.u16()?, cursor.u16()?);
        match (command, len) {
            (command::ENABLE_COLO, 0) if self.kind == Kind::Colo => self.colo = true,
            (command::ENABLE_COLO, 0) => return Err(Problem::Colo.into()),
            (command::SWITCHOVER_START, 0) => {}
            (1 | 2, _) => {
                return Err(Problem::Command { command, len, hint: ": switch the capability return-path off" }.into());
            }
            _ => return Err(Problem::Command { command, len, hint: "" }.into()),
        }
        Ok(())
    }

    fn start(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Halt> {
        let (id, name, instance) = (cursor.u32()?, cursor.idstr()?, cursor.u32()?);
        let version = cursor.u32()?;
        if name != b"ram" || instance != 0 {
            return Err(Problem::Section(text(name)).into());
        }
        expect_version("section \"ram\"", version, RAM_VERSION)?;
        if self.ram.is_some() {
            return Err(Problem::Order("it starts a second time").into());
        }
        if self.kind == Kind::Colo && !self.colo {
            return Err(Problem::NotColo.into());
        }
        self.ram = Some(id);
        self.state = State::BlockList { left: None };
        Ok(())
    }

    fn continue_ram(&mut self, cursor: &mut Cursor<'_>, section: Section) -> Result<(), Halt> {
        let found = cursor.u32()?;
        match self.ram {
            None => Err(Problem::Order("it continues before it started").into()),
            Some(expected) if expected != found => Err(Problem::SectionId { found, expected }.into()),
            Some(_) => {
                self.state = State::Records(section);
                Ok(())
            }
        }
    }

    fn footer(&mut self, cursor: &mut Cursor<'_>, section: Section) -> Result<(), Halt> {
        expect_element(cursor.u8()?, element::FOOTER, "0x7e (end of a section)")?;
        let found = cursor.u32()?;
        let expected = self.ram.unwrap_or_default();
        if found != expected {
            return Err(Problem::SectionId { found, expected }.into());
        }
        self.state = match section {
            Section::More => State::Element,
            Section::Last => State::Search,
            Section::Checkpoint => State::Eof,
        };
        Ok(())
    }

    fn checkpoint(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Halt> {
        match cursor.u8()? {
            element::COMMAND => self.command(cursor),
            element::END => self.continue_ram(cursor, Section::Checkpoint),
            found => Err(Problem::Element { found, expected: "0x03 (the RAM of a checkpoint)" }.into()),
        }
    }

    fn size(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Halt> {
        expect_message(cursor, message::VMSTATE_SIZE, "4 (VMSTATE_SIZE)")?;
        let len = cursor.u64()?;
        let left = usize::try_from(len).unwrap_or(usize::MAX);
        if !(2..=MAX_DEVICE).contains(&left) {
            return Err(Problem::Length { what: "device state", len, limit: MAX_DEVICE }.into());
        }
        expect_device(*cursor.rest().first().ok_or(Halt::Need(cursor.at + 1))?)?;
        self.state = State::Device { left, first: false, description: 0 };
        Ok(())
    }

    fn device(
        &mut self,
        cursor: &mut Cursor<'_>,
        left: usize,
        first: bool,
        description: usize,
        sink: &mut dyn CheckpointSink,
    ) -> Result<Option<Outcome>, Halt> {
        let rest = cursor.rest();
        let offered = &rest[..left.min(rest.len())];
        if offered.is_empty() {
            return Err(Halt::Need(1));
        }
        if offered.len() == left && offered.last() != Some(&element::EOF) {
            return Err(Problem::Device("does not end with the byte 0x00").into());
        }
        let taken = sink.device(offered).map_err(|NoRoom| Halt::NoRoom)?.min(offered.len());
        if taken == 0 {
            return Err(Halt::NoRoom);
        }
        cursor.take(taken)?;
        let left = left - taken;
        self.state = match (left, first) {
            (0, true) => State::Description { left: description },
            (0, false) => State::Request,
            _ => State::Device { left, first, description },
        };
        Ok((left == 0 && !first).then_some(Outcome::Captured))
    }

    fn description(&mut self, cursor: &mut Cursor<'_>, left: usize) -> Result<Option<Outcome>, Halt> {
        cursor.take(left)?;
        self.state = if self.kind == Kind::Colo { State::Request } else { State::Ended };
        Ok(Some(Outcome::Captured))
    }
}

pub(super) fn expect_version(what: &'static str, found: u32, supported: u32) -> Result<(), Halt> {
    if found == supported { Ok(()) } else { Err(Problem::Version { what, found, supported }.into()) }
}

pub(super) fn expect_element(found: u8, wanted: u8, expected: &'static str) -> Result<(), Halt> {
    if found == wanted { Ok(()) } else { Err(Problem::Element { found, expected }.into()) }
}

/// Device state begins with a FULL section.
pub(super) fn expect_device(first: u8) -> Result<(), Halt> {
    if first == element::FULL {
        Ok(())
    } else {
        Err(Problem::Device("does not begin with a full section (0x04)").into())
    }
}

fn expect_message(cursor: &mut Cursor<'_>, wanted: u32, expected: &'static str) -> Result<(), Halt> {
    let found = cursor.u32()?;
    if found == wanted { Ok(()) } else { Err(Problem::Message { found, expected }.into()) }
}
