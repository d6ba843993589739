//! `mc-bench transport` as a user runs it, small, over loopback. Nothing is asserted about times.

use serde_json::Value;
use std::process::{Command, Output};

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

#[test]
fn checkpoints_go_over_and_the_record_says_how() {
    let record = record(&tiny(&["--json", "--no-yardsticks"]));
    assert_eq!((record["schema"].as_u64(), record["kind"].as_str()), (Some(1), Some("transport")));
    let cells = record["goodput"].as_array().unwrap();
    let shapes: Vec<_> = cells.iter().map(|c| (c["bytes"].as_u64().unwrap(), c["depth"].as_u64().unwrap())).collect();
    assert_eq!(shapes, [(4096, 1), (4096, 3), (307_200, 1), (307_200, 3)]);
    for cell in cells {
        assert_eq!(cell["mb_s"]["runs"], 2);
        assert!(cell["mb_s"]["median"].as_f64().unwrap() > 0.0, "{cell}");
        assert!(cell["ratio"].is_null(), "{cell}");
    }
    assert_eq!(record["commit"]["runs"].as_array().unwrap().len(), 2);
    assert!(record["commit"]["ratio"]["median"].as_f64().unwrap() > 0.0, "a bare ping-pong needs no tool");
    for field in ["kernel", "cpu", "commit", "load"] {
        assert!(record["machine"][field].is_string(), "{field}");
    }
    assert_eq!(record["settings"]["slab_bytes"], 65536);
}

#[test]
fn sleeping_ends_and_paced_checkpoints_work_too() {
    let record = record(&tiny(&["--json", "--no-yardsticks", "--poll", "event", "--every", "1ms"]));
    assert_eq!(record["settings"]["every_us"], 1000.0);
    assert!(record["goodput"][0]["runs"][0]["iterations"].as_u64().unwrap() > 0);
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
    assert_eq!((record["schema"].as_u64(), record["kind"].as_str()), (Some(1), Some("beats")));
    for phases in ["idle", "loaded"] {
        let phases = record[phases].as_array().unwrap();
        assert_eq!(phases.len(), 2);
        assert!(phases.iter().all(|p| p["heard"]["received"].as_u64().unwrap() > 0), "{phases:?}");
    }
    assert!(record["loaded"][0]["load_mb_s"].as_f64().unwrap() > 0.0);
    assert!(record["idle"][0]["load_mb_s"].is_null());
    assert_eq!(record["targets"].as_array().unwrap().len(), 2);
}
