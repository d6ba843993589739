//! This host's side of an RDMA session: the device, the queue pairs for checkpoints, the queue pair for beats.

use super::PathsConfig;
use super::{RdmaInfo, Report, Route, UdpEnds, either, missing};
use crate::{
    clock::Clock,
    exit::ExitError,
    keepalive::{Paths, PathsReader},
};
use anyhow::{Context, Result, bail};
use mc_core::{
    failover::Failover,
    id::Incarnation,
    transport::{Keepalive, LinkError, PollableKeepalive, Transport},
    wire::{
        beat::BeatKey,
        rdma::{self, Endpoint},
        session::Hello,
    },
};
use std::net::{IpAddr, SocketAddr};
use transport_rdma::{
    Prepared, RcOptions, RdmaError, RdmaLink, UdAddress, UdKeepalive, UdOptions,
    device::{self, Choice, DeviceError, Wish},
    memlock, qkey_of,
};
use transport_tcp::{LinkOptions, TcpLink, UdpKeepalive};

pub(super) fn check(config: &PathsConfig) -> Result<(), ExitError> {
    choose(config, None).map(drop)?;
    check_memlock(config)
}

/// All of staging will be registered, slab by slab: better refused now than in mid-session.
fn check_memlock(config: &PathsConfig) -> Result<(), ExitError> {
    room_to_pin(config.staging_bytes)
}

pub(super) fn room_to_pin(bytes: u64) -> Result<(), ExitError> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    memlock::check(bytes).map_err(|error| missing(error, "or lower --staging"))
}

fn choose(config: &PathsConfig, local: Option<SocketAddr>) -> Result<Choice, ExitError> {
    let wish = Wish { device: config.rdma_device.clone(), gid_index: config.rdma_gid_index, local };
    device::choose(&wish).map_err(|error: DeviceError| missing(&error, error.remedy()))
}

/// Not connected yet.
#[derive(Debug)]
pub(super) struct Half {
    choice: Choice,
    prepared: Prepared,
    session: (Incarnation, BeatKey),
    beats: Option<UdKeepalive>,
}

/// Connected: the first path of a session.
#[derive(Debug)]
pub(super) struct First {
    link: RdmaLink,
    session: (Incarnation, BeatKey),
    beats: Option<UdKeepalive>,
    info: RdmaInfo,
}

impl Half {
    /// For the session that `hello` begins, whose connection has our address `local`.
    pub(super) fn open(config: &PathsConfig, local: SocketAddr, hello: &Hello) -> Result<Self, ExitError> {
        let choice = choose(config, Some(local))?;
        check_memlock(config)?;
        let options = RcOptions { timeout: config.rdma_timeout, retry: config.rdma_retry, ..RcOptions::default() };
        let broken = |error: RdmaError| missing(error, "look at `afterimage rdma devices`, or use --transport tcp");
        let prepared = Prepared::new(&choice.place(), hello.incarnation, &options).map_err(broken)?;
        let beats = config.wants_ud().then(|| UdKeepalive::open(&choice, UdOptions::new(qkey_of(&hello.beat_key))));
        let session = (hello.incarnation, hello.beat_key);
        Ok(Self { choice, prepared, session, beats: beats.transpose().map_err(broken)? })
    }

    /// For the peer.
    pub(super) fn endpoint(&self) -> Endpoint {
        let beats = self.beats.as_ref().map(UdKeepalive::address);
        let beats = beats.map(|UdAddress { qpn, qkey, .. }| rdma::Beats { queue: qpn, qkey, group: None });
        Endpoint { beats, ..self.prepared.endpoint() }
    }

    /// The peer has no use for them.
    pub(super) fn drop_beats(&mut self) {
        self.beats = None;
    }

    /// Connects to the peer's endpoint; `speaks_first`: it is connected to ours already.
    pub(super) fn connect(self, theirs: &Endpoint, peer: String, speaks_first: bool) -> Result<First, RdmaError> {
        let Self { choice, prepared, session, beats } = self;
        let beats = match (beats, theirs.beats) {
            (Some(mut beats), Some(rdma::Beats { queue, qkey, .. })) => {
                beats.add_member(UdAddress { gid: theirs.gid, lid: theirs.lid, qpn: queue, qkey })?;
                Some(beats)
            }
            _ => None,
        };
        let link = prepared.connect(theirs, peer, speaks_first)?;
        let (timeout, retry) = link.timeout();
        let info = RdmaInfo {
            device: choice.device,
            gid_index: choice.gid_index,
            gid: IpAddr::from(choice.gid).to_canonical().to_string(),
            queue_pair: link.qpn(),
            timeout,
            retry,
            why: choice.why,
        };
        Ok(First { link, session, beats, info })
    }
}

impl First {
    /// With TCP to fall back to.
    pub(super) fn over(self, tcp: TcpLink, udp: Option<UdpKeepalive>) -> Result<Route> {
        let Self { link, session, beats, info } = self;
        let both = either(&link, &tcp).context("a descriptor for both paths of the link")?;
        let link = Failover::new(link, tcp, Some(both), session.0, LinkOptions::default().queue);
        let ends = UdpEnds::of(udp.as_ref());
        let (keepalive, name, beat_paths) = keepalive(session, beats, udp)?;
        let (why, rdma) = (info.why.clone(), Some(info));
        let report = Report { transport: "rdma", why, rdma, keepalive: name, beat_paths, udp: ends };
        Ok(Route { link: Box::new(link), keepalive, report })
    }
}

/// A primary whose standby counts on RDMA, and which cannot connect: the session begins on TCP.
pub(super) fn give_up(
    error: RdmaError,
    tcp: TcpLink,
    udp: Option<UdpKeepalive>,
    incarnation: Incarnation,
) -> Result<Route> {
    let Some(udp) = udp else { bail!("{error}; and {} takes no beats over UDP", tcp.peer()) };
    let (why, ends) = (error.to_string(), UdpEnds::of(Some(&udp)));
    let report = Report { transport: "rdma", why, rdma: None, keepalive: "udp", beat_paths: None, udp: ends };
    let why = LinkError::Network(Box::new(error));
    let link = Failover::<RdmaLink, _>::without_first(why, tcp, incarnation, LinkOptions::default().queue);
    Ok(Route { link: Box::new(link), keepalive: Box::new(udp), report })
}

type Keepalives = (Box<dyn Keepalive>, &'static str, Option<PathsReader>);

fn keepalive(
    session: (Incarnation, BeatKey),
    ud: Option<UdKeepalive>,
    udp: Option<UdpKeepalive>,
) -> Result<Keepalives> {
    Ok(match (ud, udp) {
        (Some(ud), Some(udp)) => {
            let paths: Vec<(_, Box<dyn PollableKeepalive>)> = vec![("ud", Box::new(ud)), ("udp", Box::new(udp))];
            let both = Paths::new(session, Clock, paths);
            let reader = both.reader();
            (Box::new(both), "both", Some(reader))
        }
        (Some(ud), None) => (Box::new(ud), "ud", None),
        (None, Some(udp)) => (Box::new(udp), "udp", None),
        (None, None) => bail!("no common way for beats; set --keepalive alike on both sides"),
    })
}
