//! The thread that asks: one question at a time, again and again until it is answered.

use super::{Answer, Ask, Health};
use crate::wake::Wake;
use mc_core::id::Name;
use parking_lot::{Condvar, Mutex};
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::{info, warn};

/// Who can answer.
pub(super) trait Backend: Send {
    /// Tries once, for a second or so at most. `decided`: the operator says that a contested swap is won.
    fn attempt(&mut self, ask: &Ask, decided: bool) -> Attempt;

    /// How often to read while nothing is asked, to know whether it could be; `None` for never.
    fn check_every(&self) -> Option<Duration>;
}

/// How a try ended.
#[derive(Debug)]
pub(super) enum Attempt {
    /// Answered.
    Answer(Answer),
    /// Reached, but it could not answer. Try again.
    Refused(String),
    /// Not reached. Try again.
    Unreachable(String),
    /// Nobody but the operator can answer.
    Operator(String),
}

/// Between two tries: at first …
const BACKOFF: Duration = Duration::from_millis(50);
/// … and at most.
const BACKOFF_MAX: Duration = Duration::from_millis(200);

/// What the worker and its owner share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether contested swaps are an operator's to decide.
    by_operator: bool,
    pub(super) wake: Arc<Wake>,
}

#[derive(Debug)]
struct State {
    /// The first one is being asked. As long as the machines' few open questions: equal ones are joined.
    asks: VecDeque<Ask>,
    answers: VecDeque<Answer>,
    health: Health,
    /// The first ask waits for the operator …
    parked: bool,
    /// … who has decided, perhaps before the worker got as far as to wait.
    decided: bool,
    stop: bool,
}

impl Shared {
    pub(super) fn new(wake: Arc<Wake>, by_operator: bool) -> Self {
        let health = Health { reachable: false, since: Instant::now(), last_error: None };
        let state = State {
            asks: VecDeque::new(),
            answers: VecDeque::new(),
            health,
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
        self.state.lock().health.clone()
    }

    pub(super) fn operator_decides(&self) -> bool {
        let mut state = self.state.lock();
        state.decided = self.by_operator && state.asks.iter().any(is_contested);
        self.changed.notify_all();
        state.decided
    }

    pub(super) fn stop(&self) {
        self.state.lock().stop = true;
        self.changed.notify_all();
    }

    /// The next question to try, or a read if none comes until `check_at`; `None` to stop.
    fn next(&self, check_at: Option<Instant>, not_before: Instant) -> Option<(Option<Ask>, bool)> {
        let mut state = self.state.lock();
        loop {
            let now = Instant::now();
            if state.stop {
                return None;
            }
            let first = state.asks.front().copied().filter(|_| !state.parked || state.decided);
            if first.is_some() && (now >= not_before) {
                return Some((first, state.decided));
            }
            if first.is_none() && !state.parked && check_at.is_some_and(|at| now >= at) {
                return Some((None, false));
            }
            let until = if first.is_some() { Some(not_before) } else { check_at.filter(|_| !state.parked) };
            match until {
                Some(until) => drop(self.changed.wait_until(&mut state, until)),
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// Books a try. `asked`: whether it was a question, or only a check.
    fn book(&self, asked: bool, attempt: Attempt, vm: Name) {
        let mut state = self.state.lock();
        let (reachable, error) = match attempt {
            Attempt::Answer(answer) => {
                if asked {
                    let settled = state.asks.pop_front();
                    state.parked = false;
                    state.decided &= !settled.as_ref().is_some_and(is_contested);
                    state.answers.push_back(answer);
                    self.wake.raise();
                }
                (true, None)
            }
            Attempt::Refused(why) => (true, Some(why)),
            Attempt::Unreachable(why) => (false, Some(why)),
            Attempt::Operator(why) => {
                state.parked = asked;
                (true, Some(why))
            }
        };
        let health = &mut state.health;
        if health.reachable != reachable || health.last_error != error {
            match &error {
                None => info!(%vm, "the arbiter answers"),
                Some(why) => warn!(%vm, "the arbiter does not answer: {why}"),
            }
            if health.reachable != reachable {
                (health.reachable, health.since) = (reachable, Instant::now());
            }
            health.last_error = error;
            self.wake.raise();
        }
    }
}

fn is_contested(ask: &Ask) -> bool {
    matches!(ask, Ask::Cas { contested: true, .. })
}

/// The worker: until [`Shared::stop`].
pub(super) fn run(shared: &Shared, mut backend: Box<dyn Backend>, vm: Name) {
    let mut backoff = BACKOFF;
    let mut not_before = Instant::now();
    let mut check_at = Some(not_before);
    while let Some((ask, decided)) = shared.next(check_at, not_before) {
        let attempt = backend.attempt(&ask.unwrap_or(Ask::Read), decided);
        if matches!(attempt, Attempt::Answer(_)) {
            (backoff, not_before) = (BACKOFF, Instant::now());
        } else {
            not_before = Instant::now() + backoff;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        shared.book(ask.is_some(), attempt, vm);
        check_at = backend.check_every().map(|every| Instant::now() + every);
    }
}
