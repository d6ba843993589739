//! ^C: what was measured by then is shown. The measurement that is under way is finished, nothing new is begun; a second ^C ends the
//! process at once.

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};
use std::{
    io,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const GLANCE: Duration = Duration::from_millis(100);

static ASKED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// What the record says of it.
pub const CAVEAT: &str = "interrupted: these are the figures by then; what had not begun is not here";

/// Begins to catch SIGINT and SIGTERM.
///
/// # Errors
/// The operating system refuses.
pub fn catch() -> io::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 1, Arc::clone(&ASKED))?;
        flag::register(signal, Arc::clone(&ASKED))?;
    }
    Ok(())
}

/// Whether somebody wants to see what there is. (While the rig's hosts are there, it is the rig that hears the signal.)
#[must_use]
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed) || rig::sys::interrupted()
}

/// So many rounds, the first of them in any case: without one there are no figures.
pub fn rounds(runs: u32) -> impl Iterator<Item = u32> {
    (1..=runs).take_while(|round| *round == 1 || !asked())
}

/// Sleeps, until somebody interrupts it.
pub fn sleep(time: Duration) {
    let until = Instant::now() + time;
    while !asked() && Instant::now() < until {
        thread::sleep(GLANCE.min(until.saturating_duration_since(Instant::now())));
    }
}
