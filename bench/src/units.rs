//! Sizes and times of the command line, with their unit.

pub(crate) use node::units::parse_duration as parse_time;
use std::time::Duration;

/// The largest size that any option takes: 1 GiB.
const LARGEST: u64 = 1 << 30;

fn split(text: &str) -> (Option<f64>, &str) {
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let plain = text[..at].bytes().all(|b| b.is_ascii_digit() || b == b'.');
    (text[..at].parse().ok().filter(|_| plain), &text[at..])
}

/// Reads "4KiB", "1.5MiB", "1GiB". Bytes.
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    let error = || format!("invalid size {text:?}: expected a number and KiB, MiB or GiB, such as 64MiB, up to 1GiB");
    let (Some(number), unit) = split(text) else { return Err(error()) };
    let shift = match unit {
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(error()),
    };
    let bytes = number * f64::from(1_u32 << shift);
    if bytes < 1.0 || bytes > LARGEST as f64 || bytes.fract() != 0.0 {
        return Err(error());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be whole and in range")]
    Ok(bytes as usize)
}

/// "4 KiB", "64 MiB", or bytes if it is no whole number of them.
#[must_use]
pub(crate) fn size(bytes: usize) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} B")
}

/// Bytes in `seconds`, in perftest's MB/sec, which are 2^20 bytes a second.
#[must_use]
pub(crate) fn mib_per_s(bytes: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { bytes as f64 / f64::from(1 << 20) / seconds } else { 0.0 }
}

/// Microseconds.
#[must_use]
pub(crate) fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("4KiB"), Ok(4096));
        assert_eq!(parse_size("1.5MiB"), Ok(3 << 19));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        for wrong in ["4096", "4kb", "", "-1MiB", "0KiB", "2GiB", "0.3KiB", "1e9KiB", "NaNKiB"] {
            let error = parse_size(wrong).unwrap_err();
            assert!(error.contains(wrong) && error.contains("64MiB"), "{error}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(parse_time("500us"), Ok(Duration::from_micros(500)));
        assert_eq!(parse_time("1.5s"), Ok(Duration::from_millis(1500)));
        for wrong in ["5", "2h", "0s", "-1s", "3601s", "1e400s"] {
            assert!(parse_time(wrong).unwrap_err().contains("20ms"), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_written_as_they_are_read() {
        assert_eq!((size(4096), size(1 << 26), size(100)), ("4 KiB".into(), "64 MiB".into(), "100 B".into()));
    }

    #[test]
    fn rates_are_perftests() {
        assert!((mib_per_s(3 << 20, 2.0) - 1.5).abs() < 1e-12);
        assert!(mib_per_s(1, 0.0).abs() < 1e-12);
    }
}
