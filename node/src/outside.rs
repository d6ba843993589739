//! What this crate takes from the system: the time, and chance.
//!
//! With the feature `testing` a thread can be a *world*: its time and its chance are what a test says, and whatever would have a thread of
//! its own, or a socket, is handed to the test instead, which turns it by hand ([`World`]).

use rustix::{
    io,
    rand::{GetRandomFlags, getrandom},
    time::{ClockId, clock_gettime},
};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

#[cfg(feature = "testing")]
pub(crate) mod world;
#[cfg(feature = "testing")]
pub use world::World;

/// Nanoseconds since boot.
pub(crate) fn boot_ns() -> u64 {
    #[cfg(feature = "testing")]
    if let Some(now) = world::now() {
        return now;
    }
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    #[cfg(feature = "testing")]
    if let Some(now) = world::now() {
        return now / 1_000_000;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Now, for what only measures.
pub(crate) fn instant() -> Instant {
    #[cfg(feature = "testing")]
    if let Some(now) = world::instant() {
        return now;
    }
    Instant::now()
}

/// Numbers that nobody can guess.
pub(crate) fn random(bytes: &mut [u8], flags: GetRandomFlags) -> io::Result<()> {
    #[cfg(feature = "testing")]
    if world::random(bytes) {
        return Ok(());
    }
    getrandom(bytes, flags).map(drop)
}
