//! The world: what is due next, and whose turn it is. One thread, one seed, no clock.

use crate::{
    checks,
    guest::Vm,
    hardship::{Blow, HEALED, Schedule},
    host::{Asking, Host, Process},
    net::{MS, Net, SharedNet, lock},
    observer::{Observer, SharedLedger, name},
    session::{Call, Links, Replies, Reply, address},
};
use mc_core::{
    standby,
    testing::{Sabotage, memory::Way},
};
use node::{
    arbiter::Step, keepalive::Verdict, outside::World as Outside, primary::PrimaryLoop as _, standby::StandbyLoop as _,
};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    path::Path,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
};
use transport_tcp::session::SessionError;

/// The guest runs so often.
const STEP: u64 = 12 * MS;
/// The longest run.
const LONGEST: u64 = 40_000 * MS;
/// A VM serves if it was heard so lately.
const LATELY: u64 = 1_500 * MS;
/// After the end of all hardships nothing is judged before.
const SETTLES: u64 = 2_000 * MS;
/// An operator answers a standby that asks for a word so late.
const OPERATOR: u64 = 8_000 * MS;

/// What is on its way between processes, or due later.
enum Mail {
    Call(usize, Box<Call>),
    Answer(usize, u64, Reply),
    TimeOut(usize, u64),
    Start(usize, u64),
}

/// What is told of a run: see [`crate::run::Outcome`].
pub(crate) type Trace = Rc<RefCell<Vec<String>>>;

pub(crate) struct World {
    pub(crate) net: SharedNet,
    pub(crate) ledger: SharedLedger,
    pub(crate) observer: Arc<Mutex<Observer>>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) now: u64,
    /// The arbiter remembers everything that it ever told.
    pub(crate) remembers: bool,
    rng: fastrand::Rng,
    guest_due: u64,
    appetite: usize,
    mail: Vec<(u64, Mail)>,
    schedule: VecDeque<(u64, Blow)>,
    links: Vec<(Links, Vec<[[u64; 3]; 2]>)>,
    replies: Replies,
    calls: u64,
    trace: Option<Trace>,
    whose: Rc<Cell<(u64, usize)>>,
    /// Events until the turning point, and whose the newest one was.
    events: Rc<Cell<(u64, usize)>>,
    turning: Option<(u64, u8)>,
    /// An operator was asked.
    answered: bool,
    /// Registers that were judged.
    pub(crate) judged: usize,
}

impl World {
    pub(crate) fn new(seed: u64, schedule: &Schedule, bug: Option<Sabotage>, dir: &Path, trace: Option<Trace>) -> Self {
        Outside::set_now(0);
        Outside::seed(seed);
        Outside::sabotage(bug);
        let whose = Rc::new(Cell::new((0, 0)));
        let (told, at) = (trace.clone(), whose.clone());
        let home = dir.display().to_string();
        let events = Rc::new(Cell::new((u64::MAX, 0)));
        let counted = events.clone();
        Outside::tell(move |event| {
            let (left, _) = counted.get();
            counted.set((left.saturating_sub(1), at.get().1));
            let Some(told) = &told else { return };
            let text = serde_json::to_string(event).unwrap_or_default().replace(&home, "DIR");
            let (now, host) = at.get();
            told.borrow_mut().push(line(now, name(host), &text));
        });
        let mut schedule = schedule.clone();
        schedule.push((HEALED.max(schedule.last().map_or(0, |(at, _)| at + 1)), Blow::Heal));
        let mut world = Self {
            net: Arc::new(Mutex::new(Net::new(seed ^ 0xA11))),
            ledger: SharedLedger::default(),
            observer: Arc::default(),
            hosts: (0..2).map(|host| Host::new(host, dir.join(name(host)))).collect(),
            now: 0,
            remembers: true,
            rng: fastrand::Rng::with_seed(seed),
            guest_due: 0,
            appetite: 2,
            mail: vec![],
            schedule: schedule.into(),
            links: vec![],
            replies: Replies::default(),
            calls: 0,
            trace,
            whose,
            events,
            turning: None,
            answered: false,
            judged: 1,
        };
        for host in 0..2 {
            let fails = if world.rng.u8(0..4) == 0 { world.rng.u8(1..4) } else { 0 };
            world.hosts[host].fails.set(fails);
        }
        world.mail.push((0, Mail::Start(1, 0)));
        world.mail.push((20 * MS, Mail::Start(0, 0)));
        world
    }

    pub(crate) fn note(&self, who: &str, what: &str) {
        if let Some(trace) = &self.trace {
            trace.borrow_mut().push(line(self.now, who, what));
        }
    }

    pub(crate) fn observer(&self) -> std::sync::MutexGuard<'_, Observer> {
        self.observer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until it is settled, or something is wrong.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        let healed = self.schedule.back().map_or(HEALED, |(at, _)| *at);
        while self.now < LONGEST {
            self.step();
            let wrong = self.observer().wrong.take();
            if let Some(wrong) = wrong {
                return Err(wrong);
            }
            if self.now > healed + SETTLES && self.is_settled() {
                break;
            }
            if self.now > healed + OPERATOR {
                self.operator_answers();
            }
        }
        checks::at_the_end(self)
    }

    /// A standby that the register names, and that lacks what the VM said, does nothing without an operator's word: it is given once.
    fn operator_answers(&mut self) {
        if std::mem::replace(&mut self.answered, true) || !self.remembers {
            return;
        }
        for number in 0..2 {
            self.on(number);
            let Process::Standby(runner) = &mut self.hosts[number].process else { continue };
            if runner.standby().role() != standby::Role::Disputed {
                continue;
            }
            let lacks = !runner.standby().driver.machine().is_entitled();
            runner.standby_mut().operator_takes_over();
            self.note(name(number), "an operator says that this host shall run the VM");
            if lacks {
                self.observer().forgets();
            }
            self.wake(number, self.now + MS);
        }
    }

    /// Who serves is known, and does.
    fn is_settled(&self) -> bool {
        self.serving().len() == 1 && checks::is_at_rest(self)
    }

    /// Hosts that were heard lately.
    pub(crate) fn serving(&self) -> Vec<usize> {
        let heard = self.observer().last_heard;
        (0..2).filter(|host| heard[*host] > 0 && heard[*host] + LATELY > self.now).collect()
    }

    /// The next thing that is due.
    fn step(&mut self) {
        let mut due = (self.guest_due, 0, 0);
        let mut offer = |at: u64, what: usize, which: usize| {
            if at < due.0 {
                due = (at, what, which);
            }
        };
        for (number, host) in self.hosts.iter().enumerate() {
            offer(host.turn_due.max(host.still[0]), 1, number);
            offer(host.beats_due.max(host.still[1]), 2, number);
            let asks = host.asking.iter().map(|asking| asking.due).min().unwrap_or(u64::MAX);
            offer(asks, 3, number);
        }
        self.mail.iter().enumerate().for_each(|(index, (at, _))| offer(*at, 4, index));
        self.schedule.front().into_iter().for_each(|(at, _)| offer(*at, 5, 0));
        let (at, what, which) = due;
        self.now = self.now.max(at);
        lock(&self.net).now = self.now;
        match what {
            0 => self.guests(),
            1 => self.turn(which),
            2 => self.beats(which),
            3 => self.ask(which),
            4 => {
                let (_, mail) = self.mail.swap_remove(which);
                self.deliver(mail);
            }
            _ => self.strike(),
        }
        self.turn_of_events();
        let wakes = std::mem::take(&mut lock(&self.net).wakes);
        for (at, host) in wakes {
            self.hosts[host].beats_due = self.hosts[host].beats_due.min(at);
        }
    }

    fn turn_of_events(&mut self) {
        let (left, host) = self.events.get();
        let Some((us, how)) = self.turning.take_if(|_| left == 0) else { return };
        let blow = match how {
            0 => Blow::Crash(host, self.rng.u64(50..1500)),
            1 => Blow::Power(host, self.rng.u64(300..1500)),
            _ => Blow::StopHost(host, self.rng.u64(50..1500)),
        };
        let at = self.now + us * 1000;
        let place = self.schedule.iter().position(|(other, _)| *other > at).unwrap_or(self.schedule.len());
        self.schedule.insert(place, (at, blow));
    }

    fn on(&self, host: usize) {
        Outside::set_now(self.hosts[host].clock.local(self.now));
        self.whose.set((self.now, host));
    }

    pub(crate) fn wake(&mut self, host: usize, at: u64) {
        self.hosts[host].turn_due = self.hosts[host].turn_due.min(at);
    }

    fn guests(&mut self) {
        self.guest_due = self.now + STEP / 2 + self.rng.u64(0..STEP);
        for number in 0..2 {
            let host = &self.hosts[number];
            if host.still[0] > self.now && host.still[1] > self.now {
                continue; // the whole host
            }
            let mut room = host.room.borrow_mut();
            let Some(guest) = &mut *room else { continue };
            let before = guest.word;
            let Some(word) = guest.step(&mut self.rng, self.appetite) else { continue };
            drop(room);
            self.observer().said(before, word);
            if let Some(out) = &self.hosts[number].out {
                out.put(word);
                self.wake(number, self.now);
            }
        }
    }

    fn turn(&mut self, number: usize) {
        self.hosts[number].turn_due = u64::MAX;
        self.on(number);
        let process = std::mem::replace(&mut self.hosts[number].process, Process::None);
        let (next, after) = match process {
            Process::None => return,
            Process::Starting(mut start) => match start.step() {
                Ok(None) => (Process::Starting(start), None),
                Ok(Some(register)) => match start.begin(register) {
                    Ok(runner) => (Process::Primary(Box::new(runner)), None),
                    Err(error) => (Process::None, Some(error.to_string())),
                },
                Err(error) => (Process::None, Some(error.to_string())),
            },
            Process::Primary(mut runner) => match runner.act() {
                Ok(()) if runner.ended().is_some() => (Process::None, Some(format!("ended: {:?}", runner.ended()))),
                Ok(()) => (Process::Primary(runner), None),
                Err(error) => (Process::None, Some(error.to_string())),
            },
            Process::Standby(mut runner) => match runner.step() {
                Ok(()) if runner.has_taken_over() => return self.took_over(number, runner.end()),
                Ok(()) => (Process::Standby(runner), None),
                Err(error) => (Process::None, Some(format!("{error:#}"))),
            },
        };
        self.hosts[number].process = next;
        self.gather(number);
        match after {
            Some(why) => self.ended(number, &why),
            None => {
                let sleeps = self.hosts[number].sleeps(self.now);
                self.wake(number, sleeps);
            }
        }
        self.carry();
        checks::after_a_turn(self, number);
    }

    /// The standby's VM runs here: from now on this host's process is a primary.
    fn took_over(&mut self, number: usize, vm: Vm) {
        self.note(name(number), "runs the VM");
        let context = (&self.net.clone(), &self.ledger.clone(), &self.observer.clone());
        let host = &mut self.hosts[number];
        host.asking.clear();
        host.beats.clear();
        host.leads = true;
        if let Err(error) = host.lead(Some(vm), context) {
            self.ended(number, &error.to_string());
        }
        self.gather(number);
        self.wake(number, self.now + MS);
    }

    /// A process has ended by itself: another one follows, as what the register lets it be.
    fn ended(&mut self, number: usize, why: &str) {
        self.note(name(number), &format!("the process ends: {why}"));
        let holds = lock(&self.net).witness.holds();
        self.hosts[number].leads = holds.is_none_or(|r| r.owner.node.name.as_str() == name(number));
        self.kill(number, 300 * MS);
    }

    fn kill(&mut self, number: usize, restart: u64) {
        self.on(number);
        self.hosts[number].dies();
        self.mail.push((self.now + restart, Mail::Start(number, self.hosts[number].life)));
        self.carry();
    }

    fn start(&mut self, number: usize) {
        self.on(number);
        // Where the VM belongs to this host and nobody runs it, an operator starts it anew.
        let holds = lock(&self.net).witness.holds();
        self.hosts[number].leads |= holds.is_some_and(|r| r.owner.node.name.as_str() == name(number));
        let leads = self.hosts[number].leads;
        self.note(name(number), if leads { "starts as primary" } else { "starts as standby" });
        let context = (&self.net.clone(), &self.ledger.clone(), &self.observer.clone());
        let host = &mut self.hosts[number];
        let started = if leads { host.lead(None, context) } else { host.follow(context) };
        if let Err(error) = started {
            return self.ended(number, &format!("{error:#}"));
        }
        self.gather(number);
        self.wake(number, self.now + MS);
    }

    /// What the process has begun.
    fn gather(&mut self, number: usize) {
        let now = self.now;
        let host = &mut self.hosts[number];
        let begun = Outside::beats();
        if !begun.is_empty() {
            host.beats.extend(begun);
            host.beats_due = now;
        }
        let clients = Outside::arbiters().into_iter();
        host.asking.extend(clients.map(|steps| Asking { steps, due: now, under_way: false }));
        // The client may have been asked something.
        host.asking.iter_mut().filter(|asking| !asking.under_way).for_each(|asking| asking.due = now + 10_000);
        for search in Outside::searches() {
            self.calls += 1;
            let number_of_call = self.calls;
            let Ok(hello) = search.hello(7000) else { continue };
            let call = Call {
                number: number_of_call,
                hello,
                profile: search.profile().to_vec(),
                from: number,
                net: Arc::clone(&self.net),
                seed: self.rng.u64(..),
                replies: Arc::clone(&self.replies),
            };
            self.hosts[number].search = Some((number_of_call, search, hello));
            let way = lock(&self.net).way();
            self.mail.push((now + way, Mail::Call(1 - number, Box::new(call))));
            self.mail.push((now + 3_000 * MS, Mail::TimeOut(number, number_of_call)));
        }
        let replies = std::mem::take(&mut *self.replies.lock().unwrap_or_else(PoisonError::into_inner));
        for (call, reply) in replies {
            if let Reply::Agreed(agreed) = &reply {
                self.hosts[number].session = usize::try_from(call).unwrap_or(0);
                self.hosts[number].compared = (0, 0);
                self.link(agreed.3.clone());
            }
            let way = lock(&self.net).way();
            self.mail.push((now + way, Mail::Answer(1 - number, call, reply)));
        }
    }

    fn link(&mut self, links: Links) {
        let none = links.each().map(|_| [[0; 3]; 2]).collect();
        self.links.push((links, none));
        self.links.drain(..self.links.len().saturating_sub(3));
        for host in 0..2 {
            let cut = lock(&self.net).cut[host];
            self.freeze(host, cut);
        }
    }

    fn freeze(&self, host: usize, cut: bool) {
        for link in self.links.iter().flat_map(|(links, _)| links.each().map(|link| (links.caller, link))) {
            let way = if link.0 == host { Way::FirstToSecond } else { Way::SecondToFirst };
            if cut { link.1.freeze(way) } else { link.1.thaw(way) }
        }
    }

    /// Wakes whoever has something to do because bytes moved.
    fn carry(&mut self) {
        let mut wakes = vec![];
        for (links, before) in &mut self.links {
            for (link, before) in links.each().zip(before) {
                for (way, before) in [Way::FirstToSecond, Way::SecondToFirst].into_iter().zip(before) {
                    let sender = if way == Way::FirstToSecond { links.caller } else { 1 - links.caller };
                    let now = link.progress(way);
                    if now[0] != before[0] {
                        wakes.push(1 - sender);
                    }
                    if now[2] != before[2] || now[0] > now[1] && now != *before {
                        wakes.push(sender);
                    }
                    *before = now;
                }
            }
        }
        for host in wakes {
            let way = lock(&self.net).way();
            self.wake(host, self.now + way);
        }
    }

    fn beats(&mut self, number: usize) {
        self.on(number);
        let (now, host) = (self.now, &mut self.hosts[number]);
        host.beats.retain(|beats| !beats.is_stopped());
        let due = host.beats.iter_mut().map(|beats| beats.turn().0).min();
        host.beats_due = due.map_or(u64::MAX, |due| host.clock.when(due).max(now + 50_000));
        let side = match &host.process {
            Process::Primary(runner) => &runner.primary().host,
            Process::Standby(runner) => &runner.standby().host,
            Process::None | Process::Starting(_) => return,
        };
        if side.beats().is_some_and(|beats| beats.verdict() == Verdict::Suspect) && !side.suspects() {
            self.wake(number, now + 50_000);
        }
    }

    fn ask(&mut self, number: usize) {
        self.on(number);
        let now = self.now;
        let Some(index) = self.hosts[number].asking.iter().position(|asking| asking.due <= now) else { return };
        lock(&self.net).witness.unanswered[number] = false;
        let booked = self.hosts[number].asking[index].under_way;
        let step = self.hosts[number].asking[index].steps.step();
        let mut net = lock(&self.net);
        let slow = net.witness.slow * MS;
        let slow = net.rng.u64(0..=slow);
        let way = net.way() + slow / 2;
        let unanswered = net.witness.unanswered[number];
        drop(net);
        let asking = &mut self.hosts[number].asking[index];
        asking.under_way = matches!(step, Step::Asks | Step::Asked);
        asking.due = match step {
            Step::Ended => u64::MAX,
            Step::Asks => now + way,
            Step::Asked if unanswered => now + 500 * MS,
            Step::Asked => now + way,
            Step::Waits(until) => {
                let wait = until.map_or(1_000 * MS, time_to);
                now + wait.max(20_000)
            }
        };
        if step == Step::Ended {
            self.hosts[number].asking.remove(index);
        }
        if booked && step != Step::Asked {
            self.wake(number, now + 20_000);
        }
        checks::of_the_register(self);
    }

    fn deliver(&mut self, mail: Mail) {
        match mail {
            Mail::Call(to, call) => {
                let cut = lock(&self.net).cut;
                if cut[0] || cut[1] || !matches!(self.hosts[to].process, Process::Standby(_)) {
                    let (number, from) = (call.number, call.from);
                    if !(cut[0] || cut[1]) {
                        self.unheard(from, number);
                    }
                    return;
                }
                self.hosts[to].door.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(*call);
                self.wake(to, self.now);
            }
            Mail::Answer(to, number, reply) => {
                let Some((_, search, hello)) = self.hosts[to].search.take_if(|search| search.0 == number) else {
                    return;
                };
                self.on(to);
                self.ledger.borrow_mut().session = usize::try_from(number).unwrap_or(0);
                match reply {
                    Reply::Agreed(agreed) => {
                        let (mut theirs, profile, route, _) = *agreed;
                        (theirs.incarnation, theirs.generation) = (hello.incarnation, hello.generation);
                        search.answered(&hello, (&theirs, &profile, address(1 - to)), route);
                    }
                    Reply::Refused(why) => search.failed(SessionError::Refused { peer: address(1 - to), why }),
                }
                self.turn(to);
            }
            Mail::TimeOut(host, number) => self.unheard(host, number),
            Mail::Start(host, life) => {
                if self.hosts[host].life == life {
                    self.start(host);
                }
            }
        }
    }

    /// A call came to nothing.
    fn unheard(&mut self, host: usize, number: u64) {
        let Some((_, search, _)) = self.hosts[host].search.take_if(|search| search.0 == number) else { return };
        let source = io::ErrorKind::TimedOut.into();
        self.on(host);
        search.failed(SessionError::Io { peer: address(1 - host), doing: "calling", source });
        self.wake(host, self.now);
    }

    fn strike(&mut self) {
        let Some((_, blow)) = self.schedule.pop_front() else { return };
        self.note("*", &format!("{blow:?}"));
        let newest = self.links.last().map(|(links, _)| links.clone());
        match blow {
            Blow::Air(loss, doubled, late) => {
                let mut net = lock(&self.net);
                (net.loss, net.doubled, net.late) = (loss, doubled, late);
            }
            Blow::Delay(ms) => lock(&self.net).delay = ms * MS,
            Blow::Cut(host, cut) => {
                lock(&self.net).cut[host] = cut;
                self.freeze(host, cut);
                self.wake_all();
            }
            Blow::Fails(noticed) => {
                let seed = self.rng.u64(..);
                newest.and_then(|links| links.first).into_iter().for_each(|first| first.fail(noticed, seed));
                self.wake_all();
            }
            Blow::Breaks => {
                newest.iter().flat_map(Links::each).for_each(mc_core::testing::memory::LinkFaults::cut);
                self.wake_all();
            }
            Blow::Damages(host) => {
                if let Some(links) = newest {
                    let way = if links.caller == host { Way::FirstToSecond } else { Way::SecondToFirst };
                    links.each().for_each(|link| link.corrupt(way));
                }
            }
            Blow::Leaks(host) => {
                if let Some(links) = newest {
                    let way = if links.caller == host { Way::FirstToSecond } else { Way::SecondToFirst };
                    links.second.lose(way);
                }
            }
            Blow::AtEvent(events, us, how) => {
                self.events.set((events, 0));
                self.turning = Some((us, how));
            }
            Blow::Crash(host, ms) => self.kill(host, ms * MS),
            Blow::Power(host, ms) => {
                newest.iter().flat_map(Links::each).for_each(mc_core::testing::memory::LinkFaults::silence);
                self.kill(host, ms * MS);
            }
            Blow::StopLoop(host, ms) => self.hosts[host].still[0] = self.now + ms * MS,
            Blow::StopBeats(host, ms) => self.hosts[host].still[1] = self.now + ms * MS,
            Blow::StopHost(host, ms) => {
                let until = self.now + ms * MS;
                self.hosts[host].still = [until; 2];
                self.hosts[host].asking.iter_mut().for_each(|asking| asking.due = asking.due.max(until));
            }
            Blow::Away(host, away) => lock(&self.net).witness.away[host] = away,
            Blow::Down(down) => lock(&self.net).witness.down = down,
            Blow::Deaf(deaf) => lock(&self.net).witness.deaf = deaf,
            Blow::Slow(ms) => lock(&self.net).witness.slow = ms,
            Blow::Restart => lock(&self.net).witness.restart(),
            Blow::BackUp => lock(&self.net).witness.back_up(),
            Blow::Forget(all) => {
                self.remembers = false;
                lock(&self.net).witness.forget(all);
            }
            Blow::Clock(host, step, ppm) => {
                let local = self.hosts[host].clock.local(self.now);
                self.hosts[host].clock = crate::host::Clock { ahead: 0, ppm };
                let drifted = self.hosts[host].clock.local(self.now);
                self.hosts[host].clock.ahead = local.saturating_sub(drifted) + step * MS;
            }
            Blow::Appetite(pages) => self.appetite = pages,
            Blow::Heal => self.heal(),
        }
    }

    fn heal(&mut self) {
        let mut net = lock(&self.net);
        (net.cut, net.loss, net.doubled, net.late, net.delay) = ([false; 2], 0, 0, 0, MS);
        let witness = &mut net.witness;
        (witness.down, witness.away, witness.deaf, witness.slow) = (false, [false; 2], 0, 0);
        drop(net);
        self.freeze(0, false);
        self.freeze(1, false);
        self.appetite = 2;
        self.wake_all();
    }

    fn wake_all(&mut self) {
        (0..2).for_each(|host| self.wake(host, self.now + 10_000));
    }
}

fn time_to(until: std::time::Instant) -> u64 {
    let wait = until.saturating_duration_since(Outside::instant());
    u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX / 2)
}

/// A line of a trace.
fn line(now: u64, who: &str, what: &str) -> String {
    format!("{:>6}.{:06} {who} {what}", now / MS, now % MS)
}
