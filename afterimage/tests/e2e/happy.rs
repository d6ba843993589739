//! Everything works, until the primary's host dies.

use crate::{
    proc::until,
    world::{World, kill_host},
};

#[test]
fn a_takeover_goes_on_where_the_last_commit_was() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    let (primary, waiting) = (world.status("a"), world.status("b"));
    assert_eq!((&primary["side"], &primary["role"]), (&"primary".into(), &"protected".into()), "{primary}");
    assert_eq!((&waiting["side"], &waiting["role"]), (&"standby".into(), &"protecting".into()), "{waiting}");
    for status in [&primary, &waiting] {
        assert_eq!(status["protected"], true, "{status}");
        assert_eq!(status["generation"], 2, "{status}");
        assert_eq!(status["arbiter"]["reachable"], true, "{status}");
        assert!(status["staging_live_bytes"].as_u64() <= status["staging_cap_bytes"].as_u64(), "{status}");
        assert!(status["beats"]["received"].as_u64() > Some(0), "{status}");
    }
    let epoch = primary["epoch"].as_u64().unwrap();
    for node in ["a", "b"] {
        until("epochs are committed", || {
            (world.status(node)["last_ack_epoch"].as_u64() > Some(epoch + 5)).then_some(())
        });
    }
    vm.serial.goes_on();

    kill_host(&mut vm, &mut protect);
    let running = standby.proc.wait_event("running");
    assert_eq!(running["generation"], 3, "{running}");
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
    let status = world.status("b");
    assert_eq!((&status["role"], &status["protected"]), (&"running".into(), &false.into()), "{status}");
    assert!(standby.proc.is_running());
    // Where the VM is controlled from now on.
    let qmp = status["qmp"].as_str().unwrap_or_else(|| panic!("{status}"));
    assert_eq!(running["qmp"], status["qmp"], "{running}");
    assert!(std::os::unix::net::UnixStream::connect(qmp).is_ok(), "{qmp}");
    let (_, text, _) = world.run("b", "status --vm web");
    assert!(text.contains(&format!("QMP            {qmp} ")), "{text}");
    assert!(standby.proc.stderr().contains(qmp), "{}", standby.proc.said());
}
