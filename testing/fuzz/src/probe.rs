//! A probe file, and a peer's words in a probe: whatever is taken must be written as it was read, and be assessed without a panic.

use probe::{Answer, Greeting, ProbeFile, tune};

/// Fails by a panic.
pub fn run(bytes: &[u8]) {
    let _ = Greeting::decode(bytes);
    let answer = Answer::decode(bytes).ok().and_then(|answer| answer.measured);
    let file = ProbeFile::parse(bytes).ok();
    let phases = file.into_iter().flat_map(|file| file.phases);
    for measured in phases.map(|phase| phase.here).chain(answer) {
        let text = serde_json::to_string(&measured).expect("it was read");
        let again: node::keepalive::Measured = serde_json::from_str(&text).expect("it was written");
        assert!(again == measured);
        let assessment = tune::assess(&measured, measured.interval(), 5);
        assert!(assessment.false_per_s.low <= assessment.false_per_s.high, "{assessment:?}");
    }
}
