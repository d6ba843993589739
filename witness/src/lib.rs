//! The arbiter, for a third machine: a small server that keeps registers. `afterimage witness` is this, with an operator's socket.
//!
//! It runs [`mc_core::arbiter::Arbiter`] over TCP, and keeps each register in a file of its own (`STATE/<vm>.reg`), durable
//! before anybody is told. Killed at any moment, it starts again with everything that it ever answered "won" to. And if it has
//! not, it hears so from the nodes, before it tries a swap.
//!
//! | what goes wrong | what it does |
//! |---|---|
//! | the disk is full, the directory is gone | answers Failed, the register is as it was, logs; the node retries. Once a second it tries to store, and every answer tells how long ago it last could: the nodes raise an alarm |
//! | fsync of the directory fails after the rename | exits 1: only a restart, which reads it again, knows what is stored |
//! | a register file is damaged | tries no swap of that VM until its nodes, or an operator, have said what it was |
//! | the directory is empty, or an older one | likewise; an empty one makes another witness of it, which nodes have to accept |
//! | bytes that are no request | closes that connection, logs |

#![forbid(unsafe_code)]

mod clients;
mod conversation;
mod counters;
mod operator;
mod registrar;
mod serve;
mod storage;
mod store;

pub use counters::Figures;
pub use operator::{NodeSpec, Operator, RegisterReport, Reply, ReplyTo, WitnessReport, WitnessRequest};
pub use store::OpenError;

use clients::MAX_CLIENTS;
use mc_core::{
    arbiter::{Arbiter, Limits},
    id::Name,
};
use node::{arbiter::file::StoreError, wake::Wake};
use parking_lot::Mutex;
use registrar::{Me, Registrar};
use rustix::rand::{GetRandomFlags, getrandom};
use serve::{Hub, Letter};
use socket2::{Domain, Socket, Type};
use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
    panic::resume_unwind,
    path::Path,
    sync::{Arc, mpsc::channel},
    thread::{self, JoinHandle},
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tracing::error;

/// Why a witness does not run.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// Its state cannot be used.
    #[error("witness: {0}")]
    State(#[from] OpenError),
    /// It cannot listen.
    #[error("witness: listening on {listen}: {source}")]
    Listen {
        /// Where.
        listen: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// Nobody knows what the disk holds now.
    #[error("witness: {vm}: {source}")]
    Storage {
        /// Whose register.
        vm: Name,
        /// What happened.
        source: StoreError,
    },
    /// No thread or event descriptor.
    #[error("witness: {doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
}

fn system(doing: &'static str) -> impl Fn(io::Error) -> WitnessError {
    move |source| WitnessError::System { doing, source }
}

/// A running witness. It ends when it is dropped, as by [`Witness::stop`], and nobody is told why.
#[derive(Debug)]
pub struct Witness {
    address: SocketAddr,
    vms: usize,
    letters: UnboundedSender<Letter>,
    figures: Arc<Mutex<Figures>>,
    /// Readable when the witness has ended: [`Witness::ended`] waits for it.
    end: Arc<Wake>,
    /// Its threads, until they were waited for.
    threads: Option<Threads>,
}

#[derive(Debug)]
struct Threads {
    hub: JoinHandle<Result<(), WitnessError>>,
    storage: JoinHandle<()>,
}

impl Witness {
    /// Reads the state in `dir`, listens on `listen` (port 0: any), and starts to answer.
    pub fn start(listen: SocketAddr, dir: &Path) -> Result<Self, WitnessError> {
        let (store, found) = store::Store::open(dir)?;
        for (vm, damage) in &found.lost {
            error!(%vm, "damaged: {damage}. No swap is tried until its nodes have reported what it was, which they \
                 do by themselves, or until `afterimage witness assign` or `forget` on this host");
        }
        let vms = found.registers.len();
        let listener = bind(listen).map_err(|source| WitnessError::Listen { listen, source })?;
        let address = listener.local_addr().map_err(system("asking for the listener's address"))?;
        let end = Wake::new().map_err(system("making an event descriptor"))?;
        let boot = boot().map_err(system("drawing a random number"))?;
        let arbiter = Arbiter::recover(Limits::default(), boot, found.registers, found.lost.into_keys().collect());
        let (letters, inbox) = unbounded_channel();
        let (work, todo) = channel();

        let mut works = true;
        let probed = storage::probe(&store, &mut works); // before anybody is told that it never could
        let registrar = Registrar::new(arbiter, Me { witness: store.identity, boot, probed });
        let figures = Arc::new(Mutex::new(registrar.figures(0)));
        let done = letters.clone();
        let storage = spawn("storage", move || storage::run(&store, &todo, &done, works))?;
        let hub = Hub::new(registrar, work, Arc::clone(&figures), letters.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(system("making a runtime"))?;
        let ended = end.on_drop();
        let hub = spawn("witness", move || {
            let _ended = ended;
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).map_err(system("taking the listener"))?;
                hub.run(listener, inbox).await
            })
        })?;
        Ok(Self { address, vms, letters, figures, end, threads: Some(Threads { hub, storage }) })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// VMs whose register it found.
    #[must_use]
    pub fn vms(&self) -> usize {
        self.vms
    }

    /// What it has counted; called whenever somebody wants to know.
    pub fn figures(&self) -> impl Fn() -> Figures + Send + Sync + 'static {
        let figures = Arc::clone(&self.figures);
        move || *figures.lock()
    }

    /// For an operator's words.
    #[must_use]
    pub fn operator(&self) -> Operator {
        Operator::new(self.letters.clone())
    }

    /// Readable once it has ended by itself: then [`Witness::stop`] says why.
    #[must_use]
    pub fn ended(&self) -> impl AsFd + '_ {
        self.end.as_fd()
    }

    /// Finishes the writes under way, closes every connection, and ends; tells why, if it had ended by itself.
    pub fn stop(mut self) -> Result<(), WitnessError> {
        self.end_threads().map_or(Ok(()), |ended| ended.unwrap_or_else(|panic| resume_unwind(panic)))
    }

    fn end_threads(&mut self) -> Option<thread::Result<Result<(), WitnessError>>> {
        let Threads { hub, storage } = self.threads.take()?;
        let _ = self.letters.send(Letter::Stop);
        let hub = hub.join();
        Some(storage.join().and(hub))
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.end_threads();
    }
}

/// Another number at every start, and not 0.
fn boot() -> io::Result<u64> {
    let mut bytes = [0; 8];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u64::from_le_bytes(bytes).max(1))
}

/// Listens, without waiting in accept(2), and with room for every node to come back at once after a restart (std's backlog
/// is 128; a connection that does not fit tries again only after a second).
fn bind(listen: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(listen), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&listen.into())?;
    socket.listen(i32::try_from(MAX_CLIENTS).unwrap_or(i32::MAX))?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, WitnessError> {
    thread::Builder::new().name(name.into()).spawn(body).map_err(system("starting a thread"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_that_is_dropped_leaves_its_directory_and_its_port() {
        let dir = tempfile::tempdir().unwrap();
        let first = Witness::start(([127, 0, 0, 1], 0).into(), dir.path()).unwrap();
        let (at, operator) = (first.local_addr(), first.operator());
        drop(first);
        assert!(std::net::TcpStream::connect(at).is_err(), "nobody listens any more");
        let second = Witness::start(at, dir.path()).unwrap();
        assert_eq!(second.local_addr(), at);
        drop(operator); // of the first: it keeps nothing alive
        second.stop().unwrap();
    }
}
