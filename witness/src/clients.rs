//! The open connections, and which one is closed when there are too many.
//!
//! A node asks once a second over a connection that it keeps. It is *known* once it was told of a register: whoever asks about
//! a VM that nobody has protected yet, and whoever only connects, is a stranger. Strangers hold half of the places at most, so
//! that no crowd of them keeps the nodes out; and a newcomer, which is a stranger at first, gets the place of the one that has
//! been idle for longest.

use crate::counters::{Counters, Figures};
use mc_core::wire::arbiter::Answer;
use node::repeated::Repeated;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    net::{Shutdown, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

/// Connections at a time: two nodes a VM, so 2,000 VMs.
pub(crate) const MAX_CLIENTS: usize = 4096;
/// Strangers among them.
const MAX_STRANGERS: usize = MAX_CLIENTS / 2;
/// A known node asks once a second: one that has been idle for so long gives its place up when all are taken.
const QUIET: Duration = Duration::from_secs(10);

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    manners: Mutex<Manners>,
}

#[derive(Clone, Copy, Debug)]
struct Manners {
    /// Was told of a register.
    known: bool,
    /// Waits for an answer.
    asking: bool,
    /// Its last request, or its coming.
    heard: Instant,
}

impl Client {
    fn new(stream: TcpStream, now: Instant) -> Self {
        Self { stream, manners: Mutex::new(Manners { known: false, asking: false, heard: now }) }
    }

    /// It has asked something.
    pub(crate) fn asks(&self) {
        let mut manners = self.manners.lock();
        (manners.asking, manners.heard) = (true, Instant::now());
    }

    /// It is told this.
    pub(crate) fn is_told(&self, answer: &Answer) {
        let mut manners = self.manners.lock();
        manners.asking = false;
        manners.known |= answer.held.is_some();
    }
}

/// The connections that are open.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    open: Mutex<BTreeMap<u64, Arc<Client>>>,
    /// What became of their requests.
    pub(crate) counters: Counters,
    /// What is said of their ends.
    pub(crate) said: Mutex<Repeated>,
}

impl Clients {
    /// What metrics are made of.
    pub(crate) fn read(&self) -> Figures {
        self.counters.read(self.open.lock().len())
    }

    /// Closes every connection.
    pub(crate) fn close(&self) {
        for client in self.open.lock().values() {
            let _ = client.stream.shutdown(Shutdown::Both);
        }
    }

    /// A newcomer's place. `None`: all are taken by nodes that are at work.
    pub(crate) fn take_in(&self, number: u64, stream: TcpStream) -> Option<Arc<Client>> {
        let mut open = self.open.lock();
        let strangers = open.values().filter(|client| !client.manners.lock().known).count();
        let (full, crowded) = (open.len() >= MAX_CLIENTS, strangers >= MAX_STRANGERS);
        if (full || crowded) && !give_up_one(&mut open, !crowded, Instant::now()) {
            return None;
        }
        let client = Arc::new(Client::new(stream, Instant::now()));
        open.insert(number, Arc::clone(&client));
        Some(client)
    }

    /// There is no file descriptor for a newcomer: the place that would be given up for it is.
    pub(crate) fn make_room(&self) {
        give_up_one(&mut self.open.lock(), true, Instant::now());
    }

    /// It has gone.
    pub(crate) fn forget(&self, number: u64) {
        self.open.lock().remove(&number);
    }
}

/// Closes the stranger that has been idle for longest; if there is none, and if nodes may be given up, the one that has been
/// silent for longest and for too long. False: none of either.
fn give_up_one(open: &mut BTreeMap<u64, Arc<Client>>, nodes_too: bool, now: Instant) -> bool {
    let idle = |known: bool, for_long: Duration| {
        let all = open.iter().map(|(number, client)| (*number, *client.manners.lock()));
        let idle = all.filter(|(_, m)| m.known == known && !m.asking && now.duration_since(m.heard) >= for_long);
        idle.min_by_key(|(_, m)| m.heard).map(|(number, _)| number)
    };
    let victim = idle(false, Duration::ZERO).or_else(|| nodes_too.then(|| idle(true, QUIET)).flatten());
    let Some(client) = victim.and_then(|number| open.remove(&number)) else { return false };
    // Its thread wakes up and ends.
    let _ = client.stream.shutdown(Shutdown::Both);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::{
        id::{Generation, Name, Node, NodeId, WitnessId},
        register::{Mode, Owner, Register},
        wire::arbiter::{Outcome, Standing},
    };
    use std::net::TcpListener;

    /// Connections whose other ends are kept.
    struct Crowd(TcpListener, Clients, Vec<TcpStream>);

    impl Crowd {
        fn new() -> Self {
            Self(TcpListener::bind("127.0.0.1:0").unwrap(), Clients::default(), vec![])
        }

        fn comes(&mut self, number: u64) -> Option<Arc<Client>> {
            self.2.push(TcpStream::connect(self.0.local_addr().unwrap()).unwrap());
            self.1.take_in(number, self.0.accept().unwrap().0)
        }

        fn numbers(&self) -> Vec<u64> {
            self.1.open.lock().keys().copied().collect()
        }
    }

    fn heard(client: &Client, ago: Duration) {
        client.manners.lock().heard = Instant::now() - ago;
    }

    fn answer(held: Option<Register>) -> Answer {
        let (vm, witness) = (Name::new("web").unwrap(), WitnessId([1; 16]));
        let (standing, outcome) = (Standing::Settled, Outcome::Holds);
        Answer { id: 1, vm, witness, boot: 1, probe_age_ms: None, standing, outcome, held }
    }

    fn told() -> Answer {
        let node = Node { name: Name::new("a").unwrap(), id: NodeId([1; 16]) };
        let owner = Owner { node, instance: 1 };
        answer(Some(Register { generation: Generation(1), owner, mode: Mode::Solo }))
    }

    #[test]
    fn the_idlest_stranger_goes_first_and_who_waits_for_an_answer_never() {
        let mut crowd = Crowd::new();
        let clients: Vec<_> = (0..4).map(|n| crowd.comes(n).unwrap()).collect();
        for (client, ago) in clients.iter().zip([5, 40, 30, 20]) {
            heard(client, Duration::from_secs(ago));
        }
        clients[1].asks();
        heard(&clients[1], Duration::from_secs(40));
        clients[2].is_told(&told());
        clients[3].is_told(&answer(None));
        let mut gone = vec![];
        loop {
            let before = crowd.numbers();
            crowd.1.make_room();
            let after = crowd.numbers();
            match before.iter().find(|n| !after.contains(n)) {
                Some(n) => gone.push(*n),
                None => break,
            }
        }
        assert_eq!(gone, [3, 0, 2], "a stranger, the next, then the node that was silent for 30 s");
        clients[1].is_told(&told());
        heard(&clients[1], Duration::from_secs(9));
        crowd.1.make_room();
        assert_eq!(crowd.numbers(), [1], "9 s are not too long for a node");
    }

    #[test]
    fn strangers_hold_half_of_the_places_and_nodes_all_of_them() {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit).unwrap();
        let mut crowd = Crowd::new();
        let (places, strangers) = (MAX_CLIENTS as u64, MAX_STRANGERS as u64);
        for number in 0..strangers + 7 {
            crowd.comes(number).unwrap();
        }
        assert_eq!(crowd.numbers(), (7..strangers + 7).collect::<Vec<_>>());
        for number in places..2 * places {
            crowd.comes(number).unwrap().is_told(&told());
        }
        assert_eq!(crowd.numbers(), (places..2 * places).collect::<Vec<_>>());
        assert!(crowd.comes(2 * places).is_none(), "all are nodes, and none has been silent for long");
    }
}
