//! The journal on a disk that turns over, tears and fills up.

use super::{FULL, LONGEST, LineWriter, Writer, older, parse, read, spawn};
use crate::events::Event;
use serde_json::json;
use std::{fs, io::Write, path::Path, sync::mpsc::channel, time::Duration};

fn line(event: &str, at_ms: u64) -> String {
    format!("{{\"schema\":1,\"event\":\"{event}\",\"at_ms\":{at_ms}}}\n")
}

#[test]
fn it_is_bounded_and_the_newest_survive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sub/web.primary.journal");
    let (mut one, mut two) = (Writer::new(path.clone()), Writer::new(path.clone()));
    let pad = "x".repeat(8 << 10);
    for n in 0..600 {
        let line = format!("{{\"schema\":1,\"event\":\"e{n}\",\"at_ms\":{n},\"pad\":\"{pad}\"}}\n");
        // Two processes, each with its own descriptor: neither may write into a file that the other has turned over twice.
        if n % 7 == 0 { &mut two } else { &mut one }.append(&line).unwrap();
    }
    let size = |path: &Path| fs::metadata(path).unwrap().len();
    assert!(size(&path) <= FULL + LONGEST as u64 && size(&older(&path)) <= FULL + LONGEST as u64);
    let journal = read(&path).unwrap();
    assert_eq!(journal.skipped, []);
    let newest: Vec<f64> = journal.records.iter().map(|e| e.at_ms).collect();
    let expected: Vec<f64> = (0..600).map(f64::from).filter(|n| *n >= newest[0]).collect();
    assert!(newest.len() > 120, "{}", newest.len());
    assert_eq!(newest, expected, "none is missing in between");
}

#[test]
fn lines_of_several_writers_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.primary.journal");
    std::thread::scope(|scope| {
        for name in ["a", "b", "c"] {
            let path = path.clone();
            scope.spawn(move || {
                let mut writer = Writer::new(path);
                (0..100).for_each(|n| writer.append(&line(&format!("{name}{}", "y".repeat(500)), n)).unwrap());
            });
        }
    });
    let journal = read(&path).unwrap();
    assert_eq!((journal.records.len(), journal.skipped.len()), (300, 0));
}

#[test]
fn a_torn_line_is_ended_by_the_next_writer_and_named_by_readers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.primary.journal");
    fs::write(&path, format!("{}{{\"schema\":1,\"event\":\"to", line("one", 1))).unwrap();
    assert_eq!(read(&path).unwrap().records.len(), 1);
    Writer::new(path.clone()).append(&line("two", 2)).unwrap();
    let journal = read(&path).unwrap();
    assert_eq!(journal.records.iter().map(|e| e.event.name()).collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!((journal.skipped.len(), journal.skipped[0].line), (1, 2));
    assert!(journal.skipped[0].why.contains("not a JSON object"), "{:?}", journal.skipped);
}

#[test]
fn a_journal_that_was_removed_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.primary.journal");
    let mut writer = Writer::new(path.clone());
    writer.append(&line("one", 1)).unwrap();
    fs::remove_file(&path).unwrap();
    writer.append(&line("two", 2)).unwrap();
    assert_eq!(read(&path).unwrap().records.len(), 1);
}

#[test]
fn what_is_no_event_is_named_and_skipped() {
    let long = format!("{{\"schema\":1,\"event\":\"e\",\"at_ms\":1,\"x\":\"{}\"}}", "z".repeat(LONGEST));
    let cases: [(&[u8], &str); 8] = [
        (b"nonsense", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b"\xff\xfe", "not UTF-8"),
        (b"{\"schema\":2,\"event\":\"e\",\"at_ms\":1}", "only 1 is known"),
        (b"{\"event\":\"e\",\"at_ms\":1}", "of schema None"),
        (b"{\"schema\":1,\"at_ms\":1}", "no \"event\""),
        (b"{\"schema\":1,\"event\":\"e\",\"at_ms\":1e300}", "no \"at_ms\""),
        (long.as_bytes(), "is the most that an event has"),
    ];
    for (bytes, why) in cases {
        let mut text = line("before", 1).into_bytes();
        text.extend_from_slice(bytes);
        text.push(b'\n');
        text.extend_from_slice(line("after", 2).as_bytes());
        let journal = parse(Path::new("j"), &text);
        assert_eq!(journal.records.len(), 2, "{why}");
        assert!(journal.skipped[0].why.contains(why), "{why}: {:?}", journal.skipped);
    }
    let flood = parse(Path::new("j"), &b"x\n".repeat(1000));
    assert_eq!((flood.skipped.len(), flood.more_skipped), (100, 900));
}

#[test]
fn an_event_that_is_too_long_keeps_what_is_short() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.primary.journal");
    let why = "w".repeat(LONGEST);
    let text = format!("{{\"schema\":1,\"event\":\"refused\",\"at_ms\":5,\"why\":\"{why}\",\"node\":\"a\"}}\n");
    Writer::new(path.clone()).append(&text).unwrap();
    let record = &read(&path).unwrap().records[0];
    let Event::Other(kept) = &record.event else { panic!("{record:?}") };
    assert_eq!((kept.event.as_str(), &kept.fields["node"], kept.fields.get("why")), ("refused", &json!("a"), None));
}

#[test]
fn a_stuck_disk_stops_nobody_and_what_is_lost_is_counted() {
    let (go, gate) = channel::<()>();
    let (written, seen) = channel();
    let writer = LineWriter::spawn("stuck", move |line| {
        let _ = gate.recv();
        let _ = written.send(line.to_owned());
        Ok(())
    });
    let writer = writer.unwrap();
    (0..5000).for_each(|n| writer.put(format!("{n}\n")));
    assert!(writer.lost() >= 5000 - 1026, "{}", writer.lost());
    assert!(!writer.flush(Duration::from_millis(5)));
    drop(go);
    assert!(writer.flush(Duration::from_secs(60)));
    let kept: Vec<String> = seen.try_iter().collect();
    assert_eq!(kept.len() as u64 + writer.lost(), 5000);
    assert_eq!(kept[0], "0\n");
}

#[test]
fn a_journal_that_cannot_be_written_counts_what_it_lost() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a-file");
    fs::File::create(&file).unwrap().write_all(b"x").unwrap();
    let writer = spawn(&file.join("web.primary.journal")).unwrap();
    (0..3).for_each(|n| writer.put(line("e", n)));
    assert!(writer.flush(Duration::from_secs(60)));
    assert_eq!(writer.lost(), 3);
}
