//! A way to the witness that can be cut, for one node alone: a proxy.

use crate::world::free_addr;
use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// See the module. Its threads end with the test process.
pub(crate) struct Way {
    /// As an arbiter.
    pub(crate) arbiter: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    is_cut: bool,
    streams: Vec<TcpStream>,
}

impl Way {
    /// To this arbiter, a witness.
    pub(crate) fn to(arbiter: &str) -> Self {
        let witness: SocketAddr = arbiter.strip_prefix("witness://").expect("a witness").parse().unwrap();
        let addr = free_addr();
        let (listener, state) = (TcpListener::bind(addr).unwrap(), Arc::new(Mutex::new(State::default())));
        let way = Self { arbiter: format!("witness://{addr}"), state: Arc::clone(&state) };
        thread::spawn(move || {
            for caller in listener.incoming().flatten() {
                let mut state = state.lock().unwrap();
                if !state.is_cut
                    && let Ok(called) = TcpStream::connect(witness)
                {
                    join(&caller, &called);
                    join(&called, &caller);
                    state.streams.extend([caller, called]);
                }
            }
        });
        way
    }

    pub(crate) fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.is_cut = true;
        for stream in state.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn mend(&self) {
        self.state.lock().unwrap().is_cut = false;
    }
}

/// Carries what comes from one to the other.
fn join(from: &TcpStream, to: &TcpStream) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
}
