//! In a VM: one end of a link, which talks, checks what it hears, and says how it went.
//!
//! ```text
//!            the file SESSION.stop              all sent and taken; all heard          SESSION.quit
//!   Talking ──────────────────────> Finishing ─────────────────────────────> Complete ──────────────> revokes ──> Ended
//!      │                                │                                        │
//!      └────────────────────────────────┴──────── the link is down ──────────────┴──────> Down ── SESSION.quit ──> Ended
//! ```
//!
//! Both ends talk at the same time, at an easy pace. RC tells nothing of a dead peer to an end that has nothing on the wire, and
//! a slab that waits for a slot is not, nor is what was submitted after it. So no slab is begun before the peer has said, in a
//! note, that there is room for it; and a note goes out every now and then, whatever happens.

use crate::{
    beats::{self, Watch},
    items::{Items, SLAB},
    said::{Counts, Down, Said, Up},
};
use anyhow::{Context, ensure};
use mc_core::{
    id::Incarnation,
    slab::SlabPool,
    transport::{Completion, LinkError, Op, Rejected, Resumable, Transport},
    wire::{
        control::Control,
        rdma::{Beats, ENDPOINT_LEN, Endpoint},
    },
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    thread::sleep,
    time::{Duration, Instant},
};
use transport_rdma::{
    Prepared, RcOptions, RdmaLink, UdAddress, UdKeepalive,
    device::{Choice, Wish, choose},
};

/// Where `a` awaits `b`, for the endpoints alone.
const PORT: u16 = 7461;
/// At most one item is begun in this time.
const PACE: Duration = Duration::from_millis(5);
/// At least one record is posted in this time.
const NOTE: Duration = Duration::from_millis(40);
/// Slabs under way, and slabs for the peer.
const WRITING: usize = 6;
const POSTED: usize = 8;
const PATIENCE: Duration = Duration::from_secs(30);

/// What an end is told by its arguments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(crate) session: Incarnation,
    pub(crate) timeout: u8,
    pub(crate) queues: usize,
}

/// The device, once its port is up: a cable may just have been plugged in again.
pub(crate) fn device() -> anyhow::Result<Choice> {
    let start = Instant::now();
    loop {
        match choose(&Wish { device: Some("rxe0".to_owned()), ..Wish::default() }) {
            Ok(choice) => return Ok(choice),
            Err(error) if start.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => sleep(Duration::from_millis(50)),
        }
    }
}

/// The role's main function.
pub(crate) fn run(task: Task) -> anyhow::Result<()> {
    let member =
        if std::env::var("LAB_HOST").context("LAB_HOST is not set: this role is for a VM")? == "a" { 1 } else { 2 };
    let choice = device()?;
    let options = RcOptions {
        timeout: Some(task.timeout),
        slice_bytes: 8 << 10,
        queue: 16,
        queues: task.queues,
        farewell: Duration::from_millis(500),
        ..RcOptions::default()
    };
    let mut keepalive = beats::open(&choice, task.session)?;
    let prepared = Prepared::new(&choice.place(), task.session, &options)?;
    let queues = prepared.endpoint().queues.numbers().to_vec();
    let link = meet(prepared, &mut keepalive, member)?;
    let beats = keepalive.address();
    let watch = Watch::start(keepalive, task.session, member);
    let mut end = End::new(link, task.session, member)?;
    end.until("the peer is heard", |end| end.link.is_open())?;
    let ((timeout, retry), patience) = (end.link.timeout(), end.link.gives_up_after());
    let gives_up_ms = u64::try_from(patience.as_millis())?;
    Said::Up(Up { queues, timeout, retry, gives_up_ms, beats }).say();
    end.live()?;
    Said::End(watch.end()?).say();
    Ok(())
}

/// Exchanges endpoints, the keepalive's among them, over a connection that is then closed.
fn meet(prepared: Prepared, keepalive: &mut UdKeepalive, member: u8) -> anyhow::Result<RdmaLink> {
    let mut stream = if member == 1 { TcpListener::bind(("0.0.0.0", PORT))?.accept()?.0 } else { dial()? };
    stream.set_read_timeout(Some(PATIENCE))?;
    let UdAddress { qpn, qkey, .. } = keepalive.address();
    let ours = Endpoint { beats: Some(Beats { queue: qpn, qkey, group: None }), ..prepared.endpoint() };
    stream.write_all(&ours.encode())?;
    let mut bytes = [0; ENDPOINT_LEN];
    stream.read_exact(&mut bytes)?;
    let theirs = Endpoint::decode(&bytes)?;
    let Beats { queue, qkey, .. } = theirs.beats.context("the peer has no beats")?;
    keepalive.add_member(UdAddress { gid: theirs.gid, lid: theirs.lid, qpn: queue, qkey })?;
    let mut ready = [0];
    if member == 1 {
        stream.read_exact(&mut ready)?;
        return Ok(prepared.connect(&theirs, "host b", true)?);
    }
    let link = prepared.connect(&theirs, "host a", false)?;
    stream.write_all(&ready)?;
    Ok(link)
}

fn dial() -> anyhow::Result<TcpStream> {
    let start = Instant::now();
    loop {
        match TcpStream::connect(("a", PORT)) {
            Ok(stream) => return Ok(stream),
            Err(error) if start.elapsed() > PATIENCE => return Err(error).context("connecting to a"),
            Err(_) => sleep(Duration::from_millis(50)),
        }
    }
}

struct End {
    link: RdmaLink,
    pool: SlabPool,
    ours: Items,
    theirs: Items,
    /// Where the program outside makes its files.
    signals: PathBuf,
    counts: Counts,
    writing: usize,
    posted: usize,
    /// Slabs sent; those of them that the peer has noted; those received.
    slabs: [u32; 3],
    /// We, and the peer, have said the last item.
    ended: [bool; 2],
    next_item: Instant,
    noted: Instant,
    last_sign: Instant,
}

impl End {
    fn new(link: RdmaLink, session: Incarnation, member: u8) -> anyhow::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            link,
            pool: SlabPool::new(SLAB, (WRITING + POSTED + 1) * SLAB),
            ours: Items { session, author: member },
            theirs: Items { session, author: 3 - member },
            signals: std::env::var_os("LAB_OUT").context("LAB_OUT is not set")?.into(),
            counts: Counts { sent: 0, received: 0 },
            writing: 0,
            posted: 0,
            slabs: [0; 3],
            ended: [false; 2],
            next_item: now,
            noted: now,
            last_sign: now,
        })
    }

    fn is_told(&self, what: &str) -> bool {
        self.signals.join(format!("{:x}.{what}", self.ours.session.0)).exists()
    }

    /// From the first item to the file `quit`.
    fn live(&mut self) -> anyhow::Result<()> {
        let (mut stopping, mut complete, mut report) = (false, false, Instant::now());
        let why = loop {
            if !stopping {
                self.talk()?;
            } else if !self.ended[0] {
                self.say_the_last()?;
            }
            if let Some(why) = self.listen()? {
                break why;
            }
            if self.is_complete() && !complete {
                complete = true;
                Said::Complete(self.counts).say();
            }
            if report.elapsed() > Duration::from_millis(100) {
                report = Instant::now();
                Said::Progress(self.counts).say();
                stopping |= self.is_told("stop");
                if self.is_told("quit") {
                    // Whether it worked is asked again below.
                    let _ = self.link.revoke();
                }
            }
            self.rest()?;
        };
        self.report(&why);
        while !self.is_told("quit") {
            sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let start = Instant::now();
        while !is_so(self) {
            if let Some(why) = self.listen()? {
                anyhow::bail!("before {what}: {why}");
            }
            ensure!(start.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
            self.rest()?;
        }
        Ok(())
    }

    /// Begins an item if its time has come and there is room for it; notes what arrived.
    fn talk(&mut self) -> anyhow::Result<()> {
        if self.noted.elapsed() > NOTE {
            self.noted = Instant::now();
            self.submit(Op::Send(self.ours.note(self.counts.received, self.slabs[2])));
        }
        let (number, slab) = (self.counts.sent, !self.ours.is_record(self.counts.sent));
        let room = self.writing < WRITING && ((self.slabs[0] - self.slabs[1]) as usize) < POSTED;
        if Instant::now() < self.next_item || (slab && !room) {
            return Ok(());
        }
        self.next_item = Instant::now() + PACE;
        let op = if slab {
            Op::Write(self.ours.slab(number, self.pool.take().context("the pool is empty")?))
        } else {
            Op::Send(self.ours.record(number))
        };
        if self.submit(op) {
            self.counts.sent += 1;
            self.slabs[0] += u32::from(slab);
        }
        Ok(())
    }

    fn say_the_last(&mut self) -> anyhow::Result<()> {
        self.ended[0] = self.submit(Op::Send(self.ours.last(self.counts.sent)));
        Ok(())
    }

    /// Whether the link took it. What it refuses comes back.
    fn submit(&mut self, op: Op) -> bool {
        let (writes, posts) = (matches!(op, Op::Write(_)), matches!(op, Op::Post(_)));
        match self.link.submit(op) {
            Ok(()) => {
                self.writing += usize::from(writes);
                self.posted += usize::from(posts);
                true
            }
            Err(Rejected { op, .. }) => {
                match op {
                    Op::Write(slab) => self.pool.put(slab.recycle()),
                    Op::Post(slab) => self.pool.put(slab),
                    Op::Send(_) => {}
                }
                false
            }
        }
    }

    /// Takes in what there is; gives the reason once the link is down.
    fn listen(&mut self) -> anyhow::Result<Option<LinkError>> {
        while self.posted < POSTED {
            let slab = self.pool.take().context("the pool is empty")?;
            if !self.submit(Op::Post(slab)) {
                break;
            }
        }
        while let Some(completion) = self.link.poll() {
            match completion {
                Completion::Down(why) => return Ok(Some(why)),
                Completion::Returned(slab) => self.pool.put(slab),
                Completion::Written(slab) => {
                    self.writing -= 1;
                    self.pool.put(slab.recycle());
                    self.note_a_sign();
                }
                Completion::Arrived(slab) => {
                    self.posted -= 1;
                    self.check_slab(slab.as_bytes())?;
                    self.pool.put(slab.recycle());
                }
                Completion::Received(record) => self.check_record(record)?,
            }
        }
        Ok(None)
    }

    /// It must be the very next item, a note, or the last word.
    fn check_record(&mut self, record: Control) -> anyhow::Result<()> {
        let number = self.counts.received;
        if let Some(slabs) = self.theirs.noted(&record) {
            let known = record.epoch.0 <= self.counts.sent && (self.slabs[1]..=self.slabs[0]).contains(&slabs);
            ensure!(known, "the peer has received more than was sent: {record:?}");
            self.slabs[1] = slabs;
            self.note_a_sign();
            return Ok(());
        }
        if record == self.theirs.last(number) && !self.ended[1] {
            self.ended[1] = true;
            return Ok(());
        }
        ensure!(self.theirs.is_record(number), "item {number} is a slab, and {record:?} came");
        ensure!(record == self.theirs.record(number), "item {number} is not {record:?}");
        self.arrived()
    }

    /// It must be the very next item, to the last byte.
    fn check_slab(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let number = self.counts.received;
        ensure!(!self.theirs.is_record(number), "item {number} is a record, and a slab came");
        let wanted = self.theirs.slab(number, self.pool.take().context("the pool is empty")?);
        let differs = wanted.as_bytes().iter().zip(bytes).position(|(a, b)| a != b);
        ensure!(wanted.as_bytes() == bytes, "item {number}: {} bytes, differs at {differs:?}", bytes.len());
        self.pool.put(wanted.recycle());
        self.slabs[2] += 1;
        self.arrived()
    }

    fn arrived(&mut self) -> anyhow::Result<()> {
        ensure!(!self.ended[1], "something came after the peer's last item");
        self.counts.received += 1;
        self.note_a_sign();
        Ok(())
    }

    fn note_a_sign(&mut self) {
        if !self.link.has_failed() {
            self.last_sign = Instant::now();
        }
    }

    fn is_complete(&self) -> bool {
        self.ended == [true; 2] && self.link.is_settled()
    }

    /// Until something happens or the next item is due.
    fn rest(&self) -> anyhow::Result<()> {
        let Some(fd) = self.link.wait_fd() else { return Ok(()) };
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec::try_from(PACE)?))?;
        Ok(())
    }

    fn report(&mut self, why: &LinkError) {
        let quiet_ms = u64::try_from(self.last_sign.elapsed().as_millis()).unwrap_or(u64::MAX);
        Said::Down(Down {
            words: why.to_string(),
            orderly: matches!(why, LinkError::Closed { .. } | LinkError::Revoked { .. }),
            counts: self.counts,
            lost_slabs: self.pool.in_use(),
            not_fenced: self.link.revoke().err().map(|error| error.to_string()),
            quiet_ms,
        })
        .say();
    }
}
