//! How much memory this host can give, and how much room a directory has: asked before a VM's RAM is allocated, because a host
//! that runs out of memory kills processes of its own choice.

use node::files::is_memory;
use rustix::fs::{StatVfs, statvfs};
use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

/// What a VM's RAM may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes that processes may take without swapping: the kernel's own estimate, `MemAvailable` of proc(5).
    pub memory: u64,
    /// Bytes that the directory of the RAM file has room for.
    pub directory: u64,
    /// Whether that directory is memory too.
    pub directory_is_memory: bool,
}

impl Room {
    /// As it is now. `replaced`, a file of `dir` that may exist, will make way.
    ///
    /// # Errors
    /// /proc/meminfo or `dir` cannot be looked at.
    pub fn look(dir: &Path, replaced: Option<&Path>) -> io::Result<Self> {
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let memory = available(&meminfo)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo has no MemAvailable"))?;
        let StatVfs { f_bavail, f_frsize, .. } = statvfs(dir)?;
        let directory_is_memory = is_memory(dir)?;
        let freed = replaced.and_then(|path| fs::metadata(path).ok()).map_or(0, |file| file.blocks() * 512);
        Ok(Self {
            memory: memory + if directory_is_memory { freed } else { 0 },
            directory: f_bavail.saturating_mul(f_frsize) + freed,
            directory_is_memory,
        })
    }

    /// Whether a RAM file of `file` bytes fits, and `others` bytes of memory beside it; why not.
    pub fn fits(&self, file: u64, others: u64) -> Result<(), String> {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        if file > self.directory {
            return Err(format!(
                "the VM needs {} MiB in --ram-dir, which has {} MiB free: enlarge that tmpfs (`mount -o \
                 remount,size=`), or choose another directory",
                mib(file),
                self.directory >> 20
            ));
        }
        let needed = others.saturating_add(if self.directory_is_memory { file } else { 0 });
        if needed > self.memory {
            return Err(format!(
                "the VM needs {} MiB of memory, and this host has {} MiB available; free some, or choose another standby",
                mib(needed),
                self.memory >> 20
            ));
        }
        Ok(())
    }
}

/// Bytes, of the text of /proc/meminfo.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_counts_once_and_the_directory_too() {
        let room = Room { memory: 8 * GIB, directory: 4 * GIB, directory_is_memory: true };
        assert_eq!(room.fits(4 * GIB, 0), Ok(()));
        assert_eq!(room.fits(4 * GIB, 4 * GIB), Ok(()));
        let why = room.fits(4 * GIB, 4 * GIB + 1).unwrap_err();
        assert!(why.contains("needs 8193 MiB of memory, and this host has 8192 MiB"), "{why}");
        let why = room.fits(4 * GIB + 1, 0).unwrap_err();
        assert!(
            why.contains("needs 4097 MiB") && why.contains("has 4096 MiB free") && why.contains("--ram-dir"),
            "{why}"
        );
        assert!(room.fits(GIB, u64::MAX).is_err());
        let disk = Room { directory_is_memory: false, ..room };
        assert_eq!(disk.fits(4 * GIB, 8 * GIB), Ok(()));
    }

    #[test]
    fn the_kernels_own_estimate_is_read() {
        assert_eq!(available("MemTotal:  9 kB\nMemAvailable:    2048 kB\nBuffers: 1 kB\n"), Some(2 << 20));
        for text in ["", "MemAvailable: x kB", "MemAvailable: 5", "MemAvailable: 18446744073709551615 kB"] {
            assert_eq!(available(text), None, "{text:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        let room = Room::look(dir.path(), None).unwrap();
        assert!(room.memory > 0 && room.directory > 0);
        assert!(Room::look(Path::new("/nonexistent"), None).is_err());
    }
}
