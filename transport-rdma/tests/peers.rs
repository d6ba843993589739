//! Peers that are not ours: one built on the `ibverbs` crate alone, and ones that lie.

mod common;

use common::RawPeer;
use ibverbs::{Gid, QueuePairEndpoint, ibv_qp_type};
use mc_core::{
    id::{Epoch, Generation, Incarnation, PAGE_SIZE},
    slab::{SlabMeta, SlabPool},
    transport::{Completion, LinkError, Op, Transport},
    wire::{
        control::{self, Control},
        rdma::{Body, Endpoint, MESSAGE_LEN, Message, Queues, Slot},
    },
};
use std::{ffi::CStr, time::Duration};
use transport_rdma::{Place, Prepared, RcOptions, RdmaLink, ffi::status_words, types::REMOTE_ACCESS};

const SLAB: usize = 16 << 10;

fn record(number: u64) -> Control {
    let (incarnation, generation) = (Incarnation(5), Generation(2));
    Control { incarnation, generation, epoch: Epoch(number), body: control::Body::Ack { free_slabs: 9 } }
}

fn next(link: &mut RdmaLink) -> Completion {
    for _ in 0..400_000 {
        if let Some(completion) = link.poll() {
            return completion;
        }
        std::thread::yield_now();
    }
    panic!("the link reports nothing");
}

/// Everything up to `Down`, whose words are returned; every posted slab must come back.
fn fate(link: &mut RdmaLink, posted: usize) -> String {
    let mut returned = 0;
    loop {
        match next(link) {
            Completion::Returned(_) => returned += 1,
            Completion::Down(error) => {
                assert_eq!(returned, posted, "slabs that came back before: {error}");
                return error.to_string();
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_peer_built_on_another_library_talks_to_our_queue_pair() {
    let Some((ours, theirs)) = common::places() else { return };
    let devices = ibverbs::devices().unwrap();
    let name = theirs.context.name();
    let has_name = |d: &ibverbs::Device<'_>| d.name().and_then(|n: &CStr| n.to_str().ok()) == Some(name);
    let context = devices.iter().find(has_name).unwrap().open().unwrap();
    let (domain, cq) = (context.alloc_pd().unwrap(), context.create_cq(64, 0).unwrap());
    let prepared = Prepared::new(&ours, Incarnation(5), &RcOptions::default()).unwrap();
    let us = prepared.endpoint();
    let mut builder = domain.create_qp(&cq, &cq, ibv_qp_type::IBV_QPT_RC);
    builder.set_gid_index(theirs.gid_index.into()).set_rq_psn(us.psn).set_timeout(16).set_rnr_retry(6);
    builder.set_max_send_wr(16).set_max_recv_wr(16);
    let queue = builder.build().unwrap();
    let endpoint = Endpoint {
        gid: theirs.gid,
        lid: theirs.lid,
        mtu: theirs.mtu,
        receives: 8,
        psn: 0,
        queues: Queues::new(&[queue.endpoint().num]).unwrap(),
        beats: None,
        incarnation: Incarnation(5),
    };
    let mut link = prepared.connect(&endpoint, "ibverbs", false).unwrap();
    let mut gid = Gid::default();
    gid.as_mut().raw = us.gid;
    let mut queue =
        queue.handshake(QueuePairEndpoint { num: us.queues.numbers()[0], lid: us.lid, gid: Some(gid) }).unwrap();

    let mut memory = domain.allocate::<u8>(16 * MESSAGE_LEN).unwrap();
    for index in 0..8 {
        let range = index * MESSAGE_LEN..(index + 1) * MESSAGE_LEN;
        // SAFETY: the memory lives until the end of the test, and is read only once the receive has completed.
        unsafe { queue.post_receive(&mut memory, range, index as u64) }.unwrap();
    }
    for (serial, number) in (0_u32..).zip([10, 11]) {
        let message = Message { credits: 0, serial, body: Body::Control(record(number).encode()) };
        let range = (8 + serial as usize) * MESSAGE_LEN..(9 + serial as usize) * MESSAGE_LEN;
        memory[range.clone()].copy_from_slice(&message.encode());
        // SAFETY: as above; nobody changes these bytes again.
        unsafe { queue.post_send(&mut memory, range, 100) }.unwrap();
        assert!(matches!(next(&mut link), Completion::Received(got) if got == record(number)));
    }
    link.submit(Op::Send(record(12))).unwrap();
    let received = loop {
        let mut completions = [ibverbs::ibv_wc::default(); 4];
        let found =
            cq.poll(&mut completions).unwrap().iter().find(|c| c.wr_id() < 8).map(|c| (c.is_valid(), c.wr_id()));
        if let Some((valid, index)) = found {
            assert!(valid);
            break usize::try_from(index).unwrap();
        }
        assert!(link.poll().is_none());
    };
    let bytes = &memory[received * MESSAGE_LEN..(received + 1) * MESSAGE_LEN];
    let message = Message::decode(bytes).unwrap();
    assert_eq!(message.body, Body::Control(record(12).encode()));
    drop(queue);
}

/// A link with two slabs posted, a peer that may lie, and the first slot.
fn victim(places: &(Place, Place)) -> (RawPeer, RdmaLink, Slot, SlabPool) {
    let prepared = Prepared::new(&places.1, Incarnation(5), &RcOptions::default()).unwrap();
    let (peer, mut link) = RawPeer::new(&places.0, Incarnation(5)).meet(&places.0, prepared);
    let mut pool = SlabPool::new(SLAB, 4 * SLAB);
    for _ in 0..2 {
        link.submit(Op::Post(pool.take().unwrap())).unwrap();
    }
    let slot = peer.slot(&mut link);
    assert_eq!(peer.outcome().status, 0);
    (peer, link, slot, pool)
}

/// The bytes of a good slab.
fn good_slab(pool: &mut SlabPool) -> Vec<u8> {
    let mut writer = pool.take().unwrap().writer();
    writer.page(mc_core::id::BlockId(0), 0, &[7; PAGE_SIZE]).unwrap();
    let (incarnation, generation) = (Incarnation(5), Generation(2));
    let sealed = writer.seal(SlabMeta { incarnation, generation, epoch: Epoch(1), index: 0 });
    let bytes = sealed.as_bytes().to_vec();
    pool.put(sealed.recycle());
    bytes
}

#[test]
fn peers_that_lie_are_refused_with_words() {
    let Some(places) = common::places() else { return };
    type Lie = fn(&mut RawPeer, Slot, &[u8]);
    let lies: [(&str, Lie); 11] = [
        ("not what the slab's header says", |peer, slot, good| {
            peer.fill(0, good);
            assert!(peer.write(1, 0, u32::try_from(good.len()).unwrap(), slot.addr, slot.rkey));
            peer.say(Body::Slab { slot: 0, len: u32::try_from(good.len()).unwrap() + 8 });
        }),
        ("slab header: magic", |peer, _, good| {
            peer.say(Body::Slab { slot: 0, len: u32::try_from(good.len()).unwrap() });
        }),
        ("slab body: CRC32C", |peer, slot, good| {
            let mut damaged = good.to_vec();
            damaged[good.len() - 1] ^= 1;
            peer.fill(0, &damaged);
            assert!(peer.write(1, 0, u32::try_from(good.len()).unwrap(), slot.addr, slot.rkey));
            peer.say(Body::Slab { slot: 0, len: u32::try_from(good.len()).unwrap() });
        }),
        ("not the oldest that was offered", |peer, _, _| peer.say(Body::Slab { slot: 1, len: 100 })),
        ("not the oldest that was offered", |peer, _, _| peer.say(Body::Part { slot: 1, len: 100 })),
        ("part bytes", |peer, slot, _| peer.say(Body::Part { slot: 0, len: slot.len + 1 })),
        ("more than receives were used", |peer, _, _| {
            let message = Message { credits: 999, serial: 1, body: Body::Credits };
            peer.send(&message.encode());
        }),
        ("not the one after the last", |peer, _, _| {
            let message = Message { credits: 0, serial: 7, body: Body::Credits };
            peer.send(&message.encode());
        }),
        ("RDMA message: CRC32C", |peer, _, _| peer.send(&[0x55; MESSAGE_LEN])),
        ("RDMA message: 12 bytes, needs 80", |peer, _, _| peer.send(&[0x55; 12])),
        ("control record: magic", |peer, _, _| peer.say(Body::Control([3; control::LEN]))),
    ];
    for (words, lie) in lies {
        let (mut peer, mut link, slot, mut pool) = victim(&places);
        let good = good_slab(&mut pool);
        lie(&mut peer, slot, &good);
        let fate = fate(&mut link, 2);
        assert!(fate.contains(words) && fate.contains("eve"), "{words}: {fate}");
    }
}

#[test]
fn nothing_is_written_outside_a_slab_nor_with_a_key_of_an_earlier_incarnation() {
    let Some(places) = common::places() else { return };
    // Half of it over the slab's end.
    let (peer, mut link, slot, _pool) = victim(&places);
    assert!(peer.write(1, 0, 4096, slot.addr + SLAB as u64 - 2048, slot.rkey));
    let outcome = peer.outcome();
    assert_eq!(outcome.status, REMOTE_ACCESS, "{}", status_words(outcome.status));
    let mut slabs = Vec::new();
    loop {
        match next(&mut link) {
            Completion::Returned(slab) => slabs.push(slab),
            Completion::Down(error) => break assert!(error.to_string().contains("eve"), "{error}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(slabs.iter_mut().all(|s| s.receive_buffer().iter().all(|b| *b == 0)), "a refused write has left bytes");

    // The same slab, posted again in another session: the old key is worth nothing.
    let prepared = Prepared::new(&places.1, Incarnation(6), &RcOptions::default()).unwrap();
    let (peer, mut link) = RawPeer::new(&places.0, Incarnation(6)).meet(&places.0, prepared);
    slabs.into_iter().for_each(|slab| link.submit(Op::Post(slab)).unwrap());
    let fresh = peer.slot(&mut link);
    assert_eq!(peer.outcome().status, 0);
    assert_ne!(fresh.rkey, slot.rkey);
    assert!(peer.write(1, 0, 4096, slot.addr, slot.rkey));
    assert_eq!(peer.outcome().status, REMOTE_ACCESS);
    loop {
        match next(&mut link) {
            Completion::Returned(mut slab) => assert!(slab.receive_buffer().iter().all(|b| *b == 0)),
            Completion::Down(_) => break,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn sessions_that_do_not_fit_are_refused_before_they_begin() {
    let Some(places) = common::places() else { return };
    let peer = RawPeer::new(&places.0, Incarnation(8));
    let prepared = Prepared::new(&places.1, Incarnation(9), &RcOptions::default()).unwrap();
    let error = prepared.connect(&peer.endpoint, "mallory", false).unwrap_err().to_string();
    assert!(error.contains("mallory") && error.contains("session"), "{error}");
    let options = RcOptions { queues: 3, ..RcOptions::default() };
    let prepared = Prepared::new(&places.1, Incarnation(8), &options).unwrap();
    let error = prepared.connect(&peer.endpoint, "mallory", false).unwrap_err().to_string();
    assert!(error.contains("1 queue pairs, this side 3"), "{error}");
    let error = Place::of("no_such_device", None).unwrap_err().to_string();
    assert!(error.contains("no_such_device") && error.contains("rdma devices"), "{error}");
    let error = Place::of(places.0.context.name(), Some(200)).unwrap_err().to_string();
    assert!(error.contains("GID"), "{error}");
}

#[test]
fn a_peer_that_vanishes_is_named_with_all_that_is_known() {
    let Some(places) = common::places() else { return };
    let options = RcOptions { timeout: Some(14), retry: 1, ..RcOptions::default() };
    let prepared = Prepared::new(&places.1, Incarnation(5), &options).unwrap();
    let (peer, mut link) = RawPeer::new(&places.0, Incarnation(5)).meet(&places.0, prepared);
    while !link.is_open() {
        assert!(link.poll().is_none());
    }
    drop(peer); // its queue pair is destroyed, without a word
    link.submit(Op::Send(record(1))).unwrap();
    let Completion::Down(error) = next(&mut link) else { panic!("not down") };
    let text = error.to_string();
    let qpn = format!("{:#x}", link.qpn());
    for part in ["eve", qpn.as_str(), "SEND of a control record", "retry", "after", "timeout 14 (67.1ms) x 2", "4791"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(matches!(error, LinkError::Network(_)));
    assert!(link.gives_up_after() > Duration::from_millis(134));
    println!("{text}");
}
