//! The control plane: one thread named "control" with a tokio runtime, for everything in this process that serves operators
//! and scrapers. It is started by whoever serves first, and lives as long as the process.
//!
//! Nothing on it may wait for anything but tokio: one task that blocks would keep every other client waiting. It never runs a
//! decision about a VM, and the loop never waits for it.

use parking_lot::Mutex;
use std::{future::pending, io, sync::mpsc, time::Duration};
use tokio::runtime::{Builder, Handle};

/// Threads for reads of a disk, which may be stuck: so many, and the rest waits.
const DISK_THREADS: usize = 2;
/// A thread for a disk that has nothing to do ends after this.
const DISK_IDLE: Duration = Duration::from_secs(1);
/// For a task to be gone: it waits nowhere, so this is only for a host that stands still.
const GONE: Duration = Duration::from_secs(1);

static PLANE: Mutex<Option<Handle>> = Mutex::new(None);

fn handle() -> io::Result<Handle> {
    let mut plane = PLANE.lock();
    if let Some(handle) = &*plane {
        return Ok(handle.clone());
    }
    let runtime = Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(DISK_THREADS)
        .thread_keep_alive(DISK_IDLE)
        .build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new().name("control".into()).spawn(move || runtime.block_on(pending::<()>()))?;
    Ok(plane.insert(handle).clone())
}

/// A task on the control plane. Dropped: it is gone, with all that it holds.
#[derive(Debug)]
pub(crate) struct Task {
    task: tokio::task::JoinHandle<()>,
    gone: mpsc::Receiver<()>,
}

/// Runs `work` on the control plane.
///
/// # Errors
/// There is no thread to be had, or no file descriptor.
pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> io::Result<Task> {
    let (here, gone) = mpsc::channel();
    let task = handle()?.spawn(async move {
        let _here: mpsc::Sender<()> = here;
        work.await;
    });
    Ok(Task { task, gone })
}

impl Drop for Task {
    fn drop(&mut self) {
        self.task.abort();
        // Never from the control plane itself: that thread owns no task.
        let _ = self.gone.recv_timeout(GONE);
    }
}
