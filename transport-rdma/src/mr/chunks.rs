//! Large memory is registered in chunks: devices limit a region's size, some of them silently.

/// No chunk is larger, whatever the device says: 1 GiB.
pub const MAX_CHUNK: usize = 1 << 30;

/// How memory is divided: all chunks have the same size but for the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunks {
    len: usize,
    chunk: usize,
}

/// A part of memory that lies in one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which chunk.
    pub chunk: usize,
    /// Where in the memory.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
}

impl Chunks {
    /// Of `len` bytes, none larger than `wanted`, the device's `max_mr_size`, or [`MAX_CHUNK`], in whole pages of
    /// `page_size` bytes (a power of two) and at least one.
    #[must_use]
    pub fn new(len: usize, wanted: usize, max_mr_size: u64, page_size: usize) -> Self {
        let most = wanted.min(MAX_CHUNK).min(usize::try_from(max_mr_size).unwrap_or(usize::MAX));
        Self { len, chunk: (most & !(page_size - 1)).max(page_size) }
    }

    /// Bytes of each chunk but the last.
    #[must_use]
    pub fn chunk_bytes(&self) -> usize {
        self.chunk
    }

    /// Every chunk, whole.
    pub fn all(self) -> impl Iterator<Item = Span> {
        self.spans(0, self.len)
    }

    /// The parts of `offset..offset + len`, in order.
    ///
    /// # Panics
    /// When they are not inside.
    pub fn spans(self, offset: usize, len: usize) -> impl Iterator<Item = Span> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "outside the memory");
        let (mut at, end) = (offset, offset + len);
        std::iter::from_fn(move || {
            let chunk = at / self.chunk;
            let span = Span { chunk, offset: at, len: (end - at).min((chunk + 1) * self.chunk - at) };
            at += span.len;
            (span.len > 0).then_some(span)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn spans_tile_what_was_asked_for_and_cross_no_border(
            pages in 1..200_usize, wanted in 0..70_000_usize, limit in 0..70_000_u64, from in 0..1000_usize, len in 0..1000_usize,
        ) {
            let chunks = Chunks::new(pages * 4096, wanted, limit, 4096);
            let (size, offset) = (chunks.chunk_bytes(), from.min(pages * 4096));
            prop_assert!(size.is_multiple_of(4096) && size > 0);
            prop_assert!(size <= wanted.max(4096) && size as u64 <= limit.max(4096));
            let len = (len * 97).min(pages * 4096 - offset);
            let mut at = offset;
            for span in chunks.spans(offset, len) {
                prop_assert_eq!(span.offset, at);
                prop_assert_eq!(span.chunk, at / size);
                prop_assert!(span.len > 0 && span.offset + span.len <= (span.chunk + 1) * size);
                at += span.len;
            }
            prop_assert_eq!(at, offset + len);
            prop_assert_eq!(chunks.all().map(|span| span.len).sum::<usize>(), pages * 4096);
        }
    }

    #[test]
    fn no_device_gets_more_than_a_gigabyte_and_huge_pages_stay_whole() {
        let unlimited = Chunks::new(5 << 30, usize::MAX, u64::MAX, 4096);
        assert_eq!(unlimited.all().map(|s| s.len).collect::<Vec<_>>(), [1 << 30; 5]);
        assert_eq!(Chunks::new(1 << 30, (3 << 20) + 5, u64::MAX, 2 << 20).chunk_bytes(), 2 << 20);
        assert_eq!(Chunks::new(1 << 30, 0, 0, 2 << 20).chunk_bytes(), 2 << 20);
    }

    #[test]
    #[should_panic(expected = "outside the memory")]
    fn nothing_is_located_beyond_the_end() {
        drop(Chunks::new(8192, 4096, u64::MAX, 4096).spans(4096, 4097));
    }
}
