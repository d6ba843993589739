//! Finding the standby: connects and shakes hands on a thread of its own, so that the solo VM's packets flow meanwhile.

use super::seek::Trouble;
use crate::{
    address::LocalAddr,
    arbiter::HostPort,
    beats::{self, Wish},
    events::BeatsWish,
    exit, identity,
    inbox::{self, Inbox},
    keepalive::{BeatHandle, Watched},
    outside,
    paths::{self, Ours, PathsConfig, Report, Route},
};
use anyhow::{Context, Result};
use mc_core::{
    id::{Generation, Incarnation, Name, WitnessId},
    register::Owner,
    transport::Transport,
    wire::{
        beat::BeatKey,
        session::{Hello, Purpose, VERSIONS},
    },
};
use rustix::rand::GetRandomFlags;
use std::{
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};
use transport_tcp::session::{SessionError, SessionOptions};

/// How a refusal begins that passes by itself: the standby has a session, or asks the arbiter about another primary.
pub const BUSY: &str = "this standby is busy";
/// And one that waits for the arbiter's word, or for another word of it.
pub const NOTHING_STARTED: &str = "nothing is started";

/// How long a standby may take to make its VM ready and answer.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// Whether the standby's VM, by its profile, could continue ours. Called on another thread; the error says how they differ.
pub type Judge = Box<dyn FnOnce(&[u8]) -> Result<(), Unlike> + Send>;

/// What a primary offers a standby.
pub struct Terms {
    /// Where the standby listens.
    pub to: HostPort,
    /// Our address of the connection; `None`: the system chooses.
    pub bind: Option<LocalAddr>,
    /// While nobody listens there, it is tried again for so long.
    pub patience: Duration,
    /// Which way checkpoints and beats shall go.
    pub paths: PathsConfig,
    /// The VM.
    pub vm: Name,
    /// Its copy here, as the register has it.
    pub owner: Owner,
    /// The session's, if it comes to be.
    pub generation: Generation,
    /// The one that this node asks.
    pub witness: WitnessId,
    /// How this side beats.
    pub beats: Wish,
    /// Bytes of a slab.
    pub slab_bytes: u64,
    /// Bytes of staging.
    pub staging_bytes: u64,
    /// What the VM is made of.
    pub profile: Vec<u8>,
    /// Judges the standby's.
    pub judge: Judge,
}

impl std::fmt::Debug for Terms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terms").field("to", &self.to).field("vm", &self.vm).finish_non_exhaustive()
    }
}

/// A session that is ready for slabs.
#[derive(Debug)]
pub struct Found {
    /// Of the session.
    pub incarnation: Incarnation,
    /// Who stands by.
    pub standby: Owner,
    /// Its address.
    pub peer: SocketAddr,
    /// How it beats.
    pub beats: BeatsWish,
    route: Route,
    key: BeatKey,
}

impl Found {
    /// Starts the session's beats.
    ///
    /// # Errors
    /// No thread, or a machine that cannot time the interval.
    pub fn start(self, wish: Wish, watched: Watched) -> Result<(Box<dyn Transport>, BeatHandle, Report)> {
        let Route { link, keepalive, report } = self.route;
        let beats = beats::start(keepalive, (self.incarnation, self.key), beats::PRIMARY, wish, Some(watched))?;
        Ok((link, beats, report))
    }
}

/// The standby's VM is another one than ours.
#[derive(Debug, thiserror::Error)]
pub enum Unlike {
    /// Its profile says so.
    #[error("the VM that the standby would run differs: {0}")]
    Differs(String),
    /// Its profile makes no sense.
    #[error("the standby: {0}")]
    Unreadable(String),
}

/// The standby is none for us: the same node, or of another witness.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NoPair(String);

/// Begins to look for the standby; the result comes through the inbox.
///
/// # Errors
/// No thread.
pub fn seek(terms: Terms) -> Result<Inbox<Result<Found, Trouble>>> {
    let (outbox, inbox) = inbox::inbox()?;
    #[cfg(feature = "testing")]
    let (terms, outbox) = match outside::world::begin_search(Box::new(Search { terms, outbox })) {
        Ok(()) => return Ok(inbox),
        Err(search) => (search.terms, search.outbox),
    };
    let seek = move || {
        // An embedder's judge is called here: its bug must not end the search.
        let found = catch_unwind(AssertUnwindSafe(|| shake_hands(terms).map_err(|error| trouble(&error))));
        outbox.put(found.unwrap_or_else(|_| Err(Trouble::lasting("looking for the standby panicked: this is a bug"))))
    };
    std::thread::Builder::new().name("seek".to_owned()).spawn(seek)?;
    Ok(inbox)
}

/// Connects, then binds the beats to the connection's own address, then says hello.
fn shake_hands(terms: Terms) -> Result<Found> {
    let options = SessionOptions { deadline: HANDSHAKE, ..SessionOptions::default() };
    let call = patiently(terms.patience, || paths::call(&terms.to, terms.bind, &options))?;
    let keepalive = paths::beats_at(&terms.paths, call.local_addr(), paths::End::Caller)?;
    let beat_port = if terms.paths.wants_udp() { keepalive.local_port()? } else { 0 };
    let hello = hello(&terms, beat_port)?;
    let ours = Ours::prepare(&terms.paths, call.local_addr(), &hello)?;
    let endpoint = ours.endpoint();
    let connected = call.shake_hands(&hello, &terms.profile, endpoint.as_ref())?;
    let (theirs, peer, link) = (connected.peer, connected.peer_addr, connected.link);
    let settle = || ours.settle(link, connected.endpoint.as_ref(), keepalive, &theirs, peer);
    agreed(terms.judge, &hello, (&theirs, &connected.profile, peer), settle)
}

/// The standby has said who it is.
fn agreed(
    judge: Judge,
    hello: &Hello,
    (theirs, profile, peer): (&Hello, &[u8], SocketAddr),
    settle: impl FnOnce() -> Result<Route>,
) -> Result<Found> {
    identity::check_pair((hello.node, hello.witness), (theirs.node, theirs.witness)).map_err(NoPair)?;
    judge(profile)?;
    let (beats, route) = (beats::told(theirs), settle()?);
    let standby = Owner { node: theirs.node, instance: theirs.instance };
    Ok(Found { incarnation: hello.incarnation, standby, peer, beats, route, key: hello.beat_key })
}

/// A search in a world without sockets: whoever has it carries the words.
#[cfg(feature = "testing")]
#[derive(Debug)]
pub struct Search {
    terms: Terms,
    outbox: inbox::Outbox<Result<Found, Trouble>>,
}

#[cfg(feature = "testing")]
impl Search {
    /// What the standby is told.
    ///
    /// # Errors
    /// Sizes that no hello can carry.
    pub fn hello(&self, beat_port: u16) -> Result<Hello> {
        hello(&self.terms, beat_port)
    }

    /// Of the VM.
    #[must_use]
    pub fn profile(&self) -> &[u8] {
        &self.terms.profile
    }

    /// It has answered `hello`.
    pub fn answered(self, hello: &Hello, theirs: (&Hello, &[u8], SocketAddr), route: Route) {
        let found = agreed(self.terms.judge, hello, theirs, || Ok(route));
        self.outbox.put(found.map_err(|error| trouble(&error)));
    }

    /// It has not.
    pub fn failed(self, why: SessionError) {
        self.outbox.put(Err(trouble(&why.into())));
    }
}

/// Whether it may pass by itself. A refusal says what an operator has to change, unless it says that the standby is busy, or has not
/// the arbiter's word for us.
fn trouble(error: &anyhow::Error) -> Trouble {
    let why = exit::words(error);
    match error.downcast_ref::<SessionError>() {
        Some(SessionError::Refused { why: told, .. })
            if [BUSY, NOTHING_STARTED].iter().any(|passing| told.starts_with(passing)) =>
        {
            Trouble::passing(why)
        }
        Some(
            SessionError::Refused { .. }
            | SessionError::Version { .. }
            | SessionError::Stranger { .. }
            | SessionError::Profile { .. },
        ) => Trouble::lasting(why),
        None if matches!(error.downcast_ref(), Some(Unlike::Differs(_))) || error.is::<NoPair>() => {
            Trouble::lasting(why)
        }
        _ => Trouble::passing(why),
    }
}

/// A standby that is being started may not listen yet: tries again while nobody answers.
fn patiently<T>(patience: Duration, mut attempt: impl FnMut() -> Result<T, SessionError>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(SessionError::Connect { .. }) if start.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn hello(terms: &Terms, beat_port: u16) -> Result<Hello> {
    let (mut incarnation, mut key) = ([0; 8], [0; 32]);
    outside::random(&mut incarnation, GetRandomFlags::empty())?;
    outside::random(&mut key, GetRandomFlags::empty())?;
    let beats = &terms.beats;
    Ok(Hello {
        versions: VERSIONS,
        slab_size: u32::try_from(terms.slab_bytes).context("slab size")?,
        staging_slabs: u32::try_from(terms.staging_bytes / terms.slab_bytes).context("staging size")?,
        rdma: false,
        incarnation: Incarnation(u64::from_le_bytes(incarnation)),
        generation: terms.generation,
        purpose: Purpose::Protect(terms.vm),
        node: terms.owner.node,
        witness: terms.witness,
        instance: terms.owner.instance,
        beat_key: BeatKey(key),
        beat_port,
        detect_multiplier: beats.multiplier,
        desired_tx_us: beats::interval_us(beats.interval)?,
        required_rx_us: beats::interval_us(beats.min_rx.unwrap_or(beats.interval))?,
    })
}
