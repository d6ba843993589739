//! The program: one binary, a file per command.

#![deny(unsafe_code)]

pub mod arbiter;
pub mod cli;
pub mod config;
pub mod exit;
pub mod gate;
pub mod keepalive;
pub mod qemu;
pub mod status;
pub mod sys;
pub mod wake;
pub mod witness;
