//! Round trips, and damage: each record refuses every flipped bit and every truncation.

use crate::{KEY, answer, beat, control, endpoint, hello, rdma_message, register, request, slab_header, stored};
use mc_core::{
    id::{Generation, Name},
    register::{Mode, Register, Swap},
    wire::{
        WireError,
        arbiter::{Answer, Ask, Asker, Request, STORED_LEN, Stored},
        beat::{Beat, BeatKey},
        control::Control,
        rdma,
        session::{FRAME_LEN, FrameHeader, Hello, Kind, MAX_PROFILE, encode_frame},
        slab::SlabHeader,
    },
};
use proptest::{prelude::*, strategy::ValueTree};

/// No flipped bit and no missing byte is taken for the record that was sent, or for any other.
fn is_guarded<T: std::fmt::Debug>(bytes: &[u8], decode: impl Fn(&[u8]) -> Result<T, WireError>) {
    decode(bytes).expect("undamaged");
    let mut damaged = bytes.to_vec();
    for bit in 0..bytes.len() * 8 {
        damaged[bit / 8] ^= 1 << (bit % 8);
        let decoded = decode(&damaged);
        assert!(decoded.is_err(), "bit {bit} flipped: {decoded:?}");
        damaged[bit / 8] ^= 1 << (bit % 8);
    }
    for len in 0..bytes.len() {
        let decoded = decode(&bytes[..len]);
        assert!(decoded.is_err(), "{len} of {} bytes: {decoded:?}", bytes.len());
    }
}

fn frame(bytes: &[u8]) -> Result<(Kind, Vec<u8>), WireError> {
    let header = FrameHeader::decode(bytes)?;
    let short = WireError::Short { record: "body", have: bytes.len(), need: FRAME_LEN + header.len };
    let body = bytes.get(FRAME_LEN..FRAME_LEN + header.len).ok_or(short)?;
    header.check(body).map(|()| (header.kind, body.to_vec()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn control_records(record in control()) {
        let bytes = record.encode();
        prop_assert_eq!(Control::decode(&bytes), Ok(record));
        is_guarded(&bytes, Control::decode);
    }

    #[test]
    fn beats(record in beat()) {
        let bytes = record.encode(&KEY);
        prop_assert_eq!(Beat::decode(&bytes, &KEY), Ok(record));
        is_guarded(&bytes, |b| Beat::decode(b, &KEY));
        let mut longer = bytes.to_vec();
        longer.push(0);
        prop_assert!(Beat::decode(&longer, &KEY).is_err());
        prop_assert!(Beat::decode(&bytes, &BeatKey([43; 32])).is_err());
    }

    #[test]
    fn arbiter_requests(record in request()) {
        let bytes = record.encode();
        prop_assert_eq!(Request::decode(&bytes), Ok(record));
        is_guarded(&bytes, Request::decode);
    }

    #[test]
    fn arbiter_answers(record in answer()) {
        let bytes = record.encode();
        prop_assert_eq!(Answer::decode(&bytes), Ok(record));
        is_guarded(&bytes, Answer::decode);
    }

    #[test]
    fn stored_registers(record in stored()) {
        let bytes = record.encode();
        prop_assert_eq!(Stored::decode(&bytes), Ok(record));
        is_guarded(&bytes, Stored::decode);
    }

    #[test]
    fn hellos(record in hello()) {
        let body = record.encode();
        prop_assert_eq!(Hello::decode(&body), Ok(record));
        is_guarded(&encode_frame(Kind::Hello, &body), frame);
    }

    #[test]
    fn endpoints(record in endpoint()) {
        let bytes = record.encode();
        prop_assert_eq!(rdma::Endpoint::decode(&bytes), Ok(record));
        is_guarded(&bytes, rdma::Endpoint::decode);
    }

    #[test]
    fn rdma_messages(record in rdma_message()) {
        let bytes = record.encode();
        prop_assert_eq!(rdma::Message::decode(&bytes), Ok(record));
        is_guarded(&bytes, rdma::Message::decode);
    }

    #[test]
    fn session_frames(kind in prop::sample::select(vec![Kind::Profile, Kind::Refuse]), body in prop::collection::vec(any::<u8>(), 0..100)) {
        let bytes = encode_frame(kind, &body);
        prop_assert_eq!(frame(&bytes), Ok((kind, body)));
        is_guarded(&bytes, frame);
        is_guarded(&encode_frame(Kind::Ready, &[]), frame);
    }

    #[test]
    fn slab_headers(record in slab_header()) {
        let bytes = record.encode();
        prop_assert_eq!(SlabHeader::decode(&bytes, 8192), Ok(record));
        is_guarded(&bytes, |b| SlabHeader::decode(b, 8192));
        if record.body_len > 0 {
            let smaller = record.body_len as usize + 63;
            prop_assert!(SlabHeader::decode(&bytes, smaller).is_err(), "larger than agreed on");
        }
    }

    #[test]
    fn noise_is_never_a_record(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        prop_assert!(Control::decode(&bytes).is_err());
        prop_assert!(Beat::decode(&bytes, &KEY).is_err());
        prop_assert!(Request::decode(&bytes).is_err());
        prop_assert!(Answer::decode(&bytes).is_err());
        prop_assert!(Stored::decode(&bytes).is_err());
        prop_assert!(rdma::Endpoint::decode(&bytes).is_err());
        prop_assert!(rdma::Message::decode(&bytes).is_err());
        prop_assert!(SlabHeader::decode(&bytes, 8192).is_err());
        prop_assert!(frame(&bytes).is_err());
        let _ = Hello::decode(&bytes); // guarded by its frame alone
    }
}

#[test]
fn a_frame_longer_than_its_kind_allows_is_refused_before_its_body_is_read() {
    for (kind, len) in
        [(1, 217), (2, MAX_PROFILE + 1), (3, 1), (4, 1025), (5, 121), (0, 0), (6, 0), (2, u32::MAX as usize)]
    {
        let mut head = *b"AIH1\0\0\0\0\0\0\0\0\0\0\0\0";
        head[4] = kind;
        head[8..12].copy_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
        let error = FrameHeader::decode(&head).expect_err("too long");
        assert!(matches!(error, WireError::Field { .. }), "kind {kind}, {len} bytes: {error}");
    }
}

#[test]
fn a_hello_names_the_field_that_is_wrong() {
    let field = |change: fn(&mut [u8]), expected: &str| {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let mut bytes = hello().new_tree(&mut runner).unwrap().current().encode();
        bytes[163] = 0; // a VM is to be protected, so its name counts
        change(&mut bytes);
        let error = Hello::decode(&bytes).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    };
    field(|b| b[4..8].copy_from_slice(&8191_u32.to_le_bytes()), "slab_size = 8191");
    field(|b| b[4..8].copy_from_slice(&(16_777_217_u32).to_le_bytes()), "slab_size = 16777217");
    field(|b| b[162] = 0, "detect_multiplier");
    field(|b| b[32] = 0, "1 to 47 bytes, this one has 0");
    field(|b| b[80] = 48, "1 to 47 bytes, this one has 48");
    field(|b| (b[32], b[33]) = (1, b'/'), "printable");
    field(|b| (b[32], b[33]) = (1, 0xff), "printable");
}

#[test]
fn peers_take_the_highest_version_that_both_speak() {
    assert_eq!(Hello::negotiate((1, 3), (2, 5)), Ok(3));
    assert_eq!(Hello::negotiate((2, 5), (1, 3)), Ok(3));
    assert_eq!(Hello::negotiate((1, 1), (1, 1)), Ok(1));
    assert!(Hello::negotiate((1, 1), (2, 3)).is_err());
    assert!(Hello::negotiate((2, 3), (1, 1)).is_err());
    assert!(Hello::negotiate((1, 1), (3, 0)).is_err(), "no range at all");
}

fn any_register() -> Register {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    Register { mode: Mode::Solo, ..register().new_tree(&mut runner).unwrap().current() }
}

#[test]
fn a_swap_that_skips_a_generation_is_refused() {
    let vm = Name::new("a").unwrap();
    for (expect, new) in [(1, 1), (1, 3), (u64::MAX, 1)] {
        let new = Register { generation: Generation(new), ..any_register() };
        let ask = Ask::Cas(Swap { expect: Generation(expect), new, contested: false });
        let bytes = Request { id: 1, vm, asker: Asker::default(), ask }.encode();
        assert!(Request::decode(&bytes).is_err(), "{expect} to {new:?}");
    }
}

#[test]
fn a_register_that_nobody_could_count_to_is_refused() {
    let vm = Name::new("a").unwrap();
    let stored = |generation| {
        let bytes = Stored { vm, register: Register { generation, ..any_register() } }.encode();
        Stored::decode(&bytes)
    };
    assert!(stored(Generation::MAX).is_ok());
    assert!(stored(Generation(Generation::MAX.0 + 1)).unwrap_err().to_string().contains("2^63"));
    let nothing = stored(Generation(0)).unwrap_err().to_string();
    assert!(nothing.contains("generation"), "{nothing}");
    const { assert!(STORED_LEN == 224) };
}

#[test]
fn keys_are_not_printed() {
    assert_eq!(format!("{KEY:?}"), "BeatKey(…)");
}
