//! A real Prometheus, or at least its promtool, scrapes a protected VM.

use crate::{
    proc::{Proc, until},
    world::{StandbyOptions, World, free_addr},
};
use mc_core::testing::skip;
use serde_json::Value;
use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
};

/// The body of a GET, once it is 200.
fn get(address: SocketAddr, path: &str) -> String {
    until(&format!("http://{address}{path}"), || {
        let mut stream = TcpStream::connect(address).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200 ").then(|| body.to_owned())
    })
}

/// A program of Debian's package, where `scripts/prometheus` puts it.
fn program(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/prometheus/usr/bin").join(name);
    if !path.exists() {
        skip(format!("no {name}; scripts/prometheus fetches it"));
    }
    path.exists().then_some(path)
}

fn check(promtool: &PathBuf, metrics: &str) {
    let mut command = Command::new(promtool);
    let command =
        command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}\n{metrics}");
}

/// The value of the one sample that the query finds.
fn query(prometheus: SocketAddr, text: &str) -> f64 {
    until(text, || {
        let answer: Value = serde_json::from_str(&get(prometheus, &format!("/api/v1/query?query={text}"))).ok()?;
        answer.pointer("/data/result/0/value/1")?.as_str()?.parse().ok()
    })
}

#[test]
fn a_prometheus_scrapes_both_sides() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (primary, standby, prometheus) = (free_addr(), free_addr(), free_addr());
    let vm = world.vm("vm", &[]);
    let flags = vec!["--metrics".to_owned(), standby.to_string()];
    let mut b = world.standby_with("b", &StandbyOptions { flags, ..StandbyOptions::default() });
    let mut protect = world.protect("a", "a", &vm.qmp, b.addr, &format!("--metrics {primary}"));
    protect.wait_event("protected");
    b.proc.wait_event("protected");

    for address in [primary, standby] {
        until("it is protected", || get(address, "/metrics").contains("afterimage_protected{").then_some(()));
        if let Some(promtool) = program("promtool") {
            check(&promtool, &get(address, "/metrics"));
        }
    }
    vm.serial.goes_on();
    let Some(server) = program("prometheus") else { return };
    let config = world.path("prometheus.yml");
    let rules = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/dashboards/alerts.yml");
    let rules = rules.canonicalize().unwrap();
    let text = format!(
        "global: {{scrape_interval: 1s}}\nrule_files: ['{}']\nscrape_configs:\n- job_name: afterimage\n  \
         static_configs:\n  \
         - targets: ['{primary}', '{standby}']\n",
        rules.display()
    );
    fs::write(&config, text).unwrap();
    let mut command = Command::new(server);
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", world.path("tsdb").display()));
    command.arg(format!("--web.listen-address={prometheus}"));
    let _prometheus = Proc::spawn(world.dir.path(), "prometheus", command);
    assert_eq!(query(prometheus, "sum(afterimage_protected)==2"), 2.0);
    assert_eq!(query(prometheus, "afterimage_role{side=\"primary\",role=\"protected\"}"), 1.0);
    assert!(query(prometheus, "afterimage_pause_seconds_count") > 0.0);
    assert!(query(prometheus, "histogram_quantile(0.5,afterimage_apply_seconds_bucket)") > 0.0);
}
