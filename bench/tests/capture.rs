//! `mc-bench capture` and `mc-bench epoch` as a user runs them, small, without any device. Nothing is asserted about times;
//! that images and copies are right is checked by the program itself, which fails otherwise.

use serde_json::Value;
use std::process::Command;

fn mc_bench(args: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_mc-bench")).args(args.split(' ')).output().expect("mc-bench starts");
    assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON record on stdout")
}

/// The section, wherever the record has it.
fn section(record: &Value) -> &Value {
    record.get("sections").map_or(record, |sections| &sections[0])
}

fn figures<'a>(section: &'a Value, name: &str) -> Vec<(&'a str, f64)> {
    let measures = section["measures"].as_array().unwrap().iter().filter(|m| m["name"] == name);
    measures.map(|m| (m["case"].as_str().unwrap(), m["runs"][0].as_f64().unwrap())).collect()
}

#[test]
fn capture_needs_no_device_and_names_what_is_missing() {
    let record =
        mc_bench("capture --device none0 --pages 300 --ram 4MiB --slab 64KiB --threads 2 --runs 1 --for 20ms --json");
    let section = section(&record);
    let copies = figures(section, "copy");
    assert_eq!(copies.len(), 3 * 4, "{copies:?}");
    assert!(copies.iter().all(|(_, us)| *us > 0.0), "{copies:?}");
    assert_eq!(figures(section, "capture").len(), 4 * 4);
    let missing = section["missing"][0]["why"].as_str().unwrap();
    assert_eq!(section["missing"][0]["what"], "local RDMA copies");
    assert!(missing.contains("; "), "no remedy: {missing}");
    let bounds = section["measures"].as_array().unwrap().iter().filter(|m| !m["bound"].is_null()).count();
    assert_eq!(bounds, 1);
}

#[test]
fn the_whole_loop_runs_on_every_engine_and_way_to_track_with_staging_that_is_too_small() {
    for (engine, track, staging) in
        [("memcpy", "compare", "4MiB"), ("parallel", "auto", "4MiB"), ("auto", "compare", "128KiB")]
    {
        let record = mc_bench(&format!(
            "epoch --transport tcp --engine {engine} --track {track} --staging {staging} --slab 64KiB --ram 1MiB \
             --every 2ms --workload idle,zipf,database --rate 20000 --runs 1 --for 100ms --json"
        ));
        let section = section(&record);
        let epochs = figures(section, "epochs");
        assert_eq!(
            epochs.iter().map(|(case, _)| *case).collect::<Vec<_>>(),
            ["idle", "zipf, 20000/s", "database, 20000/s"]
        );
        assert!(epochs.iter().all(|(_, epochs)| *epochs > 0.0), "{epochs:?}");
        for name in ["pause", "capture", "commit", "hold", "apply", "goodput", "operations"] {
            assert!(!figures(section, name).is_empty(), "{name}");
        }
        let settings = section["settings"].as_array().unwrap();
        assert!(settings.iter().any(|s| s["name"] == "dirty pages from" && s["value"] != ""), "{settings:?}");
        assert_eq!(section["timelines"].as_array().unwrap().len(), 3);
    }
}

#[test]
fn a_rate_that_is_none_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_mc-bench"))
        .args(["epoch", "--transport", "tcp", "--rate", "fast"])
        .output()
        .expect("mc-bench starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("expected free"), "{output:?}");
}
