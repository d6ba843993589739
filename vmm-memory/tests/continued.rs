//! A VM of two runners in one process, whose arbiter is this test's own.

use anyhow::Result;
use mc_core::{
    id::{Generation, Incarnation, PAGE_SIZE},
    image::Image,
    register::{CasOutcome, Register, generation_of},
    slab::SlabPool,
    source::{CheckpointSink, CheckpointSource, SourceEvent},
    staging::Staging,
};
use node::{
    HostSettings,
    arbiter::{Answer, ArbiterClient, ArbiterSpec, Ask, Attempt, Backend},
    gate::{MessageGate, messages},
    inbox::inbox,
    primary::{self, Life, PrimaryLoop, PrimaryVm},
    standby::{self, StandbyVm},
};
use parking_lot::Mutex;
use std::{collections::HashMap, path::Path, sync::Arc, thread, time::Duration};
use vmm_memory::{Cpus, Guest, MemoryVm, SharedRam, Steps};

/// Says how often it was run; from 5 on, of a VM that `breaks`, nothing more.
#[derive(serde::Serialize, serde::Deserialize)]
struct Counter {
    count: u64,
    breaks: bool,
}

impl Steps for Counter {
    type Message = u64;

    fn step(&mut self, _: &mut SharedRam) -> Option<u64> {
        assert!(!self.breaks || self.count < 5, "it breaks");
        thread::sleep(Duration::from_millis(1));
        self.count += 1;
        Some(self.count)
    }
}

type Vm = MemoryVm<vmm_memory::Stepped<Counter>, u64>;
type Seen = Arc<Mutex<Vec<u64>>>;

fn vm() -> Result<(Vm, MessageGate<u64>, Seen)> {
    let seen = Seen::default();
    let outside = Arc::clone(&seen);
    let (out, gate) = messages(move |number| outside.lock().push(number))?;
    let counter = Counter { count: 0, breaks: false };
    Ok((MemoryVm::stepped(counter, 4 * PAGE_SIZE as u64, "counter 1", out)?, gate, seen))
}

/// Away once `b` has taken the VM over.
#[derive(Clone, Default)]
struct Own(Arc<Mutex<Option<Register>>>);

impl Own {
    fn client(&self) -> Result<ArbiterClient> {
        Ok(ArbiterClient::with_backend("own", "counter".parse()?, Box::new(self.clone()))?)
    }
}

impl Backend for Own {
    fn attempt(&mut self, ask: &Ask, _: bool) -> Attempt {
        let mut held = self.0.lock();
        if held.is_some_and(|held| held.owner.node.name.as_str() == "b") {
            return Attempt::Unreachable("away since the takeover".to_owned());
        }
        Attempt::Answer(match ask {
            Ask::Read => Answer::Read(*held),
            Ask::Cas(swap) if generation_of(held.as_ref()) == swap.expect || *held == Some(swap.new) => {
                *held = Some(swap.new);
                Answer::Cas(CasOutcome::Won(swap.new))
            }
            Ask::Cas(_) => Answer::Cas(CasOutcome::Lost(*held)),
        })
    }
}

fn host(name: &str, dir: &Path) -> Result<HostSettings> {
    let arbiter = ArbiterSpec::Other("own".to_owned());
    let host = HostSettings::new("counter".parse()?, name.parse()?, arbiter, dir.join(name));
    Ok(host.beating(Duration::from_millis(100), 10))
}

#[test]
fn an_embedders_own_arbiter_and_a_survivor_that_is_a_primary_although_the_arbiter_is_away_since() -> Result<()> {
    let (dir, own) = (tempfile::tempdir()?, Own::default());
    let (copy, later, seen_later) = vm()?;
    let there = standby::Settings::new(host("b", dir.path())?, "127.0.0.1:0".parse()?);
    let waits = standby::Runner::with_arbiter(there, own.client()?, copy)?;
    let at = waits.listens_at();
    let survivor = thread::spawn(move || waits.run());

    let (vm, gate, seen) = vm()?;
    let here = primary::Settings::new(host("a", dir.path())?, at);
    let mut runner = primary::Runner::with_arbiter(here, own.client()?, vm, gate)?;
    let registered = || own.0.lock().is_some_and(|held| held.mode != mc_core::register::Mode::Solo);
    while !registered() || seen.lock().len() < 100 {
        runner.turn()?;
    }
    let from = *seen.lock().last().expect("numbers");
    while *seen.lock().last().expect("numbers") < from + 100 {
        runner.turn()?;
    }
    drop(runner); // its host is gone
    let last = *seen.lock().last().expect("numbers");

    let taken = survivor.join().expect("no panic")?;
    let here = primary::Settings::new(host("b", dir.path())?, at);
    // Nobody can be asked by now: the register that was won will do.
    let mut runner = primary::Runner::after_takeover(here, taken.right, taken.vm, later)?;
    while seen_later.lock().is_empty() {
        runner.turn()?;
    }
    assert!(seen_later.lock()[0] > last);
    Ok(())
}

/// What there is of a VM whose state is this.
fn of<S: Steps>(state: S) -> Result<MemoryVm<vmm_memory::Stepped<S>, S::Message>> {
    let (out, _said) = inbox()?;
    MemoryVm::stepped(state, PAGE_SIZE as u64, "x", out)
}

/// What becomes of its first checkpoint.
fn first_checkpoint<S: Steps>(state: S) -> Result<Vec<u8>> {
    let mut source = of(state)?.source()?;
    source.begin()?;
    let mut staging = Staging::new(SlabPool::new(1 << 16, 1 << 20));
    staging.begin(Incarnation(1), Generation(2));
    while source.poll(&mut staging)? != SourceEvent::Captured {}
    staging.finish();
    let mut image = Image::new(vec![SharedRam::anonymous(PAGE_SIZE)?]);
    while let Some(slab) = staging.pop() {
        image.apply(&slab);
    }
    Ok(image.device().to_vec())
}

#[derive(Default, serde::Serialize, serde::Deserialize)]
struct State {
    float: f64,
    map: HashMap<u8, u8>,
    #[serde(skip)]
    of_host: Option<&'static str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    more: Option<u8>,
}

impl Steps for State {
    type Message = Option<&'static str>;

    fn step(&mut self, _: &mut SharedRam) -> Option<Self::Message> {
        thread::sleep(Duration::from_millis(1));
        Some(self.of_host)
    }

    fn adopt(&mut self, here: Self) {
        self.of_host = here.of_host;
    }
}

#[test]
fn ram_that_is_not_whole_pages_is_refused() -> Result<()> {
    for bytes in [0, 1, 100_000] {
        let (out, _said) = inbox()?;
        let refused = MemoryVm::stepped(State::default(), bytes, "x", out).map(drop).expect_err("no RAM").to_string();
        assert!(refused.contains("bytes of RAM are not whole pages: take a multiple of 4096"), "{refused}");
        assert!(vmm_memory::memory(bytes).is_err());
        let file = tempfile::tempfile()?;
        file.set_len(bytes)?;
        let nobody = Vcpus;
        assert!(MemoryVm::<_, ()>::new(nobody, Arc::new(file), "x").is_err());
    }
    Ok(())
}

#[test]
fn a_state_that_cannot_be_restored_is_in_no_checkpoint() -> Result<()> {
    let why = first_checkpoint(State { float: f64::NAN, ..State::default() }).expect_err("a NaN").to_string();
    assert!(why.contains("the VM's state cannot be restored: invalid type: null, expected f64"), "{why}");
    let map = (0..100).map(|n| (n, n)).collect();
    first_checkpoint(State { float: 0.1, map, ..State::default() })?; // written in any order
    Ok(())
}

#[test]
fn a_standby_rehearses_and_keeps_what_is_the_hosts_own() -> Result<()> {
    let (out, said) = inbox()?;
    let here = State { of_host: Some("b"), ..State::default() };
    let mut vm = MemoryVm::stepped(here, PAGE_SIZE as u64, "x", out)?;
    let image = |device: &[u8]| -> Result<Image> {
        let mut staging = Staging::new(SlabPool::new(1 << 16, 1 << 20));
        staging.begin(Incarnation(1), Generation(2));
        staging.device(device)?;
        staging.finish();
        let mut image = Image::new(vec![SharedRam::anonymous(PAGE_SIZE)?]);
        while let Some(slab) = staging.pop() {
            image.apply(&slab);
        }
        Ok(image)
    };
    let newer = image(br#"{"float":1.0,"map":{},"later":7}"#)?;
    let why = vm.rehearse(&newer).expect_err("of another version").to_string();
    assert!(why.contains("bytes of JSON, read and written again, are others"), "{why}");
    let good = image(br#"{"float":1.0,"map":{}}"#)?;
    vm.rehearse(&good)?;
    assert!(said.take().is_none(), "it does not run");
    vm.take_over(&good, Generation(2), mc_core::id::Epoch(1))?;
    let first = loop {
        if let Some(message) = said.take() {
            break message;
        }
    };
    assert_eq!(first, Some("b"));
    Ok(())
}

#[test]
fn a_step_that_does_not_end_keeps_nobody_waiting_for_ever() -> Result<()> {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Stuck {
        #[serde(skip)]
        goes_on: Option<std::sync::mpsc::Receiver<()>>,
    }
    impl Steps for Stuck {
        type Message = ();
        fn step(&mut self, _: &mut SharedRam) -> Option<()> {
            self.goes_on.as_ref()?.recv().ok()
        }
    }
    let (end, begun) = std::sync::mpsc::channel();
    let (out, said) = inbox()?;
    let mut vm = MemoryVm::stepped(Stuck { goes_on: Some(begun) }, PAGE_SIZE as u64, "x", out)?;
    end.send(())?;
    drop(vm.source()?);
    let mut source = vm.source()?;
    source.begin()?;
    drop(source); // it lets the VM run
    while said.take().is_none() {}
    assert_eq!(vm.life(), Life::Lives, "asked in the middle of a step");
    let why = vm.source()?.begin().expect_err("it is stuck").to_string();
    assert!(why.contains("the VM does not stop: a step of it has not ended for 3s"), "{why}");
    drop(end); // no step waits any more
    vm.fence()?;
    Ok(())
}

#[derive(Clone)]
struct Vcpus;

impl Guest for Vcpus {
    fn pause(&mut self) -> std::io::Result<()> {
        Ok(())
    }
    fn resume(&mut self) -> std::io::Result<()> {
        Ok(())
    }
    fn device(&mut self) -> std::io::Result<Vec<u8>> {
        Ok(Vec::new())
    }
}

impl Cpus for Vcpus {
    fn restore(&mut self, _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_fenced_vm_never_runs_again() -> Result<()> {
    let (out, said) = inbox()?;
    let counter = Counter { count: 0, breaks: false };
    let mut vm = MemoryVm::stepped(counter, PAGE_SIZE as u64, "counter 1", out)?;
    let mut source = vm.source()?;
    mc_core::source::CheckpointSource::begin(&mut source)?;
    vm.fence()?;
    drop(source);
    thread::sleep(Duration::from_millis(20));
    assert!(said.take().is_none());
    Ok(())
}

#[test]
fn a_vm_that_panics_has_died_and_another_ones_profile_is_refused() -> Result<()> {
    let (out, said) = inbox()?;
    let counter = Counter { count: 0, breaks: true };
    let mut vm = MemoryVm::stepped(counter, PAGE_SIZE as u64, "counter 1", out)?;
    let why = vm.prepare(b"counter 2, 4096 bytes of RAM").expect_err("another VM").to_string();
    assert!(why.contains("counter 2") && why.contains("counter 1"), "{why}");
    drop(vm.source()?); // nothing was stopped by it
    let mut source = vm.source()?;
    mc_core::source::CheckpointSource::begin(&mut source)?;
    drop(source); // it lets the VM run
    while vm.life() == Life::Lives {
        thread::yield_now();
    }
    assert_eq!(std::iter::from_fn(|| said.take()).collect::<Vec<u64>>(), [1, 2, 3, 4, 5]);
    let node = mc_core::id::Node { name: "a".parse()?, id: mc_core::id::NodeId([1; 16]) };
    let owner = mc_core::register::Owner { node, instance: 1 };
    vm.leave(&Register { generation: Generation(1), owner, mode: mc_core::register::Mode::Solo })?; // no error: `life` says it
    vm.fence()?;
    Ok(())
}
