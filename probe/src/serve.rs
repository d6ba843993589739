//! The serving end: answers one probe at a time, and refuses others with that reason. Synchronous: see the crate.

use crate::{
    MULTIPLIER, SLABS,
    greeting::{self, Answer, Ask, Greeting},
    load::{self, Sink},
};
use anyhow::{Context, Result, bail};
use mc_core::{
    id::{Incarnation, Node, NodeId},
    transport::Transport,
    wire::session::{Hello, MAX_PROFILE, Purpose},
};
use node::{
    beats::{self, Wish},
    clock::Clock,
    exit::{self, cannot_listen},
    keepalive::{BeatHandle, Measured, Verdict},
    paths::{self, PathsConfig, Route},
    repeated::{Repeated, and_more},
    units::spoken,
};
use parking_lot::Mutex;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use transport_tcp::{
    reach::at_port,
    session::{Listener, Offer, SessionOptions},
};

/// How soon an order to stop is seen.
const GLANCE: Duration = Duration::from_millis(200);
/// A probe that was silent for so long, and for all the beats that may be missed, is gone. It usually says goodbye.
const GONE: Duration = Duration::from_secs(5);
/// Bytes of a slab at most: each probe is given [`SLABS`] of them.
const MAX_SLAB: u32 = 4 << 20;

/// What the sessions leave.
#[derive(Debug, Default)]
struct Shared {
    /// A probe is under way.
    busy: bool,
    /// The last one's incarnation, and what is to be said of it.
    last: Option<(Incarnation, Answer)>,
}

/// Memory that the checkpoints of a probe may take here, which a device has to register.
pub const SERVED_BYTES: u64 = MAX_SLAB as u64 * SLABS as u64;

/// Answers probes.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    answers: Answers,
}

impl Server {
    /// Listens. Once `stop` is true, [`Server::run`] ends, and the probe that is under way.
    ///
    /// # Errors
    /// The address cannot be had, or a way that `config` asks for.
    pub fn bind(listen: SocketAddr, config: PathsConfig, stop: Arc<AtomicBool>) -> Result<Self> {
        paths::check(&config)?;
        let listener = Listener::bind(listen, SessionOptions::default()).map_err(cannot_listen)?;
        let answers = Answers { config, shared: Arc::default(), stop, said: Repeated::default() };
        Ok(Self { listener, answers })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Serves, until it is to stop.
    pub fn run(mut self) {
        let answers = &mut self.answers;
        while !answers.stop.load(Ordering::Acquire) {
            match self.listener.accept(GLANCE) {
                Ok(None) => {}
                Ok(Some(offer)) => answers.hear(offer),
                Err(error) => answers.say(error.kind(), |more| {
                    tracing::warn!(%error, "refused a connection{}", and_more(more));
                }),
            }
        }
    }
}

#[derive(Debug)]
struct Answers {
    config: PathsConfig,
    shared: Arc<Mutex<Shared>>,
    stop: Arc<AtomicBool>,
    said: Repeated,
}

impl Answers {
    /// Says it; in a crowd, counts it.
    fn say(&mut self, kind: &str, line: impl FnOnce(u64)) {
        if let Some(more) = self.said.say(kind, Instant::now()) {
            line(more);
        }
    }

    fn hear(&mut self, offer: Offer) {
        let (node, peer) = (offer.hello.node, offer.peer_addr);
        if let Err((offer, why)) = self.consider(offer) {
            self.say("refused", |more| tracing::warn!(%node, %peer, why, "refused{}", and_more(more)));
            if let Some(Err(error)) = offer.map(|offer| offer.refuse(&why)) {
                tracing::debug!(%error, "the refusal was not heard");
            }
        }
    }

    fn consider(&self, offer: Offer) -> Result<(), (Option<Box<Offer>>, String)> {
        if offer.hello.purpose != Purpose::Probe {
            let why = "this is `afterimage keepalive serve`, which only measures beats; to protect a VM, connect to \
                 `afterimage standby`";
            return Err((Some(Box::new(offer)), why.to_owned()));
        }
        let greeting = match Greeting::decode(&offer.profile) {
            Ok(greeting) => greeting,
            Err(error) => return Err((Some(Box::new(offer)), exit::words(&error))),
        };
        match greeting.ask {
            Ask::Report(incarnation) => self.report(offer, Incarnation(incarnation)),
            Ask::Measure => match self.prepare(&offer) {
                Ok(answer) => self.begin(offer, answer).map_err(|error| (None, exit::words(&error))),
                Err(error) => Err((Some(Box::new(offer)), exit::words(&error))),
            },
        }
    }

    fn report(&self, offer: Offer, incarnation: Incarnation) -> Result<(), (Option<Box<Offer>>, String)> {
        let last = self.shared.lock().last.clone().filter(|(of, _)| *of == incarnation);
        let Some((_, answer)) = last else {
            return Err((Some(Box::new(offer)), format!("probe {incarnation} is unknown here, or still running")));
        };
        let hello = answering(&offer.hello, offer.hello.node, 0);
        offer.accept(hello, &answer.encode(), None).map(drop).map_err(|error| (None, error.to_string()))
    }

    fn prepare(&self, offer: &Offer) -> Result<paths::Answer> {
        if self.shared.lock().busy {
            bail!("another probe is running here; try again when it has ended");
        }
        let hello = &offer.hello;
        if hello.slab_size > MAX_SLAB {
            bail!("slabs of {} bytes are too large for a probe: at most {MAX_SLAB}", hello.slab_size);
        }
        wish(hello)?;
        paths::Answer::prepare(&self.config, offer.local_addr, hello, offer.endpoint.as_ref())
    }

    fn begin(&self, offer: Offer, answer: paths::Answer) -> Result<()> {
        let (theirs, peer) = (offer.hello, offer.peer_addr);
        let keepalive = paths::beats_at(&self.config, offer.local_addr, paths::End::Listener)?;
        let beat_port = if answer.has_udp() { keepalive.local_port()? } else { 0 };
        if answer.has_udp() {
            keepalive.connect(at_port(peer, theirs.beat_port))?;
        }
        let node = Node { name: greeting::this_host(), id: NodeId::NONE };
        let hello = answering(&theirs, node, beat_port);
        let words = Answer::new(None, vec![]).encode();
        let accepted = offer.accept(hello, &words, answer.endpoint().as_ref())?;
        let Route { link, keepalive, report } = answer.settle(accepted.link, keepalive)?;
        let session = (theirs.incarnation, theirs.beat_key);
        let beats = beats::start(keepalive, session, beats::STANDBY, wish(&theirs)?, None)?;
        tracing::info!(%peer, node = %theirs.node, transport = report.transport, keepalive = report.keepalive, "a probe begins");
        let (shared, stop) = (Arc::clone(&self.shared), Arc::clone(&self.stop));
        shared.lock().busy = true;
        let of = theirs.incarnation;
        let work = move || {
            let outcome = session_loop(link, &beats, theirs.slab_size, &stop);
            // Without a goodbye nobody knows whether the silence was an outage, or the other end's death.
            let measured =
                outcome.as_ref().map_or_else(|_| report.measured_to_last_beat(&beats), |()| report.measured(&beats));
            if let Err(error) = outcome {
                tracing::warn!(%peer, error = exit::words(&error), "the probe ended early");
            }
            let answer = account(measured, &beats);
            let measured = answer.measured.as_ref();
            let (heard, lost) = measured.map_or((0, 0), |m| (m.received, m.losses.lost()));
            tracing::info!(%peer, heard, lost, "the probe is over");
            *shared.lock() = Shared { busy: false, last: Some((of, answer)) };
        };
        if let Err(error) = thread::Builder::new().name("probe".into()).spawn(work) {
            self.shared.lock().busy = false;
            return Err(error).context("a thread for the probe");
        }
        Ok(())
    }
}

fn wish(theirs: &Hello) -> Result<Wish> {
    let interval = Duration::from_micros(theirs.desired_tx_us.into());
    mc_core::detector::Parameters::new(interval, interval, MULTIPLIER)?;
    Ok(Wish { interval, min_rx: None, multiplier: MULTIPLIER })
}

fn answering(theirs: &Hello, node: Node, beat_port: u16) -> Hello {
    Hello { node, beat_port, detect_multiplier: MULTIPLIER, ..*theirs }
}

/// Takes checkpoints until the other end hangs up, is dead, or we shall stop.
fn session_loop(mut link: Box<dyn Transport>, beats: &BeatHandle, slab_size: u32, stop: &AtomicBool) -> Result<()> {
    let mut sink = Sink::new(link.as_mut(), slab_size)?;
    while !stop.load(Ordering::Acquire) {
        if sink.turn(link.as_mut())? {
            return Ok(());
        }
        if beats.verdict() == Verdict::Suspect && Clock.now().since(beats.last_heard()) > GONE {
            bail!("nothing was heard for {}", spoken(GONE));
        }
        load::rest(link.as_ref(), GLANCE);
    }
    Ok(())
}

/// What this end measured, as far as it fits an answer.
fn account(measured: Option<Measured>, beats: &BeatHandle) -> Answer {
    let mut answer = Answer::new(measured, beats.notes().to_vec());
    if answer.encode().len() > MAX_PROFILE
        && let Some(measured) = &mut answer.measured
    {
        let whole: u64 = measured.paths.iter().map(|path| path.heard).sum();
        *measured = Measured { paths: vec![], ..measured.clone() };
        answer
            .notes
            .push(format!("the histograms of each path ({whole} beats) did not fit into the answer and are missing"));
    }
    answer
}
