//! Version 1, byte by byte. When one of these fails the format has changed, and `wire::VERSION` must.

use crate::KEY;
use mc_core::{
    id::{BlockId, Epoch, Generation, Incarnation, Name, PAGE_SIZE},
    register::{Mode, Owner, Register},
    slab::{SlabMeta, SlabPool},
    wire::{
        arbiter::{self, Message},
        beat::{Beat, BeatState},
        control::{Body, Control, GoodbyeReason, NackReason},
        rdma::{Beats, Offer},
        session::{Hello, Kind, encode_frame},
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

fn control(body: Body) -> [u8; 64] {
    Control { incarnation: Incarnation(0x11), generation: Generation(0x22), epoch: Epoch(0x33), body }.encode()
}

const SESSION: &str = "1100000000000000 2200000000000000 3300000000000000";

#[test]
fn control_records() {
    let expect = |body, kind: &str, abc: &str, crc: &str| {
        same(&control(body), &format!("41494331 {kind} 0100 {SESSION} {abc} 00000000 {crc}"));
    };
    let one = |a: &str| format!("{a} 0000000000000000 0000000000000000");
    let abc = "0400000000000000 0500000000000000 0600000000000000";
    expect(Body::Commit { slabs: 4, bytes: 5, device_bytes: 6 }, "0100", abc, "d96e6017");
    expect(Body::Ack { free_slabs: 7 }, "0200", &one("0700000000000000"), "6444e91e");
    expect(Body::Nack(NackReason::TooLarge), "0300", &one("0100000000000000"), "3738ea42");
    expect(Body::Nack(NackReason::OutOfOrder), "0300", &one("0200000000000000"), "9ad338a1");
    expect(Body::Nack(NackReason::Malformed), "0300", &one("0300000000000000"), "ae582d03");
    expect(Body::Nack(NackReason::Storage), "0300", &one("0400000000000000"), "31727163");
    expect(Body::Registered, "0400", &one("0000000000000000"), "f8393f35");
    expect(Body::Goodbye(GoodbyeReason::Unprotected), "0500", &one("0100000000000000"), "346f6009");
    expect(Body::Goodbye(GoodbyeReason::GuestGone), "0500", &one("0200000000000000"), "9984b2ea");
    expect(Body::Goodbye(GoodbyeReason::Fenced), "0500", &one("0300000000000000"), "ad0fa748");
    expect(Body::Rerouted { received: 8 }, "0600", &one("0800000000000000"), "6c00b70e");
}

#[test]
fn an_offer() {
    let beats = Beats { queue: 0x55, qkey: 0x66, group: Some([0xff; 16]) };
    let offer = Offer { receives: 0x44, beats: Some(beats), incarnation: Incarnation(0x11) };
    let group = "ffffffffffffffff ffffffffffffffff";
    same(&offer.encode(), &format!("41494f31 0100 01 03 1100000000000000 44000000 55000000 66000000 {group} 1054f88b"));
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
        "41494231 0100 0200 {SESSION} {counters} 08000000 09000000 0a 02 0b 0000000000 c02cfb43de6c4cc4ac49930d0ac7b74d"
    );
    same(&beat.encode(&KEY), &text);
}

#[test]
fn arbiter_messages() {
    let owner = Owner { node: name("a"), instance: 0x55 };
    let register = |mode| Register { generation: Generation(3), owner, mode };
    let none = "00".repeat(48);
    let named = |letter: &str| format!("01{letter}{}", "00".repeat(46));
    let held = |mode: &str, standby: &str| {
        format!("0300000000000000 5500000000000000 {mode} 000000000000 {} {standby}", named("61"))
    };
    let vacant = "00".repeat(120);
    let (vm, zero) = (format!("02766d{}", "00".repeat(45)), "00".repeat(12));
    let expect = |body, kind: &str, expect: &str, register: &str, crc: &str| {
        let bytes = Message { id: 0x77, vm: name("vm"), body }.encode();
        same(&bytes, &format!("41494131 {kind} 0100 7700000000000000 {vm} {expect} {register} {zero} {crc}"));
    };
    let (solo, protected) = (register(Mode::Solo), register(Mode::Protected { standby: name("b") }));
    let zeros = "0000000000000000";
    expect(arbiter::Body::Read, "0100", zeros, &vacant, "b1484c5a");
    let cas = arbiter::Body::Cas { expect: Generation(2), new: protected };
    expect(cas, "0200", "0200000000000000", &held("0200", &named("62")), "3bab9d81");
    expect(arbiter::Body::Holds(None), "0300", zeros, &vacant, "bbef8918");
    expect(arbiter::Body::Won(solo), "0400", zeros, &held("0100", &none), "08c11d42");
    expect(arbiter::Body::Lost(Some(solo)), "0500", zeros, &held("0100", &none), "8d127f63");
    expect(arbiter::Body::Failed, "0600", zeros, &vacant, "2a7260bc");
}

#[test]
fn a_hello_and_its_frame() {
    let hello = Hello {
        versions: (1, 2),
        slab_size: 65_536,
        staging_slabs: 3,
        rdma: false,
        incarnation: Incarnation(0x11),
        generation: Generation(0x22),
        vm: name("vm"),
        node: name("a"),
        beat_key: KEY,
        beat_port: 0x1234,
        detect_multiplier: 5,
        desired_tx_us: 6,
        required_rx_us: 7,
    };
    let names = format!("02766d{} 0161{}", "00".repeat(45), "00".repeat(46));
    let key = "2a".repeat(32);
    let timing = format!("3412 05 0000000000 06000000 07000000 {}", "00".repeat(32));
    let numbers = "0100 0200 00000100 03000000 00000000 1100000000000000 2200000000000000";
    let frame = format!("41494831 0100 0000 d0000000 00537dde {numbers} {names} {key} {timing}");
    same(&encode_frame(Kind::Hello, &hello.encode()), &frame);
    same(&encode_frame(Kind::Profile, b"{}"), "41494831 0200 0000 02000000 e50803db 7b7d");
    same(&encode_frame(Kind::Ready, &[]), "41494831 0300 0000 00000000 a5abe4fd");
    same(&encode_frame(Kind::Refuse, b"no"), "41494831 0400 0000 02000000 6b43a6f8 6e6f");
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
        format!("41495331 0100 0000 {SESSION} 44000000 03000000 38100000 03000000 0000000000000000 0e768c5f 6308f0f8");
    let pages = format!("01 00 0200 01000000 0050000000000000 {}", "ab".repeat(PAGE_SIZE));
    let zeros = "02 00 0300 02000000 0070000000000000";
    let device = "03 00 0000 05000000 1000000000000000 7374617465 000000";
    same(slab.as_bytes(), &format!("{head} {pages} {zeros} {device}"));
}
