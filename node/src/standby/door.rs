//! Where primaries call, and how one is answered.

use crate::paths::{self, Answer, PathsConfig, Route};
use anyhow::Result;
use mc_core::wire::session::Hello;
use std::{
    fmt::Debug,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};
use transport_tcp::{
    UdpKeepalive,
    reach::at_port,
    session::{Listener, Offer, SessionError},
};

/// A primary that wants to be protected, and waits for an answer.
pub trait Caller: Debug + Send {
    /// What it said.
    fn hello(&self) -> &Hello;

    /// Its VM's profile.
    fn profile(&self) -> &[u8];

    /// Where it is.
    fn address(&self) -> SocketAddr;

    /// Which way a session would go.
    ///
    /// # Errors
    /// For the primary as well: there is none.
    fn prepare(&mut self, paths: &PathsConfig) -> Result<()>;

    /// Where beats are heard here; 0: not over UDP.
    ///
    /// # Errors
    /// No socket.
    fn beat_port(&mut self, paths: &PathsConfig) -> Result<u16>;

    /// Answers with our hello and profile.
    ///
    /// # Errors
    /// There is no session.
    fn accept(self: Box<Self>, ours: Hello, profile: &[u8]) -> Result<Route>;

    /// Says no, and why.
    ///
    /// # Errors
    /// It was not heard.
    fn refuse(self: Box<Self>, why: &str) -> Result<(), SessionError>;
}

/// Where callers of a world without sockets come from.
#[cfg(feature = "testing")]
pub trait Calls: Debug + Send {
    /// The next one.
    fn next(&mut self) -> Option<Box<dyn Caller>>;
}

/// Where primaries call.
#[derive(Debug)]
pub(super) enum Door {
    Network(Listener),
    #[cfg(feature = "testing")]
    World(Box<dyn Calls>, SocketAddr),
}

impl Door {
    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Self::Network(listener) => listener.local_addr(),
            #[cfg(feature = "testing")]
            Self::World(_, address) => *address,
        }
    }

    pub(super) fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Network(listener) => Some(listener.as_fd()),
            #[cfg(feature = "testing")]
            Self::World(..) => None,
        }
    }

    pub(super) fn accept(&mut self) -> Result<Option<Box<dyn Caller>>, SessionError> {
        match self {
            Self::Network(listener) => {
                let offer = listener.accept(Duration::ZERO)?;
                Ok(offer.map(|offer| Box::new(Call { offer, answer: None, keepalive: None }) as Box<dyn Caller>))
            }
            #[cfg(feature = "testing")]
            Self::World(callers, _) => Ok(callers.next()),
        }
    }

    pub(super) fn into_listener(self) -> Listener {
        match self {
            Self::Network(listener) => listener,
            #[cfg(feature = "testing")]
            Self::World(..) => unreachable!("a world has no sockets"),
        }
    }
}

/// One that called over the network.
#[derive(Debug)]
struct Call {
    offer: Offer,
    answer: Option<Answer>,
    keepalive: Option<UdpKeepalive>,
}

impl Caller for Call {
    fn hello(&self) -> &Hello {
        &self.offer.hello
    }

    fn profile(&self) -> &[u8] {
        &self.offer.profile
    }

    fn address(&self) -> SocketAddr {
        self.offer.peer_addr
    }

    fn prepare(&mut self, paths: &PathsConfig) -> Result<()> {
        let Offer { hello, local_addr, endpoint, .. } = &self.offer;
        self.answer = Some(Answer::prepare(paths, *local_addr, hello, endpoint.as_ref())?);
        Ok(())
    }

    fn beat_port(&mut self, paths: &PathsConfig) -> Result<u16> {
        let has_udp = self.answer.as_ref().is_some_and(Answer::has_udp);
        let keepalive = paths::beats_at(paths, self.offer.local_addr, paths::End::Listener)?;
        let port = if has_udp { keepalive.local_port()? } else { 0 };
        if has_udp {
            keepalive.connect(at_port(self.offer.peer_addr, self.offer.hello.beat_port))?;
        }
        self.keepalive = Some(keepalive);
        Ok(port)
    }

    fn accept(self: Box<Self>, ours: Hello, profile: &[u8]) -> Result<Route> {
        let Self { offer, answer, keepalive } = *self;
        let (Some(answer), Some(keepalive)) = (answer, keepalive) else { anyhow::bail!("not prepared") };
        let accepted = offer.accept(ours, profile, answer.endpoint().as_ref())?;
        answer.settle(accepted.link, keepalive)
    }

    fn refuse(self: Box<Self>, why: &str) -> Result<(), SessionError> {
        self.offer.refuse(why)
    }
}
