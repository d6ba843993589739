//! Finding the standby: connects and shakes hands on a thread of its own, so that the solo VM's packets flow meanwhile.

use super::{channel::Brief, seek::Trouble};
use crate::standby;
use anyhow::{Context, Result};
use mc_core::{
    id::{Generation, Incarnation, WitnessId},
    register::Owner,
    wire::{VERSION, beat::BeatKey, session::Hello},
};
use node::{
    beats::{self, Wish},
    events::BeatsWish,
    exit, identity,
    inbox::{self, Inbox},
    keepalive::{BeatHandle, Watched},
    paths::{self, Link, Ours, Report, Route},
};
use rustix::rand::{GetRandomFlags, getrandom};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};
use transport_tcp::session::{SessionError, SessionOptions};
use vmm_qemu::profile::Profile;

/// How long a standby may take to start its QEMU and answer.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// How long a standby that is not there yet is waited for, with `--once`.
const PATIENCE: Duration = Duration::from_secs(10);

/// A session that is ready for slabs.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) incarnation: Incarnation,
    pub(super) standby: Owner,
    pub(super) peer: SocketAddr,
    /// How the standby beats.
    pub(super) beats: BeatsWish,
    route: Route,
    key: BeatKey,
}

impl Found {
    /// Starts the session's beats.
    pub(super) fn start(self, wish: Wish, watched: Watched) -> Result<(Box<dyn Link>, BeatHandle, Report)> {
        let Route { link, keepalive, report } = self.route;
        let beats = beats::start(keepalive.0, (self.incarnation, self.key), beats::PRIMARY, wish, Some(watched))?;
        Ok((link, beats, report))
    }
}

/// The standby's VM is another one than ours.
#[derive(Debug, thiserror::Error)]
#[error("the standby's VM differs: {0}")]
struct Differs(String);

/// The standby is none for us: the same node, or of another witness.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NoPair(String);

/// Begins to look for the standby; the result comes through the inbox.
pub(super) fn seek(brief: &Brief, generation: Generation, witness: WitnessId) -> Result<Inbox<Result<Found, Trouble>>> {
    let (outbox, inbox) = inbox::inbox()?;
    let brief = brief.clone();
    let seek = move || outbox.put(shake_hands(&brief, generation, witness).map_err(|error| trouble(&error)));
    std::thread::Builder::new().name("seek".to_owned()).spawn(seek)?;
    Ok(inbox)
}

/// Connects, then binds the beats to the connection's own address, then says hello.
fn shake_hands(brief: &Brief, generation: Generation, witness: WitnessId) -> Result<Found> {
    let config = &brief.config;
    let options = SessionOptions { deadline: HANDSHAKE, ..SessionOptions::default() };
    let call = || paths::call(&config.to, config.bind, &options);
    let call = if config.once { patiently(call)? } else { call()? };
    let keepalive = paths::beats_at(&config.paths, call.local_addr(), paths::End::Caller)?;
    let beat_port = if config.paths.wants_udp() { keepalive.local_port()? } else { 0 };
    let hello = Hello { witness, ..hello(brief, generation, beat_port)? };
    let ours = Ours::prepare(&config.paths, call.local_addr(), &hello)?;
    let endpoint = ours.endpoint();
    let connected = call.shake_hands(&hello, &profile(brief).to_json(), endpoint.as_ref())?;
    let (node, theirs) = ((hello.node, witness), (connected.peer.node, connected.peer.witness));
    identity::check_pair(node, theirs).map_err(NoPair)?;
    let theirs: Profile = Profile::from_json(&connected.profile).context("the standby")?;
    let differences = brief.profile.mismatches(&theirs);
    if !differences.is_empty() {
        return Err(Differs(differences.join("; ")).into());
    }
    let (peer, theirs) = (connected.peer_addr, connected.endpoint);
    let beats = beats::told(&connected.peer);
    let route = ours.settle(connected.link, theirs.as_ref(), keepalive, &connected.peer, peer)?;
    let standby = Owner { node: connected.peer.node, instance: connected.peer.instance };
    Ok(Found { incarnation: hello.incarnation, standby, peer, beats, route, key: hello.beat_key })
}

/// The VM's, and what it will be protected but for.
fn profile(brief: &Brief) -> Profile {
    let unheld = brief.outputs.unheld().map(|output| output.name.clone()).collect();
    Profile { unheld, ..brief.profile.clone() }
}

/// Whether it may pass by itself. A refusal says what an operator has to change, unless it says that the standby is busy, or has not
/// the arbiter's word for us.
fn trouble(error: &anyhow::Error) -> Trouble {
    let why = exit::words(error);
    match error.downcast_ref::<SessionError>() {
        Some(SessionError::Refused { why: told, .. })
            if [standby::BUSY, standby::NOTHING_STARTED].iter().any(|passing| told.starts_with(passing)) =>
        {
            Trouble::passing(why)
        }
        Some(
            SessionError::Refused { .. }
            | SessionError::Version { .. }
            | SessionError::Stranger { .. }
            | SessionError::Profile { .. },
        ) => Trouble::lasting(why),
        None if error.is::<Differs>() || error.is::<NoPair>() => Trouble::lasting(why),
        _ => Trouble::passing(why),
    }
}

/// `--once`: a standby that is being started may not listen yet: tries again while nobody answers.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T, SessionError>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(SessionError::Connect { .. }) if start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn hello(brief: &Brief, generation: Generation, beat_port: u16) -> Result<Hello> {
    let config = &brief.config;
    let (mut incarnation, mut key) = ([0; 8], [0; 32]);
    getrandom(&mut incarnation, GetRandomFlags::empty())?;
    getrandom(&mut key, GetRandomFlags::empty())?;
    let interval_us = beats::interval_us(config.beat_interval)?;
    Ok(Hello {
        versions: (VERSION, VERSION),
        slab_size: u32::try_from(config.slab_bytes).context("slab size")?,
        staging_slabs: u32::try_from(config.staging_bytes / config.slab_bytes).context("staging size")?,
        rdma: false,
        incarnation: Incarnation(u64::from_le_bytes(incarnation)),
        generation,
        vm: config.vm,
        node: brief.register.owner.node,
        witness: WitnessId::NONE,
        instance: brief.register.owner.instance,
        beat_key: BeatKey(key),
        beat_port,
        detect_multiplier: config.detect_multiplier,
        desired_tx_us: interval_us,
        required_rx_us: beats::interval_us(config.beat_min_rx.unwrap_or(config.beat_interval))?,
    })
}
