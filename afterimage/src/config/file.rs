//! The TOML file: a section per command, unknown keys refused, the keys of before still understood.

use super::{
    ConfigError, near,
    setting::{SECTIONS, Setting},
    table,
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs::File as Opened,
    io::Read,
    ops::Range,
    path::{Path, PathBuf},
};
use toml::{
    Spanned, Value,
    de::{DeString, DeTable, DeValue, ValueDeserializer},
};

/// What the parser says of a key that is there twice.
const DUPLICATE: &str = "duplicate key";
/// Bytes of a file at most.
const LARGEST: u64 = 1 << 20;

/// What a file says under one key.
#[derive(Clone, Debug)]
pub(super) struct Said {
    /// As it reads today.
    pub(super) value: Value,
    /// From 1.
    pub(super) line: usize,
    /// The key of before, if the file has that, and where it stands in the text.
    pub(super) old: Option<(&'static str, Range<usize>)>,
}

/// One section's keys.
type Section = BTreeMap<&'static str, Said>;

/// What a file says, by section and key.
#[derive(Debug, Default)]
pub(super) struct File {
    path: PathBuf,
    sections: BTreeMap<&'static str, Section>,
}

/// Reads and checks a file. No path, no settings.
pub(super) fn load(path: Option<&Path>) -> Result<File, ConfigError> {
    let Some(path) = path else { return Ok(File::default()) };
    let mut bytes = Vec::new();
    Opened::open(path)
        .and_then(|f| f.take(LARGEST + 1).read_to_end(&mut bytes))
        .map_err(|source| ConfigError::Read { path: path.into(), source })?;
    if bytes.len() as u64 > LARGEST {
        return Err(ConfigError::TooLong { path: path.into(), limit: LARGEST });
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = 1 + newlines(&e.as_bytes()[..e.utf8_error().valid_up_to()]);
        ConfigError::Syntax { path: path.into(), line, what: "not UTF-8".to_owned() }
    })?;
    parse(path, &text)
}

fn newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

/// The same, of what a file shall hold.
pub(super) fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    let line = |at: usize| 1 + newlines(&text.as_bytes()[..at.min(text.len())]);
    let wrong = |at, what: String| ConfigError::Syntax { path: path.into(), line: line(at), what };
    let document = DeTable::parse(text).map_err(|e| {
        let span = e.span().unwrap_or_default();
        // The parser does not say which.
        let key = if e.message().trim_end() == DUPLICATE { text.get(span.clone()) } else { None };
        let key = key.map_or_else(String::new, |key| format!(" `{}`", near::shown(key)));
        wrong(span.start, format!("{}{key}", e.message().trim_end()))
    })?;
    let mut sections = BTreeMap::new();
    for (name, entries) in in_order(document.get_ref()) {
        let known = SECTIONS.into_iter().find(|(section, _)| section == name.get_ref());
        let (Some((section, on)), DeValue::Table(entries)) = (known, entries.get_ref()) else {
            return Err(wrong(name.span().start, no_section(name.get_ref(), known.is_some())));
        };
        let mut keys = Section::new();
        for (key, value) in in_order(entries) {
            let (setting, said) = read((section, on), key, value).map_err(|(at, what)| wrong(at, what))?;
            let said = Said { line: line(value.span().start), ..said };
            if let Some(first) = keys.insert(setting.key, said) {
                let old = setting.old.map_or("", |(old, _)| old);
                let what =
                    format!("`{}` and `{old}` (line {}) are one setting: leave `{old}` out", setting.key, first.line);
                return Err(wrong(key.span().start, what));
            }
        }
        sections.insert(section, keys);
    }
    Ok(File { path: path.into(), sections })
}

/// As they stand in the text: what is wrong first is told first.
fn in_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<(&'a Spanned<DeString<'i>>, &'a Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// One line of a section.
fn read(
    (section, on): (&str, u8),
    key: &Spanned<DeString<'_>>,
    value: &Spanned<DeValue<'_>>,
) -> Result<(&'static Setting, Said), (usize, String)> {
    let name = key.get_ref().as_ref();
    let named = table::of(on).filter(|setting| !setting.once).find_map(|setting| match setting.old {
        _ if setting.key == name => Some((setting, None)),
        Some((old, unit)) if old == name => Some((setting, Some((old, unit)))),
        _ => None,
    });
    let (setting, old) = named.ok_or_else(|| (key.span().start, no_key(section, on, name)))?;
    let at = value.span().start;
    let said = Value::deserialize(ValueDeserializer::from(value.clone())).map_err(|e| (at, e.message().to_owned()))?;
    let value = match old {
        Some((_, unit)) => setting.read_old(&said, unit),
        None => setting.read_value(&said),
    };
    let value = value.map_err(|why| (at, format!("{name}: {why}")))?;
    Ok((setting, Said { value, line: 0, old: old.map(|(old, _)| (old, key.span())) }))
}

fn no_section(name: &str, is_section: bool) -> String {
    let sections = SECTIONS.map(|(section, _)| section);
    let key = SECTIONS.into_iter().any(|(_, on)| table::keys(on).any(|key| key == name));
    match (is_section, key) {
        (true, _) => format!("`{name}` is a section: begin it with a line [{name}]"),
        (_, true) => {
            format!("`{name}` stands in no section; there are {}", sections.map(|s| format!("[{s}]")).join(", "))
        }
        _ => near::unknown("section", name, sections.into_iter()),
    }
}

fn no_key(section: &str, on: u8, name: &str) -> String {
    let elsewhere = |bit| table::keys(bit).any(|key| key == name);
    let others: Vec<_> =
        SECTIONS.iter().filter(|(_, bit)| elsewhere(*bit)).map(|(section, _)| format!("[{section}]")).collect();
    if table::of(on).any(|setting| setting.once && setting.key == name) {
        return format!("`{name}` is a word for once: a flag of `afterimage {section}`, and no key");
    }
    match others.is_empty() {
        true => near::unknown("key", name, table::keys(on)),
        false => format!("`{name}` is not a key of [{section}], but of {}", others.join(" and ")),
    }
}

impl File {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.get(name)
    }

    /// What a section says under a key.
    pub(super) fn said(&self, section: &str, key: &str) -> Option<&Said> {
        self.sections.get(section)?.get(key)
    }
}

/// The text of a file, with today's names for these keys of a section where it has those of before.
pub(crate) fn renamed(path: &Path, text: &str, section: &str, keys: &[&str]) -> Result<String, ConfigError> {
    let file = parse(path, text)?;
    let span = |key: &str| Some(file.said(section, key)?.old.clone()?.1);
    let mut spans: Vec<_> = keys.iter().filter_map(|key| Some((span(key)?, *key))).collect();
    spans.sort_by_key(|(span, _)| std::cmp::Reverse(span.start));
    let mut text = text.to_owned();
    spans.into_iter().for_each(|(span, key)| text.replace_range(span, key));
    Ok(text)
}
