//! What of a primary can be changed while it runs, all of it or none.

use crate::{REPORT_SCHEMA, on_cap::OnCapWish};
use node::units::{bytes_text, parse_duration, parse_size, size_text, time_text};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// The shortest epoch, and the longest: for files, flags and requests.
pub const EPOCH: (&str, &str) = ("1ms", "60s");
/// The least that staging may have, and the most: for files, flags and requests.
pub const STAGING: (&str, &str) = ("512KiB", "1024GiB");

/// What is to be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// From one checkpoint to the next, µs.
    pub epoch_us: Option<u64>,
    /// Staging's cap.
    pub max_staging_bytes: Option<u64>,
    /// What a checkpoint that outgrows it means.
    pub on_cap: Option<OnCapWish>,
}

/// What is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SettingsReport {
    /// [`REPORT_SCHEMA`].
    pub schema: u32,
    /// The VM.
    pub vm: String,
    /// From one checkpoint to the next, at most, µs.
    pub epoch_us: u64,
    /// Staging's cap.
    pub max_staging_bytes: u64,
    /// What a checkpoint that outgrows it means.
    pub on_cap: String,
    /// Bytes at which no slab is made any more: the cap, and what it may be outgrown by.
    pub limit_bytes: u64,
    /// Bytes of slabs that exist now. After the cap was lowered this falls as slabs come back.
    pub live_bytes: u64,
    /// The configuration file of the process.
    pub config_file: Option<PathBuf>,
}

impl SettingsReport {
    /// Without any figures yet.
    #[must_use]
    pub fn new(vm: String) -> Self {
        Self { schema: REPORT_SCHEMA, vm, ..Self::default() }
    }
}

/// What a primary's staging is at least: one slab is filled while one is sent.
#[must_use]
pub fn two_slabs(slab_bytes: u64) -> String {
    let (two, slab) = (size_text(2 * slab_bytes), size_text(slab_bytes));
    format!("at least {two}, two slabs of {slab} (one is filled while one is sent)")
}

impl Settings {
    /// The bounds, which are those of a file, whatever process is asked.
    ///
    /// # Errors
    /// In words: what, and what is allowed.
    pub(crate) fn bounds(&self) -> Result<(), String> {
        if let Some(us) = self.epoch_us {
            let epoch = Duration::from_micros(us);
            within("epoch_us", epoch, EPOCH, parse_duration, || time_text(epoch))?;
        }
        let Some(bytes) = self.max_staging_bytes else { return Ok(()) };
        within("max_staging_bytes", bytes, STAGING, parse_size, || bytes_text(bytes))
    }

    /// The bounds, and what a process with such slabs needs: every value is looked at before any is taken.
    ///
    /// # Errors
    /// In words: what, and what is allowed.
    pub fn check(&self, slab_bytes: u64) -> Result<(), String> {
        self.bounds()?;
        match self.max_staging_bytes {
            Some(bytes) if bytes < 2 * slab_bytes => {
                Err(format!("staging of {} is too small: expected {}", bytes_text(bytes), two_slabs(slab_bytes)))
            }
            _ => Ok(()),
        }
    }
}

fn within<T: PartialOrd + Copy>(
    key: &str,
    value: T,
    (least, most): (&str, &str),
    read: fn(&str) -> Result<T, String>,
    said: impl Fn() -> String,
) -> Result<(), String> {
    let fits = read(least)? <= value && value <= read(most)?;
    if fits { Ok(()) } else { Err(format!("{key}: {} is out of range: expected {least} to {most}", said())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration that has them could not be read by the process that it is handed to.
    #[test]
    fn what_no_file_could_say_is_refused_from_a_request_too() {
        let staging = |bytes| Settings { max_staging_bytes: Some(bytes), ..Settings::default() }.check(1 << 20);
        assert!(staging(1 << 40).is_ok() && staging(3_000_001).is_ok());
        for bytes in [(1 << 40) + 1, 1 << 63, u64::MAX, 0] {
            assert!(staging(bytes).unwrap_err().contains("staging"), "{bytes}");
        }
        let epoch = |us| Settings { epoch_us: Some(us), ..Settings::default() }.check(1 << 20);
        assert!(epoch(1_001).is_ok() && epoch(0).is_err() && epoch(u64::MAX).is_err());
        assert_eq!(epoch(999), Err("epoch_us: 999us is out of range: expected 1ms to 60s".to_owned()));
    }

    #[test]
    fn staging_has_two_slabs() {
        let good = Settings { epoch_us: Some(1_000), max_staging_bytes: Some(2 << 20), on_cap: None };
        assert_eq!(good.check(1 << 20), Ok(()));
        let low = Settings { max_staging_bytes: Some((2 << 20) - 4096), ..good };
        assert!(low.check(1 << 20).unwrap_err().contains("at least 2MiB, two slabs of 1MiB"));
    }
}
