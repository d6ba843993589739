//! A slab's bytes: the same in staging, on the wire and at the standby.
//!
//! ```text
//!  0 magic "AIS1"   4 version u16   6 zero u16    8 incarnation u64
//! 16 generation u64                24 epoch u64
//! 32 index u32     36 records u32  40 body_len u32  44 pages u32
//! 48 zero u64      56 body CRC32C  60 CRC32C of bytes 0..60
//! 64 body: `records` times
//!    0 kind u8   1 zero u8   2 block u16   4 count u32   8 offset u64   then the record's data
//! ```
//!
//! | kind | count | offset | data |
//! |---|---|---|---|
//! | 1 pages | pages, contiguous | of the first, in its RAM block, page aligned | count x 4096 bytes |
//! | 2 zero | pages, contiguous, all zero | likewise | none |
//! | 3 device | bytes | in the epoch's device state | count bytes, then zeros to a multiple of 8; block = 0 |

use super::{VERSION, WireError, check_crc, check_magic, check_version, view};
use crate::id::{BlockId, Epoch, Generation, Incarnation, PAGE_SIZE};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

/// "AIS1".
pub const MAGIC: u32 = u32::from_le_bytes(*b"AIS1");
/// Bytes of the slab header.
pub const HEADER_LEN: usize = 64;
/// Bytes of a record's header.
pub const RECORD_LEN: usize = 16;
/// The smallest slab: the header and one page.
pub const MIN_SLAB: usize = 8192;
/// The largest slab.
pub const MAX_SLAB: usize = 16 << 20;
const HEADER: &str = "slab header";
const RECORD: &str = "slab record";

/// What a slab's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlabHeader {
    /// The connection.
    pub incarnation: Incarnation,
    /// The generation.
    pub generation: Generation,
    /// The epoch.
    pub epoch: Epoch,
    /// 0.. within the epoch.
    pub index: u32,
    /// Records in the body.
    pub records: u32,
    /// Bytes after the header.
    pub body_len: u32,
    /// Pages in the body, zero pages included.
    pub pages: u32,
    /// CRC32C of the body.
    pub body_crc: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: le::U32,
    version: le::U16,
    zero: le::U16,
    incarnation: le::U64,
    generation: le::U64,
    epoch: le::U64,
    index: le::U32,
    records: le::U32,
    body_len: le::U32,
    pages: le::U32,
    zero2: le::U64,
    body_crc: le::U32,
    header_crc: le::U32,
}
const _: () = assert!(size_of::<RawHeader>() == HEADER_LEN);

impl SlabHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut raw = RawHeader {
            magic: MAGIC.into(),
            version: VERSION.into(),
            zero: 0.into(),
            incarnation: self.incarnation.0.into(),
            generation: self.generation.0.into(),
            epoch: self.epoch.0.into(),
            index: self.index.into(),
            records: self.records.into(),
            body_len: self.body_len.into(),
            pages: self.pages.into(),
            zero2: 0.into(),
            body_crc: self.body_crc.into(),
            header_crc: 0.into(),
        };
        raw.header_crc = crc32c::crc32c(&raw.as_bytes()[..HEADER_LEN - 4]).into();
        let mut out = [0; HEADER_LEN];
        out.copy_from_slice(raw.as_bytes());
        out
    }

    /// Checks and reads the header alone. `slab_size` is the size agreed on in the hello.
    pub fn decode(bytes: &[u8], slab_size: usize) -> Result<Self, WireError> {
        let raw: &RawHeader = view(HEADER, bytes)?;
        check_magic(HEADER, raw.magic.get(), MAGIC)?;
        check_crc(HEADER, raw.header_crc.get(), &bytes[..HEADER_LEN - 4])?;
        check_version(HEADER, raw.version.get())?;
        let body_len = raw.body_len.get();
        if body_len as usize > slab_size.saturating_sub(HEADER_LEN) {
            let why = "larger than the slab size agreed on";
            return Err(WireError::Field { record: HEADER, field: "body_len", value: body_len.into(), why });
        }
        Ok(Self {
            incarnation: Incarnation(raw.incarnation.get()),
            generation: Generation(raw.generation.get()),
            epoch: Epoch(raw.epoch.get()),
            index: raw.index.get(),
            records: raw.records.get(),
            body_len,
            pages: raw.pages.get(),
            body_crc: raw.body_crc.get(),
        })
    }

    /// Whether `body` is what was checksummed.
    pub fn check_body(&self, body: &[u8]) -> Result<(), WireError> {
        self.check_crc(crc32c::crc32c(body))
    }

    /// Whether a body with this checksum is.
    pub(crate) fn check_crc(&self, computed: u32) -> Result<(), WireError> {
        let (record, found) = ("slab body", self.body_crc);
        if found == computed { Ok(()) } else { Err(WireError::Checksum { record, found, computed }) }
    }
}

/// One record of a slab's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// Contiguous pages.
    Pages {
        /// Which RAM block.
        block: BlockId,
        /// Of the first page, in the block.
        offset: u64,
        /// A multiple of [`PAGE_SIZE`] bytes.
        data: &'a [u8],
    },
    /// Contiguous pages of zeros.
    Zero {
        /// Which RAM block.
        block: BlockId,
        /// Of the first page, in the block.
        offset: u64,
        /// How many pages.
        pages: u32,
    },
    /// A piece of the device state.
    Device {
        /// Where it goes in the epoch's device state.
        offset: u64,
        /// The bytes.
        data: &'a [u8],
    },
}

/// Kinds of records; 0 is none, so that a zeroed slab says nothing.
pub(crate) const KIND_PAGES: u8 = 1;
/// See [`KIND_PAGES`].
pub(crate) const KIND_ZERO: u8 = 2;
/// See [`KIND_PAGES`].
pub(crate) const KIND_DEVICE: u8 = 3;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawRecord {
    pub(crate) kind: u8,
    pub(crate) zero: u8,
    pub(crate) block: le::U16,
    pub(crate) count: le::U32,
    pub(crate) offset: le::U64,
}
const _: () = assert!(size_of::<RawRecord>() == RECORD_LEN);

/// Walks the records of a slab's body.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
    left: u32,
}

impl<'a> Records<'a> {
    /// `body` must have passed [`SlabHeader::check_body`]; its content is still distrusted.
    #[must_use]
    pub fn new(header: &SlabHeader, body: &'a [u8]) -> Self {
        Self { rest: body, left: header.records }
    }

    fn step(&mut self) -> Result<Record<'a>, WireError> {
        let raw: &RawRecord = view(RECORD, self.rest)?;
        let (block, count, offset) = (BlockId(raw.block.get()), raw.count.get(), raw.offset.get());
        let (data_len, padded) = match raw.kind {
            KIND_PAGES => (count as usize * PAGE_SIZE, count as usize * PAGE_SIZE),
            KIND_ZERO => (0, 0),
            KIND_DEVICE => (count as usize, (count as usize).next_multiple_of(8)),
            kind => return Err(bad("kind", u64::from(kind), "no such kind of record")),
        };
        if raw.kind != KIND_DEVICE && !offset.is_multiple_of(PAGE_SIZE as u64) {
            return Err(bad("offset", offset, "not page aligned"));
        }
        if count == 0 {
            return Err(bad("count", 0, "an empty record"));
        }
        let need = RECORD_LEN + padded;
        let short = WireError::Short { record: RECORD, have: self.rest.len(), need };
        let data = self.rest.get(RECORD_LEN..RECORD_LEN + data_len).ok_or_else(|| short.clone())?;
        self.rest = self.rest.get(need..).ok_or(short)?;
        Ok(match raw.kind {
            KIND_PAGES => Record::Pages { block, offset, data },
            KIND_ZERO => Record::Zero { block, offset, pages: count },
            _ => Record::Device { offset, data },
        })
    }
}

fn bad(field: &'static str, value: u64, why: &'static str) -> WireError {
    WireError::Field { record: RECORD, field, value, why }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            let trailing = std::mem::take(&mut self.rest).len();
            return (trailing != 0).then(|| Err(bad("body_len", trailing as u64, "bytes after the last record")));
        }
        self.left -= 1;
        let record = self.step();
        if record.is_err() {
            (self.left, self.rest) = (0, &[]);
        }
        Some(record)
    }
}
