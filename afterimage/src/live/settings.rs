//! `afterimage set`: what of a primary can be changed while it runs, all of it or none.

use crate::{
    config::{OnCapWish, parse_duration, parse_size, size_text, time_text},
    live::SCHEMA,
};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, str::FromStr, time::Duration};

const KEYS: &str = "epoch=TIME, max-staging=SIZE, on-cap=throttle|grow:SIZE|unprotect";

/// `KEY=VALUE`, as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// From one checkpoint to the next.
    Epoch(Duration),
    /// Staging's cap, bytes.
    MaxStaging(u64),
    /// What a checkpoint that outgrows it means.
    OnCap(OnCapWish),
}

impl FromStr for Assignment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or_else(|| no_assignment(text))?;
        Ok(match key {
            "epoch" => Self::Epoch(parse_duration(value)?),
            "max-staging" => Self::MaxStaging(parse_size(value)?),
            "on-cap" => Self::OnCap(value.parse()?),
            _ => return Err(format!("{key:?} cannot be set on a running pair; allowed: {KEYS}")),
        })
    }
}

/// A word that is no assignment, as a rule the file of `--save`.
fn no_assignment(text: &str) -> String {
    let is_file = text.contains('/') || text.ends_with(".toml");
    let file =
        if is_file { format!(" (a file to save into is joined to its flag: --save={text})") } else { String::new() };
    format!("{text:?} has no '='{file}; allowed: {KEYS}")
}

/// What is to be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// From one checkpoint to the next, µs.
    pub epoch_us: Option<u64>,
    /// Staging's cap.
    pub max_staging_bytes: Option<u64>,
    /// What a checkpoint that outgrows it means.
    pub on_cap: Option<OnCapWish>,
}

impl Settings {
    /// Of a command line.
    ///
    /// # Errors
    /// One key twice.
    pub fn new(assignments: &[Assignment]) -> Result<Self, String> {
        let mut all = Self::default();
        for assignment in assignments {
            let twice = match *assignment {
                Assignment::Epoch(epoch) => {
                    all.epoch_us.replace(u64::try_from(epoch.as_micros()).unwrap_or(u64::MAX)).map(|_| "epoch")
                }
                Assignment::MaxStaging(bytes) => all.max_staging_bytes.replace(bytes).map(|_| "max-staging"),
                Assignment::OnCap(wish) => all.on_cap.replace(wish).map(|_| "on-cap"),
            };
            if let Some(key) = twice {
                return Err(format!("{key} is given twice"));
            }
        }
        Ok(all)
    }
}

/// What is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SettingsReport {
    /// [`SCHEMA`].
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

/// The bounds, which are `config check`'s: every value is looked at before any is taken.
///
/// # Errors
/// In words: what, and what is allowed.
pub(crate) fn check(settings: &Settings, slab_bytes: u64) -> Result<(), String> {
    if let Some(us) = settings.epoch_us
        && !(1_000..=60_000_000).contains(&us)
    {
        return Err(format!("epoch = {}: allowed is 1ms to 60s", time_text(Duration::from_micros(us))));
    }
    if let Some(bytes) = settings.max_staging_bytes
        && bytes < 2 * slab_bytes
    {
        let (bytes, two, slab) = (size_text(bytes), size_text(2 * slab_bytes), size_text(slab_bytes));
        return Err(format!(
            "max-staging = {bytes}: allowed is at least {two}, two slabs of {slab} (one is filled while one is sent)"
        ));
    }
    Ok(())
}

impl SettingsReport {
    /// For a reader.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "{}: epoch {} ms, staging {} (no more than {}), on-cap {}\n",
            self.vm,
            self.epoch_us as f64 / 1e3,
            size_text(self.max_staging_bytes),
            size_text(self.limit_bytes),
            self.on_cap
        );
        if self.live_bytes > self.limit_bytes {
            text.push_str(&format!(
                "  {} exist still, of checkpoints on their way: they are freed as they come back, and none is made\n",
                size_text(self.live_bytes)
            ));
        }
        text
    }

    pub(crate) fn new(vm: String) -> Self {
        Self { schema: SCHEMA, vm, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_one_of_several_changes_nothing() {
        let parse = |text: &str| text.parse::<Assignment>();
        assert_eq!(parse("epoch=50ms"), Ok(Assignment::Epoch(Duration::from_millis(50))));
        for (text, why) in [
            ("epoch", "no '='"),
            ("/etc/afterimage.toml", "--save=/etc/afterimage.toml"),
            ("epoch=50", "us, ms, s, m, h or d"),
            ("window=3", "cannot be set on a running pair"),
            ("max-staging=64MB", "KiB, MiB or GiB"),
            ("on-cap=panic", "throttle"),
        ] {
            assert!(parse(text).unwrap_err().contains(why), "{text}");
        }
        let twice = Settings::new(&[parse("epoch=5ms").unwrap(), parse("epoch=6ms").unwrap()]);
        assert_eq!(twice, Err("epoch is given twice".to_owned()));
        let slab = 1 << 20;
        let good = Settings { epoch_us: Some(1_000), max_staging_bytes: Some(2 << 20), on_cap: None };
        assert_eq!(check(&good, slab), Ok(()));
        let low = Settings { max_staging_bytes: Some((2 << 20) - 1), ..good };
        assert!(check(&low, slab).unwrap_err().contains("at least 2MiB, two slabs of 1MiB"));
        let short = Settings { epoch_us: Some(999), ..good };
        assert!(check(&short, slab).unwrap_err().contains("epoch = 999us: allowed is 1ms to 60s"));
    }
}
