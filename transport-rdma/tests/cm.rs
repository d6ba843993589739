//! Links that rdma_cm makes: the suite that every transport passes, and what is refused.
//!
//! `AFTERIMAGE_RDMA_ADDRESSES` names two IP addresses of RDMA devices that reach each other ("10.77.1.1,10.77.1.2", the
//! lab's).

mod common;

use common::RawPeer;
use mc_core::{
    id::Incarnation,
    testing::conformance::{Fabric, run_all},
    testing::skip,
    transport::Transport,
    wire::rdma::{Beats, OFFER_LEN, Offer},
};
use rdma_sys::rdma_cm_event_type as kind;
use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};
use transport_rdma::{
    cm::{CmConnection, CmListener, CmRequest},
    ffi::{CmEvent, CmId, CmOffer},
    rc::{Breaker, Place, Prepared, RcOptions, RdmaLink},
    types::Patience,
};

const SESSION: Incarnation = Incarnation(5);

/// Two addresses that reach each other, or why there are none.
fn addresses() -> Option<(IpAddr, IpAddr)> {
    common::places()?;
    let text = std::env::var("AFTERIMAGE_RDMA_ADDRESSES").unwrap_or_else(|_| "10.77.1.1,10.77.1.2".to_owned());
    let (a, b) = text.split_once(',').expect("two addresses, separated by a comma");
    let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
    match CmListener::bind(SocketAddr::new(b, 0)) {
        Ok(_) => Some((a, b)),
        Err(error) => {
            skip(error);
            None
        }
    }
}

/// Emulated devices take their time.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn options() -> RcOptions {
    RcOptions { farewell: Duration::from_millis(500), ..RcOptions::default() }
}

fn prepare(place: &Place, session: Incarnation) -> Prepared {
    Prepared::new(place, session, &options()).unwrap()
}

fn listen((_, at): (IpAddr, IpAddr)) -> CmListener {
    CmListener::bind(SocketAddr::new(at, 0)).unwrap()
}

fn resolve((from, _): (IpAddr, IpAddr), to: SocketAddr) -> CmConnection {
    CmConnection::resolve(to, Some((from, 0).into()), soon()).unwrap()
}

struct Managed {
    addresses: (IpAddr, IpAddr),
    listener: CmListener,
    places: Option<(Place, Place)>,
    breakers: Vec<Breaker>,
    sessions: u64,
}

impl Fabric for Managed {
    type T = RdmaLink;

    fn pair(&mut self, _: usize, queue: usize) -> (RdmaLink, RdmaLink) {
        self.sessions += 1;
        let (session, options) = (Incarnation(self.sessions), RcOptions { queue, ..options() });
        let connection = resolve(self.addresses, self.listener.address());
        let (at_a, at_b) = self.places.clone().unzip();
        let at_a = at_a.unwrap_or_else(|| connection.place().unwrap());
        let listener = &mut self.listener;
        let (mut a, mut b, at_b) = thread::scope(|scope| {
            let passive = scope.spawn(move || {
                let request = listener.next(soon()).unwrap();
                assert_eq!(request.offer().incarnation, session);
                let place = at_b.unwrap_or_else(|| request.place().unwrap());
                let prepared = Prepared::new(&place, session, &options).unwrap();
                (request.accept(prepared, None, "a", soon()).unwrap().0, place)
            });
            let prepared = Prepared::new(&at_a, session, &options).unwrap();
            let (a, _) = connection.connect(prepared, None, "b", soon()).unwrap();
            let (b, at_b) = passive.join().unwrap();
            (a, b, at_b)
        });
        self.places = Some((at_a, at_b));
        while !b.is_open() {
            assert!(a.poll().is_none() && b.poll().is_none());
        }
        self.breakers = vec![a.breaker(), b.breaker()];
        (a, b)
    }

    fn cut(&mut self) {
        self.breakers.iter().for_each(Breaker::break_link);
    }

    fn settled(&mut self, first: &RdmaLink, _: usize) -> bool {
        first.is_settled()
    }

    fn idle(&mut self) {
        thread::sleep(Duration::from_micros(50));
    }
}

#[test]
fn links_that_rdma_cm_makes_conform() {
    let Some(addresses) = addresses() else { return };
    let listener = listen(addresses);
    run_all(&mut Managed { addresses, listener, places: None, breakers: Vec::new(), sessions: 0 });
}

/// A peer that does what it likes: the library's events as they come.
fn event(id: &mut CmId) -> CmEvent {
    let end = soon();
    loop {
        match id.event().unwrap() {
            Some(event) => return event,
            None if Instant::now() > end => panic!("no event came"),
            None => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// One that asks `to` for a connection, with this private data.
fn ask((from, _): (IpAddr, IpAddr), to: SocketAddr, data: &[u8]) -> CmId {
    let mut id = CmId::new().unwrap();
    id.resolve_address(Some(SocketAddr::new(from, 0)), to, Duration::from_secs(60)).unwrap();
    assert_eq!(event(&mut id).kind, kind::RDMA_CM_EVENT_ADDR_RESOLVED);
    id.resolve_route(Duration::from_secs(60)).unwrap();
    assert_eq!(event(&mut id).kind, kind::RDMA_CM_EVENT_ROUTE_RESOLVED);
    id.connect(CmOffer { qpn: 0x99, retries: (6, 6), data }).unwrap();
    id
}

/// One that listens, takes a request, and does `then` with it.
fn raw_listener((_, at): (IpAddr, IpAddr)) -> (CmId, SocketAddr) {
    let mut id = CmId::new().unwrap();
    id.bind(SocketAddr::new(at, 0)).unwrap();
    id.listen(4).unwrap();
    let address = id.local().unwrap();
    (id, address)
}

fn says(text: &str, parts: &[&str]) {
    println!("{text}");
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}

fn good_offer() -> [u8; OFFER_LEN] {
    Offer { receives: 64, beats: None, incarnation: SESSION }.encode()
}

#[test]
fn requests_that_make_no_sense_are_rejected_with_words() {
    let Some(addresses) = addresses() else { return };
    let mut listener = listen(addresses);
    let mut other_version = good_offer();
    other_version[4] = 9;
    let crc = crc32c(&other_version[..OFFER_LEN - 4]);
    other_version[OFFER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    let from = addresses.0.to_string();
    for (data, words) in
        [(&b"garbage"[..], "magic"), (&[], "magic"), (&[0x55; 56], "magic"), (&other_version, "version")]
    {
        let mut liar = ask(addresses, listener.address(), data);
        let error = listener.next(soon()).unwrap_err();
        says(&error.to_string(), &[&from, "private data", "rdma_cm offer", words]);
        let answer = event(&mut liar);
        assert_eq!((answer.kind, answer.status), (kind::RDMA_CM_EVENT_REJECTED, 28));
        assert!(String::from_utf8_lossy(&answer.data).contains(words));
    }
    // It listens on.
    let _asker = ask(addresses, listener.address(), &good_offer());
    assert_eq!(listener.next(soon()).unwrap().offer().incarnation, SESSION);
}

/// Castagnoli's, bit by bit: one use.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ 0x82f6_3b78 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// What either side says when `answer` is what happens to a request.
fn refused(addresses: (IpAddr, IpAddr), answer: impl FnOnce(CmRequest) -> String + Send) -> (String, String) {
    let mut listener = listen(addresses);
    let connection = resolve(addresses, listener.address());
    thread::scope(|scope| {
        let passive = scope.spawn(move || answer(listener.next(soon()).unwrap()));
        let prepared = prepare(&connection.place().unwrap(), SESSION);
        let active = connection.connect(prepared, None, "b", soon()).unwrap_err();
        (active.to_string(), passive.join().unwrap())
    })
}

#[test]
fn both_sides_learn_why_they_are_not_connected() {
    let Some(addresses) = addresses() else { return };
    let to = addresses.1.to_string();
    let (active, passive) = refused(addresses, |request| {
        let prepared = prepare(&request.place().unwrap(), Incarnation(6));
        request.accept(prepared, None, "a", soon()).unwrap_err().to_string()
    });
    says(&active, &["b (", &to, "rejected", "you are of session", "5", "6"]);
    says(&passive, &["a (", &addresses.0.to_string(), "offer is of session"]);
    let (active, passive) = refused(addresses, |request| {
        let several = RcOptions { queues: 3, ..options() };
        let prepared = Prepared::new(&request.place().unwrap(), SESSION, &several).unwrap();
        request.accept(prepared, None, "a", soon()).unwrap_err().to_string()
    });
    says(&active, &["rejected", "see its log"]);
    says(&passive, &["one queue pair, not 3", "endpoint exchange"]);
    let (active, _) = refused(addresses, |request| {
        request.reject("it has a standby already");
        String::new()
    });
    says(&active, &["the peer says: it has a standby already"]);
    let (active, _) = refused(addresses, |request| {
        drop(request);
        String::new()
    });
    says(&active, &["rejected", "not why"]);
}

#[test]
fn an_answer_that_makes_no_sense_is_refused() {
    let Some(addresses) = addresses() else { return };
    let (mut listener, address) = raw_listener(addresses);
    let connection = resolve(addresses, address);
    let prepared = prepare(&connection.place().unwrap(), SESSION);
    let liar = thread::spawn(move || {
        let mut id = event(&mut listener).request.unwrap();
        id.accept(CmOffer { qpn: 0x99, retries: (6, 6), data: b"garbage" }).unwrap();
        let end = event(&mut id);
        (end.kind, String::from_utf8_lossy(&end.data).into_owned())
    });
    let error = connection.connect(prepared, None, "mallory", soon()).unwrap_err();
    says(&error.to_string(), &["mallory", "private data", "magic"]);
    let (end, words) = liar.join().unwrap();
    assert!(end == kind::RDMA_CM_EVENT_REJECTED && words.contains("your private data"), "{end}: {words}");
}

#[test]
fn addresses_without_a_device_or_a_listener_are_named() {
    let Some(addresses) = addresses() else { return };
    // A network for documentation (RFC 5737): nobody has it, and there is no route, or one through a device without RDMA.
    let nowhere = "192.0.2.1:7000".parse().unwrap();
    let error = CmListener::bind(nowhere).unwrap_err();
    says(&error.to_string(), &["192.0.2.1:7000", "No RDMA device has this address", "endpoint exchange"]);
    let error = CmConnection::resolve(nowhere, None, soon()).unwrap_err().to_string();
    says(&error, &["192.0.2.1:7000", "address"]);
    assert!(error.contains("unreachable") || error.contains("No RDMA device"), "{error}");
    let closed = listen(addresses).address();
    let connection = resolve(addresses, closed);
    let prepared = prepare(&connection.place().unwrap(), SESSION);
    let error = connection.connect(prepared, None, "b", soon()).unwrap_err();
    says(&error.to_string(), &["b (", &closed.to_string(), "rejected", "nobody listens"]);
}

#[test]
fn nobody_waits_longer_than_asked_for() {
    let Some(addresses) = addresses() else { return };
    let mut listener = listen(addresses);
    let error = listener.next(Instant::now()).unwrap_err();
    says(&error.to_string(), &[&addresses.1.to_string(), "waiting for a request", "timed out"]);
    let connection = resolve(addresses, listener.address());
    let prepared = prepare(&connection.place().unwrap(), SESSION);
    let shortly = Instant::now() + Duration::from_millis(200);
    let error = connection.connect(prepared, None, "b", shortly).unwrap_err();
    says(&error.to_string(), &["b (", "waiting for its answer", "timed out after"]);
}

#[test]
fn a_queue_pair_elsewhere_or_several_are_refused_before_anything_is_sent() {
    let Some(addresses) = addresses() else { return };
    let listener = listen(addresses);
    let connection = resolve(addresses, listener.address());
    let several = RcOptions { queues: 3, ..options() };
    let prepared = Prepared::new(&connection.place().unwrap(), SESSION, &several).unwrap();
    let error = connection.connect(prepared, None, "b", soon()).unwrap_err();
    says(&error.to_string(), &["one queue pair, not 3"]);
    let connection = resolve(addresses, listener.address());
    let ours = connection.place().unwrap().context.name().to_owned();
    let (a, b) = common::places().unwrap();
    let Some(elsewhere) = [a, b].into_iter().find(|place| place.context.name() != ours) else { return };
    let error = connection.connect(prepare(&elsewhere, SESSION), None, "b", soon()).unwrap_err();
    says(&error.to_string(), &[&ours, elsewhere.context.name()]);
}

/// A link, and the peer that it has: its own queue pair, and the manager's object.
fn meet(addresses: (IpAddr, IpAddr)) -> (RdmaLink, RawPeer, CmId) {
    let (mut listener, address) = raw_listener(addresses);
    let connection = resolve(addresses, address);
    let prepared = prepare(&connection.place().unwrap(), SESSION);
    let ours = prepared.endpoint();
    let peer = thread::spawn(move || {
        let request = event(&mut listener);
        let said = Offer::decode(&request.data).unwrap();
        assert_eq!((said.receives, said.incarnation), (ours.receives, SESSION));
        let mut id = request.request.unwrap();
        let place = Place::of(&id.device().unwrap(), None).unwrap();
        let peer = RawPeer::new(&place, SESSION);
        let path = peer.queue.connect_through(&id, Patience { timeout: 16, retry: 7, rnr_retry: 7 }).unwrap();
        assert_eq!((path.qpn, path.gid), (ours.queues.numbers()[0], ours.gid));
        assert_eq!((path.retry, path.rnr_retry), (6, 6));
        let beats = Some(Beats { queue: 0x77, qkey: 0x1234, group: Some([9; 16]) });
        let data = Offer { receives: peer.endpoint.receives, beats, incarnation: SESSION }.encode();
        id.accept(CmOffer { qpn: peer.queue.number(), retries: (6, 6), data: &data }).unwrap();
        assert_eq!(event(&mut id).kind, kind::RDMA_CM_EVENT_ESTABLISHED);
        (peer, id, path)
    });
    let (link, theirs) = connection.connect(prepared, None, "eve", soon()).unwrap();
    let (peer, id, path) = peer.join().unwrap();
    assert_eq!(theirs.queues.numbers(), [peer.queue.number()]);
    assert_eq!((theirs.psn, theirs.mtu, theirs.receives), (path.psn, path.mtu, peer.endpoint.receives));
    assert_eq!(theirs.beats.map(|b| (b.queue, b.qkey)), Some((0x77, 0x1234)));
    (link, peer, id)
}

#[test]
fn a_peer_that_is_gone_has_hung_up() {
    let Some(addresses) = addresses() else { return };
    let (mut link, peer, id) = meet(addresses);
    assert!(link.is_open() && !link.hung_up() && link.hangup_fd().is_some());
    // As when its process is killed: the kernel destroys its objects, and nobody says goodbye.
    drop((peer, id));
    let end = soon();
    while !link.hung_up() {
        assert!(Instant::now() < end, "not told");
        assert!(link.poll().is_none());
        thread::sleep(Duration::from_millis(1));
    }
    assert!(link.hung_up(), "for good");
    link.revoke().unwrap();
}

#[test]
fn the_manager_learns_of_the_end_after_the_fence() {
    let Some(addresses) = addresses() else { return };
    let (mut link, peer, mut id) = meet(addresses);
    link.revoke().unwrap();
    assert!(id.event().unwrap().is_none(), "disconnected by the fence");
    drop(link);
    assert_eq!(event(&mut id).kind, kind::RDMA_CM_EVENT_DISCONNECTED);
    drop(peer);
}
