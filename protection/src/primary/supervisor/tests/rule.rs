//! The rule, against a host and an arbiter on which anything may happen between any two actions: before the VM may run again, or pass
//! packets, the register says (solo, self), and nothing that a dead data path has asked for can change that any more.

use super::*;

/// How many lives are played, and how many things happen in each.
const LIVES: (u64, u32) = (4000, 200);

/// What the data path has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DataPath {
    Dead,
    Solo,
    /// A session has begun.
    Syncing,
}

/// Two hosts and their arbiter.
struct World {
    machine: Supervisor,
    now: Time,
    random: u64,
    register: Register,
    data_path: DataPath,
    /// As the data path knows the register.
    known: Register,
    /// Swaps of data paths, alive or dead, that may arrive at any time, or never.
    under_way: Vec<Swap>,
    /// What the supervisor asked the arbiter.
    asked: Vec<Ask>,
    qemu: Condition,
    /// QEMU has to leave its checkpoints: no session begins.
    leaves: bool,
    over: bool,
    spawned: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            machine: Supervisor::new(Time(0), brief()),
            now: Time(0),
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            register: solo(7),
            data_path: DataPath::Dead,
            known: solo(7),
            under_way: Vec::new(),
            asked: Vec::new(),
            qemu: Condition::Answers,
            leaves: false,
            over: false,
            spawned: 0,
        };
        world.carry_out();
        world
    }

    fn dice(&mut self, sides: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 20) % sides
    }

    fn tell(&mut self, event: Event) {
        self.machine.handle(self.now, event);
        self.carry_out();
    }

    fn say(&mut self, message: ToSupervisor) {
        if self.data_path != DataPath::Dead {
            self.tell(Event::Said(message));
        }
    }

    fn may_run(&self, what: &Action) {
        assert_eq!((self.register.owner, self.register.mode), (here(), Mode::Solo), "{what:?}");
        let late = self.under_way.iter().find(|swap| swap.expect >= self.register.generation);
        assert_eq!(late, None, "may still be won after {what:?}");
    }

    fn carry_out(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            assert!(!self.over, "{action:?} after the end");
            let works = self.qemu == Condition::Answers;
            let came = match &action {
                Action::Spawn(brief) => {
                    self.may_run(&action);
                    assert_eq!(brief.register, self.register);
                    (self.data_path, self.known) = (DataPath::Solo, self.register);
                    self.spawned += 1;
                    Some(Event::Spawned(Ok(())))
                }
                Action::Leave => {
                    if self.data_path == DataPath::Dead {
                        self.may_run(&action);
                    }
                    Some(Event::Left((!works).then(|| "busy".to_owned())))
                }
                Action::Say(ToDataPath::Left { error }) => {
                    self.leaves = error.is_some();
                    None
                }
                Action::AwaitEnd | Action::Kill => {
                    self.data_path = DataPath::Dead;
                    Some(Event::DataPathEnded(String::new()))
                }
                Action::Connect => {
                    let failed = NotConnected { ended: self.qemu == Condition::Gone, relieved: false };
                    Some(Event::Connected(if works { Ok(()) } else { Err(failed) }))
                }
                Action::Fence => Some(Event::Fenced(None)),
                Action::AskCondition => Some(Event::QemuIs(self.qemu)),
                Action::Ask(ask) => {
                    self.asked.push(*ask);
                    None
                }
                Action::EndClaim => {
                    self.asked.clear();
                    None
                }
                Action::Exit(_) => {
                    self.over = true;
                    None
                }
                _ => None,
            };
            if let Some(event) = came {
                self.machine.handle(self.now, event);
            }
        }
    }

    fn swap(&mut self, swap: Swap) -> CasOutcome {
        if swap.expect == self.register.generation {
            self.register = swap.new;
            return CasOutcome::Won(self.register);
        }
        CasOutcome::Lost(Some(self.register))
    }

    /// One thing happens.
    fn happen(&mut self) {
        let ours = |register: &Register| register.owner == here();
        match (self.dice(12), self.data_path) {
            (0, DataPath::Solo) if !self.leaves => {
                self.data_path = DataPath::Syncing;
                self.say(ToSupervisor::StartSource);
            }
            (1 | 2, DataPath::Syncing) => {
                let named = Mode::Protected { standby: there() };
                self.under_way.push(Swap::new(self.known.generation, here(), named));
            }
            (3, DataPath::Syncing) if self.known != self.register && ours(&self.register) => {
                self.known = self.register;
                self.say(ToSupervisor::Protected { generation: self.known.generation });
            }
            (4, DataPath::Syncing) if ours(&self.register) => {
                let swap = Swap::new(self.register.generation, here(), Mode::Solo);
                let CasOutcome::Won(register) = self.swap(swap) else { return };
                (self.known, self.data_path, self.leaves) = (register, DataPath::Solo, true);
                self.say(ToSupervisor::Alone { register });
                self.say(ToSupervisor::LeaveSource);
            }
            (5, DataPath::Solo | DataPath::Syncing) => {
                self.data_path = DataPath::Dead;
                self.tell(Event::Closed);
            }
            (6, _) if !self.under_way.is_empty() => {
                let which = self.dice(self.under_way.len() as u64);
                let swap = self.under_way.remove(usize::try_from(which).unwrap());
                let _ = self.swap(swap);
            }
            (7, _) if self.register.mode == (Mode::Protected { standby: there() }) => {
                self.register = register(self.register.generation.0 + 1, there(), Mode::Solo);
            }
            (8 | 9, _) if !self.asked.is_empty() => match self.asked.remove(0) {
                Ask::Read => self.tell(Event::Arbiter(Arbiter::Read(Some(self.register)))),
                Ask::Cas(swap) => {
                    let outcome = self.swap(swap);
                    self.tell(Event::Arbiter(Arbiter::Cas(outcome)));
                }
            },
            (10, _) => {
                let which = self.dice(40);
                self.qemu = match which {
                    0 => Condition::Gone,
                    1..6 => Condition::Silent,
                    _ if self.qemu == Condition::Gone => Condition::Gone,
                    _ => Condition::Answers,
                };
                if self.qemu == Condition::Gone && self.machine.watches_qemu() {
                    self.tell(Event::QemuGone { orderly: false });
                }
            }
            _ => {
                let ms = [1, 100, 500, 1000][usize::try_from(self.dice(4)).unwrap()];
                self.now = self.now.after(Duration::from_millis(ms));
                self.machine.handle_timeout(self.now);
                self.carry_out();
            }
        }
    }
}

#[test]
fn before_the_vm_may_run_again_the_register_says_solo_and_nothing_can_change_that() {
    let (mut spawned, mut over) = (0, 0);
    for seed in 1..=LIVES.0 {
        let mut world = World::new(seed);
        for _ in 0..LIVES.1 {
            if !world.over {
                world.happen();
            }
        }
        spawned += world.spawned;
        over += u64::from(world.over);
    }
    assert!(u64::from(spawned) > 2 * LIVES.0 && over > LIVES.0 / 10, "{spawned} data paths, {over} ends: too dull");
}
