//! `mc-bench compare` and `all` as a user runs them.

use mc_bench::record::{Begun, Better, Measure, Section, Unit};
use serde_json::Value;
use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

fn mc_bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mc-bench")).args(args).output().expect("mc-bench starts")
}

/// A record of pauses of so many microseconds, in a file.
fn stored(name: &str, pauses: [f64; 5]) -> PathBuf {
    let pause = Measure::new("pause", "idle", Unit::Usec, Better::Lower, pauses.to_vec());
    let record = Begun::now().done(vec![Section::new("epoch", "").measure(pause)]);
    let path = std::env::temp_dir().join(format!("mc-bench-compare-{}-{name}.json", std::process::id()));
    fs::write(&path, serde_json::to_string(&record).unwrap()).unwrap();
    path
}

#[test]
fn a_change_for_the_worse_is_told_and_is_an_error_if_one_asks() {
    let (good, bad) = (stored("a", [10.0, 11.0, 10.5, 9.9, 10.2]), stored("b", [20.0, 21.0, 20.5, 19.9, 20.2]));
    let (a, b) = (good.to_str().unwrap(), bad.to_str().unwrap());
    let worse = mc_bench(&["compare", a, b]);
    let text = String::from_utf8_lossy(&worse.stdout).into_owned();
    assert!(worse.status.success() && text.contains("epoch: pause, idle") && text.contains("WORSE"), "{text}");
    assert!(text.contains("compared as they are") && text.contains("1 worse, 0 better"), "{text}");
    assert_eq!(mc_bench(&["compare", a, b, "--strict"]).status.code(), Some(5));
    assert_eq!(mc_bench(&["compare", b, a, "--strict"]).status.code(), Some(0));
    let json = mc_bench(&["compare", a, b, "--json"]);
    let found: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((found["schema"].as_u64(), found["pairs"][0]["verdict"].as_str()), (Some(1), Some("worse")));
    let change = found["pairs"][0]["change"].as_f64().unwrap();
    assert!((1.9..2.1).contains(&change) && found["pairs"][0]["interval"]["low"].as_f64().unwrap() > 1.7, "{found}");
    let refused = mc_bench(&["compare", a, "/nonexistent.json"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("opening /nonexistent.json"));
    [good, bad].iter().for_each(|path| fs::remove_file(path).unwrap());
}

#[test]
fn all_records_what_cannot_run_here_and_says_what_to_do() {
    let nothing = ["all", "--transport", "rdma", "--device", "no-such-device", "--quick", "--only", "beats,register"];
    let output = mc_bench(&[&nothing[..], &["--json"]].concat());
    assert_eq!(output.status.code(), Some(6), "{}", String::from_utf8_lossy(&output.stderr));
    let record: Value = serde_json::from_slice(&output.stdout).unwrap();
    let sections = record["sections"].as_array().unwrap();
    assert_eq!(sections.len(), 2);
    for section in sections {
        let why = section["missing"][0]["why"].as_str().unwrap();
        assert!(why.contains("remedy") && section["failures"].as_array().unwrap().is_empty(), "{section}");
    }
    assert_eq!(sections[0]["command"][0], "beats");
    let list = mc_bench(&[&nothing[..], &["--list"]].concat());
    let lines = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(list.status.success() && lines.lines().all(|line| line.starts_with("mc-bench ")), "{lines}");
}
