//! Hosts made of namespaces: they reach each other, fall silent, freeze, die, and leave nothing behind.
//!
//! These need root; without it they say so and do nothing, for there is nothing that they could do.

use rig::{
    hosts::{Host as _, Place, Topology as _},
    netns::{Host, Topology},
    process::{Line, Proc, children, stat},
    timeline::{Mark, Timeline, poll},
};
use std::{path::Path, time::Duration};

const PATIENCE: Duration = Duration::from_secs(20);

fn topology() -> Option<Topology> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not tried: making network namespaces needs root");
        return None;
    }
    Some(Topology::create().unwrap())
}

/// Whether `to` answers: nothing listens on the port, so a host that is reached refuses.
fn reaches(host: &Host, to: &str) -> bool {
    let attempt = format!("exec 3<>/dev/tcp/{to}/9");
    let error = host.run("timeout", &["1", "bash", "-c", &attempt]).unwrap_err();
    error.to_string().contains("refused")
}

#[test]
fn links_work_fall_silent_and_work_again() {
    let Some(hosts) = topology() else { return };
    assert!(reaches(&hosts.primary, "10.77.0.3"), "the LAN forwards at once");
    assert!(reaches(&hosts.primary, "10.77.0.2") && reaches(&hosts.primary, "10.78.0.2"));
    let cut = hosts.prepare_cut().unwrap();
    assert!(reaches(&hosts.primary, "10.78.0.2"), "preparing does nothing yet");
    cut().unwrap();
    assert!(!reaches(&hosts.primary, "10.78.0.2"), "the replication link is cut");
    assert!(reaches(&hosts.primary, "10.77.0.2"), "and only that");
    hosts.prepare_death(Place::Standby).unwrap()().unwrap();
    assert!(!reaches(&hosts.primary, "10.77.0.2"), "a dead host says nothing");
    hosts.restore().unwrap();
    assert!(reaches(&hosts.primary, "10.78.0.2") && reaches(&hosts.standby, "10.77.0.3"));
    assert_eq!(hosts.primary.frames_out().unwrap(), 0);
}

/// A shell with a child of its own, which would outlive it.
fn family(host: &Host, dir: &Path, timeline: &Timeline) -> Proc {
    let line = Line::new("sh").args(["-c", r#"sleep 600 & echo '{"event":"up"}'; echo oops >&2; wait"#]);
    let proc = Proc::spawn(host, "family", &line, dir, timeline).unwrap();
    assert!(timeline.wait(Mark::default(), PATIENCE, |e| e.is("family", "up")).unwrap().is_some());
    proc
}

fn state(pid: u32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    text.rsplit(") ").next().unwrap()[..1].to_owned()
}

#[test]
fn freezing_and_killing_catch_grandchildren() {
    let Some(hosts) = topology() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut proc = family(&hosts.primary, dir.path(), &Timeline::new(false));
    let child = children(proc.pid())[0];
    assert!(poll(PATIENCE, || stat(child).is_some_and(|s| s.name == "sleep")).unwrap());
    let mut pids = hosts.primary.pids();
    pids.sort_unstable();
    let mut expected = [proc.pid(), child];
    expected.sort_unstable();
    assert_eq!(pids, expected);
    hosts.primary.freeze().unwrap();
    assert!(poll(PATIENCE, || state(child) == "T" && state(proc.pid()) == "T").unwrap());
    hosts.primary.thaw().unwrap();
    assert!(poll(PATIENCE, || state(child) == "S").unwrap());
    assert!(proc.is_alive());
    hosts.primary.kill_all().unwrap();
    assert!(hosts.primary.pids().is_empty());
    assert_eq!(proc.wait(PATIENCE).unwrap().code(), None, "killed by a signal");
    assert_eq!(proc.log_tail(5), "oops");
}

#[test]
fn nothing_is_left_behind() {
    let Some(hosts) = topology() else { return };
    let dir = tempfile::tempdir().unwrap();
    let proc = family(&hosts.standby, dir.path(), &Timeline::new(false));
    let pids = hosts.standby.pids();
    hosts.standby.freeze().unwrap();
    let names = [&hosts.primary, &hosts.standby, &hosts.client].map(|h| format!("/run/netns/{}", h.netns));
    assert!(names.iter().all(|name| Path::new(name).exists()));
    drop(hosts);
    assert!(names.iter().all(|name| !Path::new(name).exists()));
    drop(proc);
    assert!(poll(PATIENCE, || pids.iter().all(|pid| stat(*pid).is_none())).unwrap());
}

/// What a datagram to a closed port comes to: whoever is reached refuses, and the next call is told.
fn datagram_reaches(host: &Host, to: &str) -> bool {
    let script = "import socket, sys\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.settimeout(1)\n\
                  s.connect((sys.argv[1], 9))\ntry:\n    s.send(b'x'); s.recv(1)\n\
                  except ConnectionRefusedError: print('refused')\nexcept OSError: pass";
    host.run("python3", &["-c", script, to]).unwrap().contains("refused")
}

#[test]
fn datagrams_alone_get_lost() {
    let Some(hosts) = topology() else { return };
    assert!(datagram_reaches(&hosts.primary, "10.78.0.2"));
    hosts.mute_datagrams(Place::Standby).unwrap();
    assert!(!datagram_reaches(&hosts.primary, "10.78.0.2"));
    assert!(reaches(&hosts.primary, "10.78.0.2"), "everything else goes on");
    assert!(datagram_reaches(&hosts.standby, "10.78.0.1"), "the other way, too");
    hosts.restore().unwrap();
    assert!(datagram_reaches(&hosts.primary, "10.78.0.2"));
}

#[test]
fn a_thread_is_held_and_goes_on() {
    let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let pid = child.id();
    let held = rig::sys::hold_thread(pid).unwrap();
    assert_eq!(state(pid), "t");
    assert!(rig::sys::hold_thread(pid).is_err(), "somebody holds it already");
    drop(held);
    assert!(poll(PATIENCE, || state(pid) == "S").unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(rig::sys::hold_thread(pid).is_err(), "it is gone");
}
