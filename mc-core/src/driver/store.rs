//! What the standby holds: the image, and the slabs of the epoch that is on its way, in memory or in a spill file.

use crate::{
    id::Time,
    image::{Image, ImageError},
    slab::{FreeSlab, PoolStats, SealedSlab, SlabPool},
    wire::slab::Record,
};
use std::{collections::VecDeque, fs::File, io, os::unix::fs::FileExt};

/// Where epochs larger than staging go: an unlinked file that lives as long as the process.
#[derive(Debug)]
pub struct SpillFile {
    file: File,
    used: u64,
}

impl SpillFile {
    /// Spills into `file`, from its start.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file, used: 0 }
    }
}

/// A staged slab: in memory, or in the spill file.
#[derive(Debug)]
enum Staged {
    Memory(SealedSlab),
    Spilled { at: u64, len: usize },
}

/// Why there is no slab to receive into.
#[derive(Debug)]
pub(super) enum Shortage {
    /// Others are on their way back.
    ForNow,
    /// The epoch on its way fills all of staging, and there is no spill file.
    Full,
    /// The spill file failed.
    Spill(io::Error),
}

/// The standby's memory: there is none before the first session.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// `None` before the first session.
    pool: Option<SlabPool>,
    /// `None` without a session, and once it could not be trusted any more.
    pub(super) image: Option<Image>,
    staged: VecDeque<Staged>,
    /// So many of those, the first ones, are of committed epochs that wait to be applied.
    committed: usize,
    /// Bytes of device state in the epoch that is on its way.
    device_bytes: u64,
    spill: Option<SpillFile>,
    /// Slabs that went through the spill file.
    pub(super) spilled: u64,
}

impl Store {
    /// Of a session.
    pub(super) fn new(image: Image, pool: SlabPool, spill: Option<SpillFile>) -> Self {
        let staged = VecDeque::with_capacity(pool.cap());
        Self { pool: Some(pool), image: Some(image), staged, spill, ..Self::default() }
    }

    /// Slabs that can be had right now.
    pub(super) fn available(&self) -> usize {
        self.pool.as_ref().map_or(0, SlabPool::available)
    }

    /// Takes a slab back.
    pub(super) fn put(&mut self, slab: FreeSlab) {
        if let Some(pool) = &mut self.pool {
            pool.put(slab);
        }
    }

    /// Gives back what has long been idle.
    pub(super) fn shrink(&mut self, now: Time) {
        if let Some(pool) = &mut self.pool {
            pool.shrink(now);
        }
    }

    pub(super) fn stats(&self) -> Option<PoolStats> {
        self.pool.as_ref().map(SlabPool::stats)
    }

    /// Slabs that stay free: what was spilled is read back through one, and by then its epoch is ACKed.
    fn reserve(&self) -> usize {
        usize::from(self.spill.is_some())
    }

    /// Whether a slab can be had without spilling.
    pub(super) fn has_room(&self) -> bool {
        self.available() > self.reserve()
    }

    /// A slab to receive into; `posted` of them are with the link already.
    pub(super) fn take(&mut self, posted: usize) -> Result<FreeSlab, Shortage> {
        if !self.has_room() {
            if posted > 0 || self.staged.is_empty() {
                return Err(Shortage::ForNow);
            }
            self.spill()?;
        }
        self.pool.as_mut().and_then(SlabPool::take).ok_or(Shortage::ForNow)
    }

    /// Moves what is staged in memory to the spill file.
    fn spill(&mut self) -> Result<(), Shortage> {
        // What is committed makes room once it is applied.
        let shortage = if self.committed > 0 { Shortage::ForNow } else { Shortage::Full };
        let spill = self.spill.as_mut().ok_or(shortage)?;
        for staged in &mut self.staged {
            let Staged::Memory(slab) = staged else { continue };
            let (at, len) = (spill.used, slab.as_bytes().len());
            spill.file.write_all_at(slab.as_bytes(), at).map_err(Shortage::Spill)?;
            spill.used += len as u64;
            self.spilled += 1;
            if let Staged::Memory(slab) = std::mem::replace(staged, Staged::Spilled { at, len })
                && let Some(pool) = &mut self.pool
            {
                pool.put(slab.recycle());
            }
        }
        Ok(())
    }

    /// I2: what does not fit the image is never staged. `None` without an image.
    pub(super) fn check(&self, slab: &SealedSlab) -> Option<Result<(), ImageError>> {
        self.image.as_ref().map(|image| image.check(slab))
    }

    /// Bytes of device state that came for the epoch on its way.
    pub(super) fn device_bytes(&self) -> u64 {
        self.device_bytes
    }

    fn count_device(&mut self, slab: &SealedSlab) {
        for record in slab.records() {
            if let Ok(Record::Device { data, .. }) = record {
                self.device_bytes += data.len() as u64;
            }
        }
    }

    pub(super) fn stage(&mut self, slab: SealedSlab) {
        self.count_device(&slab);
        self.staged.push_back(Staged::Memory(slab));
    }

    pub(super) fn apply_now(&mut self, slab: SealedSlab) {
        if let Some(image) = &mut self.image {
            image.apply(&slab);
        }
        self.count_device(&slab);
        self.put(slab.recycle());
    }

    /// The staged epoch is committed: whatever happens, it will be applied.
    pub(super) fn commit(&mut self) {
        self.committed = self.staged.len();
        self.device_bytes = 0;
    }

    /// The committed epochs become the image. An error leaves no image: it would be that of no epoch. `each` is called for every
    /// slab: a large epoch takes long, and that is work, and no absence.
    pub(super) fn apply(&mut self, each: impl FnMut()) -> io::Result<()> {
        let applied = self.apply_committed(each);
        if applied.is_err() {
            self.image = None;
            self.clear();
        }
        self.rewind();
        applied
    }

    fn apply_committed(&mut self, mut each: impl FnMut()) -> io::Result<()> {
        while self.committed > 0
            && let Some(staged) = self.staged.pop_front()
        {
            self.committed -= 1;
            each();
            let slab = self.unspill(staged)?;
            if let Some(image) = &mut self.image {
                image.apply(&slab);
            }
            self.put(slab.recycle());
        }
        Ok(())
    }

    fn unspill(&mut self, staged: Staged) -> io::Result<SealedSlab> {
        let (at, len) = match staged {
            Staged::Memory(slab) => return Ok(slab),
            Staged::Spilled { at, len } => (at, len),
        };
        let (Some(spill), Some(mut slab)) = (&self.spill, self.pool.as_mut().and_then(SlabPool::take)) else {
            return Err(io::Error::other("no slab is free to read the spill file into"));
        };
        let (slab, error) = match spill.file.read_exact_at(&mut slab.receive_buffer()[..len], at) {
            Err(error) => (slab, error),
            Ok(()) => match slab.arrived() {
                Ok(slab) => return Ok(slab),
                Err((slab, error)) => (slab, io::Error::other(error)),
            },
        };
        self.put(slab);
        Err(error)
    }

    /// Frees what is staged of an epoch that was not committed.
    pub(super) fn discard(&mut self) {
        while self.staged.len() > self.committed {
            if let Some(Staged::Memory(slab)) = self.staged.pop_back() {
                self.put(slab.recycle());
            }
        }
        self.device_bytes = 0;
        self.rewind();
    }

    /// Frees everything that is staged.
    pub(super) fn clear(&mut self) {
        self.committed = 0;
        self.discard();
    }

    fn rewind(&mut self) {
        if let Some(spill) = self.spill.as_mut().filter(|_| self.staged.is_empty()) {
            spill.used = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::{BlockId, Epoch, Generation, Incarnation, PAGE_SIZE},
        ram::SharedRam,
        slab::SlabMeta,
    };

    #[test]
    fn every_slab_that_is_applied_is_told() {
        let image = Image::new(vec![SharedRam::anonymous(PAGE_SIZE).expect("a page")]);
        let mut store = Store::new(image, SlabPool::new(8192, 16 * 8192), None);
        for index in 0..10 {
            let mut writer = store.take(0).expect("room").writer();
            writer.page(BlockId(0), 0, &[7; PAGE_SIZE]).expect("room");
            let (incarnation, generation, epoch) = (Incarnation(1), Generation(1), Epoch(1));
            store.stage(writer.seal(SlabMeta { incarnation, generation, epoch, index }));
        }
        store.commit();
        let mut told = 0;
        store.apply(|| told += 1).expect("in memory");
        assert_eq!(told, 10);
    }
}
