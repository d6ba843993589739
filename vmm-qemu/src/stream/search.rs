//! Where the first device state ends.
//!
//! Its sections have no lengths. Behind them stand `00` (EOF) and `06 <u32 n> <n bytes of JSON>`, and there QEMU stops: it
//! closes the stream, or waits for READY. So the end is where `00 06 <n> {"` is followed by exactly as many bytes as were
//! received, and these are a description of devices. A guest that plants such bytes in a device's state is not enough: they
//! would have to be the last.

use super::{
    MAX_DESCRIPTION, MAX_DEVICE, Problem,
    cursor::{Cursor, Halt},
    element,
    parser::{Parser, State, expect_device},
};
use serde::Deserialize;

/// Bytes of `00 06 <u32 n> {"`.
const PATTERN: usize = 8;
/// The JSON comes after this many of them.
const BEFORE_JSON: usize = 6;
/// Places that may still turn out to be the end, at most.
const CANDIDATES: usize = 64;

/// How far the search has come.
#[derive(Debug, Default)]
pub(super) struct SearchState {
    /// Bytes looked at.
    seen: usize,
    /// Where the pattern was found (the place of its EOF byte) with a length that reaches beyond what was received.
    candidates: Vec<usize>,
}

/// What QEMU puts there, as far as it is looked at.
#[derive(Deserialize)]
struct Description {
    devices: Vec<serde::de::IgnoredAny>,
}

impl Parser {
    pub(super) fn find_end(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Halt> {
        let bytes = cursor.rest();
        expect_device(*bytes.first().ok_or(Halt::Need(1))?)?;
        self.search.collect(bytes)?;
        let Some(eof) = self.search.end(bytes) else {
            if bytes.len() > MAX_DEVICE + MAX_DESCRIPTION {
                return Err(Problem::Endless.into());
            }
            return Err(Halt::Need(bytes.len() + 1));
        };
        self.search = SearchState::default();
        self.state = State::Device { left: eof + 1, first: true, description: bytes.len() - eof - 1 };
        Ok(())
    }
}

impl SearchState {
    /// Notes new places that look like the end.
    fn collect(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        let fresh = bytes.get(self.seen..).unwrap_or_default();
        for (index, window) in fresh.windows(PATTERN).enumerate() {
            let here = self.seen + index;
            if !is_pattern(window) || end_of(bytes, here).is_none_or(|end| end < bytes.len()) || here >= MAX_DEVICE {
                continue;
            }
            if self.candidates.len() == CANDIDATES {
                return Err(Problem::Ambiguous);
            }
            self.candidates.push(here);
        }
        self.seen = self.seen.max(bytes.len().saturating_sub(PATTERN - 1));
        Ok(())
    }

    /// The place of the EOF byte, if one of the candidates ends where the bytes do. Forgets those that end before.
    fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        self.candidates.retain(|&at| end_of(bytes, at).is_some_and(|end| end >= bytes.len()));
        self.candidates.iter().copied().find(|&at| {
            end_of(bytes, at) == Some(bytes.len())
                && serde_json::from_slice::<Description>(&bytes[at + BEFORE_JSON..])
                    .is_ok_and(|d| !d.devices.is_empty())
        })
    }
}

fn is_pattern(window: &[u8]) -> bool {
    window[0] == element::EOF && window[1] == element::DESCRIPTION && &window[BEFORE_JSON..] == b"{\""
}

/// Where the JSON of the candidate at `at` ends; `None` if its length cannot be.
fn end_of(bytes: &[u8], at: usize) -> Option<usize> {
    let len = bytes.get(at + 2..)?.first_chunk().map(|b| u32::from_be_bytes(*b))? as usize;
    (len <= MAX_DESCRIPTION).then_some(at + BEFORE_JSON + len)
}
