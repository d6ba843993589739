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
mod counters;
mod operator;
mod registrar;
mod serve;
mod storage;
mod store;

pub use counters::Figures;
pub use operator::{NodeSpec, Operator, RegisterReport, Reply, ReplyTo, WitnessReport, WitnessRequest};
pub use store::OpenError;

use clients::{Clients, MAX_CLIENTS};
use mc_core::{
    arbiter::{Arbiter, Limits},
    id::Name,
};
use node::{arbiter::file::StoreError, wake::Wake};
use registrar::{Input, Me, Registrar};
use rustix::rand::{GetRandomFlags, getrandom};
use socket2::{Domain, Socket, Type};
use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
    path::Path,
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    thread::JoinHandle,
};
use storage::Probe;
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

/// A running witness.
#[derive(Debug)]
pub struct Witness {
    address: SocketAddr,
    vms: usize,
    inputs: Sender<Input>,
    clients: Arc<Clients>,
    /// Readable when the witness ends or shall end: the accept thread and [`Witness::ended`] wait for it.
    end: Arc<Wake>,
    registrar: JoinHandle<Result<(), WitnessError>>,
    others: Vec<JoinHandle<()>>,
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
        let clients = Arc::new(Clients::default());
        let (inputs, inbox) = channel();
        let (work, todo) = channel();

        let probe = Arc::new(Probe::default());
        let mut works = true;
        probe.run(&store, &mut works); // before anybody is told that it never could
        let me = Me { witness: store.identity, boot, probe: Arc::clone(&probe) };
        let done = inputs.clone();
        let storage = thread("storage", move || storage::run(&store, &todo, &done, &probe, works))?;
        let ended = end.on_drop();
        let everyone = Arc::clone(&clients);
        let registrar = thread("registrar", move || {
            let _ended = ended;
            Registrar::new(arbiter, me, &work, &everyone.counters).run(&inbox)
        })?;
        let (stop, everyone, requests) = (Arc::clone(&end), Arc::clone(&clients), inputs.clone());
        let accept = thread("accept", move || serve::accept(&listener, &stop, &everyone, &requests))?;
        let others = vec![storage, accept];
        Ok(Self { address, vms, inputs, clients, end, registrar, others })
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
        let clients = Arc::clone(&self.clients);
        move || clients.read()
    }

    /// For an operator's words.
    #[must_use]
    pub fn operator(&self) -> Operator {
        Operator::new(self.inputs.clone())
    }

    /// Readable once it has ended by itself: then [`Witness::stop`] says why.
    #[must_use]
    pub fn ended(&self) -> impl AsFd + '_ {
        self.end.as_fd()
    }

    /// Finishes the writes under way, closes every connection, and ends; tells why, if it had ended by itself.
    pub fn stop(self) -> Result<(), WitnessError> {
        let _ = self.inputs.send(Input::Stop);
        let result = self.registrar.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        for thread in self.others {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        self.clients.close();
        result
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

fn thread<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, WitnessError> {
    std::thread::Builder::new().name(name.into()).spawn(body).map_err(system("starting a thread"))
}
