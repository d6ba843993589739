//! A build without RDMA.

use super::PathsConfig;
use super::{Route, missing};
use crate::exit::ExitError;
use anyhow::Result;
use mc_core::{
    id::Incarnation,
    wire::{rdma::Endpoint, session::Hello},
};
use std::net::SocketAddr;
use transport_tcp::{TcpLink, UdpKeepalive};

fn none() -> ExitError {
    let remedy = "use a build with the cargo feature `rdma` (the default), or --transport tcp";
    missing("this afterimage was built without RDMA", remedy)
}

pub(super) fn check(_: &PathsConfig) -> Result<(), ExitError> {
    Err(none())
}

pub(super) fn room_to_pin(_: u64) -> Result<(), ExitError> {
    Ok(())
}

/// There is none.
#[derive(Debug)]
pub(super) enum Half {}

/// There is none.
#[derive(Debug)]
pub(super) enum First {}

impl Half {
    pub(super) fn open(_: &PathsConfig, _: SocketAddr, _: &Hello) -> Result<Self, ExitError> {
        Err(none())
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        match *self {}
    }

    pub(super) fn drop_beats(&mut self) {
        match *self {}
    }

    pub(super) fn connect(self, _: &Endpoint, _: String, _: bool) -> Result<First, ExitError> {
        match self {}
    }
}

impl First {
    pub(super) fn over(self, _: TcpLink, _: Option<UdpKeepalive>) -> Result<Route> {
        match self {}
    }
}

pub(super) fn give_up(error: ExitError, _: TcpLink, _: Option<UdpKeepalive>, _: Incarnation) -> Result<Route> {
    Err(error.into())
}
