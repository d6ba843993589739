//! The words that go before a NACK: why an epoch is refused, for the operator of the other host.

use crate::wire::control::{Body, WORDS};

/// Bytes of such a text at most; the rest is cut off.
const LIMIT: usize = 20 * WORDS;

/// What has been said so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Words(Vec<u8>);

impl Words {
    /// A text as records, in order.
    pub(super) fn records(text: &str) -> impl Iterator<Item = Body> + '_ {
        let end = (0..=text.len().min(LIMIT)).rev().find(|at| text.is_char_boundary(*at));
        let bytes = &text.as_bytes()[..end.unwrap_or(0)];
        bytes.chunks(WORDS).map(|part| Body::Words(std::array::from_fn(|i| part.get(i).copied().unwrap_or(0))))
    }

    /// Takes one record in. A peer that says more than it may is not listened to any longer.
    pub(super) fn hear(&mut self, part: &[u8; WORDS]) {
        if self.0.len() < LIMIT {
            self.0.extend(part.iter().filter(|byte| **byte != 0));
        }
    }

    /// All that was said, on one line.
    pub(super) fn take(&mut self) -> String {
        let text = String::from_utf8_lossy(&std::mem::take(&mut self.0)).into_owned();
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard_and_bounded() {
        let hear = |text: &str| {
            let mut words = Words::default();
            for record in Words::records(text) {
                let Body::Words(part) = record else { unreachable!() };
                words.hear(&part);
            }
            words.take()
        };
        for text in ["", "x", "Unknown savevm section or instance 'slirp' 0", "äöü".repeat(9).as_str()] {
            assert_eq!(hear(text), text);
        }
        assert_eq!(hear(&"x".repeat(10_000)).len(), LIMIT);
        assert_eq!(hear("a\nb"), "a b");
        let mut flooded = Words::default();
        (0..10_000).for_each(|_| flooded.hear(&[b'x'; WORDS]));
        assert_eq!(flooded.take().len(), LIMIT);
    }
}
