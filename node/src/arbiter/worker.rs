//! The thread that asks the arbiter one question at a time, and repeats it until it is answered.

use super::{Answer, Ask, Health, Told};
use crate::{outside, wake::Wake};
use mc_core::{
    id::{Name, WitnessId},
    register::{Register, Swap},
    seen::Fault,
};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::{info, warn};

/// A way to reach the arbiter: whoever keeps registers elsewhere than in a witness implements this.
///
/// It is called by the client's own thread, which tries again until it is answered. It must be linearizable (a swap that was told as
/// won was won by nobody else), idempotent (a register that holds what is asked for is a swap won), and durable (what it told is so after
/// a crash). What a node has seen of a register must outlive the node's process, too: an answer that is less than what was seen is
/// [`Attempt::Fault`] ([`mc_core::seen::Seen`] compares them).
///
/// ```
/// use mc_core::register::{CasOutcome, Register, generation_of};
/// use node::arbiter::{Answer, ArbiterClient, Ask, Attempt, Backend};
/// use std::sync::{Arc, Mutex};
///
/// /// A register that both sides reach as memory. A real one is a row of a database, or a key of etcd.
/// struct Shared(Arc<Mutex<Option<Register>>>);
///
/// impl Backend for Shared {
///     fn attempt(&mut self, ask: &Ask, _: bool) -> Attempt {
///         let mut held = self.0.lock().unwrap();
///         Attempt::Answer(match ask {
///             Ask::Read => Answer::Read(*held),
///             Ask::Cas(swap) if generation_of(held.as_ref()) == swap.expect || *held == Some(swap.new) => {
///                 *held = Some(swap.new);
///                 Answer::Cas(CasOutcome::Won(swap.new))
///             }
///             Ask::Cas(_) => Answer::Cas(CasOutcome::Lost(*held)),
///         })
///     }
/// }
///
/// let register = Arc::new(Mutex::new(None));
/// let client = ArbiterClient::with_backend("shared", "web".parse()?, Box::new(Shared(register)))?;
/// client.ask(Ask::Read); // the answer comes to `take_answer`, once the client's descriptor is readable
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Backend: Send {
    /// Tries once, for a second or so at most. `decided`: the operator says that a contested swap is won.
    fn attempt(&mut self, ask: &Ask, decided: bool) -> Attempt;

    /// How often to read while nothing is asked, to know whether it could be; `None` for never.
    fn check_every(&self) -> Option<Duration> {
        Some(Duration::from_secs(1))
    }

    /// The witness that this node knows; none if it asks no witness.
    fn witness(&self) -> WitnessId {
        WitnessId::NONE
    }

    /// The highest register that this node is known to have seen; `manual` keeps none.
    fn seen(&self) -> Option<Register> {
        None
    }

    /// What the last answer said of the witness.
    fn told(&self) -> Option<Told> {
        None
    }
}

/// How a try ended.
#[derive(Debug)]
pub enum Attempt {
    /// Answered.
    Answer(Answer),
    /// By the operator, since the arbiter cannot answer.
    Decided(Answer),
    /// Answered, with what cannot be believed. Try again.
    Fault(Fault),
    /// Reached, but it could not answer. Try again.
    Refused(String),
    /// This node cannot keep what it hears, and acts on nothing that it could not keep. Try again.
    NotKept(String),
    /// Not reached. Try again.
    Unreachable(String),
    /// Nobody but the operator can answer.
    Operator(String),
}

/// Between two tries: at first …
const BACKOFF: Duration = Duration::from_millis(50);
/// … and at most.
const BACKOFF_MAX: Duration = Duration::from_millis(200);

/// So long an arbiter has to be unable to answer before its operator may answer in its stead.
const OPERATOR_AFTER: Duration = Duration::from_secs(3);

/// A try that has not ended for so long does not end by itself: the name service, or the disk of `--state-dir`, hangs.
const HUNG: Duration = Duration::from_secs(5);

/// Its owner looks more often than this, unless this process was away: stopped by a signal, starved, suspended.
const AWAY: Duration = Duration::from_millis(2_500);

/// When the worker got on, and when its owner looked at it.
///
/// A process that was away finds its last answer old, and nobody but itself has been silent. So what has passed counts from its
/// return at the earliest: the worker asks first.
#[derive(Clone, Copy, Debug)]
struct Turns {
    /// Since when the worker tries; `None`: it does not.
    trying_since: Option<Instant>,
    /// When its last try ended; `None` if it need not try by itself.
    tried: Option<Instant>,
    looked: Instant,
    /// When this process was there again.
    back: Instant,
}

impl Turns {
    fn new(now: Instant, by_itself: bool) -> Self {
        Self { trying_since: None, tried: by_itself.then_some(now), looked: now, back: now }
    }

    fn ended(&mut self, now: Instant) {
        (self.trying_since, self.tried) = (None, self.tried.map(|_| now));
    }

    /// The owner looks. Since when the worker has not got on, if that is too long.
    fn look(&mut self, now: Instant) -> Option<Instant> {
        if now.duration_since(std::mem::replace(&mut self.looked, now)) >= AWAY {
            self.back = now;
        }
        let since = self.trying_since.or(self.tried)?.max(self.back);
        (now.duration_since(since) >= HUNG).then_some(since)
    }
}

/// What the worker and its owner share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether contested swaps are always an operator's to decide.
    by_operator: bool,
    pub(super) wake: Arc<Wake>,
}

#[derive(Debug)]
struct State {
    /// The first one is being asked. As long as the machines' few open questions: equal ones are joined.
    asks: VecDeque<Ask>,
    answers: VecDeque<Answer>,
    health: Health,
    /// What this node has seen.
    seen: Option<Register>,
    turns: Turns,
    /// Since when no try was answered.
    unable_since: Option<Instant>,
    /// The first ask waits for the operator …
    parked: bool,
    /// … who has decided, perhaps before the worker got as far as to wait.
    decided: bool,
    stop: bool,
}

impl Shared {
    pub(super) fn new(wake: Arc<Wake>, by_operator: bool, backend: &dyn Backend) -> Self {
        let (since, witness) = (outside::instant(), backend.witness());
        let (last_error, fault, told) = (None, None, None);
        let health = Health { reachable: false, since, last_error, fault, own_trouble: false, witness, told };
        let state = State {
            asks: VecDeque::new(),
            answers: VecDeque::new(),
            health,
            seen: backend.seen(),
            turns: Turns::new(since, backend.check_every().is_some()),
            unable_since: None,
            parked: false,
            decided: false,
            stop: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), by_operator, wake }
    }

    pub(super) fn ask(&self, ask: Ask) {
        let mut state = self.state.lock();
        if !state.asks.contains(&ask) {
            state.asks.push_back(ask);
            self.changed.notify_all();
        }
    }

    pub(super) fn take_answer(&self) -> Option<Answer> {
        let mut state = self.state.lock();
        let answer = state.answers.pop_front();
        if answer.is_none() {
            // Under the lock, so that an answer which comes now raises it again.
            self.wake.clear();
        }
        answer
    }

    pub(super) fn health(&self) -> Health {
        let mut state = self.state.lock();
        let stuck = state.turns.look(outside::instant());
        let health = state.health.clone();
        let Some(since) = stuck else { return health };
        let why = format!(
            "this node has waited for {} s for its name service or for the disk of --state-dir",
            outside::instant().duration_since(since).as_secs()
        );
        let since = if health.reachable { since } else { health.since };
        Health { reachable: false, since, last_error: Some(why), own_trouble: true, ..health }
    }

    pub(super) fn seen(&self) -> Option<Register> {
        self.state.lock().seen
    }

    pub(super) fn operator_decides(&self) -> bool {
        let mut state = self.state.lock();
        state.decided = self.may_decide(&state) && state.asks.iter().any(is_contested);
        self.changed.notify_all();
        state.decided
    }

    pub(super) fn operator_may_decide(&self) -> bool {
        self.may_decide(&self.state.lock())
    }

    fn may_decide(&self, state: &State) -> bool {
        self.by_operator
            || state.unable_since.is_some_and(|since| outside::instant().duration_since(since) >= OPERATOR_AFTER)
    }

    pub(super) fn stop(&self) {
        self.state.lock().stop = true;
        self.changed.notify_all();
    }

    /// The next question to try, or a read if none comes until `check_at`; `None` to stop.
    fn next(&self, check_at: Option<Instant>, not_before: Instant) -> Option<(Option<Ask>, bool)> {
        let mut state = self.state.lock();
        loop {
            match self.look(&mut state, check_at, not_before) {
                Next::Stop => return None,
                Next::Try(ask, decided) => return Some((ask, decided)),
                Next::Wait(Some(until)) => drop(self.changed.wait_until(&mut state, until)),
                Next::Wait(None) => self.changed.wait(&mut state),
            }
        }
    }

    fn look(&self, state: &mut State, check_at: Option<Instant>, not_before: Instant) -> Next {
        let now = outside::instant();
        if state.stop {
            return Next::Stop;
        }
        let first = self.due(state);
        if first.is_some() && (now >= not_before) {
            state.turns.trying_since = Some(now);
            return Next::Try(first, state.decided);
        }
        if first.is_none() && !state.parked && check_at.is_some_and(|at| now >= at) {
            state.turns.trying_since = Some(now);
            return Next::Try(None, false);
        }
        Next::Wait(if first.is_some() { Some(not_before) } else { check_at.filter(|_| !state.parked) })
    }

    /// The question to try first: the oldest; but one that the operator decides does not wait for those that only the arbiter
    /// could answer.
    fn due(&self, state: &State) -> Option<Ask> {
        let decided = state.asks.iter().find(|ask| is_contested(ask) && state.decided && !self.by_operator);
        decided.or_else(|| state.asks.front().filter(|_| !state.parked || state.decided)).copied()
    }

    /// Books a try. `asked`: the question, or `None` for a check.
    fn book(&self, asked: Option<&Ask>, attempt: Attempt, backend: &dyn Backend, vm: Name) {
        let mut state = self.state.lock();
        let before = state.health.clone();
        state.turns.ended(outside::instant());
        (state.health.witness, state.health.told, state.seen) = (backend.witness(), backend.told(), backend.seen());
        if !matches!(attempt, Attempt::Answer(_) | Attempt::Decided(_)) {
            state.unable_since.get_or_insert(outside::instant());
        }
        state.health.own_trouble = matches!(attempt, Attempt::NotKept(_));
        match attempt {
            Attempt::Answer(answer) => {
                state.answered(asked, answer);
                state.unable_since = None;
                state.health.is(true, None, None);
            }
            Attempt::Decided(answer) => state.answered(asked, answer),
            Attempt::Fault(fault) => {
                if state.health.fault != Some(fault) {
                    state.answers.push_back(Answer::Fault(fault));
                }
                state.health.is(true, Some(fault.to_string()), Some(fault));
            }
            Attempt::Refused(why) | Attempt::NotKept(why) => state.health.is(true, Some(why), None),
            Attempt::Unreachable(why) => {
                let fault = state.health.fault; // as long as nothing better was heard
                state.health.is(false, Some(why), fault);
            }
            Attempt::Operator(why) => {
                state.parked = asked.is_some();
                state.health.is(true, Some(why), None);
            }
        }
        let health = &state.health;
        if health.reachable != before.reachable || health.last_error != before.last_error {
            match &health.last_error {
                None => info!(%vm, "the arbiter answers"),
                Some(why) => warn!(%vm, "the arbiter does not answer: {why}"),
            }
        }
        if !state.answers.is_empty() || health.differs(&before) {
            self.wake.raise();
        }
    }
}

impl State {
    /// An answer is for the owner, who may not have taken the one before: checks do not pile up.
    fn answered(&mut self, asked: Option<&Ask>, answer: Answer) {
        if let Some(asked) = asked {
            self.asks.retain(|ask| ask != asked);
            self.parked = false;
            self.decided &= !is_contested(asked);
        }
        if asked.is_some() || self.answers.is_empty() {
            self.answers.push_back(answer);
        }
    }
}

impl Health {
    fn is(&mut self, reachable: bool, error: Option<String>, fault: Option<Fault>) {
        if self.reachable != reachable {
            (self.reachable, self.since) = (reachable, outside::instant());
        }
        (self.last_error, self.fault) = (error, fault);
    }

    /// Whether its owner wants to look at it again.
    fn differs(&self, before: &Self) -> bool {
        let view = |health: &Self| (health.reachable, health.last_error.clone(), health.failover_possible().err());
        view(self) != view(before)
    }
}

fn is_contested(ask: &Ask) -> bool {
    matches!(ask, Ask::Cas(Swap { contested: true, .. }))
}

/// What a worker does next.
enum Next {
    Stop,
    /// This question, or a read; and whether an operator has decided.
    Try(Option<Ask>, bool),
    Wait(Option<Instant>),
}

/// The worker.
pub(super) struct Worker {
    shared: Arc<Shared>,
    backend: Box<dyn Backend>,
    vm: Name,
    backoff: Duration,
    not_before: Instant,
    check_at: Option<Instant>,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, backend: Box<dyn Backend>, vm: Name) -> Self {
        let now = outside::instant();
        Self { shared, backend, vm, backoff: BACKOFF, not_before: now, check_at: Some(now) }
    }

    /// Until [`Shared::stop`].
    pub(super) fn run(mut self) {
        while let Some((ask, decided)) = self.shared.next(self.check_at, self.not_before) {
            let attempt = self.attempt(ask, decided);
            self.end(ask, attempt);
        }
    }

    fn attempt(&mut self, ask: Option<Ask>, decided: bool) -> Attempt {
        self.backend.attempt(&ask.unwrap_or(Ask::Read), decided)
    }

    fn end(&mut self, ask: Option<Ask>, attempt: Attempt) {
        if matches!(attempt, Attempt::Answer(_) | Attempt::Decided(_)) {
            (self.backoff, self.not_before) = (BACKOFF, outside::instant());
        } else {
            self.not_before = outside::instant() + self.backoff;
            self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        }
        self.shared.book(ask.as_ref(), attempt, &*self.backend, self.vm);
        self.check_at = self.backend.check_every().map(|every| outside::instant() + every);
    }
}

/// A worker for a world without threads: whoever has it takes the steps, and lets time pass between them.
#[cfg(feature = "testing")]
pub struct Steps {
    worker: Worker,
    under_way: Option<(Option<Ask>, bool)>,
    tried: Option<Attempt>,
}

/// What a step came to.
#[cfg(feature = "testing")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The client is gone.
    Ended,
    /// A question is on its way: the next step asks it.
    Asks,
    /// It was asked, and whatever was said is on its way back: the next step books that.
    Asked,
    /// There is nothing to ask before this moment, unless the client asks.
    Waits(Option<Instant>),
}

#[cfg(feature = "testing")]
impl std::fmt::Debug for Steps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Steps").field("under_way", &self.under_way).finish_non_exhaustive()
    }
}

#[cfg(feature = "testing")]
impl Steps {
    pub(super) fn new(worker: Worker) -> Self {
        Self { worker, under_way: None, tried: None }
    }

    pub(super) fn worker(self) -> Worker {
        self.worker
    }

    /// The next one.
    pub fn step(&mut self) -> Step {
        match (self.under_way.take(), self.tried.take()) {
            (Some((ask, _)), Some(attempt)) => self.worker.end(ask, attempt),
            (Some((ask, decided)), None) => {
                self.tried = Some(self.worker.attempt(ask, decided));
                self.under_way = Some((ask, decided));
                return Step::Asked;
            }
            (None, _) => {}
        }
        let Worker { shared, check_at, not_before, .. } = &self.worker;
        let next = shared.look(&mut shared.state.lock(), *check_at, *not_before);
        match next {
            Next::Stop => Step::Ended,
            Next::Wait(until) => Step::Waits(until),
            Next::Try(ask, decided) => {
                self.under_way = Some((ask, decided));
                Step::Asks
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_away_blames_nobody_before_it_has_asked_again() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut turns = Turns::new(start, true);
        turns.ended(at(1_000));
        assert_eq!(turns.look(at(1_100)), None);
        // Stopped for 6.5 s, in the middle of a try or between two.
        assert_eq!(turns.look(at(7_600)), None);
        turns.trying_since = Some(at(1_050));
        assert_eq!(turns.look(at(7_700)), None);
        turns.ended(at(7_710));
        assert_eq!(turns.look(at(7_720)), None);
        // A worker that hangs while its owner is there is told all the same.
        turns.trying_since = Some(at(8_000));
        let mut looks = (8..14).map(|s| turns.look(at(s * 1_000)));
        assert_eq!(looks.find_map(|stuck| stuck), Some(at(8_000)));
        let mut manual = Turns::new(start, false);
        assert!((0..20).all(|s| manual.look(at(s * 1_000)).is_none()), "nobody has to be asked");
    }
}
