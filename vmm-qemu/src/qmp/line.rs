//! QMP's framing, without any I/O: bytes in, messages out. One JSON object per line.

use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

/// Bytes of a line at most. The longest that QEMU is asked for (`info qtree`) has some 100 KB.
pub const MAX_LINE: usize = 16 << 20;

/// Something that happened in QEMU.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// As `STOP`, `RESUME`, `COLO_EXIT`.
    pub name: String,
    /// What comes with it; null if nothing does.
    pub data: Value,
    /// QEMU's wall clock, since the Unix epoch.
    pub timestamp: Duration,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The first one: QEMU's version, as the greeting has it.
    Greeting(Value),
    /// An event.
    Event(Event),
    /// A command's result.
    Return {
        /// The command's.
        id: Option<u64>,
        /// What it returned.
        value: Value,
    },
    /// A command's failure.
    Error {
        /// The command's.
        id: Option<u64>,
        /// QEMU's class of errors.
        class: String,
        /// QEMU's words.
        desc: String,
    },
}

/// A line that is not QMP.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LineError {
    /// Not JSON, or not one of the messages.
    #[error("not a QMP message ({why}): {found:?}")]
    Malformed {
        /// What the JSON parser says.
        why: String,
        /// Its beginning.
        found: String,
    },
    /// No end of line.
    #[error("a line of more than {MAX_LINE} bytes: {found:?}…")]
    TooLong {
        /// Its beginning.
        found: String,
    },
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    timestamp: Option<RawTime>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<RawError>,
    id: Option<u64>,
}

/// QEMU says -1 for both when its clock fails.
#[derive(Deserialize)]
struct RawTime {
    seconds: i64,
    microseconds: i64,
}

#[derive(Deserialize)]
struct RawError {
    class: String,
    desc: String,
}

/// Cuts what is received into messages.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
    /// Where the next line begins.
    start: usize,
    /// Up to where there is no end of line.
    searched: usize,
}

impl Lines {
    /// Adds what was received.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message, if its line is complete. Empty lines are skipped.
    pub fn next_message(&mut self) -> Result<Option<Message>, LineError> {
        loop {
            let Some(len) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') else {
                self.searched = self.buffer.len();
                if self.buffer.len() - self.start > MAX_LINE {
                    return Err(LineError::TooLong { found: beginning(&self.buffer[self.start..]) });
                }
                return Ok(None);
            };
            let end = self.searched + len;
            let line = self.buffer[self.start..end].trim_ascii();
            let parsed = (!line.is_empty()).then(|| parse(line));
            self.start = end + 1;
            self.searched = self.start;
            if let Some(parsed) = parsed {
                return parsed.map(Some);
            }
        }
    }

    /// The beginning of what is there without an end of line, for messages.
    #[must_use]
    pub fn unfinished(&self) -> String {
        beginning(&self.buffer[self.start..])
    }
}

/// Reads one line.
pub fn parse(line: &[u8]) -> Result<Message, LineError> {
    let malformed = |why: &str| LineError::Malformed { why: why.into(), found: beginning(line) };
    let raw: Raw = serde_json::from_slice(line).map_err(|error| malformed(&error.to_string()))?;
    match raw {
        Raw { greeting: Some(greeting), .. } => Ok(Message::Greeting(greeting)),
        Raw { event: Some(name), data, timestamp, .. } => {
            Ok(Message::Event(Event { name, data, timestamp: timestamp.map_or(Duration::ZERO, RawTime::duration) }))
        }
        Raw { error: Some(RawError { class, desc }), id, .. } => Ok(Message::Error { id, class, desc }),
        Raw { value: Some(value), id, .. } => Ok(Message::Return { id, value }),
        _ => Err(malformed("neither greeting, event, return nor error")),
    }
}

impl RawTime {
    fn duration(self) -> Duration {
        let part = |n: i64| u64::try_from(n).unwrap_or(0);
        Duration::from_secs(part(self.seconds)).saturating_add(Duration::from_micros(part(self.microseconds)))
    }
}

fn beginning(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_lines_wherever_they_arrive() {
        let text =
            b"{\"return\": {}, \"id\": 3}\r\n\n{\"timestamp\":{\"seconds\":5,\"microseconds\":7},\"event\":\"STOP\"}\n";
        for piece in 1..text.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for chunk in text.chunks(piece) {
                lines.push(chunk);
                while let Some(message) = lines.next_message().unwrap() {
                    found.push(message);
                }
            }
            let stop = Event { name: "STOP".into(), data: Value::Null, timestamp: Duration::from_micros(5_000_007) };
            let returned = Message::Return { id: Some(3), value: serde_json::json!({}) };
            assert_eq!(found, [returned, Message::Event(stop)], "in pieces of {piece}");
        }
    }

    #[test]
    fn an_error_and_a_greeting() {
        let error = parse(br#"{"error":{"class":"GenericError","desc":"no"},"id":1}"#).unwrap();
        assert_eq!(error, Message::Error { id: Some(1), class: "GenericError".into(), desc: "no".into() });
        assert!(matches!(parse(br#"{"QMP":{"version":{}}}"#), Ok(Message::Greeting(_))));
        assert_eq!(
            parse(br#"{"return": null, "id": 1}"#),
            Err(LineError::Malformed {
                why: "neither greeting, event, return nor error".into(),
                found: r#"{"return": null, "id": 1}"#.into()
            })
        );
    }

    #[test]
    fn refuses_what_is_not_qmp() {
        let error = parse(b"SSH-2.0-OpenSSH_9.2").unwrap_err();
        assert!(error.to_string().contains("SSH-2.0"), "{error}");
        assert!(matches!(parse(b"{}"), Err(LineError::Malformed { .. })));
        assert!(matches!(parse(b"[1]"), Err(LineError::Malformed { .. })));
        assert!(matches!(parse(br#"{"event":3}"#), Err(LineError::Malformed { .. })));
    }

    #[test]
    fn a_line_without_end_is_cut_off() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; MAX_LINE]);
        assert_eq!(lines.next_message(), Ok(None));
        lines.push(b"xx");
        assert!(matches!(lines.next_message(), Err(LineError::TooLong { .. })));
    }
}
