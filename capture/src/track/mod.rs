//! Which pages a process wrote to a mapping: asked of the kernel, from outside that process, while it is stopped.
//!
//! | [`Way`] | needs |
//! |---|---|
//! | `Scan`: `PAGEMAP_SCAN` | Linux 6.7, and a process that registered its mapping ([`watch_writes`]) |
//! | `SoftDirty`: soft-dirty bits | `CONFIG_MEM_SOFT_DIRTY` |
//! | `Compare`: comparing with a copy | nothing; it reads the whole mapping in every pause |
//!
//! Whether nothing is missed rests on who writes: a way sees what goes through that process's page tables.

mod kernel;

pub use kernel::watch_writes;

use kernel::{Region, written};
use mc_core::{
    capture::Run,
    id::{BlockId, PAGE_SIZE},
    ram::SharedRam,
};
use std::{
    fmt,
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::FileExt},
};

/// A way to find dirty pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Way {
    /// `PAGEMAP_SCAN`.
    Scan,
    /// Soft-dirty bits.
    SoftDirty,
    /// Comparing with a copy.
    Compare,
}

impl Way {
    /// All of them, the best first.
    pub const ALL: [Self; 3] = [Self::Scan, Self::SoftDirty, Self::Compare];

    /// Its name, in messages and figures.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scan => "PAGEMAP_SCAN",
            Self::SoftDirty => "soft-dirty bits",
            Self::Compare => "comparing with a copy",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why dirty pages cannot be found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrackError {
    /// The kernel does not have this way, or the process did not prepare for it.
    #[error("dirty pages by {way}: {why}")]
    Unavailable {
        /// Which.
        way: Way,
        /// What it lacks.
        why: &'static str,
    },
    /// A system call failed; the process may be gone.
    #[error("dirty pages by {way}: {doing}: {source}")]
    Failed {
        /// Which.
        way: Way,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// The process and its mapping, whose pages are page-aligned and lie together.
#[derive(Clone, Copy, Debug)]
pub struct Mapped {
    /// The process.
    pub pid: u32,
    /// Where the mapping begins, in that process.
    pub start: u64,
    /// Whether the process has its writes [watched](watch_writes).
    pub watched: bool,
}

/// In `/proc/PID/pagemap`.
const SOFT_DIRTY: u64 = 1 << 55;
/// Of the kernel's answers at a time.
const REGIONS: usize = 4096;

/// Finds dirty pages.
#[derive(Debug)]
pub struct Tracker {
    how: How,
    start: u64,
    len: u64,
}

#[derive(Debug)]
enum How {
    Scan { pagemap: File, regions: Vec<Region> },
    SoftDirty { pagemap: File, clear: File, entries: Vec<u8> },
    Compare { copy: Vec<u8> },
}

impl Tracker {
    /// In this way; the process is stopped. From now on its writes count. `ram` is its mapping.
    ///
    /// # Errors
    /// The kernel does not have that way, or refuses.
    pub fn new(mapped: Mapped, ram: &SharedRam, way: Way) -> Result<Self, TrackError> {
        let failed = |doing| move |source| TrackError::Failed { way, doing, source };
        let file = |name: &str| format!("/proc/{}/{name}", mapped.pid);
        let pagemap = || File::open(file("pagemap")).map_err(failed("opening pagemap"));
        let how = match way {
            Way::Scan if mapped.watched => How::Scan { pagemap: pagemap()?, regions: vec![Region::default(); REGIONS] },
            Way::Scan => {
                return Err(TrackError::Unavailable { way, why: "the process has no writes watched (Linux 6.7 can)" });
            }
            Way::SoftDirty => {
                let clear =
                    File::options().write(true).open(file("clear_refs")).map_err(failed("opening clear_refs"))?;
                How::SoftDirty { pagemap: pagemap()?, clear, entries: vec![0; ram.len() / PAGE_SIZE * 8] }
            }
            Way::Compare => How::Compare { copy: vec![0; ram.len()] },
        };
        let mut tracker = Self { how, start: mapped.start, len: ram.len() as u64 };
        tracker.begin(ram)?;
        Ok(tracker)
    }

    /// In the best way that there is.
    ///
    /// # Errors
    /// None works: why the last does not.
    pub fn best(mapped: Mapped, ram: &SharedRam) -> Result<Self, TrackError> {
        let [scan, soft_dirty, compare] = Way::ALL;
        let first = Self::new(mapped, ram, scan).or_else(|_| Self::new(mapped, ram, soft_dirty));
        first.or_else(|_| Self::new(mapped, ram, compare))
    }

    /// Forgets what was written so far. The first page has been written to by then.
    fn begin(&mut self, ram: &SharedRam) -> Result<(), TrackError> {
        let mut runs = Vec::new();
        let was = self.soft_dirty(0)?;
        self.collect(ram, &mut runs)?;
        if was.is_some() && (was, self.soft_dirty(0)?) != (Some(true), Some(false)) {
            let why = "this kernel has no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)";
            return Err(TrackError::Unavailable { way: Way::SoftDirty, why });
        }
        Ok(())
    }

    /// Of that page, if soft-dirty bits are what is asked for.
    fn soft_dirty(&self, page: u64) -> Result<Option<bool>, TrackError> {
        let How::SoftDirty { pagemap, .. } = &self.how else { return Ok(None) };
        let mut entry = [0; 8];
        let at = (self.start / PAGE_SIZE as u64 + page) * 8;
        pagemap.read_exact_at(&mut entry, at).map_err(self.failed("reading pagemap"))?;
        Ok(Some(u64::from_le_bytes(entry) & SOFT_DIRTY != 0))
    }

    /// Bytes of RAM that it looks at.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Which way it is.
    #[must_use]
    pub fn way(&self) -> Way {
        match self.how {
            How::Scan { .. } => Way::Scan,
            How::SoftDirty { .. } => Way::SoftDirty,
            How::Compare { .. } => Way::Compare,
        }
    }

    fn failed(&self, doing: &'static str) -> impl Fn(io::Error) -> TrackError + use<> {
        let way = self.way();
        move |source| TrackError::Failed { way, doing, source }
    }

    /// The pages that were written since the last call, in `runs`. The process is stopped.
    ///
    /// # Errors
    /// The kernel refuses, or the process is gone.
    pub fn collect(&mut self, ram: &SharedRam, runs: &mut Vec<Run>) -> Result<(), TrackError> {
        runs.clear();
        let (start, end) = (self.start, self.start + self.len);
        let (asking, clearing) = (self.failed("asking for written pages"), self.failed("writing to clear_refs"));
        match &mut self.how {
            How::Scan { pagemap, regions } => {
                let mut from = start;
                while from < end {
                    let (count, next) = written(pagemap.as_fd(), from, end, regions).map_err(&asking)?;
                    regions[..count].iter().for_each(|r| join(runs, r.start - start, r.end - r.start));
                    from = next;
                }
            }
            How::SoftDirty { pagemap, clear, entries } => {
                pagemap.read_exact_at(entries, start / PAGE_SIZE as u64 * 8).map_err(asking)?;
                clear.write_all_at(b"4", 0).map_err(clearing)?;
                marked(entries, runs);
            }
            How::Compare { copy } => compare(ram, copy, runs),
        }
        Ok(())
    }
}

/// The pages whose entry has the bit.
fn marked(entries: &[u8], runs: &mut Vec<Run>) {
    for (page, entry) in entries.chunks_exact(8).enumerate() {
        let dirty = entry[6] & 0x80 != 0; // bit 55
        if dirty {
            join(runs, (page * PAGE_SIZE) as u64, PAGE_SIZE as u64);
        }
    }
}

/// The pages that differ from the copy, which becomes what they are.
fn compare(ram: &SharedRam, copy: &mut [u8], runs: &mut Vec<Run>) {
    let mut page = [0; PAGE_SIZE];
    for (index, old) in copy.chunks_exact_mut(PAGE_SIZE).enumerate() {
        ram.read(index * PAGE_SIZE, &mut page);
        if page != old {
            old.copy_from_slice(&page);
            join(runs, (index * PAGE_SIZE) as u64, PAGE_SIZE as u64);
        }
    }
}

/// Adds pages, to the last run if they follow it.
fn join(runs: &mut Vec<Run>, offset: u64, len: u64) {
    let pages = u32::try_from(len / PAGE_SIZE as u64).unwrap_or(u32::MAX);
    match runs.last_mut() {
        Some(last) if last.offset + last.len() == offset => last.pages += pages,
        _ => runs.push(Run { block: BlockId(0), offset, pages }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_changed_come_as_runs_once() {
        let mut ram = SharedRam::anonymous(8 * PAGE_SIZE).unwrap();
        let mapped = Mapped { pid: std::process::id(), start: 0, watched: false };
        let mut tracker = Tracker::new(mapped, &ram, Way::Compare).unwrap();
        [1, 2, 5].iter().for_each(|page| ram.write(page * PAGE_SIZE + 7, &[9]));
        let mut runs = Vec::new();
        tracker.collect(&ram, &mut runs).unwrap();
        let run = |page: u64, pages| Run { block: BlockId(0), offset: page * PAGE_SIZE as u64, pages };
        assert_eq!(runs, [run(1, 2), run(5, 1)]);
        tracker.collect(&ram, &mut runs).unwrap();
        assert_eq!(runs, []);
    }

    #[test]
    fn entries_of_pagemap_are_read_by_their_bit() {
        let entries: Vec<u8> = [1 << 55, 1 << 54, 1 << 55].into_iter().flat_map(u64::to_le_bytes).collect();
        let mut runs = Vec::new();
        marked(&entries, &mut runs);
        assert_eq!(runs.iter().map(|run| (run.offset, run.pages)).collect::<Vec<_>>(), [(0, 1), (2 * 4096, 1)]);
    }

    #[test]
    fn a_way_that_is_not_there_says_so() {
        let ram = SharedRam::anonymous(PAGE_SIZE).unwrap();
        let mapped = Mapped { pid: std::process::id(), start: 0, watched: false };
        let error = Tracker::new(mapped, &ram, Way::Scan).unwrap_err();
        assert!(
            error.to_string().starts_with("dirty pages by PAGEMAP_SCAN: the process has no writes watched"),
            "{error}"
        );
    }
}
