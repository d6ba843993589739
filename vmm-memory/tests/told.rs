//! What an embedder is told when a VM is not protected, or not run at all. One test: a process has one journal.

use anyhow::Result;
use mc_core::{
    id::{Name, PAGE_SIZE},
    register::{CasOutcome, Mode, Register, generation_of},
};
use node::{
    HostSettings,
    arbiter::{Answer, ArbiterClient, ArbiterSpec, Ask, Attempt, Backend},
    events::{self, Process, Side},
    gate::messages,
    primary::{self, PrimaryLoop},
    standby,
};
use parking_lot::Mutex;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};
use vmm_memory::{MemoryVm, SharedRam, Stepped, Steps};

/// Counts, or breaks.
#[derive(serde::Serialize, serde::Deserialize)]
struct Vm {
    number: f64,
    breaks: bool,
}

impl Steps for Vm {
    type Message = ();

    fn step(&mut self, _: &mut SharedRam) -> Option<()> {
        assert!(!self.breaks, "it breaks");
        thread::sleep(Duration::from_millis(1));
        None
    }
}

/// An arbiter that can be away.
#[derive(Clone, Default)]
struct Own {
    held: Arc<Mutex<Option<Register>>>,
    away: Arc<AtomicBool>,
}

impl Backend for Own {
    fn attempt(&mut self, ask: &Ask, _: bool) -> Attempt {
        if self.away.load(Relaxed) {
            return Attempt::Unreachable("the database does not answer".to_owned());
        }
        let mut held = self.held.lock();
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

struct World {
    dir: tempfile::TempDir,
    own: Own,
    vm: Name,
}

type Runner = primary::Runner<MemoryVm<Stepped<Vm>, ()>>;

impl World {
    fn client(&self) -> Result<ArbiterClient> {
        Ok(ArbiterClient::with_backend("own", self.vm, Box::new(self.own.clone()))?)
    }

    fn host(&self, name: &str) -> Result<HostSettings> {
        let arbiter = ArbiterSpec::Other("own".to_owned());
        let host = HostSettings::new(self.vm, name.parse()?, arbiter, self.dir.path().join(name));
        Ok(host.beating(Duration::from_millis(100), 10))
    }

    fn primary(&self, name: &str, state: Vm, to: std::net::SocketAddr) -> Result<Runner> {
        let (out, gate) = messages(drop)?;
        let vm = MemoryVm::stepped(state, PAGE_SIZE as u64, "x", out)?;
        primary::Runner::with_arbiter(primary::Settings::new(self.host(name)?, to), self.client()?, vm, gate)
    }

    fn told(&self) -> Result<String> {
        fn all(dir: &Path, text: &mut String) -> Result<()> {
            for entry in std::fs::read_dir(dir)? {
                let path = entry?.path();
                match path.is_dir() {
                    true => all(&path, text)?,
                    false => *text += &String::from_utf8_lossy(&std::fs::read(path)?),
                }
            }
            Ok(())
        }
        events::flush(Duration::from_secs(5));
        let mut text = String::new();
        all(&self.dir.path().join("journal"), &mut text)?;
        Ok(text)
    }
}

#[test]
fn why_a_vm_is_not_protected_or_not_run() -> Result<()> {
    let world = World { dir: tempfile::tempdir()?, own: Own::default(), vm: "web".parse()? };
    let journal = world.dir.path().join("journal");
    events::record(world.vm, Side::Primary, "a".parse()?, Process::DataPath, &journal)?;
    let (out, _gate) = messages(drop)?;
    let copy = MemoryVm::stepped(Vm { number: 0., breaks: false }, PAGE_SIZE as u64, "x", out)?;
    let there = standby::Settings::new(world.host("b")?, "127.0.0.1:0".parse()?);
    let waits = standby::Runner::with_arbiter(there, world.client()?, copy)?;
    let to = waits.listens_at();
    thread::spawn(move || waits.run());

    // The arbiter is away until that is told.
    world.own.away.store(true, Relaxed);
    let mut runner = thread::scope(|scope| {
        scope.spawn(|| {
            while world.told().is_ok_and(|told| !told.contains("waiting-for-arbiter")) {
                thread::sleep(Duration::from_millis(10));
            }
            world.own.away.store(false, Relaxed);
        });
        world.primary("a", Vm { number: f64::NAN, breaks: false }, to)
    })?;
    let told = world.told()?;
    assert!(
        told.contains("web is not run before the arbiter own has answered: the database does not answer"),
        "{told}"
    );

    // No checkpoint of it can be restored.
    while !world.told()?.contains(r#""event":"source-broken""#) {
        runner.turn()?;
    }
    let told = world.told()?;
    assert!(told.contains("the VM's state cannot be restored: invalid type: null, expected f64"), "{told}");
    assert!(!told.contains(r#""event":"protected""#), "{told}");

    // Who runs it already, and who owns it.
    let fine = || Vm { number: 1., breaks: false };
    let refused = |name| world.primary(name, fine(), to).map(drop).map_err(|error| error.to_string());
    let why = refused("a").expect_err("it runs");
    assert!(why.starts_with(&format!("process {} runs web, or stands by for it", std::process::id())), "{why}");
    let why = refused("c").expect_err("it is another node's");
    assert!(why.starts_with("web belongs to another node, a, since generation ") && why.contains("Stand by"), "{why}");

    // A VM that died unprotected is started again.
    drop(runner);
    let runner = world.primary("a", Vm { number: 1., breaks: true }, to)?;
    assert_eq!(runner.run()?, primary::End::VmGone);
    assert!(world.told()?.contains(r#""event":"vm-gone""#));
    drop(world.primary("a", fine(), to)?);

    // One that died protected is the standby's.
    let held = world.own.held.lock().expect("a register");
    let standby = mc_core::register::Owner { instance: 7, ..held.owner };
    *world.own.held.lock() = Some(Register { mode: Mode::Protected { standby }, ..held });
    let why = refused("a").expect_err("the standby has the last commit");
    assert!(why.contains("an earlier process of this node ran web") && why.contains("that one takes over"), "{why}");
    Ok(())
}
