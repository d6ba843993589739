//! The metrics endpoint: `GET /metrics`, and nothing else, on the control plane beside the control socket.

use super::text::plain;
use crate::{
    answer::Answer,
    plane::{self, Task},
    problem::{Kind, Problem},
    serve::{Accept, Answering, Asked, Site, serve},
};
use node::exit::{Code, ExitError};
use parking_lot::Mutex;
use std::{
    future::Future,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    pin::Pin,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tracing::{error, info, warn};

/// Between two tries to listen.
const RETRY: Duration = Duration::from_secs(1);
const TEXT: &str = "text/plain; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// OpenMetrics text.
pub type Content = Arc<str>;
/// Says how it is now; `None` if the main loop does not answer. It must wait for nothing but tokio.
pub type Source = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Option<Content>> + Send>> + Send + Sync>;

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
    trouble: Arc<Mutex<Option<String>>>,
    _task: Task,
}

impl Server {
    /// Serves what `source` says at `listen`, as soon as that address can be had.
    pub fn spawn(listen: SocketAddr, if_taken: IfTaken, source: Source) -> anyhow::Result<Self> {
        let now = match if_taken {
            IfTaken::Refuse => Some(bind_now(listen)?),
            IfTaken::TryAgain => None,
        };
        let trouble = Arc::new(Mutex::new(None));
        let told = Arc::clone(&trouble);
        let task = plane::spawn(async move {
            let listener = match now {
                Some(listener) => listener,
                None => bind(listen, &told).await,
            };
            info!("metrics at http://{}/metrics", listener.local_addr().unwrap_or(listen));
            match TcpListener::from_std(listener) {
                Ok(listener) => serve(Arc::new(Endpoint(source)), listener).await,
                Err(error) => error!("metrics: {error}"),
            }
        })?;
        Ok(Self { trouble, _task: task })
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

fn bind_now(listen: SocketAddr) -> Result<StdListener, ExitError> {
    let bound = StdListener::bind(listen).and_then(|l| l.set_nonblocking(true).map(|()| l));
    bound.map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "`ss -ltnp` names the process that listens there: stop it, or choose another --metrics"
            }
            _ => "--metrics needs an address of this host",
        };
        ExitError::new(Code::Prerequisite, format!("metrics: listening on {listen}: {error}")).remedy(remedy)
    })
}

/// A predecessor on this host may still have the address.
async fn bind(listen: SocketAddr, told: &Mutex<Option<String>>) -> StdListener {
    loop {
        match bind_now(listen) {
            Ok(listener) => {
                *told.lock() = None;
                return listener;
            }
            Err(ExitError { message, remedy, .. }) => {
                let why = format!("{message} ({}); trying again every second", remedy.unwrap_or_default());
                if told.lock().replace(why.clone()).is_none() {
                    warn!("{why}");
                }
            }
        }
        sleep(RETRY).await;
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Option<Problem>)> {
        // The method of the type, not of this trait.
        Self::accept(self).await.map(|(stream, _)| (stream, None))
    }
}

struct Endpoint(Source);

impl Site for Endpoint {
    const NAME: &'static str = "metrics";
    const CONNECTIONS: usize = 4;

    fn answer(&self, asked: Asked) -> Answering {
        let source = Arc::clone(&self.0);
        Box::pin(async move {
            match wanted(&asked) {
                Err(answer) => answer,
                Ok(format) => match source().await {
                    Some(content) => format.of(&content),
                    None => Answer::problem(&Problem::new(Kind::Stalled, "the main loop does not answer")),
                },
            }
        })
    }
}

/// The two text formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    OpenMetrics,
    Plain,
}

impl Format {
    fn of(self, content: &str) -> Answer {
        match self {
            Self::OpenMetrics => text(OPENMETRICS, content.to_owned()),
            Self::Plain => text(PLAIN, plain(content)),
        }
    }
}

fn text(content_type: &'static str, body: String) -> Answer {
    Answer { status: 200, content_type, allow: None, body: body.into_bytes() }
}

/// In which format the metrics are wanted; or the answer, if they are not.
fn wanted(asked: &Asked) -> Result<Format, Answer> {
    if !matches!(&*asked.method, "GET" | "HEAD") {
        let problem = Problem::new(Kind::MethodNotAllowed, "GET /metrics is all there is");
        return Err(Answer { allow: Some("GET".to_owned()), ..Answer::problem(&problem) });
    }
    match asked.target.split('?').next() {
        Some("/metrics") if asked.accept.contains("application/openmetrics-text") => Ok(Format::OpenMetrics),
        Some("/metrics") => Ok(Format::Plain),
        Some("/") => Err(text(TEXT, "afterimage: see /metrics\n".to_owned())),
        _ => Err(Answer::problem(&Problem::new(Kind::NotFound, "see /metrics"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        net::TcpStream,
        time::Instant,
    };

    fn source(text: &'static str) -> Source {
        Arc::new(move || Box::pin(std::future::ready(Some(text.into()))))
    }

    #[test]
    fn only_metrics_are_served_in_the_format_that_was_asked_for() {
        let ask = |method: &str, target: &str, accept: &str| {
            let (method, target, accept) = (method.to_owned(), target.to_owned(), accept.to_owned());
            wanted(&Asked { method, target, accept, body: Default::default() }).map_err(|answer| answer.status)
        };
        let open = "application/openmetrics-text;version=1.0.0,*/*";
        assert_eq!(ask("GET", "/metrics", open), Ok(Format::OpenMetrics));
        assert_eq!(ask("GET", "/metrics?x=1", ""), Ok(Format::Plain));
        assert_eq!(ask("HEAD", "/metrics", ""), Ok(Format::Plain));
        assert_eq!(
            [ask("GET", "/", ""), ask("GET", "/etc/passwd", ""), ask("POST", "/metrics", "")],
            [200, 404, 405].map(Err)
        );
        let content = "# TYPE a counter\na_total 1\n# EOF\n";
        assert_eq!(Format::OpenMetrics.of(content).body, content.as_bytes());
        assert!(String::from_utf8(Format::Plain.of(content).body).unwrap().contains("# TYPE a_total counter"));
    }

    /// The whole answer, if there is one.
    fn heard(address: SocketAddr, request: &[u8]) -> Option<String> {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.write_all(request).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        (!text.is_empty()).then_some(text)
    }

    #[test]
    fn hostile_connections_are_few_and_keep_nobody_out() {
        let address = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let server = Server::spawn(address, IfTaken::TryAgain, source("x 1\n")).unwrap();
        let connect = || loop {
            if let Ok(stream) = TcpStream::connect(address) {
                return stream;
            }
        };
        // More than are served at a time, and none of them says anything.
        let silent: Vec<TcpStream> = (0..Endpoint::CONNECTIONS * 2).map(|_| connect()).collect();
        let metrics = heard(address, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        assert!(metrics.contains("text/plain; version=0.0.4") && metrics.ends_with("\r\n\r\nx 1\n"), "{metrics}");
        let told = heard(address, b"\x16\x03\x01\r\n").unwrap();
        assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("no HTTP/1.1 request"), "{told}");
        drop(silent);
        drop(server);
        StdListener::bind(address).unwrap();
    }

    #[test]
    fn a_loop_that_does_not_answer_is_named() {
        let address = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let stuck: Source = Arc::new(|| Box::pin(std::future::ready(None)));
        let _server = Server::spawn(address, IfTaken::Refuse, stuck).unwrap();
        let told = heard(address, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        assert!(told.starts_with("HTTP/1.1 504 ") && told.contains("the main loop does not answer"), "{told}");
    }

    #[test]
    fn a_taken_address_is_refused_or_told_and_waited_for() {
        let taken = StdListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let refused = Server::spawn(address, IfTaken::Refuse, source("x 1\n")).unwrap_err();
        let refused = refused.downcast::<ExitError>().unwrap();
        assert_eq!(refused.code, Code::Prerequisite);
        assert!(refused.message.contains(&address.to_string()) && refused.remedy.unwrap().contains("--metrics"));
        let server = Server::spawn(address, IfTaken::TryAgain, source("x 1\n")).unwrap();
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
