//! The framing of QEMU's `-netdev stream`: a big-endian u32 length, then the Ethernet frame; the same both ways.
//!
//! ```text
//!   0        4                4 + length
//!   | length | Ethernet frame | length | Ethernet frame | ...
//! ```
//!
//! Source: `net_stream_data_receive` (QEMU `net/stream_data.c`) writes it, `net_fill_rstate` (`net/net.c`) reads it; the
//! latter closes the connection at a length over `NET_BUFSIZE`, so neither side ever has a reason to send one.

/// Bytes before each frame.
pub const HEADER: usize = 4;

/// Bytes in a frame at most: QEMU's `NET_BUFSIZE`, 4096 + 65536 (`include/net/net.h`).
pub const MAX_FRAME: usize = 4096 + 65536;

/// Bytes read at once: more than QEMU's socket buffer holds by default (net.core.wmem_default, 208 KiB of accounting,
/// some 140 KiB of full-sized frames), so one read usually empties it.
pub const READ_BUFFER: usize = 256 * 1024;

/// Bytes towards the VM that wait for room in its socket, at most.
pub const WRITE_BUFFER: usize = 256 * 1024;

/// A length over [`MAX_FRAME`]: not a peer that speaks this framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame claims {0} bytes, the limit is {MAX_FRAME}: not the framing of -netdev stream")]
pub struct Oversized(pub u32);

/// Cuts the byte stream from the VM into frames. A frame may arrive in any number of pieces.
#[derive(Debug)]
pub struct FrameReader {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for FrameReader {
    fn default() -> Self {
        Self { buf: vec![0; READ_BUFFER].into_boxed_slice(), start: 0, end: 0 }
    }
}

impl FrameReader {
    /// Where the next bytes belong; follow it with [`FrameReader::filled`]. Never empty once every whole frame has been
    /// taken, because then less than one frame is left.
    pub fn space(&mut self) -> &mut [u8] {
        self.buf.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        &mut self.buf[self.end..]
    }

    /// `n` bytes were put into [`FrameReader::space`].
    pub fn filled(&mut self, n: usize) {
        self.end = (self.end + n).min(self.buf.len());
    }

    /// The next whole frame, without its header; `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`Oversized`]; the stream is then unusable, and every further call gives the same error.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, Oversized> {
        let waiting = &self.buf[self.start..self.end];
        let Some((header, rest)) = waiting.split_first_chunk::<HEADER>() else { return Ok(None) };
        let length = u32::from_be_bytes(*header);
        let bytes = length as usize;
        if bytes > MAX_FRAME {
            return Err(Oversized(length));
        }
        if rest.len() < bytes {
            return Ok(None);
        }
        let frame = self.start + HEADER;
        self.start = frame + bytes;
        Ok(Some(&self.buf[frame..frame + bytes]))
    }

    /// Bytes of an unfinished frame, header included.
    #[must_use]
    pub fn partial(&self) -> usize {
        self.end - self.start
    }

    /// Forgets an unfinished frame: its connection is gone.
    pub fn reset(&mut self) {
        (self.start, self.end) = (0, 0);
    }
}

/// Frames on their way to the VM, headers and all, as one run of bytes: many frames leave in one write, and what a partial
/// write left over goes first in the next.
#[derive(Debug)]
pub struct FrameWriter {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
    frames: u64,
}

impl Default for FrameWriter {
    fn default() -> Self {
        Self { buf: vec![0; WRITE_BUFFER].into_boxed_slice(), start: 0, end: 0, frames: 0 }
    }
}

impl FrameWriter {
    /// Where a frame of up to [`MAX_FRAME`] bytes may be put; follow it with [`FrameWriter::commit`]. `None` when there is
    /// no room before the waiting bytes have been sent.
    pub fn room(&mut self) -> Option<&mut [u8]> {
        let from = self.end + HEADER;
        self.buf.get_mut(from..from + MAX_FRAME)
    }

    /// A frame of `bytes` bytes was put into [`FrameWriter::room`].
    pub fn commit(&mut self, bytes: usize) {
        let bytes = bytes.min(MAX_FRAME);
        let length = u32::try_from(bytes).expect("bounded by MAX_FRAME");
        self.buf[self.end..self.end + HEADER].copy_from_slice(&length.to_be_bytes());
        self.end += HEADER + bytes;
        self.frames += 1;
    }

    /// The bytes to send next; empty when nothing waits.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    /// `n` bytes of [`FrameWriter::pending`] were sent. Gives the frames delivered, when this emptied the buffer.
    pub fn sent(&mut self, n: usize) -> u64 {
        self.start = (self.start + n).min(self.end);
        if self.start < self.end { 0 } else { self.reset() }
    }

    /// Forgets what waits, and gives its number of frames: its connection is gone.
    pub fn reset(&mut self) -> u64 {
        (self.start, self.end) = (0, 0);
        std::mem::take(&mut self.frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wire(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut writer = FrameWriter::default();
        let mut out = Vec::new();
        for frame in frames {
            if writer.room().is_none() {
                out.extend_from_slice(writer.pending());
                writer.reset();
            }
            writer.room().expect("just emptied")[..frame.len()].copy_from_slice(frame);
            writer.commit(frame.len());
        }
        out.extend_from_slice(writer.pending());
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn frames_survive_any_split(
            sizes in prop::collection::vec(prop_oneof![0..200usize, 1400..1600usize, Just(MAX_FRAME)], 0..12),
            splits in prop::collection::vec(1..5000usize, 1..40),
        ) {
            let frames: Vec<Vec<u8>> = (0u8..).zip(&sizes).map(|(i, &n)| vec![i; n]).collect();
            let bytes = wire(&frames);
            let (mut reader, mut got, mut at) = (FrameReader::default(), Vec::new(), 0);
            for split in splits.iter().cycle() {
                if at == bytes.len() {
                    break;
                }
                let space = reader.space();
                let n = (*split).min(space.len()).min(bytes.len() - at);
                space[..n].copy_from_slice(&bytes[at..at + n]);
                reader.filled(n);
                at += n;
                while let Some(frame) = reader.next_frame().unwrap() {
                    got.push(frame.to_vec());
                }
            }
            prop_assert_eq!(got, frames);
            prop_assert_eq!(reader.partial(), 0);
        }
    }

    #[test]
    fn a_length_over_the_limit_is_an_error_for_good() {
        let mut reader = FrameReader::default();
        let over = u32::try_from(MAX_FRAME).unwrap() + 1;
        reader.space()[..4].copy_from_slice(&over.to_be_bytes());
        reader.filled(4);
        assert_eq!(reader.next_frame(), Err(Oversized(over)));
        assert_eq!(reader.next_frame(), Err(Oversized(over)));
    }

    #[test]
    fn a_partial_write_is_finished_before_anything_else() {
        let mut writer = FrameWriter::default();
        writer.room().unwrap()[..3].copy_from_slice(b"one");
        writer.commit(3);
        assert_eq!(writer.sent(5), 0);
        writer.room().unwrap()[..3].copy_from_slice(b"two");
        writer.commit(3);
        assert_eq!(writer.pending(), b"ne\0\0\0\x03two");
        assert_eq!(writer.sent(9), 2);
        assert!(writer.pending().is_empty());
    }

    #[test]
    fn a_full_writer_has_no_room() {
        let mut writer = FrameWriter::default();
        let mut n = 0;
        while writer.room().is_some() {
            writer.commit(MAX_FRAME);
            n += 1;
        }
        assert_eq!(n, WRITE_BUFFER / (HEADER + MAX_FRAME));
    }
}
