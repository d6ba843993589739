//! Waiting for a network interface that has just come up.

use std::{io, thread::sleep, time::Duration};

/// A netdev that has just come up has no route and resolves no neighbour yet (IPv6 checks its own address first, for a second
/// or two): tries again for three.
///
/// # Errors
/// The last attempt's.
pub fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..15 {
        match attempt() {
            Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::NetworkUnreachable) => {
                sleep(Duration::from_millis(200));
            }
            done => return done,
        }
    }
    attempt()
}
