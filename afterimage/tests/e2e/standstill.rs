//! Beats come, nothing is committed: neither side calls that protected.

use crate::{proc::until, stalls::Frozen, world::World};
use std::fs;

/// The thread of a QEMU that sends checkpoints. (Its name takes `debug-threads=on`.)
fn sender(pid: u32) -> u32 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path());
    let named = tasks.filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.contains("migration")));
    let ids = named.filter_map(|task| task.file_name()?.to_str()?.parse().ok());
    ids.max().expect("a thread that sends checkpoints")
}

#[test]
fn a_qemu_that_offers_no_checkpoint_is_not_called_protected() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &["-name", "web,debug-threads=on"]);
    let mut standby = world.standby("b");
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, "");
    protect.wait_event("protected");
    standby.proc.wait_event("protected");
    let frozen = Frozen::main_thread(sender(vm.proc.pid()));
    for (node, words) in [("a", "no checkpoint was captured and ACKed"), ("b", "no commit for")] {
        let (code, told) = until(&format!("{node} says so"), || {
            let (code, told) = world.status_code(node);
            told["stalled"].is_string().then_some((code, told))
        });
        assert!(told["stalled"].as_str().unwrap().contains(words), "{told}");
        assert_eq!((code, &told["protected"]), (3, &false.into()), "{told}");
    }
    assert_eq!(protect.count("no-commits"), 1, "{}", protect.said());
    frozen.thaw();
    protect.wait_event("commits-again");
    until("both are well again", || ["a", "b"].iter().all(|node| world.status_code(node).0 == 0).then_some(()));
    vm.serial.goes_on();
    vm.serial.assert_sound();
}
