//! Measures beats between two hosts where nothing is protected yet: made by the same code as a session's, idle and beside bulk; and says
//! which detection time they carry. `afterimage keepalive probe`, `serve` and `tune` are this.
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
//!
//! Both ends are loops on a thread of their own, without an executor: what they measure is when a beat leaves and comes, and when a
//! checkpoint's ACK does, and a task that waits for its turn would be measured too.
//!
//! | module | |
//! |---|---|
//! | `client`, `serve` | the two ends |
//! | `greeting`, `load` | what they say instead of a VM's profile; checkpoints of no VM |
//! | `file`, `text`, `view` | what was measured: as JSON, as text, while it is measured |
//! | [`tune`] | the statistics: how soon a death is seen, how often a live peer would be suspected |
//! | `advice` | which setting to use, and why |

#![forbid(unsafe_code)]

mod advice;
mod client;
mod file;
mod greeting;
mod load;
mod serve;
mod text;
pub mod tune;
mod view;

pub use advice::{Advice, Frequency, Wish, advise, frequency, render as render_advice};
pub use client::{LOAD_BYTES, Probe, measure};
pub use file::{FileError, MAX_FILE, Machine, Phase, ProbeFile, SCHEMA, Settings};
pub use greeting::{Answer, Ask, Greeting};
pub use serve::{SERVED_BYTES, Server};
pub use text::render;

/// Bytes of a slab of the load.
const SLAB: u32 = 1 << 20;
/// Slabs under way.
const SLABS: usize = 16;
/// K of both ends: nobody is suspected for as long as can be.
const MULTIPLIER: u8 = u8::MAX;
