//! A way to a witness or a standby that can fail, for one node alone: a proxy.

use crate::world::free_addr;
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
};

/// See the module. Its threads end with the test process.
pub(crate) struct Way {
    pub(crate) addr: SocketAddr,
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    is_cut: bool,
    swallows: bool,
    streams: Vec<TcpStream>,
}

impl Way {
    pub(crate) fn to(called: SocketAddr) -> Self {
        let way = Self { addr: free_addr(), shared: Arc::default() };
        let (listener, shared) = (TcpListener::bind(way.addr).unwrap(), Arc::clone(&way.shared));
        thread::spawn(move || {
            for caller in listener.incoming().flatten() {
                let mut state = shared.0.lock().unwrap();
                if !state.is_cut
                    && let Ok(called) = TcpStream::connect(called)
                {
                    join(&caller, &called, &shared);
                    join(&called, &caller, &shared);
                    state.streams.extend([caller, called]);
                }
            }
        });
        way
    }

    /// To this arbiter, a witness.
    pub(crate) fn to_witness(arbiter: &str) -> Self {
        Self::to(arbiter.strip_prefix("witness://").expect("a witness").parse().unwrap())
    }

    /// As an arbiter.
    pub(crate) fn arbiter(&self) -> String {
        format!("witness://{}", self.addr)
    }

    /// Connections end, and none is made.
    pub(crate) fn cut(&self) {
        let mut state = self.shared.0.lock().unwrap();
        state.is_cut = true;
        for stream in state.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Connections stay, and nothing passes.
    pub(crate) fn swallow(&self) {
        self.shared.0.lock().unwrap().swallows = true;
    }

    pub(crate) fn mend(&self) {
        let mut state = self.shared.0.lock().unwrap();
        (state.is_cut, state.swallows) = (false, false);
        self.shared.1.notify_all();
    }
}

/// Carries what comes from one to the other.
fn join(from: &TcpStream, to: &TcpStream, shared: &Arc<(Mutex<State>, Condvar)>) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            drop(shared.1.wait_while(shared.0.lock().unwrap(), |state| state.swallows).unwrap());
            if to.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
