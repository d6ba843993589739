//! `afterimage set`: what of a primary is changed while it runs, and what is in force then.

use super::save::{Entry, prepare, save};
use crate::{
    cli::SetArgs,
    config::{self, Setting},
    find::find,
    print,
    status::as_json,
};
use anyhow::{Result, bail};
use api::{ANSWER_PATIENCE, Request, Response, Settings, SettingsReport, Side, ask_one};
use node::{
    exit::{Code, ExitError},
    units::{bytes_text, parse_duration, parse_size},
};
use std::{str::FromStr, time::Duration};
use toml::{Table, Value};

/// `afterimage set`
pub fn set(args: &SetArgs) -> Result<Code> {
    let (settings, written) = wanted(&args.settings).map_err(ExitError::usage)?;
    let (path, side) = find(&args.run_dir, args.vm, &[Side::Primary], "set")?;
    let ask = |settings| match ask_one(&path, Request::Set(settings), ANSWER_PATIENCE)? {
        Response::Settings(report) => Ok(*report),
        other => bail!("{} answered `set` with {other:?}", path.display()),
    };
    let edit = match &args.save {
        None => None,
        Some(_) => {
            let file = ask(Settings::default())?.config_file;
            let entries: Vec<Entry> =
                written.iter().map(|(key, value)| (key.clone(), value.as_str().map(Into::into))).collect();
            prepare(args.save.as_ref(), file.as_deref(), side, &entries)?
        }
    };
    let report: SettingsReport = ask(settings)?;
    let saved = save(edit);
    let mut out = if args.json { as_json(&[&report], true)? } else { render(&report) };
    if let (Ok(Some(saved)), false) = (&saved, args.json) {
        out.push_str(&format!("  {saved}\n"));
    }
    print(&out)?;
    saved?;
    Ok(Code::Done)
}

/// `KEY=VALUE`, as it was written.
#[derive(Clone, Debug)]
pub struct Assignment {
    setting: &'static Setting,
    value: Value,
}

impl FromStr for Assignment {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
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

/// What a command line asks for; and the same for a file.
///
/// # Errors
/// One key twice.
fn wanted(assignments: &[Assignment]) -> std::result::Result<(Settings, Table), String> {
    let mut table = Table::new();
    for Assignment { setting, value } in assignments {
        if table.insert(setting.key.to_owned(), value.clone()).is_some() {
            return Err(format!("{} is given twice", setting.key));
        }
    }
    let said = |key: &str| table.get(key).and_then(Value::as_str);
    let us = |epoch: Duration| u64::try_from(epoch.as_micros()).unwrap_or(u64::MAX);
    let settings = Settings {
        epoch_us: said("epoch").map(parse_duration).transpose()?.map(us),
        max_staging_bytes: said("staging").map(parse_size).transpose()?,
        on_cap: said("on_cap").map(str::parse).transpose()?,
    };
    Ok((settings, table))
}

/// For a reader.
fn render(report: &SettingsReport) -> String {
    let mut text = format!(
        "{}: epoch {} ms, staging {} (no more than {}), on-cap {}\n",
        report.vm,
        report.epoch_us as f64 / 1e3,
        bytes_text(report.max_staging_bytes),
        bytes_text(report.limit_bytes),
        report.on_cap
    );
    if report.live_bytes > report.limit_bytes {
        text.push_str(&format!(
            "  {} still belong to checkpoints on their way; they are freed as those complete, and no new ones are made\n",
            bytes_text(report.live_bytes)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_one_of_several_changes_nothing() {
        let parse = |text: &str| text.parse::<Assignment>();
        let settings = |texts: &[&str]| {
            let assignments: Vec<_> = texts.iter().map(|text| parse(text).unwrap()).collect();
            wanted(&assignments).map(|(settings, _)| settings)
        };
        let wish = Settings { epoch_us: Some(50_000), max_staging_bytes: Some(64 << 20), on_cap: None };
        assert_eq!(settings(&["epoch=50ms", "staging=64MiB"]), Ok(wish));
        assert_eq!(settings(&["max-staging=64MiB", "epoch=50ms"]), Ok(wish), "its name of before");
        assert_eq!(settings(&["on-cap=grow:1MiB"]), settings(&["on_cap=grow:1MiB"]), "as a flag, as in a file");
        for (text, why) in [
            ("epoch", "no '='"),
            ("/etc/afterimage.toml", "--save=/etc/afterimage.toml"),
            ("epoch=50", "us, ms, s, m or h), such as 20ms; allowed: 1ms to 60s"),
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
    }
}
