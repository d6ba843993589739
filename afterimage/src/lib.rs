//! The program: one binary, a file per command.
//!
//! | module | |
//! |---|---|
//! | [`cli`], [`config`], [`exit`] | the command line, what it resolves to, how it ends |
//! | [`identity`] | which node this is |
//! | [`protect`] | the primary: supervisor and data path |
//! | [`standby`] | the standby |
//! | [`keeper`], [`scope`] | the VM's network while nobody protects it; processes that outlive us |
//! | [`witness`], [`arbiter`] | the register's keeper, and a node's side of it |
//! | [`status`], [`control`] | the control socket |
//! | [`live`] | a running pair is changed: its keepalive, its epoch, its staging |
//! | [`metrics`] | for Prometheus |
//! | [`why`] | the story of each role change, from the journal |
//! | [`qemu`] | QEMU's control connection and migration stream |
//! | [`gate`], [`mending`] | output commit; NICs that were lost come back |
//! | [`keepalive`], [`beats`] | the beat thread |
//! | [`probe`], [`tuner`] | `keepalive probe`, `serve`, `tune` |
//! | [`tune`] | what a failure detector's setting would do, from what was measured of beats |
//! | [`paths`] | RDMA or TCP, RDMA datagrams or UDP: agreed on per session |
//! | [`address`] | addresses as operators write them |
//! | [`room`] | memory and disk that a VM's RAM may take |
//! | [`accepting`], [`repeated`] | loops that strangers can call: they rest, and count what they would repeat |
//! | [`rdma`] | this host's RDMA devices |
//! | [`signals`] | SIGTERM, SIGINT and SIGHUP, heard by loops |
//! | [`events`], [`report`], [`journal`] | what happens: for scripts, and kept for `why` |
//! | [`stalls`], [`progress`] | how long what took; whether a loop gets on |
//! | [`narration`] | the log: it never makes anybody wait |
//! | [`program`] | this program's file, also after an upgrade |
//! | [`files`] | files that are ours: made anew, locked, removed by inode |
//! | [`clock`], [`wake`], [`inbox`], [`signals`], [`sys`] | time, waking, waiting; the only `unsafe` |

#![deny(unsafe_code)]

pub mod accepting;
pub mod address;
pub mod arbiter;
pub mod beats;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod events;
pub mod exit;
pub mod files;
pub mod gate;
pub mod identity;
pub mod inbox;
pub mod journal;
pub mod keepalive;
pub mod keeper;
pub mod live;
pub mod mending;
pub mod metrics;
pub mod narration;
pub mod paths;
pub mod probe;
pub mod program;
pub mod progress;
pub mod protect;
pub mod qemu;
pub mod rdma;
pub mod repeated;
pub mod report;
pub mod room;
pub mod scope;
pub mod signals;
pub mod stalls;
pub mod standby;
pub mod status;
pub mod sys;
pub mod tune;
pub mod tuner;
pub mod wake;
pub mod why;
pub mod witness;
