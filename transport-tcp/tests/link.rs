//! What the suite cannot say of every transport: bytes of a hostile peer, and sleeping on the descriptor.

use mc_core::{
    id::{BlockId, Epoch, Generation, Incarnation, PAGE_SIZE},
    slab::{SealedSlab, SlabMeta, SlabPool},
    testing::Rng,
    transport::{Completion, LinkError, Op, RejectReason, Transport},
    wire::{
        WireError,
        control::{Body, Control},
    },
};
use rustix::event::{PollFd, PollFlags, poll};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread::{sleep, spawn},
    time::Duration,
};
use transport_tcp::TcpLink;

const SLAB: usize = 64 << 10;

fn streams() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (a, listener.accept().unwrap().0)
}

fn record(number: u64) -> Control {
    let (incarnation, generation) = (Incarnation(1), Generation(1));
    Control { incarnation, generation, epoch: Epoch(number), body: Body::Rehearse }
}

fn slab(pool: &mut SlabPool, pages: u64) -> SealedSlab {
    let mut writer = pool.take().unwrap().writer();
    for page in 0..pages {
        writer.page(BlockId(0), page * PAGE_SIZE as u64, &[3; PAGE_SIZE]).unwrap();
    }
    let (incarnation, generation) = (Incarnation(1), Generation(1));
    writer.seal(SlabMeta { incarnation, generation, epoch: Epoch(1), index: 0 })
}

/// Sleeps on the descriptor as the driver does; false once the link has nothing to wait for.
fn wait(link: &TcpLink) {
    let Some(fd) = link.wait_fd() else { return };
    let mut flags = PollFlags::RDHUP;
    flags.set(PollFlags::IN, link.wants_read());
    flags.set(PollFlags::OUT, link.wants_write());
    poll(&mut [PollFd::from_borrowed_fd(fd, flags)], None).unwrap();
}

fn next(link: &mut TcpLink) -> Completion {
    loop {
        match link.poll() {
            Some(completion) => return completion,
            None => wait(link),
        }
    }
}

/// What a link makes of `bytes` from a peer that then waits: the completions up to and including `Down`.
fn fate(bytes: &[u8], posted: usize) -> Vec<Completion> {
    let (mut peer, ours) = streams();
    let mut link = TcpLink::new(ours, SLAB, "eve").unwrap();
    let mut pool = SlabPool::new(SLAB, 8 * SLAB);
    for _ in 0..posted {
        link.submit(Op::Post(pool.take().unwrap())).unwrap();
    }
    peer.write_all(bytes).unwrap();
    let mut seen = Vec::new();
    loop {
        seen.push(next(&mut link));
        if matches!(seen.last(), Some(Completion::Down(_))) {
            // The peer is told at once, although the link still exists.
            assert!(peer.read(&mut [0]).is_ok_and(|n| n == 0) || peer.write_all(&[0]).is_err());
            return seen;
        }
    }
}

fn wire_error(seen: &[Completion]) -> &WireError {
    match seen.last() {
        Some(Completion::Down(LinkError::Wire { source, peer })) if peer == "eve" => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn bytes_that_are_no_record_end_the_link() {
    let seen = fate(&[0x55; 64], 1);
    assert!(matches!(wire_error(&seen), WireError::Magic { .. }));
    assert!(matches!(seen[0], Completion::Returned(_)));
    assert_eq!(seen.len(), 2);
}

#[test]
fn complete_records_before_garbage_are_reported_first() {
    let bytes = [&record(1).encode()[..], &record(2).encode(), &[0; 64]].concat();
    let seen = fate(&bytes, 0);
    assert!(
        matches!(seen[..2], [Completion::Received(one), Completion::Received(two)] if one == record(1) && two == record(2))
    );
    assert!(matches!(wire_error(&seen), WireError::Magic { .. }));
}

#[test]
fn a_slab_larger_than_agreed_is_refused_by_its_header_alone() {
    let mut pool = SlabPool::new(4 * SLAB, 8 * SLAB);
    let large = slab(&mut pool, 40);
    let seen = fate(&large.as_bytes()[..64], 1);
    assert!(matches!(wire_error(&seen), WireError::Field { field: "body_len", .. }));
    // Also while nothing is posted: no slab is needed to judge a header.
    let seen = fate(&large.as_bytes()[..64], 0);
    assert!(matches!(wire_error(&seen), WireError::Field { field: "body_len", .. }));
}

#[test]
fn one_wrong_bit_anywhere_in_a_slab_ends_the_link_and_returns_the_slab() {
    let mut pool = SlabPool::new(SLAB, 8 * SLAB);
    let good = slab(&mut pool, 5).as_bytes().to_vec();
    let mut rng = Rng::new(1);
    for _ in 0..40 {
        let mut bytes = good.clone();
        let at = usize::try_from(rng.below(good.len() as u64)).unwrap();
        bytes[at] ^= 1 << rng.below(8);
        let seen = fate(&bytes, 2);
        wire_error(&seen);
        let returned = seen.iter().filter(|c| matches!(c, Completion::Returned(_))).count();
        assert_eq!((returned, seen.len()), (2, 3), "byte {at}");
    }
}

#[test]
fn random_bytes_after_a_valid_magic_never_panic() {
    let mut rng = Rng::new(2);
    for round in 0..60_u8 {
        let magic = if round % 2 == 0 { b"AIS1" } else { b"AIC1" };
        let noise = std::iter::repeat_with(|| rng.next_u64().to_le_bytes()).take(20).flatten();
        let bytes: Vec<u8> = magic.iter().copied().chain(noise).collect();
        wire_error(&fate(&bytes, 1));
    }
}

#[test]
fn a_peer_that_hangs_up_in_the_middle_of_a_slab_leaves_no_slab_behind() {
    let mut pool = SlabPool::new(SLAB, 8 * SLAB);
    let bytes = slab(&mut pool, 5).as_bytes().to_vec();
    for cut in [1, 63, 64, 65, 2000, bytes.len() - 1] {
        let (mut peer, ours) = streams();
        let mut link = TcpLink::new(ours, SLAB, "a peer").unwrap();
        link.submit(Op::Post(pool.take().unwrap())).unwrap();
        peer.write_all(&record(1).encode()).unwrap();
        peer.write_all(&bytes[..cut]).unwrap();
        drop(peer);
        assert!(matches!(next(&mut link), Completion::Received(_)));
        let Completion::Returned(slab) = next(&mut link) else { panic!("the posted slab is missing") };
        pool.put(slab);
        let down = next(&mut link);
        assert!(
            matches!(&down, Completion::Down(why @ LinkError::Closed { .. }) if why.to_string() == "a peer closed the connection"),
            "{down:?}"
        );
        assert!(link.poll().is_none() && link.wait_fd().is_none());
    }
}

#[test]
fn a_revocation_in_the_middle_of_a_slab_reports_what_was_whole() {
    let (mut peer, ours) = streams();
    let mut pool = SlabPool::new(SLAB, 8 * SLAB);
    let bytes = slab(&mut pool, 5).as_bytes().to_vec();
    let mut link = TcpLink::new(ours.try_clone().unwrap(), SLAB, "a peer").unwrap();
    for _ in 0..3 {
        link.submit(Op::Post(pool.take().unwrap())).unwrap();
    }
    let stream = [&record(1).encode()[..], &bytes, &record(2).encode(), &bytes[..3000]].concat();
    peer.write_all(&stream).unwrap();
    while rustix::io::ioctl_fionread(&ours).unwrap() < stream.len() as u64 {
        sleep(Duration::from_micros(100));
    }
    link.revoke().unwrap();
    assert!(peer.write_all(&bytes).is_err() || peer.read(&mut [0]).is_err(), "the peer is told at once");
    let kinds: Vec<u8> = std::iter::from_fn(|| link.poll())
        .map(|completion| match completion {
            Completion::Received(_) => b'c',
            Completion::Arrived(_) => b's',
            Completion::Returned(_) => b'r',
            Completion::Down(LinkError::Revoked { .. }) => b'd',
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(kinds, b"cscrrd");
}

/// Two threads that sleep whenever `poll` says `None`: a lost wake-up would hang this test. The receiver posts one slab at
/// a time, and late, so that both kinds of back-pressure occur.
#[test]
fn sleeping_on_the_descriptor_loses_no_wake_up() {
    const SLABS: u64 = 300;
    let (a, b) = streams();
    let mut sender = TcpLink::new(a, SLAB, "the receiver").unwrap();
    let mut receiver = TcpLink::new(b, SLAB, "the sender").unwrap();
    let receiving = spawn(move || {
        let mut pool = SlabPool::new(SLAB, 2 * SLAB);
        let (mut slabs, mut records) = (0, 0);
        while records < SLABS {
            match receiver.poll() {
                Some(Completion::Arrived(slab)) => {
                    assert_eq!(slab.header().pages, u32::try_from(slabs % 15).unwrap());
                    slabs += 1;
                    pool.put(slab.recycle());
                }
                Some(Completion::Received(control)) => {
                    records += 1;
                    assert_eq!((control.epoch, slabs), (Epoch(records), records));
                    receiver.submit(Op::Send(control)).unwrap();
                }
                Some(other) => panic!("{other:?}"),
                None if pool.in_use() == 0 => receiver.submit(Op::Post(pool.take().unwrap())).unwrap(),
                None => wait(&receiver),
            }
        }
        while receiver.wants_write() {
            wait(&receiver);
            assert!(receiver.poll().is_none());
        }
        receiver
    });
    let mut pool = SlabPool::new(SLAB, 20 * SLAB);
    let (mut sent, mut echoed) = (0, 0);
    while echoed < SLABS {
        while sent < SLABS && pool.available() > 0 {
            let full = slab(&mut pool, sent % 15);
            if let Err(refused) = sender.submit(Op::Write(full)) {
                assert_eq!(refused.why, RejectReason::Full);
                let Op::Write(slab) = refused.op else { panic!("{refused:?}") };
                pool.put(slab.recycle());
                break;
            }
            sent += 1;
            sender.submit(Op::Send(record(sent))).unwrap();
        }
        match next(&mut sender) {
            Completion::Written(slab) => pool.put(slab.recycle()),
            Completion::Received(control) => {
                echoed += 1;
                assert_eq!(control, record(echoed));
            }
            other => panic!("{other:?}"),
        }
    }
    drop(receiving.join().unwrap());
    assert!(matches!(next(&mut sender), Completion::Down(_)));
}
