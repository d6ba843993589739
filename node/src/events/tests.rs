//! What is written stays as it was, and is read again: one line of each event, in each of its shapes.

use super::*;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const GOLDEN: &str = include_str!("golden.jsonl");

fn golden() -> impl Iterator<Item = (&'static str, Map<String, Value>)> {
    GOLDEN.lines().map(|line| (line, serde_json::from_str(line).unwrap()))
}

fn read(fields: &Map<String, Value>) -> Event {
    Event::deserialize(Value::Object(fields.clone())).unwrap()
}

#[test]
fn what_is_written_is_what_was_written() {
    for (line, fields) in golden() {
        let event = read(&fields);
        assert!(!matches!(event, Event::Other(_)), "not understood: {line}");
        let at_ms = fields["at_ms"].as_f64().unwrap();
        let record = Record { who: None, at_ms, boot: String::new(), boot_ms: None, event, line: String::new() };
        assert_eq!(as_line(&record.short()), format!("{line}\n"));
    }
}

#[test]
fn every_event_has_a_line_here() {
    let told: BTreeSet<String> = golden().map(|(_, fields)| read(&fields).name().to_owned()).collect();
    let all: BTreeSet<String> = Event::NAMES.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(told, all);
}

#[test]
fn a_record_is_read_as_it_was_written() {
    let who = Who {
        vm: Name::new("web").unwrap(),
        side: Side::Primary,
        node: Name::new("host-a").unwrap(),
        process: Process::DataPath,
        pid: 7,
    };
    for (_, fields) in golden() {
        let record = Record::now(read(&fields), Some(who), "b00");
        let line = as_line(&record.whole(record.short()));
        let again = Record::parse(line.trim_end()).unwrap();
        let name = record.event.name();
        assert_eq!((again.who, again.at_ms, again.boot_ms), (record.who, record.at_ms, record.boot_ms), "{name}");
        assert_eq!(
            (again.boot.as_str(), again.event.name(), as_line(&again.whole(again.short()))),
            ("b00", name, line)
        );
    }
}

#[test]
fn what_is_not_known_is_kept_as_it_is() {
    let line = json!({ "event": "rained", "at_ms": 5.0, "schema": 1, "mm": 3, "where": { "on": "host-a" } });
    let record = Record::parse(&line.to_string()).unwrap();
    let Event::Other(other) = &record.event else { panic!("{record:?}") };
    assert_eq!((other.event.as_str(), &other.fields["where"]), ("rained", &json!({ "on": "host-a" })));
    // A field that is new, and one that is not what it ought to be.
    for (orderly, known) in [(json!(true), true), (json!("yes"), false)] {
        let fields = json!({ "event": "vm-gone", "orderly": orderly, "since": "noon" });
        let event = Event::deserialize(fields).unwrap();
        assert_eq!((event.name(), event == Event::VmGone(VmGone { orderly: true })), ("vm-gone", known));
    }
}

#[test]
fn every_event_and_field_is_in_the_manual() {
    let manual = include_str!("../../../docs/EVENTS.md");
    let rows: Vec<&str> = manual.lines().filter(|line| line.starts_with("| `")).collect();
    for (_, fields) in golden() {
        let name = fields["event"].as_str().unwrap();
        let row = rows.iter().find(|row| row.starts_with(&format!("| `{name}` ")));
        let row = row.unwrap_or_else(|| panic!("docs/EVENTS.md has no row for {name}"));
        assert_eq!(
            row.starts_with(&format!("| `{name}` | r |")),
            read(&fields).is_of_roles(),
            "journal of roles: {name}"
        );
        let standing = ["role", "epochs", "output", "arbiter", "registered", "revoked_ago_ms"];
        let is_told = |field: &str| {
            let stands = row.contains("*standing*") && standing.contains(&field);
            stands || matches!(field, "event" | "at_ms") || row.contains(&format!("`{field}`"))
        };
        let missing: Vec<&String> = fields.keys().filter(|field| !is_told(field)).collect();
        assert!(missing.is_empty(), "docs/EVENTS.md, {name}: {missing:?}");
    }
    let told = |row: &&&str| Event::NAMES.iter().any(|name| row.starts_with(&format!("| `{name}` ")));
    let strangers: Vec<_> = rows.iter().filter(|row| !told(row)).collect();
    assert!(strangers.is_empty(), "docs/EVENTS.md has rows of no event: {strangers:?}");
}
