//! The machine's transitions, one by one; [`rule`] plays it against a host on which anything happens at any moment.

mod rule;

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

const CLAIM: [&str; 4] = ["emit", "log", "begin claim", "read"];

#[test]
fn one_that_asked_for_nothing_is_followed_at_once() {
    let mut play = Play::new();
    assert_eq!(play.dies(), ["emit", "log", "ask qemu"]);
    assert_eq!(play.qemu(Condition::Silent), ["ask qemu"], "it may run, and miss its network");
    assert_eq!(play.qemu(Condition::Silent), ["spawn 7"]);
    assert_eq!(play.machine.brief().deaths, 1);
    play.tell(Event::Spawned(Ok(())));
    // The next ones wait, but not once one has lived.
    assert_eq!(play.dies(), ["emit", "log", "ask qemu"]);
    play.qemu(Condition::Answers);
    assert!(play.qemu(Condition::Answers).is_empty());
    assert_eq!(play.after(60_000), ["spawn 7"]);
    play.tell(Event::Spawned(Ok(())));
    play.after(61_000);
    play.dies();
    assert_eq!(play.machine.brief().deaths, 1);
}

#[test]
fn one_that_is_alone_again_is_followed_at_once_with_the_register_it_told() {
    let mut play = Play::new();
    play.say(ToSupervisor::StartSource);
    play.say(ToSupervisor::Protected { generation: Generation(8) });
    play.say(ToSupervisor::Alone { register: solo(9) });
    assert_eq!(play.say(ToSupervisor::LeaveSource), ["leave"]);
    assert_eq!(play.tell(Event::Left(Some("busy".to_owned()))), ["log", "say not left"]);
    assert_eq!(play.dies(), ["emit", "log", "ask qemu"]);
    assert_eq!(play.qemu(Condition::Answers), ["leave", "ask qemu"], "it had begun");
    play.tell(Event::Left(Some("busy".to_owned())));
    assert_eq!(play.qemu(Condition::Answers), ["spawn 9"]);
    assert_eq!(play.tell(Event::Spawned(Ok(()))), ["say not left"]);
}

#[test]
fn one_that_may_have_asked_is_followed_only_when_the_swap_is_won() {
    let mut play = Play::new();
    assert_eq!(play.dies_protected(), CLAIM);
    assert_eq!(play.read(protected(8)), ["emit", "ask qemu"]);
    play.asks("swap 8 web-a");
    assert_eq!(play.cas(CasOutcome::Won(solo(9))), ["emit", "ask qemu"]);
    assert_eq!(play.qemu(Condition::Answers), ["end claim", "leave", "ask qemu"]);
    assert!(play.tell(Event::Left(None)).is_empty());
    assert_eq!(play.qemu(Condition::Answers), ["spawn 9"]);
}

#[test]
fn a_register_that_says_solo_already_is_swapped_all_the_same() {
    let mut play = Play::new();
    play.dies_protected();
    assert_eq!(play.read(solo(7)), ["emit", "ask qemu"]);
    play.asks("swap 7 web-a");
    // The dead one's request came first.
    let lost = play.cas(CasOutcome::Lost(Some(protected(8))));
    assert_eq!(lost, ["emit", "ask qemu"]);
    play.asks("swap 8 web-a");
}

#[test]
fn what_another_node_owns_is_fenced() {
    let mut play = Play::new();
    play.dies_protected();
    let taken = register(9, there(), Mode::Solo);
    assert_eq!(play.read(taken), ["emit", "end claim", "emit fenced", "fence"]);
    let exit = play.tell(Event::Fenced(None));
    assert_eq!(code(&exit), Some("4"));
    assert!(exit[0].ends_with("this copy was stopped"), "{exit:?}");

    let mut play = Play::new();
    play.dies_protected();
    play.read(protected(8));
    play.asks("swap 8 web-a");
    assert_eq!(play.cas(CasOutcome::Lost(Some(taken))), ["emit", "end claim", "emit fenced", "fence"]);
    let exit = play.tell(Event::Fenced(Some("EPERM".to_owned())));
    assert!(exit[0].contains("could not be stopped (EPERM)"), "{exit:?}");
}

#[test]
fn a_vm_that_is_gone_is_left_to_its_standby() {
    let mut play = Play::new();
    play.dies_protected();
    play.read(protected(8));
    let exit = play.qemu(Condition::Gone);
    assert_eq!((code(&exit), exit[0].as_str()), (Some("4"), "end claim"));
    assert!(exit[1].contains("web-b has the VM's last commit"), "{exit:?}");
}

#[test]
fn a_vm_that_dies_while_it_is_won_is_handed_back() {
    let mut play = Play::new();
    play.dies_protected();
    play.read(protected(8));
    play.asks("swap 8 web-a");
    play.cas(CasOutcome::Won(solo(9)));
    assert_eq!(play.qemu(Condition::Gone), ["log", "emit", "emit", "swap 9 web-b"]);
    let exit = play.cas(CasOutcome::Won(register(10, there(), Mode::Solo)));
    assert_eq!(code(&exit), Some("4"));

    // Not one whose standby may lack what the VM has sent; nor when the arbiter does not answer.
    let mut play = Play::new();
    play.say(ToSupervisor::StartSource);
    play.dies();
    play.read(protected(8));
    play.asks("swap 8 web-a");
    play.cas(CasOutcome::Won(solo(9)));
    let exit = play.qemu(Condition::Gone);
    assert!(exit.last().unwrap().contains("Nobody runs it"), "{exit:?}");
}

#[test]
fn a_qemu_that_says_nothing_is_left_to_its_standby_in_the_end() {
    let mut play = Play::new();
    play.dies_protected();
    play.read(protected(8));
    assert_eq!(play.qemu(Condition::Silent), ["log", "emit", "note"]);
    for _ in 0..19 {
        assert_eq!(play.after(500), ["ask qemu"]);
        assert!(play.qemu(Condition::Silent).is_empty());
    }
    play.after(500);
    let exit = play.qemu(Condition::Silent);
    assert!(exit[1].starts_with("exit 4: the data path died, and QEMU does not answer"), "{exit:?}");
}

#[test]
fn a_vm_that_was_shut_down_takes_a_swap_and_ends() {
    let mut play = Play::new();
    play.dies_protected();
    play.tell(Event::QemuGone { orderly: true });
    assert!(!play.machine.watches_qemu());
    play.read(protected(8));
    assert_eq!(play.qemu(Condition::ShutDown), ["emit", "swap 8 web-a"]);
    play.cas(CasOutcome::Won(solo(9)));
    assert_eq!(play.qemu(Condition::ShutDown), ["end claim", "exit 0"]);
}

#[test]
fn what_goes_wrong_while_it_is_claimed_is_tried_again() {
    let mut play = Play::new();
    play.dies_protected();
    assert_eq!(play.tell(Event::Arbiter(Arbiter::Read(None))), ["emit", "end claim", "log"]);
    assert_eq!(play.after(1000), ["log", "begin claim", "read"]);
    assert_eq!(play.tell(Event::NoClaim("busy".to_owned())), ["log"]);
    assert_eq!(play.after(1000), ["log", "begin claim", "read"]);
    assert!(play.tell(Event::NoClaim("busy".to_owned())).is_empty(), "said once");
}

#[test]
fn an_operators_word_counts_with_the_newest_register_that_was_seen() {
    let mut play = Play::new();
    play.dies_protected();
    let heard = play.tell(Event::Arbiter(Arbiter::Operator { seen: Some(protected(8)) }));
    assert_eq!(heard, ["emit", "ask qemu"]);
    play.asks("swap 8 web-a");
}

#[test]
fn an_end_that_is_said_is_one_once_qemu_has_left() {
    let mut play = Play::new();
    play.say(ToSupervisor::StartSource);
    assert_eq!(play.say(ToSupervisor::LeaveSource), ["leave"]);
    play.tell(Event::Left(Some("busy".to_owned())));
    let done = ToSupervisor::Ending { code: 0, why: "handed over".to_owned() };
    assert_eq!(play.say(done), ["emit", "await end"]);
    assert!(play.tell(Event::DataPathEnded("exit 0".to_owned())).is_empty());
    assert_eq!(play.after(200), ["leave"]);
    assert_eq!(play.tell(Event::Left(None)), ["exit 0"]);
}

#[test]
fn a_signal_while_qemu_has_not_left_ends_it_with_a_word() {
    let mut play = Play::new();
    play.say(ToSupervisor::LeaveSource);
    play.tell(Event::Left(Some("busy".to_owned())));
    play.say(ToSupervisor::Ending { code: 0, why: String::new() });
    play.tell(Event::DataPathEnded(String::new()));
    let exit = play.tell(Event::Signals(1));
    assert!(exit[0].contains("the VM may stand still"), "{exit:?}");
}

#[test]
fn a_fence_that_failed_is_said_with_the_end() {
    let mut play = Play::new();
    assert_eq!(play.say(ToSupervisor::Fence), ["fence"]);
    play.tell(Event::Fenced(Some("EPERM".to_owned())));
    play.say(ToSupervisor::Ending { code: 4, why: "fenced".to_owned() });
    let exit = play.tell(Event::DataPathEnded("exit 4".to_owned()));
    assert!(exit[0].starts_with("exit 4: fenced; but its QEMU could not be stopped (EPERM)"), "{exit:?}");
}

#[test]
fn signals_are_the_data_paths_and_one_that_does_not_obey_is_killed() {
    let mut play = Play::new();
    assert_eq!(play.tell(Event::Signals(1)), ["say stop"]);
    play.say(ToSupervisor::Stopping);
    assert_eq!(play.tell(Event::Signals(1)), ["say stop"]);
    assert_eq!(play.after(2900), ["say here", "ask health"]);
    let exit = play.after(100);
    assert_eq!((exit[0].as_str(), code(&exit)), ("kill", Some("3")));
}

#[test]
fn a_signal_without_a_data_path_is_told_to_the_next_and_the_second_is_obeyed() {
    let mut play = Play::new();
    play.tell(Event::Spawned(Err("no memory".to_owned())));
    play.qemu(Condition::Answers);
    play.qemu(Condition::Answers);
    play.tell(Event::Spawned(Err("no memory".to_owned())));
    play.qemu(Condition::Answers);
    play.qemu(Condition::Answers);
    assert!(play.tell(Event::Signals(1)).is_empty());
    assert_eq!(play.after(60_000), ["spawn 7"]);
    assert_eq!(play.tell(Event::Spawned(Ok(()))), ["say stop"]);

    let mut play = Play::new();
    play.dies_protected();
    assert_eq!(play.tell(Event::Signals(1)), ["log", "emit", "note"]);
    let exit = play.tell(Event::Signals(1));
    assert_eq!((exit[0].as_str(), code(&exit)), ("end claim", Some("3")));
}

#[test]
fn a_successor_that_does_not_come_leaves_qemu_to_this_one() {
    let mut play = Play::new();
    assert_eq!(play.say(ToSupervisor::MakeWay), ["disconnect"]);
    assert_eq!(play.after(5000), ["connect", "say here"]);
    let failed = |ended, relieved| Event::Connected(Err(NotConnected { ended, relieved }));
    assert!(play.tell(failed(false, false)).is_empty());
    assert_eq!(play.after(1000), ["connect", "say here"]);
    assert_eq!(play.tell(Event::Connected(Ok(()))), ["log", "say resume"]);

    // Of a data path that dies meanwhile: the successor has the VM, or nobody has.
    let mut play = Play::new();
    play.say(ToSupervisor::MakeWay);
    assert_eq!(play.dies(), ["emit", "connect"]);
    assert!(play.tell(failed(false, false)).is_empty());
    assert_eq!(play.after(1000), ["connect"]);
    assert_eq!(play.tell(failed(false, true)), ["exit 0"]);
}

#[test]
fn the_vms_end_and_its_health_are_told() {
    let mut play = Play::new();
    assert_eq!(play.after(1000), ["say here", "ask health"]);
    assert!(play.tell(Event::VmIs(Health::Runs)).is_empty());
    assert_eq!(play.tell(Event::VmIs(Health::Halted("io-error".to_owned()))), ["say"]);
    play.say(ToSupervisor::LeaveSource);
    play.tell(Event::Left(Some("busy".to_owned())));
    assert_eq!(play.tell(Event::QemuGone { orderly: true }), ["say gone true"]);
    assert!(!play.machine.watches_qemu());
    assert_eq!(play.after(1000), ["say here"], "nothing is left to leave");
    assert!(play.say(ToSupervisor::LeaveSource).is_empty());
}

#[test]
fn a_channel_that_breaks_ends_the_process_behind_it() {
    let mut play = Play::new();
    assert_eq!(play.tell(Event::Broken("no JSON".to_owned())), ["kill"]);
    assert_eq!(play.tell(Event::DataPathEnded("signal 9".to_owned())), ["emit", "log", "ask qemu"]);
}

#[test]
fn what_the_data_path_was_told_the_next_one_begins_with() {
    let mut play = Play::new();
    let config = Settings { epoch: Duration::from_millis(50), ..brief().config };
    play.say(ToSupervisor::Changed(Box::new(config)));
    play.say(ToSupervisor::Wanted { protect: false });
    let next = play.machine.brief();
    assert_eq!((next.config.epoch.as_millis(), next.protect, next.relieve), (50, false, false));
}
