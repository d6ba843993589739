//! What a host runs around the core: the clock, the sockets, the threads and the files that `mc-core` does not know.
//!
//! # To embed it
//!
//! A VM is given to a [`primary::Runner`] as a [`primary::PrimaryVm`], its copy's host gives a [`standby::StandbyVm`] to a
//! [`standby::Runner`]; both ask an [`arbiter::ArbiterClient`], with a [`arbiter::Backend`] of the embedder's own if it has one.
//!
//! | module | |
//! |---|---|
//! | [`primary`], [`standby`] | the loops of the host where the VM runs, and of the one that holds a copy; [`Host`]: their common half |
//! | [`arbiter`] | a node's side of the register |
//! | [`gate`] | an output gate for a VM of this process |
//! | [`events`] | what happens: typed, a line each on stdout, and for whoever listens |
//! | [`paths`] | RDMA or TCP, RDMA datagrams or UDP: agreed on per session |
//! | [`keepalive`], [`beats`] | the beat thread, and how often it beats |
//! | [`identity`], [`address`] | which node this is; addresses as operators write them |
//! | [`exit`] | an error, what to do about it, and how a program ends |
//!
//! # What programs on a host share
//!
//! | module | |
//! |---|---|
//! | [`clock`], [`progress`], [`wake`], [`inbox`], [`signals`] | time, and whether a loop gets on; waking and waiting |
//! | [`journal`], [`stalls`], [`narration`] | events, kept; the log, which never makes anybody wait |
//! | [`rdma`] | this host's RDMA devices |
//! | [`repeated`] | lines that strangers can bring about: counted instead of repeated |
//! | [`files`], [`pass`], [`program`], [`scope`] | files that are ours; descriptors for another process; processes that outlive us |
//! | [`units`] | sizes, as operators write them |
//! | [`sys`] | the only `unsafe` |
//!
//! Errors that nobody has to tell apart, events and ends are `non_exhaustive`; an answer of the arbiter or a verdict of the beats is not: who takes no notice
//! of a new one must not compile.

#![deny(unsafe_code)]

pub mod address;
pub mod arbiter;
mod as_text;
pub mod beats;
pub mod clock;
pub mod events;
pub mod exit;
pub mod files;
pub mod gate;
mod host;
pub mod identity;
pub mod inbox;
pub mod journal;
pub mod keepalive;
pub mod narration;
#[cfg(feature = "testing")]
pub mod outside;
#[cfg(not(feature = "testing"))]
mod outside;
pub mod pass;
pub mod paths;
mod place;
pub mod primary;
pub mod program;
pub mod progress;
pub mod rdma;
pub mod repeated;
pub mod scope;
pub mod signals;
pub mod stalls;
pub mod standby;
pub mod sys;
pub mod units;
pub mod wake;

pub use host::{Host, HostSettings, Session};
