//! Connections of a listener on the control plane: bytes in, bytes out. hyper speaks HTTP/1.1; every limit and deadline is here,
//! and whoever meets one hears so as a problem document. A connection is for one request.

use crate::{
    answer::Answer,
    head::{Head, look},
    problem::{Kind, Problem},
    seats::{Seat, Seats},
};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Bytes, Incoming},
    header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use node::{
    repeated::{Repeated, and_more},
    units::spoken,
};
use std::{convert::Infallible, io, pin::Pin, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Notify, Semaphore},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

/// Bytes of a request's head at most.
const MAX_HEAD: usize = 16 << 10;
/// Bytes of a request's body at most.
const MAX_BODY: usize = 64 << 10;
/// For a head to arrive; then for a body; then, once there is an answer, for that to be taken.
const PATIENCE: Duration = Duration::from_secs(10);
/// For whoever is turned away to take the reason, and how many are told at a time.
const TURNED_AWAY: (Duration, usize) = (Duration::from_secs(1), 16);
/// After a failed accept: the first rest, and the longest.
const REST: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What was asked.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// The path, with its query.
    pub(crate) target: String,
    /// The header Accept.
    pub(crate) accept: String,
    pub(crate) body: Bytes,
}

pub(crate) type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// Who answers on a listener.
pub(crate) trait Site: Send + Sync + 'static {
    /// For the log.
    const NAME: &'static str;
    /// Connections at a time; one more gets the place of one that has not asked yet, or is turned away.
    const CONNECTIONS: usize;
    /// Answers. It must wait for nothing but tokio.
    fn answer(&self, asked: Asked) -> Answering;
    /// What whoever sends a line of JSON is told, without HTTP; none: that it is no request.
    fn older(&self) -> Option<Vec<u8>> {
        None
    }
}

/// Where connections come from.
pub(crate) trait Accept: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + 'static;
    /// The next one, and why whoever it is from may not ask.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Option<Problem>)>> + Send;
}

/// Accepts and serves, until it is dropped.
pub(crate) async fn serve<T: Site, A: Accept>(site: Arc<T>, listener: A) {
    let (seats, away) = (Seats::new(T::CONNECTIONS), Arc::new(Semaphore::new(TURNED_AWAY.1)));
    let (mut said, mut rest) = (Repeated::default(), Duration::ZERO);
    let mut say = |what: &str, why: &str| {
        if let Some(more) = said.say(why, std::time::Instant::now()) {
            warn!("{}: {what}: {why}{}", T::NAME, and_more(more));
        }
    };
    loop {
        match listener.accept().await {
            Ok((stream, stranger)) => {
                rest = Duration::ZERO;
                let problem = match stranger {
                    Some(problem) => problem,
                    None => match place(&seats).await {
                        Some(seat) => {
                            tokio::spawn(seated(stream, Arc::clone(&site), seat, Arc::clone(&away)));
                            continue;
                        }
                        None => {
                            Problem::new(Kind::Busy, format!("{} requests are being answered already", T::CONNECTIONS))
                        }
                    },
                };
                say("a connection was turned away", &problem.detail);
                if let Ok(place) = Arc::clone(&away).try_acquire_owned() {
                    tokio::spawn(async move {
                        let _place = place;
                        let (_, write) = tokio::io::split(stream);
                        let _ = timeout(TURNED_AWAY.0, send(write, &in_bytes(&Answer::problem(&problem)))).await;
                    });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            // Out of file descriptors, as a rule: the connection stays in the backlog, and it fails at once again.
            Err(error) => {
                say("cannot accept a connection", &error.to_string());
                rest = (rest * 2).clamp(REST.0, REST.1);
                sleep(rest).await;
            }
        }
    }
}

/// A newcomer's place. Before an idle one loses it, those that have come and asked are heard.
async fn place(seats: &Arc<Seats>) -> Option<Seat> {
    if seats.is_full() {
        tokio::task::yield_now().await;
    }
    seats.take()
}

/// One connection, as long as it has its place, and a moment longer to take the reason why not.
async fn seated<T: Site, S: AsyncRead + AsyncWrite + Send + 'static>(
    stream: S,
    site: Arc<T>,
    seat: Seat,
    away: Arc<Semaphore>,
) {
    let seat = Arc::new(seat);
    let gone = async {
        seat.lost().await;
        if let Ok(_place) = away.try_acquire() {
            sleep(TURNED_AWAY.0).await;
        }
    };
    tokio::select! {
        served = converse(stream, site, Arc::clone(&seat)) => {
            if let Err(error) = served {
                debug!("{}: {error}", T::NAME);
            }
        }
        () = gone => {}
    }
}

fn gave_way() -> Problem {
    Problem::new(Kind::Busy, "the place of this connection, which had not asked anything yet, was needed; try again")
}

/// One request, and its answer.
async fn converse<T: Site, S: AsyncRead + AsyncWrite + Send + 'static>(
    stream: S,
    site: Arc<T>,
    seat: Arc<Seat>,
) -> io::Result<()> {
    let (mut read, write) = tokio::io::split(stream);
    let mut bytes = Vec::new();
    let slow =
        || Head::Bad(Problem::new(Kind::TooSlow, format!("a request's head has {} to arrive", spoken(PATIENCE))));
    let head = tokio::select! {
        head = timeout(PATIENCE, hear(&mut read, &mut bytes)) => head.unwrap_or_else(|_| Ok(slow()))?,
        () = seat.lost() => Head::Bad(gave_way()),
    };
    let answer = match head {
        Head::Nobody | Head::More => return Ok(()),
        Head::Whole => {
            return by_hyper(tokio::io::join(io::Cursor::new(bytes).chain(read), write), site, seat).await;
        }
        Head::Older => site.older().unwrap_or_else(|| in_bytes(&Answer::problem(&no_http()))),
        Head::Bad(problem) => in_bytes(&Answer::problem(&problem)),
    };
    timeout(PATIENCE, send(write, &answer)).await?
}

fn no_http() -> Problem {
    Problem::new(Kind::BadRequest, "the bytes are no HTTP/1.1 request")
}

/// Until it is clear what the bytes are.
async fn hear(read: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>) -> io::Result<Head> {
    let mut chunk = [0; 4096];
    loop {
        let n = read.read(&mut chunk).await?;
        bytes.extend_from_slice(&chunk[..n]);
        match look(bytes, MAX_HEAD, n == 0) {
            Head::More if n > 0 => {}
            head => return Ok(head),
        }
    }
}

async fn send(mut write: impl AsyncWrite + Unpin, bytes: &[u8]) -> io::Result<()> {
    write.write_all(bytes).await?;
    write.shutdown().await
}

/// An answer to what is no request: hyper has not seen it.
fn in_bytes(answer: &Answer) -> Vec<u8> {
    let reason = StatusCode::from_u16(answer.status).ok().and_then(|status| status.canonical_reason());
    let head = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        answer.status,
        reason.unwrap_or("Error"),
        answer.content_type,
        answer.body.len()
    );
    [head.as_bytes(), &answer.body].concat()
}

async fn by_hyper<T: Site>(io: impl AsyncRead + AsyncWrite + Unpin, site: Arc<T>, seat: Arc<Seat>) -> io::Result<()> {
    let answered = Arc::new(Notify::new());
    let service = service_fn(|request| {
        let (site, seat, answered) = (Arc::clone(&site), Arc::clone(&seat), Arc::clone(&answered));
        async move {
            let answer = respond(&*site, &seat, request).await;
            answered.notify_one();
            Ok::<_, Infallible>(in_http(answer))
        }
    });
    let mut server = http1::Builder::new();
    // Whoever has said all may close its side at once. The head was read before: its time is over.
    let connection = server.keep_alive(false).half_close(true).serve_connection(TokioIo::new(io), service);
    let untaken = async {
        answered.notified().await;
        sleep(PATIENCE).await;
    };
    tokio::select! {
        served = connection => served.map_err(io::Error::other),
        () = untaken => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn respond<T: Site>(site: &T, seat: &Seat, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let text = |value: Option<&HeaderValue>| value.and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let body = tokio::select! {
        body = whole(body) => body.and_then(|body| if seat.asks() { Ok(body) } else { Err(gave_way()) }),
        () = seat.lost() => Err(gave_way()),
    };
    match body {
        Ok(body) => {
            let (method, accept) = (head.method.to_string(), text(head.headers.get(ACCEPT)));
            site.answer(Asked { method, target, accept, body }).await
        }
        Err(problem) => Answer::problem(&problem.instance(head.uri.path())),
    }
}

async fn whole(body: Incoming) -> Result<Bytes, Problem> {
    let too_long = || Problem::new(Kind::BodyTooLong, format!("a request's body has at most {MAX_BODY} bytes"));
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_long());
    }
    match timeout(PATIENCE, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_long()),
        Ok(Err(error)) => Err(Problem::new(Kind::BadRequest, format!("the request's body: {error}"))),
        Err(_) => Err(Problem::new(Kind::TooSlow, format!("a request's body has {} to arrive", spoken(PATIENCE)))),
    }
}

fn in_http(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    if let Some(allow) = answer.allow.and_then(|allow| HeaderValue::from_str(&allow).ok()) {
        response.headers_mut().insert(ALLOW, allow);
    }
    response
}
