//! The program: one binary, a file per command.
//!
//! | module | |
//! |---|---|
//! | [`cli`], [`config`] | the command line, and what it resolves to |
//! | [`protect`] | the primary: supervisor and data path |
//! | [`standby`] | the standby |
//! | [`keeper`] | the VM's network while nobody protects it |
//! | [`witness`] | the register's keeper |
//! | [`status`] | `status`, and an operator's words |
//! | [`live`] | a running pair is changed: its keepalive, its epoch, its staging |
//! | [`why`] | the story of each role change, from the journal |
//! | [`probe`], [`tuner`] | `keepalive probe`, `serve`, `tune` |
//! | [`predecessor`] | who has the VM on this node already makes way |
//! | [`room`] | memory and disk that a VM's RAM may take |
//!
//! What a host runs around the core is the crate `node`; QEMU is behind `vmm-qemu`; the control socket and the metrics are `api`.

#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod keeper;
pub mod live;
pub mod predecessor;
pub mod probe;
pub mod processes;
pub mod protect;
pub mod room;
pub mod standby;
pub mod status;
pub mod tuner;
pub mod why;
pub mod witness;
