//! One seeded world for the whole product: two hosts and a witness on one thread, in virtual time.
//!
//! The runners of `node`, their drivers, machines, detectors and clients of the arbiter run here unchanged; what lies between them, and what
//! befalls them, is simulated. docs/CORRECTNESS.md says what is in the world, what is not, and what is assumed.
//!
//! | module | |
//! |---|---|
//! | `world` | what is due next |
//! | `host`, `session`, `net` | a host's process, how hosts find each other, what lies between them |
//! | `guest` | a VM of six pages that says numbered words |
//! | [`hardship`] | what befalls them |
//! | `observer`, `checks` | what is known from outside, and what must be true |
//! | [`run`] | a run, and the shortest schedule that still fails |

mod checks;
mod guest;
pub mod hardship;
mod host;
mod net;
mod observer;
pub mod run;
mod session;
mod world;
