//! Checkpoints over TCP, beats over UDP: the transport that works everywhere.
//!
//! - [`session`]: the handshake, after which a [`TcpLink`] exists. Blocking, for set-up only.
//! - [`link`]: [`TcpLink`], `mc_core`'s `Transport`: vectored writes of the slabs' own bytes, reads straight into posted slabs.
//! - [`udp`]: [`UdpKeepalive`], `mc_core`'s `Keepalive`.
//!
//! A broken connection is reported at once, and is a suspicion. A silent one is not this crate's business: beats notice it,
//! never TCP's timeouts (`options.rs` has the one backstop).

#![forbid(unsafe_code)]

pub mod link;
mod options;
pub mod session;
pub mod udp;

pub use link::TcpLink;
pub use udp::UdpKeepalive;
