//! One of several addresses that a name stands for: the first that answers, all of them under one deadline.

use socket2::{Domain, Protocol, Socket, Type};
use std::{
    fmt, io,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// None of a name's addresses answered. Names each one, and why.
#[derive(Debug)]
pub struct Unreached {
    /// As it was asked for.
    pub to: String,
    /// The addresses in the order in which they were tried.
    pub tried: Vec<(SocketAddr, io::Error)>,
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = &self.to;
        match &self.tried[..] {
            [] => write!(f, "cannot connect to {to}: it stands for no address"),
            [(addr, error)] if addr.to_string() == *to => write!(f, "cannot connect to {to}: {error}"),
            [(first, error), rest @ ..] => {
                write!(f, "cannot connect to {to}: {first}: {error}")?;
                rest.iter().try_for_each(|(addr, error)| write!(f, "; {addr}: {error}"))
            }
        }
    }
}

impl std::error::Error for Unreached {}

/// Connects to the first of `addresses` that answers, leaving through the address `from` of ours if one is given (its port
/// does not count). `prepare` sets what counts only before the connection. Each address gets an equal share of the time that
/// is left, so that a dead one leaves the others some.
///
/// # Errors
/// [`Unreached`] names every address and why.
pub fn reach(
    to: &str,
    addresses: &[SocketAddr],
    from: Option<SocketAddr>,
    deadline: Instant,
    prepare: impl Fn(&Socket) -> io::Result<()>,
) -> Result<(TcpStream, SocketAddr), Unreached> {
    let mut tried = Vec::new();
    for (index, addr) in addresses.iter().enumerate() {
        let remaining = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let share = deadline.saturating_duration_since(Instant::now()) / remaining;
        match reach_one(*addr, from, share.max(Duration::from_millis(1)), &prepare) {
            Ok(stream) => return Ok((stream, *addr)),
            Err(error) => tried.push((*addr, error)),
        }
    }
    Err(Unreached { to: to.to_owned(), tried })
}

fn reach_one(
    addr: SocketAddr,
    from: Option<SocketAddr>,
    patience: Duration,
    prepare: impl Fn(&Socket) -> io::Result<()>,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    prepare(&socket)?;
    if let Some(from) = from {
        if from.is_ipv4() != addr.is_ipv4() {
            let why = format!("not of the family of {}, the address to connect from", from.ip());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let from = at_port(from, 0);
        socket.bind(&from.into()).map_err(|e| io::Error::new(e.kind(), format!("leaving from {}: {e}", from.ip())))?;
    }
    socket.connect_timeout(&addr.into(), patience).map_err(|error| match error.kind() {
        // Ours; the kernel's own has a code.
        io::ErrorKind::TimedOut if error.raw_os_error().is_none() => io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} s", (patience.as_secs_f64() * 1e3).round() / 1e3),
        ),
        _ => error,
    })?;
    Ok(socket.into())
}

/// The same address with another port; the interface of a link-local one stays.
#[must_use]
pub fn at_port(mut addr: SocketAddr, port: u16) -> SocketAddr {
    addr.set_port(port);
    addr
}
