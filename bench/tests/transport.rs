//! `mc-bench transport` as a user runs it, small, over loopback. Nothing is asserted about times.

use serde_json::Value;
use std::{
    io::{BufRead, BufReader},
    process::{Command, Output, Stdio},
};

fn mc_bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mc-bench")).args(args).output().expect("mc-bench starts")
}

fn tiny(more: &[&str]) -> Output {
    let tiny = ["transport", "--transport", "tcp", "--slab", "64KiB", "--size", "4KiB,300KiB", "--depth", "1,3"];
    let short = ["--runs", "2", "--for", "20ms"];
    mc_bench(&[&tiny[..], &short, more].concat())
}

fn record(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON record on stdout")
}

/// The measures of that name in the only section.
fn measures<'a>(record: &'a Value, name: &str) -> Vec<&'a Value> {
    let [section] = &record["sections"].as_array().unwrap()[..] else { panic!("one section: {record}") };
    section["measures"].as_array().unwrap().iter().filter(|m| m["name"] == name).collect()
}

fn setting<'a>(record: &'a Value, name: &str) -> &'a str {
    let settings = record["sections"][0]["settings"].as_array().unwrap();
    settings.iter().find(|s| s["name"] == name).and_then(|s| s["value"].as_str()).unwrap()
}

#[test]
fn checkpoints_go_over_and_the_record_says_how() {
    let record = record(&tiny(&["--json", "--no-yardsticks"]));
    assert_eq!((record["schema"].as_u64(), record["sections"][0]["kind"].as_str()), (Some(2), Some("transport")));
    let cells = measures(&record, "goodput");
    let cases: Vec<_> = cells.iter().map(|c| c["case"].as_str().unwrap()).collect();
    assert_eq!(cases, ["4 KiB, depth 1", "4 KiB, depth 3", "300 KiB, depth 1", "300 KiB, depth 3"]);
    for cell in cells {
        let runs = cell["runs"].as_array().unwrap();
        assert!(runs.len() == 2 && runs.iter().all(|r| r.as_f64().unwrap() > 0.0), "{cell}");
        assert!(cell["yardstick"]["runs"].as_array().unwrap().iter().all(Value::is_null), "{cell}");
        assert!(!cell["times"]["counts"].as_array().unwrap().is_empty(), "{cell}");
    }
    let [empty] = measures(&record, "empty checkpoint")[..] else { panic!("one: {record}") };
    assert!(empty["yardstick"]["runs"][1].as_f64().unwrap() > 0.0, "a bare ping-pong needs no tool");
    for field in ["kernel", "cpu", "commit", "load"] {
        assert!(record["machine"][field].is_string(), "{field}");
    }
    assert_eq!((setting(&record, "slabs"), record["command"][0].as_str()), ("64 KiB", Some("transport")));
}

#[test]
fn an_interrupted_bench_shows_the_figures_by_then() {
    let args = ["transport", "--transport", "tcp", "--slab", "64KiB", "--size", "4KiB,300KiB", "--depth", "1"];
    let endless = ["--runs", "1000", "--for", "100ms", "--json", "--no-yardsticks"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_mc-bench"));
    let command = command.args(args).args(endless).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("mc-bench starts");
    let mut narration = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = narration.find(|line| line.as_ref().unwrap().contains("run 1: 4 KiB"));
    first.expect("it narrates").unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    let rest = std::thread::spawn(move || narration.map_while(Result::ok).count());
    let output = child.wait_with_output().unwrap();
    rest.join().unwrap();
    let record = record(&output);
    assert!(record["caveats"].to_string().contains("interrupted"), "{}", record["caveats"]);
    let runs = measures(&record, "goodput")[0]["runs"].as_array().unwrap().len();
    assert!((1..1000).contains(&runs), "{runs}");
}

#[test]
fn sleeping_ends_and_paced_checkpoints_work_too() {
    let record = record(&tiny(&["--json", "--no-yardsticks", "--poll", "event", "--every", "1ms"]));
    assert_eq!(setting(&record, "pace"), "a checkpoint every 1000 us");
    let iterations = &measures(&record, "goodput")[0]["columns"][1];
    assert_eq!(iterations["heading"], "#iterations");
    assert!(iterations["value"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_missing_yardstick_is_named_with_its_package_and_not_fatal() {
    let output = Command::new(env!("CARGO_BIN_EXE_mc-bench"))
        .args(["transport", "--transport", "tcp", "--size", "4KiB", "--depth", "1", "--runs", "1", "--for", "10ms"])
        .env("PATH", "/nonexistent")
        .output()
        .expect("mc-bench starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("iperf3 is not installed: install the Debian package iperf3"), "{text}");
    assert!(text.contains("BW average[MB/sec]") && text.contains("t_typical[usec]"), "{text}");
}

#[test]
fn a_device_that_is_not_there_is_a_missing_prerequisite() {
    let output = mc_bench(&["transport", "--transport", "rdma", "--device", "no-such-device", "--quick"]);
    assert_eq!(output.status.code(), Some(6));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    // With a kernel that has no RDMA it is not even looked for.
    assert!(
        words.contains("RDMA")
            && words.contains("rdma_rxe") | words.contains("no-such-device")
            && output.stdout.is_empty(),
        "{words}"
    );
}

#[test]
fn beats_go_beside_a_load_and_are_counted() {
    let load = ["--slab", "64KiB", "--size", "256KiB", "--depth", "2", "--every", "2ms"];
    let short = ["beats", "--transport", "tcp", "--runs", "2", "--for", "60ms", "--json"];
    let record = record(&mc_bench(&[&short[..], &load].concat()));
    assert_eq!(record["sections"][0]["kind"], "beats");
    for case in ["one way, idle", "one way, under load", "round trip, under load"] {
        let times = measures(&record, "beats").into_iter().find(|m| m["case"] == case).unwrap();
        assert!(!times["times"]["counts"].as_array().unwrap().is_empty(), "{times}");
    }
    let [load] = measures(&record, "load")[..] else { panic!("one: {record}") };
    assert!(load["runs"][0].as_f64().unwrap() > 0.0);
    assert_eq!(measures(&record, "beats lost")[0]["bound"]["of"], "every-run");
}
