//! Threads that copy for the parallel engine ([`crate::parallel`]).
//!
//! ```text
//!          ┌── a job ──> run ──> done ──┐
//! Spinning │<───────────────────────────┘
//!    │  ^  └── nothing for SPIN ──> Parked
//!    │  └───────── woken ────────────┘
//! ```
//!
//! The VM is stopped while they work, so a thread that has just worked looks for more for a short time before it sleeps: a
//! wake-up costs as long as some twenty pages do. Once the VM runs they sleep: none of its time goes to them. Jobs are whole
//! slabs, some dozens in a checkpoint; one lock is enough.

use crate::parallel::{Job, Workers};
use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a thread without work looks for more before it sleeps.
pub const SPIN: Duration = Duration::from_micros(50);

/// How long a caller that waits keeps its processor.
const PATIENCE: Duration = Duration::from_micros(500);

/// Threads that copy at most by default, the caller's own among them: two to four take all that a socket's memory gives.
pub const MOST: usize = 4;

/// Jobs that need no allocation: a checkpoint of 64 slabs.
const QUEUE: usize = 64;

/// The threads. Dropping them waits until they have ended.
#[derive(Debug)]
pub struct Threads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    /// Lengths of the queue's two lists, to look at without the lock.
    waiting: AtomicUsize,
    done: AtomicUsize,
}

#[derive(Debug)]
struct Queue {
    waiting: VecDeque<Job>,
    done: VecDeque<Job>,
    parked: usize,
    ended: bool,
}

impl Threads {
    /// So many of them, beside the caller's own.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn new(count: usize) -> io::Result<Self> {
        let list = || VecDeque::with_capacity(QUEUE);
        let queue = Mutex::new(Queue { waiting: list(), done: list(), parked: 0, ended: false });
        let (waiting, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let shared = Arc::new(Shared { queue, work: Condvar::new(), waiting, done });
        let mut this = Self { shared, threads: Vec::with_capacity(count) };
        for number in 1..=count {
            let shared = Arc::clone(&this.shared);
            this.threads.push(thread::Builder::new().name(format!("capture-{number}")).spawn(move || shared.work())?);
        }
        Ok(this)
    }

    /// As many as this machine has use for: with the caller's own one for each processor, and at most [`MOST`].
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn for_this_machine() -> io::Result<Self> {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self::new(processors.min(MOST) - 1)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // It caught what its jobs panicked with; there is nobody to tell of anything else.
            let _ = thread.join();
        }
    }
}

impl Workers for Threads {
    fn count(&self) -> usize {
        self.threads.len()
    }

    fn give(&mut self, job: Job) {
        let mut queue = self.shared.lock();
        queue.waiting.push_back(job);
        self.shared.waiting.store(queue.waiting.len(), Ordering::Release);
        // The last one is left for the caller, or for a thread that is awake.
        if queue.parked > 0 && queue.waiting.len() > 1 {
            self.shared.work.notify_one();
        }
    }

    fn steal(&mut self) -> Option<Job> {
        self.shared.claim()
    }

    fn done(&mut self) -> Option<Job> {
        if self.shared.done.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut queue = self.shared.lock();
        let job = queue.done.pop_front();
        self.shared.done.store(queue.done.len(), Ordering::Release);
        job
    }

    /// Gives the processor away only after longer than a slab takes: on a busy machine it does not come back for milliseconds,
    /// but the thread that is waited for may need just this one.
    fn wait(&mut self) {
        let since = Instant::now();
        while self.shared.done.load(Ordering::Acquire) == 0 {
            if since.elapsed() > PATIENCE {
                return thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it is held; jobs run outside.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(&self) -> Option<Job> {
        if self.waiting.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut queue = self.lock();
        let job = queue.waiting.pop_front();
        self.waiting.store(queue.waiting.len(), Ordering::Release);
        job
    }

    /// A thread's life.
    fn work(&self) {
        let mut idle_since = Instant::now();
        loop {
            if let Some(mut job) = self.claim() {
                // The engine tells by its places that it was not done, and the panic has been reported.
                let _ = catch_unwind(AssertUnwindSafe(|| job.run()));
                let mut queue = self.lock();
                queue.done.push_back(job);
                self.done.store(queue.done.len(), Ordering::Release);
                idle_since = Instant::now();
            } else if idle_since.elapsed() < SPIN {
                std::hint::spin_loop();
            } else if self.park() {
                return;
            } else {
                idle_since = Instant::now();
            }
        }
    }

    /// Sleeps until there is a job or the end; whether it is the end.
    fn park(&self) -> bool {
        let mut queue = self.lock();
        queue.parked += 1;
        while queue.waiting.is_empty() && !queue.ended {
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.parked -= 1;
        queue.ended
    }
}
