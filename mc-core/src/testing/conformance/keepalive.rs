//! What a `Keepalive` must do: whole datagrams or none, never blocking, never an error because the other side is away.

use super::Case;
use crate::{transport::Keepalive, wire::beat};
use std::time::Duration;

/// Makes groups of two of the keepalive under test.
pub trait KeepaliveFabric {
    /// The keepalive.
    type K: Keepalive;

    /// Two members that hear each other.
    fn pair(&mut self) -> (Self::K, Self::K);

    /// Sends any bytes to the last pair's second member, as if from the first.
    fn inject(&mut self, bytes: &[u8]);
}

/// Runs every case. Panics at the first that fails, and prints its name.
pub fn run_all_keepalive<F: KeepaliveFabric>(fabric: &mut F) {
    use super::keepalive;
    super::run_cases!(
        fabric,
        keepalive::beats_go_both_ways,
        keepalive::silence_is_no_error,
        keepalive::wait_ends_when_a_beat_has_arrived,
        keepalive::a_long_datagram_shows_its_length,
        keepalive::an_empty_datagram_is_one,
        keepalive::beats_are_neither_doubled_nor_changed,
        keepalive::a_peer_that_is_gone_is_no_error,
    );
}

type Buffer = [u8; beat::LEN + 1];

/// The next datagram; panics if none arrives within ten seconds.
fn next<K: Keepalive>(member: &mut K) -> (usize, Buffer) {
    let mut buffer = [0; beat::LEN + 1];
    for _ in 0..1000 {
        if let Some(len) = member.receive(&mut buffer).expect("receiving works") {
            return (len, buffer);
        }
        member.wait(Duration::from_millis(10)).expect("waiting works");
    }
    panic!("no datagram arrived");
}

/// A beat arrives as it was sent.
pub fn beats_go_both_ways<F: KeepaliveFabric>(fabric: &mut F) {
    let (mut a, mut b) = fabric.pair();
    let mut beat = [0; beat::LEN];
    beat.iter_mut().zip(0..).for_each(|(byte, i)| *byte = i);
    a.send(&beat).expect("sending works");
    let (len, buffer) = next(&mut b);
    assert_eq!(&buffer[..len], beat);
    beat.reverse();
    b.send(&beat).expect("sending works");
    let (len, buffer) = next(&mut a);
    assert_eq!(&buffer[..len], beat);
}

/// Nothing there: `receive` says so at once, `wait` after its time; a zero timeout is allowed.
pub fn silence_is_no_error<F: KeepaliveFabric>(fabric: &mut F) {
    let (mut a, _b) = fabric.pair();
    let mut buffer = [0; beat::LEN + 1];
    assert_eq!(a.receive(&mut buffer).expect("receiving works"), None);
    for micros in [0, 1, 1500] {
        a.wait(Duration::from_micros(micros)).expect("waiting works");
    }
    assert_eq!(a.receive(&mut buffer).expect("receiving works"), None);
}

/// A beat ends a wait that would otherwise outlast any test; one that is already there, too.
pub fn wait_ends_when_a_beat_has_arrived<F: KeepaliveFabric>(fabric: &mut F) {
    let (mut a, mut b) = fabric.pair();
    let mut buffer = [0; beat::LEN + 1];
    a.send(&[1; beat::LEN]).expect("sending works");
    let mut got = None;
    while got.is_none() {
        b.wait(Duration::from_secs(3600)).expect("waiting works");
        got = b.receive(&mut buffer).expect("receiving works");
    }
    assert_eq!(got, Some(beat::LEN));
}

/// A longer datagram is cut off one byte past a beat's length, so that nobody takes it for one; the next is unharmed.
pub fn a_long_datagram_shows_its_length<F: KeepaliveFabric>(fabric: &mut F) {
    let (mut a, mut b) = fabric.pair();
    fabric.inject(&[9; 600]);
    assert_eq!(next(&mut b), (beat::LEN + 1, [9; beat::LEN + 1]));
    a.send(&[2; beat::LEN]).expect("sending works");
    assert_eq!(next(&mut b).0, beat::LEN);
}

/// An empty datagram is reported as such, not as silence.
pub fn an_empty_datagram_is_one<F: KeepaliveFabric>(fabric: &mut F) {
    let (_a, mut b) = fabric.pair();
    fabric.inject(&[]);
    assert_eq!(next(&mut b).0, 0);
}

/// Some may be lost; none comes twice, or altered.
pub fn beats_are_neither_doubled_nor_changed<F: KeepaliveFabric>(fabric: &mut F) {
    let (mut a, mut b) = fabric.pair();
    (0..50).for_each(|number| a.send(&[number; beat::LEN]).expect("sending works"));
    let mut heard = [false; 50];
    let (len, mut buffer) = next(&mut b);
    let mut received = Some(len);
    while let Some(len) = received {
        assert_eq!(len, beat::LEN);
        assert!(buffer[..len].iter().all(|byte| *byte == buffer[0]), "a beat was altered");
        assert!(!std::mem::replace(&mut heard[usize::from(buffer[0])], true), "a beat came twice");
        b.wait(Duration::from_millis(5)).expect("waiting works");
        received = b.receive(&mut buffer).expect("receiving works");
    }
}

/// Loss is normal: sending to nobody is no error, and neither is receiving afterwards.
pub fn a_peer_that_is_gone_is_no_error<F: KeepaliveFabric>(fabric: &mut F) {
    let (mut a, b) = fabric.pair();
    drop(b);
    let mut buffer = [0; beat::LEN + 1];
    for _ in 0..5 {
        a.send(&[3; beat::LEN]).expect("sending works");
        a.wait(Duration::from_millis(1)).expect("waiting works");
        assert_eq!(a.receive(&mut buffer).expect("receiving works"), None);
    }
}
