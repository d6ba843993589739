//! Writes the migration stream that a takeover feeds to the waiting QEMU. Its main RAM is in the shared file already, so
//! the stream (with the capability `x-ignore-shared`) holds the other blocks and the device state only.

use super::profile::RamBlock;
use mc_core::id::PAGE_SIZE;

/// The RAM section's number; QEMU matches sections by name, so any will do as long as it is one.
const RAM_SECTION: u32 = 2;

/// The whole stream: configuration, RAM blocks, pages of the blocks that are not shared, device state, description.
/// `device` is "FULL sections, then EOF", as checkpoints have it.
#[must_use]
pub fn takeover(machine: &str, blocks: &[RamBlock], contents: &[(usize, &[u8])], device: &[u8]) -> Vec<u8> {
    let size: usize = contents.iter().map(|(_, bytes)| bytes.len() + bytes.len() / 256).sum();
    let mut out = Vec::with_capacity(4096 + size + device.len());
    header(&mut out, machine);
    setup(&mut out, blocks);
    pages(&mut out, blocks, contents);
    out.extend_from_slice(device);
    // QEMU waits for a description after EOF; an empty one is one.
    out.extend_from_slice(&[0x06, 0, 0, 0, 2, b'{', b'}']);
    out
}

fn header(out: &mut Vec<u8>, machine: &str) {
    out.extend_from_slice(b"QEVM");
    out.extend_from_slice(&3_u32.to_be_bytes());
    out.push(0x07);
    long_name(out, machine);
    out.push(0x05);
    name(out, "configuration/capabilities");
    out.extend_from_slice(&1_u32.to_be_bytes());
    out.extend_from_slice(&1_u32.to_be_bytes());
    name(out, "x-ignore-shared");
}

fn setup(out: &mut Vec<u8>, blocks: &[RamBlock]) {
    out.push(0x01);
    out.extend_from_slice(&RAM_SECTION.to_be_bytes());
    name(out, "ram");
    out.extend_from_slice(&0_u32.to_be_bytes());
    out.extend_from_slice(&4_u32.to_be_bytes());
    let total: u64 = blocks.iter().map(|b| b.used_length).sum();
    word(out, total | 0x004);
    for block in blocks {
        name(out, &block.name);
        word(out, block.used_length);
        word(out, 0); // guest physical address; checked for shared blocks, and main RAM begins at 0
    }
    word(out, 0x010);
    footer(out);
}

fn pages(out: &mut Vec<u8>, blocks: &[RamBlock], contents: &[(usize, &[u8])]) {
    out.push(0x03);
    out.extend_from_slice(&RAM_SECTION.to_be_bytes());
    for (index, bytes) in contents {
        for (number, page) in bytes.chunks_exact(PAGE_SIZE).enumerate() {
            let offset = (number * PAGE_SIZE) as u64;
            let again = if number > 0 { 0x020 } else { 0 };
            let zero = page.iter().all(|b| *b == 0);
            word(out, offset | again | if zero { 0x002 } else { 0x008 });
            if number == 0 {
                name(out, &blocks[*index].name);
            }
            out.extend_from_slice(if zero { &[0] } else { page });
        }
    }
    word(out, 0x010);
    footer(out);
}

fn footer(out: &mut Vec<u8>) {
    out.push(0x7e);
    out.extend_from_slice(&RAM_SECTION.to_be_bytes());
}

fn word(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn name(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).expect("names in profiles have at most 255 bytes"));
    out.extend_from_slice(text.as_bytes());
}

fn long_name(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&u32::try_from(text.len()).expect("machine names are short").to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}
