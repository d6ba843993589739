//! Slabs: what is written is what is read, neighbours merge, and a body from a peer that lies is refused, never believed.

use mc_core::{
    id::{BlockId, Epoch, Generation, Incarnation, PAGE_SIZE},
    image::{Image, ImageError, MAX_DEVICE},
    ram::SharedRam,
    slab::{FreeSlab, SealedSlab, SlabMeta, SlabPool, SlabWriter},
    wire::{
        WireError,
        slab::{HEADER_LEN, Record, SlabHeader},
    },
};
use proptest::prelude::*;

const META: SlabMeta = SlabMeta { incarnation: Incarnation(1), generation: Generation(2), epoch: Epoch(3), index: 4 };

/// One thing to write.
#[derive(Clone, Debug)]
enum Put {
    Page(u16, u64, u8),
    Zero(u16, u64),
    Device(Vec<u8>),
}

fn put() -> impl Strategy<Value = Put> {
    let place = || (0..2_u16, 0..6_u64);
    prop_oneof![
        4 => (place(), 1..=255_u8).prop_map(|((block, page), byte)| Put::Page(block, page, byte)),
        3 => place().prop_map(|(block, page)| Put::Zero(block, page)),
        1 => prop::collection::vec(any::<u8>(), 1..50).prop_map(Put::Device),
    ]
}

fn empty(slab_size: usize) -> FreeSlab {
    SlabPool::new(slab_size, slab_size).take().unwrap()
}

/// Says whether it fitted.
fn write(writer: &mut SlabWriter, put: &Put, device: &mut u64) -> bool {
    match put {
        Put::Page(block, page, byte) => writer.page(BlockId(*block), page * 4096, &[*byte; PAGE_SIZE]).is_ok(),
        Put::Zero(block, page) => writer.zero(BlockId(*block), page * 4096).is_ok(),
        Put::Device(data) => {
            let taken = writer.device(*device, data);
            *device += taken.map_or(0, |n| n as u64);
            taken == Ok(data.len())
        }
    }
}

/// The same slab, as it arrives.
fn received(slab: &SealedSlab, slab_size: usize) -> SealedSlab {
    let mut to = empty(slab_size);
    to.receive_buffer()[..slab.as_bytes().len()].copy_from_slice(slab.as_bytes());
    to.arrived().map_err(|(_, error)| error).unwrap()
}

/// Pages and device state, one by one.
fn contents(slab: &SealedSlab) -> (Vec<(u16, u64, u8)>, Vec<u8>) {
    let (mut pages, mut device) = (Vec::new(), Vec::new());
    for record in slab.records() {
        match record.unwrap() {
            Record::Pages { block, offset, data } => {
                for (i, page) in data.chunks(PAGE_SIZE).enumerate() {
                    assert!(page.iter().all(|b| *b == page[0]));
                    pages.push((block.0, offset / 4096 + i as u64, page[0]));
                }
            }
            Record::Zero { block, offset, pages: n } => {
                pages.extend((0..u64::from(n)).map(|i| (block.0, offset / 4096 + i, 0)));
            }
            Record::Device { offset, data } => {
                assert_eq!(offset, device.len() as u64);
                device.extend_from_slice(data);
            }
        }
    }
    (pages, device)
}

proptest! {
    #[test]
    fn what_is_written_is_what_is_read(puts in prop::collection::vec(put(), 0..40)) {
        const SIZE: usize = 64 << 10;
        let (mut writer, mut device) = (empty(SIZE).writer(), 0);
        let (mut pages, mut state) = (Vec::new(), Vec::new());
        for put in puts.iter().take_while(|p| write(&mut writer, p, &mut device)) {
            match put {
                Put::Page(block, page, byte) => pages.push((*block, *page, *byte)),
                Put::Zero(block, page) => pages.push((*block, *page, 0)),
                Put::Device(data) => state.extend_from_slice(data),
            }
        }
        let slab = writer.seal(META);
        prop_assert_eq!(slab.header().pages as usize, pages.len());
        prop_assert!(slab.as_bytes().len() <= SIZE);
        prop_assert_eq!(contents(&received(&slab, SIZE))
            .0, pages);
        state.truncate(usize::try_from(device).unwrap());
        prop_assert!(contents(&slab).1.starts_with(&state));
    }

    /// The checksum of a slab is no secret: a peer may say anything with a good one.
    #[test]
    fn hostile_bodies_never_panic(
        mut body in prop::collection::vec(any::<u8>(), 0..200),
        heads in prop::collection::vec((0..5_u8, any::<u16>(), any::<u32>(), any::<u64>()), 0..6),
        records in prop_oneof![0..8_u32, any::<u32>()],
    ) {
        let heads = heads.iter().flat_map(|(kind, block, count, offset)| {
            let mut head = vec![*kind, 0];
            head.extend_from_slice(&(block % 3).to_le_bytes());
            head.extend_from_slice(&(count % 5000).to_le_bytes());
            head.extend_from_slice(&(offset & !4095).to_le_bytes());
            head
        });
        body.splice(0..0, heads);
        if let Ok(slab) = lie(&body, records) {
            let _ = image().check(&slab);
            prop_assert!(slab.records().count() <= body.len() + 1);
        }
    }
}

fn image() -> Image {
    Image::new(vec![SharedRam::anonymous(4 * PAGE_SIZE).unwrap(), SharedRam::anonymous(PAGE_SIZE).unwrap()])
}

/// A slab with this body, and every checksum right.
fn lie(body: &[u8], records: u32) -> Result<SealedSlab, WireError> {
    let header = SlabHeader {
        incarnation: META.incarnation,
        generation: META.generation,
        epoch: META.epoch,
        index: 0,
        records,
        body_len: u32::try_from(body.len()).unwrap(),
        pages: 0,
        body_crc: crc32c::crc32c(body),
    };
    let mut slab = empty(64 << 10);
    slab.receive_buffer()[..HEADER_LEN].copy_from_slice(&header.encode());
    slab.receive_buffer()[HEADER_LEN..HEADER_LEN + body.len()].copy_from_slice(body);
    slab.arrived().map_err(|(_, error)| error)
}

fn record(kind: u8, block: u16, count: u32, offset: u64, data: usize) -> Vec<u8> {
    let mut bytes = vec![kind, 0];
    bytes.extend_from_slice(&block.to_le_bytes());
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&offset.to_le_bytes());
    bytes.resize(bytes.len() + data, 7);
    bytes
}

#[test]
fn each_lie_in_a_body_is_refused_by_name() {
    let page = |block, offset| record(1, block, 1, offset, 4096);
    let cases = [
        (page(0, 0), 2, "slab record: 0 bytes"),
        (page(0, 0), 0, "bytes after the last record"),
        (record(0, 0, 1, 0, 0), 1, "no such kind"),
        (record(4, 0, 1, 0, 0), 1, "no such kind"),
        (record(1, 0, 0, 0, 0), 1, "an empty record"),
        (record(2, 0, 0, 0, 0), 1, "an empty record"),
        (record(3, 0, 0, 0, 0), 1, "an empty record"),
        (record(1, 0, 2, 0, 4096), 1, "4112 bytes, needs 8208"),
        (record(1, 0, u32::MAX, 0, 4096), 1, "4112 bytes, needs 17592186040336"),
        (record(3, 0, 9, 0, 9), 1, "25 bytes, needs 32"),
        (page(0, 512), 1, "not page aligned"),
        (page(2, 0), 1, "the profile has 2 RAM blocks"),
        (page(0, 4 * 4096), 1, "outside its 16384 bytes"),
        (page(1, 4096), 1, "outside its 4096 bytes"),
        (page(0, u64::MAX - 4095), 1, "outside its 16384 bytes"),
        (record(2, 0, 5, 0, 0), 1, "outside its 16384 bytes"),
        (record(2, 0, u32::MAX, 0, 0), 1, "outside its 16384 bytes"),
        (record(3, 0, 8, MAX_DEVICE - 7, 8), 1, "device state ends at 67108865"),
        (record(3, 0, 8, u64::MAX, 8), 1, "device state ends at"),
    ];
    for (body, records, expected) in cases {
        let slab = lie(&body, records).expect("the checksums are right");
        let error: ImageError = image().check(&slab).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error} should say {expected:?}");
    }
}

#[test]
fn a_run_of_pages_costs_one_record() {
    let mut writer = empty(64 << 10).writer();
    (2..6).for_each(|i| writer.page(BlockId(1), i * 4096, &[9; PAGE_SIZE]).unwrap());
    (6..9).for_each(|i| writer.zero(BlockId(1), i * 4096).unwrap());
    writer.page(BlockId(1), 9 * 4096, &[8; PAGE_SIZE]).unwrap();
    writer.page(BlockId(0), 10 * 4096, &[8; PAGE_SIZE]).unwrap();
    writer.page(BlockId(0), 12 * 4096, &[8; PAGE_SIZE]).unwrap();
    let slab = writer.seal(META);
    let runs: Vec<_> = slab
        .records()
        .map(|r| match r.unwrap() {
            Record::Pages { block, offset, data } => (1, block.0, offset / 4096, data.len() / 4096),
            Record::Zero { block, offset, pages } => (2, block.0, offset / 4096, pages as usize),
            Record::Device { .. } => unreachable!(),
        })
        .collect();
    assert_eq!(runs, [(1, 1, 2, 4), (2, 1, 6, 3), (1, 1, 9, 1), (1, 0, 10, 1), (1, 0, 12, 1)]);
    assert_eq!((slab.header().records, slab.header().pages), (5, 10));
}

#[test]
fn device_state_fills_a_slab_and_goes_on_in_the_next() {
    let state: Vec<u8> = (0..20_000_u32).map(|i| i.to_le_bytes()[0]).collect();
    let mut image = image();
    let mut at = 0;
    while at < state.len() {
        let mut writer = empty(8192).writer();
        at += writer.device(at as u64, &state[at..]).unwrap();
        assert_eq!(writer.device(at as u64, &[]), Ok(0), "nothing always fits");
        let slab = received(&writer.seal(META), 8192);
        image.check(&slab).unwrap();
        image.apply(&slab);
    }
    assert_eq!(image.device(), state);
}

#[test]
fn a_full_slab_takes_nothing_and_stays_as_it_was() {
    let mut writer = empty(8192).writer();
    writer.page(BlockId(0), 0, &[1; PAGE_SIZE]).unwrap();
    assert!(writer.page(BlockId(0), 4096, &[1; PAGE_SIZE]).is_err());
    assert_eq!(contents(&writer.seal(META)).0, [(0, 0, 1)]);
}

#[test]
fn every_flipped_bit_of_a_slab_is_refused() {
    let mut writer = empty(8192).writer();
    writer.zero(BlockId(0), 0).unwrap();
    writer.device(0, b"device state").unwrap();
    let slab = writer.seal(META);
    let bytes = slab.as_bytes().to_vec();
    for bit in 0..bytes.len() * 8 {
        let mut to = empty(8192);
        to.receive_buffer()[..bytes.len()].copy_from_slice(&bytes);
        to.receive_buffer()[bit / 8] ^= 1 << (bit % 8);
        assert!(to.arrived().is_err(), "bit {bit}");
    }
}

/// A slab that comes piece by piece, checksummed on the way, is judged as one that comes at once.
#[test]
fn a_checksum_ahead_judges_no_differently() {
    let size = 1 << 20;
    let mut writer = empty(size).writer();
    for page in 0..200_u8 {
        writer.page(BlockId(0), u64::from(page) * 8192, &[page; PAGE_SIZE]).unwrap();
    }
    let sealed = writer.seal(META);
    let bytes = sealed.as_bytes();
    let arrive = |damage: Option<usize>, pieces: &[usize]| {
        let mut slab = empty(size);
        slab.receive_buffer()[..bytes.len()].copy_from_slice(bytes);
        if let Some(at) = damage {
            slab.receive_buffer()[at] ^= 4;
        }
        let mut ahead = mc_core::slab::Ahead::default();
        pieces.iter().for_each(|have| ahead.advance(&slab, *have));
        slab.arrived_after(ahead).map(|slab| slab.as_bytes() == bytes).map_err(|(_, error)| error.to_string())
    };
    let all = bytes.len();
    for pieces in
        [&[][..], &[1], &[70_000, 70_001, 300_000], &[200_000, 100_000, all], &[all, all], &[size], &[usize::MAX]]
    {
        assert_eq!(arrive(None, pieces), Ok(true), "{pieces:?}");
        for at in [64, 66_000, 250_000, all - 1] {
            assert!(arrive(Some(at), pieces).unwrap_err().contains("slab body: CRC32C"), "{at} {pieces:?}");
        }
    }
}
