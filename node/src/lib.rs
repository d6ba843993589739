//! What a host runs around the core: the clock, the sockets, the threads and the files that `mc-core` does not know.
//!
//! | module | |
//! |---|---|
//! | [`primary`], [`standby`] | the loops of the host where the VM runs, and of the one that holds a copy; [`host`]: their common half |
//! | [`gate`] | an output gate for a VM of this process |
//! | [`paths`] | RDMA or TCP, RDMA datagrams or UDP: agreed on per session |
//! | [`keepalive`], [`beats`] | the beat thread |
//! | [`arbiter`] | a node's side of the register |
//! | [`identity`], [`address`] | which node this is; addresses as operators write them |
//! | [`rdma`] | this host's RDMA devices |
//! | [`events`], [`journal`], [`stalls`] | what happens: for scripts, and kept |
//! | [`narration`] | the log: it never makes anybody wait |
//! | [`exit`] | an error, what to do about it, and how a program ends |
//! | [`clock`], [`progress`], [`wake`], [`inbox`], [`signals`] | time, and whether a loop gets on; waking and waiting |
//! | [`accepting`], [`repeated`] | loops that strangers can call: they rest, and count what they would repeat |
//! | [`files`], [`pass`], [`program`], [`scope`] | files that are ours; descriptors for another process; processes that outlive us |
//! | [`units`] | sizes, as operators write them |
//! | [`sys`] | the only `unsafe` |

#![deny(unsafe_code)]

pub mod accepting;
pub mod address;
pub mod arbiter;
mod as_text;
pub mod beats;
pub mod clock;
pub mod events;
pub mod exit;
pub mod files;
pub mod gate;
pub mod host;
pub mod identity;
pub mod inbox;
pub mod journal;
pub mod keepalive;
pub mod narration;
pub mod pass;
pub mod paths;
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
