//! What protects a QEMU VM on a host, as a library: processes, and what they decide. Who runs them, and from which command line, is
//! a program's affair ([`processes::Program`]).
//!
//! | module | |
//! |---|---|
//! | [`primary`] | the host where the VM runs: supervisor and data path |
//! | [`standby`] | the host that waits with an image of it, and takes over |
//! | [`keeper`] | the VM's network while nobody protects it |
//! | [`predecessor`] | whoever has the VM on this host already, and makes way |
//! | [`processes`] | how this library starts its own processes |
//! | [`room`] | memory and disk that a VM's RAM may take |
//! | `units` | times and sizes between processes |
//!
//! QEMU itself is behind `vmm-qemu`; the loops are in `node`; what can be asked of a process, and what it answers, is `api`.

#![forbid(unsafe_code)]

pub mod keeper;
pub mod predecessor;
pub mod primary;
pub mod processes;
pub mod room;
pub mod standby;
mod units;
