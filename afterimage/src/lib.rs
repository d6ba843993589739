//! The program: one binary, a file per command.
//!
//! | module | |
//! |---|---|
//! | [`cli`], [`config`] | the command line, and what it resolves to |
//! | [`witness`] | the register's keeper |
//! | [`status`] | `status` |
//! | [`orders`] | `takeover`, `solo`, `unprotect`, `reprotect`, `image export` |
//! | `find` | which process of a VM a command is for |
//! | [`live`] | a running pair is changed: its keepalive, its epoch, its staging |
//! | [`why`] | the story of each role change, from the journal |
//! | [`mod@probe`] | `keepalive probe`, `serve`, `tune` |
//!
//! What is a library is a crate of its own: docs/adr/0016.

#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
mod find;
pub mod live;
pub mod orders;
pub mod probe;
pub mod status;
pub mod why;
pub mod witness;

use std::io::{self, Write};

/// Results, to stdout. A reader that has seen enough is no error.
///
/// # Errors
/// They cannot be written.
pub fn print(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}
