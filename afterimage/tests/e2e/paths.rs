//! Which way a session goes, where there is no RDMA: TCP, and both sides say so and why; or a refusal in words.

use crate::world::{StandbyOptions, World, words};
use mc_core::testing::skip;
use std::path::Path;

fn has_rdma() -> bool {
    let has_rdma = Path::new("/sys/class/infiniband_verbs").exists();
    if has_rdma {
        skip("this host has RDMA");
    }
    has_rdma
}

#[test]
fn auto_comes_down_to_tcp_and_says_why() {
    if has_rdma() {
        return;
    }
    let Some((world, _witness)) = World::with_witness() else { return };
    let (_vm, mut protect, mut standby) = world.pair();
    let why = if cfg!(feature = "rdma") { "no RDMA" } else { "without RDMA" };
    let event = protect.wait_event("transport");
    assert_eq!((&event["transport"], &event["keepalive"]), (&"tcp".into(), &"udp".into()), "{event}");
    assert!(event["why"].as_str().is_some_and(|w| w.contains(why)), "{event}");
    let event = standby.proc.wait_event("transport");
    assert!(event["why"].as_str().is_some_and(|w| w.contains("primary a has no RDMA")), "{event}");
    for node in ["a", "b"] {
        let status = world.status(node);
        assert_eq!((&status["transport"], &status["keepalive"]), (&"tcp".into(), &"udp".into()), "{status}");
        assert_eq!((&status["rdma"], &status["counters"]["fallbacks"]), (&().into(), &0.into()), "{status}");
        assert!(status["transport_why"].as_str().is_some_and(|w| w.contains("RDMA")), "{status}");
        let (_, text, _) = world.run(node, "status --vm web");
        assert!(text.contains(" over tcp\n") && text.contains("beats over udp"), "{text}");
    }
}

#[test]
fn what_was_asked_for_is_what_the_reason_says() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    let flags = words("--transport tcp");
    let standby = world.standby_with("b", &StandbyOptions { flags, ..StandbyOptions::default() });
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, "--transport tcp");
    protect.wait_event("protected");
    assert_eq!(protect.wait_event("transport")["why"], "TCP is configured");
    let (code, text, _) = world.run("a", "status --vm web");
    assert!(code == 0 && text.contains("over tcp because TCP is configured"), "{text}");
}
