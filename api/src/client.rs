//! This program's own questions: one request, on a runtime of its own that ends with the answer.

use crate::{
    answer,
    older::is_older,
    request::{Request, Response},
    route::line,
    socket::{ControlError, failed},
    sockets::side_of,
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request as HttpRequest,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType,
    sockopt::{Timeout, set_socket_timeout},
};
use std::{
    error::Error,
    io,
    os::unix::net::UnixStream as StdStream,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    runtime::Builder,
};

/// Bytes of a response at most. Measurements are a dozen histograms; each could have 30,000 buckets of 24 bytes, and has some
/// thousands.
const MAX_RESPONSE: usize = 16 << 20;
/// Bytes of an answer that are kept for an error.
const KEPT: usize = 80;
/// For a place to come free at a process that has none, and how long to wait before it is asked again.
const A_MOMENT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);

/// Connects. A listener that is stopped, and whose queue is full, would be waited for without end.
pub(crate) fn connect(path: &Path, timeout: Duration) -> Result<StdStream, ControlError> {
    let connect = || {
        let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(StdStream::from(socket))
    };
    connect().map_err(failed("connecting", path))
}

/// Sends one request and waits for its response, `timeout` at most. A process that has no place for one more connection has not
/// heard the request: it is asked again for a moment.
#[expect(clippy::needless_pass_by_value, reason = "callers make a request, send it, and have no more use for it")]
pub fn ask(path: &Path, request: Request, timeout: Duration) -> Result<Response, ControlError> {
    let until = Instant::now() + timeout.min(A_MOMENT);
    loop {
        match ask_once(path, &request, timeout)? {
            Heard::Busy(_) if Instant::now() < until => std::thread::sleep(PAUSE),
            Heard::Busy(response) | Heard::Answer(response) => return Ok(response),
        }
    }
}

/// What came back.
enum Heard {
    Answer(Response),
    /// That there is no place: nothing was heard there.
    Busy(Response),
}

fn ask_once(path: &Path, request: &Request, timeout: Duration) -> Result<Heard, ControlError> {
    let stream = connect(path, timeout)?;
    stream.set_nonblocking(true).map_err(failed("asking", path))?;
    let runtime = Builder::new_current_thread().enable_io().enable_time().build();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let asked = runtime.map_err(failed("asking", path))?.block_on(async {
        let stream = Tee { stream: UnixStream::from_std(stream).map_err(Trouble::from)?, heard: Arc::clone(&heard) };
        let exchange = exchange(stream, written(path, request)?);
        tokio::time::timeout(timeout, exchange).await.map_err(|_| Trouble::Io(io::ErrorKind::TimedOut.into()))?
    });
    let heard = std::mem::take(&mut *heard.lock());
    let wrong = |why: String| ControlError::answer(path, &heard, why);
    match asked {
        Ok((status, content_type, body)) => {
            let response = answer::read(request, status, &content_type, &body);
            let response = response.map_err(|why| ControlError::answer(path, &body, why))?;
            Ok(if answer::is_busy(&content_type, &body) { Heard::Busy(response) } else { Heard::Answer(response) })
        }
        Err(_) if is_older(&heard) => Err(ControlError::Older { path: path.to_owned() }),
        Err(Trouble::Io(source)) => Err(failed("waiting for the answer", path)(source)),
        Err(Trouble::Other(why)) => Err(wrong(why)),
    }
}

/// Why there is no answer.
enum Trouble {
    Io(io::Error),
    Other(String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<hyper::Error> for Trouble {
    fn from(error: hyper::Error) -> Self {
        // Never sent: the connection was closed before.
        if error.is_canceled() {
            return Self::Io(io::ErrorKind::ConnectionReset.into());
        }
        let cause = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        cause.map_or_else(|| Self::Other(error.to_string()), |cause| Self::Io(cause.kind().into()))
    }
}

/// The request as HTTP has it.
fn written(path: &Path, request: &Request) -> Result<HttpRequest<Full<Bytes>>, Trouble> {
    // A witness's socket is of no VM, and its routes name none.
    let vm = side_of(path).map(|(vm, _)| vm.to_string());
    let (method, target, body) = line(request, &vm.unwrap_or_default());
    let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
    let http = HttpRequest::builder().method(method).uri(target).header(HOST, "localhost");
    let http = http.header(CONTENT_TYPE, "application/json").body(Full::new(body));
    http.map_err(|error| Trouble::Other(error.to_string()))
}

/// The status, the content type and the body.
async fn exchange(stream: Tee, request: HttpRequest<Full<Bytes>>) -> Result<(u16, String, Bytes), Trouble> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the runtime; what is wrong with it, the sender hears.
    let _connection = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let (status, content_type) = (response.status().as_u16(), content_type.unwrap_or_default().to_owned());
    let body = Limited::new(response.into_body(), MAX_RESPONSE).collect().await;
    let body = body.map_err(|error| Trouble::Other(error.to_string()))?;
    Ok((status, content_type, body.to_bytes()))
}

/// Keeps the first bytes that come: of an answer that is no HTTP, hyper does not say what it was.
struct Tee {
    stream: UnixStream,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Tee {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, into));
        let mut heard = self.heard.lock();
        let left = KEPT.saturating_sub(heard.len());
        heard.extend(into.filled()[before..].iter().take(left));
        Poll::Ready(read)
    }
}

impl AsyncWrite for Tee {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
