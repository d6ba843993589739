//! What a witness decides: requests, writes that have ended, and an operator's words go in one by one, with the time; writes to do,
//! answers and replies come out. A value: it knows no socket, disk, clock or thread.

use super::{
    WitnessError,
    counters::Figures,
    operator::{NodeSpec, RegisterReport, Reply as Said, WitnessReport, WitnessRequest},
};
use mc_core::{
    arbiter::{Action, Arbiter, Event, Reply},
    id::{Name, Node, NodeId, Time, WitnessId},
    machine::Machine,
    register::Register,
    wire::arbiter::{Answer, Outcome, Refusal, Request, Standing},
};
use node::arbiter::file::StoreError;
use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::Duration,
};
use tracing::{debug, info, warn};

/// A VM whose nodes told of it within this time is not forgotten.
const ALIVE: Duration = Duration::from_secs(10);

/// What the registrar is told.
#[expect(clippy::large_enum_variant, reason = "moved once per request; a box would be allocated for each")]
#[derive(Debug)]
pub(crate) enum Input {
    /// A client, which has one request under way at a time, asks this.
    Request { from: u64, peer: SocketAddr, request: Request },
    /// A write has ended.
    Stored { vm: Name, result: Result<(), StoreError> },
    /// The storage could store at this time.
    Probed(Time),
    /// An operator asks this.
    Operator { from: u64, request: WitnessRequest },
    /// Finish the writes under way, then end.
    Stop,
}

/// What is to be written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// This register.
    Persist(Name, Register),
    /// That there is none.
    Remove(Name),
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Output {
    /// One write; [`Input::Stored`] tells its end.
    Write(Work),
    /// The answer to a client's request.
    Answer { to: u64, answer: Answer },
    /// To be logged: a write of this VM's register failed.
    NotStored(Name, String),
    /// The reply to an operator.
    Reply { to: u64, reply: Said },
}

/// Who answers.
#[derive(Debug)]
pub(crate) struct Me {
    pub(crate) witness: WitnessId,
    pub(crate) boot: u64,
    /// When the storage could store last: nodes are told with every answer. A disk that hangs is found out by its age.
    pub(crate) probed: Option<Time>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Registrar {
    arbiter: Arbiter,
    me: Me,
    now: Time,
    stopping: bool,
    answers: [u64; 5],
    asked: BTreeMap<u64, SocketAddr>,
    /// When somebody who has seen a VM's register asked last.
    told_at: BTreeMap<Name, Time>,
    /// Operators who wait for a write, and what they are told after it.
    operators: BTreeMap<Name, (u64, String)>,
    outputs: VecDeque<Output>,
}

impl Registrar {
    pub(crate) fn new(arbiter: Arbiter, me: Me) -> Self {
        let (asked, told_at, operators) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (now, stopping, answers, outputs) = (Time(0), false, [0; 5], VecDeque::new());
        Self { arbiter, me, now, stopping, answers, asked, told_at, operators, outputs }
    }

    /// Takes one input; [`Registrar::poll_output`] has what follows from it.
    ///
    /// # Errors
    /// Nobody knows what the disk holds.
    pub(crate) fn handle(&mut self, now: Time, input: Input) -> Result<(), WitnessError> {
        self.now = now;
        match input {
            Input::Stop => self.stopping = true,
            // It is not answered: its client will retry elsewhere, or later.
            Input::Request { .. } | Input::Operator { .. } if self.stopping => {}
            Input::Request { from, peer, request } => self.request(from, peer, request),
            Input::Operator { from, request } => self.operator(from, request),
            Input::Probed(at) => self.me.probed = Some(at),
            Input::Stored { vm, result } => self.stored(vm, result)?,
        }
        Ok(())
    }

    /// What is to be done next, in order.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// It was told to stop, and nothing is being written any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.stopping && !self.arbiter.is_persisting()
    }

    /// With so many connections.
    pub(crate) fn figures(&self, connections: usize) -> Figures {
        let registers = self.arbiter.registers().len() as u64;
        Figures { answers: self.answers, registers, connections: connections as u64 }
    }

    fn request(&mut self, from: u64, peer: SocketAddr, request: Request) {
        self.asked.insert(from, peer);
        self.tell(Event::Request { from, request });
        if request.asker.seen.is_some() && self.arbiter.knows(request.vm) {
            self.told_at.insert(request.vm, self.now);
        }
    }

    /// The machine keeps no time.
    fn tell(&mut self, event: Event) {
        self.arbiter.handle(Time(0), event);
        while let Some(action) = self.arbiter.poll_action() {
            match action {
                Action::Persist { vm, register } => self.outputs.push_back(Output::Write(Work::Persist(vm, register))),
                Action::Remove { vm } => self.outputs.push_back(Output::Write(Work::Remove(vm))),
                Action::Reply { to, request, reply } => self.reply(to, &request, &reply),
            }
        }
    }

    fn reply(&mut self, to: u64, request: &Request, reply: &Reply) {
        let Some(peer) = self.asked.remove(&to) else { return };
        narrate(peer, request, reply);
        self.count_answer(reply.outcome);
        let (witness, boot, probe_age_ms) = (self.me.witness, self.me.boot, self.probe_age_ms());
        let Reply { outcome, standing, held } = *reply;
        let (id, vm) = (request.id, request.vm);
        let answer = Answer { id, vm, witness, boot, probe_age_ms, standing, outcome, held };
        self.outputs.push_back(Output::Answer { to, answer });
    }

    fn probe_age_ms(&self) -> Option<u32> {
        let age = self.now.since(self.me.probed?);
        Some(u32::try_from(age.as_millis()).unwrap_or(u32::MAX - 1).min(u32::MAX - 1))
    }

    fn count_answer(&mut self, outcome: Outcome) {
        let kind = match outcome {
            Outcome::Holds => 0,
            Outcome::Won => 1,
            Outcome::Lost => 2,
            Outcome::Failed => 3,
            Outcome::Refused(_) => 4,
        };
        self.answers[kind] += 1;
    }

    fn stored(&mut self, vm: Name, result: Result<(), StoreError>) -> Result<(), WitnessError> {
        let event = match &result {
            Ok(()) => Event::Persisted { vm },
            Err(e @ StoreError::Unchanged { .. }) => {
                self.outputs.push_back(Output::NotStored(vm, e.to_string()));
                Event::PersistFailed { vm }
            }
            Err(StoreError::Unknown { .. }) => {
                return result.map_err(|source| WitnessError::Storage { vm, source });
            }
        };
        self.tell(event);
        if !self.arbiter.knows(vm) {
            self.told_at.remove(&vm);
        }
        if let Some((to, message)) = self.operators.remove(&vm) {
            let since = self.arbiter.registers().get(&vm).map_or(String::new(), |r| format!(" since {}", r.generation));
            self.say(
                to,
                match &result {
                    Ok(()) => Said::Done(format!("{message}{since}")),
                    Err(e) => Said::Refused(format!("not stored: {e}")),
                },
            );
        }
        Ok(())
    }

    fn say(&mut self, to: u64, reply: Said) {
        self.outputs.push_back(Output::Reply { to, reply });
    }

    fn operator(&mut self, from: u64, request: WitnessRequest) {
        let stored = match request {
            WitnessRequest::List => Err(Said::Report(Box::new(self.report()))),
            WitnessRequest::Assign { vm, node } => self.assign(vm, &node).map(|said| (vm, said)),
            WitnessRequest::Forget { vm } => self.forget(vm).map(|said| (vm, said)),
        };
        match stored {
            Ok((vm, said)) => drop(self.operators.insert(vm, (from, said))),
            Err(reply) => self.say(from, reply),
        }
    }

    fn assign(&mut self, vm: Name, node: &NodeSpec) -> Result<String, Said> {
        let to = self.find(vm, node).map_err(Said::Refused)?;
        self.decide(vm, Event::Assign { vm, to }, format!("{vm} belongs to {to} ({})", to.id))
    }

    fn forget(&mut self, vm: Name) -> Result<String, Said> {
        if !self.arbiter.knows(vm) {
            return Err(Said::Refused(format!(
                "there is no register of {vm}, and no node has reported it: nothing to forget"
            )));
        }
        if self.told_at.get(&vm).is_some_and(|at| self.now.since(*at) < ALIVE) {
            let why = format!(
                "nodes reported {vm} within the last {} s: stop `afterimage` on its hosts first",
                ALIVE.as_secs()
            );
            return Err(Said::Refused(why));
        }
        self.decide(vm, Event::Forget { vm }, format!("{vm} is forgotten"))
    }

    /// What the operator is told once it is stored; or, at once, why it is not.
    fn decide(&mut self, vm: Name, event: Event, said: String) -> Result<String, Said> {
        if self.arbiter.is_busy(vm) {
            return Err(Said::Refused(format!("the register of {vm} is being written: try again")));
        }
        warn!(%vm, "an operator decides: {said}");
        self.tell(event);
        if self.arbiter.is_busy(vm) {
            return Ok(said);
        }
        Err(Said::Refused(format!("the generation of {vm} cannot rise any more: `afterimage witness forget {vm}`")))
    }

    fn find(&self, vm: Name, wanted: &NodeSpec) -> Result<Node, String> {
        if let Some(id) = wanted.id {
            return Ok(Node { name: wanted.name, id });
        }
        let known = self.arbiter.nodes(vm);
        let mut named = known.iter().filter(|node| node.name == wanted.name);
        match (named.next(), named.next()) {
            (Some(node), None) => Ok(*node),
            (one, _) => {
                let why =
                    if one.is_some() { "several nodes have that name" } else { "no node of that name is known here" };
                let known: Vec<_> = known.iter().map(|node| format!("{}={}", node.name, node.id)).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                Err(format!(
                    "{}: {why}; nodes known for {vm}: {known}. Give its `id` too (NAME=ID): it is in the file node-id of that host's --state-dir",
                    wanted.name
                ))
            }
        }
    }

    fn report(&self) -> WitnessReport {
        let registers = self.arbiter.vms().map(|vm| self.report_of(vm)).collect();
        WitnessReport { witness: self.me.witness, probe_age_ms: self.probe_age_ms(), registers }
    }

    fn report_of(&self, vm: Name) -> RegisterReport {
        let named = self.arbiter.nodes(vm);
        let name =
            |id: NodeId| named.iter().find(|n| n.id == id).map_or_else(|| id.to_string(), |n| n.name.to_string());
        let standing = match self.arbiter.standing(vm) {
            Standing::Settled => "settled",
            Standing::Waiting => "waiting",
            Standing::Disputed => "disputed",
        };
        let last_told = self.told_at.get(&vm).map(|at| self.now.since(*at));
        RegisterReport {
            vm,
            register: self.arbiter.registers().get(&vm).copied(),
            standing: standing.to_owned(),
            awaited: self.arbiter.awaited(vm).into_iter().map(name).collect(),
            last_told_ms: last_told.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

fn narrate(peer: SocketAddr, request: &Request, reply: &Reply) {
    let vm = request.vm;
    let held = |r: Option<Register>| r.map_or_else(|| "vacant".to_owned(), |r| r.to_string());
    match reply.outcome {
        Outcome::Won => info!(%vm, %peer, "won: {}", held(reply.held)),
        Outcome::Lost => info!(%vm, %peer, "lost: the register holds {}", held(reply.held)),
        Outcome::Refused(Refusal::NotEntitled) => {
            warn!(%vm, %peer, asker = %request.asker.node, "refused: the register names others: {}", held(reply.held));
        }
        Outcome::Failed => debug!(%vm, %peer, "failed: not stored, or a limit reached"),
        Outcome::Holds | Outcome::Refused(_) => debug!(%vm, %peer, "{:?} {:?}", reply.outcome, reply.standing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::{
        arbiter::Limits,
        id::Generation,
        register::{Mode, Owner, Swap},
        wire::arbiter::{Ask, Asker},
    };
    use std::io;

    const BOOT: u64 = 5;

    fn me() -> Me {
        Me { witness: WitnessId([9; 16]), boot: BOOT, probed: None }
    }

    fn vm() -> Name {
        Name::new("vm").unwrap()
    }

    fn new() -> Register {
        let node = Node { name: Name::new("a").unwrap(), id: NodeId([1; 16]) };
        Register { generation: Generation(1), owner: Owner { node, instance: 1 }, mode: Mode::Solo }
    }

    fn swap() -> Request {
        let asker = Asker { node: NodeId([1; 16]), seen: None, boot: BOOT };
        Request { id: 1, vm: vm(), asker, ask: Ask::Cas(Swap { expect: Generation(0), new: new(), contested: false }) }
    }

    fn run(inputs: Vec<Input>) -> (Result<(), WitnessError>, Vec<Output>, Registrar) {
        let mut registrar = Registrar::new(Arbiter::new(Limits::default(), BOOT), me());
        let result = inputs.into_iter().try_for_each(|input| {
            assert!(!registrar.has_ended());
            registrar.handle(Time(1), input)
        });
        let outputs = std::iter::from_fn(|| registrar.poll_output()).collect();
        (result, outputs, registrar)
    }

    fn request(from: u64) -> Input {
        Input::Request { from, peer: "127.0.0.1:1".parse().unwrap(), request: swap() }
    }

    #[test]
    fn when_nobody_knows_what_is_stored_nobody_is_told_and_it_ends() {
        let source = io::Error::from_raw_os_error(libc::EIO);
        let unknown = StoreError::Unknown { doing: "fsync of directory", path: "state".into(), source };
        let (result, outputs, _) = run(vec![request(1), Input::Stored { vm: vm(), result: Err(unknown) }]);
        let error = result.unwrap_err().to_string();
        assert!(error.contains("vm") && error.contains("fsync of directory state"), "{error}");
        let [Output::Write(work)] = &outputs[..] else { panic!("{outputs:?}") };
        assert_eq!(*work, Work::Persist(vm(), new()));
    }

    #[test]
    fn what_is_being_written_is_finished_before_it_stops() {
        let (result, outputs, registrar) =
            run(vec![request(1), Input::Stop, request(2), Input::Stored { vm: vm(), result: Ok(()) }]);
        result.unwrap();
        assert!(registrar.has_ended());
        let [Output::Write(_), Output::Answer { to: 1, answer }] = &outputs[..] else { panic!("{outputs:?}") };
        assert_eq!((answer.outcome, answer.held, answer.boot), (Outcome::Won, Some(new()), BOOT));
        assert_eq!(answer.probe_age_ms, None, "it has not proved that it can store");
    }

    #[test]
    fn a_register_is_told_in_words() {
        let owner =
            |name: &str| Owner { node: Node { name: Name::new(name).unwrap(), id: NodeId([1; 16]) }, instance: 1 };
        assert_eq!(new().to_string(), "g1, a alone");
        let protected = Register { mode: Mode::Protected { standby: owner("b") }, ..new() };
        assert_eq!(protected.to_string(), "g1, a protected by b");
    }

    #[test]
    fn an_operator_hears_when_it_is_stored_and_what_is_known() {
        let spec = |text: &str| text.parse::<NodeSpec>().unwrap();
        let ask = |from, request| Input::Operator { from, request };
        let assign = |node: &str| WitnessRequest::Assign { vm: vm(), node: spec(node) };
        let id = "02".repeat(16);
        let stored = Input::Stored { vm: vm(), result: Ok(()) };
        let (first, second) = (ask(1, assign("b")), ask(2, assign(&format!("b={id}"))));
        let (result, outputs, _) = run(vec![first, second, stored, ask(3, WitnessRequest::List)]);
        result.unwrap();
        let [
            Output::Reply { to: 1, reply: Said::Refused(message) },
            Output::Write(_),
            Output::Reply { to: 2, reply: Said::Done(_) },
            Output::Reply { to: 3, reply: Said::Report(report) },
        ] = &outputs[..]
        else {
            panic!("{outputs:?}");
        };
        assert!(message.contains("NAME=ID"), "{message}");
        let [only] = &report.registers[..] else { panic!("{report:?}") };
        assert_eq!((only.vm, only.standing.as_str()), (vm(), "settled"));
    }
}
