//! A VM that nobody protects keeps its network: whoever runs it may die.

use crate::{
    net::{self, Client, Network, device, nic},
    proc::{Proc, is_alive, kill, signal, until},
    world::{StandbyOptions, VM, World, free_addr, kill_host},
};
use mc_core::testing::skip;
use rustix::process::Signal;
use serde_json::Value;
use std::{fs, path::PathBuf};

/// `standby` on a node where it does not belong.
fn standby_in_vain(world: &World, node: &str) -> Proc {
    let mut command = World::program();
    command.args(["standby", "--vm", VM, "--listen", "127.0.0.1:0", "--arbiter", &world.arbiter, "--node", node]);
    command.arg("--run-dir").arg(world.run_dir(node)).arg("--state-dir").arg(world.path(&format!("state-{node}")));
    command.args(["--", "qemu-system-x86_64"]);
    Proc::spawn(world.dir.path(), "stranger", command)
}

fn status(world: &World, node: &str, role: &str) -> Value {
    let (_, stdout, stderr) = world.run(node, &format!("status --vm {VM} --json --role {role}"));
    serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout:?} {stderr}"))
}

fn pid(event: &Value, field: &str) -> u32 {
    u32::try_from(event[field].as_u64().unwrap_or_else(|| panic!("no {field}: {event}"))).unwrap()
}

#[test]
fn after_a_takeover_nobodys_death_takes_the_network_along() {
    let Some(_network) = Network::enter(&["a", "b", "c"]) else { return };
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut host_a, mut b, mut client) = net::pair(&world);
    kill_host(&mut vm, &mut host_a);
    let taken = b.proc.wait_event("running");
    let started = b.proc.wait_event("keeper-started");
    assert_eq!(started["handed_over"], true, "no frame is lost: {started}");
    let qemu = b.proc.child_with("qemu").expect("the standby's QEMU");
    client.is_served(5);
    let said = status(&world, "b", "standby");
    assert_eq!(said["role"], "running", "{said}");
    assert!(said["notes"].to_string().contains("keeps the VM's network"), "{said}");

    b.proc.kill();
    client.is_served(20);
    assert!(is_alive(qemu));
    let said = status(&world, "b", "keeper");
    assert_eq!((&said["role"], &said["protected"]), (&"keeping".into(), &false.into()), "{said}");
    assert_eq!(said["generation"], taken["generation"], "{said}");
    assert!(said["released_packets"].as_u64() >= Some(20), "{said}");

    // A new standby on this host attaches to the VM, and a keeper that dies is started again.
    let mut again = net::standby(&world, "b", "reattached");
    assert_eq!(pid(&again.proc.wait_event("reattached"), "keeper"), pid(&started, "keeper"));
    again.proc.wait_event("register");
    let said = status(&world, "b", "standby");
    assert_eq!((&said["role"], &said["generation"]), (&"running".into(), &taken["generation"]), "{said}");
    kill(pid(&started, "keeper"));
    let next = again.proc.wait_event("keeper-started");
    assert_eq!(next["handed_over"], false, "{next}");
    client.is_served(5);

    // One that is refused relieves nobody.
    let mut c = net::standby(&world, "c", "waiting");
    let qmp = world.run_dir("b").join("web/standby.qmp");
    let wrong = format!("--nic {}", nic(world.dir.path(), "b").replace("tap-b", "tap-B"));
    world.protect("b", "no-tap", &qmp, c.addr, &wrong).expect_end(6, &["error: TAP device tap-B"]);
    let stranger = format!("--unheld nobody --nic {}", nic(world.dir.path(), "b"));
    world
        .protect("b", "no-output", &qmp, c.addr, &stranger)
        .expect_end(2, &["no output called nobody", "the standby that took the VM over goes on"]);
    assert!(again.proc.is_running(), "{}", again.proc.said());
    assert_eq!(again.proc.count("operator"), 0, "nobody has told it to leave");
    assert_eq!(status(&world, "b", "standby")["role"], "running");
    client.is_served(5);

    // `protect` relieves both, and protects the VM to a third node.
    let mut host_b = net::protect(&world, "b", "b2", &qmp, &c);
    again.proc.expect_end(0, &[]);
    host_b.wait_event("protected");
    c.proc.wait_event("protected");
    assert!(!is_alive(pid(&next, "keeper")), "its place is the data path's");
    client.is_served(5);
    standby_in_vain(&world, "b").expect_end(1, &["`afterimage protect` has it", "another host"]);

    let data_path = host_b.data_path();
    for pid in [host_b.pid(), data_path, qemu] {
        kill(pid);
    }
    c.proc.wait_event("running");
    client.is_served(5);
    b.serial.assert_continued_by(&c.serial);
}

#[test]
fn a_protect_that_is_told_to_end_leaves_the_vm_its_network() {
    let Some(_network) = Network::enter(&["a", "b"]) else { return };
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut host_a, mut b, mut client) = net::pair(&world);
    signal(host_a.pid(), Signal::TERM);
    host_a.expect_end(0, &[]);
    let started = host_a.wait_event("keeper-started");
    assert_eq!(started["handed_over"], true, "no frame is lost: {started}");
    client.is_served(20);
    let said = status(&world, "a", "keeper");
    assert_eq!((&said["role"], &said["generation"]), (&"keeping".into(), &3.into()), "{said}");
    b.proc.wait_events("waiting", 2);
    assert_eq!(b.proc.count("suspect"), 0, "{}", b.proc.said());

    let mut again = net::protect(&world, "a", "a2", &vm.qmp, &b);
    again.wait_event("protected");
    assert!(!is_alive(pid(&started, "keeper")), "its place is the data path's");
    client.is_served(5);
    vm.serial.assert_sound();
}

#[test]
fn an_attempt_that_is_made_once_and_comes_to_nothing_leaves_the_vm_its_network() {
    let Some(_network) = Network::enter(&["a", "b"]) else { return };
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = net::vm(&world, "a");
    let flags = format!("--once --nic {}", nic(world.dir.path(), "a"));
    let mut client = Client::new();
    // Nobody is there.
    let mut alone = world.protect("a", "alone", &vm.qmp, free_addr(), &flags);
    alone.expect_end(1, &["Connection refused", "a keeper passes its packets"]);
    assert_eq!(alone.wait_event("keeper-started")["handed_over"], true, "{}", alone.said());
    client.is_served(5);
    let (code, stdout, _) = world.run("a", &format!("status --vm {VM}"));
    assert!(code == 3 && stdout.contains("web on a (keeper): keeping, NOT PROTECTED"), "{code}: {stdout}");
    let keeper = pid(&alone.wait_event("keeper-started"), "keeper");
    kill(keeper);
    until("the keeper ends", || (!is_alive(keeper)).then_some(()));

    // One that has less RAM refuses.
    let mut qemu = world.standby_qemu("b", None);
    let memory = qemu.iter().position(|word| word == "-m").expect("-m") + 1;
    qemu[memory] = "24M".to_owned();
    qemu.extend(device(world.dir.path(), "b"));
    let b = vec!["--nic".to_owned(), nic(world.dir.path(), "b")];
    let other = world.standby_with("b", &StandbyOptions { qemu: Some(qemu), flags: b, ..StandbyOptions::default() });
    let mut refused = world.protect("a", "refused", &vm.qmp, other.addr, &flags);
    refused.expect_end(1, &["a keeper passes its packets"]);
    client.is_served(5);
    vm.serial.assert_sound();
}

#[test]
fn what_ends_the_standbys_control_group_ends_neither_vm_nor_network() {
    let Some(_network) = Network::enter(&["a", "b"]) else { return };
    let Some(group) = Group::new() else { return };
    let Some((world, _witness)) = World::with_witness() else { return };
    let more = device(world.dir.path(), "a");
    let mut vm = world.vm("vm", &more.iter().map(String::as_str).collect::<Vec<_>>());
    let mut b = net::standby(&world, "b", "waiting");
    group.take(b.proc.pid());
    let mut host_a = net::protect(&world, "a", "a", &vm.qmp, &b);
    host_a.wait_event("protected");
    b.proc.wait_event("protected");
    let mut client = Client::new();
    client.is_served(5);
    kill_host(&mut vm, &mut host_a);
    let started = b.proc.wait_event("keeper-started");
    let qemu = b.proc.child_with("qemu").expect("the standby's QEMU");

    group.kill();
    assert_eq!(b.proc.wait(), -1, "it was in the group");
    client.is_served(20);
    assert!(is_alive(qemu) && is_alive(pid(&started, "keeper")));
}

#[test]
fn a_keeper_ends_with_its_vm_and_a_standby_waits_anew() {
    let Some(_network) = Network::enter(&["a", "b"]) else { return };
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut host_a, mut b, _client) = net::pair(&world);
    kill_host(&mut vm, &mut host_a);
    let keeper = pid(&b.proc.wait_event("keeper-started"), "keeper");
    kill(b.proc.child_with("qemu").expect("the standby's QEMU"));
    b.proc.expect_end(1, &["error: the VM's QEMU died", "what to do", "standby.stderr"]);
    assert_eq!(b.proc.wait_event("vm-gone")["orderly"], false);
    assert!(b.proc.wait_event("exit")["why"].to_string().contains("the VM's QEMU died"), "{}", b.proc.said());
    until("the keeper ends", || (!is_alive(keeper)).then_some(()));
    let mut next = net::standby(&world, "b", "waiting");
    assert!(next.proc.is_running());
}

/// Whoever tells of the VM need not have started its QEMU.
#[test]
fn a_vm_that_was_taken_over_and_shuts_down_is_no_failure() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut host_a, mut b) = world.pair();
    kill_host(&mut vm, &mut host_a);
    b.proc.wait_event("running");
    let qemu = b.proc.child_with("qemu").expect("the standby's QEMU");
    b.proc.kill();
    let mut next = world.standby_with("b", &StandbyOptions { begins: "reattached", ..StandbyOptions::default() });
    signal(qemu, Signal::TERM);
    next.proc.expect_end(0, &[]);
    assert_eq!(next.proc.wait_event("vm-gone")["orderly"], true);
}

#[test]
fn a_keeper_refuses_the_first_signal_and_obeys_the_second() {
    let Some(_network) = Network::enter(&["a"]) else { return };
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = net::vm(&world, "a");
    let (mut protect, mut client) = net::alone(&world, &vm);
    client.is_served(5);
    signal(protect.pid(), Signal::TERM);
    protect.expect_end(0, &[]);
    let keeper = pid(&protect.wait_event("keeper-started"), "keeper");

    signal(keeper, Signal::TERM);
    until("it says that it stays", || {
        let said = status(&world, "a", "keeper");
        said["notes"].to_string().contains("refused to end: ").then_some(())
    });
    client.is_served(5);
    signal(keeper, Signal::TERM);
    until("the keeper ends", || (!is_alive(keeper)).then_some(()));
    assert!(client.hears_nothing(), "it took the network along");
    let journal = fs::read_to_string(world.path("state-a").join(format!("{VM}.keeper.journal"))).unwrap();
    assert!(journal.contains("stop-refused") && journal.contains("stop-obeyed") && journal.contains("\"code\":3"));
}

/// The register decides about names: a slip in one must not go round it.
#[test]
fn a_vm_has_no_second_name_on_its_host() {
    let Some(_network) = Network::enter(&["a"]) else { return };
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = net::vm(&world, "a");
    let (mut protect, mut client) = net::alone(&world, &vm);
    let nic = nic(world.dir.path(), "a");
    let another = || {
        let mut command = World::program();
        command.args(["protect", "--vm", "other", "--node", "a", "--to", &free_addr().to_string(), "--once"]);
        command.args(["--arbiter", &world.arbiter]).args(["--nic", &nic]).arg("--qmp").arg(&vm.qmp);
        command.arg("--run-dir").arg(world.run_dir("a")).arg("--state-dir").arg(world.path("state-a"));
        Proc::spawn(world.dir.path(), "other", command)
    };
    another().expect_end(6, &["already runs as VM web on this host (its primary)", "what to do: use --vm web"]);
    client.is_served(5);
    signal(protect.pid(), Signal::TERM);
    protect.expect_end(0, &[]);
    another().expect_end(6, &["already runs as VM web on this host (its keeper)", "what to do: use --vm web"]);
    client.is_served(5);
}

#[test]
fn an_operator_gives_a_vm_its_network_by_hand() {
    let Some(_network) = Network::enter(&["a", "b"]) else { return };
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut host_a, b, mut client) = net::pair(&world);
    let line = |more: &str| {
        let nic = nic(world.dir.path(), "a");
        format!("keeper --vm {VM} --node a --nic {nic} --state-dir {} {more}", world.path("state-a").display())
    };
    let yes = "--yes-the-other-side-is-stopped";
    let (code, _, stderr) = world.run("a", &line(""));
    assert!(code == 2 && stderr.contains(yes) && stderr.contains("`afterimage protect`"), "{code}: {stderr}");
    let (code, _, stderr) = world.run("a", &line(yes));
    assert!(code == 1 && stderr.contains("an afterimage process already runs here for web"), "{code}: {stderr}");

    assert_eq!(world.run("a", &format!("unprotect --vm {VM}")).0, 0);
    world.wait_role("a", "solo");
    for pid in [host_a.pid(), host_a.data_path()] {
        kill(pid);
    }
    host_a.kill();
    assert!(client.hears_nothing(), "the gate is gone, and with it the network");
    let mut command = World::program();
    command.args(crate::world::words(&line(yes))).arg("--run-dir").arg(world.run_dir("a"));
    let mut keeper = Proc::spawn(world.dir.path(), "keeper", command);
    keeper.wait_event("keeping");
    client.is_served(5);
    let (code, stdout, _) = world.run("a", &format!("status --vm {VM} --role keeper"));
    assert!(code == 3 && stdout.contains("web on a (keeper): keeping, NOT PROTECTED"), "{code}: {stdout}");

    // A standby does not belong here; `protect` does.
    standby_in_vain(&world, "a").expect_end(6, &["keeps its network", "another host"]);
    let mut next = net::protect(&world, "a", "a2", &vm.qmp, &b);
    next.wait_event("protected");
    keeper.expect_end(0, &["relieved"]);
    client.is_served(5);
}

/// A control group of the test's own.
struct Group(PathBuf);

impl Group {
    /// `None`, with the reason printed, where there can be none.
    fn new() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let Some(root) = line.and_then(|line| line.split(' ').nth(4)) else {
            skip("no cgroup2 hierarchy is mounted");
            return None;
        };
        let path = PathBuf::from(root).join(format!("ai-e2e-{}", std::process::id()));
        if let Err(error) = fs::create_dir(&path) {
            skip(format!("{}: {error}", path.display()));
            return None;
        }
        if !path.join("cgroup.kill").exists() {
            skip("this kernel has no cgroup.kill");
            let _ = fs::remove_dir(&path);
            return None;
        }
        Some(Self(path))
    }

    fn take(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn kill(&self) {
        fs::write(self.0.join("cgroup.kill"), "1").unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        let gone = || fs::read_to_string(self.0.join("cgroup.procs")).is_ok_and(|pids| pids.is_empty());
        until("the group is empty", || gone().then_some(()));
        let _ = fs::remove_dir(&self.0);
    }
}
