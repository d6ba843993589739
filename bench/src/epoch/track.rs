//! Which pages the guest wrote: asked of the kernel, from outside the guest's process, while the guest is stopped.
//!
//! | how | needs |
//! |---|---|
//! | `PAGEMAP_SCAN` | Linux 6.7, and a guest that registers its RAM (userfaultfd, asynchronous write protection) |
//! | soft-dirty bits | `CONFIG_MEM_SOFT_DIRTY` |
//! | comparing with a copy | nothing; it reads all of guest RAM in every pause |
//!
//! That nothing is missed is checked at the end of every run: the standby's image must equal guest RAM.

use super::guest::Guest;
use crate::sys::{Region, written};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use mc_core::{
    capture::Run,
    id::{BlockId, PAGE_SIZE},
    ram::SharedRam,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    os::{fd::AsFd, unix::fs::FileExt},
};

/// A way to find dirty pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Track {
    /// The first of the others that this kernel has
    Auto,
    /// PAGEMAP_SCAN
    Scan,
    /// Soft-dirty bits
    SoftDirty,
    /// Comparing with a copy
    Compare,
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
    /// For that guest, in this way; the guest is stopped. From now on its writes count.
    ///
    /// # Errors
    /// The kernel does not have that way.
    pub fn new(guest: &Guest, ram: &SharedRam, track: Track) -> Result<Self> {
        let ways: &[Track] = match track {
            Track::Auto => &[Track::Scan, Track::SoftDirty, Track::Compare],
            Track::Scan => &[Track::Scan],
            Track::SoftDirty => &[Track::SoftDirty],
            Track::Compare => &[Track::Compare],
        };
        let mut why = None;
        for way in ways {
            match Self::one(guest, ram, *way) {
                Ok(tracker) => return Ok(tracker),
                Err(error) => why = Some(error),
            }
        }
        Err(why.context("no way to track")?)
    }

    fn one(guest: &Guest, ram: &SharedRam, way: Track) -> Result<Self> {
        let pagemap = || File::open(format!("/proc/{}/pagemap", guest.pid())).context("the guest's pagemap");
        let how = match way {
            Track::Scan if guest.watched() => {
                How::Scan { pagemap: pagemap()?, regions: vec![Region::default(); REGIONS] }
            }
            Track::Scan => bail!("PAGEMAP_SCAN: the guest could not have its writes watched (Linux 6.7 can)"),
            Track::SoftDirty => {
                let clear = File::options().write(true).open(format!("/proc/{}/clear_refs", guest.pid()))?;
                How::SoftDirty { pagemap: pagemap()?, clear, entries: vec![0; ram.len() / PAGE_SIZE * 8] }
            }
            _ => How::Compare { copy: vec![0; ram.len()] },
        };
        let mut tracker = Self { how, start: guest.address(), len: ram.len() as u64 };
        tracker.begin(ram)?;
        Ok(tracker)
    }

    /// Forgets what was written so far.
    fn begin(&mut self, ram: &SharedRam) -> Result<()> {
        let mut runs = Vec::new();
        let was = self.soft_dirty(0)?;
        self.collect(ram, &mut runs)?;
        if was.is_some() && (was, self.soft_dirty(0)?) != (Some(true), Some(false)) {
            bail!("soft-dirty bits: this kernel has none (CONFIG_MEM_SOFT_DIRTY)");
        }
        Ok(())
    }

    /// Of that page, if soft-dirty bits are what is asked for. The guest has written to every page at its start.
    fn soft_dirty(&self, page: u64) -> Result<Option<bool>> {
        let How::SoftDirty { pagemap, .. } = &self.how else { return Ok(None) };
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, (self.start / PAGE_SIZE as u64 + page) * 8)?;
        Ok(Some(u64::from_le_bytes(entry) & SOFT_DIRTY != 0))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.how {
            How::Scan { .. } => "PAGEMAP_SCAN",
            How::SoftDirty { .. } => "soft-dirty bits",
            How::Compare { .. } => "comparing with a copy",
        }
    }

    /// The pages that were written since the last call, in `runs`. The guest is stopped.
    ///
    /// # Errors
    /// The kernel refuses, or the guest is gone.
    pub fn collect(&mut self, ram: &SharedRam, runs: &mut Vec<Run>) -> Result<()> {
        runs.clear();
        let (start, end) = (self.start, self.start + self.len);
        match &mut self.how {
            How::Scan { pagemap, regions } => {
                let mut from = start;
                while from < end {
                    let (count, next) = written(pagemap.as_fd(), from, end, regions)?;
                    regions[..count].iter().for_each(|r| join(runs, r.start - start, r.end - r.start));
                    from = next;
                }
            }
            How::SoftDirty { pagemap, clear, entries } => {
                pagemap.read_exact_at(entries, start / PAGE_SIZE as u64 * 8)?;
                clear.write_all_at(b"4", 0).context("clear_refs")?;
                for (page, entry) in entries.chunks_exact(8).enumerate() {
                    let dirty = entry[6] & 0x80 != 0; // bit 55
                    if dirty {
                        join(runs, (page * PAGE_SIZE) as u64, PAGE_SIZE as u64);
                    }
                }
            }
            How::Compare { copy } => {
                let mut page = [0; PAGE_SIZE];
                for (index, old) in copy.chunks_exact_mut(PAGE_SIZE).enumerate() {
                    ram.read(index * PAGE_SIZE, &mut page);
                    if page != old {
                        old.copy_from_slice(&page);
                        join(runs, (index * PAGE_SIZE) as u64, PAGE_SIZE as u64);
                    }
                }
            }
        }
        Ok(())
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
