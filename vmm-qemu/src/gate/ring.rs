//! Held frames, end to end in one ring of bytes: its size is the limit, and a frame costs no allocation.
//!
//! ```text
//!        head                          tail
//!         v                             v
//!   | ... | NIC, length | frame, padded | free ... | wrap |      records are aligned to 8 bytes
//! ```
//!
//! A frame is never split: where it does not fit before the ring's end, a wrap record covers the rest and the frame goes to
//! the start. The memory is asked for zeroed, so the kernel backs only what has been used; an emptied ring starts again
//! at its beginning, so a gate that holds little stays small.

/// Bytes of a record before its frame: NIC (u16), unused (u16), length (u32).
const RECORD: usize = 8;
/// In place of a length: nothing more before the ring's end.
const WRAP: u32 = u32::MAX;

/// A queue of frames with a fixed size in bytes.
#[derive(Debug)]
pub(super) struct Ring {
    buf: Box<[u8]>,
    head: usize,
    tail: usize,
    used: usize,
    frames: u64,
    bytes: u64,
}

impl Ring {
    /// A ring of at most `size` bytes, overhead included.
    pub(super) fn new(size: usize) -> Self {
        let buf = vec![0; size - size % RECORD].into_boxed_slice();
        Self { buf, head: 0, tail: 0, used: 0, frames: 0, bytes: 0 }
    }

    /// Frames held.
    pub(super) fn frames(&self) -> u64 {
        self.frames
    }

    /// Their bytes, without overhead.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends a frame; `false` when there is no room for it.
    pub(super) fn push(&mut self, nic: u16, frame: &[u8]) -> bool {
        let Ok(length) = u32::try_from(frame.len()) else { return false };
        let need = size(frame.len());
        if !self.make_room(need) {
            return false;
        }
        let record = &mut self.buf[self.tail..self.tail + need];
        record[..2].copy_from_slice(&nic.to_le_bytes());
        record[4..RECORD].copy_from_slice(&length.to_le_bytes());
        record[RECORD..RECORD + frame.len()].copy_from_slice(frame);
        self.tail += need;
        self.used += need;
        self.frames += 1;
        self.bytes += u64::from(length);
        true
    }

    /// Moves `tail` to where `need` bytes are free in one piece.
    fn make_room(&mut self, need: usize) -> bool {
        if self.used == 0 {
            (self.head, self.tail) = (0, 0);
        }
        if self.tail < self.head || (self.tail == self.head && self.used > 0) {
            return need <= self.head - self.tail;
        }
        let rest = self.buf.len() - self.tail;
        if need <= rest {
            return true;
        }
        if need > self.head {
            return false;
        }
        if rest > 0 {
            self.buf[self.tail + 4..self.tail + RECORD].copy_from_slice(&WRAP.to_le_bytes());
        }
        self.used += rest;
        self.tail = 0;
        true
    }

    /// The oldest frame and its NIC.
    pub(super) fn front(&self) -> Option<(u16, &[u8])> {
        let (at, length) = self.first()?;
        let nic = u16::from_le_bytes([self.buf[at], self.buf[at + 1]]);
        Some((nic, &self.buf[at + RECORD..at + RECORD + length]))
    }

    /// Removes the oldest frame.
    pub(super) fn pop(&mut self) {
        let Some((at, length)) = self.first() else { return };
        if at != self.head {
            self.used -= self.buf.len() - self.head;
        }
        self.head = at + size(length);
        self.used -= size(length);
        self.frames -= 1;
        self.bytes -= length as u64;
    }

    /// Where the oldest record starts, wrap records skipped, and its frame's length.
    fn first(&self) -> Option<(usize, usize)> {
        if self.frames == 0 {
            return None;
        }
        match self.length_at(self.head) {
            None | Some(WRAP) => self.length_at(0).map(|n| (0, n as usize)),
            Some(n) => Some((self.head, n as usize)),
        }
    }

    /// The length in the record at `at`; `None` at the ring's end.
    fn length_at(&self, at: usize) -> Option<u32> {
        let bytes = self.buf.get(at + 4..at + RECORD)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }
}

/// Bytes of a record whose frame has `length`.
fn size(length: usize) -> usize {
    RECORD + length.next_multiple_of(RECORD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn behaves_like_a_queue(ops in prop::collection::vec((any::<bool>(), 0..90usize, 0..3u16), 0..400), room in 100..700usize) {
            let mut ring = Ring::new(room);
            let mut model: VecDeque<(u16, Vec<u8>)> = VecDeque::new();
            for (i, (push, length, nic)) in ops.into_iter().enumerate() {
                let frame = vec![i.to_le_bytes()[0]; length];
                if push {
                    if ring.push(nic, &frame) {
                        model.push_back((nic, frame));
                    } else {
                        prop_assert!(model.iter().map(|(_, f)| size(f.len())).sum::<usize>() + 3 * size(90) > ring.buf.len());
                    }
                } else {
                    ring.pop();
                    model.pop_front();
                }
                prop_assert_eq!(ring.front(), model.front().map(|(n, f)| (*n, f.as_slice())));
                prop_assert_eq!(ring.frames(), model.len() as u64);
                prop_assert_eq!(ring.bytes(), model.iter().map(|(_, f)| f.len() as u64).sum::<u64>());
                prop_assert!(ring.used <= ring.buf.len());
            }
        }
    }

    #[test]
    fn an_empty_ring_takes_a_frame_of_its_whole_size() {
        let mut ring = Ring::new(128);
        assert!(ring.push(1, &[7; 40]));
        ring.pop();
        assert!(ring.push(2, &[8; 120]));
        assert!(!ring.push(2, &[]));
        assert_eq!(ring.front(), Some((2, &[8; 120][..])));
    }
}
