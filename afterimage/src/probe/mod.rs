//! `afterimage keepalive probe` and `serve`: beats between two hosts where nothing is protected yet, made by the same code as a session's,
//! idle and beside bulk.
//!
//! ```text
//!   probe                                                     serve
//!   for each phase (idle, loaded):
//!     a session's handshake, to measure and not to protect ─>  a standby refuses it, and we refuse a primary
//!     beats both ways; loaded: checkpoints  ───────────────>   counted, ACKed, forgotten
//!     hangs up                                                 keeps what it measured
//!     another handshake: what did you measure? ────────────>   the answer is its profile
//!   <- probe.json (file.rs)
//! ```
//!
//! So a probe needs nothing that a session does not, and its bytes go the very way. Nothing is suspected while it measures: the multiplier
//! is the largest there is, and after that beats are measured on.

mod client;
mod file;
mod greeting;
mod load;
mod out;
mod serve;
mod text;
mod view;

pub(crate) use client::of_session;
pub use client::probe;
pub use file::{FileError, MAX_FILE, Machine, Phase, ProbeFile, SCHEMA, Settings};
pub use greeting::{Answer, Ask, Greeting};
pub use serve::serve;
pub(crate) use text::time;

/// Bytes of a slab of the load.
const SLAB: u32 = 1 << 20;
/// Slabs under way.
const SLABS: usize = 16;
/// K of both ends: nobody is suspected for as long as can be.
const MULTIPLIER: u8 = u8::MAX;
