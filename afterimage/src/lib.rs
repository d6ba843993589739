//! The program: one binary, a file per command.
//!
//! | module | |
//! |---|---|
//! | [`cli`], [`config`] | the command line, and what it resolves to |
//! | [`witness`] | the register's keeper |
//! | [`status`] | `status`, and an operator's words |
//! | [`live`] | a running pair is changed: its keepalive, its epoch, its staging |
//! | [`why`] | the story of each role change, from the journal |
//! | [`probe`], [`tuner`] | `keepalive probe`, `serve`, `tune` |
//!
//! What protects a VM, or stands by for one, is the crate `protection`; what a host runs around the core is `node`; QEMU is behind `vmm-qemu`; the control socket and the metrics are `api`.

#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod live;
pub mod probe;
pub mod status;
pub mod tuner;
pub mod why;
pub mod witness;
