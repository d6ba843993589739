//! Beats between the two processes, over the product's keepalives: one side sends on time, the other notes when they came and
//! echoes them.
//!
//! Both processes are on one machine and read one clock (`CLOCK_MONOTONIC`), so one-way times need no guessing. Each end has a
//! thread of its own, real-time if the system lets it, as in the product.

use crate::{link::Port, sys};
use anyhow::{Context, Result, anyhow, bail, ensure};
use mc_core::{
    histogram::Histogram,
    id::{Epoch, Generation, Incarnation},
    transport::Keepalive,
    wire::beat::{self, Beat, BeatKey, BeatState},
};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use transport_rdma::{UdAddress, UdKeepalive, UdOptions, qkey_of};
use transport_tcp::{UdpKeepalive, reach::at_port};

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// How long an end waits before it looks whether it shall end.
const GLANCE: Duration = Duration::from_millis(20);
/// How long echoes of the last beats are waited for.
const TAIL: Duration = Duration::from_millis(500);

/// Where an end hears beats.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Address {
    /// A UDP port on loopback.
    Udp(u16),
    /// A datagram queue pair.
    Ud(UdAddress),
}

/// One end.
#[derive(Debug)]
pub(crate) enum End {
    /// Beside TCP.
    Udp(UdpKeepalive),
    /// Beside RDMA.
    Ud(Box<UdKeepalive>),
}

impl End {
    /// On that port, or over UDP.
    ///
    /// # Errors
    /// The device or the socket is not to be had.
    pub(crate) fn open(port: Option<&Port>, key: BeatKey) -> Result<Self> {
        Ok(match port {
            None => Self::Udp(UdpKeepalive::bind(LOOPBACK)?),
            Some(port) => {
                let keepalive = UdKeepalive::open(&port.open()?, UdOptions::new(qkey_of(&key)))?;
                Self::Ud(Box::new(keepalive))
            }
        })
    }

    /// For the other end.
    ///
    /// # Errors
    /// The socket has none.
    pub(crate) fn address(&self) -> Result<Address> {
        Ok(match self {
            Self::Udp(end) => Address::Udp(end.local_port()?),
            Self::Ud(end) => Address::Ud(end.address()),
        })
    }

    /// From here on beats go there.
    ///
    /// # Errors
    /// It is of another kind, or cannot be reached.
    pub(crate) fn meet(&mut self, other: Address) -> Result<()> {
        match (self, other) {
            (Self::Udp(end), Address::Udp(port)) => end.connect(at_port(LOOPBACK, port))?,
            (Self::Ud(end), Address::Ud(member)) => end.add_member(member)?,
            (end, other) => bail!("{end:?} cannot reach {other:?}"),
        }
        Ok(())
    }

    /// The keepalive alone.
    #[must_use]
    pub(crate) fn into_keepalive(self) -> Box<dyn Keepalive> {
        match self {
            Self::Udp(end) => Box::new(end),
            Self::Ud(end) => end,
        }
    }

    fn keepalive(&mut self) -> &mut dyn Keepalive {
        match self {
            Self::Udp(end) => end,
            Self::Ud(end) => end.as_mut(),
        }
    }

    /// The next beat that has arrived, if any.
    fn next(&mut self, key: &BeatKey) -> Result<Option<Beat>> {
        let mut buffer = [0; beat::LEN + 1];
        let Some(len) = self.keepalive().receive(&mut buffer)? else { return Ok(None) };
        Ok(Some(Beat::decode(&buffer[..len], key)?))
    }
}

/// The clock that both processes read: nanoseconds.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let (seconds, nanos) = (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0));
    seconds * 1_000_000_000 + nanos
}

fn since(then: u64) -> Duration {
    Duration::from_nanos(now().saturating_sub(then))
}

/// `sent_at`: when it left; `echo`: of a beat, when it was due; of an echo, when the beat that it answers left.
fn make(sequence: u64, sent_at: u64, echo: u64) -> Beat {
    Beat {
        incarnation: Incarnation(1),
        generation: Generation(1),
        committed: Epoch(0),
        sequence,
        sent_at,
        echo,
        echo_delay: 0,
        desired_tx_us: 0,
        required_rx_us: 0,
        detect_multiplier: 1,
        state: BeatState::Up,
        member: 1,
        poll: false,
        is_final: false,
        for_both: false,
        meant_for: 0,
    }
}

/// What the echoing end heard.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Heard {
    /// Beats, each counted once.
    pub received: u64,
    /// From leaving to arriving.
    pub one_way: Histogram,
    /// From when it was due to arriving: also what the sender's thread was late.
    pub from_due: Histogram,
    /// Whether its thread was real-time.
    pub real_time: bool,
}

/// What the sending end knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sent {
    /// Beats.
    pub sent: u64,
    /// Echoes that came back.
    pub echoed: u64,
    /// From leaving to the echo's arrival.
    pub round_trip: Histogram,
    /// Whether its thread was real-time.
    pub real_time: bool,
}

/// A thread that is told to end.
#[derive(Debug)]
struct Worker<T> {
    go: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<T>>>,
}

impl<T: Send + 'static> Worker<T> {
    fn start(life: impl FnOnce(&AtomicBool, &AtomicBool) -> Result<T> + Send + 'static) -> Self {
        let (go, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (theirs, ends) = (Arc::clone(&go), Arc::clone(&stop));
        Self { go, stop, thread: Some(thread::spawn(move || life(&theirs, &ends))) }
    }

    fn end(mut self) -> Result<T> {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.take().context("it has ended")?;
        thread.join().map_err(|_| anyhow!("the thread of beats panicked"))?
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// The echoing end at work.
#[derive(Debug)]
pub(crate) struct Echo(Worker<Heard>);

impl Echo {
    /// Echoes until ended.
    #[must_use]
    pub(crate) fn start(end: End, key: BeatKey) -> Self {
        Self(Worker::start(move |_, stop| echo(end, &key, stop)))
    }

    /// Ends it.
    ///
    /// # Errors
    /// The keepalive failed.
    pub(crate) fn end(self) -> Result<Heard> {
        self.0.end()
    }
}

fn echo(mut end: End, key: &BeatKey, stop: &AtomicBool) -> Result<Heard> {
    let real_time = sys::real_time().is_ok();
    let (mut one_way, mut from_due, mut last) = (Histogram::new(), Histogram::new(), 0);
    while !stop.load(Ordering::Acquire) {
        end.keepalive().wait(GLANCE)?;
        while let Some(beat) = end.next(key)? {
            // Duplicates do not make up for losses.
            if beat.sequence > last {
                last = beat.sequence;
                one_way.record(since(beat.sent_at));
                from_due.record(since(beat.echo));
            }
            let answer = make(beat.sequence, now(), beat.sent_at).encode(key);
            end.keepalive().send(&answer)?;
        }
    }
    Ok(Heard { received: one_way.count(), one_way, from_due, real_time })
}

/// The sending end at work.
#[derive(Debug)]
pub(crate) struct Sender(Worker<Sent>);

impl Sender {
    /// A beat every so often, from [`Sender::go`] on.
    #[must_use]
    pub(crate) fn start(end: End, key: BeatKey, every: Duration) -> Self {
        Self(Worker::start(move |go, stop| send(end, &key, every, go, stop)))
    }

    /// Begins.
    pub(crate) fn go(&self) {
        self.0.go.store(true, Ordering::Release);
    }

    /// Ends it, once the last echoes had time to come.
    ///
    /// # Errors
    /// The keepalive failed.
    pub(crate) fn end(self) -> Result<Sent> {
        self.0.end()
    }
}

fn send(mut end: End, key: &BeatKey, every: Duration, go: &AtomicBool, stop: &AtomicBool) -> Result<Sent> {
    let real_time = sys::real_time().is_ok();
    while !go.load(Ordering::Acquire) && !stop.load(Ordering::Acquire) {
        thread::sleep(Duration::from_millis(1));
    }
    let (mut round_trip, mut sent) = (Histogram::new(), 0);
    let step = u64::try_from(every.as_nanos())?;
    ensure!(step > 0, "beats need a time between them");
    let mut due = now();
    while !stop.load(Ordering::Acquire) {
        if now() >= due {
            sent += 1;
            let beat = make(sent, now(), due).encode(key);
            end.keepalive().send(&beat)?;
            due += step;
        }
        hear_echoes(&mut end, key, due.saturating_sub(now()), &mut round_trip)?;
    }
    let last = now();
    while since(last) < TAIL && round_trip.count() < sent {
        hear_echoes(&mut end, key, 1_000_000, &mut round_trip)?;
    }
    Ok(Sent { sent, echoed: round_trip.count(), round_trip, real_time })
}

fn hear_echoes(end: &mut End, key: &BeatKey, most_ns: u64, round_trip: &mut Histogram) -> Result<()> {
    end.keepalive().wait(Duration::from_nanos(most_ns))?;
    while let Some(beat) = end.next(key)? {
        round_trip.record(since(beat.echo));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_are_heard_and_echoed() {
        let key = BeatKey([7; 32]);
        let (mut a, mut b) = (End::open(None, key).unwrap(), End::open(None, key).unwrap());
        a.meet(b.address().unwrap()).unwrap();
        b.meet(a.address().unwrap()).unwrap();
        let (echo, sender) = (Echo::start(b, key), Sender::start(a, key, Duration::from_millis(1)));
        sender.go();
        thread::sleep(Duration::from_millis(50));
        let sent = sender.end().unwrap();
        let heard = echo.end().unwrap();
        assert!(sent.sent > 0 && sent.echoed == sent.sent, "{sent:?}");
        assert_eq!((heard.received, heard.one_way.count()), (sent.sent, sent.sent));
        assert!(heard.from_due.min() >= heard.one_way.min(), "due before it left: {heard:?}");
    }

    #[test]
    fn ends_of_two_kinds_do_not_meet() {
        let mut end = End::open(None, BeatKey([7; 32])).unwrap();
        let ud = Address::Ud(UdAddress { gid: [1; 16], lid: 0, qpn: 1, qkey: 1 });
        assert!(end.meet(ud).is_err());
    }
}
