//! The detector, step by step on a clock that only the test moves. Unless a test says otherwise: beats every 10 ms, K = 5.

use mc_core::{
    detector::{
        Action, Config, Detector, Event, MAX_INTERVAL, MIN_INTERVAL, ParameterError, Parameters, State, Suspicion,
    },
    id::{Epoch, Generation, Incarnation, Time},
    machine::Machine,
    wire::beat::{Beat, BeatState},
};
use std::time::Duration;

const SESSION: Incarnation = Incarnation(77);
const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn parameters(tx: u64, rx: u64, k: u8) -> Parameters {
    Parameters::new(ms(tx), ms(rx), k).expect("within the limits")
}

/// A detector, the clock, and what it asked for. `Drain` is answered at once, as if nothing had arrived.
struct Bench {
    detector: Detector,
    now: Time,
    asked: Vec<Action>,
    peer_sequence: u64,
}

impl Bench {
    fn new(startup: Option<Duration>) -> Self {
        let config = Config { incarnation: SESSION, member: 1, parameters: parameters(10, 10, 5), startup };
        let now = Time(1_000_000_000);
        Self { detector: Detector::new(config, now), now, asked: vec![], peer_sequence: 0 }
    }

    /// One that has heard its peer, just now.
    fn up() -> Self {
        let mut bench = Self::new(None);
        bench.hear();
        bench
    }

    fn beat(&mut self) -> Beat {
        self.peer_sequence += 1;
        Beat {
            incarnation: SESSION,
            generation: Generation(3),
            committed: Epoch(4),
            sequence: self.peer_sequence,
            sent_at: 5_000 + self.peer_sequence,
            echo: 0,
            echo_delay: 0,
            desired_tx_us: 10_000,
            required_rx_us: 10_000,
            detect_multiplier: 5,
            state: BeatState::Up,
            member: 2,
            meant_for: 0,
            poll: false,
            is_final: false,
            for_both: false,
        }
    }

    fn event(&mut self, event: Event) {
        self.detector.handle(self.now, event);
        self.drain();
    }

    fn hear(&mut self) {
        let beat = self.beat();
        self.event(Event::BeatReceived(beat));
    }

    fn drain(&mut self) {
        while let Some(action) = self.detector.poll_action() {
            self.asked.push(action);
            if action == Action::Drain {
                self.detector.handle(self.now, Event::Drained);
            }
        }
    }

    /// Calls `handle_timeout` at every deadline up to `after` from now: a punctual host.
    fn run(&mut self, after: Duration) {
        let end = self.now.after(after);
        while let Some(deadline) = self.detector.deadline().filter(|&d| d <= end) {
            self.now = self.now.max(deadline);
            self.detector.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    /// Is not called for `d`, then once.
    fn stall(&mut self, d: Duration) {
        self.now = self.now.after(d);
        self.detector.handle_timeout(self.now);
        self.drain();
    }

    fn suspicion(&self) -> Option<Suspicion> {
        self.asked.iter().find_map(|a| if let Action::Suspect(s) = a { Some(*s) } else { None })
    }

    fn sent(&self) -> Vec<Beat> {
        self.asked.iter().filter_map(|a| if let Action::SendBeat(b) = a { Some(*b) } else { None }).collect()
    }
}

#[test]
fn the_first_beat_leaves_at_once_and_counts_from_one() {
    let mut bench = Bench::new(None);
    bench.event(Event::Committed { generation: Generation(8), epoch: Epoch(9) });
    bench.run(ms(100));
    let sent = bench.sent();
    assert_eq!(sent[0].sequence, 1);
    assert_eq!((sent[0].generation, sent[0].committed, sent[0].state), (Generation(8), Epoch(9), BeatState::Waiting));
    assert!((12..=14).contains(&sent.len()), "100 ms at 7.5 to 9 ms: {}", sent.len());
    assert!(sent.windows(2).all(|w| w[1].sent_at - w[0].sent_at <= 9_000_000));
}

#[test]
fn silence_is_suspect_after_k_intervals_and_not_before() {
    let mut bench = Bench::up();
    bench.run(ms(50) - Duration::from_nanos(1));
    assert_eq!((bench.suspicion(), bench.detector.state()), (None, State::Late));
    bench.run(Duration::from_nanos(1));
    let expected = Suspicion { silent_for: ms(50), missed: 5, detection_time: ms(50) };
    assert_eq!(bench.suspicion(), Some(expected));
    assert_eq!(bench.detector.stats().missed, 5);
    assert_eq!(bench.detector.stats().self_late, 0);
}

#[test]
fn a_late_beat_is_yellow_and_forgiven() {
    let mut bench = Bench::up();
    for _ in 0..10 {
        bench.run(ms(35));
        assert_eq!(bench.detector.state(), State::Late);
        bench.hear();
        assert_eq!(bench.detector.state(), State::Up);
    }
    assert_eq!((bench.suspicion(), bench.detector.stats().missed), (None, 30));
}

#[test]
fn suspicion_is_latched_and_says_so_in_every_beat() {
    let mut bench = Bench::up();
    bench.run(ms(60));
    bench.asked.clear();
    for _ in 0..20 {
        bench.hear();
        bench.run(ms(10));
    }
    assert_eq!(bench.detector.state(), State::Suspect);
    assert_eq!(bench.suspicion(), None, "said once only");
    assert_eq!(bench.detector.stats().after_suspicion, 20);
    assert!(!bench.sent().is_empty() && bench.sent().iter().all(|beat| beat.state == BeatState::Suspect));
}

#[test]
fn a_peer_never_heard_is_suspect_only_after_the_startup_limit() {
    let mut bench = Bench::new(None);
    bench.run(ms(999));
    assert_eq!((bench.suspicion(), bench.detector.state()), (None, State::Waiting));
    bench.run(ms(1));
    assert_eq!(bench.suspicion(), Some(Suspicion { silent_for: ms(1000), missed: 0, detection_time: ms(1000) }));

    let mut bench = Bench::new(Some(ms(1)));
    bench.run(ms(49));
    assert_eq!(bench.suspicion(), None, "a start-up limit below the detection time makes no sense");
    bench.run(ms(1));
    assert!(bench.suspicion().is_some());
}

#[test]
fn intervals_are_the_slower_of_what_both_want() {
    let mut bench = Bench::new(None);
    let beat = Beat { desired_tx_us: 30_000, required_rx_us: 20_000, detect_multiplier: 3, ..bench.beat() };
    bench.event(Event::BeatReceived(beat));
    assert_eq!(bench.detector.transmit_interval(), ms(20));
    assert_eq!(bench.detector.detection_time(), ms(90), "the peer's K, not ours");
    let hostile = Beat { desired_tx_us: u32::MAX, required_rx_us: u32::MAX, detect_multiplier: 255, ..bench.beat() };
    bench.event(Event::BeatReceived(hostile));
    assert_eq!(bench.detector.transmit_interval(), MAX_INTERVAL);
    assert_eq!(bench.detector.detection_time(), MAX_INTERVAL * 255);
}

#[test]
fn what_had_arrived_is_read_before_anyone_is_accused() {
    let mut bench = Bench::up();
    let queued = bench.beat();
    bench.now = bench.now.after(ms(50));
    bench.detector.handle_timeout(bench.now);
    bench.now = bench.now.after(ms(500));
    bench.detector.handle_timeout(bench.now);
    let asked: Vec<_> = std::iter::from_fn(|| bench.detector.poll_action()).collect();
    assert!(asked.contains(&Action::Drain), "{asked:?}");
    bench.detector.handle_timeout(bench.now);
    assert_eq!(bench.detector.poll_action(), None, "asked once");
    bench.detector.handle(bench.now, Event::BeatReceived(queued));
    bench.detector.handle(bench.now, Event::Drained);
    assert_eq!((bench.detector.state(), bench.detector.stats().missed), (State::Up, 0));
}

#[test]
fn a_stall_between_drain_and_drained_accuses_nobody() {
    let mut bench = Bench::up();
    bench.run(ms(10) - Duration::from_nanos(1));
    bench.now = bench.now.after(Duration::from_nanos(1));
    bench.detector.handle_timeout(bench.now);
    assert!(std::iter::from_fn(|| bench.detector.poll_action()).any(|a| a == Action::Drain));
    bench.now = bench.now.after(ms(500));
    bench.detector.handle(bench.now, Event::Drained);
    assert_eq!(bench.detector.state(), State::Late, "only the silence up to the question is proven");
    bench.stall(Duration::ZERO);
    assert_eq!(bench.detector.state(), State::Late, "and what came after it is our own lateness");
}

#[test]
fn own_lateness_is_discounted_once_and_a_dead_peer_still_found() {
    let mut bench = Bench::up();
    bench.run(ms(5));
    bench.stall(ms(400));
    let woken = bench.now;
    assert_eq!(bench.suspicion(), None);
    let late = bench.asked.iter().find_map(|a| if let Action::SelfLate(by) = a { Some(*by) } else { None });
    assert!(late.is_some_and(|by| by > ms(390)), "{late:?}");
    bench.run(ms(50));
    let found = bench.suspicion().expect("one detection time after waking");
    assert!(found.silent_for > ms(405) && found.silent_for <= ms(455), "{found:?}");
    assert_eq!(bench.detector.stats().self_late, 1);
    assert!(bench.now.since(woken) <= ms(50));
}

#[test]
fn lateness_before_the_last_beat_buys_no_time_after_it() {
    let mut bench = Bench::up();
    bench.now = bench.now.after(ms(45));
    bench.hear();
    bench.run(Duration::ZERO);
    assert_eq!(bench.detector.stats().self_late, 1);
    bench.run(ms(50));
    assert!(bench.suspicion().is_some());
}

#[test]
fn a_host_that_is_always_late_finds_a_dead_peer() {
    let mut bench = Bench::up();
    let start = bench.now;
    while bench.suspicion().is_none() {
        bench.stall(ms(20));
        assert!(bench.now.since(start) <= ms(120), "twice the detection time, and the last stall");
    }
    assert!(bench.detector.stats().self_late >= 4);
}

#[test]
fn duplicates_replays_other_sessions_and_echoes_keep_nobody_alive() {
    let mut bench = Bench::up();
    let old = bench.beat();
    bench.event(Event::BeatReceived(old));
    for _ in 0..60 {
        let next = bench.beat();
        for beat in [
            old,
            Beat { sequence: 0, ..old },
            Beat { incarnation: Incarnation(78), ..next },
            Beat { member: 1, ..next },
            Beat { member: 3, ..next },
        ] {
            bench.event(Event::BeatReceived(beat));
        }
        bench.run(ms(1));
    }
    assert!(bench.suspicion().is_some());
    let stats = bench.detector.stats();
    assert_eq!((stats.duplicates, stats.foreign, stats.own, stats.received), (120, 120, 60, 2));
}

#[test]
fn rtt_leaves_out_what_the_peer_waited() {
    let mut bench = Bench::up();
    bench.run(ms(20));
    let sent = *bench.sent().last().expect("beats left");
    bench.now = Time(sent.sent_at).after(ms(7));
    let beat = Beat { echo: sent.sent_at, echo_delay: 4_000_000, ..bench.beat() };
    bench.event(Event::BeatReceived(beat));
    let heard = bench.asked.iter().rev().find(|a| matches!(a, Action::Heard { .. }));
    assert!(matches!(heard, Some(Action::Heard { gap: Some(_), rtt: Some(rtt) }) if *rtt == ms(3)), "{heard:?}");
    assert_eq!(bench.sent()[1].echo, 5_001, "and our beats echo the peer's newest");
}

#[test]
fn a_poll_is_answered_at_once_and_never_with_a_poll() {
    let mut bench = Bench::up();
    bench.run(ms(1));
    bench.event(Event::SetParameters(parameters(20, 20, 5)));
    bench.asked.clear();
    let beat = Beat { poll: true, ..bench.beat() };
    bench.event(Event::BeatReceived(beat));
    let sent = bench.sent();
    assert_eq!(sent.len(), 1);
    assert!(sent[0].is_final && !sent[0].poll);
    assert_eq!(sent[0].desired_tx_us, 20_000);
}

#[test]
fn slower_parameters_wait_for_the_final_and_faster_ones_do_not() {
    let mut bench = Bench::up();
    bench.run(ms(1));
    bench.event(Event::SetParameters(parameters(100, 2, 5)));
    assert_eq!(bench.detector.transmit_interval(), ms(10), "6.8.3: not slower before the peer knows");
    assert_eq!(bench.detector.detection_time(), ms(50), "6.8.3: not stricter before the peer knows");
    bench.run(ms(10));
    let polled = *bench.sent().last().expect("a beat");
    assert!(polled.poll && (polled.desired_tx_us, polled.required_rx_us) == (100_000, 2_000));

    let stale = Beat { is_final: true, echo: polled.sent_at - 1, ..bench.beat() };
    bench.event(Event::BeatReceived(stale));
    assert!(bench.detector.polling(), "a final for an older poll ends nothing");
    let confirmed = Beat { is_final: true, echo: polled.sent_at, desired_tx_us: 2_000, ..bench.beat() };
    bench.event(Event::BeatReceived(confirmed));
    assert!(!bench.detector.polling());
    assert_eq!((bench.detector.transmit_interval(), bench.detector.detection_time()), (ms(100), ms(10)));

    bench.event(Event::SetParameters(parameters(10, 50, 5)));
    assert_eq!(bench.detector.transmit_interval(), ms(10), "faster: at once");
    assert_eq!(bench.detector.detection_time(), ms(250), "more patient: at once");
}

#[test]
fn a_shorter_interval_brings_the_next_beat_forward() {
    let mut bench = Bench::new(None);
    let beat = Beat { required_rx_us: 1_000_000, ..bench.beat() };
    bench.event(Event::BeatReceived(beat));
    bench.run(ms(500));
    let sent = bench.detector.stats().sent;
    bench.hear();
    assert_eq!(bench.detector.deadline(), Some(bench.now), "overdue by the new interval: as soon as practicable");
    bench.run(Duration::ZERO);
    assert_eq!(bench.detector.stats().sent, sent + 1);
    assert_eq!(bench.detector.stats().self_late, 0, "and that is no lateness");
}

#[test]
fn another_multiplier_needs_no_poll() {
    let mut bench = Bench::up();
    bench.event(Event::SetParameters(parameters(10, 10, 9)));
    bench.run(ms(10));
    let sent = *bench.sent().last().expect("a beat");
    assert_eq!((sent.detect_multiplier, sent.poll, bench.detector.polling()), (9, false, false));
}

#[test]
fn a_proposal_is_polled_with_its_mark_and_answered_with_the_same_parameters() {
    let mut bench = Bench::up();
    bench.run(ms(1));
    bench.event(Event::Propose(parameters(10, 10, 5)));
    bench.run(ms(10));
    let sent = *bench.sent().last().expect("a beat");
    assert!(sent.poll && sent.for_both, "also when nothing changes here: the peer may differ");

    let mut bench = Bench::up();
    bench.run(ms(1));
    bench.asked.clear();
    let wish = Beat { poll: true, for_both: true, desired_tx_us: 5_000, required_rx_us: 4_000, ..bench.beat() };
    bench.event(Event::BeatReceived(Beat { detect_multiplier: 3, ..wish }));
    let answer = bench.sent()[0];
    assert!(answer.is_final && !answer.poll && !answer.for_both);
    assert_eq!((answer.desired_tx_us, answer.required_rx_us, answer.detect_multiplier), (5_000, 4_000, 3));
    assert!(bench.detector.polling(), "and it polls in its turn");
    assert_eq!(bench.detector.transmit_interval(), ms(5), "faster: at once");
    bench.run(ms(5));
    let sent = *bench.sent().last().expect("a beat");
    assert!(sent.poll && !sent.for_both, "what was proposed is not proposed back");
}

#[test]
fn no_proposal_is_taken_below_the_floor_or_out_of_bounds() {
    let mut bench = Bench::up();
    bench.detector = bench.detector.clone().with_floor(ms(2));
    let wish = Beat { poll: true, for_both: true, desired_tx_us: 500, required_rx_us: 0, ..bench.beat() };
    bench.event(Event::BeatReceived(wish));
    assert_eq!(bench.detector.parameters(), parameters(2, 2, 5));
    let hostile = Beat { desired_tx_us: u32::MAX, ..wish };
    bench.event(Event::BeatReceived(Beat { sequence: hostile.sequence + 1, ..hostile }));
    assert_eq!(bench.detector.parameters(), parameters(2, 2, 5), "kept");
    assert!(bench.sent().last().is_some_and(|sent| sent.is_final), "and answered");
}

#[test]
fn of_two_proposals_that_cross_the_lower_members_stands() {
    for (member, stands) in [(1, true), (2, false)] {
        let mut bench = Bench::new(None);
        let config = Config { incarnation: SESSION, member, parameters: parameters(10, 10, 5), startup: None };
        bench.detector = Detector::new(config, bench.now);
        bench.event(Event::Propose(parameters(20, 20, 7)));
        let theirs = Beat { poll: true, for_both: true, member: 3 - member, ..bench.beat() };
        bench.event(Event::BeatReceived(theirs));
        let ours = if stands { parameters(20, 20, 7) } else { parameters(10, 10, 5) };
        assert_eq!(bench.detector.parameters(), ours, "member {member}");
    }
}

/// What the peer holds against us is the shortest of what it may have heard, until its echo shows the newest.
#[test]
fn patience_is_the_shortest_detection_time_that_the_peer_may_hold() {
    let mut bench = Bench::up();
    assert_eq!(bench.detector.patience(), ms(50));
    bench.run(ms(1));
    bench.event(Event::SetParameters(parameters(100, 10, 8)));
    assert_eq!(bench.detector.patience(), ms(50), "it may not have heard yet");
    bench.event(Event::SetParameters(parameters(10, 10, 3)));
    assert_eq!(bench.detector.patience(), ms(30), "before the first beat with it leaves");
    bench.event(Event::SetParameters(parameters(100, 10, 8)));
    bench.run(ms(10));
    let told = *bench.sent().last().expect("a beat");
    assert_eq!(bench.detector.patience(), ms(30), "the order in which it hears is the network's");
    let stale = Beat { echo: told.sent_at - 1, ..bench.beat() };
    bench.event(Event::BeatReceived(stale));
    assert_eq!(bench.detector.patience(), ms(30));
    let fresh = Beat { echo: told.sent_at, ..bench.beat() };
    bench.event(Event::BeatReceived(fresh));
    assert_eq!(bench.detector.patience(), ms(800));
    let slower = Beat { required_rx_us: 200_000, ..bench.beat() };
    bench.event(Event::BeatReceived(slower));
    assert_eq!(bench.detector.patience(), ms(1600), "it expects less often than we send");
}

#[test]
fn parameters_out_of_bounds_are_refused_by_name() {
    assert_eq!(Parameters::new(ms(10), ms(10), 0), Err(ParameterError::Multiplier));
    for bad in [Duration::ZERO, MIN_INTERVAL - Duration::from_nanos(1), MAX_INTERVAL + ms(1), Duration::MAX] {
        assert!(matches!(Parameters::new(bad, ms(10), 5), Err(ParameterError::Interval { given, .. }) if given == bad));
        let message = Parameters::new(ms(10), bad, 5).expect_err("refused").to_string();
        assert!(message.starts_with("the required receive interval is"), "{message}");
    }
    assert_eq!(Parameters::new(ms(10), ms(10), 5), Ok(Parameters::DEFAULT));
}

#[test]
fn spurious_calls_change_nothing() {
    let mut bench = Bench::up();
    for _ in 0..300 {
        bench.now = bench.now.after(Duration::from_micros(700));
        if bench.detector.deadline().is_some_and(|d| d > bench.now) {
            let before = bench.detector.clone();
            bench.detector.handle_timeout(bench.now);
            bench.detector.handle(bench.now, Event::Drained);
            assert_eq!(bench.detector, before);
        } else {
            bench.run(Duration::ZERO);
        }
    }
}

#[test]
fn an_undrained_queue_keeps_the_newest_of_each_kind() {
    let mut bench = Bench::up();
    for _ in 0..1000 {
        let beat = Beat { poll: true, ..bench.beat() };
        bench.detector.handle(bench.now, Event::BeatReceived(beat));
        bench.now = bench.now.after(ms(20));
        bench.detector.handle_timeout(bench.now);
    }
    bench.now = bench.now.after(ms(200));
    bench.detector.handle_timeout(bench.now);
    let queued: Vec<_> = std::iter::from_fn(|| bench.detector.poll_action()).collect();
    assert!(queued.len() <= 6, "{}", queued.len());
    assert!(queued.iter().any(|a| matches!(a, Action::SendBeat(b) if b.sequence == bench.detector.stats().sent)));
}

/// Two paths bring every beat twice, the second a while after the first, and now and then after the next one's first. That is
/// neither a forgery nor a beat: gaps, round trips, the echo and the deadline are those of first arrivals.
#[test]
fn the_same_beat_by_a_second_path_changes_nothing() {
    let mut bench = Bench::up();
    let mut twin = Bench::up();
    for late in [0, 1, 4, 9, 11, 15] {
        let beat = bench.beat();
        let next = bench.beat();
        for (at, received) in [(0, beat), (10, next)] {
            for bench in [&mut bench, &mut twin] {
                bench.run(ms(if at == 0 { 0 } else { 10 }));
                bench.event(Event::BeatReceived(received));
            }
        }
        let (_, _) = (bench.run(ms(late)), twin.run(ms(late)));
        bench.event(Event::BeatReceived(beat));
        bench.event(Event::BeatReceived(next));
        assert_eq!(bench.detector.deadline(), twin.detector.deadline());
        assert_eq!(bench.detector.peer(), twin.detector.peer());
    }
    assert_eq!(bench.asked, twin.asked, "the samples for the histograms, the beats, everything");
    let (doubled, single) = (bench.detector.stats(), twin.detector.stats());
    assert_eq!((doubled.duplicates, single.duplicates), (12, 0));
    assert_eq!((doubled.received, doubled.foreign, doubled.missed), (single.received, 0, single.missed));
}

impl Bench {
    /// The peer echoes our newest beat.
    fn hear_echo(&mut self) {
        let echo = self.sent().last().map_or(0, |beat| beat.sent_at);
        let beat = Beat { echo, ..self.beat() };
        self.event(Event::BeatReceived(beat));
    }

    /// Beats both ways for `n` intervals.
    fn exchange(&mut self, n: usize) {
        for _ in 0..n {
            self.run(ms(10));
            self.hear_echo();
        }
    }

    fn said_proven(&self) -> usize {
        self.asked.iter().filter(|action| **action == Action::Proven).count()
    }
}

#[test]
fn beats_both_ways_for_k_intervals_are_a_proof() {
    let mut bench = Bench::new(None);
    bench.exchange(5);
    assert_eq!(
        (bench.said_proven(), bench.detector.proof(bench.now).proven),
        (0, false),
        "four echoes after the first"
    );
    bench.exchange(1);
    let proof = bench.detector.proof(bench.now);
    assert_eq!((bench.said_proven(), proof.proven, proof.heard, proof.echoed), (1, true, 6, 6));
    bench.exchange(50);
    assert_eq!(bench.said_proven(), 1, "said once");
}

#[test]
fn hearing_without_being_heard_is_no_proof() {
    let mut bench = Bench::new(None);
    for _ in 0..100 {
        bench.run(ms(10));
        bench.hear();
    }
    let proof = bench.detector.proof(bench.now);
    assert_eq!((bench.said_proven(), proof.proven, proof.heard, proof.echoed), (0, false, 100, 0));
    // An echo that does not advance tells of one beat that arrived once; one of the future tells nothing.
    for _ in 0..100 {
        bench.run(ms(10));
        let first = bench.sent()[0].sent_at;
        let same = Beat { echo: first, ..bench.beat() };
        let future = Beat { echo: u64::MAX, ..bench.beat() };
        bench.event(Event::BeatReceived(same));
        bench.event(Event::BeatReceived(future));
    }
    assert_eq!((bench.said_proven(), bench.detector.proof(bench.now).echoed), (0, 1));
}

#[test]
fn a_gap_or_an_accusation_takes_the_proof_back() {
    let mut bench = Bench::new(None);
    bench.exchange(3);
    bench.stall(ms(101));
    bench.hear_echo();
    bench.exchange(4);
    assert!(!bench.detector.proof(bench.now).proven, "the run began anew after the gap");
    bench.exchange(2);
    assert!(bench.detector.proof(bench.now).proven);
    assert!(!bench.detector.proof(bench.now.after(ms(101))).proven, "no echo within both detection times");

    let echo = bench.sent().last().map_or(0, |beat| beat.sent_at);
    let accusing = Beat { echo, state: BeatState::Suspect, ..bench.beat() };
    bench.event(Event::BeatReceived(accusing));
    let proof = bench.detector.proof(bench.now);
    assert!(proof.accused && !proof.proven, "{proof:?}");
}

#[test]
fn a_suspicion_takes_the_proof_back_for_good() {
    let mut bench = Bench::new(None);
    bench.exchange(10);
    assert!(bench.detector.proof(bench.now).proven);
    bench.run(ms(60));
    assert!(bench.suspicion().is_some() && !bench.detector.proof(bench.now).proven);
    bench.exchange(20);
    assert!(!bench.detector.proof(bench.now).proven);
}
