//! The memory that a rehearsal needs: an upper bound before, the measured peak after.

use super::{RehearsalConfig, RehearsalError};
use mc_core::id::PAGE_SIZE;
use std::fs;

/// Bytes that QEMU itself takes, whatever the VM. QEMU 7.2's private memory at the end of a rehearsal was 19 MB with the tiny
/// guest, and 36 MB with a Linux guest, a display and four virtio devices, of which 15 MB were its kernel and initrd.
const QEMU: u64 = 128 << 20;
/// Bytes per page of the main memory: its entry in a page table (8), KVM's (8), and QEMU's bitmaps of dirty pages (less than 1).
const PER_PAGE: u64 = 17;

/// Whether there is memory for a rehearsal. It may take: QEMU itself; every small block once more; the device state twice, in
/// QEMU's buffers and in its devices; and what maps the main memory, page by page. The main memory's pages are copied when QEMU
/// writes them, and a QEMU that loads with `-S` writes none: `Private_Dirty` of the mapping was 0 with the tiny guest and with a
/// Linux guest of 128 MiB with virtio devices, which read 192 KiB of it (QEMU 7.2). Firmware and vCPUs would write, and never run.
pub(super) fn room(config: &RehearsalConfig, available: Option<u64>) -> Result<(), RehearsalError> {
    let small: usize = config.others.iter().map(|(_, content)| content.len()).sum();
    let pages = config.blocks[usize::from(config.shared.0)].used_length / PAGE_SIZE as u64;
    let needed = QEMU + small as u64 + 2 * config.device.len() as u64 + pages * PER_PAGE;
    match available {
        Some(available) if available < needed => Err(RehearsalError::Memory { available, needed }),
        // A kernel that does not tell is not in the way: QEMU's own words will do.
        _ => Ok(()),
    }
}

/// MemAvailable, in bytes (proc(5)).
pub(super) fn available() -> Option<u64> {
    kib(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// `Private_Dirty` of a process, in bytes.
pub(super) fn private_bytes(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    kib(&rollup, "Private_Dirty:").unwrap_or(0)
}

fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standby::rehearsal;

    #[test]
    fn memory_is_checked_beforehand() {
        let config = rehearsal::tests::config();
        let error = room(&config, Some(100 << 20)).unwrap_err();
        assert!(error.to_string().contains("--no-rehearsal"), "{error}");
        // A few hundred MiB for a VM of 64 GiB: its memory is not copied.
        room(&config, Some(1 << 30)).unwrap();
        room(&config, None).unwrap();
        assert!(available().unwrap() > 1 << 20 && private_bytes(std::process::id()) > 0);
    }
}
