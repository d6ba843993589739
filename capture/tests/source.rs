//! A guest whose RAM is this test's own memory: whatever it writes between checkpoints, and however little room staging has, the
//! image is its RAM.

use capture::{
    Memcpy,
    source::{Guest, MemorySource},
    track::{Mapped, Tracker, Way},
};
use mc_core::{
    driver::Clock,
    id::{Epoch, Generation, Incarnation, PAGE_SIZE, Time},
    image::Image,
    ram::SharedRam,
    slab::SlabPool,
    source::{CheckpointSource, SourceEvent},
    staging::Staging,
    testing::Rng,
};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::{
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

const PAGES: usize = 40;
const SLAB: usize = 3 * PAGE_SIZE;

/// It writes when it is let go.
struct Writer {
    ram: SharedRam,
    rng: Rng,
    stopped: bool,
    writes: u64,
}

impl Guest for Writer {
    fn pause(&mut self) -> io::Result<()> {
        self.stopped = true;
        Ok(())
    }

    fn resume(&mut self) -> io::Result<()> {
        self.stopped = false;
        for _ in 0..self.rng.below(30) {
            let at = usize::try_from(self.rng.below((PAGES * PAGE_SIZE / 8) as u64)).unwrap() * 8;
            self.ram.write(at, &self.rng.next_u64().to_le_bytes());
            self.writes += 1;
        }
        Ok(())
    }

    fn device(&mut self) -> io::Result<Vec<u8>> {
        assert!(self.stopped, "it is asked while it is stopped");
        Ok(vec![7; usize::try_from(self.writes).unwrap() % 20_000 + 1])
    }
}

struct Still;

impl Clock for Still {
    fn now(&self) -> Time {
        Time(1)
    }
}

/// Polls until the checkpoint is whole; slabs go straight into the image.
fn checkpoint(source: &mut MemorySource<Writer, Still>, staging: &mut Staging, image: &mut Image) {
    let land = |staging: &mut Staging, image: &mut Image| {
        while let Some(slab) = staging.pop() {
            image.check(&slab).unwrap();
            image.apply(&slab);
            staging.put(slab.recycle());
        }
    };
    let mut polls = 0;
    while source.poll(staging).unwrap() != SourceEvent::Captured {
        land(staging, image);
        polls += 1;
        assert!(polls < 10_000);
    }
    staging.finish();
    land(staging, image);
}

#[test]
fn the_image_is_the_guests_ram_after_every_checkpoint() {
    let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, (PAGES * PAGE_SIZE) as u64).unwrap();
    let file = File::from(memory);
    let map = || SharedRam::map(&file, PAGES * PAGE_SIZE).unwrap();
    let blocks: Arc<[SharedRam]> = Arc::new([map()]);
    // Compared with a copy: the one way that needs no kernel's help.
    let nobody = Mapped { pid: std::process::id(), start: 0, watched: false };
    let tracker = Tracker::new(nobody, &blocks[0], Way::Compare).unwrap();
    let guest = Writer { ram: map(), rng: Rng::new(3), stopped: false, writes: 0 };
    let engine = Box::new(Memcpy::new(Arc::clone(&blocks)));
    let mut source = MemorySource::new(guest, Still, Arc::clone(&blocks), tracker, engine);
    let mut staging = Staging::new(SlabPool::new(SLAB, 3 * SLAB));
    staging.begin(Incarnation(1), Generation(2));
    let mut image = Image::new(vec![SharedRam::anonymous(PAGES * PAGE_SIZE).unwrap()]);

    source.begin().unwrap();
    for epoch in 1..200 {
        staging.begin_epoch(Epoch(epoch));
        checkpoint(&mut source, &mut staging, &mut image);
        let mut ram = vec![0; PAGES * PAGE_SIZE];
        blocks[0].read(0, &mut ram);
        assert!(image.block(mc_core::id::BlockId(0)) == ram, "epoch {epoch}");
        assert_eq!(image.device().len() as u64, source.guest().writes % 20_000 + 1);
        assert_eq!(source.lap().full, epoch == 1);
        source.resume().unwrap();
        assert_eq!((source.deadline(), source.poll(&mut staging).unwrap()), (Some(Time(0)), SourceEvent::Ready));
        assert_eq!((source.deadline(), source.poll(&mut staging).unwrap()), (None, SourceEvent::Idle));
        source.pause().unwrap();
    }
}

#[test]
fn a_source_takes_all_of_the_ram_or_none() {
    let whole = || SharedRam::anonymous(2 * PAGE_SIZE).unwrap();
    let nobody = Mapped { pid: std::process::id(), start: 0, watched: false };
    let small = SharedRam::anonymous(PAGE_SIZE).unwrap();
    let cases: [(Arc<[SharedRam]>, &SharedRam); 2] =
        [(Arc::new([whole(), whole()]), &whole()), (Arc::new([whole()]), &small)];
    for (blocks, tracked) in cases {
        let tracker = Tracker::new(nobody, tracked, Way::Compare).unwrap();
        let guest = Writer { ram: whole(), rng: Rng::new(3), stopped: false, writes: 0 };
        let engine = Box::new(Memcpy::new(Arc::clone(&blocks)));
        let error = MemorySource::new(guest, Still, blocks, tracker, engine).begin().unwrap_err().to_string();
        assert!(error.contains("one block of RAM, tracked as a whole"), "{error}");
    }
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    ftruncate(&file, 100_000).unwrap();
    let guest = Writer { ram: whole(), rng: Rng::new(3), stopped: false, writes: 0 };
    let error = MemorySource::over(guest, Still, &file).map(drop).unwrap_err().to_string();
    assert!(error.contains("100000 bytes of RAM are not whole pages"), "{error}");
}

#[test]
fn a_source_that_is_dropped_while_the_guest_is_stopped_lets_it_go_on() {
    #[derive(Clone, Default)]
    struct Flag(Arc<AtomicBool>);
    impl Guest for Flag {
        fn pause(&mut self) -> io::Result<()> {
            self.0.store(true, Relaxed);
            Ok(())
        }
        fn resume(&mut self) -> io::Result<()> {
            self.0.store(false, Relaxed);
            Ok(())
        }
        fn device(&mut self) -> io::Result<Vec<u8>> {
            Ok(Vec::new())
        }
    }
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(PAGE_SIZE as u64).unwrap();
    let guest = Flag::default();
    let mut source = MemorySource::over(guest.clone(), Still, &file).unwrap();
    source.begin().unwrap();
    assert!(guest.0.load(Relaxed));
    drop(source);
    assert!(!guest.0.load(Relaxed));
}
