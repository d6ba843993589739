//! Devices for tests: `AFTERIMAGE_RDMA_DEVICES` names them (two, separated by a comma; one twice is a loop).

#![allow(dead_code, reason = "each test uses its part")]

use mc_core::{
    id::Incarnation,
    testing::skip,
    transport::Transport,
    wire::rdma::{Body, Endpoint, MESSAGE_LEN, Message, Queues, Slot},
};
use std::sync::Arc;
use transport_rdma::{
    Place, Prepared, RdmaLink,
    ffi::{Cq, Domain, Qp, Region, status_words},
    types::{Completion, Piece, QpSizes, RcPath, Request, Work},
};

/// Two devices that reach each other, or why there are none.
pub(crate) fn places() -> Option<(Place, Place)> {
    let names = std::env::var("AFTERIMAGE_RDMA_DEVICES").unwrap_or_else(|_| "rxe0,rxe1".to_owned());
    let (first, second) = names.split_once(',').unwrap_or((&names, &names));
    match Place::of(first, None).and_then(|a| Ok((a, Place::of(second, None)?))) {
        Ok(places) => Some(places),
        Err(error) => {
            skip(error);
            None
        }
    }
}

/// A peer of an `RdmaLink` that does what it likes: its own queue pair, straight on the verbs.
pub(crate) struct RawPeer {
    pub(crate) queue: Qp,
    pub(crate) send_cq: Arc<Cq>,
    pub(crate) receive_cq: Arc<Cq>,
    pub(crate) endpoint: Endpoint,
    /// What it writes from.
    pub(crate) source: Region,
    buffers: Region,
    serial: u32,
}

pub(crate) const SOURCE: usize = 1 << 20;
const RECEIVES: u32 = 64;
const STRIDE: usize = 128;

impl RawPeer {
    pub(crate) fn new(place: &Place, incarnation: Incarnation) -> Self {
        let domain = Domain::new(&place.context).unwrap();
        let (send_cq, receive_cq) =
            (Cq::new(&place.context, 256, None).unwrap(), Cq::new(&place.context, 128, None).unwrap());
        let sizes = QpSizes { send: 256, receive: RECEIVES, pieces: 1, inline: 128 };
        let queue = Qp::reliable(&domain, &send_cq, &receive_cq, sizes).unwrap();
        queue.init_reliable(true).unwrap();
        let buffers = Region::buffer(&domain, RECEIVES as usize * STRIDE).unwrap();
        for index in 0..RECEIVES {
            queue.post_receive(index.into(), &buffers, index as usize * STRIDE, 128).unwrap();
        }
        let source = Region::buffer(&domain, SOURCE).unwrap();
        let endpoint = Endpoint {
            gid: place.gid,
            lid: place.lid,
            mtu: place.mtu,
            receives: RECEIVES,
            psn: 77,
            queues: Queues::new(&[queue.number()]).unwrap(),
            beats: None,
            incarnation,
        };
        Self { queue, send_cq, receive_cq, endpoint, source, buffers, serial: 0 }
    }

    /// Connects both: the link is the side that listens first.
    pub(crate) fn meet(mut self, place: &Place, prepared: Prepared) -> (Self, RdmaLink) {
        let theirs = prepared.endpoint();
        let link = prepared.connect(&self.endpoint, "eve", false).unwrap();
        let path = RcPath {
            gid_index: place.gid_index,
            gid: theirs.gid,
            lid: theirs.lid,
            qpn: theirs.queues.numbers()[0],
            mtu: place.mtu.min(theirs.mtu),
            psn: self.endpoint.psn,
            peer_psn: theirs.psn,
            timeout: 16,
            retry: 6,
            rnr_retry: 6,
        };
        self.queue.connect(&path).unwrap();
        self.say(Body::Credits);
        (self, link)
    }

    /// Fills part of what it writes from.
    pub(crate) fn fill(&mut self, at: usize, bytes: &[u8]) {
        self.source.copy_in(at, bytes);
    }

    pub(crate) fn say(&mut self, body: Body) {
        let message = Message { credits: 0, serial: self.serial, body };
        self.serial = self.serial.wrapping_add(1);
        self.send(&message.encode());
    }

    pub(crate) fn send(&self, bytes: &[u8]) {
        self.queue.post(&[Request { id: 0, signaled: true, work: Work::Send(bytes) }]).unwrap();
    }

    pub(crate) fn write(&self, id: u64, from: usize, len: u32, to: u64, rkey: u32) -> bool {
        let piece = [Piece { addr: self.source.addr() + from as u64, length: len, lkey: self.source.lkey() }];
        self.queue.post(&[Request { id, signaled: true, work: Work::Write { from: &piece, to, rkey } }]).is_ok()
    }

    /// The next message from the link; polls the link meanwhile.
    pub(crate) fn hear(&self, link: &mut RdmaLink) -> Message {
        for _ in 0..200_000 {
            if let Some(completion) = link.poll() {
                panic!("the link says {completion:?}");
            }
            if let Some(done) = self.receive_cq.poll().unwrap() {
                assert_eq!(done.status, 0, "{}", status_words(done.status));
                let mut bytes = [0; MESSAGE_LEN];
                let index = usize::try_from(done.id).unwrap();
                self.buffers.copy_out(index * STRIDE, &mut bytes);
                return Message::decode(&bytes).unwrap();
            }
            std::thread::yield_now();
        }
        panic!("no message came");
    }

    /// The next slot that the link offers.
    pub(crate) fn slot(&self, link: &mut RdmaLink) -> Slot {
        loop {
            if let Body::Slot(slot) = self.hear(link).body {
                return slot;
            }
        }
    }

    /// How the next send or write ended.
    pub(crate) fn outcome(&self) -> Completion {
        for _ in 0..200_000 {
            if let Some(done) = self.send_cq.poll().unwrap() {
                return done;
            }
            std::thread::yield_now();
        }
        panic!("no completion came");
    }
}
