//! Sizes and times, as operators write and read them.

mod time;

pub use time::{from_micros, parse_ago, parse_duration, spoken, time, time_text};

/// The largest size that any setting takes, bytes: 1 TiB.
const LARGEST: u64 = 1 << 40;

fn split(text: &str) -> (Option<f64>, &str) {
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let plain = text[..at].bytes().all(|b| b.is_ascii_digit() || b == b'.');
    (text[..at].parse().ok().filter(|_| plain), &text[at..])
}

/// Reads "256KiB", "64MiB", "1GiB". Bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let error =
        || format!("invalid size {text:?}: expected a number and KiB, MiB or GiB, such as 64MiB, at most 1024GiB");
    let (Some(number), unit) = split(text) else {
        return Err(error());
    };
    let shift = match unit {
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(error()),
    };
    whole(number * f64::from(1u32 << shift)).ok_or_else(error)
}

/// As [`parse_size`] reads it: in the largest unit that comes out whole.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    let (n, unit) = match bytes {
        b if b.is_multiple_of(1 << 30) => (b as f64 / f64::from(1 << 30), "GiB"),
        b if b.is_multiple_of(1 << 20) => (b as f64 / f64::from(1 << 20), "MiB"),
        b => (b as f64 / 1024.0, "KiB"),
    };
    format!("{n}{unit}")
}

/// For people: as [`size_text`], unless that takes a fraction of a KiB; then in bytes.
#[must_use]
pub fn bytes_text(bytes: u64) -> String {
    match bytes {
        1 => "1 byte".to_owned(),
        0 => "0 bytes".to_owned(),
        b if b.is_multiple_of(1024) => size_text(b),
        b => format!("{b} bytes"),
    }
}

/// A whole number of bytes, more than zero, at most [`LARGEST`]. A thousandth of a byte is forgiven: readers of JSON need not
/// return the last bit of a fraction.
#[must_use]
pub fn whole(bytes: f64) -> Option<u64> {
    let rounded = bytes.round();
    let ok = (1.0..=LARGEST as f64).contains(&rounded) && (bytes - rounded).abs() < 1e-3;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be whole and in range")]
    ok.then_some(rounded as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("256KiB", 256 << 10), ("64MiB", 64 << 20), ("1.5KiB", 1536), ("1024GiB", 1 << 40)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "64", "64MB", "64M", "MiB", "0MiB", "-1MiB", "1025GiB", "0.0001KiB", "64 MiB"] {
            assert!(parse_size(text).unwrap_err().contains("KiB, MiB or GiB"), "{text}");
        }
    }
}
