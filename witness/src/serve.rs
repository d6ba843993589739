//! The witness's thread: a tokio runtime whose tasks move bytes. What they bring goes to values that decide.
//!
//! ```text
//! listener ──> Clients: who has a place        registrar ──writes──> storage (a thread of its own)
//! socket <──bytes── task ──request──> hub ──────> │  ^ <────done──────┘
//!           (Conversation: how long)       <─answer─┘
//! ```
//!
//! A connection has one request under way at a time, so that the number of connections bounds everything behind it; who
//! reads slowly keeps only its own task.

use super::{
    WitnessError,
    clients::{Clients, MAX_CLIENTS, Place},
    conversation::{Conversation, MESSAGE, Step},
    counters::Figures,
    operator::{ReplyTo, WitnessRequest},
    registrar::{Input, Output, Registrar, Work},
};
use mc_core::wire::arbiter::{Answer, Request};
use node::{
    clock::Clock,
    repeated::{Repeated, and_more},
};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    select,
    sync::{
        Notify,
        mpsc::{UnboundedReceiver, UnboundedSender},
        oneshot, watch,
    },
    task::JoinSet,
    time::{sleep_until, timeout},
};
use tracing::{debug, warn};

/// After an accept that failed: at first …
const REST: Duration = Duration::from_millis(20);
/// … and at most.
const LONGEST_REST: Duration = Duration::from_secs(1);
/// For answers that were decided to leave, when the witness ends.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What the hub is told.
#[derive(Debug)]
pub(crate) enum Letter {
    /// A connection has a request, and waits here for its answer.
    Asks { number: u64, peer: SocketAddr, request: Request, answer: oneshot::Sender<Answer> },
    /// A connection has ended: why.
    Gone { number: u64, peer: SocketAddr, why: io::Result<()> },
    /// From the storage.
    Storage(Input),
    /// From an operator.
    Operator { request: WitnessRequest, reply: ReplyTo },
    /// To end.
    Stop,
}

/// What serves: see the module.
pub(crate) struct Hub {
    registrar: Registrar,
    clients: Clients,
    storage: mpsc::Sender<Work>,
    figures: Arc<Mutex<Figures>>,
    letters: UnboundedSender<Letter>,
    connections: JoinSet<()>,
    /// Of each connection: to have it end now.
    ends: BTreeMap<u64, Arc<Notify>>,
    answers: BTreeMap<u64, oneshot::Sender<Answer>>,
    replies: BTreeMap<u64, ReplyTo>,
    /// Connections and operators so far.
    count: u64,
    /// What is said of connections, and of accepting.
    said: Repeated,
    rest: Duration,
    closing: watch::Sender<bool>,
}

impl Hub {
    pub(crate) fn new(
        registrar: Registrar,
        storage: mpsc::Sender<Work>,
        figures: Arc<Mutex<Figures>>,
        letters: UnboundedSender<Letter>,
    ) -> Self {
        Self {
            registrar,
            clients: Clients::default(),
            storage,
            figures,
            letters,
            connections: JoinSet::new(),
            ends: BTreeMap::new(),
            answers: BTreeMap::new(),
            replies: BTreeMap::new(),
            count: 0,
            said: Repeated::default(),
            rest: Duration::ZERO,
            closing: watch::Sender::new(false),
        }
    }

    /// Ends on [`Letter::Stop`], or when nobody knows what the disk holds.
    pub(crate) async fn run(
        mut self,
        listener: TcpListener,
        mut inbox: UnboundedReceiver<Letter>,
    ) -> Result<(), WitnessError> {
        let mut accept_at = None;
        while !self.registrar.has_ended() {
            *self.figures.lock() = self.registrar.figures(self.clients.len());
            let accepts = async {
                // A sleep until now lasts a millisecond, and would be one for each connection.
                if let Some(at) = accept_at {
                    sleep_until(at).await;
                }
                listener.accept().await
            };
            select! {
                Some(letter) = inbox.recv() => self.letter(letter)?,
                accepted = accepts => {
                    self.accepted(accepted);
                    accept_at = (!self.rest.is_zero()).then(|| tokio::time::Instant::now() + self.rest);
                }
                Some(_) = self.connections.join_next() => {}
            }
        }
        self.close().await;
        Ok(())
    }

    /// Whoever waits for an answer gets none, and whoever has one is given the time to take it.
    async fn close(mut self) {
        self.answers.clear();
        self.closing.send_replace(true);
        let all = async { while self.connections.join_next().await.is_some() {} };
        let _ = timeout(LAST_WORDS, all).await;
    }

    fn accepted(&mut self, accepted: io::Result<(TcpStream, SocketAddr)>) {
        match accepted {
            Ok((stream, peer)) => {
                self.rest = Duration::ZERO;
                self.take_in(stream, peer);
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => self.rest = Duration::ZERO,
            Err(e) => {
                if is_shortage(&e) {
                    let given_up = self.clients.make_room(Clock.now());
                    self.end(given_up);
                }
                self.rest = (self.rest * 2).clamp(REST, LONGEST_REST);
                self.say(&e.to_string(), || format!("witness: cannot accept a connection: {e}"));
            }
        }
    }

    fn take_in(&mut self, stream: TcpStream, peer: SocketAddr) {
        self.count += 1;
        let number = self.count;
        match self.clients.take_in(number, Clock.now()) {
            Place::None => self.say("crowded", || format!("{peer}: closed: {MAX_CLIENTS} nodes are connected already")),
            Place::InsteadOf(given_up) => {
                self.end(given_up);
                let end = Arc::new(Notify::new());
                self.ends.insert(number, Arc::clone(&end));
                let (letters, closing) = (self.letters.clone(), self.closing.subscribe());
                self.connections.spawn(async move {
                    let why = select! {
                        why = talk(stream, number, peer, &letters, closing) => why,
                        () = end.notified() => Ok(()),
                    };
                    let _ = letters.send(Letter::Gone { number, peer, why });
                });
            }
        }
    }

    fn end(&mut self, number: Option<u64>) {
        if let Some(end) = number.and_then(|number| self.ends.remove(&number)) {
            end.notify_one();
        }
    }

    fn letter(&mut self, letter: Letter) -> Result<(), WitnessError> {
        let now = Clock.now();
        let input = match letter {
            Letter::Asks { number, peer, request, answer } => {
                self.clients.asks(number, now);
                self.answers.insert(number, answer);
                Input::Request { from: number, peer, request }
            }
            Letter::Gone { number, peer, why } => {
                self.clients.forget(number);
                self.ends.remove(&number);
                self.answers.remove(&number);
                match why {
                    Ok(()) => debug!(%peer, "closed"),
                    Err(e) => self.say(&e.kind().to_string(), || format!("{peer}: connection closed: {e}")),
                }
                return Ok(());
            }
            Letter::Storage(input) => input,
            Letter::Operator { request, reply } => {
                self.count += 1;
                self.replies.insert(self.count, reply);
                Input::Operator { from: self.count, request }
            }
            Letter::Stop => Input::Stop,
        };
        self.registrar.handle(now, input)?;
        while let Some(output) = self.registrar.poll_output() {
            self.carry_out(output);
        }
        Ok(())
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            // The storage thread outlives this one, which holds its sender.
            Output::Write(work) => drop(self.storage.send(work)),
            Output::Answer { to, answer } => {
                self.clients.is_told(to, &answer);
                // A client that has gone meanwhile will ask again.
                if let Some(waits) = self.answers.remove(&to) {
                    let _ = waits.send(answer);
                }
            }
            // A node asks again five times a second, for as long as the disk is full.
            Output::NotStored(vm, why) => self.say(&format!("not stored: {vm}"), || format!("{vm}: not stored: {why}")),
            Output::Reply { to, reply } => {
                if let Some(waits) = self.replies.remove(&to) {
                    waits.give(reply);
                }
            }
        }
    }

    /// What strangers, or a disk that is full, can bring about is counted, not repeated.
    fn say(&mut self, kind: &str, line: impl FnOnce() -> String) {
        if let Some(more) = self.said.say(kind, Instant::now()) {
            warn!("{}{}", line(), and_more(more));
        }
    }
}

/// Whether `error` says that this process, or this host, has no file descriptor left.
fn is_shortage(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|e| e == Errno::MFILE || e == Errno::NFILE)
}

/// Moves one connection's bytes, until it closes or sends what is no request.
async fn talk(
    mut stream: TcpStream,
    number: u64,
    peer: SocketAddr,
    letters: &UnboundedSender<Letter>,
    mut closing: watch::Receiver<bool>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive =
        socket2::TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
    socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    let mut conversation = Conversation::new(Clock.now());
    loop {
        let patience = conversation.deadline().since(Clock.now());
        let read = select! {
            read = timeout(patience, stream.read(conversation.room())) => read,
            _ = closing.wait_for(|closing| *closing) => return Ok(()),
        };
        let Ok(read) = read else { return conversation.expired() };
        let request = match conversation.read(Clock.now(), read)? {
            Step::More => continue,
            Step::Closed => return Ok(()),
            Step::Asks(request) => request,
        };
        let (answer, answered) = oneshot::channel();
        let _ = letters.send(Letter::Asks { number, peer, request, answer });
        // None: the witness ends.
        let Ok(answer) = answered.await else { return Ok(()) };
        timeout(MESSAGE, stream.write_all(&answer.encode())).await??;
        conversation = Conversation::new(Clock.now());
    }
}
