//! The endpoint, docs/METRICS.md, the dashboard and the alert rules name the same metrics.

use api::{
    ArbiterStatus, OfSide, Side, Standby, Status, Takeover, metrics::Snapshot, metrics::Witness, metrics::openmetrics,
    metrics::plain,
};
use mc_core::testing::skip;
use node::keepalive::{BeatStats, PathStats};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// Everything that a side can have.
fn snapshot(side: OfSide) -> Snapshot {
    let path = PathStats { name: "ud".into(), ..PathStats::default() };
    let status = Status {
        vm: "a \"quoted\" \\ name".into(),
        node: "host-a".into(),
        side,
        role: "protected".into(),
        peer: "host-b at 10.0.0.2:7410".into(),
        transport: "tcp (fell back from RDMA: x; 1 times)".into(),
        last_ack_age_ms: Some(8),
        arbiter: ArbiterStatus { probe_age_ms: Some(900), ..ArbiterStatus::default() },
        beat_paths: vec![path],
        ..Status::default()
    };
    let (beats, silence_seconds) = (Some(BeatStats::default()), vec![("ud".to_owned(), 0.01)]);
    Snapshot { status, beats, silence_seconds, ..Snapshot::default() }
}

fn texts() -> [String; 3] {
    [
        openmetrics(snapshot(Side::Primary.into())),
        openmetrics(snapshot(OfSide::Standby(Standby { takeover: Some(Takeover::default()), ..Standby::default() }))),
        openmetrics(Witness::default()),
    ]
}

/// The metrics that are served, and their types.
fn served() -> BTreeMap<String, String> {
    let text: String = texts().iter().map(|text| plain(text)).collect();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

#[test]
fn the_document_lists_what_is_served_and_nothing_else() {
    let text = fs::read_to_string(file("docs/METRICS.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let listed: BTreeMap<String, String> =
        rows.map(|(name, rest)| (name.to_owned(), rest.split(" |").next().unwrap().to_owned())).collect();
    assert_eq!(listed, served());
}

#[test]
fn the_dashboard_and_the_rules_name_only_what_is_served() {
    let served = served();
    for name in ["docs/dashboards/afterimage.json", "docs/dashboards/alerts.yml", "docs/dashboards/alerts.test.yml"] {
        let text = fs::read_to_string(file(name)).unwrap();
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let named: BTreeSet<&str> = words.filter(|w| w.starts_with("afterimage_")).collect();
        assert!(named.len() > 5, "{name}: {named:?}");
        for metric in named {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| metric.strip_suffix(s)).unwrap_or(metric);
            let known = served.get(family).is_some_and(|kind| family == metric || kind == "histogram");
            assert!(known, "{name} names {metric}, which is not served");
        }
    }
    let dashboard = fs::read(file("docs/dashboards/afterimage.json")).unwrap();
    serde_json::from_slice::<serde_json::Value>(&dashboard).unwrap();
}

#[test]
fn a_no_is_not_shown_in_green() {
    let dashboard = fs::read(file("docs/dashboards/afterimage.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_slice(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let yes_or_no = panels.iter().filter(|panel| panel["fieldConfig"]["defaults"]["unit"] == "bool_yes_no");
    let colours: BTreeMap<&str, [&str; 2]> = yes_or_no
        .map(|panel| {
            let steps = &panel["fieldConfig"]["defaults"]["thresholds"]["steps"];
            assert_eq!((&steps[0]["value"], &steps[1]["value"]), (&serde_json::Value::Null, &1.into()), "{panel}");
            let colour = |step: usize| steps[step]["color"].as_str().unwrap();
            (panel["title"].as_str().unwrap(), [colour(0), colour(1)])
        })
        .collect();
    let good = ["red", "green"];
    let expected = [("Protected", good), ("Arbiter reachable", good), ("Stalled", ["green", "red"])];
    assert_eq!(colours, BTreeMap::from(expected));
}

#[test]
fn names_have_units_and_labels_are_escaped() {
    for text in texts() {
        assert!(text.ends_with("# EOF\n"));
        let names: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let distinct: BTreeSet<&&str> = names.iter().collect();
        assert_eq!(names.len(), distinct.len(), "a family is written once: {names:?}");
    }
    let text = openmetrics(snapshot(Side::Primary.into()));
    assert!(text.contains(r#"vm="a \"quoted\" \\ name""#), "{text}");
    assert!(text.contains(r#"transport="tcp""#), "{text}");
    for (name, kind) in served() {
        let timed = name.ends_with("_seconds");
        assert!(kind != "histogram" || timed, "{name}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
    }
}

#[test]
fn promtool_accepts_the_rules_and_every_metric() {
    let promtool = file("target/prometheus/usr/bin/promtool");
    if !promtool.exists() {
        skip("no promtool; scripts/prometheus fetches it");
        return;
    }
    let run = |command: &mut Command| {
        let out = command.output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{command:?}: {said}");
    };
    run(Command::new(&promtool).args(["check", "rules"]).arg(file("docs/dashboards/alerts.yml")));
    // What fires, and what does not for ever.
    run(Command::new(&promtool).args(["test", "rules"]).arg(file("docs/dashboards/alerts.test.yml")));
    for text in texts() {
        let mut scrape = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut scrape, plain(&text).as_bytes()).unwrap();
        std::io::Seek::rewind(&mut scrape).unwrap();
        run(Command::new(&promtool).args(["check", "metrics"]).stdin(scrape));
    }
}
