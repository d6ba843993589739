//! Addresses that are more than four numbers: a name that stands for several, and link-local ones with their interface.
//! In a network and a mount namespace of their own, with their own /etc/hosts; two processes of the program probe each
//! other.

use mc_core::testing::skip;
use std::{
    path::Path,
    process::{Command, Output},
};

/// Runs a script in new namespaces, as root of them. `None`, with the reason printed, where that is not possible.
fn in_a_namespace(dir: &Path, script: &str) -> Option<Output> {
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["-n", "-m", "--propagation", "private", "sh", "-euc", script]);
        command.args(["sh", env!("CARGO_BIN_EXE_afterimage")]).arg(dir).output()
    };
    let able = "ip link set lo up && ip link add v0 type veth peer name v1 && ip -6 address show dev lo | grep -q ::1";
    if !unshare(able).is_ok_and(|out| out.status.success()) {
        skip("no namespaces of our own with IPv6 (not root? no iproute2?)");
        return None;
    }
    Some(unshare(script).unwrap())
}

/// Serves at `$listen` and probes `$peer`; the server ends with the script.
const PROBE: &str = r#"
"$afterimage" keepalive serve --transport tcp --listen "$listen" >"$dir/serving" 2>"$dir/serve.err" &
trap 'kill $!' EXIT
tries=0
until grep -q listening "$dir/serving"; do tries=$((tries + 1)); test $tries -lt 600; sleep 0.1; done
"$afterimage" keepalive probe --transport tcp --peer "$peer" --interval 10ms --for 500ms --json
"#;

fn probe(prepare: &str) -> Option<Output> {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("afterimage=$1 dir=$2\nip link set lo up\n{prepare}\n{PROBE}");
    let out = in_a_namespace(dir.path(), &script)?;
    let serve = std::fs::read_to_string(dir.path().join("serve.err")).unwrap_or_default();
    assert!(out.status.success(), "{}\n--- serve\n{serve}", String::from_utf8_lossy(&out.stderr));
    Some(out)
}

fn assert_heard(out: &Output) {
    let found: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    for end in ["here", "there"] {
        assert!(!found["phases"][0][end]["gap"]["counts"].as_array().unwrap().is_empty(), "{end}: {found}");
    }
}

#[test]
fn beats_leave_from_the_address_that_the_connection_took() {
    // The first address of the name has nobody on it.
    let hosts = r#"
printf '::1 standby\n127.0.0.1 standby\n' >"$dir/hosts"
mount --bind "$dir/hosts" /etc/hosts
listen=127.0.0.1:7500 peer=standby:7500
"#;
    if let Some(out) = probe(hosts) {
        assert_heard(&out);
    }
}

#[test]
fn link_local_addresses_are_used_with_their_interface() {
    let interface = r#"
ip link add eth7 type veth peer name eth8
ip link set eth7 up
ip link set eth8 up
ip -6 address add fe80::7/64 dev eth7 nodad
listen='[fe80::7%eth7]:7500' peer='[fe80::7%eth7]:7500'
"#;
    if let Some(out) = probe(interface) {
        assert_heard(&out);
    }
}

#[test]
fn every_address_of_a_name_is_named_with_why_it_failed() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
afterimage=$1 dir=$2
ip link set lo up
printf '::1 standby\n127.0.0.1 standby\n' >"$dir/hosts"
mount --bind "$dir/hosts" /etc/hosts
"$afterimage" keepalive probe --transport tcp --peer standby:7500 --for 1s
"#;
    let Some(out) = in_a_namespace(dir.path(), script) else { return };
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    for words in
        ["cannot connect to standby:7500: ", "[::1]:7500: Connection refused", "127.0.0.1:7500: Connection refused"]
    {
        assert!(said.contains(words), "{words:?} is not in: {said}");
    }
}

#[test]
fn a_link_local_address_without_its_interface_is_refused_before_anything_is_tried() {
    for (args, words) in [
        (&["keepalive", "probe", "--peer", "[fe80::2]:7500"][..], "a link-local address needs its interface"),
        (&["keepalive", "serve", "--listen", "[fe80::2]:7500"], "say of which interface, such as fe80::2%eth0"),
        (&["keepalive", "probe", "--peer", "a:1", "--bind", "fe80::2"], "say of which interface"),
        (
            &["witness", "--state", "x", "--listen", "[fe80::2%nosuch0]:7400"],
            "no network interface is called \"nosuch0\" here",
        ),
    ] {
        let out = Command::new(env!("CARGO_BIN_EXE_afterimage")).args(args).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && said.contains(words), "{args:?}: {said}");
    }
}
