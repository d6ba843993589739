//! The thread that owns the arbiter: requests, writes that have ended, and an operator's words go in one by one.

use super::{
    WitnessError,
    counters::Counters,
    operator::{NodeSpec, RegisterReport, Reply as Said, ReplyTo, WitnessReport, WitnessRequest},
    storage::{Probe, Work},
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
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, Sender, SyncSender},
    },
    time::{Duration, Instant},
};
use tracing::{debug, error, info, warn};

/// A VM whose nodes told of it within this time is not forgotten.
const ALIVE: Duration = Duration::from_secs(10);

/// What the registrar is told.
#[expect(clippy::large_enum_variant, reason = "moved once per request; a box would be allocated for each")]
#[derive(Debug)]
pub(crate) enum Input {
    /// A request, and where its answer goes.
    Request { peer: SocketAddr, request: Request, answer: SyncSender<Answer> },
    /// A write has ended.
    Stored { vm: Name, result: Result<(), StoreError> },
    /// An operator's word, and where the response goes.
    Operator { request: WitnessRequest, answer: ReplyTo },
    /// Finish the writes under way, then end.
    Stop,
}

/// Who answers.
#[derive(Debug)]
pub(crate) struct Me {
    pub(crate) witness: WitnessId,
    pub(crate) boot: u64,
    pub(crate) probe: Arc<Probe>,
}

/// What the registrar works with.
pub(crate) struct Registrar<'a> {
    arbiter: Arbiter,
    me: Me,
    storage: &'a Sender<Work>,
    counters: &'a Counters,
    asked: BTreeMap<u64, (SocketAddr, SyncSender<Answer>)>,
    /// Requests so far.
    count: u64,
    /// When somebody who has seen a VM's register asked last.
    told_at: BTreeMap<Name, Instant>,
    /// Operators who wait for a write, and what they are told after it.
    operators: BTreeMap<Name, (ReplyTo, String)>,
}

impl<'a> Registrar<'a> {
    pub(crate) fn new(arbiter: Arbiter, me: Me, storage: &'a Sender<Work>, counters: &'a Counters) -> Self {
        let (asked, told_at, operators) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { arbiter, me, storage, counters, asked, count: 0, told_at, operators }
    }

    /// Ends on [`Input::Stop`], or when nobody knows what the disk holds.
    pub(crate) fn run(mut self, inputs: &Receiver<Input>) -> Result<(), WitnessError> {
        let mut stopping = false;
        while !stopping || self.arbiter.is_persisting() {
            self.counters.registers.store(self.arbiter.registers().len() as u64, Ordering::Relaxed);
            let Ok(input) = inputs.recv() else {
                return Ok(());
            };
            match input {
                Input::Stop => stopping = true,
                // Dropping `answer` ends the connection; its client will retry elsewhere, or later.
                Input::Request { .. } | Input::Operator { .. } if stopping => {}
                Input::Request { peer, request, answer } => self.request(peer, request, answer),
                Input::Operator { request, answer } => self.operator(request, answer),
                Input::Stored { vm, result } => self.stored(vm, result)?,
            }
        }
        Ok(())
    }

    fn request(&mut self, peer: SocketAddr, request: Request, answer: SyncSender<Answer>) {
        let from = self.count;
        self.count += 1;
        self.asked.insert(from, (peer, answer));
        self.tell(Event::Request { from, request });
        if request.asker.seen.is_some() && self.arbiter.knows(request.vm) {
            self.told_at.insert(request.vm, Instant::now());
        }
    }

    /// The machine keeps no time.
    fn tell(&mut self, event: Event) {
        self.arbiter.handle(Time(0), event);
        while let Some(action) = self.arbiter.poll_action() {
            match action {
                // The storage thread outlives this one, which holds its sender.
                Action::Persist { vm, register } => drop(self.storage.send(Work::Persist(vm, register))),
                Action::Remove { vm } => drop(self.storage.send(Work::Remove(vm))),
                Action::Reply { to, request, reply } => self.reply(to, &request, &reply),
            }
        }
    }

    fn reply(&mut self, to: u64, request: &Request, reply: &Reply) {
        let Some((peer, answer)) = self.asked.remove(&to) else { return };
        narrate(peer, request, reply);
        self.count_answer(reply.outcome);
        let (witness, boot, probe_age_ms) = (self.me.witness, self.me.boot, self.me.probe.age_ms());
        let Reply { outcome, standing, held } = *reply;
        // A client that has gone meanwhile will ask again.
        let _ = answer.send(Answer {
            id: request.id,
            vm: request.vm,
            witness,
            boot,
            probe_age_ms,
            standing,
            outcome,
            held,
        });
    }

    fn count_answer(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Holds => &self.counters.read,
            Outcome::Won => &self.counters.won,
            Outcome::Lost => &self.counters.lost,
            Outcome::Failed => &self.counters.failed,
            Outcome::Refused(_) => &self.counters.refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn stored(&mut self, vm: Name, result: Result<(), StoreError>) -> Result<(), WitnessError> {
        let event = match &result {
            Ok(()) => Event::Persisted { vm },
            Err(e @ StoreError::Unchanged { .. }) => {
                error!(%vm, "not stored: {e}");
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
        if let Some((answer, message)) = self.operators.remove(&vm) {
            let since = self.arbiter.registers().get(&vm).map_or(String::new(), |r| format!(" since {}", r.generation));
            answer.give(match &result {
                Ok(()) => Said::Done(format!("{message}{since}")),
                Err(e) => Said::Refused(format!("not stored: {e}")),
            });
        }
        Ok(())
    }

    fn operator(&mut self, request: WitnessRequest, answer: ReplyTo) {
        let stored = match request {
            WitnessRequest::List => Err(Said::Report(Box::new(self.report()))),
            WitnessRequest::Assign { vm, node } => self.assign(vm, &node).map(|said| (vm, said)),
            WitnessRequest::Forget { vm } => self.forget(vm).map(|said| (vm, said)),
        };
        match stored {
            Ok((vm, said)) => drop(self.operators.insert(vm, (answer, said))),
            Err(response) => answer.give(response),
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
        if self.told_at.get(&vm).is_some_and(|at| at.elapsed() < ALIVE) {
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
                    "{}: {why}; nodes known for {vm}: {known}. Say NAME=ID; the ID is in the file node-id of that host's --state-dir",
                    wanted.name
                ))
            }
        }
    }

    fn report(&self) -> WitnessReport {
        let registers = self.arbiter.vms().map(|vm| self.report_of(vm)).collect();
        WitnessReport { witness: self.me.witness, probe_age_ms: self.me.probe.age_ms(), registers }
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
        let last_told = self.told_at.get(&vm).map(Instant::elapsed);
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
    let held = |r: Option<Register>| match r {
        Some(r) => format!("{} {} {:?}", r.generation, r.owner.node, r.mode),
        None => "vacant".to_owned(),
    };
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
    use std::{
        io,
        sync::mpsc::{RecvTimeoutError, channel, sync_channel},
    };

    const BOOT: u64 = 5;

    fn me() -> Me {
        Me { witness: WitnessId([9; 16]), boot: BOOT, probe: Arc::new(Probe::default()) }
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

    fn run(inputs: Vec<Input>) -> (Result<(), WitnessError>, Vec<Work>) {
        let (sender, inbox) = channel();
        let (work, todo) = channel();
        inputs.into_iter().for_each(|input| sender.send(input).unwrap());
        let counters = Counters::default();
        let arbiter = Arbiter::new(Limits::default(), BOOT);
        let result = Registrar::new(arbiter, me(), &work, &counters).run(&inbox);
        (result, todo.try_iter().collect())
    }

    fn request(answer: SyncSender<Answer>) -> Input {
        Input::Request { peer: "127.0.0.1:1".parse().unwrap(), request: swap(), answer }
    }

    #[test]
    fn when_nobody_knows_what_is_stored_nobody_is_told_and_it_ends() {
        let (answer, answered) = sync_channel(1);
        let source = io::Error::from_raw_os_error(libc::EIO);
        let unknown = StoreError::Unknown { doing: "fsync of directory", path: "state".into(), source };
        let (result, work) = run(vec![request(answer), Input::Stored { vm: vm(), result: Err(unknown) }]);
        let error = result.unwrap_err().to_string();
        assert!(error.contains("vm") && error.contains("fsync of directory state"), "{error}");
        assert_eq!(work, [Work::Persist(vm(), new())]);
        assert_eq!(answered.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn what_is_being_written_is_finished_before_it_stops() {
        let (answer, answered) = sync_channel(1);
        let (late, too_late) = sync_channel(1);
        let (result, _) =
            run(vec![request(answer), Input::Stop, request(late), Input::Stored { vm: vm(), result: Ok(()) }]);
        result.unwrap();
        let told = answered.recv().unwrap();
        assert_eq!((told.outcome, told.held, told.boot), (Outcome::Won, Some(new()), BOOT));
        assert_eq!(told.probe_age_ms, None, "it has not proved that it can store");
        assert_eq!(too_late.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn an_operator_hears_when_it_is_stored_and_what_is_known() {
        let mut answered = Vec::new();
        let spec = |text: &str| text.parse::<NodeSpec>().unwrap();
        let mut ask = |request| {
            let (sender, answers) = sync_channel(1);
            let answer = ReplyTo::new(move |said| drop(sender.send(said)));
            answered.push(answers);
            Input::Operator { request, answer }
        };
        let assign = |node: &str| WitnessRequest::Assign { vm: vm(), node: spec(node) };
        let id = "02".repeat(16);
        let stored = || Input::Stored { vm: vm(), result: Ok(()) };
        let (first, second, list) = (ask(assign("b")), ask(assign(&format!("b={id}"))), ask(WitnessRequest::List));
        let inputs = vec![first, second, stored(), list, Input::Stop];
        let (result, work) = run(inputs);
        result.unwrap();
        assert_eq!(work.len(), 1);
        let said: Vec<Said> = answered.into_iter().map(|answer| answer.try_recv().unwrap()).collect();
        let [Said::Refused(message), Said::Done(_), Said::Report(report)] = &said[..] else {
            panic!("{said:?}");
        };
        assert!(message.contains("NAME=ID"), "{message}");
        let [only] = &report.registers[..] else { panic!("{report:?}") };
        assert_eq!((only.vm, only.standing.as_str()), (vm(), "settled"));
    }
}
