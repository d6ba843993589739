//! A cursor over a buffer that may end in the middle of a value.

use super::Problem;

/// Why a step ended without having done anything.
#[derive(Debug)]
pub(super) enum Halt {
    /// So many bytes are needed, counted from where the step began.
    Need(usize),
    /// The sink has no room.
    NoRoom,
    /// The stream is wrong.
    Bad(Problem),
}

impl From<Problem> for Halt {
    fn from(problem: Problem) -> Self {
        Self::Bad(problem)
    }
}

/// The bytes at hand, and how many of them were read.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// What was not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Halt> {
        let end = self.at.saturating_add(len);
        let taken = self.bytes.get(self.at..end).ok_or(Halt::Need(end))?;
        self.at = end;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Halt> {
        let found = self.rest().first_chunk().ok_or(Halt::Need(self.at + N))?;
        self.at += N;
        Ok(found)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Halt> {
        self.array::<1>().map(|b| b[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, Halt> {
        self.array().map(|b| u16::from_be_bytes(*b))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Halt> {
        self.array().map(|b| u32::from_be_bytes(*b))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Halt> {
        self.array().map(|b| u64::from_be_bytes(*b))
    }

    /// One byte of length, then a text.
    pub(super) fn idstr(&mut self) -> Result<&'a [u8], Halt> {
        let len = self.u8()?;
        self.take(len.into())
    }
}

/// For messages: a name from the stream, whatever its bytes.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
