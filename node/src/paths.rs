//! Which way a session goes: checkpoints by RDMA or TCP, beats by RDMA datagrams or UDP.
//!
//! ```text
//!   primary                                                     standby
//!   Ours::prepare: queue pairs, if there is RDMA
//!     endpoint ──────────── hello, profile, endpoint ─────────> Answer::prepare: its own, connected to the primary's
//!                                                                 │ none, or not wanted: without an endpoint
//!   Ours::settle: connected to the standby's   <── answer ────────┘ Answer::settle
//!     └─> Route: RDMA with TCP to fall back to, or TCP; the beats' socket; a report for the operator
//! ```
//!
//! Beats take the ways that both sides offer: UD by an endpoint's beat queue pair, UDP by a port other than 0 in the hello.
//! Everything is made anew for each session: nothing of one incarnation serves another.

#[cfg(not(feature = "rdma"))]
#[path = "paths/none.rs"]
mod half;
#[cfg(feature = "rdma")]
#[path = "paths/half.rs"]
mod half;
mod report;
#[cfg(test)]
mod tests;
mod wish;

pub use report::{RdmaInfo, Report, UdpEnds, Watch, unproven};
pub use wish::{KeepaliveWish, PathsConfig, TransportWish};

use crate::{
    address::LocalAddr,
    arbiter::HostPort,
    exit::{self, Code, ExitError},
};
use anyhow::{Result, bail};
use half::{First, Half};
use mc_core::{
    transport::{Keepalive, Transport},
    wire::{rdma::Endpoint, session::Hello},
};
use std::{net::SocketAddr, os::fd::OwnedFd};
use transport_tcp::{
    TcpLink, UdpKeepalive,
    reach::at_port,
    session::{Call, SessionError, SessionOptions},
};

/// A session's way.
#[derive(Debug)]
pub struct Route {
    /// For checkpoints.
    pub link: Box<dyn Transport>,
    /// For beats.
    pub keepalive: Box<dyn Keepalive>,
    /// For the operator.
    pub report: Report,
}

/// Before anything is started: a host that shall use RDMA has it, and a device that was named is there. Who names one does not
/// mean TCP, whatever `auto` would come down to.
pub fn check(config: &PathsConfig) -> Result<(), ExitError> {
    let named = config.rdma_device.is_some() || config.rdma_gid_index.is_some();
    match config.transport {
        TransportWish::Rdma => half::check(config),
        TransportWish::Auto if named => half::check(config).map_err(|error| {
            let or = "or leave out --rdma-device and --rdma-gid-index, so that --transport auto chooses";
            let remedy = error.remedy.as_ref().map_or_else(|| or.to_owned(), |remedy| format!("{remedy}; {or}"));
            error.remedy(remedy)
        }),
        TransportWish::Auto | TransportWish::Tcp => Ok(()),
    }
}

/// Whether RDMA may pin so many bytes more.
pub fn room_to_pin(bytes: u64) -> Result<(), ExitError> {
    half::room_to_pin(bytes)
}

/// Our side of RDMA: `Ok(Err(why))` where there is none, and none is needed.
fn open(config: &PathsConfig, local: SocketAddr, hello: &Hello) -> Result<Result<Half, String>> {
    match config.transport {
        TransportWish::Tcp => Ok(Err("TCP is configured".to_owned())),
        TransportWish::Rdma => Ok(Ok(Half::open(config, local, hello)?)),
        TransportWish::Auto => Ok(Half::open(config, local, hello).map_err(|e| exit::words(&e.into()))),
    }
}

/// What a primary offers.
#[derive(Debug)]
pub struct Ours {
    config: PathsConfig,
    half: Result<Half, String>,
}

impl Ours {
    /// For a session that this hello begins, whose connection has our address `local`.
    pub fn prepare(config: &PathsConfig, local: SocketAddr, hello: &Hello) -> Result<Self> {
        Ok(Self { config: config.clone(), half: open(config, local, hello)? })
    }

    /// For the handshake.
    #[must_use]
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.half.as_ref().ok().map(Half::endpoint)
    }

    /// The standby has answered `hello`, and is at `peer`.
    pub fn settle(
        self,
        tcp: TcpLink,
        theirs: Option<&Endpoint>,
        udp: UdpKeepalive,
        hello: &Hello,
        peer: SocketAddr,
    ) -> Result<Route> {
        let has_udp = self.config.wants_udp() && hello.beat_port != 0;
        if has_udp {
            udp.connect(at_port(peer, hello.beat_port))?;
        }
        let udp = has_udp.then_some(udp);
        match (self.half, theirs) {
            (Ok(half), Some(theirs)) => {
                let (name, incarnation) = (tcp.peer(), hello.incarnation);
                match half.connect(theirs, name, true) {
                    Ok(first) => first.over(tcp, udp),
                    Err(error) if self.config.transport == TransportWish::Auto => {
                        half::give_up(error, tcp, udp, incarnation)
                    }
                    Err(error) => Err(error.into()),
                }
            }
            (Ok(_), None) if self.config.transport == TransportWish::Rdma => {
                bail!(
                    "standby {} has no RDMA, or is set not to use it (its log says why); use --transport auto to \
                     fall back to TCP",
                    hello.node
                )
            }
            (Ok(_), None) => over_tcp(tcp, udp, format!("standby {} has no RDMA, or is set not to use it", hello.node)),
            (Err(why), _) => over_tcp(tcp, udp, why),
        }
    }
}

fn over_tcp(tcp: TcpLink, udp: Option<UdpKeepalive>, why: String) -> Result<Route> {
    let Some(udp) = udp else { bail!("{} takes no beats over UDP; set --keepalive alike on both sides", tcp.peer()) };
    let ends = UdpEnds::of(Some(&udp));
    let report = Report { transport: "tcp", why, rdma: None, keepalive: "udp", beat_paths: None, udp: ends };
    Ok(Route { link: Box::new(tcp), keepalive: Box::new(udp), report })
}

/// What a standby answers. Its queue pairs are connected: the primary may speak as soon as it has the endpoint.
#[derive(Debug)]
pub struct Answer {
    first: Result<(First, Endpoint), String>,
    has_udp: bool,
}

impl Answer {
    /// To an offer that came to `local`. An error is for the primary as well.
    pub fn prepare(config: &PathsConfig, local: SocketAddr, hello: &Hello, theirs: Option<&Endpoint>) -> Result<Self> {
        let first = match theirs {
            Some(theirs) => Self::first(config, local, hello, theirs)?,
            None if config.transport == TransportWish::Rdma => {
                bail!(
                    "this standby takes RDMA only, and {} offers none; use --transport rdma or auto there",
                    hello.node
                )
            }
            None => Err(format!("primary {} has no RDMA, or is set not to use it", hello.node)),
        };
        let has_udp = config.wants_udp() && hello.beat_port != 0;
        let has_ud = first.as_ref().is_ok_and(|(_, endpoint)| endpoint.beats.is_some());
        if !has_udp && !has_ud {
            let no_rdma = first.err().map_or_else(String::new, |why| format!(" (no RDMA: {why})"));
            bail!(
                "the two sides have no way for beats in common{no_rdma}; use the same --transport and --keepalive \
                 on both"
            );
        }
        Ok(Self { first, has_udp })
    }

    fn first(
        config: &PathsConfig,
        local: SocketAddr,
        hello: &Hello,
        theirs: &Endpoint,
    ) -> Result<Result<(First, Endpoint), String>> {
        let mut half = match open(config, local, hello)? {
            Ok(half) => half,
            Err(why) => return Ok(Err(why)),
        };
        if theirs.beats.is_none() {
            half.drop_beats();
        }
        let endpoint = half.endpoint();
        match half.connect(theirs, hello.node.to_string(), false) {
            Ok(first) => Ok(Ok((first, endpoint))),
            Err(error) if config.transport == TransportWish::Auto => Ok(Err(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// For the handshake.
    #[must_use]
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.first.as_ref().ok().map(|(_, endpoint)| *endpoint)
    }

    /// Whether the hello shall name our UDP port.
    #[must_use]
    pub fn has_udp(&self) -> bool {
        self.has_udp
    }

    /// The primary has heard it.
    pub fn settle(self, tcp: TcpLink, udp: UdpKeepalive) -> Result<Route> {
        let udp = self.has_udp.then_some(udp);
        match self.first {
            Ok((first, _)) => first.over(tcp, udp),
            Err(why) => over_tcp(tcp, udp, why),
        }
    }
}

/// For a link of two paths: readable when either's descriptor is, level-triggered.
#[cfg_attr(not(feature = "rdma"), expect(dead_code, reason = "only RDMA has something to fall back from"))]
fn either(first: &impl Transport, second: &impl Transport) -> std::io::Result<OwnedFd> {
    use rustix::event::epoll;
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for fd in [first.wait_fd(), second.wait_fd()].into_iter().flatten() {
        epoll::add(&set, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
    }
    Ok(set)
}

/// Connects to the other side, from the address `bind` of ours if one is given. May wait for the name service.
///
/// # Errors
/// As [`Call::connect`]; [`SessionError::Resolve`] for a name that nobody knows.
pub fn call(to: &HostPort, bind: Option<LocalAddr>, options: &SessionOptions) -> Result<Call, SessionError> {
    let name = to.to_string();
    let addresses = to.addresses().map_err(|source| SessionError::Resolve { to: name.clone(), source })?;
    Call::connect(&name, &addresses, bind.map(LocalAddr::any_port), options)
}

/// Which end of a session's connection a side has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It called: a primary, a probe.
    Caller,
    /// It was called: a standby, the other end of a probe.
    Listener,
}

/// A socket for beats at the local address of the session's connection. The peer beats to that address, and takes beats from
/// no other.
///
/// Its port is the one of --beat-port. Without a word about it a caller takes any that is free: to a stateful firewall the other
/// side's beats answer its own. A listener takes the number that it listens at, so that one number of one host has to be let
/// through; where another process has that, any.
pub fn beats_at(config: &PathsConfig, local: SocketAddr, end: End) -> Result<UdpKeepalive, ExitError> {
    let bound = match (config.beat_port, end) {
        (None, End::Caller) | (Some(0), _) => UdpKeepalive::bind(local),
        (None, End::Listener) => UdpKeepalive::bind_at(local).or_else(|error| {
            tracing::warn!(%error, "beats come to another UDP port than the number of --listen");
            UdpKeepalive::bind(local)
        }),
        (Some(port), _) => UdpKeepalive::bind_at(at_port(local, port)),
    };
    bound.map_err(|error| {
        missing(
            error,
            "free that UDP port (`ss -lunp` names the process that has it), or choose another with --beat-port",
        )
    })
}

/// A prerequisite that is missing, and what to do about it.
fn missing(what: impl std::fmt::Display, remedy: impl std::fmt::Display) -> ExitError {
    ExitError::new(Code::Prerequisite, what).remedy(remedy)
}
