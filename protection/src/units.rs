//! Times and sizes between our own processes.

use node::units::{from_micros, parse_duration, parse_size, size_text, time_text, whole};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::{marker::PhantomData, time::Duration};

/// A unit between our processes: a value is a text with its unit, or, by the release before, a number in the unit of its key.
pub(crate) trait Unit {
    /// What it is here.
    type Value: Copy;
    /// Reads a text.
    const READ: fn(&str) -> Result<Self::Value, String>;
    /// As it is read.
    const TEXT: fn(Self::Value) -> String;
    /// Of a number.
    const NUMBER: fn(f64) -> Option<Self::Value>;
}

/// A time; a number is in ms.
#[derive(Debug)]
pub(crate) struct Time;
impl Unit for Time {
    type Value = Duration;
    const READ: fn(&str) -> Result<Duration, String> = parse_duration;
    const TEXT: fn(Duration) -> String = time_text;
    const NUMBER: fn(f64) -> Option<Duration> = |ms| from_micros(ms * 1e3);
}

/// A size; a number is in so many bytes.
#[derive(Debug)]
pub(crate) struct Size<const UNIT: u32>;
impl<const UNIT: u32> Unit for Size<UNIT> {
    type Value = u64;
    const READ: fn(&str) -> Result<u64, String> = parse_size;
    const TEXT: fn(u64) -> String = size_text;
    const NUMBER: fn(f64) -> Option<u64> = |n| whole(n * f64::from(UNIT));
}
/// A number is in KiB.
pub(crate) type Kib = Size<1024>;
/// A number is in MiB.
pub(crate) type Mib = Size<0x10_0000>;

/// For `#[serde(with = …)]`: a value in this unit.
#[derive(Debug)]
pub(crate) struct As<U: Unit>(U::Value);

impl<U: Unit> As<U> {
    pub(crate) fn serialize<S: Serializer>(value: &U::Value, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&U::TEXT(*value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<U::Value, D::Error> {
        <Self as Deserialize>::deserialize(d).map(|one| one.0)
    }
}

impl<'de, U: Unit> Deserialize<'de> for As<U> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Text(String),
            Number(f64),
        }
        let value = match Written::deserialize(d)? {
            Written::Text(text) => U::READ(&text),
            Written::Number(n) => U::NUMBER(n).ok_or_else(|| format!("{n} is out of range")),
        };
        value.map(Self).map_err(D::Error::custom)
    }
}

/// The same of a value that need not be there.
#[derive(Debug)]
pub(crate) struct Maybe<U>(PhantomData<U>);

impl<U: Unit> Maybe<U> {
    pub(crate) fn serialize<S: Serializer>(value: &Option<U::Value>, s: S) -> Result<S::Ok, S::Error> {
        value.map(U::TEXT).serialize(s)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<U::Value>, D::Error> {
        Ok(Option::<As<U>>::deserialize(d)?.map(|one| one.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Both(#[serde(with = "As::<Time>")] Duration, #[serde(with = "Maybe::<Mib>")] Option<u64>);
        let read = |json: &str| serde_json::from_str::<Both>(json).map_err(|error| error.to_string());
        for us in [1, 500, 1_001, 16_667, 20_000, 3_600_000_000] {
            for bytes in [None, Some(1), Some(1023), Some(64 << 20), Some((1 << 40) - 1)] {
                let both = Both(Duration::from_micros(us), bytes);
                assert_eq!(read(&serde_json::to_string(&both).unwrap()), Ok(both));
            }
        }
        assert_eq!(read("[2.5, 64]"), Ok(Both(Duration::from_micros(2_500), Some(64 << 20))), "the release before");
        assert!(read("[\"20\", null]").unwrap_err().contains("invalid duration"));
        assert!(read("[0, null]").unwrap_err().contains("out of range"));
    }
}
