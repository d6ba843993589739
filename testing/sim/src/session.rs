//! How two hosts find each other in the world: a call, the words of a handshake, two links and the way of beats.

use crate::net::{SharedNet, beats};
use anyhow::Result;
use mc_core::{
    failover::Failover,
    testing::memory::{self, LinkFaults},
    transport::{Keepalive, Transport},
    wire::session::Hello,
};
use node::{
    paths::{PathsConfig, Report, Route},
    standby::{Caller, Calls},
};
use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};
use transport_tcp::session::SessionError;

/// Of a link, in items.
const QUEUE: usize = 8;

/// What the standby said.
#[derive(Debug)]
pub(crate) enum Reply {
    Agreed(Box<(Hello, Vec<u8>, Route, Links)>),
    Refused(String),
}

/// The links of a session, for whoever breaks them.
#[derive(Clone, Debug)]
pub(crate) struct Links {
    pub(crate) caller: usize,
    pub(crate) first: Option<LinkFaults>,
    pub(crate) second: LinkFaults,
}

impl Links {
    pub(crate) fn each(&self) -> impl Iterator<Item = &LinkFaults> {
        self.first.iter().chain(std::iter::once(&self.second))
    }
}

pub(crate) type Replies = Arc<Mutex<Vec<(u64, Reply)>>>;

/// A primary that has called.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) number: u64,
    pub(crate) hello: Hello,
    pub(crate) profile: Vec<u8>,
    pub(crate) from: usize,
    pub(crate) net: SharedNet,
    pub(crate) seed: u64,
    pub(crate) replies: Replies,
}

/// A host's address.
pub(crate) fn address(host: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1 + u8::try_from(host).unwrap_or(0)], 7000))
}

impl Call {
    fn reply(&self, reply: Reply) {
        self.replies.lock().unwrap_or_else(PoisonError::into_inner).push((self.number, reply));
    }
}

fn route(link: Box<dyn Transport>, keepalive: impl Keepalive + 'static, transport: &'static str) -> Route {
    let why = "the world has it so".to_owned();
    let report = Report { transport, why, rdma: None, keepalive: "udp", beat_paths: None, udp: None };
    Route { link, keepalive: Box::new(keepalive), report }
}

impl Caller for Call {
    fn hello(&self) -> &Hello {
        &self.hello
    }

    fn profile(&self) -> &[u8] {
        &self.profile
    }

    fn address(&self) -> SocketAddr {
        address(self.from)
    }

    fn prepare(&mut self, _: &PathsConfig) -> Result<()> {
        Ok(())
    }

    fn beat_port(&mut self, _: &PathsConfig) -> Result<u16> {
        Ok(7000)
    }

    fn accept(self: Box<Self>, ours: Hello, profile: &[u8]) -> Result<Route> {
        let (slab, incarnation) = (self.hello.slab_size as usize, self.hello.incarnation);
        let [ours_beats, theirs_beats] = beats(&self.net, self.from);
        let (c, d) = memory::pair(slab, QUEUE);
        let (second, over_rdma) = (c.faults(), self.seed.is_multiple_of(2));
        let (first, primary, standby): (_, Box<dyn Transport>, Box<dyn Transport>) = if over_rdma {
            let (a, b) = memory::lagging_pair(slab, QUEUE, self.seed);
            let faults = a.faults();
            let primary = Failover::new(a, c, None, incarnation, QUEUE);
            (Some(faults), Box::new(primary), Box::new(Failover::new(b, d, None, incarnation, QUEUE)))
        } else {
            (None, Box::new(c), Box::new(d))
        };
        let transport = if over_rdma { "rdma" } else { "tcp" };
        let links = Links { caller: self.from, first, second };
        let agreed = (ours, profile.to_vec(), route(primary, ours_beats, transport), links);
        self.reply(Reply::Agreed(Box::new(agreed)));
        Ok(route(standby, theirs_beats, transport))
    }

    fn refuse(self: Box<Self>, why: &str) -> Result<(), SessionError> {
        self.reply(Reply::Refused(why.to_owned()));
        Ok(())
    }
}

/// A host's door.
#[derive(Clone, Debug, Default)]
pub(crate) struct Door(pub(crate) Arc<Mutex<VecDeque<Call>>>);

impl Calls for Door {
    fn next(&mut self) -> Option<Box<dyn Caller>> {
        let call = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        call.map(|call| Box::new(call) as Box<dyn Caller>)
    }
}
