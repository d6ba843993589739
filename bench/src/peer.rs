//! The second process: this program again, as the other end of every link, so that the two ends share no thread.
//!
//! ```text
//!   first process                          second process (mc-bench peer)
//!   listen on loopback, start it ─────────> connect
//!   request ──────────────────────────────> open its end
//!   <────────────────── opened: port or endpoint
//!   link, measure, close the link             answer until the link closes
//!   <────────────────────────────── done: its account
//!   close ────────────────────────────────> exit (also when the first process dies)
//! ```
//!
//! Requests and replies are lines of JSON.

use crate::{
    beating::{Address, Echo, End, Heard},
    epoch::standby::{self as after_image, StandReport, StandSpec},
    link::{Poll, Port, QUEUE, RcKnobs},
    pong,
    sink::{self, SinkReport},
};
use anyhow::{Context, Result, anyhow, bail};
use mc_core::{
    id::Incarnation,
    slab::SlabPool,
    transport::Transport,
    wire::{beat::BeatKey, rdma::Endpoint},
};
use rustix::{
    process::{Signal, set_parent_process_death_signal},
    rand::{GetRandomFlags, getrandom},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use transport_rdma::RdmaLink;
use transport_tcp::TcpLink;

/// How long the second process may take to start or to answer; an emulated machine is slow, and registers memory.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a link is like, on both sides.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinkSpec {
    /// RDMA: the first process's port and the second one's. TCP otherwise.
    pub ports: Option<(Port, Port)>,
    /// Of the queue pairs.
    pub knobs: RcKnobs,
    /// Bytes of each slab.
    pub slab_bytes: usize,
    /// Slabs that the sink keeps posted.
    pub posts: usize,
    /// How the sink waits.
    pub poll: Poll,
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Answer beats from that address, on a thread, until told to end.
    Beats { port: Option<Port>, address: Address, key: [u8; 32] },
    /// End that.
    EndBeats,
    /// Be the sink of a link; with RDMA, to this endpoint.
    Sink { spec: LinkSpec, incarnation: u64, endpoint: Option<String> },
    /// Be the standby at the other end of a link; with RDMA, to this endpoint.
    Stand { spec: LinkSpec, stand: StandSpec, incarnation: u64, endpoint: Option<String> },
    /// Answer a ping-pong over TCP.
    Echo { poll: Poll },
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Listening(SocketAddr),
    Connected(String),
    Done(SinkReport),
    Stood(StandReport),
    Beating(Address),
    Heard(Heard),
    Failed(String),
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn endpoint_of(text: &str) -> Result<Endpoint> {
    let byte = |at| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(byte).collect();
    Ok(Endpoint::decode(&bytes.context("an endpoint is in hexadecimal digits")?)?)
}

/// A stream of lines of JSON.
#[derive(Debug)]
struct Lines {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Lines {
    fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream.try_clone()?), writer: stream })
    }

    fn send(&mut self, message: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        Ok(self.writer.write_all(&line)?)
    }

    /// `None` at the end.
    fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&line)?))
    }
}

/// The second process, as the first one sees it.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    lines: Lines,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    /// Starts it.
    ///
    /// # Errors
    /// This program cannot be started again, or does not come up.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening on loopback")?;
        listener.set_nonblocking(true)?;
        let program = std::env::current_exe().context("finding this program's file")?;
        let mut command = Command::new(program);
        command.args(["peer", "--control", &listener.local_addr()?.to_string()]);
        // A ^C at our terminal is ours: the peer is needed to finish what is under way.
        let child = command.stdin(Stdio::null()).process_group(0).spawn();
        let mut child = child.context("starting this program again as the peer")?;
        let start = Instant::now();
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return Err(error.into()),
                Err(_) => {}
            }
            if child.try_wait()?.is_some() || start.elapsed() > PATIENCE {
                let _ = child.kill();
                let _ = child.wait();
                bail!("the peer process did not come up");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { child, lines: Lines::new(stream)? })
    }

    fn reply(&mut self) -> Result<Reply> {
        let reply = self.lines.receive().context("the peer process does not answer")?;
        match reply.context("the peer process is gone")? {
            Reply::Failed(why) => Err(anyhow!("the peer process: {why}")),
            reply => Ok(reply),
        }
    }

    fn listening(&mut self) -> Result<SocketAddr> {
        match self.reply()? {
            Reply::Listening(at) => Ok(at),
            other => bail!("the peer process answers {other:?}"),
        }
    }

    /// Opens a link whose other end is a sink. Close it by dropping it, then ask for [`Peer::account`].
    ///
    /// # Errors
    /// Either end cannot be opened.
    pub fn link(&mut self, spec: &LinkSpec) -> Result<(Box<dyn Transport>, Incarnation)> {
        let incarnation = draw()?;
        let sink = |endpoint| Request::Sink { spec: spec.clone(), incarnation: incarnation.0, endpoint };
        Ok((self.open(spec, incarnation, sink)?, incarnation))
    }

    /// Opens a link whose other end is a standby. Close it by dropping it, then ask for [`Peer::stood`].
    ///
    /// # Errors
    /// Either end cannot be opened.
    pub fn stand(&mut self, spec: &LinkSpec, stand: StandSpec) -> Result<(Box<dyn Transport>, Incarnation)> {
        let incarnation = draw()?;
        let request = |endpoint| Request::Stand { spec: spec.clone(), stand, incarnation: incarnation.0, endpoint };
        Ok((self.open(spec, incarnation, request)?, incarnation))
    }

    /// What the standby has to say, once the link was dropped.
    ///
    /// # Errors
    /// It failed.
    pub fn stood(&mut self) -> Result<StandReport> {
        match self.reply()? {
            Reply::Stood(report) => Ok(report),
            other => bail!("the peer process answers {other:?}"),
        }
    }

    fn open(
        &mut self,
        spec: &LinkSpec,
        incarnation: Incarnation,
        request: impl FnOnce(Option<String>) -> Request,
    ) -> Result<Box<dyn Transport>> {
        let Some((near, far)) = &spec.ports else {
            self.lines.send(&request(None))?;
            let stream = TcpStream::connect(self.listening()?)?;
            return Ok(Box::new(TcpLink::new(stream, spec.slab_bytes, "the peer process")?));
        };
        let prepared = near.prepare(incarnation, spec.knobs)?;
        self.lines.send(&request(Some(hex(&prepared.endpoint().encode()))))?;
        let Reply::Connected(theirs) = self.reply()? else { bail!("the peer process does not connect") };
        Ok(Box::new(prepared.connect(&endpoint_of(&theirs)?, far.device.clone(), true)?))
    }

    /// What the sink took, once the link was dropped.
    ///
    /// # Errors
    /// It failed.
    pub fn account(&mut self) -> Result<SinkReport> {
        match self.reply()? {
            Reply::Done(report) => Ok(report),
            other => bail!("the peer process answers {other:?}"),
        }
    }

    /// Has beats answered. Its address for them.
    ///
    /// # Errors
    /// It cannot open its end.
    pub fn beats(&mut self, port: Option<&Port>, address: Address, key: BeatKey) -> Result<Address> {
        self.lines.send(&Request::Beats { port: port.cloned(), address, key: key.0 })?;
        match self.reply()? {
            Reply::Beating(address) => Ok(address),
            other => bail!("the peer process answers {other:?}"),
        }
    }

    /// Ends that. What it heard.
    ///
    /// # Errors
    /// Its keepalive failed.
    pub fn end_beats(&mut self) -> Result<Heard> {
        self.lines.send(&Request::EndBeats)?;
        match self.reply()? {
            Reply::Heard(heard) => Ok(heard),
            other => bail!("the peer process answers {other:?}"),
        }
    }

    /// A connection on which every 64 bytes come back.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn echo(&mut self, poll: Poll) -> Result<TcpStream> {
        self.lines.send(&Request::Echo { poll })?;
        Ok(TcpStream::connect(self.listening()?)?)
    }
}

fn draw() -> Result<Incarnation> {
    let mut bytes = [0; 8];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(Incarnation(u64::from_le_bytes(bytes) | 1))
}

/// The life of the second process.
///
/// # Errors
/// The control connection fails. What goes wrong with a measurement is reported over it.
pub fn serve(control: SocketAddr) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // If the first process died before that, nobody listens.
    let lines = Lines::new(TcpStream::connect(control)?)?;
    let mut second = Second { lines, pool: new_pool(1 << 20), beats: None };
    while let Some(request) = second.lines.receive()? {
        let reply = second.answer(request).unwrap_or_else(|error| Reply::Failed(format!("{error:#}")));
        second.lines.send(&reply)?;
    }
    Ok(())
}

fn new_pool(slab_bytes: usize) -> SlabPool {
    SlabPool::new(slab_bytes, QUEUE * slab_bytes)
}

/// What the second process keeps from one request to the next.
struct Second {
    lines: Lines,
    pool: SlabPool,
    beats: Option<Echo>,
}

impl Second {
    fn answer(&mut self, request: Request) -> Result<Reply> {
        match request {
            Request::Echo { poll } => {
                pong::echo(accept(&mut self.lines)?, poll)?;
                Ok(Reply::Done(SinkReport::default()))
            }
            Request::Sink { spec, incarnation, endpoint } => {
                if self.pool.slab_size() != spec.slab_bytes {
                    self.pool = new_pool(spec.slab_bytes);
                }
                let mut link = open(&mut self.lines, &spec, Incarnation(incarnation), endpoint.as_deref())?;
                Ok(Reply::Done(sink::run(link.as_mut(), spec.posts, &mut self.pool, spec.poll)?))
            }
            Request::Stand { spec, stand, incarnation, endpoint } => {
                let incarnation = Incarnation(incarnation);
                let link = open(&mut self.lines, &spec, incarnation, endpoint.as_deref())?;
                Ok(Reply::Stood(after_image::run(link, incarnation, stand, spec.slab_bytes)?))
            }
            Request::Beats { port, address, key } => {
                let mut end = End::open(port.as_ref(), BeatKey(key))?;
                let ours = end.address()?;
                end.meet(address)?;
                self.beats = Some(Echo::start(end, BeatKey(key)));
                Ok(Reply::Beating(ours))
            }
            Request::EndBeats => {
                let beats = self.beats.take().context("there are no beats to end")?;
                Ok(Reply::Heard(beats.end()?))
            }
        }
    }
}

fn open(
    lines: &mut Lines,
    spec: &LinkSpec,
    incarnation: Incarnation,
    endpoint: Option<&str>,
) -> Result<Box<dyn Transport>> {
    Ok(match endpoint {
        None => Box::new(TcpLink::new(accept(lines)?, spec.slab_bytes, "the first process")?),
        Some(theirs) => Box::new(connect(lines, spec, incarnation, theirs)?),
    })
}

fn accept(lines: &mut Lines) -> Result<TcpStream> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    lines.send(&Reply::Listening(listener.local_addr()?))?;
    Ok(listener.accept()?.0)
}

fn connect(lines: &mut Lines, spec: &LinkSpec, incarnation: Incarnation, theirs: &str) -> Result<RdmaLink> {
    let (near, far) = spec.ports.as_ref().context("an endpoint, but no ports")?;
    let prepared = far.prepare(incarnation, spec.knobs)?;
    let ours = hex(&prepared.endpoint().encode());
    let link = prepared.connect(&endpoint_of(theirs)?, near.device.clone(), false)?;
    lines.send(&Reply::Connected(ours))?;
    Ok(link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::wire::rdma::Queues;

    #[test]
    fn endpoints_travel_as_text() {
        let endpoint = Endpoint {
            gid: [7; 16],
            lid: 3,
            mtu: 4096,
            receives: 512,
            psn: 9,
            queues: Queues::new(&[5, 6]).unwrap(),
            beats: None,
            incarnation: Incarnation(11),
        };
        assert_eq!(endpoint_of(&hex(&endpoint.encode())).unwrap(), endpoint);
        for wrong in ["", "0", "zz", "é€", "00"] {
            assert!(endpoint_of(wrong).is_err(), "{wrong}");
        }
    }
}
