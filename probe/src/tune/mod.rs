//! How long a failure detector may wait: from what was measured of beats, how soon a death is seen and how often a live peer
//! would be suspected, for any interval and multiplier K. Pure: no clock, file or socket.
//!
//! A live peer is suspected when nothing of it was heard for K intervals since its last beat. A gap between two beats that were
//! heard is made of
//!
//! ```text
//!   gap = what was due (m lost beats and the one that came: m + 1 intervals, each drawn from 75 to 90 % of I)
//!       + excess (the sender was late, or the way was: a stall)
//! ```
//!
//! and so the probability that a gap becomes a false suspicion is, over m and over the drawn intervals J (exactly, by
//! convolution),
//!
//! ```text
//!   sum over m of  P(m losses in a row) * E[ P(excess > K*I - (J1 + … + Jm+1)*I) ]
//! ```
//!
//! `P(excess > x)` is what was counted, up to a threshold, and a generalised Pareto tail beyond ([`tail`]); `P(m losses in a row)` a
//! run-length model after Gilbert and Elliott ([`losses`]). Losses and stalls are taken as independent of each other. Times the
//! gaps per second, that is the rate of false suspicions. Intervals are 95 %: profile likelihood for the tail, counts after Garwood,
//! shares after Wilson, put together by distances (MOVER).
//!
//! *Own lateness*: what the detector discounts (its own thread was late by more than a quarter of an interval) was taken off the
//! excess when it was measured, because it accuses nobody; it lengthens detection instead, where it is counted in full.
//!
//! *Another interval than the measured one*: stalls and outages last as long as they last, jitter and single losses come by the
//! beat. The worse of the two readings is taken: per second, stalls are as many as measured, or as many more as there are more
//! beats; a shorter interval sees up to 0.9 (I0 - I) more of each stall; an outage of m beats lasts as many more beats as they
//! are shorter. Where that says nothing (all of K intervals lie within what the measurement could not see), the answer is
//! that there is none: measure at that interval.
//!
//! *Extrapolation*: a silence that was never seen is beyond the measurement. The fit says what it would be if longer silences come
//! from what those seen came from; counting alone says at most three per time observed (the rule of three). Both are given.

mod assess;
mod detection;
mod losses;
mod rate;
#[cfg(test)]
mod synthetic;
mod tail;

pub use assess::{Assessment, Limit, Model, Support, Verdict, assess};
pub use detection::Detection;
pub use losses::Losses;
pub use rate::{Rate, counted};
pub use tail::{FEWEST, Tail};
