//! The machine's transitions, one by one; [`rule`] plays it against a host on which anything happens at any moment.

mod deaths;
mod rule;
mod watching;

use super::{
    super::{
        channel::{Brief, ToDataPath, ToSupervisor},
        commanded::Condition,
        vm_health::Health,
    },
    event::{Action, Arbiter, Event, NotConnected},
    machine::Supervisor,
};
use crate::primary::Settings;
use api::OnCapWish;
use mc_core::{
    id::{Generation, Name, Node, NodeId, Time},
    machine::Machine,
    register::{CasOutcome, Mode, Owner, Register, Swap},
};
use node::{
    arbiter::{ArbiterSpec, Ask},
    events::Event as Told,
};
use std::time::Duration;
use vmm_qemu::{inventory::Inventory, profile::Profile};

fn owner(name: &str, id: u8, instance: u64) -> Owner {
    Owner { node: Node { name: Name::new(name).unwrap(), id: NodeId([id; 16]) }, instance }
}

/// The VM's copy here.
fn here() -> Owner {
    owner("web-a", 1, 11)
}

/// The standby's.
fn there() -> Owner {
    owner("web-b", 2, 22)
}

fn register(generation: u64, owner: Owner, mode: Mode) -> Register {
    Register { generation: Generation(generation), owner, mode }
}

fn solo(generation: u64) -> Register {
    register(generation, here(), Mode::Solo)
}

fn protected(generation: u64) -> Register {
    register(generation, here(), Mode::Protected { standby: there() })
}

fn brief() -> Brief {
    let config = Settings {
        vm: Name::new("web").unwrap(),
        node: here().node.name,
        qmp: "/run/web.qmp".into(),
        to: "web-b:7400".parse().unwrap(),
        arbiter: ArbiterSpec::Manual,
        accept_witness: false,
        epoch: Duration::from_millis(20),
        nics: Vec::new(),
        beat_interval: Duration::from_millis(5),
        beat_min_rx: None,
        detect_multiplier: 5,
        stall_after: None,
        commit_deadline: None,
        staging_bytes: 64 << 20,
        on_cap: OnCapWish::default(),
        slab_bytes: 1 << 20,
        window: 2,
        held_limit_bytes: 1 << 20,
        run_dir: "/run".into(),
        state_dir: "/state".into(),
        metrics: None,
        bind: None,
        force_writable_disks: false,
        once: false,
        rejoin: false,
        unheld: Vec::new(),
        paths: node::paths::PathsConfig::tcp(64 << 20),
        config_file: None,
    };
    let profile = Profile {
        qemu_version: "7.2".to_owned(),
        machine: "pc".to_owned(),
        accel: "kvm".to_owned(),
        cpus: Vec::new(),
        devices: Vec::new(),
        blocks: Vec::new(),
        unheld: Vec::new(),
    };
    let (outputs, qemu_pid) = (Inventory::default(), 4711);
    Brief { config, register: solo(7), profile, outputs, qemu_pid, protect: true, stay: true, relieve: true, deaths: 0 }
}

/// A machine, its time, and what it wanted.
struct Play {
    machine: Supervisor,
    now: Time,
}

impl Play {
    /// With a data path that has just begun.
    fn new() -> Self {
        let mut play = Self { machine: Supervisor::new(Time(0), brief()), now: Time(0) };
        assert_eq!(play.wants(), ["spawn 7"]);
        assert!(play.tell(Event::Spawned(Ok(()))).is_empty());
        play
    }

    fn tell(&mut self, event: Event) -> Vec<String> {
        self.machine.handle(self.now, event);
        self.wants()
    }

    fn say(&mut self, message: ToSupervisor) -> Vec<String> {
        self.tell(Event::Said(message))
    }

    fn after(&mut self, ms: u64) -> Vec<String> {
        self.now = self.now.after(Duration::from_millis(ms));
        self.machine.handle_timeout(self.now);
        self.wants()
    }

    fn read(&mut self, held: Register) -> Vec<String> {
        self.tell(Event::Arbiter(Arbiter::Read(Some(held))))
    }

    fn cas(&mut self, outcome: CasOutcome) -> Vec<String> {
        self.tell(Event::Arbiter(Arbiter::Cas(outcome)))
    }

    fn qemu(&mut self, condition: Condition) -> Vec<String> {
        self.tell(Event::QemuIs(condition))
    }

    fn wants(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.machine.poll_action()).map(|action| word(&action)).collect()
    }

    /// The data path has begun to protect the VM, and dies.
    fn dies_protected(&mut self) -> Vec<String> {
        assert_eq!(self.say(ToSupervisor::StartSource), ["perform"]);
        self.say(ToSupervisor::Protected { generation: Generation(8) });
        self.dies()
    }

    fn dies(&mut self) -> Vec<String> {
        assert_eq!(self.tell(Event::Closed), ["await end"]);
        self.tell(Event::DataPathEnded("signal 9".to_owned()))
    }

    /// QEMU answers twice, and is asked for.
    fn asks(&mut self, swap: &str) {
        assert!(self.qemu(Condition::Answers).is_empty());
        assert_eq!(self.after(100), ["ask qemu"]);
        assert_eq!(self.qemu(Condition::Answers), ["emit", swap]);
    }
}

/// An action, in short. What is only told is left out, or is "emit".
fn word(action: &Action) -> String {
    match action {
        Action::Spawn(brief) => {
            assert_eq!((brief.register.owner, brief.register.mode), (here(), Mode::Solo));
            format!("spawn {}", brief.register.generation.0)
        }
        Action::Say(ToDataPath::Left { error: None }) => "say left".to_owned(),
        Action::Say(ToDataPath::Left { error: Some(_) }) => "say not left".to_owned(),
        Action::Say(ToDataPath::VmGone { orderly }) => format!("say gone {orderly}"),
        Action::Say(ToDataPath::Stop) => "say stop".to_owned(),
        Action::Say(ToDataPath::Here) => "say here".to_owned(),
        Action::Say(ToDataPath::Resume) => "say resume".to_owned(),
        Action::Say(_) => "say".to_owned(),
        Action::AwaitEnd => "await end".to_owned(),
        Action::Kill => "kill".to_owned(),
        Action::Connect => "connect".to_owned(),
        Action::Disconnect => "disconnect".to_owned(),
        Action::Perform(_) => "perform".to_owned(),
        Action::Leave => "leave".to_owned(),
        Action::Fence => "fence".to_owned(),
        Action::AskCondition => "ask qemu".to_owned(),
        Action::AskHealth => "ask health".to_owned(),
        Action::BeginClaim => "begin claim".to_owned(),
        Action::Ask(Ask::Read) => "read".to_owned(),
        Action::Ask(Ask::Cas(swap)) => format!("swap {} {}", swap.expect.0, swap.new.owner.node.name),
        Action::EndClaim => "end claim".to_owned(),
        Action::Emit(event) => match **event {
            Told::Fenced(_) => "emit fenced".to_owned(),
            _ => "emit".to_owned(),
        },
        Action::Note(_) => "note".to_owned(),
        Action::Log { .. } => "log".to_owned(),
        Action::Exit(Ok(code)) => format!("exit {}", *code as u8),
        Action::Exit(Err(error)) => format!("exit {}: {}", error.code as u8, error.message),
    }
}

fn code(wants: &[String]) -> Option<&str> {
    wants.last()?.strip_prefix("exit ")?.get(..1)
}
