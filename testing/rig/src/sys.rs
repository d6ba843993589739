//! The rig's only unsafe code: a TAP device by its name, two signals that ask the rig to clean up and leave, and a
//! thread of another process that is held.

use anyhow::{Context, Result, ensure};
use std::{
    fs::File,
    marker::PhantomData,
    os::fd::AsRawFd,
    ptr::null_mut,
    sync::atomic::{AtomicBool, Ordering},
};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_signal(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

const SIGNALS: [libc::c_int; 2] = [libc::SIGINT, libc::SIGTERM];

/// While this lives SIGINT and SIGTERM end the rig by way of [`interrupted`]: it has namespaces and processes to
/// remove. After it they do what they did before: the process may have other things to do.
#[must_use = "signals are caught while it lives"]
pub struct Caught([libc::sigaction; 2]);

impl std::fmt::Debug for Caught {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caught").finish_non_exhaustive()
    }
}

/// Begins to catch them.
pub fn catch_signals() -> Caught {
    let handler: extern "C" fn(libc::c_int) = note_signal;
    // SAFETY: all zeros is an action: the default one, with an empty mask and no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    Caught(SIGNALS.map(|signal| exchange(signal, &action)))
}

impl Drop for Caught {
    fn drop(&mut self) {
        for (signal, before) in SIGNALS.into_iter().zip(&self.0) {
            exchange(signal, before);
        }
    }
}

/// Sets what a signal does; what it did before.
fn exchange(signal: libc::c_int, action: &libc::sigaction) -> libc::sigaction {
    // SAFETY: as above.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: both point to a whole sigaction that lives until the call returns. The handler was in force before, or
    // only stores to an atomic, which a signal handler may do; both signals can be caught.
    unsafe { libc::sigaction(signal, action, &raw mut before) };
    before
}

/// Whether somebody asked the rig to stop. Everything that waits looks here.
#[must_use]
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Attaches to the existing TAP device `name` of this network namespace: whole Ethernet frames, nothing in front of
/// them.
///
/// # Errors
/// No `/dev/net/tun`, no such device, no permission, or somebody else holds it.
pub fn open_tap(name: &str) -> Result<File> {
    ensure!(name.len() < libc::IFNAMSIZ, "TAP device name '{name}' is longer than {} bytes", libc::IFNAMSIZ - 1);
    let file = File::options().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: (libc::IFF_TAP | libc::IFF_NO_PI).try_into()? },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::try_from(from).context("TAP device names are ASCII")?;
    }
    // SAFETY: `request` is a whole ifreq with a terminated name, and lives until the call returns; the descriptor is
    // open.
    let status = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    ensure!(status == 0, "TAP device '{name}': {}", std::io::Error::last_os_error());
    Ok(file)
}

/// A thread of another process that stands still, as one does that waits for a disk for ever. Dropped, or when this
/// process ends: it goes on. (Tracing belongs to a thread: this must be dropped where it was made.)
#[derive(Debug)]
pub struct Held {
    thread: libc::pid_t,
    _not_send: PhantomData<*const ()>,
}

/// Stops the thread `thread`, and no other of its process.
///
/// # Errors
/// There is no such thread, or somebody traces it already.
pub fn hold_thread(thread: u32) -> Result<Held> {
    let thread = libc::pid_t::try_from(thread).context("thread id")?;
    trace(libc::PTRACE_SEIZE, thread)?;
    let held = Held { thread, _not_send: PhantomData };
    trace(libc::PTRACE_INTERRUPT, thread)?;
    let mut status = 0;
    // SAFETY: `status` is an int that lives until the call returns.
    let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    ensure!(waited == thread, "thread {thread} did not stop: {}", std::io::Error::last_os_error());
    ensure!(libc::WIFSTOPPED(status), "thread {thread} ended");
    Ok(held)
}

fn trace(request: libc::c_uint, thread: libc::pid_t) -> Result<()> {
    // SAFETY: seizing, interrupting and detaching read and write no memory of this process; they take no address and no
    // data.
    let status = unsafe { libc::ptrace(request, thread, null_mut::<libc::c_void>(), null_mut::<libc::c_void>()) };
    ensure!(status == 0, "thread {thread}: {}", std::io::Error::last_os_error());
    Ok(())
}

impl Drop for Held {
    fn drop(&mut self) {
        // (A thread that has died meanwhile is nobody's.)
        let _ = trace(libc::PTRACE_DETACH, self.thread);
    }
}
