//! The rig's command line: what is missing is said, in words, in JSON, and by the exit code.

use serde_json::Value;
use std::process::{Command, Output};

fn rig(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rig")).args(args).output().unwrap()
}

#[test]
fn a_missing_program_is_exit_code_6() {
    let output = rig(&["demo", "--guest", "tiny", "--afterimage", "/nowhere/afterimage"]);
    assert_eq!(output.status.code(), Some(6));
    let text = String::from_utf8(output.stdout).unwrap();
    let json: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((&json["schema"], &json["verdict"]), (&1.into(), &"missing".into()));
    assert_eq!((&json["scenario"], &json["guest"]), (&"kill-primary".into(), &"tiny".into()));
    assert!(!output.stderr.is_empty());
}

#[test]
fn usage_is_exit_code_2() {
    for args in
        [&["demo", "--scenario", "meteor"][..], &["demo", "--accel", "x"], &["demo", "--repeat", "0"], &["dance"]]
    {
        assert_eq!(rig(args).status.code(), Some(2), "{args:?}");
    }
}
