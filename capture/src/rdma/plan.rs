//! Which pieces go into which write.
//!
//! A slab has its pages behind record headers, which the processor has written already:
//!
//! ```text
//! slab:   header │rec│ page page │rec│ page │rec│ page │
//! places:            └──── 0 ───┘    └─ 1 ─┘    └─ 2 ─┘
//! write:             piece, piece, *, piece, *,  piece        *: the slab's own bytes, written onto themselves
//! ```
//!
//! A write goes to contiguous memory. So that it can gather scattered pages nevertheless, it gathers the headers between
//! them too, from where they are: the device writes onto them what they are already.

use mc_core::{slab::Place, wire::slab::RECORD_LEN};
use transport_rdma::types::Piece;

/// More than so many bytes between two places are not worth a piece: a few records of zero pages.
const BRIDGE: usize = 4 * RECORD_LEN;

/// What a write may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Pieces.
    pub gather: usize,
    /// Bytes.
    pub bytes: usize,
}

/// How far a slab's places are planned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    place: usize,
    /// Bytes of that place.
    done: usize,
}

impl Cursor {
    /// Whether everything is.
    #[must_use]
    pub(super) fn is_at_end(&self, places: &[Place]) -> bool {
        self.place >= places.len()
    }

    fn advance(&mut self, places: &[Place], bytes: usize) {
        self.done += bytes;
        if places[self.place].len() == self.done {
            *self = Self { place: self.place + 1, done: 0 };
        }
    }
}

/// Where memory is, as pieces of regions.
pub(super) trait Locate {
    /// The first piece of `len` bytes of guest RAM from `offset` of `place` on; shorter than `len` where a region ends.
    fn guest(&self, place: &Place, offset: usize, len: usize) -> Piece;
    /// `len` bytes at `at` of the slab.
    fn slab(&self, at: usize, len: usize) -> Piece;
}

/// A planned write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Write {
    /// Where in the slab.
    pub at: usize,
    /// Bytes.
    pub bytes: usize,
}

/// Appends the pieces of the next write to `pieces`; `None` when there is nothing left.
pub(super) fn next_write(
    places: &[Place],
    cursor: &mut Cursor,
    shape: Shape,
    memory: &impl Locate,
    pieces: &mut Vec<Piece>,
) -> Option<Write> {
    let first = places.get(cursor.place)?;
    let (at, before) = (first.at + cursor.done, pieces.len());
    let mut end = at;
    while let Some(place) = places.get(cursor.place) {
        let room = shape.bytes - (end - at);
        let gap = place.at + cursor.done - end;
        let needed = if gap > 0 { 2 } else { 1 };
        // A page is not split but where a region ends, or a write would carry nothing.
        if pieces.len() - before + needed > shape.gather || gap > BRIDGE || gap + PAGE > room {
            break;
        }
        if gap > 0 {
            pieces.push(memory.slab(end, gap));
        }
        let want = (place.len() - cursor.done).min((room - gap) / PAGE * PAGE);
        let piece = memory.guest(place, cursor.done, want);
        pieces.push(piece);
        let got = piece.length as usize;
        cursor.advance(places, got);
        end += gap + got;
    }
    Some(Write { at, bytes: end - at })
}

const PAGE: usize = mc_core::id::PAGE_SIZE;

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::{
        id::BlockId,
        slab::{SlabPool, SlabWriter},
    };
    use proptest::prelude::*;

    /// Guest RAM in regions of three pages; the slab at a million.
    struct Memory;
    const SLAB: u64 = 1 << 40;

    impl Locate for Memory {
        fn guest(&self, place: &Place, offset: usize, len: usize) -> Piece {
            let addr = place.offset + offset as u64;
            let region = 3 * PAGE as u64;
            let length = u32::try_from((len as u64).min(region - addr % region)).unwrap();
            Piece { addr, length, lkey: 1 }
        }

        fn slab(&self, at: usize, len: usize) -> Piece {
            Piece { addr: SLAB + at as u64, length: u32::try_from(len).unwrap(), lkey: 2 }
        }
    }

    fn writer(runs: &[(u64, u32, bool)]) -> SlabWriter {
        let mut writer = SlabPool::new(1 << 20, 1 << 20).take().unwrap().writer();
        for &(page, pages, zero_first) in runs {
            if zero_first {
                writer.zero(BlockId(0), 1 << 30).unwrap();
            }
            writer.reserve(BlockId(0), page * PAGE as u64, pages).unwrap();
        }
        writer
    }

    proptest! {
        #[test]
        fn every_page_is_written_once_to_its_place(
            runs in prop::collection::vec((0..40_u64, 1..9_u32, any::<bool>()), 1..20),
            gather in 1..33_usize, kib in 4..130_usize,
        ) {
            let writer = writer(&runs);
            let (places, shape) = (writer.places(), Shape { gather, bytes: kib << 10 });
            // (address in the slab, address of the source) of every byte range, as the device would copy it.
            let mut landed = Vec::new();
            let (mut cursor, mut pieces) = (Cursor::default(), Vec::new());
            while let Some(write) = next_write(places, &mut cursor, shape, &Memory, &mut pieces) {
                prop_assert!(!pieces.is_empty() && pieces.len() <= gather && write.bytes <= shape.bytes);
                prop_assert!(pieces.last().unwrap().lkey == 1 && pieces[0].lkey == 1);
                let mut to = write.at;
                for piece in pieces.drain(..) {
                    match piece.lkey {
                        1 => landed.push((to, piece.addr, piece.length as usize)),
                        _ => prop_assert_eq!(piece.addr, SLAB + to as u64, "a header moved"),
                    }
                    to += piece.length as usize;
                }
                prop_assert_eq!(to, write.at + write.bytes);
            }
            prop_assert!(cursor.is_at_end(places));
            let mut landed = landed.into_iter();
            for place in places {
                let mut done = 0;
                while done < place.len() {
                    let (to, from, len) = landed.next().unwrap();
                    prop_assert_eq!((to, from), (place.at + done, place.offset + done as u64));
                    done += len;
                }
                prop_assert_eq!(done, place.len());
            }
            prop_assert!(landed.next().is_none());
        }
    }

    #[test]
    fn scattered_pages_are_gathered_with_the_headers_between_them() {
        let writer = writer(&[(0, 1, false), (5, 1, false), (9, 1, false)]);
        let (mut cursor, mut pieces) = (Cursor::default(), Vec::new());
        let shape = Shape { gather: 16, bytes: 64 << 10 };
        let write = next_write(writer.places(), &mut cursor, shape, &Memory, &mut pieces).unwrap();
        assert_eq!(write.bytes, 3 * PAGE + 2 * RECORD_LEN);
        assert_eq!(pieces.iter().map(|p| p.length).collect::<Vec<_>>(), [4096, 16, 4096, 16, 4096]);
        assert_eq!(next_write(writer.places(), &mut cursor, shape, &Memory, &mut pieces), None);
    }
}
