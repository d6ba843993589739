//! TCP as the path that another falls back to.

use super::Loopback;
use mc_core::testing::{
    conformance::{run_all, run_together},
    paths::{Fails, TwoPaths},
};
use std::net::Ipv4Addr;

fn loopback() -> Loopback {
    Loopback::new(Ipv4Addr::LOCALHOST, None)
}

#[test]
fn a_link_with_tcp_to_fall_back_to_conforms() {
    run_all(&mut TwoPaths::new(loopback(), Fails::Never, 1));
}

#[test]
fn a_link_that_fell_back_to_tcp_conforms() {
    run_all(&mut TwoPaths::new(loopback(), Fails::AtOnce, 2));
}

#[test]
fn a_link_that_falls_back_to_tcp_in_mid_stream_loses_nothing() {
    for seed in 0..4 {
        eprintln!("seed {seed}");
        run_together(&mut TwoPaths::new(loopback(), Fails::Somewhere, seed));
    }
}
