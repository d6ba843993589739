//! Every record's version 2, and the hello's versions 2 and 3, byte by byte. When one of these fails the format has changed, and
//! `wire::VERSION` or `session::VERSIONS` must.

use crate::KEY;
use mc_core::{
    id::{BlockId, Epoch, Generation, Incarnation, Name, Node, NodeId, PAGE_SIZE, WitnessId},
    register::{Mode, Owner, Register, Swap},
    slab::{SlabMeta, SlabPool},
    wire::{
        arbiter::{Answer, Ask, Asker, Outcome, Refusal, Request, Standing, Stored},
        beat::{Beat, BeatState},
        control::{Body, Control, GoodbyeReason, NackReason},
        session::{Hello, Kind, Purpose, VERSIONS, encode_frame},
    },
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// `expected` may be set with spaces.
fn same(bytes: &[u8], expected: &str) {
    assert_eq!(hex(bytes), expected.replace(char::is_whitespace, ""));
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Its identity is its letter, sixteen times.
fn node(letter: &str) -> Node {
    Node { name: name(letter), id: NodeId([letter.as_bytes()[0]; 16]) }
}

fn control(body: Body) -> [u8; 64] {
    Control { incarnation: Incarnation(0x11), generation: Generation(0x22), epoch: Epoch(0x33), body }.encode()
}

const SESSION: &str = "1100000000000000 2200000000000000 3300000000000000";

#[test]
fn control_records() {
    let expect = |body, kind: &str, abc: &str, flags: &str, crc: &str| {
        same(&control(body), &format!("41494331 {kind} 0200 {SESSION} {abc} {flags}000000 {crc}"));
    };
    let one = |a: &str| format!("{a} 0000000000000000 0000000000000000");
    let abc = "0400000000000000 0500000000000000 0600000000000000";
    let commit = |held| Body::Commit { slabs: 4, bytes: 5, device_bytes: 6, held };
    expect(commit(false), "0100", abc, "00", "22b55608");
    expect(commit(true), "0100", abc, "01", "9a1f13d5");
    expect(Body::Ack { free_slabs: 7 }, "0200", &one("0700000000000000"), "00", "9f9fdf01");
    expect(Body::Nack(NackReason::TooLarge), "0300", &one("0100000000000000"), "00", "cce3dc5d");
    expect(Body::Nack(NackReason::OutOfOrder), "0300", &one("0200000000000000"), "00", "61080ebe");
    expect(Body::Nack(NackReason::Malformed), "0300", &one("0300000000000000"), "00", "55831b1c");
    expect(Body::Nack(NackReason::Storage), "0300", &one("0400000000000000"), "00", "caa9477c");
    expect(Body::Nack(NackReason::Rehearsal), "0300", &one("0500000000000000"), "00", "fe2252de");
    expect(Body::Rehearse, "0400", &one("0000000000000000"), "00", "03e2092a");
    expect(Body::Goodbye(GoodbyeReason::Unprotected), "0500", &one("0100000000000000"), "00", "cfb45616");
    expect(Body::Goodbye(GoodbyeReason::GuestGone), "0500", &one("0200000000000000"), "00", "625f84f5");
    expect(Body::Goodbye(GoodbyeReason::Fenced), "0500", &one("0300000000000000"), "00", "56d49157");
    expect(Body::Rerouted { received: 8 }, "0600", &one("0800000000000000"), "00", "97db8111");
    expect(Body::Rehearsed, "0700", &one("0000000000000000"), "00", "faf23a8d");
    let words = "776f726473206f6e 6c79206f66207477 656e74792d666f75";
    expect(Body::Words(*b"words only of twenty-fou"), "0800", words, "00", "f52699ff");
}

#[test]
fn a_beat() {
    let beat = Beat {
        incarnation: Incarnation(0x11),
        generation: Generation(0x22),
        committed: Epoch(0x33),
        sequence: 4,
        sent_at: 5,
        echo: 6,
        echo_delay: 7,
        desired_tx_us: 8,
        required_rx_us: 9,
        detect_multiplier: 10,
        state: BeatState::Up,
        member: 11,
        meant_for: 0,
        poll: false,
        is_final: true,
        for_both: false,
    };
    let counters = "0400000000000000 0500000000000000 0600000000000000 0700000000000000";
    let text = format!(
        "41494231 0200 0200 {SESSION} {counters} 08000000 09000000 0a 02 0b 0000000000 c84b1e47f3a97c8a9a663112f06eebb7"
    );
    same(&beat.encode(&KEY), &text);
}

const NOBODY: &str = "00";

/// A register's bytes: (3, owner a 0x55), and its mode and standby (its instance is 0x66).
fn held(mode: &str, standby: &str) -> String {
    let standby = if standby == NOBODY { "00".repeat(72) } else { format!("{} 6600000000000000", named(standby)) };
    format!("0300000000000000 {mode} 000000000000 {} 5500000000000000 {standby}", named("61"))
}

/// The node of that letter.
fn named(letter: &str) -> String {
    format!("01{letter}{} {}", "00".repeat(46), letter.repeat(16))
}

fn protected() -> Mode {
    Mode::Protected { standby: Owner { node: node("b"), instance: 0x66 } }
}

fn register(mode: Mode) -> Register {
    Register { generation: Generation(3), owner: Owner { node: node("a"), instance: 0x55 }, mode }
}

#[test]
fn arbiter_requests() {
    let (vm, vacant) = (format!("02766d{}", "00".repeat(45)), "00".repeat(160));
    let (solo, protected) = (register(Mode::Solo), register(protected()));
    let expect = |seen, ask, kind: &str, expect: &str, new: &str, seen_bytes: &str, crc: &str| {
        let asker = Asker { node: node("c").id, seen, boot: 0x99 };
        let bytes = Request { id: 0x77, vm: name("vm"), asker, ask }.encode();
        let head = format!("41494132 {kind} 0200 7700000000000000 {vm} {}", "63".repeat(16));
        same(&bytes, &format!("{head} 9900000000000000 {expect} {new} {seen_bytes} 00000000 {crc}"));
    };
    expect(None, Ask::Read, "0100", "0000000000000000", &vacant, &vacant, "58c4aaa1");
    let cas = Ask::Cas(Swap { expect: Generation(2), new: protected, contested: false });
    let (new, seen) = (held("0200", "62"), held("0100", NOBODY));
    expect(Some(solo), cas, "0200", "0200000000000000", &new, &seen, "10612adf");
}

#[test]
fn arbiter_answers() {
    let vm = format!("02766d{}", "00".repeat(45));
    let solo = register(Mode::Solo);
    let expect = |outcome, standing, held: Option<Register>, head: &str, register: &str, crc: &str| {
        let (witness, probe_age_ms) = (WitnessId([0x88; 16]), held.map(|_| 0x44));
        let answer = Answer { id: 0x77, vm: name("vm"), witness, boot: 0x99, probe_age_ms, standing, outcome, held };
        let age = if held.is_some() { "44000000" } else { "ffffffff" };
        let (kind, rest) = head.split_once(' ').unwrap();
        let who = format!("{} 9900000000000000", "88".repeat(16));
        let text = format!("41495732 {kind} 0200 7700000000000000 {vm} {who} {age} {rest} {register} 00000000 {crc}");
        same(&answer.encode(), &text);
    };
    let (vacant, held) = ("00".repeat(160), held("0100", NOBODY));
    expect(Outcome::Holds, Standing::Settled, None, "0300 0000 0100", &vacant, "23eb0531");
    expect(Outcome::Won, Standing::Settled, Some(solo), "0400 0000 0100", &held, "6f382369");
    expect(Outcome::Lost, Standing::Settled, Some(solo), "0500 0000 0100", &held, "cb4292b5");
    expect(Outcome::Failed, Standing::Settled, None, "0600 0000 0100", &vacant, "04e04591");
    let stale = Outcome::Refused(Refusal::StaleBoot);
    expect(stale, Standing::Settled, Some(solo), "0700 0100 0100", &held, "4c26f0d3");
    let waiting = Outcome::Refused(Refusal::Waiting);
    expect(waiting, Standing::Waiting, Some(solo), "0700 0200 0200", &held, "61b297f2");
    let disputed = Outcome::Refused(Refusal::Disputed);
    expect(disputed, Standing::Disputed, Some(solo), "0700 0300 0300", &held, "7a3eb5ed");
    let stranger = Outcome::Refused(Refusal::NotEntitled);
    expect(stranger, Standing::Settled, Some(solo), "0700 0400 0100", &held, "99c69b6c");
}

#[test]
fn a_stored_register() {
    let stored = Stored { vm: name("vm"), register: register(protected()) };
    let vm = format!("02766d{}", "00".repeat(45));
    same(&stored.encode(), &format!("41495232 0000 0200 {vm} {} 00000000 3c9c1a75", held("0200", "62")));
}

const NUMBERS: &str = "00000100 03000000 00000000 1100000000000000 2200000000000000";

fn hello() -> Hello {
    Hello {
        versions: VERSIONS,
        slab_size: 65_536,
        staging_slabs: 3,
        rdma: false,
        incarnation: Incarnation(0x11),
        generation: Generation(0x22),
        purpose: Purpose::Protect(name("vm")),
        node: node("a"),
        witness: WitnessId([0x88; 16]),
        instance: 0x55,
        beat_key: KEY,
        beat_port: 0x1234,
        detect_multiplier: 5,
        desired_tx_us: 6,
        required_rx_us: 7,
    }
}

/// A hello's bytes: its range of versions, the VM's name, and the byte of its purpose.
fn hello_bytes(versions: &str, vm: &str, purpose: &str) -> String {
    let vm = format!("{:02x}{}{}", vm.len(), hex(vm.as_bytes()), "00".repeat(47 - vm.len()));
    let key = "2a".repeat(32);
    let ids = format!("{} {} 5500000000000000", "61".repeat(16), "88".repeat(16));
    let node = format!("0161{}", "00".repeat(46));
    format!("{versions} {NUMBERS} {vm} {node} {key} 3412 05 {purpose} 00000000 06000000 07000000 {ids}")
}

fn bytes(text: &str) -> Vec<u8> {
    let text = text.replace(' ', "");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

const PROBE: &str = "keepalive-probe";

#[test]
fn a_hello_and_its_frame() {
    let body = hello_bytes("0200 0300", "vm", "00");
    let frame = format!("41494831 0100 0000 d8000000 2cf6f7d1 {body}");
    same(&encode_frame(Kind::Hello, &hello().encode()), &frame);
    let probe = Hello { purpose: Purpose::Probe, ..hello() };
    same(&probe.encode(), &hello_bytes("0200 0300", PROBE, "01"));
    for hello in [hello(), probe] {
        assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
    }
    same(&encode_frame(Kind::Profile, b"{}"), "41494831 0200 0000 02000000 e50803db 7b7d");
    same(&encode_frame(Kind::Ready, &[]), "41494831 0300 0000 00000000 a5abe4fd");
    same(&encode_frame(Kind::Refuse, b"no"), "41494831 0400 0000 02000000 6b43a6f8 6e6f");
}

/// What a program of version 2 says: a probe was the VM of a name, and the byte of the purpose was zero.
#[test]
fn a_hello_of_version_2_is_understood() {
    let web = Hello { versions: (2, 2), ..hello() };
    let probe = Hello { purpose: Purpose::Probe, ..web };
    assert_eq!(Hello::decode(&bytes(&hello_bytes("0200 0200", "vm", "00"))), Ok(web));
    assert_eq!(Hello::decode(&bytes(&hello_bytes("0200 0200", PROBE, "00"))), Ok(probe));
    assert_eq!(Hello::decode(&bytes(&hello_bytes("0200 0200", "vm", "ff"))), Ok(web), "a zero field is ignored");
    // Since version 3 a VM may have that name.
    let named = Hello { purpose: Purpose::Protect(name(PROBE)), ..hello() };
    assert_eq!(Hello::decode(&bytes(&hello_bytes("0200 0300", PROBE, "00"))), Ok(named));
    let unknown = Hello::decode(&bytes(&hello_bytes("0200 0300", "vm", "02"))).unwrap_err();
    assert_eq!(unknown.to_string(), "hello: field purpose = 2: this build knows no such session");
}

/// What a program of version 1 says. It was shorter.
#[test]
fn a_hello_of_version_1_is_refused_by_its_version() {
    let names = format!("02766d{} 0161{}", "00".repeat(45), "00".repeat(46));
    let timing = format!("3412 05 0000000000 06000000 07000000 {}", "00".repeat(32));
    let text = format!("0100 0100 {NUMBERS} {names} {} {timing}", "2a".repeat(32));
    let refusal = Hello::decode(&bytes(&text)).unwrap_err();
    assert_eq!(refusal.to_string(), "hello: version 1, this build speaks 2 to 3");
}

#[test]
fn a_slab() {
    let mut writer = SlabPool::new(16 << 10, 16 << 10).take().unwrap().writer();
    writer.page(BlockId(2), 0x5000, &[0xab; PAGE_SIZE]).unwrap();
    writer.zero(BlockId(3), 0x7000).unwrap();
    writer.zero(BlockId(3), 0x8000).unwrap();
    writer.device(0x10, b"state").unwrap();
    let (incarnation, generation, epoch) = (Incarnation(0x11), Generation(0x22), Epoch(0x33));
    let slab = writer.seal(SlabMeta { incarnation, generation, epoch, index: 0x44 });
    let head =
        format!("41495331 0200 0000 {SESSION} 44000000 03000000 38100000 03000000 0000000000000000 0e768c5f 9a18c35f");
    let pages = format!("01 00 0200 01000000 0050000000000000 {}", "ab".repeat(PAGE_SIZE));
    let zeros = "02 00 0300 02000000 0070000000000000";
    let device = "03 00 0000 05000000 1000000000000000 7374617465 000000";
    same(slab.as_bytes(), &format!("{head} {pages} {zeros} {device}"));
}
