//! The one grammar of times, for every option, file and command: `20ms`, `1.5s`, `1h30m`.

use std::time::Duration;

/// The longest duration that any setting takes.
const LONGEST: Duration = Duration::from_secs(3600);
/// The longest that can be said at all: how long ago something was.
const LONGEST_AGO: Duration = Duration::from_secs(1000 * 86_400);
/// What is allowed.
const ALLOWED: &str = "expected a number and a unit (us, ms, s, m, h or d), such as 20ms, 1.5s or 1h30m";

/// A unit's microseconds.
fn unit(name: &str) -> Option<f64> {
    Some(match name {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" | "min" => 60e6,
        "h" | "hour" | "hours" => 3_600e6,
        "d" | "day" | "days" => 86_400e6,
        _ => return None,
    })
}

/// A number and its unit at the beginning of the text, in microseconds, and the rest.
fn first(text: &str) -> Option<(f64, &str)> {
    let (number, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.')?);
    let (name, rest) = rest.split_at(rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len()));
    Some((number.parse::<f64>().ok()? * unit(name)?, rest.trim_start()))
}

/// Numbers with units, one after another: their sum.
fn sum(text: &str) -> Option<f64> {
    let (mut us, mut rest) = first(text)?;
    while !rest.is_empty() {
        let (more, behind) = first(rest)?;
        (us, rest) = (us + more, behind);
    }
    Some(us)
}

/// More than zero, at most `longest`, to the microsecond.
fn within(us: f64, longest: Duration) -> Option<Duration> {
    let duration = Duration::try_from_secs_f64(us.round() / 1e6).ok()?;
    (!duration.is_zero() && duration <= longest).then_some(duration)
}

/// A setting's microseconds, if a setting can be that long.
pub fn from_micros(us: f64) -> Option<Duration> {
    within(us, LONGEST)
}

/// Reads "500us", "20ms", "1.5s", "1h": what a setting may be.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    sum(text)
        .and_then(from_micros)
        .ok_or_else(|| format!("invalid duration {text:?}: {ALLOWED}, more than 0, up to 1h"))
}

/// Reads how long ago something was: "10m", "2h", "3d".
pub fn parse_ago(text: &str) -> Result<Duration, String> {
    let ago = sum(text).and_then(|us| within(us, LONGEST_AGO));
    ago.ok_or_else(|| format!("invalid duration {text:?}: {ALLOWED}, up to 1000d"))
}

/// As [`parse_duration`] reads it: in the largest unit that comes out whole.
#[must_use]
pub fn time_text(time: Duration) -> String {
    let us = time.as_micros();
    let whole = [("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000)];
    let unit = whole.into_iter().find(|(_, of)| us >= *of && us.is_multiple_of(*of));
    match unit {
        Some((unit, of)) => format!("{}{unit}", us / of),
        None if us > 1_000 => format!("{}ms", us as f64 / 1e3),
        None => format!("{us}us"),
    }
}

/// For people, in tables: three digits and the unit.
#[must_use]
pub fn time(time: Duration) -> String {
    let us = time.as_secs_f64() * 1e6;
    match us {
        _ if us < 9.995 => format!("{us:.2} us"),
        _ if us < 999.5 => format!("{us:.0} us"),
        _ if us < 9_995.0 => format!("{:.2} ms", us / 1e3),
        _ if us < 999_500.0 => format!("{:.1} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}

/// For people, in a sentence: as [`time()`], without zeros behind the point.
#[must_use]
pub fn spoken(span: Duration) -> String {
    let text = time(span);
    match text.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        let times = [1, 12_345, 1_234_567, 12_345_678, 2_000_000_000].map(Duration::from_nanos);
        assert_eq!(times.map(time), ["0.00 us", "12 us", "1.23 ms", "12.3 ms", "2.00 s"]);
        assert_eq!(times.map(spoken), ["0 us", "12 us", "1.23 ms", "12.3 ms", "2 s"]);
        let round = [100_000, 1_500_000, 10_000_000, 100_000_000, 100_000_000_000].map(Duration::from_nanos);
        assert_eq!(round.map(spoken), ["100 us", "1.5 ms", "10 ms", "100 ms", "100 s"]);
    }

    #[test]
    fn durations() {
        for (text, us) in [
            ("20ms", 20_000),
            ("500us", 500),
            ("1.5ms", 1_500),
            ("2s", 2_000_000),
            ("3600s", 3_600_000_000),
            ("1h", 3_600_000_000),
            ("0.5h", 1_800_000_000),
            ("5m", 300_000_000),
            ("1m30s", 90_000_000),
            ("1m 30s", 90_000_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_micros(us)), "{text}");
        }
        for text in [
            "", "20", "ms", "0ms", "-1ms", "1e3ms", "20 ms", "20MS", "3601s", "1h1s", "1d", "nans", "infs", "1.2.3ms",
            "0.1us", "1h30", "1y", " 5m",
        ] {
            let error = parse_duration(text).unwrap_err();
            assert!(error.contains("invalid duration") && error.contains("us, ms, s, m, h or d"), "{text}: {error}");
        }
        for text in ["1h", "59m", "61s", "20ms", "2.5ms", "500us"] {
            assert_eq!(time_text(parse_duration(text).unwrap()), text);
        }
        assert_eq!(parse_ago("3days"), parse_ago("72h"));
        assert!(parse_ago("1001d").unwrap_err().contains("1000d"));
    }
}
