//! Incidents for people: a headline, the story, a time line; what could not be read, at the end.

use super::{Report, Told, story};
use mc_core::register::Register;
use serde::Deserialize;
use serde_json::Value;
use std::{
    fmt::Write,
    time::{Duration, UNIX_EPOCH},
};

/// Columns of a story's lines.
const WIDTH: usize = 110;
/// Characters of an event's fields.
const FIELDS: usize = 160;
/// Fields that every event has.
const KNOWN: [&str; 10] = ["schema", "event", "at_ms", "boot", "boot_ms", "vm", "side", "node", "pid", "process"];

/// The text, ending in a newline.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    for told in &report.incidents {
        if !out.is_empty() {
            out.push('\n');
        }
        incident(&mut out, told);
    }
    if report.incidents.is_empty() {
        out.push_str("no role has changed\n");
    }
    for skipped in &report.skipped {
        let _ = writeln!(out, "skipped: {}:{}: {}", skipped.file.display(), skipped.line, skipped.why);
    }
    if report.more_skipped > 0 {
        let _ = writeln!(out, "skipped: {} more lines that are no events", report.more_skipped);
    }
    out
}

fn incident(out: &mut String, told: &Told) {
    let Told { vm, side, node, kind, began_ms, .. } = told;
    let _ = writeln!(out, "{}  {vm} on {node} ({side}): {}", wall(*began_ms), story::headline(*kind));
    wrap(out, &told.story.join(" "));
    for event in &told.evidence {
        let since = told.evidence.first().map_or(0.0, |first| since(first, event));
        let text = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or("?");
        let (process, name) = (text("process"), text("event"));
        let _ = writeln!(out, "  {since:>+10.1} ms  {process:<10}  {name}{}", fields(event));
    }
}

/// By the clock that nobody sets, where both were in one boot.
fn since(first: &Value, event: &Value) -> f64 {
    let of = |name: &str| Some(event.get(name)?.as_f64()? - first.get(name)?.as_f64()?);
    let one_boot = event.get("boot").is_some_and(|boot| Some(boot) == first.get("boot"));
    of("boot_ms").filter(|_| one_boot).or_else(|| of("at_ms")).unwrap_or(0.0)
}

fn fields(event: &Value) -> String {
    let Some(fields) = event.as_object() else { return String::new() };
    let mut line = String::new();
    for (name, value) in fields.iter().filter(|(name, _)| !KNOWN.contains(&name.as_str())) {
        let shown = match value {
            // Its numbers are in the story, and in the JSON.
            Value::Object(_) => match Register::deserialize(value) {
                Ok(register) => story::register(&register),
                Err(_) => continue,
            },
            Value::Null | Value::Array(_) => continue,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        // What is in a journal may be anything: nothing of it reaches the terminal as a command.
        let shown: String = shown.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        let _ = write!(line, "  {name}={shown}");
    }
    match line.char_indices().nth(FIELDS) {
        Some((cut, _)) => format!("{}...", &line[..cut]),
        None => line,
    }
}

/// UTC, to the millisecond.
fn wall(unix_ms: f64) -> String {
    let at = UNIX_EPOCH + Duration::from_secs_f64((unix_ms / 1e3).clamp(0.0, 1e11));
    humantime::format_rfc3339_millis(at).to_string().replace('T', " ")
}

/// Words in lines, indented.
fn wrap(out: &mut String, text: &str) {
    let mut column = 0;
    for word in text.split_whitespace() {
        let word: String = word.chars().filter(|c| !c.is_control()).collect();
        let length = word.chars().count() + 1;
        if column == 0 || column + length > WIDTH {
            out.push_str(if column == 0 { "  " } else { "\n  " });
            column = 1;
        } else {
            out.push(' ');
        }
        out.push_str(&word);
        column += length;
    }
    out.push('\n');
}
