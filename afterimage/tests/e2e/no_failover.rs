//! The arbiter would not allow a takeover: both sides say so first, and a primary that is cut off does not say what it cannot know.

use crate::{
    proc::{Proc, until},
    world::{VM, World, kill_host},
};

fn first_line(world: &World, node: &str) -> (i32, String) {
    let (code, text, _) = world.run(node, &format!("status --vm {VM}"));
    (code, text.lines().next().unwrap_or_default().to_owned())
}

/// Both sides say so, and both that the copy is as good as before.
fn nobody_would_take_over(world: &World, words: &str) {
    for (node, role) in [("a", "protected"), ("b", "protecting")] {
        let start = format!(": {role}, but NO FAILOVER: ");
        until("the first line says so", || {
            let (code, line) = first_line(world, node);
            (code == 3 && line.contains(&start) && line.contains(words)).then_some(())
        });
        let status = world.status(node);
        assert_eq!(status["protected"], true, "{status}");
        assert!(
            status["arbiter"]["failover_impossible"].is_string() && status["why_not_protected"].is_null(),
            "{status}"
        );
    }
}

#[test]
fn protected_without_a_witness_is_said_first_by_both_sides() {
    let Some((world, mut witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    witness.kill();
    protect.wait_event("arbiter-unreachable");
    nobody_would_take_over(&world, "cannot be reached");
    // An empty state is another witness's.
    std::fs::remove_dir_all(world.path("witness")).unwrap();
    let _empty = world.witness_again();
    protect.wait_event("arbiter-fault");
    standby.proc.wait_event("arbiter-fault");
    nobody_would_take_over(&world, "cannot be believed");
    vm.serial.goes_on();
}

#[test]
fn a_primary_that_reaches_neither_standby_nor_witness_says_what_it_cannot_know() {
    let Some((world, mut witness)) = World::with_witness() else { return };
    let (_vm, mut protect, mut standby) = world.pair();
    witness.kill();
    protect.wait_event("arbiter-unreachable");
    standby.proc.kill();
    world.wait_role("a", "claiming");
    let (code, text, _) = world.run("a", &format!("status --vm {VM}"));
    assert_eq!(code, 3, "{text}");
    for words in [
        "claiming, NOT PROTECTED",
        "the standby may have taken the VM over",
        "the VM has no network",
        "look at the other host first",
    ] {
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
    assert!(!text.contains("there is no failover") && !text.contains("FAILOVER IMPOSSIBLE"), "{text}");
    until_said(&protect, "this host cannot reach the arbiter: the standby may have taken the VM over");
}

#[test]
fn a_standby_that_waits_for_the_arbiter_says_why_and_the_way_out() {
    let Some((world, mut witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, standby) = world.pair();
    witness.kill();
    protect.wait_event("arbiter-unreachable");
    kill_host(&mut vm, &mut protect);
    let status = world.wait_role("b", "claiming");
    let why = &status["why_not_protected"];
    assert!(why["why"].as_str().unwrap().contains("the arbiter has not said who owns the VM"), "{why}");
    assert!(why["what_to_do"].as_str().unwrap().contains("afterimage takeover"), "{why}");
    assert!(why["since_ms"].as_u64().unwrap() > 0, "{why}");
    until_said(&standby.proc, "role=\"claiming\"");
}

/// Nothing went wrong, so nothing is said to have.
#[test]
fn an_end_in_order_is_no_warning() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let idle = world.standby("b");
    let (code, text, _) = world.run("b", &format!("status --vm {VM}"));
    assert!(code == 3 && text.contains("no primary uses this standby now"), "{text}");
    let refused = world.run("b", &format!("takeover --vm {VM} --yes-the-other-side-is-stopped")).2;
    assert!(refused.contains("this standby is idle: it has no copy") && refused.contains("what to do"), "{refused}");

    let vm = world.vm("vm", &[]);
    let mut protect = world.protect("a", "a", &vm.qmp, idle.addr, "");
    protect.wait_event("protected");
    let outputs = |world: &World| world.status("a")["outputs"].to_string();
    assert!(!outputs(&world).contains("it leaves at once now"), "{}", outputs(&world));
    assert_eq!(world.run("a", &format!("unprotect --vm {VM}")).0, 0);
    world.wait_role("a", "solo");
    world.wait_role("b", "idle");
    let log = idle.proc.stderr();
    assert!(log.contains("the session's link is closed") && !log.contains("link lost"), "{log}");
    vm.serial.goes_on();
}

fn until_said(proc: &Proc, words: &str) {
    until(words, || proc.stderr().contains(words).then_some(()));
}
