//! Finding the standby: connects and shakes hands on a thread of its own, so that the solo VM's packets flow meanwhile.

use super::channel::Brief;
use crate::{
    clock::MonotonicClock,
    events, keepalive::{BeatHandle, BeatThread},
    qemu::profile::Profile,
    wake::{self, Inbox},
};
use anyhow::{Context, Result, bail};
use mc_core::{
    detector,
    id::{Generation, Incarnation, Name, nanos},
    wire::{VERSION, beat::BeatKey, session::Hello},
};
use rustix::rand::{GetRandomFlags, getrandom};
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};
use transport_tcp::{TcpLink, UdpKeepalive, session};

/// How long a standby may take to start its QEMU and answer.
const HANDSHAKE: Duration = Duration::from_secs(20);
/// How long a standby that is not there yet is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A session that is ready for slabs.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) link: TcpLink,
    pub(super) incarnation: Incarnation,
    pub(super) standby: Name,
    pub(super) peer: String,
    keepalive: UdpKeepalive,
    key: BeatKey,
}

/// Begins to connect; the result comes through the inbox.
pub(super) fn connect(brief: &Brief, generation: Generation) -> Result<Inbox<Result<Connected>>> {
    let (outbox, inbox) = wake::inbox()?;
    let brief = brief.clone();
    std::thread::Builder::new().name("connect".to_owned()).spawn(move || outbox.put(shake_hands(&brief, generation)))?;
    Ok(inbox)
}

fn shake_hands(brief: &Brief, generation: Generation) -> Result<Connected> {
    let config = &brief.config;
    let local = match config.bind {
        Some(ip) => ip,
        None => route_to(config.to)?,
    };
    let mut keepalive = UdpKeepalive::bind(local).with_context(|| format!("UDP socket for beats on {local}"))?;
    let hello = hello(brief, generation, keepalive.local_port())?;
    let profile = serde_json::to_vec(&brief.profile)?;
    let connected = patiently(|| session::connect(config.to, &hello, &profile, HANDSHAKE))?;
    let theirs: Profile = serde_json::from_slice(&connected.profile).context("the standby's profile")?;
    let differences = brief.profile.mismatches(&theirs);
    if !differences.is_empty() {
        bail!("the standby's VM differs:\n  {}", differences.join("\n  "));
    }
    keepalive.connect(SocketAddr::new(connected.peer_addr.ip(), connected.peer.beat_port))?;
    Ok(Connected {
        link: connected.link,
        incarnation: hello.incarnation,
        standby: connected.peer.node,
        peer: connected.peer_addr.to_string(),
        keepalive,
        key: hello.beat_key,
    })
}

/// A standby that is being started may not listen yet: tries again while connections are refused.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T, session::SessionError>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if error.is_unreachable() && start.elapsed() < PATIENCE => {
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
    let interval_us = interval_us(config.beat_interval)?;
    Ok(Hello {
        versions: (VERSION, VERSION),
        slab_size: u32::try_from(config.slab_bytes()).context("slab size")?,
        staging_slabs: u32::try_from(config.staging_bytes() / config.slab_bytes()).context("staging size")?,
        incarnation: Incarnation(u64::from_le_bytes(incarnation)),
        generation,
        vm: config.vm,
        node: config.node,
        beat_key: BeatKey(key),
        beat_port,
        detect_multiplier: config.detect_multiplier,
        desired_tx_us: interval_us,
        required_rx_us: interval_us,
    })
}

/// An interval as beats carry it.
pub(crate) fn interval_us(interval: Duration) -> Result<u32> {
    u32::try_from(nanos(interval) / 1000).context("the beat interval is longer than an hour")
}

/// The local address from which `to` is reached.
fn route_to(to: SocketAddr) -> Result<IpAddr> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to).with_context(|| format!("no route to {to}"))?;
    Ok(socket.local_addr()?.ip())
}

impl Connected {
    /// Starts the beats of this session.
    pub(super) fn start_beats(&mut self, brief: &Brief, clock: MonotonicClock) -> Result<BeatHandle> {
        todo!()
    }
}
