//! What guests print on their serial port.

use crate::guest::Kind;

/// A reading of a whole serial log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serial {
    /// The last count that was printed whole.
    pub count: Option<u64>,
    /// Complaints about memory with wrong contents.
    pub corrupt: u64,
    /// The guest said that it failed.
    pub failed: Option<String>,
}

impl Serial {
    /// Reads a text.
    #[must_use]
    pub fn parse(kind: Kind, text: &str) -> Self {
        match kind {
            Kind::Tiny => Self::parse_tiny(text),
            Kind::Linux | Kind::Redis => Self::parse_linux(text),
        }
    }

    fn parse_tiny(text: &str) -> Self {
        Self {
            count: counts(text).filter_map(|n| u64::from_str_radix(n, 16).ok()).last(),
            corrupt: text.matches('X').count() as u64,
            failed: text.contains('!').then(|| "processor exception".to_owned()),
        }
    }

    fn parse_linux(text: &str) -> Self {
        let failed = |line: &&str| line.starts_with("FAILED") || line.contains("Kernel panic");
        Self {
            count: counts(text).filter_map(|n| n.parse().ok()).last(),
            corrupt: text.lines().filter(|l| l.starts_with("CORRUPT")).count() as u64,
            failed: text.lines().find(failed).map(str::to_owned),
        }
    }

    /// What is wrong with the guest, in words.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        if let Some(why) = &self.failed {
            return Some(format!("the guest failed: {why}"));
        }
        (self.corrupt > 0).then(|| format!("the guest found wrong memory contents {} times", self.corrupt))
    }
}

/// The numbers of `CNT` lines that are whole.
fn counts(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter(|l| l.ends_with('\n')).filter_map(|line| {
        let (_, number) = line.trim_end().rsplit_once("CNT ")?;
        Some(number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiny() {
        let serial = Serial::parse(Kind::Tiny, "CNT 00000001\nXCNT 0000002a\nCNT 000000");
        assert_eq!(serial, Serial { count: Some(42), corrupt: 1, failed: None });
        assert_eq!(serial.complaint().unwrap(), "the guest found wrong memory contents 1 times");
        assert!(Serial::parse(Kind::Tiny, "CNT 00000001\n!").complaint().is_some());
        assert_eq!(Serial::parse(Kind::Tiny, "").complaint(), None);
    }

    #[test]
    fn linux() {
        let text = "\x1b[0mREADY\r\nCNT 9\r\nCORRUPT round 10 page 3\r\nCNT 10\r\nCNT 1";
        let serial = Serial::parse(Kind::Linux, text);
        assert_eq!(serial, Serial { count: Some(10), corrupt: 1, failed: None });
        assert!(Serial::parse(Kind::Linux, "FAILED socket: no\n").failed.is_some());
        assert_eq!(Serial::parse(Kind::Linux, "READY\nCNT 1\n").complaint(), None);
    }
}
