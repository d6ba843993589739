//! What a setting is: its name, its unit, what it may be, and whose it is. All of them stand in [`super::table`].

use super::listen::parse_listen;
use node::units::{from_micros, parse_duration, parse_size, size_text, time_text, whole};
use std::{fmt, str::FromStr};
use toml::Value;

/// Whose command line, and which section of a file, has a setting: bits.
pub(crate) const WITNESS: u8 = 1;
/// `afterimage protect`.
pub(crate) const PROTECT: u8 = 2;
/// `afterimage standby`.
pub(crate) const STANDBY: u8 = 4;
/// `afterimage keepalive probe` and `serve`, which read no file: which way checkpoints and beats go.
pub(crate) const PROBE: u8 = 8;
/// Both sides of a VM.
pub(super) const PAIR: u8 = PROTECT | STANDBY;
/// The sections of a file.
pub(super) const SECTIONS: [(&str, u8); 3] = [("witness", WITNESS), ("protect", PROTECT), ("standby", STANDBY)];

/// The units of a time, as a reader is told.
pub(super) const TIME_UNITS: &str = "us, ms, s, m or h";
/// Of a size.
pub(super) const SIZE_UNITS: &str = "KiB, MiB or GiB";

/// Reads a text, and says it as everybody writes it.
type Read = fn(&str) -> Result<String, String>;

/// How a value is written, and what it may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A time with its unit, between two.
    Time(&'static str, &'static str),
    /// A size with its unit, between two.
    Size(&'static str, &'static str),
    /// A whole number, between two.
    Number(i64, i64),
    /// One of these.
    Word(&'static [&'static str]),
    /// A text.
    Text(Read),
    /// Several texts: on a command line once each, or with this between them.
    List(Read, Option<char>),
    /// There or not.
    Switch,
}

/// What holds without a word about it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Usual {
    /// Something has to be said, such as this.
    Needed(&'static str),
    /// This value.
    Is(&'static str),
    /// What these words say.
    Follows(&'static str),
    /// Nothing: no such file, an empty list, no.
    Nothing,
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    /// Its name in a file; with '-' for '_' its flag.
    pub(crate) key: &'static str,
    /// Of a list, the flag that adds one.
    pub(super) each: Option<&'static str>,
    /// What stands for the value in a help text.
    pub(crate) form: &'static str,
    /// On which command lines, and in which sections.
    pub(super) on: u8,
    pub(super) kind: Kind,
    /// What else there is to say about what is allowed.
    pub(super) note: &'static str,
    pub(super) usual: Usual,
    /// The key that it had, whose number counts so many microseconds, or bytes.
    pub(super) old: Option<(&'static str, f64)>,
    /// `afterimage set` changes it while the pair runs.
    pub(super) live: bool,
    /// A word for once: a flag, and no key.
    pub(super) once: bool,
    pub(super) says: &'static str,
}

/// A setting of which nothing else is to be said.
pub(super) const fn setting(
    on: u8,
    key: &'static str,
    form: &'static str,
    kind: Kind,
    usual: Usual,
    says: &'static str,
) -> Setting {
    Setting { key, each: None, form, on, kind, note: "", usual, old: None, live: false, once: false, says }
}

impl Setting {
    pub(super) const fn was(self, key: &'static str, unit: f64) -> Self {
        Self { old: Some((key, unit)), ..self }
    }

    pub(super) const fn live(self) -> Self {
        Self { live: true, ..self }
    }

    pub(super) const fn note(self, note: &'static str) -> Self {
        Self { note, ..self }
    }

    /// The flag, without its dashes.
    pub(super) fn flag(&self) -> String {
        self.each.unwrap_or(self.key).replace('_', "-")
    }

    /// As a command line says it: `--vm NAME`.
    pub(super) fn on_command_line(&self) -> String {
        match self.key {
            "qemu" => format!("-- {}...", self.form),
            _ => format!("--{} {}", self.flag(), self.form),
        }
    }

    /// What it may be, if that is a range.
    pub(super) fn range(&self) -> Option<String> {
        match self.kind {
            Kind::Time(least, most) | Kind::Size(least, most) => Some(format!("{least} to {most}")),
            Kind::Number(least, most) => Some(format!("{least} to {most}")),
            Kind::Word(_) | Kind::Text(_) | Kind::List(..) | Kind::Switch => None,
        }
    }

    fn within<T: PartialOrd + Copy>(&self, value: T, ends: (Option<T>, Option<T>), said: &str) -> Result<(), String> {
        let fits = ends.0.is_none_or(|least| value >= least) && ends.1.is_none_or(|most| value <= most);
        if fits { Ok(()) } else { Err(self.outside(said)) }
    }

    fn outside(&self, said: &str) -> String {
        let note = if self.note.is_empty() { String::new() } else { format!(" ({})", self.note) };
        format!("{said} is out of range: expected {}{note}", self.range().unwrap_or_default())
    }

    /// What is no value of this setting: with its own range, not that of all times or sizes.
    fn unread(&self, what: &str, said: &str, units: &str, such_as: &str) -> String {
        let range = self.range().unwrap_or_default();
        format!(
            "invalid {what} {said:?}: expected a number and its unit ({units}), such as {such_as}; allowed: {range}"
        )
    }

    /// Reads what a flag, or `afterimage set`, says. Of a list, one element.
    pub(crate) fn read(&self, said: &str) -> Result<Value, String> {
        Ok(match self.kind {
            Kind::Time(least, most) => {
                let time = parse_duration(said).map_err(|_| self.unread("duration", said, TIME_UNITS, "20ms"))?;
                self.within(time, (parse_duration(least).ok(), parse_duration(most).ok()), said)?;
                time_text(time).into()
            }
            Kind::Size(least, most) => {
                let bytes = parse_size(said).map_err(|_| self.unread("size", said, SIZE_UNITS, "64MiB"))?;
                self.within(bytes, (parse_size(least).ok(), parse_size(most).ok()), said)?;
                size_text(bytes).into()
            }
            Kind::Number(least, most) => {
                let number =
                    said.parse().map_err(|_| format!("invalid number {said:?}: expected {least} to {most}"))?;
                self.within(number, (Some(least), Some(most)), said)?;
                number.into()
            }
            Kind::Word(words) => match words.contains(&said) {
                true => said.into(),
                false => return Err(format!("{said:?} is not known here; allowed: {}", words.join(", "))),
            },
            Kind::Text(read) | Kind::List(read, _) => read(said)?.into(),
            Kind::Switch => true.into(),
        })
    }

    /// Reads what a file says under the key.
    pub(super) fn read_value(&self, said: &Value) -> Result<Value, String> {
        match (self.kind, said) {
            (Kind::Switch, Value::Boolean(_)) => Ok(said.clone()),
            (Kind::Number(..), Value::Integer(number)) => self.read(&number.to_string()),
            (Kind::List(..), Value::Array(items)) => {
                let read = |item: &Value| self.read(item.as_str().ok_or_else(|| self.another_kind(said))?);
                items.iter().map(read).collect::<Result<Vec<_>, _>>().map(Value::Array)
            }
            (Kind::Time(..) | Kind::Size(..) | Kind::Word(_) | Kind::Text(_), Value::String(text)) => self.read(text),
            _ => Err(self.another_kind(said)),
        }
    }

    /// Reads what a file says under the key of before: a number in that key's unit, or what the key of today takes.
    pub(super) fn read_old(&self, said: &Value, unit: f64) -> Result<Value, String> {
        let number = said.as_float().or_else(|| said.as_integer().map(|n| n as f64));
        let text = match (number, self.kind) {
            (Some(n), Kind::Time(..)) => from_micros(n * unit).map(time_text),
            (Some(n), Kind::Size(..)) => whole(n * unit).map(size_text),
            _ => return self.read_value(said),
        };
        self.read(&text.ok_or_else(|| self.outside(&said.to_string()))?)
    }

    fn another_kind(&self, said: &Value) -> String {
        let expected = match self.kind {
            Kind::Time(..) => "a time with its unit, such as \"20ms\"",
            Kind::Size(..) => "a size with its unit, such as \"64MiB\"",
            Kind::Number(..) => "a whole number",
            Kind::Word(_) | Kind::Text(_) => "a text, such as \"…\"",
            Kind::List(..) => "a list of texts, such as [\"…\", \"…\"]",
            Kind::Switch => "true or false",
        };
        format!("expected {expected}, found {said}")
    }

    /// What holds if nothing is said and nothing else decides.
    pub(super) fn usual_value(&self) -> Option<Value> {
        match (self.usual, self.kind) {
            (Usual::Is(text), _) => self.read(text).ok(),
            (Usual::Nothing, Kind::Switch) => Some(false.into()),
            (Usual::Nothing, Kind::List(..)) => Some(Value::Array(Vec::new())),
            _ => None,
        }
    }

    /// For a value that has to be said and was not.
    pub(super) fn example(&self) -> Option<Value> {
        let Usual::Needed(example) = self.usual else { return None };
        let value = self.read(example).ok()?;
        Some(if matches!(self.kind, Kind::List(..)) { Value::Array(vec![value]) } else { value })
    }

    /// Its sentence, with what is allowed and what is usual.
    pub(super) fn help(&self) -> String {
        let range = self.range().map_or_else(String::new, |range| format!(" [allowed: {range}]"));
        let usual = match self.usual {
            Usual::Is(text) | Usual::Follows(text) => format!(" [default: {text}]"),
            Usual::Needed(_) | Usual::Nothing => String::new(),
        };
        format!("{}{range}{usual}", self.says)
    }
}

/// Reads a `T`.
pub(super) fn text<T: FromStr<Err: fmt::Display> + fmt::Display>(said: &str) -> Result<String, String> {
    said.parse().map(|value: T| value.to_string()).map_err(|why| why.to_string())
}

/// Reads the address of a listener, or a port of loopback alone.
pub(super) fn listener(said: &str) -> Result<String, String> {
    parse_listen(said).map(|address| address.to_string())
}

/// Reads a path or a name, which is never empty.
pub(super) fn something(said: &str) -> Result<String, String> {
    if said.is_empty() {
        Err("an empty text says nothing: leave the setting out, or give it a value".to_owned())
    } else {
        any(said)
    }
}

/// Reads anything.
pub(super) fn any(said: &str) -> Result<String, String> {
    Ok(said.to_owned())
}
