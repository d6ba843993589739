//! The handshake, with good peers and bad ones.

use mc_core::{
    id::{Generation, Incarnation, Name, Node, NodeId, WitnessId},
    transport::{Completion, Op, Transport},
    wire::{
        beat::BeatKey,
        control::{Body, Control},
        rdma::{Beats, Endpoint, Queues},
        session::{Hello, Kind, MAX_PROFILE, Purpose, VERSIONS, encode_frame},
    },
};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread::{JoinHandle, sleep, spawn},
    time::Duration,
};
use transport_tcp::session::{Call, Connected, Listener, Offer, SessionError, SessionOptions};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const PATIENT: Duration = Duration::from_secs(30);

fn hello(node: &str) -> Hello {
    Hello {
        versions: VERSIONS,
        slab_size: 64 << 10,
        staging_slabs: 32,
        rdma: false,
        incarnation: Incarnation(42),
        generation: Generation(7),
        purpose: Purpose::Protect(Name::new("db1").unwrap()),
        node: Node { name: Name::new(node).unwrap(), id: NodeId(*b"0123456789abcdef") },
        witness: WitnessId::NONE,
        instance: 1,
        beat_key: BeatKey([5; 32]),
        beat_port: 4000,
        detect_multiplier: 5,
        desired_tx_us: 10_000,
        required_rx_us: 10_000,
    }
}

fn options(deadline_ms: u64) -> SessionOptions {
    SessionOptions { deadline: Duration::from_millis(deadline_ms), ..SessionOptions::default() }
}

fn listener(deadline_ms: u64) -> (Listener, String) {
    let listener = Listener::bind(LOOPBACK, options(deadline_ms)).unwrap();
    let to = listener.local_addr().to_string();
    (listener, to)
}

fn connect(
    to: &str,
    hello: &Hello,
    profile: &[u8],
    endpoint: Option<&Endpoint>,
    options: &SessionOptions,
) -> Result<Connected, SessionError> {
    Call::connect(to, &[to.parse().unwrap()], None, options)?.shake_hands(hello, profile, endpoint)
}

/// A primary in a thread of its own.
fn primary(to: &str, hello: Hello, profile: Vec<u8>) -> JoinHandle<Result<Connected, SessionError>> {
    let to = to.to_owned();
    spawn(move || connect(&to, &hello, &profile, None, &options(20_000)))
}

fn offer(listener: &mut Listener) -> Offer {
    listener.accept(PATIENT).unwrap().expect("an offer")
}

fn failure(listener: &mut Listener) -> String {
    listener.accept(PATIENT).unwrap_err().to_string()
}

/// A standby that says these bytes to whoever connects, and hangs up after the client has said all.
fn impostor(says: Vec<u8>) -> (String, JoinHandle<Vec<u8>>) {
    let socket = TcpListener::bind(LOOPBACK).unwrap();
    let to = socket.local_addr().unwrap().to_string();
    let thread = spawn(move || {
        let (mut stream, _) = socket.accept().unwrap();
        stream.write_all(&says).unwrap();
        let mut heard = Vec::new();
        // The client may reset the connection: it did not like what it heard.
        let _ = stream.read_to_end(&mut heard);
        heard
    });
    (to, thread)
}

#[test]
fn both_sides_agree_and_the_link_works() {
    let (mut listener, to) = listener(5000);
    let primary = primary(&to, hello("left"), b"{\"machine\":\"q35\"}".to_vec());
    let offered = offer(&mut listener);
    assert_eq!((offered.hello, &offered.profile[..]), (hello("left"), &b"{\"machine\":\"q35\"}"[..]));
    assert_eq!(offered.local_addr, listener.local_addr());
    let mut standby = offered.accept(hello("right"), b"{}", None).unwrap();
    let mut primary = primary.join().unwrap().unwrap();
    let taken = Hello { versions: (3, 3), ..hello("right") };
    assert_eq!((primary.peer, &primary.profile[..]), (taken, &b"{}"[..]));
    assert_eq!(primary.peer_addr, standby.local_addr);
    assert_eq!(primary.local_addr, standby.peer_addr);
    assert_eq!(primary.link.peer(), format!("right ({to})"));

    let (incarnation, generation) = (Incarnation(42), Generation(7));
    let control = Control { incarnation, generation, epoch: mc_core::id::Epoch(1), body: Body::Rehearse };
    primary.link.submit(Op::Send(control)).unwrap();
    primary.link.poll();
    loop {
        match standby.link.poll() {
            Some(Completion::Received(got)) => return assert_eq!(got, control),
            Some(other) => panic!("{other:?}"),
            None => sleep(Duration::from_millis(1)),
        }
    }
}

fn endpoint(first: u32) -> Endpoint {
    let queues = Queues::new(&[first, first + 1]).unwrap();
    let beats = Some(Beats { queue: 9, qkey: 8, group: None });
    Endpoint { gid: [3; 16], lid: 0, mtu: 1024, receives: 64, psn: 5, queues, beats, incarnation: Incarnation(42) }
}

#[test]
fn endpoints_are_exchanged_only_if_both_sides_have_one() {
    for (ours, theirs) in [(true, true), (true, false), (false, true), (false, false)] {
        let (mut listener, to) = listener(5000);
        let primary = spawn(move || {
            let mine = ours.then(|| endpoint(1));
            connect(&to, &hello("left"), b"{}", mine.as_ref(), &options(20_000)).unwrap()
        });
        let offered = offer(&mut listener);
        assert_eq!(offered.endpoint, ours.then(|| endpoint(1)));
        let mine = theirs.then(|| endpoint(7));
        let standby = offered.accept(hello("right"), b"{}", mine.as_ref()).unwrap();
        let primary = primary.join().unwrap();
        let both = ours && theirs;
        assert_eq!(standby.endpoint, both.then(|| endpoint(1)));
        assert_eq!(primary.endpoint, both.then(|| endpoint(7)));
    }
}

#[test]
fn the_standby_echoes_what_identifies_the_session_whatever_its_own_hello_says() {
    let (mut listener, to) = listener(5000);
    let primary = primary(&to, hello("left"), vec![]);
    let other = Hello { incarnation: Incarnation(9), slab_size: 8192, versions: (1, 9), ..hello("right") };
    let _standby = offer(&mut listener).accept(other, &[], None).unwrap();
    let peer = primary.join().unwrap().unwrap().peer;
    assert_eq!((peer.incarnation, peer.slab_size, peer.versions), (Incarnation(42), 64 << 10, (3, 3)));
}

#[test]
fn a_primary_of_the_version_before_is_answered_in_that_version() {
    let (mut listener, to) = listener(5000);
    let primary = primary(&to, Hello { versions: (2, 2), ..hello("left") }, vec![]);
    let _standby = offer(&mut listener).accept(hello("right"), &[], None).unwrap();
    assert_eq!(primary.join().unwrap().unwrap().peer.versions, (2, 2));
}

#[test]
fn a_standby_of_the_version_before_is_taken() {
    let answer = Hello { versions: (2, 2), ..hello("right") };
    let frames = [(Kind::Hello, &answer.encode()[..]), (Kind::Profile, b""), (Kind::Ready, b"")];
    let (to, standby) = impostor(frames.iter().flat_map(|(kind, body)| encode_frame(*kind, body)).collect());
    assert_eq!(connect(&to, &hello("left"), &[], None, &options(5000)).unwrap().peer, answer);
    standby.join().unwrap();
}

#[test]
fn a_refusal_reaches_the_other_side_and_cannot_forge_its_terminal() {
    let (mut listener, to) = listener(5000);
    let primary = primary(&to, hello("left"), vec![]);
    offer(&mut listener).refuse("the CPU model differs:\x1b[2J\nqemu64, host").unwrap();
    let error = primary.join().unwrap().unwrap_err().to_string();
    assert_eq!(error, format!("{to} refused: the CPU model differs: [2J qemu64, host"));
}

#[test]
fn a_long_refusal_is_cut_at_a_character() {
    let (mut listener, to) = listener(5000);
    let primary = primary(&to, hello("left"), vec![]);
    offer(&mut listener).refuse(&"€".repeat(1000)).unwrap();
    assert!(primary.join().unwrap().unwrap_err().to_string().ends_with("€€€"));
}

#[test]
fn versions_without_overlap_are_explained_to_both_sides() {
    let (mut listener, to) = listener(5000);
    // The profile is large: the refusal must survive that the standby never reads it.
    let primary = primary(&to, Hello { versions: (4, 5), ..hello("left") }, vec![b' '; MAX_PROFILE]);
    let error = failure(&mut listener);
    assert!(error.ends_with("speaks versions 4..5, this build versions 2..3"), "{error}");
    let error = primary.join().unwrap().unwrap_err().to_string();
    assert_eq!(error, format!("{to} refused: the standby speaks versions 2..3, you speak versions 4..5"));
}

#[test]
fn an_answer_to_another_session_is_not_taken() {
    let answer = Hello { versions: (3, 3), generation: Generation(8), ..hello("right") };
    let frames = [(Kind::Hello, &answer.encode()[..]), (Kind::Profile, b""), (Kind::Ready, b"")];
    let (to, standby) = impostor(frames.iter().flat_map(|(kind, body)| encode_frame(*kind, body)).collect());
    let error = connect(&to, &hello("left"), &[], None, &options(5000)).unwrap_err();
    assert!(matches!(error, SessionError::Echo { field: "generation", .. }), "{error}");
    standby.join().unwrap();
}

#[test]
fn a_standby_that_took_a_version_nobody_offered_is_refused() {
    let answer = Hello { versions: (2, 3), ..hello("right") };
    let (to, standby) = impostor(encode_frame(Kind::Hello, &answer.encode()));
    let error = connect(&to, &hello("left"), &[], None, &options(5000)).unwrap_err();
    assert!(matches!(error, SessionError::Version { theirs: (2, 3), .. }), "{error}");
    standby.join().unwrap();
}

#[test]
fn another_servers_greeting_is_quoted() {
    let (to, server) = impostor(b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec());
    let error = connect(&to, &hello("left"), &[], None, &options(5000)).unwrap_err().to_string();
    assert_eq!(error, format!("{to} does not speak Afterimage's protocol: it began with \"SSH-2.0-OpenSSH_\""));
    server.join().unwrap();
}

#[test]
fn a_silent_standby_is_not_waited_for_beyond_the_deadline() {
    let silent = TcpListener::bind(LOOPBACK).unwrap();
    let to = silent.local_addr().unwrap().to_string();
    let error = connect(&to, &hello("left"), &[], None, &options(50)).unwrap_err();
    assert!(matches!(error, SessionError::Silent { awaited: "hello", .. }), "{error}");
    // Neither is one that takes no bytes.
    let error = connect(&to, &hello("left"), &vec![0; MAX_PROFILE], None, &options(50)).unwrap_err();
    assert!(matches!(error, SessionError::Silent { .. }), "{error}");
}

#[test]
fn damaged_and_misplaced_frames_name_what_is_wrong() {
    let mut damaged = encode_frame(Kind::Hello, &hello("right").encode());
    *damaged.last_mut().unwrap() ^= 1;
    let (to, standby) = impostor(damaged);
    let error = connect(&to, &hello("left"), &[], None, &options(5000)).unwrap_err().to_string();
    assert!(error.contains("session frame: CRC32C"), "{error}");
    standby.join().unwrap();

    let (to, standby) = impostor(encode_frame(Kind::Ready, &[]));
    let error = connect(&to, &hello("left"), &[], None, &options(5000)).unwrap_err().to_string();
    assert_eq!(error, format!("{to} sent a Ready frame where its hello was due"));
    standby.join().unwrap();

    let (to, standby) = impostor(encode_frame(Kind::Hello, &[0; 20]));
    let error = connect(&to, &hello("left"), &[], None, &options(5000)).unwrap_err().to_string();
    assert!(error.contains("hello: 20 bytes, needs 216"), "{error}");
    standby.join().unwrap();
}

#[test]
fn nobody_there_is_named() {
    let free = TcpListener::bind(LOOPBACK).unwrap().local_addr().unwrap().to_string();
    let error = connect(&free, &hello("left"), &[], None, &options(5000)).unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot connect to {free}: Connection refused")), "{error}");
    let (_listener, to) = listener(5000);
    let error = connect(&to, &hello("left"), &vec![0; MAX_PROFILE + 1], None, &options(5000)).unwrap_err();
    assert!(matches!(error, SessionError::Profile { .. }), "{error}");
}

#[test]
fn a_port_in_use_is_named() {
    let (taken, to) = listener(5000);
    let error = Listener::bind(taken.local_addr(), options(5000)).unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot listen on {to}: Address already in use")), "{error}");
}

#[test]
fn strangers_at_the_listener_are_named_and_do_no_harm() {
    let (mut listener, to) = listener(5000);
    let mut http = TcpStream::connect(&to).unwrap();
    http.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let error = failure(&mut listener);
    assert!(error.ends_with("does not speak Afterimage's protocol: it began with \"GET / HTTP/1.1\""), "{error}");
    assert!(error.starts_with(&http.local_addr().unwrap().to_string()), "{error}");

    drop(TcpStream::connect(&to).unwrap());
    assert!(failure(&mut listener).ends_with("closed the connection before its hello"));

    let mut oversized = encode_frame(Kind::Hello, &[]);
    oversized[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut stream = TcpStream::connect(&to).unwrap();
    stream.write_all(&oversized).unwrap();
    let error = failure(&mut listener);
    assert!(error.contains("field len = 4294967295: longer than its kind may be"), "{error}");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"AIH1\x04"), "someone who speaks our protocol is told why");

    let primary = primary(&to, hello("left"), vec![]);
    offer(&mut listener).accept(hello("right"), &[], None).unwrap();
    primary.join().unwrap().unwrap();
}

#[test]
fn slow_clients_run_into_the_deadline_and_block_nobody() {
    let (mut slow_listener, to) = listener(300);
    let silent = TcpStream::connect(&to).unwrap();
    let trickler = spawn({
        let to = to.clone();
        move || {
            let mut stream = TcpStream::connect(&to).unwrap();
            let frame = encode_frame(Kind::Hello, &hello("left").encode());
            // Never silent for long, never done: one byte at a time until it is thrown out.
            for byte in frame {
                if stream.write_all(&[byte]).is_err() {
                    break;
                }
                sleep(Duration::from_millis(10));
            }
            stream.local_addr().unwrap()
        }
    });
    let (mut busy, busy_to) = listener(60_000);
    let _slow: Vec<_> = (0..5).map(|_| TcpStream::connect(&busy_to).unwrap()).collect();
    let primary = primary(&busy_to, hello("left"), vec![]);
    offer(&mut busy).accept(hello("right"), &[], None).unwrap();
    primary.join().unwrap().unwrap();

    let mut errors = [failure(&mut slow_listener), failure(&mut slow_listener)];
    let mut expected =
        [silent.local_addr().unwrap(), trickler.join().unwrap()].map(|addr| format!("{addr}: no hello within 0.3 s"));
    errors.sort();
    expected.sort();
    assert_eq!(errors, expected);
}

#[test]
fn a_crowd_of_idle_connections_does_not_keep_a_primary_out() {
    let (mut listener, to) = listener(60_000);
    let _idle: Vec<_> = (0..20).map(|_| TcpStream::connect(&to).unwrap()).collect();
    let primary = primary(&to, hello("left"), vec![]);
    let mut crowded = 0;
    let offer = loop {
        match listener.accept(PATIENT) {
            Ok(offer) => break offer.expect("an offer"),
            Err(SessionError::Crowded { .. }) => crowded += 1,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(crowded, 13, "of 21 connections 8 may be under way");
    offer.accept(hello("right"), &[], None).unwrap();
    primary.join().unwrap().unwrap();
}

#[test]
fn one_hosts_crowd_does_not_crowd_out_another_host() {
    let (mut listener, to) = listener(60_000);
    // A primary that has connected, and is still busy with its side of RDMA.
    let from = SocketAddr::from(([127, 0, 0, 2], 0));
    let primary = Call::connect(&to, &[to.parse().unwrap()], Some(from), &options(20_000)).unwrap();
    assert_eq!(primary.local_addr().ip(), from.ip());
    let _idle: Vec<_> = (0..20).map(|_| TcpStream::connect(&to).unwrap()).collect();
    let mut crowded = 0;
    while crowded < 13 {
        match listener.accept(PATIENT) {
            Err(SessionError::Crowded { peer, .. }) => {
                assert_ne!(peer.ip(), from.ip());
                crowded += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    let primary = spawn(move || primary.shake_hands(&hello("left"), &[], None));
    offer(&mut listener).accept(hello("right"), &[], None).unwrap();
    primary.join().unwrap().unwrap();
}

#[test]
fn the_listeners_descriptor_is_readable_when_there_is_something_to_do() {
    use rustix::event::{PollFd, PollFlags, poll};
    use std::os::fd::AsFd;
    let (mut listener, to) = listener(60_000);
    assert!(listener.accept(Duration::ZERO).unwrap().is_none());
    let primary = primary(&to, hello("left"), vec![1; 100_000]);
    let offer = loop {
        poll(&mut [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)], None).unwrap();
        if let Some(offer) = listener.accept(Duration::ZERO).unwrap() {
            break offer;
        }
    };
    offer.accept(hello("right"), &[], None).unwrap();
    primary.join().unwrap().unwrap();
}
