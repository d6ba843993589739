//! The program: one binary, a file per command.
//!
//! | module | |
//! |---|---|
//! | [`cli`], [`config`], [`exit`] | the command line, what it resolves to, how it ends |
//! | [`protect`] | the primary: supervisor and data path |
//! | [`standby`] | the standby |
//! | [`witness`], [`arbiter`] | the register's keeper, and a node's side of it |
//! | [`status`], [`control`] | the control socket |
//! | [`live`] | a running pair is changed: its keepalive, its epoch, its staging |
//! | [`metrics`] | for Prometheus |
//! | [`why`] | the story of each role change, from the journal |
//! | [`qemu`] | QEMU's control connection and migration stream |
//! | [`gate`] | output commit |
//! | [`keepalive`], [`beats`] | the beat thread |
//! | [`probe`], [`tuner`] | `keepalive probe`, `serve`, `tune` |
//! | [`tune`] | what a failure detector's setting would do, from what was measured of beats |
//! | [`paths`] | RDMA or TCP, RDMA datagrams or UDP: agreed on per session |
//! | [`rdma`] | this host's RDMA devices |
//! | [`events`], [`report`], [`journal`] | what happens: for scripts, and kept for `why` |
//! | [`stalls`] | how long what took |
//! | [`clock`], [`wake`], [`inbox`], [`sys`] | time, waking, waiting; the only `unsafe` |
//! | `pass` | file descriptors for another process |

#![deny(unsafe_code)]

pub mod arbiter;
pub mod beats;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod events;
pub mod exit;
pub mod gate;
pub mod inbox;
pub mod journal;
pub mod keepalive;
pub mod live;
pub mod metrics;
mod pass;
pub mod paths;
pub mod probe;
pub mod protect;
pub mod qemu;
pub mod rdma;
pub mod report;
pub mod stalls;
pub mod standby;
pub mod status;
pub mod sys;
pub mod tune;
pub mod tuner;
pub mod wake;
pub mod why;
pub mod witness;
