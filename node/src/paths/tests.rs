//! What a standby makes of an offer, as far as that can be told without a device.

use super::{Answer, End, beats_at};
use super::{KeepaliveWish, PathsConfig, TransportWish};
use crate::exit::Code;
use mc_core::{
    id::{Generation, Incarnation, Name, Node, NodeId, WitnessId},
    testing::skip,
    wire::{
        beat::BeatKey,
        rdma::{Beats, Endpoint, Queues},
        session::{Hello, Purpose, VERSIONS},
    },
};
use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
};

fn config(transport: TransportWish, keepalive: KeepaliveWish) -> PathsConfig {
    let (rdma_device, rdma_gid_index, rdma_timeout, rdma_retry) = (None, None, None, 6);
    PathsConfig {
        transport,
        keepalive,
        beat_port: None,
        rdma_device,
        rdma_gid_index,
        rdma_timeout,
        rdma_retry,
        staging_bytes: 64 << 20,
    }
}

fn hello(beat_port: u16) -> Hello {
    Hello {
        versions: VERSIONS,
        slab_size: 1 << 20,
        staging_slabs: 2,
        rdma: false,
        incarnation: Incarnation(1),
        generation: Generation(1),
        purpose: Purpose::Protect(Name::new("web").unwrap()),
        node: Node { name: Name::new("a").unwrap(), id: NodeId([1; 16]) },
        witness: WitnessId::NONE,
        instance: 1,
        beat_key: BeatKey([7; 32]),
        beat_port,
        detect_multiplier: 5,
        desired_tx_us: 10_000,
        required_rx_us: 10_000,
    }
}

fn endpoint() -> Endpoint {
    Endpoint {
        gid: [1; 16],
        lid: 0,
        mtu: 1024,
        receives: 64,
        psn: 1,
        queues: Queues::new(&[17]).unwrap(),
        beats: Some(Beats { queue: 18, qkey: 1, group: None }),
        incarnation: Incarnation(1),
    }
}

/// The answer: whether it has UDP, or why there is none.
fn answer(config: &PathsConfig, beat_port: u16, theirs: Option<&Endpoint>) -> Result<bool, String> {
    let answer = Answer::prepare(config, (Ipv4Addr::LOCALHOST, 7410).into(), &hello(beat_port), theirs);
    answer.map(|a| a.has_udp()).map_err(|error| error.to_string())
}

#[test]
fn a_standby_without_rdma_answers_over_tcp_or_says_why_not() {
    if Path::new("/sys/class/infiniband_verbs").exists() {
        skip("this host has RDMA");
        return;
    }
    use {KeepaliveWish::*, TransportWish::*};
    for transport in [(Auto, Both), (Tcp, Udp)] {
        let config = config(transport.0, transport.1);
        assert_eq!(answer(&config, 7, None), Ok(true));
        assert_eq!(answer(&config, 7, Some(&endpoint())), Ok(true), "the primary may end up with TCP");
        let why = answer(&config, 0, Some(&endpoint())).unwrap_err();
        assert!(
            why.contains("the two sides have no way for beats in common (no RDMA: ") && why.contains("--keepalive"),
            "{why}"
        );
    }
    let why = answer(&config(Rdma, Ud), 7, None).unwrap_err();
    assert!(why.contains("takes RDMA only, and a offers none"), "{why}");
    let why = answer(&config(Rdma, Ud), 7, Some(&endpoint())).unwrap_err();
    assert!(why.contains("RDMA"), "{why}");
}

/// One number of one host has to be let through a firewall: the one that the listener has.
#[test]
fn beats_come_to_the_number_that_the_listener_listens_at() {
    let mut paths = config(TransportWish::Tcp, KeepaliveWish::Udp);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let port = |paths: &PathsConfig, end| {
        let beats = beats_at(paths, listener, end);
        beats.map(|beats| (beats.local_port().unwrap(), beats))
    };
    let (first, held) = port(&paths, End::Listener).unwrap();
    assert_eq!(first, listener.port());
    // Another process has it: beats go on all the same, unless that number was asked for.
    assert_ne!(port(&paths, End::Listener).unwrap().0, first);
    assert_ne!(port(&paths, End::Caller).unwrap().0, first);
    paths.beat_port = Some(first);
    let error = port(&paths, End::Caller).map(|(port, _)| port).unwrap_err();
    assert_eq!(error.code, Code::Prerequisite);
    assert!(error.message.contains(&first.to_string()) && error.remedy.unwrap().contains("--beat-port"));
    drop(held);
    assert_eq!(port(&paths, End::Caller).unwrap().0, first);
    paths.beat_port = Some(0);
    assert_ne!(port(&paths, End::Listener).unwrap().0, first);
}
