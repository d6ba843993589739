//! A VM of two runners in one process, whose arbiter is this test's own.

use anyhow::Result;
use mc_core::{
    id::PAGE_SIZE,
    register::{CasOutcome, Register, generation_of},
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
use std::{path::Path, sync::Arc, thread, time::Duration};
use vmm_memory::{MemoryVm, SharedRam, Steps};

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
    vm.fence()?;
    Ok(())
}
