//! The only loops: a machine, a clock, a transport, and what is captured or applied.
//!
//! A driver does what can be done without waiting (`pump`), and leaves *errands* to its caller: what goes to the arbiter, or
//! to whoever controls the VM. Their answers come back as events. The caller sleeps until a file descriptor is ready or
//! [`PrimaryDriver::deadline`] has come, and pumps again.

mod awake;
mod primary;
mod standby;
mod store;
mod words;

pub use primary::{Figures, PrimaryDriver, PrimaryErrand};
pub use standby::{Attachment, StandbyDriver, StandbyErrand, StandbyFigures};
pub use store::SpillFile;

use crate::id::Time;

/// Reads a monotonic clock: the one thing the core must be handed to measure with.
///
/// A driver reads it all along whatever takes long: so the readings tell a caller that the driver gets on.
pub trait Clock: Send {
    /// Now.
    fn now(&self) -> Time;
}
