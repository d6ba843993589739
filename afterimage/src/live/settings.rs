//! `afterimage set`: what of a primary can be changed while it runs, all of it or none.

use crate::{
    config::{self, OnCapWish, Setting, parse_duration, parse_size, size_text, time_text, two_slabs},
    live::SCHEMA,
};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, str::FromStr, time::Duration};
use toml::{Table, Value};

/// `KEY=VALUE`, as it was written.
#[derive(Clone, Debug)]
pub struct Assignment {
    setting: &'static Setting,
    value: Value,
}

impl FromStr for Assignment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or_else(|| no_assignment(text))?;
        let name = if key == "max-staging" { "staging".to_owned() } else { key.replace('-', "_") };
        let setting = config::live().find(|setting| setting.key == name);
        let setting = setting.ok_or_else(|| format!("{key:?} cannot be set on a running pair; allowed: {}", keys()))?;
        let value = setting.read(value).map_err(|why| format!("{key}: {why}"))?;
        Ok(Self { setting, value })
    }
}

fn keys() -> String {
    let all: Vec<_> = config::live().map(|setting| format!("{}={}", setting.key, setting.form)).collect();
    all.join(", ")
}

/// A word that is no assignment, as a rule the file of `--save`.
fn no_assignment(text: &str) -> String {
    let is_file = text.contains('/') || text.ends_with(".toml");
    let file =
        if is_file { format!(" (a file to save into is joined to its flag: --save={text})") } else { String::new() };
    format!("{text:?} has no '='{file}; allowed: {}", keys())
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
    /// Of a command line; and the same for a file.
    ///
    /// # Errors
    /// One key twice.
    pub(crate) fn new(assignments: &[Assignment]) -> Result<(Self, Table), String> {
        let mut table = Table::new();
        for Assignment { setting, value } in assignments {
            if table.insert(setting.key.to_owned(), value.clone()).is_some() {
                return Err(format!("{} is given twice", setting.key));
            }
        }
        let said = |key: &str| table.get(key).and_then(Value::as_str);
        let us = |epoch: Duration| u64::try_from(epoch.as_micros()).unwrap_or(u64::MAX);
        let settings = Self {
            epoch_us: said("epoch").map(parse_duration).transpose()?.map(us),
            max_staging_bytes: said("staging").map(parse_size).transpose()?,
            on_cap: said("on_cap").map(str::parse).transpose()?,
        };
        Ok((settings, table))
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
    let epoch = settings.epoch_us.map(|us| time_text(Duration::from_micros(us)));
    let staging = settings.max_staging_bytes.map(size_text);
    for (key, value) in [("epoch", epoch), ("staging", staging)] {
        let setting = config::live().find(|setting| setting.key == key);
        if let (Some(value), Some(setting)) = (value, setting) {
            setting.read(&value).map_err(|why| format!("{key}: {why}"))?;
        }
    }
    match settings.max_staging_bytes {
        Some(bytes) if bytes < 2 * slab_bytes => {
            Err(format!("staging = {}: expected {}", size_text(bytes), two_slabs(slab_bytes)))
        }
        _ => Ok(()),
    }
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
                "  {} still belong to checkpoints on their way; they are freed as those complete, and no new ones \
                 are made\n",
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

    /// A configuration that has them could not be read by the process that it is handed to.
    #[test]
    fn what_no_file_could_say_is_refused_from_a_request_too() {
        let staging = |bytes| check(&Settings { max_staging_bytes: Some(bytes), ..Settings::default() }, 1 << 20);
        assert!(staging(1 << 40).is_ok() && staging(3_000_001).is_ok());
        for bytes in [(1 << 40) + 1, 1 << 63, u64::MAX, 0] {
            assert!(staging(bytes).unwrap_err().contains("staging"), "{bytes}");
        }
        let epoch = |us| check(&Settings { epoch_us: Some(us), ..Settings::default() }, 1 << 20);
        assert!(epoch(1_001).is_ok() && epoch(0).is_err() && epoch(u64::MAX).is_err());
    }

    #[test]
    fn a_wrong_one_of_several_changes_nothing() {
        let parse = |text: &str| text.parse::<Assignment>();
        let settings = |texts: &[&str]| {
            let assignments: Vec<_> = texts.iter().map(|text| parse(text).unwrap()).collect();
            Settings::new(&assignments).map(|(settings, _)| settings)
        };
        let wish = Settings { epoch_us: Some(50_000), max_staging_bytes: Some(64 << 20), on_cap: None };
        assert_eq!(settings(&["epoch=50ms", "staging=64MiB"]), Ok(wish));
        assert_eq!(settings(&["max-staging=64MiB", "epoch=50ms"]), Ok(wish), "its name of before");
        assert_eq!(settings(&["on-cap=grow:1MiB"]), settings(&["on_cap=grow:1MiB"]), "as a flag, as in a file");
        for (text, why) in [
            ("epoch", "no '='"),
            ("/etc/afterimage.toml", "--save=/etc/afterimage.toml"),
            ("epoch=50", "us, ms, s, m, h or d"),
            ("epoch=0.5ms", "expected 1ms to 60s"),
            ("window=3", "cannot be set on a running pair; allowed: epoch=TIME, staging=SIZE, on_cap=POLICY"),
            ("staging=64MB", "KiB, MiB or GiB"),
            ("on_cap=panic", "throttle"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert_eq!(settings(&["epoch=5ms", "epoch=6ms"]), Err("epoch is given twice".to_owned()));
        assert_eq!(settings(&["max-staging=2MiB", "staging=2MiB"]), Err("staging is given twice".to_owned()));
        let slab = 1 << 20;
        let good = Settings { epoch_us: Some(1_000), max_staging_bytes: Some(2 << 20), on_cap: None };
        assert_eq!(check(&good, slab), Ok(()));
        let low = Settings { max_staging_bytes: Some((2 << 20) - 4096), ..good };
        assert!(check(&low, slab).unwrap_err().contains("at least 2MiB, two slabs of 1MiB"));
        let short = Settings { epoch_us: Some(999), ..good };
        assert_eq!(check(&short, slab), Err("epoch: 999us is out of range: expected 1ms to 60s".to_owned()));
    }
}
