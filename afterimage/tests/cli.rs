//! The command line and the file: what is read, what is refused, and with which exit code.

use afterimage::{
    cli::{Cli, Command},
    config::{self, ConfigError, KeepaliveWish, TransportWish},
};
use api::{Side, Status};
use clap::{CommandFactory, Parser};
use mc_core::testing::skip;
use protection::{primary, standby};
use serde_json::Value;
use std::{collections::BTreeSet, fs, io::Write, net::TcpListener, path::PathBuf, process, time::Duration};

const PROTECT: [&str; 10] =
    ["afterimage", "protect", "--vm", "web", "--qmp", "/run/web.qmp", "--to", "10.0.0.2:7410", "--arbiter", "manual"];

/// Runs the binary: its exit code, stdout and stderr.
fn run(args: &[&str]) -> (i32, String, String) {
    let out = process::Command::new(env!("CARGO_BIN_EXE_afterimage")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

fn protect(more: &[&str]) -> Result<primary::Settings, ConfigError> {
    let args = PROTECT.iter().chain(more);
    let Command::Protect(args) = Cli::try_parse_from(args).unwrap().command else { panic!() };
    config::protect(args)
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn flags_are_read_and_the_rest_has_defaults() {
    let config = protect(&["--nic", "/run/a.net=tap0", "--nic", "/run/b.net=tap1", "--node", "alpha"]).unwrap();
    assert_eq!((config.vm.as_str(), config.node.as_str()), ("web", "alpha"));
    assert_eq!((config.epoch, config.beat_interval, config.detect_multiplier), (ms(20), ms(10), 5));
    assert_eq!((config.staging_bytes, config.slab_bytes, config.window), (64 << 20, 1 << 20, 2));
    assert_eq!(config.held_limit_bytes, 64 << 20);
    assert_eq!(config.run_dir, PathBuf::from("/run/afterimage"));
    assert_eq!((config.state_dir, config.metrics), (PathBuf::from("/var/lib/afterimage"), None));
    assert_eq!((config.bind, config.force_writable_disks), (None, false));
    assert_eq!(config.nics.iter().map(|n| n.tap.as_str()).collect::<Vec<_>>(), ["tap0", "tap1"]);

    let config = protect(&["--metrics", "9180", "--state-dir", "/srv/j"]).unwrap();
    assert_eq!((config.state_dir, config.metrics), (PathBuf::from("/srv/j"), "127.0.0.1:9180".parse().ok()));
    let args =
        ["--epoch", "5ms", "--staging", "8MiB", "--slab", "256KiB", "--bind", "10.0.0.1", "--force-writable-disks"];
    let config = protect(&args).unwrap();
    assert_eq!((config.epoch, config.staging_bytes, config.slab_bytes), (ms(5), 8 << 20, 256 << 10));
    assert_eq!((config.bind, config.force_writable_disks), (Some("10.0.0.1".parse().unwrap()), true));
}

#[test]
fn a_commit_deadline_is_what_was_said_or_follows() {
    let secs = Duration::from_secs;
    let deadline = |flags: &[&str]| protect(flags).unwrap().commit_deadline(false);
    assert_eq!(deadline(&[]), secs(2));
    assert_eq!(deadline(&["--epoch", "1s"]), secs(10));
    assert_eq!(deadline(&["--beat-interval", "100ms", "--detect-multiplier", "3"]), secs(3));
    assert_eq!(deadline(&["--epoch", "1s", "--commit-deadline", "4s"]), secs(4));
    let written = file("[protect]\ncommit_deadline = \"700ms\"\n");
    let mut config = protect(&["--config", written.path().to_str().unwrap()]).unwrap();
    assert_eq!(config.commit_deadline(false), ms(700));
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<primary::Settings>(&json).unwrap(), config, "a child gets it as JSON: {json}");
    config.epoch = secs(1);
    assert_eq!(config.commit_deadline(false), ms(2050), "an epoch that an operator has made longer since");
    let error = protect(&["--epoch", "1s", "--commit-deadline", "2s"]).unwrap_err().to_string();
    for words in ["--commit-deadline 2s", "2050ms to 600s", "the detection time and two epochs at least"] {
        assert!(error.contains(words), "{words:?} is not in {error}");
    }
}

#[test]
fn outputs_are_forced_by_name() {
    assert!(protect(&[]).unwrap().unheld.is_empty());
    let config = protect(&["--unheld", "n1,d0", "--unheld", "serial1"]).unwrap();
    assert_eq!(config.unheld, ["n1", "d0", "serial1"]);
    let written = file("[protect]\nunheld = [\"n1\"]\nforce_writable_disks = true\n");
    let config = protect(&["--config", written.path().to_str().unwrap()]).unwrap();
    let forced = config.forced();
    assert_eq!((forced.names, forced.disks), (vec!["n1".to_owned()], true));
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<primary::Settings>(&json).unwrap(), config, "a child gets it as JSON: {json}");
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn a_standby_takes_qemu_after_two_dashes() {
    let args =
        ["afterimage", "standby", "--vm", "web", "--arbiter", "witness://w:7400", "--", "qemu", "-m", "128", "--vm"];
    let Command::Standby(args) = Cli::try_parse_from(args).unwrap().command else { panic!() };
    let config = config::standby(args).unwrap();
    assert_eq!(config.qemu, ["qemu", "-m", "128", "--vm"]);
    assert_eq!(config.listen, "127.0.0.1:7410".parse().unwrap());
    assert_eq!(config.ram_dir, PathBuf::from("/dev/shm"));
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<standby::Settings>(&json).unwrap(), config, "a child gets it as JSON: {json}");
}

#[test]
fn the_ways_of_checkpoints_and_beats_fit_each_other() {
    use {KeepaliveWish::*, TransportWish::*};
    let cases: [(&[&str], _); 7] = [
        (&[], (Auto, Both)),
        (&["--transport", "rdma"], (Rdma, Ud)),
        (&["--transport", "tcp"], (Tcp, Udp)),
        (&["--keepalive", "udp"], (Auto, Udp)),
        (&["--transport", "rdma", "--keepalive", "both"], (Rdma, Both)),
        (&["--transport", "rdma", "--keepalive", "udp"], (Rdma, Udp)),
        (&["--transport", "tcp", "--keepalive", "udp"], (Tcp, Udp)),
    ];
    for (flags, expected) in cases {
        let paths = protect(flags).unwrap().paths;
        assert_eq!((paths.transport, paths.keepalive), expected, "{flags:?}");
    }
    let paths = protect(&["--rdma-device", "mlx5_0", "--rdma-gid-index", "3", "--rdma-timeout", "16"]).unwrap().paths;
    assert_eq!((paths.rdma_device.as_deref(), paths.rdma_gid_index), (Some("mlx5_0"), Some(3)));
    assert_eq!((paths.rdma_timeout, paths.rdma_retry), (Some(16), 6));
    let wrong: [(&[&str], &str); 4] = [
        (&["--transport", "tcp", "--keepalive", "ud"], "ud and both need RDMA"),
        (&["--transport", "tcp", "--keepalive", "both"], "ud and both need RDMA"),
        (&["--keepalive", "ud"], "may end up with TCP"),
        (&["--transport", "tcp", "--rdma-device", "rxe0"], "only with transport = rdma or auto"),
    ];
    for (flags, what) in wrong {
        let error = protect(flags).unwrap_err().to_string();
        assert!(error.contains(what), "{flags:?}: {error}");
    }
}

#[test]
fn a_host_that_shall_use_rdma_and_has_none_says_what_to_do() {
    if PathBuf::from("/sys/class/infiniband_verbs").exists() {
        skip("this host has RDMA");
        return;
    }
    let qemu = ["--", "qemu-system-x86_64"];
    let standby =
        ["standby", "--vm", "web", "--arbiter", "manual", "--transport", "rdma", "--run-dir", "/nonexistent/x"];
    let standby: Vec<&str> = standby.into_iter().chain(qemu).collect();
    let protect: Vec<&str> = PROTECT[1..].iter().copied().chain(["--transport", "rdma"]).collect();
    for args in [standby, protect] {
        let (code, stdout, stderr) = run(&args);
        assert_eq!((code, stdout.as_str()), (6, ""), "{args:?}: {stderr}");
        assert!(stderr.contains("RDMA") && stderr.contains("what to do:"), "{args:?}: {stderr}");
    }
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let file = file("[protect]\nvm = 'other'\nepoch = '2.5ms'\nbeat_interval = '30ms'\nnics = ['/run/f.net=tap9']\n");
    let config = protect(&["--config", file.path().to_str().unwrap(), "--beat-interval", "7ms"]).unwrap();
    assert_eq!(config.vm.as_str(), "web", "flag");
    assert_eq!(config.epoch, Duration::from_micros(2500), "file");
    assert_eq!(config.beat_interval, ms(7), "flag");
    assert_eq!(config.nics[0].tap, "tap9", "file");
    assert_eq!(config.detect_multiplier, 5, "default");
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<primary::Settings>(&json).unwrap(), config, "a child gets it as JSON: {json}");
}

#[test]
fn a_checked_file_is_printed_as_a_file_that_means_the_same() {
    let written = file("[witness]\nstate = '/var/lib/w'\n[protect]\nepoch = '50ms'\nvm = 'a \"quoted\" name'\n");
    let (code, once, _) = run(&["config", "check", written.path().to_str().unwrap()]);
    assert_eq!(code, 0);
    for line in
        ["listen = \"127.0.0.1:7400\"", "epoch = \"50ms\"", "staging = \"64MiB\"", "# qmp ", "# line 4", "# default"]
    {
        assert!(once.contains(line), "{line}: {once}");
    }
    let values =
        |text: &str| text.lines().map(|l| l.split("  #").next().unwrap().trim().to_owned()).collect::<Vec<_>>();
    let again = file(&once);
    let (code, twice, _) = run(&["config", "check", again.path().to_str().unwrap()]);
    assert_eq!(code, 0);
    assert_eq!(values(&once)[1..], values(&twice)[1..]);
    let args = ["afterimage", "witness", "--config", again.path().to_str().unwrap()];
    let Command::Witness { args, command: None } = Cli::try_parse_from(args).unwrap().command else { panic!() };
    assert_eq!(config::witness(args).unwrap().state, PathBuf::from("/var/lib/w"));
}

/// Files of the release before, and the data paths that its supervisors start.
#[test]
fn the_keys_of_before_mean_what_they_meant() {
    let old = "[protect]\nepoch_ms = 2.5\nbeat_interval_ms = 30\nbeat_min_rx_ms = 40\nstall_after_ms = 2000\n\
               commit_deadline_ms = '5s'\nstaging_mib = 0.75\nslab_kib = 300\nheld_limit_mib = 8\n";
    let new = "[protect]\nepoch = '2.5ms'\nbeat_interval = '30ms'\nbeat_min_rx = '40ms'\nstall_after = '2s'\n\
               commit_deadline = '5s'\nstaging = '768KiB'\nslab = '300KiB'\nheld_limit = '8MiB'\n";
    let configs = [old, new].map(|text| {
        let file = file(text);
        let config = protect(&["--config", file.path().to_str().unwrap()]).unwrap();
        primary::Settings { config_file: None, ..config }
    });
    assert_eq!(configs[0], configs[1]);
    let (code, checked, stderr) = run(&["config", "check", file(old).path().to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    assert!(checked.contains("# line 2, by its old key epoch_ms: call it epoch"), "{checked}");
    assert!(checked.contains("slab = \"300KiB\""), "{checked}");
    let json = r#"{"vm":"web","node":"a","qmp":"/run/web.qmp","to":"10.0.0.2:7410","arbiter":"manual","epoch_ms":2.5,"nics":[],
        "beat_interval_ms":30,"beat_min_rx_ms":40,"detect_multiplier":5,"stall_after_ms":2000,"commit_deadline_ms":5000,
        "staging_mib":0.75,"on_cap":"throttle","slab_kib":300,"window":2,"held_limit_mib":8,"run_dir":"/run/afterimage",
        "state_dir":"/var/lib/afterimage","force_writable_disks":false,"once":false,"rejoin":false,"paths":{"transport":"auto",
        "keepalive":"both","beat_port":null,"rdma_device":null,"rdma_gid_index":null,"rdma_timeout":null,"rdma_retry":6,
        "staging_bytes":786432}}"#;
    let node = "a".parse().unwrap();
    assert_eq!(
        serde_json::from_str::<primary::Settings>(json).unwrap(),
        primary::Settings { node, ..configs[1].clone() }
    );
}

/// docs/examples: what `config check` lists, the example has, as a setting or in a comment; and it can be run with.
#[test]
fn the_example_is_a_file_that_works_and_names_every_key() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/afterimage.toml");
    let text = fs::read_to_string(path).unwrap();
    let (code, printed, stderr) = run(&["config", "check", path]);
    assert_eq!(code, 0, "{stderr}");
    assert!(!printed.contains("has to come from a flag"), "{printed}");
    let follows = |line: &str| {
        line.starts_with("# commit_deadline")
            && line.ends_with("# default: ten detection times or ten epochs, at least 2s")
    };
    assert!(printed.lines().any(follows), "{printed}");
    let keys = |text: &str, begins: fn(&str) -> bool| {
        let mut section = String::new();
        let mut keys = BTreeSet::new();
        for line in text.lines() {
            if let Some((name, _)) = line.strip_prefix('[').and_then(|line| line.split_once(']')) {
                section = name.to_owned();
            }
            let key = line.trim_start_matches("# ").split([' ', '=']).next().unwrap_or_default();
            if begins(line) && !section.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
                keys.insert(format!("[{section}] {key}"));
            }
        }
        keys
    };
    let listed = keys(&printed, |line| line.contains("  # ") && !line.starts_with('['));
    let shown = keys(&text, |line| line.contains(" = ") && !line.starts_with([' ', '[']));
    assert_eq!(listed, shown, "what is in one and not in the other");
    for command in ["witness", "protect", "standby"] {
        let args = ["afterimage", command, "--config", path];
        let resolved = match Cli::try_parse_from(args).unwrap().command {
            Command::Witness { args, .. } => config::witness(args).map(drop),
            Command::Protect(args) => config::protect(args).map(drop),
            Command::Standby(args) => config::standby(args).map(drop),
            _ => unreachable!("not asked for"),
        };
        resolved.unwrap();
    }
    // The lines that show a default or a form are right as well.
    let all: String = text.lines().map(|line| shown_setting(line).unwrap_or(line).to_owned() + "\n").collect();
    let (code, _, stderr) = run(&["config", "check", file(&all).path().to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}\n{all}");
}

/// A setting that is commented out.
fn shown_setting(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("# ")?;
    let (key, _) = rest.split_once(" = ")?;
    key.chars().all(|c| c.is_ascii_lowercase() || c == '_').then_some(rest)
}

#[test]
fn a_wrong_file_is_refused_with_its_key_name_and_line() {
    let cases = [
        ("[protect]\n\nepok = '20ms'\n", 3, "unknown key `epok`; did you mean `epoch`?"),
        ("[protekt]\n", 1, "did you mean `protect`?"),
        ("[standby]\nnic = ['/run/web.net=tap0']\n", 2, "did you mean `nics`?"),
        ("epoch = '20ms'\n", 1, "`epoch` stands in no section; there are [witness], [protect], [standby]"),
        ("protect = 1\n", 1, "begin it with a line [protect]"),
        ("[standby]\nepoch = '20ms'\n", 2, "`epoch` is not a key of [standby], but of [protect]"),
        ("[protect]\naccept_witness = true\n", 2, "a flag of `afterimage protect`, and no key"),
        ("[protect]\nepoch = 20\n", 2, "epoch: expected a time with its unit, such as \"20ms\", found 20"),
        ("[protect]\nepoch = '20'\n", 2, "epoch: invalid duration \"20\""),
        ("[protect]\nepoch = '0.5ms'\n", 2, "epoch: 0.5ms is out of range: expected 1ms to 60s"),
        ("[protect]\nepoch_ms = 0\n", 2, "epoch_ms: 0 is out of range"),
        ("[protect]\nepoch_ms = -1\n", 2, "epoch_ms: -1 is out of range"),
        ("[protect]\nepoch_ms = nan\n", 2, "epoch_ms: nan is out of range"),
        ("[protect]\nepoch_ms = 20\nepoch = '30ms'\n", 3, "`epoch` and `epoch_ms` (line 2) are one setting"),
        ("[protect]\nstaging = '64MiB'\nstaging_mib = 64\n", 3, "`staging` and `staging_mib` (line 2) are one setting"),
        ("[protect]\nnics = '/run/web.net=tap0'\n", 2, "nics: expected a list of texts"),
        ("[witness]\nmetrics = '99999'\n", 2, "metrics: port 99999 is out of range: expected 0 to 65535"),
        ("[protect]\narbiter = 'none'\n", 2, "witness://HOST:PORT"),
        ("[protect]\nvm = ''\n", 2, "1 to 47 bytes"),
        ("[protect]\nto = '10.0.0.2'\n", 2, "no port"),
        ("[protect]\ndetect_multiplier = 256\n", 2, "256"),
        ("[protect]\ndetect_multiplier = 1\n", 2, "2 to 255 (with 1, a single lost or late beat"),
        ("[protect]\n\n\nslab = '100KiB'\n", 4, "256KiB to 16MiB"),
        ("[protect]\nslab = '16MiB'\nstaging = '16MiB'\n", 3, "at least 32MiB, two slabs of 16MiB"),
        ("[protect]\nwindow = 0\n", 2, "1 to 64"),
        ("[standby]\nnics = ['/run/web.net']\n", 2, "SOCKET=TAP"),
        ("[standby]\nqemu = []\n", 2, "QEMU"),
        ("[standby]\nvm = 'web'\nqemu = ['qemu-system-x86_64 -m 2G']\n", 3, "write each word as its own element"),
        ("[standby]\nqemu = ['qemu', '-loadvm', 'x']\n", 2, "leave it out"),
        ("[standby]\nnics = ['/a=tap0', '/b=tap0']\n", 2, "tap0 is used by two NICs"),
        ("[protect]\nnics = ['/a=tap0', '/a=tap1']\n", 2, "/a is used by two NICs"),
        ("[protect]\nrejoin = true\n", 2, "needs a section [standby]"),
        ("[protect]\nvm = 'web'\nrejoin = true\n[standby]\nvm = 'db'\n", 5, "this one has vm = db"),
        ("[standby]\ntransport = 'ib'\n", 2, "transport: \"ib\" is not known here; allowed: rdma, tcp, auto"),
        ("[protect]\ntransport = 'tcp'\nkeepalive = 'ud'\n", 3, "need RDMA"),
        ("[protect]\nrdma_gid_index = 256\n", 2, "256"),
        ("[standby]\nlisten = 'localhost'\n", 2, "address"),
        ("[witness]\nlisten = '127.0.0.1:7400'\nlisten = '127.0.0.1:7400'\n", 3, "duplicate key `listen`"),
        ("[witness]\n\"l\\u001b\" = 1\n", 2, "unknown key `l\\u{1b}`"),
        ("[protect]\nrun_dir = ''\n", 2, "run_dir: an empty text"),
        ("[protect]\nqmp = ''\n", 2, "qmp: an empty text"),
        ("[protect]\nstate_dir = ''\n", 2, "state_dir: an empty text"),
        ("[protect]\nunheld = ['']\n", 2, "unheld: an empty text"),
        ("[protect]\nrdma_device = ''\n", 2, "rdma_device: an empty text"),
        ("[standby]\nram_dir = ''\n", 2, "ram_dir: an empty text"),
        ("[standby]\nspill = ''\n", 2, "spill: an empty text"),
        ("[witness]\nstate = ''\n", 2, "state: an empty text"),
        ("[witness\n", 1, ""),
    ];
    for (text, line, what) in cases {
        let file = file(text);
        let path = file.path().to_str().unwrap();
        let (code, _, stderr) = run(&["config", "check", path]);
        assert_eq!(code, 2, "{text}: {stderr}");
        assert!(stderr.contains(&format!("{path}:{line}")) && stderr.contains(what), "{text}: {stderr}");
    }
    let standby = file("[standby]\nvm = 'web'\n");
    let (code, _, stderr) = run(&["protect", "--config", standby.path().to_str().unwrap()]);
    assert!(code == 2 && stderr.contains("has only [standby], and no section [protect], so it is ignored"), "{stderr}");
    let (code, _, stderr) = run(&["config", "check", "/nonexistent.toml"]);
    assert!(code == 2 && stderr.contains("/nonexistent.toml"), "{code} {stderr}");
    let binary = file("");
    fs::write(binary.path(), b"[witness]\n\n\xff").unwrap();
    let (code, _, stderr) = run(&["config", "check", binary.path().to_str().unwrap()]);
    assert!(code == 2 && stderr.contains(":3: not UTF-8"), "{code} {stderr}");
    fs::write(binary.path(), vec![b'#'; (1 << 20) + 1]).unwrap();
    let (code, _, stderr) = run(&["config", "check", binary.path().to_str().unwrap()]);
    assert!(code == 2 && stderr.contains("longer than"), "{code} {stderr}");
}

#[test]
fn a_wrong_command_line_exits_with_2_and_says_what_is_allowed() {
    let cases: [(&[&str], &str); 30] = [
        (&[], "Usage"),
        (&["protekt"], "protect"),
        (
            &["protect", "--epoch", "20"],
            "invalid duration \"20\": expected a number and its unit (us, ms, s, m or h), such as 20ms; allowed: 1ms to 60s",
        ),
        (&["set", "--vm", "web", "epoch=50"], "epoch: invalid duration \"50\": expected a number and its unit"),
        (&["set", "--vm", "web", "staging=64"], "allowed: 512KiB to 1024GiB"),
        (&["protect", "--qmp", ""], "'--qmp <SOCKET>': an empty text says nothing"),
        (&["standby", "--run-dir", ""], "'--run-dir <DIR>': an empty text says nothing"),
        (&["protect", "--staging", "64MB"], "KiB, MiB or GiB"),
        (&["protect", "--epoch", "1h"], "1h is out of range: expected 1ms to 60s"),
        (&["protect", "--rdma-retry", "7"], "retry for ever at 7"),
        (&["protect", "--rdma-timeout", "31"], "8 to 22 (1 ms to 17 s)"),
        (&["witness", "--metrics", "99999"], "port 99999 is out of range: expected 0 to 65535"),
        (&["protect", "--qpm", "/run/web.qmp"], "a similar argument exists: '--qmp'"),
        (&["keepalive", "set", "--vm", "web", "--interval", "20s"], "20s is out of range: expected 100us to 10s"),
        (&["set", "--vm", "web", "epoch=1h"], "epoch: 1h is out of range: expected 1ms to 60s"),
        (&["protect", "--arbiter", "none"], "no 'none'"),
        (&["protect", "--arbiter", "witness://w"], "no port"),
        (&["protect", "--to", "fd00::2:7410"], "brackets"),
        (&["protect", "--nic", "x"], "SOCKET=TAP"),
        (&["protect", "--vm", "a/b"], "without '/'"),
        (&["protect", "--vm", "web", "--to", "b:1"], "--qmp SOCKET, --arbiter SPEC"),
        (&["standby", "--vm", "web", "--arbiter", "manual"], "-- QEMU ARGS"),
        (&["standby", "--listen", "7410"], "--listen"),
        (&["protect", "--detect-multiplier", "1"], "2 to 255"),
        (&["keepalive", "set", "--vm", "web", "--multiplier", "1"], "2 to 255"),
        (&["keepalive", "set", "--vm", "web"], "<--interval <TIME>|--multiplier <K>|--min-rx <TIME>>"),
        (&["set", "--vm", "web", "epoch=5ms", "--save", "/etc/x.toml"], "--save=/etc/x.toml"),
        (&["keepalive", "tune", "--from", "x", "--what-if", "interval=5ms,k=1"], "2 to 255"),
        (&["takeover", "--vm", "web", "--run-dir", "/nonexistent/x"], "power that host off"),
        (&["solo", "--vm", "web", "--run-dir", "/nonexistent/x"], "--yes-the-other-side-is-stopped"),
    ];
    for (args, what) in cases {
        let (code, stdout, stderr) = run(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
        assert!(stderr.contains(what), "{args:?}: {stderr}");
    }
    assert_eq!(protect(&["--slab", "300KiB"]).unwrap().slab_bytes, 300 << 10);
    let error = protect(&["--slab", "257KiB"]).unwrap_err().to_string();
    assert!(error.contains("--slab 257KiB: expected 256KiB to 16MiB, whole pages of 4KiB"), "{error}");
}

#[test]
fn help_and_version_are_results() {
    for command in ["witness", "protect", "standby", "status", "why", "takeover", "solo"] {
        let (code, stdout, _) = run(&[command, "--help"]);
        assert_eq!(code, 0);
        for part in ["Example:", "loopback", "trusted", "Exit codes:"] {
            assert!(stdout.contains(part), "{command} {part}: {stdout}");
        }
    }
    let (code, stdout, _) = run(&["--version"]);
    assert!(code == 0 && stdout.starts_with("afterimage "), "{stdout}");
    assert!(run(&["rdma", "devices", "--help"]).1.contains("exits with 6"));
    assert!(!run(&["--help"]).1.contains("data-path"));
    assert_eq!((Side::Primary.as_str(), Side::Standby.as_str()), ("primary", "standby"));
}

/// Before anything has begun: a dashboard that stays empty is found out when it is needed.
#[test]
fn metrics_that_cannot_be_served_end_a_command_at_its_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let dir = tempfile::tempdir().unwrap();
    let (run_dir, state) = (dir.path().join("run"), dir.path().join("state"));
    let dirs = ["--run-dir", run_dir.to_str().unwrap(), "--state-dir", state.to_str().unwrap()];
    let witness = ["witness", "--listen", "127.0.0.1:0", "--state", state.to_str().unwrap()];
    for args in [&witness[..], &[&PROTECT[1..], &dirs[..]].concat()] {
        let (code, _, stderr) = run(&[args, &["--metrics", &port]].concat());
        assert_eq!(code, 6, "{args:?}: {stderr}");
        assert!(stderr.contains("error: metrics: listening on 127.0.0.1:") && stderr.contains("ss -ltnp"), "{stderr}");
    }
}

/// What docs/CLI.md shows is what the program says.
#[test]
fn the_manual_shows_the_help_and_the_status_as_they_are() {
    let manual = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/CLI.md")).unwrap();
    let flat = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let help = flat(&run(&["--help"]).1);
    assert!(flat(&manual).contains(&help), "docs/CLI.md does not show `afterimage --help` as it is: {help}");
    let (_, json) = manual.split_once("    {\n      \"schema\": 2,").unwrap();
    let json = format!("{{\"schema\": 2,{}", json.split_once("\n    }\n").unwrap().0) + "}";
    let shown: Value = serde_json::from_str(&json).unwrap();
    let status = serde_json::to_value(Status::default()).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(keys(&shown), keys(&status));
    assert_eq!((keys(&shown["beats"]), keys(&shown["arbiter"])), (keys(&status["beats"]), keys(&status["arbiter"])));
}

#[test]
fn a_host_without_rdma_says_so_and_what_to_do() {
    if PathBuf::from("/sys/class/infiniband_verbs").exists() {
        skip("this host has RDMA");
        return;
    }
    for args in [&["rdma", "devices"][..], &["rdma", "devices", "--json"]] {
        let (code, stdout, stderr) = run(args);
        assert_eq!((code, stdout.as_str()), (6, ""), "{stderr}");
        let words = if cfg!(feature = "rdma") { ["no RDMA", "modprobe rdma_rxe"] } else { ["without RDMA", "feature"] };
        assert!(words.iter().all(|w| stderr.contains(w)) && stderr.contains("what to do:"), "{stderr}");
    }
}
