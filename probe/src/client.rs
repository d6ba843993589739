//! The probing end: runs the phases, and collects what both ends measured. Synchronous: see the crate.

use crate::{
    MULTIPLIER, SLAB, SLABS,
    file::{Phase, ProbeFile, Settings},
    greeting::{self, Answer, Ask, Greeting},
    load::{self, Load},
    view::View,
};
use anyhow::{Context, Result, bail, ensure};
use mc_core::{
    detector::Parameters,
    id::{Epoch, Generation, Incarnation, Node, NodeId, WitnessId},
    transport::{Completion, Op, Transport},
    wire::{
        beat::BeatKey,
        control::{Body, Control, GoodbyeReason},
        session::{Hello, Purpose, VERSIONS},
    },
};
use node::{
    address::LocalAddr,
    arbiter::HostPort,
    beats::{self, Wish},
    exit::{self, Code, ExitError},
    keepalive::{BeatHandle, Measured},
    paths::{self, Ours, PathsConfig, Report},
};
use rustix::rand::{GetRandomFlags, getrandom};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};
use transport_tcp::session::{Connected, SessionError, SessionOptions};

/// How long the other end may take to answer a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long it may take to have its measurements ready.
const REPORT: Duration = Duration::from_secs(10);
/// How long a goodbye may take to leave.
const FAREWELL: Duration = Duration::from_secs(1);
/// The longest sleep of a phase's loop.
const GLANCE: Duration = Duration::from_millis(50);

/// A session for one phase.
struct Session {
    incarnation: Incarnation,
    link: Box<dyn Transport>,
    beats: BeatHandle,
    report: Report,
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Where a [`Server`](crate::Server) listens.
    pub peer: HostPort,
    /// From one beat to the next.
    pub interval: Duration,
    /// How long each phase takes.
    pub duration: Duration,
    /// Bytes of a checkpoint of the second phase; without, there is none.
    pub load: Option<u64>,
    /// This end's address; without, the route's.
    pub bind: Option<LocalAddr>,
    /// Which way checkpoints and beats go.
    pub paths: PathsConfig,
}

/// Memory that the checkpoints of a probe take, which a device has to register.
pub const LOAD_BYTES: u64 = SLAB as u64 * SLABS as u64;

/// Measures, until it is done or `stop` says so: then what was measured by then. Also says why it is not all that was asked for.
///
/// # Errors
/// Nothing was measured.
pub fn measure(args: &Probe, stop: &AtomicBool) -> Result<(ProbeFile, Option<anyhow::Error>)> {
    // Refused here with words, before anything is sent.
    Parameters::new(args.interval, args.interval, MULTIPLIER).map_err(ExitError::usage)?;
    paths::check(&args.paths)?;
    let (load, peer) = (args.load, &args.peer);
    let stopped = || stop.load(Ordering::Relaxed);
    let mut file = ProbeFile::new(peer.to_string(), Settings::default());
    let mut failed = None;
    let phases = [("idle", None), ("loaded", load)];
    for (name, load) in phases.into_iter().filter(|(name, load)| *name == "idle" || load.is_some()) {
        if stopped() {
            file.notes.push(format!("interrupted: phase {name} was not measured"));
            continue;
        }
        let measured = open(args).and_then(|mut session| {
            let beside = phase(&mut session, name, args.duration, load, stop)?;
            Ok((session, beside))
        });
        let (session, Beside { here, rate, took, trouble }) = match measured {
            Ok(measured) => measured,
            Err(error) if file.phases.is_empty() => return Err(error),
            Err(error) => {
                file.notes.push(format!("phase {name} was not measured: {}", exit::words(&error)));
                failed = Some(error);
                break;
            }
        };
        file.settings.transport = session.report.transport.to_owned();
        file.settings.keepalive = session.report.keepalive.to_owned();
        file.notes.extend(session.beats.notes().iter().map(|note| format!("here: {note}")));
        if stopped() {
            let (took, whole) = (took.as_secs_f64(), args.duration.as_secs_f64());
            file.notes.push(format!("interrupted: phase {name} ended after {took:.1} s of {whole:.1} s"));
        }
        if let Some((what, dead)) = trouble {
            file.notes.push(what.clone());
            failed = failed.or_else(|| dead.then(|| dead_path(what)));
        }
        let incarnation = session.incarnation;
        goodbye(session);
        let there = fetch(args, incarnation).unwrap_or_else(|error| {
            let what = format!("could not get the other end's measurements of phase {name}: {}", exit::words(&error));
            failed.get_or_insert(error);
            Answer::new(None, vec![what])
        });
        file.notes.extend(there.notes.iter().map(|note| format!("there: {note}")));
        let (seconds, there) = (took.as_secs_f64(), there.measured);
        file.phases.push(Phase { name: name.into(), seconds, load_mib_per_s: rate, here, there });
        if failed.is_some() {
            break;
        }
    }
    file.settings.interval_us = file.phases.first().map_or(0, |phase| phase.here.interval_us);
    file.settings.load_bytes = load;
    file.notes.sort();
    file.notes.dedup();
    Ok((file, failed))
}

fn dead_path(what: String) -> anyhow::Error {
    let remedy = "check the MTU on the way and packet filters: something passes small packets but not large ones, or \
         drops TCP. Then probe again";
    ExitError::new(Code::Failed, what).remedy(remedy).into()
}

fn hello(args: &Probe, beat_port: u16) -> Result<Hello> {
    let (mut incarnation, mut key) = ([0; 8], [0; 32]);
    getrandom(&mut incarnation, GetRandomFlags::empty())?;
    getrandom(&mut key, GetRandomFlags::empty())?;
    let interval_us = beats::interval_us(args.interval)?;
    Ok(Hello {
        versions: VERSIONS,
        slab_size: SLAB,
        staging_slabs: u32::try_from(SLABS)?,
        rdma: false,
        incarnation: Incarnation(u64::from_le_bytes(incarnation)),
        generation: Generation(0),
        purpose: Purpose::Probe,
        node: Node { name: greeting::this_host(), id: NodeId::NONE },
        witness: WitnessId::NONE,
        instance: 0,
        beat_key: BeatKey(key),
        beat_port,
        detect_multiplier: MULTIPLIER,
        desired_tx_us: interval_us,
        required_rx_us: interval_us,
    })
}

/// A peer that is none is named with what to do.
fn explain(error: SessionError) -> anyhow::Error {
    let remedy = match &error {
        SessionError::Refused { .. } | SessionError::Stranger { .. } | SessionError::Silent { .. } => {
            "start `afterimage keepalive serve --listen ADDR:PORT` there, and use that port. To measure a standby's \
             own session: `afterimage keepalive probe --vm NAME`"
        }
        SessionError::Connect { .. } => "start `afterimage keepalive serve --listen ADDR:PORT` there",
        SessionError::Version { .. } | SessionError::Wire { .. } => "use the same build of afterimage on both hosts",
        _ => return error.into(),
    };
    ExitError::new(Code::Failed, error).remedy(remedy).into()
}

fn open(args: &Probe) -> Result<Session> {
    let (to, config) = (&args.peer, &args.paths);
    let options = SessionOptions { deadline: HANDSHAKE, ..SessionOptions::default() };
    let call = paths::call(to, args.bind, &options).map_err(explain)?;
    let keepalive = paths::beats_at(config, call.local_addr(), paths::End::Caller)?;
    let beat_port = if config.wants_udp() { keepalive.local_port()? } else { 0 };
    let hello = hello(args, beat_port)?;
    let ours = Ours::prepare(config, call.local_addr(), &hello)?;
    let greeting = Greeting::new(Ask::Measure).encode();
    let endpoint = ours.endpoint();
    let connected = call.shake_hands(&hello, &greeting, endpoint.as_ref()).map_err(explain)?;
    let Connected { link, peer, profile, endpoint, peer_addr, .. } = connected;
    Answer::decode(&profile).with_context(|| peer_addr.to_string())?;
    let route = ours.settle(link, endpoint.as_ref(), keepalive, &peer, peer_addr)?;
    let wish = Wish { interval: args.interval, min_rx: None, multiplier: MULTIPLIER };
    let key = (hello.incarnation, hello.beat_key);
    let beats = beats::start(route.keepalive, key, beats::PRIMARY, wish, None)?;
    Ok(Session { incarnation: hello.incarnation, link: route.link, beats, report: route.report })
}

/// What a phase measured.
struct Beside {
    here: Measured,
    /// MiB/s of the load.
    rate: Option<f64>,
    took: Duration,
    /// What was wrong with the load, and whether that spoilt the phase.
    trouble: Option<(String, bool)>,
}

/// Beats, beside checkpoints if there is a load, for `time`, or until `stop`.
fn phase(session: &mut Session, name: &str, time: Duration, load: Option<u64>, stop: &AtomicBool) -> Result<Beside> {
    let mut load = load.map(|bytes| Load::new(bytes, SLAB, session.incarnation)).transpose()?;
    let (start, mut view) = (Instant::now(), View::new(name, time));
    let mut broke = None;
    while start.elapsed() < time && broke.is_none() && !stop.load(Ordering::Relaxed) {
        let mut any = load.as_mut().is_some_and(|load| load.push(session.link.as_mut()));
        while let Some(completion) = session.link.poll() {
            any = true;
            match (completion, &mut load) {
                (Completion::Down(why), _) => {
                    let after = start.elapsed().as_secs_f64();
                    broke = Some(format!("phase {name} ended after {after:.1} s: the connection broke: {why}"));
                    break;
                }
                (completion, Some(load)) => load.take(completion)?,
                (other, None) => {
                    bail!("unexpected message from the other side, which `keepalive serve` never sends: {other:?}")
                }
            }
        }
        view.show(start.elapsed(), || session.report.measured(&session.beats));
        if !any {
            let left = time.saturating_sub(start.elapsed());
            load::rest(session.link.as_ref(), left.min(GLANCE).max(Duration::from_millis(1)));
        }
    }
    let took = start.elapsed();
    let trouble = load.as_ref().and_then(|load| load.trouble(name, &session.link.peer().to_string()));
    let trouble = trouble.filter(|_| took >= time).or(broke.map(|what| (what, true)));
    let rate = load.map(|load| load.acked_bytes() as f64 / f64::from(1 << 20) / took.as_secs_f64());
    view.end();
    ensure!(session.beats.is_running(), "the thread \"beats\" died");
    let measured = session.report.measured(&session.beats).filter(|measured| !measured.gap.is_empty());
    let here = measured.with_context(|| {
        format!(
            "fewer than two beats arrived from {} over {}; check for a packet filter",
            session.link.peer(),
            session.report.keepalive
        )
    })?;
    Ok(Beside { here, rate, took, trouble })
}

/// Ends a session: a device that has nothing to send does not notice that the other end has gone.
fn goodbye(mut session: Session) {
    let start = Instant::now();
    let (incarnation, generation, body) =
        (session.incarnation, Generation(0), Body::Goodbye(GoodbyeReason::Unprotected));
    let mut said = None;
    while start.elapsed() < FAREWELL && said.is_none_or(|said: Instant| said.elapsed() < FAREWELL / 10) {
        while session.link.poll().is_some() {}
        let goodbye = Op::Send(Control { incarnation, generation, epoch: Epoch(0), body });
        if said.is_none() && session.link.submit(goodbye).is_ok() {
            said = Some(Instant::now());
        }
        load::rest(session.link.as_ref(), Duration::from_millis(10));
    }
}

/// What the other end measured. It may need a moment to see that the session is over.
fn fetch(args: &Probe, incarnation: Incarnation) -> Result<Answer> {
    let greeting = Greeting::new(Ask::Report(incarnation.0)).encode();
    let options = SessionOptions { deadline: HANDSHAKE, ..SessionOptions::default() };
    let start = Instant::now();
    loop {
        let hello = hello(args, 0)?;
        let call = paths::call(&args.peer, args.bind, &options);
        match call.and_then(|call| call.shake_hands(&hello, &greeting, None)) {
            Ok(connected) => return Answer::decode(&connected.profile),
            Err(SessionError::Refused { .. }) if start.elapsed() < REPORT => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(error) => return Err(explain(error).context("asking for what the other end measured")),
        }
    }
}
