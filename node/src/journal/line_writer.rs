//! A thread that writes lines, so that whoever has something to say never waits for a disk or a pipe.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

/// Lines that may wait. An incident has a dozen.
const QUEUE: usize = 1024;

#[derive(Debug)]
enum Job {
    Line(String),
    Flush(SyncSender<()>),
}

/// Lines on their way to a thread that writes them.
#[derive(Debug)]
pub struct LineWriter {
    queue: SyncSender<Job>,
    lost: Arc<AtomicU64>,
}

impl LineWriter {
    /// Starts the thread, which hands every line, its newline included, to `write`.
    pub fn spawn(name: &str, write: impl FnMut(&str) -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let (queue, jobs) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || run(&jobs, &counted, write))?;
        Ok(Self { queue, lost })
    }

    /// Hands over a line. Never waits: where there is no room, the line is lost, and counted.
    pub fn put(&self, line: String) {
        if self.queue.try_send(Job::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that were not written.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits until what was handed over is written, `patience` at most. False if it is not.
    pub fn flush(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let (done, answer) = sync_channel(1);
        let mut job = Job::Flush(done);
        while let Err(std::sync::mpsc::TrySendError::Full(back)) = self.queue.try_send(job) {
            if Instant::now() >= deadline {
                return false;
            }
            job = back;
            std::thread::sleep(Duration::from_millis(1));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        !matches!(answer.recv_timeout(left), Err(RecvTimeoutError::Timeout))
    }
}

fn run(jobs: &Receiver<Job>, lost: &AtomicU64, mut write: impl FnMut(&str) -> io::Result<()>) {
    while let Ok(job) = jobs.recv() {
        match job {
            Job::Line(line) => {
                if write(&line).is_err() {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
            }
            // Who asked may have lost patience.
            Job::Flush(done) => drop(done.try_send(())),
        }
    }
}
