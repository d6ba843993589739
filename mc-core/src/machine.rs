//! What the four protocol machines have in common.
//!
//! A machine is a value: `Clone + Eq + Hash`, without clocks, sockets, threads or hidden state. Whoever runs it feeds it
//! events and the time, then carries out the actions it asks for, in order. The driver does that against real hosts; the
//! model checker and the simulator do it against every order of events they can think of. (The surface is that of
//! quinn-proto's `Connection`.)

use crate::id::Time;

/// A sans-io protocol machine.
pub trait Machine {
    /// What happened.
    type Event;
    /// What is to be done.
    type Action;

    /// Takes one event. Afterwards drain [`Machine::poll_action`] and ask [`Machine::deadline`] again.
    fn handle(&mut self, now: Time, event: Self::Event);

    /// The next action to carry out, in order; `None` when there is nothing to do until the next event.
    #[must_use]
    fn poll_action(&mut self) -> Option<Self::Action>;

    /// When [`Machine::handle_timeout`] wants to be called; `None` for never.
    #[must_use]
    fn deadline(&self) -> Option<Time>;

    /// The deadline passed. Spurious and late calls are harmless.
    fn handle_timeout(&mut self, now: Time);
}
