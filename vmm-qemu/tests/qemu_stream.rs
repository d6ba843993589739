//! QEMU's stream: real captures, cut and damaged in every way.

#![allow(missing_docs, reason = "a test")]

mod qemu_support;

use mc_core::id::{BlockId, PAGE_SIZE};
use proptest::prelude::*;
use qemu_support::{Memory, fixture};
use std::sync::OnceLock;
use vmm_qemu::{
    blocks::RamBlock,
    stream::{Emitter, Kind, Outcome, Parser, Problem, StandbyStream, StreamError, fuzz},
};

const PLAIN: &str = "plain-tcp-16m.stream.zst";
const PLAIN_10: &str = "plain-tcp-16m-qemu10.0.2.stream.zst";
const SHARED: &str = "x-ignore-shared-16m.stream.zst";
const COLO: &str = "colo-16m-12ckpt.p2s.stream.zst";
/// Bytes of the COLO capture before QEMU waits for READY.
const COLO_FIRST: usize = 711_765;

/// Feeds `bytes` in pieces as they might be received; says what happened.
fn feed(parser: &mut Parser, bytes: &[u8], piece: usize, sink: &mut Memory) -> Result<Vec<Outcome>, StreamError> {
    let (mut start, mut end, mut outcomes) = (0, 0, Vec::new());
    while end < bytes.len() {
        end = (end + piece).min(bytes.len());
        loop {
            let fed = parser.feed(&bytes[start..end], sink)?;
            start += fed.used;
            match fed.outcome {
                Outcome::More(_) => break,
                Outcome::NoRoom => {}
                other => outcomes.push(other),
            }
        }
    }
    Ok(outcomes)
}

fn parse(kind: Kind, bytes: &[u8], piece: usize) -> Result<(Memory, Parser), StreamError> {
    let mut sink = Memory::new(&fuzz::blocks());
    let mut parser = Parser::new(kind, fuzz::blocks())?;
    feed(&mut parser, bytes, piece, &mut sink)?;
    Ok((sink, parser))
}

fn emit(machine: &str, memory: &Memory) -> Vec<u8> {
    let mut out = Vec::new();
    let mut emitter = Emitter::new(&mut out, &memory.blocks);
    emitter.header(machine, false).unwrap();
    emitter.ram_start(false).unwrap();
    emitter.ram_end_begin().unwrap();
    for (id, block) in (0..).zip(&memory.ram) {
        for (index, page) in (0..).zip(block.as_chunks::<PAGE_SIZE>().0) {
            emitter.page(BlockId(id), index * PAGE_SIZE as u64, page).unwrap();
        }
    }
    emitter.section_end().unwrap();
    emitter.finish(&memory.device, br#"{"devices":[{}]}"#).unwrap();
    out
}

#[test]
fn plain_captures_parse_and_round_trip() {
    for (name, machine) in [(PLAIN, "pc-i440fx-7.2"), (PLAIN_10, "pc-i440fx-10.0")] {
        let bytes = fixture(name);
        let (memory, parser) = parse(Kind::Plain, &bytes, 100_000).unwrap();
        assert_eq!(parser.machine(), machine);
        assert_eq!(parser.offset(), bytes.len() as u64);
        assert!(memory.pages > 70, "{}", memory.pages);
        assert_eq!((memory.device[0], *memory.device.last().unwrap()), (4, 0));
        assert!((10_000..20_000).contains(&memory.device.len()), "{}", memory.device.len());
        let again = emit(machine, &memory);
        let (second, _) = parse(Kind::Plain, &again, 4096).unwrap();
        assert!(second.ram == memory.ram && second.device == memory.device, "the round trip changed {name}");
    }
}

#[test]
fn the_shared_capture_parses_and_its_standby_stream_too() {
    let bytes = fixture(SHARED);
    let (memory, parser) = parse(Kind::Plain, &bytes, 1 << 20).unwrap();
    let others: Vec<_> = (0..).map(BlockId).zip(memory.ram.iter().map(Vec::as_slice)).skip(1).collect();
    let stream = StandbyStream {
        machine: parser.machine(),
        blocks: &memory.blocks,
        shared: BlockId(0),
        others: &others,
        device: &memory.device,
    };
    let mut out = Vec::new();
    stream.write(&mut out).unwrap();
    // A standby stream is for QEMU: its description is empty. Give it one, as the parser looks for it.
    assert_eq!(&out[out.len() - 7..], b"\x06\0\0\0\x02{}");
    out.truncate(out.len() - 7);
    out.extend_from_slice(b"\x06\0\0\0\x10{\"devices\":[{}]}");
    let (second, _) = parse(Kind::Plain, &out, 777).unwrap();
    assert!(second.ram[1..] == memory.ram[1..] && second.device == memory.device);
}

fn colo() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| fixture(COLO))
}

fn parse_colo(piece: usize, refuse_every: usize) -> (Vec<Memory>, usize) {
    let mut sink = Memory::new(&fuzz::blocks());
    sink.refuse_every = refuse_every;
    let mut parser = Parser::new(Kind::Colo, fuzz::blocks()).unwrap();
    assert_eq!(feed(&mut parser, &colo()[..COLO_FIRST], piece, &mut sink).unwrap(), [Outcome::Captured]);
    let mut checkpoints = vec![sink.clone()];
    let mut asked = 0;
    let mut rest = &colo()[COLO_FIRST..];
    while !rest.is_empty() {
        let end = rest.len().min(piece);
        let fed = parser.feed(&rest[..end], &mut sink).unwrap();
        rest = &rest[fed.used..];
        match fed.outcome {
            Outcome::Ready => {
                asked += 1;
                sink.device.clear();
            }
            Outcome::Captured => {
                assert!(parser.in_checkpoints());
                checkpoints.push(sink.clone());
            }
            Outcome::NoRoom => {}
            Outcome::More(wanted) => assert!(wanted > end - fed.used && wanted < 5000, "{wanted}"),
        }
    }
    (checkpoints, asked)
}

#[test]
fn the_colo_capture_parses_whatever_the_pieces_and_the_room() {
    let (checkpoints, asked) = parse_colo(1 << 20, 0);
    assert_eq!((checkpoints.len(), asked), (13, 12));
    assert!(checkpoints[1..].iter().all(|checkpoint| checkpoint.device.len() == 12_894));
    // The guest writes its counter into each of 64 pages: they agree in every checkpoint, and grow.
    let counter = |memory: &Memory, page: usize| {
        let at = 0x20_0000 + page * PAGE_SIZE;
        u32::from_le_bytes(memory.block("pc.ram")[at..at + 4].try_into().unwrap())
    };
    for pair in checkpoints.windows(2) {
        assert!(counter(&pair[0], 0) < counter(&pair[1], 0));
        assert!((0..64).all(|page| counter(&pair[1], page) == counter(&pair[1], 0)));
    }
    for (piece, refuse_every) in [(300_000, 2), (5000, 3), (8192, 0)] {
        let (again, _) = parse_colo(piece, refuse_every);
        for (one, other) in checkpoints.iter().zip(&again) {
            assert!(one.ram == other.ram && one.device == other.device && one.pages == other.pages);
        }
    }
}

#[test]
fn a_stream_cut_anywhere_wants_more() {
    let bytes = fixture(SHARED);
    for end in (0..bytes.len()).step_by(509).chain(0..200) {
        let mut sink = Memory::new(&fuzz::blocks());
        let mut parser = Parser::new(Kind::Plain, fuzz::blocks()).unwrap();
        let outcomes = feed(&mut parser, &bytes[..end], usize::MAX / 2, &mut sink).unwrap();
        assert!(outcomes.is_empty() && sink.device.is_empty(), "cut at {end}: {outcomes:?}");
    }
    let cut = &colo()[COLO_FIRST..];
    for end in (0..300_000).step_by(7919) {
        let mut sink = Memory::new(&fuzz::blocks());
        let mut parser = Parser::new(Kind::Colo, fuzz::blocks()).unwrap();
        feed(&mut parser, &colo()[..COLO_FIRST], 1 << 20, &mut sink).unwrap();
        feed(&mut parser, &cut[..end], 1 << 20, &mut sink).unwrap();
    }
}

fn problem(kind: Kind, bytes: &[u8]) -> Problem {
    parse(kind, bytes, bytes.len()).map(|_| ()).expect_err("has to be refused").problem
}

fn changed(name: &str, from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = fixture(name);
    let at = bytes.windows(from.len()).position(|window| window == from).expect("has what is to be changed");
    bytes.splice(at..at + from.len(), to.iter().copied());
    bytes
}

#[test]
fn names_what_is_wrong() {
    assert!(matches!(problem(Kind::Plain, b"{\"QMP\": {}}"), Problem::Magic(0x7b22_514d)));
    assert_eq!(problem(Kind::Colo, &fixture(PLAIN)), Problem::NotColo);
    assert_eq!(problem(Kind::Plain, colo()), Problem::Colo);
    assert_eq!(problem(Kind::Colo, &fixture(SHARED)), Problem::Capability("x-ignore-shared".into()));
    let long = changed(PLAIN, b"\x07\0\0\0\x0d", b"\x07\xff\xff\xff\xff");
    assert!(matches!(problem(Kind::Plain, &long), Problem::Length { what: "machine name", .. }));
    let version = changed(PLAIN, b"\x03ram\0\0\0\0\0\0\0\x04", b"\x03ram\0\0\0\0\0\0\0\x05");
    assert!(matches!(problem(Kind::Plain, &version), Problem::Version { found: 5, .. }));
    let section = changed(PLAIN, b"\x03ram\0\0\0\0", b"\x03inc\0\0\0\0");
    assert_eq!(problem(Kind::Plain, &section), Problem::Section("inc".into()));
    let unknown = changed(PLAIN, b"\x06pc.rom", b"\x06pc.rum");
    assert_eq!(problem(Kind::Plain, &unknown), Problem::UnknownBlock("pc.rum".into()));
    let twice = changed(PLAIN, b"\x06pc.rom\0\0\0\0\0\x02\0\0", b"\x06pc.ram\0\0\0\0\x01\0\x20\0");
    assert_eq!(problem(Kind::Plain, &twice), Problem::BlockTwice("pc.ram".into()));
    let length = changed(PLAIN, b"\x06pc.rom\0\0\0\0\0\x02\0\0", b"\x06pc.rom\0\0\0\0\0\x03\0\0");
    assert!(matches!(problem(Kind::Plain, &length), Problem::BlockLength { found: 0x3_0000, expected: 0x2_0000, .. }));
    let command = changed(PLAIN, b"\x01\0\0\0\x02\x03ram", b"\x08\0\x01\0\0\x01\0\0\0\x02\x03ram");
    assert!(problem(Kind::Plain, &command).to_string().contains("return-path"));
}

/// A stream up to the end of START, then these RAM records.
fn records(words: &[(u64, &[u8])]) -> Vec<u8> {
    let blocks = fuzz::blocks();
    let mut out = Vec::new();
    let mut emitter = Emitter::new(&mut out, &blocks);
    emitter.header("pc-i440fx-7.2", false).unwrap();
    emitter.ram_start(false).unwrap();
    emitter.ram_end_begin().unwrap();
    for (word, rest) in words {
        out.extend_from_slice(&word.to_be_bytes());
        out.extend_from_slice(rest);
    }
    out
}

#[test]
fn names_what_is_wrong_with_a_record() {
    let problem = |word, rest: &[u8]| problem(Kind::Plain, &records(&[(word, rest)]));
    assert_eq!(problem(0x022, &[0]), Problem::NoBlock);
    assert_eq!(problem(0x002, b"\x06pc.ram\x55"), Problem::Fill(0x55));
    assert_eq!(problem(0x002, b"\x06pc.rem\0"), Problem::UnknownBlock("pc.rem".into()));
    let offset = Problem::Offset { name: "pc.ram".into(), offset: 0x100_2000, length: 0x100_2000 };
    assert_eq!(problem(0x100_2002, b"\x06pc.ram\0"), offset);
    assert!(matches!(problem(!0xfff | 8, b"\x06pc.ram"), Problem::Offset { .. }));
    for (flags, hint) in
        [(0x040, "xbzrle"), (0x100, "compress"), (0x200, "multifd"), (0x004, "second list"), (0x00a, "")]
    {
        let found = problem(flags, b"\x06pc.ram");
        assert!(matches!(found, Problem::Flags(f, _) if f == flags) && found.to_string().contains(hint), "{found}");
    }
    assert!(matches!(problem(0x1010, b""), Problem::Flags(..)), "EOS has no offset");
    assert!(matches!(problem(0x010, b"\x7e\0\0\0\x03"), Problem::SectionId { found: 3, expected: 2 }));
    assert!(matches!(problem(0x010, b"\x7e\0\0\0\x02\x05"), Problem::Device(_)));
}

#[test]
fn a_block_of_the_profile_that_is_missing() {
    let mut blocks = fuzz::blocks();
    blocks.push(RamBlock { name: "vga.vram".into(), used_length: 1 << 24 });
    let mut parser = Parser::new(Kind::Plain, blocks.clone()).unwrap();
    let error = parser.feed(&fixture(PLAIN), &mut Memory::new(&blocks)).unwrap_err();
    assert_eq!(error.problem, Problem::MissingBlock("vga.vram".into()));
    assert!(error.at > 100 && error.to_string().contains("vga.vram"), "{error}");
}

#[test]
fn checkpoints_out_of_order_or_too_large() {
    let after_first = |bytes: &[u8]| {
        let mut sink = Memory::new(&fuzz::blocks());
        let mut parser = Parser::new(Kind::Colo, fuzz::blocks()).unwrap();
        feed(&mut parser, &colo()[..COLO_FIRST], 1 << 20, &mut sink).unwrap();
        feed(&mut parser, bytes, 1 << 20, &mut sink).expect_err("has to be refused").problem
    };
    let word = |n: u32| n.to_be_bytes();
    assert!(matches!(after_first(&word(3)), Problem::Message { found: 3, .. }));
    assert!(matches!(after_first(&[word(1), word(1)].concat()), Problem::Message { found: 1, .. }));
    assert!(matches!(after_first(&[&word(1)[..], &word(3), &[4]].concat()), Problem::Element { found: 4, .. }));
    let empty = [&word(1)[..], &word(3), b"\x03\0\0\0\x02\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02"].concat();
    let size = |n: u64| [&empty[..], &[0], &word(4), &n.to_be_bytes(), &[4]].concat();
    assert!(matches!(after_first(&size(u64::MAX)), Problem::Length { .. }));
    assert!(matches!(after_first(&size(0)), Problem::Length { .. }));
    assert!(matches!(after_first(&[&size(2)[..], &[1]].concat()), Problem::Device(_)));
    assert!(matches!(after_first(&[&empty[..], &[7]].concat()), Problem::Element { found: 7, .. }));
}

#[test]
fn a_planted_end_of_the_device_state_is_not_believed() {
    let fake = b"\x00\x06\0\0\0\x10{\"devices\":[{}]}";
    let bytes = fixture(PLAIN);
    let device = parse(Kind::Plain, &bytes, bytes.len()).unwrap().0.device;
    let at = bytes.windows(device.len()).position(|window| window == device).unwrap() + 500;
    let planted = [&bytes[..at], fake, &bytes[at..]].concat();
    let (memory, _) = parse(Kind::Plain, &planted, planted.len()).unwrap();
    assert_eq!(memory.device.len(), device.len() + fake.len());
    let many = [&bytes[..at], &b"\x00\x06\x00\x7f\xff\xff{\"".repeat(100), &bytes[at..]].concat();
    assert_eq!(parse(Kind::Plain, &many, many.len()).map(|_| ()).unwrap_err().problem, Problem::Ambiguous);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn arbitrary_bytes_are_no_panic(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = fuzz::run(&data);
    }

    #[test]
    fn damaged_captures_are_no_panic(
        choice in any::<u8>(), pieces in 50_u8..,
        damage in proptest::collection::vec((0..150_000_usize, any::<u8>()), 1..4),
    ) {
        static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
        let bytes = BYTES.get_or_init(|| fixture(SHARED));
        let mut data = vec![choice & !1, pieces];
        data.extend_from_slice(bytes);
        for (at, byte) in damage {
            let at = 2 + at % bytes.len();
            data[at] = byte;
        }
        let _ = fuzz::run(&data);
    }

    #[test]
    fn damaged_checkpoints_are_no_panic(
        choice in any::<u8>(),
        damage in proptest::collection::vec((0..300_000_usize, any::<u8>()), 1..4),
    ) {
        let mut rest = colo()[COLO_FIRST..COLO_FIRST + 600_000].to_vec();
        for (at, byte) in damage {
            rest[at] = byte;
        }
        let mut sink = Memory::new(&fuzz::blocks());
        sink.refuse_every = usize::from(choice);
        if sink.refuse_every == 1 {
            sink.refuse_every = 0;
        }
        let mut parser = Parser::new(Kind::Colo, fuzz::blocks()).unwrap();
        feed(&mut parser, &colo()[..COLO_FIRST], 1 << 20, &mut sink).unwrap();
        let _ = feed(&mut parser, &rest, 64 << 10, &mut sink);
    }
}
