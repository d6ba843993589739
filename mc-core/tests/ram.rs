//! RAM blocks in files: where they may lie, and what is refused in words.

use mc_core::{
    id::PAGE_SIZE,
    ram::{RamError, SharedRam, page_size_of},
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::{fs::File, io, os::unix::fs::FileExt};

const PAGE: u64 = PAGE_SIZE as u64;

fn memfd(bytes: u64, flags: MemfdFlags) -> File {
    let flags = flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("ram", flags).unwrap());
    file.set_len(bytes).unwrap();
    file
}

fn read(file: &File, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes
}

fn refused(file: &File, offset: u64, len: usize) -> RamError {
    SharedRam::map_at(file, offset, len).unwrap_err()
}

#[test]
fn a_block_lies_anywhere_in_a_file_and_outlives_its_descriptor() {
    let file = memfd(4 * PAGE, MemfdFlags::empty());
    let ours = file.try_clone().unwrap();
    let mut ram = SharedRam::map_at(&ours, 2 * PAGE, PAGE_SIZE).unwrap();
    drop(ours);
    assert_eq!(ram.len(), PAGE_SIZE);
    ram.write(PAGE_SIZE - 3, b"end");
    assert_eq!(read(&file, 3 * PAGE - 3, 4), b"end\0", "in the file, where the block is, and no further");
    file.write_all_at(b"from outside", 2 * PAGE).unwrap();
    let mut bytes = [0; 12];
    ram.read(0, &mut bytes);
    assert_eq!(&bytes, b"from outside");
    assert!(!ram.contains(PAGE, 1), "the rest of the file is not the block's");
}

#[test]
fn a_block_is_whole_pages() {
    let file = memfd(100_000, MemfdFlags::empty());
    let partial = |error| matches!(error, RamError::Partial { len: 100_000 });
    let error = refused(&file, 0, 100_000);
    assert_eq!(error.to_string(), "100000 bytes of RAM are not whole pages: take a multiple of 4096");
    assert!(partial(error) && partial(SharedRam::anonymous(100_000).unwrap_err()));
}

#[test]
fn what_is_not_in_the_file_is_refused() {
    let file = memfd(2 * PAGE, MemfdFlags::empty());
    for (offset, len) in
        [(0, 2 * PAGE_SIZE + 1), (PAGE, 2 * PAGE_SIZE), (2 * PAGE, 1), (u64::MAX - (PAGE - 1), PAGE_SIZE)]
    {
        let error = refused(&file, offset, len);
        assert!(matches!(error, RamError::Short { have, .. } if have == 2 * PAGE), "{offset} {len}: {error:?}");
    }
    assert!(matches!(refused(&file, u64::MAX - (PAGE - 1), usize::MAX), RamError::Short { .. }));
    assert!(
        refused(&file, PAGE, 2 * PAGE_SIZE)
            .to_string()
            .contains("has 8192 bytes, the RAM block needs 8192 from 0x1000")
    );
    assert!(matches!(refused(&file, PAGE, 0), RamError::Empty | RamError::Map { .. }));
}

#[test]
fn a_block_begins_with_a_page() {
    let file = memfd(2 * PAGE, MemfdFlags::empty());
    let said = refused(&file, 512, 512).to_string();
    assert_eq!(said, "offset 0x200 is not a multiple of 4096, the size of its pages");
}

#[test]
fn a_memfd_as_qemu_seals_it_is_taken_and_one_that_cannot_be_written_is_not() {
    let file = memfd(PAGE, MemfdFlags::empty());
    fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK).unwrap();
    drop(SharedRam::map_at(&file, 0, PAGE_SIZE).unwrap());
    fcntl_add_seals(&file, SealFlags::WRITE).unwrap();
    assert!(matches!(refused(&file, 0, PAGE_SIZE), RamError::Sealed));
}

#[test]
fn a_file_that_is_open_for_reading_only_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(PAGE).unwrap();
    let reading = File::open(file.path()).unwrap();
    let error = io::Error::from(refused(&reading, 0, PAGE_SIZE));
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
}

#[test]
fn huge_pages_have_huge_offsets() {
    // A kernel without hugetlbfs says so here.
    let Ok(file) = memfd_create("ram", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB).map(File::from) else { return };
    let huge = page_size_of(&file).unwrap();
    assert!(huge > PAGE_SIZE, "{huge}");
    file.set_len(2 * huge as u64).unwrap();
    let said = refused(&file, PAGE, PAGE_SIZE).to_string();
    assert!(said.contains(&format!("is not a multiple of {huge}")), "{said}");
    match SharedRam::map_at(&file, huge as u64, huge - PAGE_SIZE) {
        Ok(ram) => assert_eq!(ram.len(), huge - PAGE_SIZE),
        // No huge page is free (vm.nr_hugepages).
        Err(RamError::Map { source, .. }) if source.kind() == io::ErrorKind::OutOfMemory => {}
        Err(error) => panic!("{error}"),
    }
}
