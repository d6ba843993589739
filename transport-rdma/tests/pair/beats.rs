//! In a VM: the keepalive beside the link, in a thread of its own; and a peer that has come back from the dead.

use crate::said::{Beats, Said};
use mc_core::{
    detector::{Action, Config, Detector, Event, Parameters, State},
    id::{Incarnation, Time},
    machine::Machine,
    transport::Keepalive,
    wire::beat::{self, Beat, BeatKey},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use transport_rdma::{UdAddress, UdKeepalive, UdOptions, device::Choice, qkey_of};

/// As two emulated hosts bear it: a pair is silent for 0.7 s now and then without any fault.
const INTERVAL: Duration = Duration::from_millis(100);
pub(crate) const MULTIPLIER: u8 = 15;
/// What a host that was started again sends towards its former peer.
const STRAYS: u64 = 20;

/// The key of a session.
pub(crate) fn key_of(session: Incarnation) -> BeatKey {
    let mut key = [7; 32];
    key[..8].copy_from_slice(&session.0.to_le_bytes());
    BeatKey(key)
}

/// A keepalive that hears who has the session's key.
pub(crate) fn open(choice: &Choice, session: Incarnation) -> anyhow::Result<UdKeepalive> {
    Ok(UdKeepalive::open(choice, UdOptions::new(qkey_of(&key_of(session))))?)
}

fn config(session: Incarnation, member: u8) -> Config {
    let parameters = Parameters::new(INTERVAL, INTERVAL, MULTIPLIER).expect("within the limits");
    Config { incarnation: session, member, parameters, startup: Some(Duration::from_secs(20)) }
}

/// A thread that watches the peer.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Beats>>,
}

impl Watch {
    pub(crate) fn start(keepalive: UdKeepalive, session: Incarnation, member: u8) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let watcher = Watcher {
            keepalive,
            key: key_of(session),
            detector: Detector::new(config(session, member), Time(1)),
            start: Instant::now(),
            unauthentic: 0,
        };
        let ends = Arc::clone(&stop);
        Self { stop, thread: thread::spawn(move || watcher.run(&ends)) }
    }

    pub(crate) fn end(self) -> anyhow::Result<Beats> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().map_err(|_| anyhow::anyhow!("the thread that beats panicked"))?
    }
}

struct Watcher {
    keepalive: UdKeepalive,
    key: BeatKey,
    detector: Detector,
    start: Instant,
    unauthentic: u64,
}

impl Watcher {
    fn now(&self) -> Time {
        Time(1).after(self.start.elapsed())
    }

    fn run(mut self, stop: &AtomicBool) -> anyhow::Result<Beats> {
        let mut drained = false;
        while !stop.load(Ordering::Acquire) {
            let now = self.now();
            self.detector.handle_timeout(now);
            drained |= self.act()?;
            self.hear()?;
            if std::mem::take(&mut drained) {
                let now = self.now();
                self.detector.handle(now, Event::Drained);
            }
            drained |= self.act()?;
            let due = self.detector.deadline().map_or(Duration::ZERO, |at| at.since(self.now()));
            self.keepalive.wait(due.min(INTERVAL / 2))?;
        }
        let stats = self.detector.stats();
        Ok(Beats {
            state: format!("{:?}", self.detector.state()),
            sent: stats.sent,
            received: stats.received,
            after_suspicion: stats.after_suspicion,
            foreign: stats.foreign,
            unauthentic: self.unauthentic,
        })
    }

    /// Everything that has arrived.
    fn hear(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; beat::LEN + 1];
        while let Some(len) = self.keepalive.receive(&mut buffer)? {
            let now = self.now();
            match Beat::decode(&buffer[..len], &self.key) {
                Ok(beat) => self.detector.handle(now, Event::BeatReceived(beat)),
                Err(_) => self.unauthentic += 1,
            }
        }
        Ok(())
    }

    /// Carries out what the detector asks for; whether that is to drain.
    fn act(&mut self) -> anyhow::Result<bool> {
        let mut drain = false;
        while let Some(action) = self.detector.poll_action() {
            match action {
                Action::SendBeat(beat) => self.keepalive.send(&beat.encode(&self.key))?,
                Action::Drain => drain = true,
                Action::Suspect(suspicion) => {
                    let silent_ms = u64::try_from(suspicion.silent_for.as_millis())?;
                    Said::Suspect { silent_ms, missed: suspicion.missed }.say();
                }
                _ => {}
            }
        }
        Ok(drain)
    }
}

/// A host that was started again, with nothing of its memory, sends beats to where its former peer hears: of a new session with
/// the old key, and of the old session with a new key. It has the old Q_Key, so that the device lets them through.
pub(crate) fn revenant(choice: &Choice, former: Incarnation, to: UdAddress) -> anyhow::Result<()> {
    let fresh = Incarnation(former.0 + 1);
    let mut keepalive = open(choice, former)?;
    keepalive.add_member(to)?;
    // It suspects its peer in the end, whom it never hears; all it is here for are its beats.
    for (session, key) in [(fresh, key_of(former)), (former, key_of(fresh))] {
        let mut detector = Detector::new(config(session, 2), Time(1));
        for _ in 0..STRAYS {
            let due = detector.deadline().expect("a detector beats for ever");
            detector.handle_timeout(due);
            while let Some(action) = detector.poll_action() {
                if let Action::SendBeat(beat) = action {
                    keepalive.send(&beat.encode(&key))?;
                }
            }
            thread::sleep(INTERVAL / 10);
        }
        anyhow::ensure!(detector.state() == State::Waiting, "{:?}", detector.state());
    }
    anyhow::ensure!(keepalive.counts().lost == 0, "beats did not leave: {:?}", keepalive.counts());
    Ok(())
}
