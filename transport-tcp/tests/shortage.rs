//! A process that has no file descriptor left. Alone in its process: the limit is everybody's.

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};
use transport_tcp::session::{Listener, SessionError, SessionOptions};

/// No file descriptor above those that are open.
fn exhaust() -> Rlimit {
    let before = getrlimit(Resource::Nofile);
    let next = u64::try_from(File::open("/dev/null").unwrap().as_raw_fd()).unwrap();
    setrlimit(Resource::Nofile, Rlimit { current: Some(next), ..before }).unwrap();
    before
}

#[test]
fn the_listener_rests_and_then_goes_on() {
    let options = SessionOptions { deadline: Duration::from_secs(60), ..SessionOptions::default() };
    let mut listener = Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), options).unwrap();
    let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(listener.local_addr()).unwrap()).collect();
    let before = exhaust();
    let error = listener.accept(Duration::ZERO).unwrap_err();
    assert!(matches!(error, SessionError::Accept { .. }), "{error}");
    assert!(error.to_string().contains("Too many open files"), "{error}");
    // Its owner's loop is not woken up again and again, and nothing is tried meanwhile.
    let ready = |listener: &Listener| {
        let mut fds = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap()
    };
    assert_eq!(ready(&listener), 0);
    let mut errors = 0;
    for _ in 0..100_000 {
        errors += usize::from(listener.accept(Duration::ZERO).is_err());
    }
    assert!(errors < 1000, "{errors}");

    setrlimit(Resource::Nofile, before).unwrap();
    drop(clients);
    for _ in 0..3 {
        // It waits for its own rest, too.
        let told = loop {
            match listener.accept(Duration::from_secs(30)) {
                Err(SessionError::Accept { .. }) => {}
                told => break told,
            }
        };
        assert!(matches!(told, Err(SessionError::Closed { .. })), "{told:?}");
    }

    // A newcomer gets the descriptor of whoever says nothing.
    let _idle = TcpStream::connect(listener.local_addr()).unwrap();
    assert!(listener.accept(Duration::ZERO).unwrap().is_none());
    let _newcomer = TcpStream::connect(listener.local_addr()).unwrap();
    let before = exhaust();
    let told = listener.accept(Duration::ZERO);
    assert!(matches!(told, Err(SessionError::Crowded { .. })), "{told:?}");
    assert!(listener.accept(Duration::ZERO).unwrap().is_none());
    setrlimit(Resource::Nofile, before).unwrap();
}
