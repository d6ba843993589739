//! QEMU's side, byte by byte. Stock QEMU, no patches: what it offers over its control socket and its migration stream.
//!
//! | module | |
//! |---|---|
//! | [`stream`] | sans-io parser of the migration stream and of COLO's messages; [`emit`] writes one |
//! | [`colo`] | the checkpoint source: plays the secondary of QEMU's COLO mode |
//! | [`qmp`] | the control connection |
//! | [`control`] | what a supervisor does over it |
//! | [`profile`] | what must be alike on both sides |
//! | [`standby`] | the VM that waits, and its takeover |

pub mod colo;
pub mod control;
pub mod emit;
pub mod profile;
pub mod qmp;
pub mod standby;
pub mod stream;
