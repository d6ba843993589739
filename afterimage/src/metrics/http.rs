//! Enough of HTTP/1.1 to be scraped: one request a connection, its head bounded, a deadline for all of it, few connections.
//! httparse reads the head. Whoever talks slowly, or too much, costs a thread of ours for seconds, and the loop nothing.

use super::text::plain;
use node::{
    accepting::accept_until,
    exit::{Code, ExitError},
    repeated::{Repeated, and_more},
    wake::Wake,
};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tracing::{debug, info, warn};

/// Bytes of a request's head at most.
const MAX_HEAD: usize = 8 << 10;
/// Headers of a request at most.
const MAX_HEADERS: usize = 64;
/// For a request to arrive, and for its response to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections at a time; one more is closed at once.
const MAX_CONNECTIONS: usize = 4;
/// Between two tries to listen.
const RETRY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// OpenMetrics text.
pub type Content = Arc<str>;
/// Says how it is now; `None` if the loop does not answer.
type Source = Arc<dyn Fn() -> Option<Content> + Send + Sync>;

/// What an address means that cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfTaken {
    /// Exit code 6: nothing has begun that would suffer.
    Refuse,
    /// A warning and a note, and it is tried again: this process has a VM's network, or is to have it.
    TryAgain,
}

/// The endpoint. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    stop: Arc<Wake>,
    trouble: Arc<Mutex<Option<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves what `source` says at `listen`, as soon as that address can be had.
    pub fn spawn(listen: SocketAddr, if_taken: IfTaken, source: Source) -> anyhow::Result<Self> {
        let now = match if_taken {
            IfTaken::Refuse => Some(bind_now(listen)?),
            IfTaken::TryAgain => None,
        };
        let stop = Wake::new()?;
        let trouble = Arc::new(Mutex::new(None));
        let (stopped, told) = (Arc::clone(&stop), Arc::clone(&trouble));
        let thread = std::thread::Builder::new().name("metrics".into()).spawn(move || {
            if let Some(listener) = now.or_else(|| bind(listen, &stopped, &told)) {
                info!("metrics at http://{}/metrics", listener.local_addr().unwrap_or(listen));
                accept(&listener, &stopped, &source);
            }
        })?;
        Ok(Self { stop, trouble, thread: Some(thread) })
    }

    /// Why nothing is served now.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }
}

/// Whether the address can be had now.
///
/// # Errors
/// It cannot: exit code 6, with what to do.
pub fn look(listen: SocketAddr) -> Result<(), ExitError> {
    bind_now(listen).map(drop)
}

fn bind_now(listen: SocketAddr) -> Result<TcpListener, ExitError> {
    let bound = TcpListener::bind(listen).and_then(|l| l.set_nonblocking(true).map(|()| l));
    bound.map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "`ss -ltnp` names the process that listens there: end it, or take another --metrics"
            }
            _ => "name an address of this host with --metrics",
        };
        ExitError::new(Code::Prerequisite, format!("metrics: listening on {listen}: {error}")).remedy(remedy)
    })
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.raise();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// `None`: stopped before. A predecessor on this host may still have the address.
fn bind(listen: SocketAddr, stop: &Wake, told: &Mutex<Option<String>>) -> Option<TcpListener> {
    loop {
        match bind_now(listen) {
            Ok(listener) => {
                *told.lock() = None;
                return Some(listener);
            }
            Err(ExitError { message, remedy, .. }) => {
                let why = format!("{message} ({}); trying again every second", remedy.unwrap_or_default());
                if told.lock().replace(why.clone()).is_none() {
                    warn!("{why}");
                }
            }
        }
        if poll(&mut [PollFd::new(stop, PollFlags::IN)], Some(&RETRY)).is_ok_and(|n| n > 0) {
            return None;
        }
    }
}

fn accept(listener: &TcpListener, stop: &Wake, source: &Source) {
    let (open, mut said) = (Arc::new(AtomicUsize::new(0)), Repeated::default());
    accept_until(
        "metrics",
        listener,
        stop,
        || listener.accept(),
        |(stream, peer)| {
            if let Err(e) = connected(stream, peer, &open, source)
                && let Some(more) = said.say("thread", Instant::now())
            {
                warn!("metrics: closed a connection: no thread for it: {e}{}", and_more(more));
            }
        },
    );
}

fn connected(stream: TcpStream, peer: SocketAddr, open: &Arc<AtomicUsize>, source: &Source) -> io::Result<()> {
    if open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
        open.fetch_sub(1, Ordering::Relaxed);
        debug!(%peer, "metrics: closed a connection: {MAX_CONNECTIONS} are open already");
        return Ok(());
    }
    let (counted, source) = (Arc::clone(open), Arc::clone(source));
    let spawned = std::thread::Builder::new().name("scrape".into()).spawn(move || {
        if let Err(e) = serve(&stream, &source) {
            debug!(%peer, "metrics: {e}");
        }
        counted.fetch_sub(1, Ordering::Relaxed);
    });
    spawned.map(drop).inspect_err(|_| {
        open.fetch_sub(1, Ordering::Relaxed);
    })
}

fn serve(mut stream: &TcpStream, source: &Source) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let head = read_head(stream)?;
    let response = answer(&head, source);
    stream.write_all(response.as_bytes())?;
    stream.shutdown(Shutdown::Write)
}

/// Until the empty line, [`MAX_HEAD`] bytes, or the deadline.
fn read_head(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + PATIENCE;
    let (mut head, mut chunk) = (Vec::new(), [0; 1024]);
    while head.len() < MAX_HEAD && !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk)? {
            0 => break,
            n => head.extend_from_slice(&chunk[..n]),
        }
    }
    Ok(head)
}

/// The whole response.
fn answer(head: &[u8], source: &Source) -> String {
    const TEXT: &str = "text/plain; charset=utf-8";
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if head.len() >= MAX_HEAD => {
            return response("431 Request Header Fields Too Large", TEXT, "a request's head is at most 8 KiB\n", false);
        }
        _ => return response("400 Bad Request", TEXT, "no HTTP/1 request\n", false),
    }
    let head_only = request.method == Some("HEAD");
    if !head_only && request.method != Some("GET") {
        return response("405 Method Not Allowed", TEXT, "GET /metrics\n", false);
    }
    let path = request.path.unwrap_or("").split('?').next();
    match path {
        Some("/metrics") => {}
        Some("/") => return response("200 OK", TEXT, "afterimage: see /metrics\n", head_only),
        _ => return response("404 Not Found", TEXT, "see /metrics\n", head_only),
    }
    let Some(content) = source() else {
        return response("503 Service Unavailable", TEXT, "the loop does not answer\n", head_only);
    };
    let accept = request.headers.iter().filter(|h| h.name.eq_ignore_ascii_case("accept"));
    let open =
        accept.filter_map(|h| std::str::from_utf8(h.value).ok()).any(|v| v.contains("application/openmetrics-text"));
    if open {
        response("200 OK", "application/openmetrics-text; version=1.0.0; charset=utf-8", &content, head_only)
    } else {
        response("200 OK", "text/plain; version=0.0.4; charset=utf-8", &plain(&content), head_only)
    }
}

fn response(status: &str, content_type: &str, body: &str, head_only: bool) -> String {
    let length = body.len();
    let body = if head_only { "" } else { body };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(request: &str) -> String {
        let source: Source = Arc::new(|| Some("# TYPE a counter\na_total 1\n# EOF\n".into()));
        answer(request.as_bytes(), &source)
    }

    #[test]
    fn only_metrics_are_served_in_the_format_that_was_asked_for() {
        let open = ask("GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0,*/*\r\n\r\n");
        assert!(open.contains("application/openmetrics-text; version=1.0.0") && open.ends_with("# EOF\n"), "{open}");
        let old = ask("GET /metrics?x=1 HTTP/1.0\r\n\r\n");
        assert!(old.contains("version=0.0.4") && old.contains("# TYPE a_total counter"), "{old}");
        let head = ask("HEAD /metrics HTTP/1.1\r\n\r\n");
        assert!(head.ends_with("\r\n\r\n") && !head.contains("Content-Length: 0"), "{head}");
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100));
        let long = format!("GET / HTTP/1.1\r\na: {}", "b".repeat(MAX_HEAD));
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "200"),
            ("GET /etc/passwd HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("GET /metrics HTTP/1.1\r\n", "400"),
            ("\x16\x03\x01", "400"),
            (&many, "400"),
            (&long, "431"),
        ] {
            assert!(ask(request).starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {}", ask(request));
        }
        let stuck: Source = Arc::new(|| None);
        assert!(answer(b"GET /metrics HTTP/1.1\r\n\r\n", &stuck).starts_with("HTTP/1.1 503 "));
    }

    #[test]
    fn hostile_connections_are_few_and_do_not_keep_others_out_for_long() {
        let source: Source = Arc::new(|| Some("x 1\n".into()));
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let server = Server::spawn(address, IfTaken::TryAgain, source).unwrap();
        let connect = || loop {
            if let Ok(stream) = TcpStream::connect(address) {
                return stream;
            }
        };
        // More than are served at a time, and none of them says anything.
        let silent: Vec<TcpStream> = (0..MAX_CONNECTIONS * 2).map(|_| connect()).collect();
        let deadline = Instant::now() + Duration::from_secs(60);
        let heard = loop {
            let mut stream = connect();
            let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
            let mut text = String::new();
            if stream.read_to_string(&mut text).is_ok() && !text.is_empty() {
                break text;
            }
            assert!(Instant::now() < deadline, "never served again");
            std::thread::sleep(Duration::from_millis(50));
        };
        assert!(heard.ends_with("x 1\n"), "{heard}");
        drop(silent);
        drop(server);
        TcpListener::bind(address).unwrap();
    }
    #[test]
    fn a_taken_address_is_refused_or_told_and_waited_for() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let source = || -> Source { Arc::new(|| Some("x 1\n".into())) };
        let refused = Server::spawn(address, IfTaken::Refuse, source()).unwrap_err();
        let refused = refused.downcast::<ExitError>().unwrap();
        assert_eq!(refused.code, Code::Prerequisite);
        assert!(refused.message.contains(&address.to_string()) && refused.remedy.unwrap().contains("--metrics"));
        let server = Server::spawn(address, IfTaken::TryAgain, source()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let until = |what: &str, holds: &dyn Fn() -> bool| {
            while !holds() {
                assert!(Instant::now() < deadline, "{what}");
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        until("it is told", &|| server.trouble().is_some_and(|why| why.contains("ss -ltnp")));
        drop(taken);
        until("it is served once the address is free", &|| server.trouble().is_none());
        TcpStream::connect(address).unwrap();
    }
}
