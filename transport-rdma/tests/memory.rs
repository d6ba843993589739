//! Registered memory, on a real device (SoftRoCE will do).

mod common;

use common::places;
use mc_core::{
    id::PAGE_SIZE,
    ram::{Mapping, SharedRam},
    testing::skip,
};
use rustix::{
    fs::{MemfdFlags, memfd_create},
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CapabilitySet, capabilities, set_capabilities},
};
use std::{
    fs::File,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use transport_rdma::{
    ffi::{Context, Domain, Region},
    memlock,
    mr::{self, RegisterOptions, RegisteredMemory},
    types::Access,
};

/// What is registered is counted per process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

struct Device {
    context: Arc<Context>,
    _alone: MutexGuard<'static, ()>,
}

fn device() -> Option<Device> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    places().map(|(place, _)| Device { context: place.context, _alone })
}

fn shared(len: usize, flags: MemfdFlags) -> io::Result<(File, Arc<Mapping>)> {
    let file = File::from(memfd_create("registered", flags | MemfdFlags::CLOEXEC)?);
    file.set_len(len as u64)?;
    let map = Arc::clone(SharedRam::map(&file, len)?.mapping());
    Ok((file, map))
}

/// `FIGURES_MIB`: how much the figures are taken on.
fn mib(default: u32) -> u32 {
    std::env::var("FIGURES_MIB").map_or(default, |n| n.parse().expect("FIGURES_MIB: a number"))
}

#[test]
fn memory_is_registered_in_chunks_unchanged_and_stays_while_it_is() {
    let Some(device) = device() else { return };
    let domain = Domain::new(&device.context).unwrap();
    let len = 10 * PAGE_SIZE;
    let (file, map) = shared(len, MemfdFlags::empty()).unwrap();
    let mut ram = SharedRam::map(&file, len).unwrap();
    ram.write(5 * PAGE_SIZE + 7, b"as it was");

    let options = RegisterOptions { chunk_bytes: 4 * PAGE_SIZE, threads: 2, ..RegisterOptions::default() };
    let memory = RegisteredMemory::register(&domain, &map, Access::RemoteWrite, &options).unwrap();
    assert_eq!(memory.regions(), 3);
    assert_eq!(memlock::registered(), len as u64);
    let pieces: Vec<_> = memory.locate(3 * PAGE_SIZE + 5, 6 * PAGE_SIZE).collect();
    assert_eq!(pieces.iter().map(|p| p.len).collect::<Vec<_>>(), [4091, 4 * PAGE_SIZE, PAGE_SIZE + 5]);
    assert_eq!(pieces[0].addr, map.as_ptr().addr() as u64 + 3 * 4096 + 5);
    assert_eq!(pieces[1].addr, pieces[0].addr + 4091, "one mapping");
    assert!(pieces[0].rkey != pieces[1].rkey && pieces[1].lkey != pieces[2].lkey);

    let mut there = [0; 9];
    ram.read(5 * PAGE_SIZE + 7, &mut there);
    assert_eq!(&there, b"as it was");
    let kept = Arc::downgrade(&map);
    drop(map);
    assert!(kept.upgrade().is_some(), "unmapped under a registration");
    memory.deregister().unwrap();
    memory.deregister().unwrap();
    assert_eq!(memlock::registered(), 0);
    drop(memory);
    assert!(kept.upgrade().is_none());
}

#[test]
fn a_limit_on_locked_memory_is_noticed_beforehand() {
    let Some(device) = device() else { return };
    let domain = Domain::new(&device.context).unwrap();
    let sets = capabilities(None).unwrap();
    if !sets.effective.contains(CapabilitySet::IPC_LOCK) {
        return skip("needs CAP_IPC_LOCK, to do without it");
    }
    let before = getrlimit(Resource::Memlock);
    let (_file, map) = shared(64 * PAGE_SIZE, MemfdFlags::empty()).unwrap();
    let small = Region::buffer(&domain, 16 * PAGE_SIZE).unwrap();
    setrlimit(Resource::Memlock, Rlimit { current: Some(64 * PAGE_SIZE as u64), ..before }).unwrap();
    // The capability is the thread's.
    set_capabilities(None, without(sets, CapabilitySet::IPC_LOCK)).unwrap();
    let refused = RegisteredMemory::register(&domain, &map, Access::Read, &RegisterOptions::default());
    let by_kernel = Region::of_mapping(&domain, &map, 0, map.len(), Access::Read);
    drop(small);
    let fits = RegisteredMemory::register(&domain, &map, Access::Read, &RegisterOptions::default());
    set_capabilities(None, sets).unwrap();
    setrlimit(Resource::Memlock, before).unwrap();

    let said = refused.unwrap_err().to_string();
    assert!(said.contains("262144 bytes beside 65536") && said.contains("LimitMEMLOCK"), "{said}");
    assert_eq!(by_kernel.unwrap_err().raw_os_error(), Some(libc::ENOMEM), "our count is not the kernel's");
    fits.unwrap();
    assert_eq!(memlock::registered(), 0);
}

fn without(mut sets: rustix::thread::CapabilitySets, capability: CapabilitySet) -> rustix::thread::CapabilitySets {
    sets.effective.remove(capability);
    sets
}

#[test]
fn huge_pages_are_registered_as_such() {
    let Some(device) = device() else { return };
    let pages = "/proc/sys/vm/nr_hugepages";
    if !std::fs::read_to_string(pages).is_ok_and(|n| n.trim().parse().is_ok_and(|n: u32| n >= 8)) {
        let _ = std::fs::write(pages, "16");
    }
    let (file, map) = match shared(16 << 20, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB) {
        Ok(made) => made,
        Err(error) => return skip(format!("no huge pages: {error}")),
    };
    let page_size = mr::page_size_of(&file).unwrap();
    assert_eq!(page_size, 2 << 20);
    assert_eq!(mr::page_size_of(&shared(4096, MemfdFlags::empty()).unwrap().0).unwrap(), 4096);
    let domain = Domain::new(&device.context).unwrap();
    let options = RegisterOptions { page_size, chunk_bytes: 5 << 20, ..RegisterOptions::default() };
    let memory = RegisteredMemory::register(&domain, &map, Access::Read, &options).unwrap();
    assert_eq!(memory.regions(), 4);
    eprintln!("16 MiB of huge pages: {:?}", memory.timings());
}

/// For the record.
#[test]
fn figures_of_registration() {
    let Some(device) = device() else { return };
    let domain = Domain::new(&device.context).unwrap();
    let (_file, map) = shared((mib(64) as usize) << 20, MemfdFlags::empty()).unwrap();
    let cost = mr::measure::registration(&domain, &map, &RegisterOptions::default(), 5).unwrap();
    println!("{} ratio {:.2}", serde_json::to_string(&cost).unwrap(), cost.ratio());
}
