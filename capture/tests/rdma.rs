//! Local copies, on a real device (SoftRoCE will do).
//!
//! Without one every test is skipped (`mc_core::testing::skip`). `AFTERIMAGE_RDMA_DEVICES`:
//! a comma list, of which the first is used.

mod measured;

use capture::{
    Memcpy, WithSpare,
    rdma::{LocalCopy, Options},
};
use mc_core::{
    capture::{CaptureEngine, CaptureError, Run, Runs},
    id::{BlockId, Generation, Incarnation, PAGE_SIZE},
    ram::SharedRam,
    slab::SlabPool,
    source::CheckpointSink,
    staging::Staging,
    testing::{Rng, skip},
};
use measured::{Pattern, measure, scratch};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use std::{
    fs::File,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use transport_rdma::{ffi::Context, memlock, mr::RegisterOptions};

/// What is registered is counted per process, and an emulated device has no speed to share: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

struct Device {
    context: Arc<Context>,
    _alone: MutexGuard<'static, ()>,
}

fn first_device() -> Result<String, String> {
    if let Ok(names) = std::env::var("AFTERIMAGE_RDMA_DEVICES") {
        return Ok(names.split(',').next().unwrap_or_default().to_owned());
    }
    let listed = std::fs::read_dir("/sys/class/infiniband").map_err(|_| "the kernel has no RDMA device".to_owned())?;
    let mut names: Vec<_> = listed.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names.into_iter().next().ok_or_else(|| "there is no RDMA device".to_owned())
}

fn device() -> Option<Device> {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let open = |name: String| Context::open(&name).map_err(|error| format!("{name}: {error}"));
    match first_device().and_then(open) {
        Ok(context) => Some(Device { context, _alone: alone }),
        Err(why) => {
            skip(why);
            None
        }
    }
}

/// A guest with a page per byte value, its file, and an engine for it.
fn guest(device: &Device, options: &Options) -> (File, Arc<[SharedRam]>, LocalCopy) {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(64 * PAGE_SIZE as u64).unwrap();
    let mut ram = SharedRam::map(&file, 64 * PAGE_SIZE).unwrap();
    for page in 0..64_u8 {
        ram.write(usize::from(page) * PAGE_SIZE, &[page + 1; PAGE_SIZE]);
    }
    let blocks: Arc<[SharedRam]> = Arc::new([ram]);
    let engine = LocalCopy::new(&device.context, &blocks, options).unwrap();
    (file, blocks, engine)
}

fn staging(slab: usize) -> Staging {
    let mut staging = Staging::new(SlabPool::new(slab, 64 * slab));
    staging.begin(Incarnation(1), Generation(1));
    staging
}

/// The bytes of the slabs that `engine` fills with `runs`.
fn captured(engine: &mut dyn CaptureEngine, runs: &[Run], slab: usize) -> Result<Vec<Vec<u8>>, CaptureError> {
    let mut staging = staging(slab);
    staging.zero(BlockId(0), 0).unwrap();
    staging.capture(engine, &mut Runs::new(runs))?;
    staging.finish();
    Ok(std::iter::from_fn(|| staging.pop()).map(|slab| slab.as_bytes().to_vec()).collect())
}

fn page_run(page: u64, pages: u32) -> Run {
    Run { block: BlockId(0), offset: page * PAGE_SIZE as u64, pages }
}

#[test]
fn every_shape_of_work_request_copies_exactly() {
    let Some(device) = device() else { return };
    let blocks = scratch(96).unwrap();
    // Regions of three pages, so that runs cross their borders.
    let small = RegisterOptions { chunk_bytes: 3 * PAGE_SIZE, ..RegisterOptions::default() };
    let shapes = [
        Options::default(),
        Options { gather: 3, register: small, ..Options::default() },
        Options { gather: 32, write_bytes: 128 << 10, depth: 7, signal_every: 5, ..Options::default() },
        Options {
            gather: 1,
            write_bytes: 0,
            depth: 1,
            chain: 1,
            signal_every: 1,
            register: small,
            ..Options::default()
        },
    ];
    for options in shapes {
        let mut engine = LocalCopy::new(&device.context, &blocks, &options).unwrap();
        for pattern in Pattern::ALL {
            let figure = measure(&mut engine, &blocks, pattern, 96, 64 << 10, 1).unwrap();
            assert_eq!(figure.pages, 96);
        }
    }
    assert_eq!(memlock::registered(), 0, "a region outlived its engine");
}

#[test]
fn slabs_are_those_of_memcpy() {
    let Some(device) = device() else { return };
    let (_file, blocks, mut engine) = guest(&device, &Options { gather: 8, ..Options::default() });
    let mut rng = Rng::new(3);
    for _ in 0..8 {
        let runs: Vec<_> = (0..20).map(|_| page_run(rng.below(56), u32::try_from(1 + rng.below(8)).unwrap())).collect();
        let wanted = captured(&mut Memcpy::new(Arc::clone(&blocks)), &runs, 40_000).unwrap();
        assert_eq!(captured(&mut engine, &runs, 40_000).unwrap(), wanted);
    }
}

#[test]
fn a_device_that_fails_says_why_and_costs_no_checkpoint() {
    let Some(device) = device() else { return };
    let runs = [page_run(0, 1), page_run(9, 30), page_run(50, 2)];
    let (_file, blocks, engine) = guest(&device, &Options::default());
    let wanted = captured(&mut Memcpy::new(Arc::clone(&blocks)), &runs, 40_000).unwrap();

    engine.memory()[0].deregister().unwrap();
    let mut engine = WithSpare::new(Box::new(engine), Memcpy::new(Arc::clone(&blocks)));
    assert_eq!(captured(&mut engine, &runs, 40_000).unwrap(), wanted);
    assert_eq!(engine.name(), "memcpy");

    let (_file, _blocks, mut engine) = guest(&device, &Options::default());
    engine.memory()[0].deregister().unwrap();
    let said = captured(&mut engine, &runs, 40_000).unwrap_err().to_string();
    let parts =
        ["local-rdma", device.context.name(), "queue pair 0x", "RDMA WRITE", "status ", "timeout 18", "7 tries"];
    for part in parts {
        assert!(said.contains(part), "{part}: {said}");
    }
    eprintln!("{said}");
    let again = captured(&mut engine, &runs, 40_000).unwrap_err().to_string();
    assert!(again.contains("failed before"), "{again}");
}

#[test]
fn dropping_an_engine_in_mid_copy_is_safe_and_leaves_nothing_registered() {
    let Some(device) = device() else { return };
    let (_file, blocks, mut engine) = guest(&device, &Options::default());
    drop(blocks); // The engine keeps what the device reads.
    let mut pool = SlabPool::new(256 << 10, 1 << 20);
    for _ in 0..2 {
        let mut writer = pool.take().unwrap().writer();
        for n in 0..32 {
            assert_eq!(writer.reserve(BlockId(0), n * 2 * PAGE_SIZE as u64, 1), Ok(1));
        }
        engine.submit(writer).unwrap();
    }
    assert_eq!(engine.pending(), 2);
    assert!(memlock::registered() > 0);
    drop(engine);
    assert_eq!(memlock::registered(), 0);
}

/// Why a guest with a balloon is refused: the hole succeeds, the device goes on reading the page that was there before, and
/// nobody gets an error (`transport_rdma::mr`). Should this ever fail, kernels have learnt better.
#[test]
fn a_hole_under_registered_memory_leaves_the_device_with_a_stale_page() {
    let Some(device) = device() else { return };
    let (file, blocks, mut engine) = guest(&device, &Options::default());
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, hole, 3 * PAGE_SIZE as u64, PAGE_SIZE as u64).unwrap();
    let mut guest_writes = SharedRam::map(&file, 64 * PAGE_SIZE).unwrap();
    guest_writes.write(3 * PAGE_SIZE, &[99; PAGE_SIZE]);
    let by_device = captured(&mut engine, &[page_run(3, 1)], 16 << 10).unwrap();
    let by_processor = captured(&mut Memcpy::new(blocks), &[page_run(3, 1)], 16 << 10).unwrap();
    assert_eq!((by_processor[0].last(), by_device[0].last()), (Some(&99), Some(&4)));
}

/// `FIGURES_MIB`: how much the figures are taken on.
fn mib(default: u32) -> u32 {
    std::env::var("FIGURES_MIB").map_or(default, |n| n.parse().expect("FIGURES_MIB: a number"))
}

/// For the record; only the content is asserted (`measure` checks it).
#[test]
fn figures_of_local_copies() {
    let Some(device) = device() else { return };
    let (pages, rounds) = (mib(1) * 256, 3);
    let blocks = scratch(pages).unwrap();
    let report = |engine: &mut dyn CaptureEngine, shape: &str| {
        for pattern in Pattern::ALL {
            let figure = measure(engine, &blocks, pattern, pages, 1 << 20, rounds).unwrap();
            let (copy, all) = (figure.copy_mb_s(), figure.capture_mb_s());
            println!("{:10} {shape:28} {pattern:10?} copy {copy:8.1} capture {all:8.1} MB/s", figure.engine);
        }
    };
    report(&mut Memcpy::new(Arc::clone(&blocks)), "");
    for options in [Options::default(), Options { gather: 1, ..Options::default() }] {
        let Options { gather, write_bytes, .. } = options;
        let shape = format!("gather {gather} write {write_bytes}");
        report(&mut LocalCopy::new(&device.context, &blocks, &options).unwrap(), &shape);
    }
}
