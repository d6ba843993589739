//! A slab from a peer, with its checksums mended so that the fuzzer gets past them: the image must refuse whatever does not
//! fit, and take whatever it has not refused.

use mc_core::{
    id::{Epoch, Generation, Incarnation},
    image::Image,
    ram::SharedRam,
    slab::SlabPool,
    wire::slab::{HEADER_LEN, SlabHeader},
};

const SLAB: usize = 64 << 10;

/// Fails by a panic.
pub fn run(bytes: &[u8]) {
    let Some((count, body)) = bytes.split_first_chunk::<4>() else { return };
    let body = &body[..body.len().min(SLAB - HEADER_LEN)];
    let header = SlabHeader {
        incarnation: Incarnation(1),
        generation: Generation(1),
        epoch: Epoch(1),
        index: 0,
        records: u32::from_le_bytes(*count) % 4096,
        body_len: u32::try_from(body.len()).expect("bounded"),
        pages: 0,
        body_crc: crc32c(body),
    };
    let mut slab = SlabPool::new(SLAB, 2 * SLAB).take().expect("a pool has two");
    slab.receive_buffer()[..HEADER_LEN].copy_from_slice(&header.encode());
    slab.receive_buffer()[HEADER_LEN..HEADER_LEN + body.len()].copy_from_slice(body);
    let slab = slab.arrived().expect("its checksums are right");
    let mut image = Image::new(vec![SharedRam::anonymous(64 << 10).expect("memory")]);
    if image.check(&slab).is_ok() {
        image.apply(&slab);
    }
}

/// Bit by bit: the fuzz crate needs no dependency for it, and speed does not matter here.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| (c >> 1) ^ (0x82F6_3B78 & (c & 1).wrapping_neg()))
    })
}
