//! Stock QEMU, from outside: its migration stream, its control connection, and the VM that waits on the standby.
//!
//! | module | what |
//! |---|---|
//! | [`gate`], [`mending`] | output commit between the VM's NICs and their TAP devices; NICs that were lost come back |
//! | [`argv`] | the command line, taken apart and put together |
//! | [`blocks`] | RAM blocks: names and lengths, and which one is the main memory |
//! | [`stream`] | QEMU's migration stream and COLO messages, sans-io: the parser and the emitter |
//! | [`colo`] | [`colo::ColoSource`]: plays the COLO secondary; the primary's source of checkpoints |
//! | [`qmp`] | the control connection: commands, events, who is at the other end |
//! | [`control`] | what a supervisor does over it: start and leave COLO, fence |
//! | [`inventory`] | every way out of the VM, and whether the gate holds it |
//! | [`profile`] | what a VM is made of, and how two of them differ |
//! | [`standby`] | [`standby::StandbyVm`]: a QEMU that waits over the RAM image, and its takeover |
//!
//! ```text
//!  primary                                                       standby
//!  QEMU ──stream──> ColoSource ──CheckpointSink──> …network… ──> image (RAM file) <──shares── QEMU -incoming
//!   ^ QMP                                                        device state ──StandbyStream──^
//!  control                                                       StandbyVm
//! ```

#![deny(unsafe_code)]

pub mod argv;
pub mod blocks;
pub mod colo;
pub mod control;
pub mod gate;
pub mod inventory;
pub mod mending;
pub mod profile;
pub mod qmp;
mod stale;
pub mod standby;
pub mod stream;
pub mod sys;
