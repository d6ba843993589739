//! The client: asks the guest's service without end, and says on standard output what came back and when.
//!
//! | module | |
//! |---|---|
//! | [`books`] | what a sequence of replies proves: nothing lost, nothing twice; or not |
//! | [`tcp`] | one connection to the Linux guest, held for the whole run |
//! | [`redis`] | the same to a Redis: every acknowledged write is looked for at the end |
//! | [`udp`] | the tiny guest: one request at a time, repeated until it is answered |
//!
//! It runs as a process of its own on the client host (`rig client`). Lines of JSON: `connected`, a `reply` each
//! (`at_ms`, `seq`, `n`, `latency_us`), `wrong` for each finding, and a `summary` at the end. It ends when its standard
//! input is closed and what it asked is answered, or when the guest has been silent for too long.

pub mod books;
mod redis;
mod tcp;
mod udp;

use crate::{guest::Kind, stats::round, timeline::now_ms};
use anyhow::Result;
use books::Finding;
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// What to ask, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whose service.
    pub guest: Kind,
    /// Where.
    pub address: SocketAddr,
    /// Requests under way at a time (TCP only).
    pub pipeline: usize,
    /// The longest pause between a reply and the next request; the pauses are spread evenly from 0 to this. Without
    /// them a client falls into step with the epochs, and sees only the worst of the delay.
    pub think: Duration,
    /// Silence after which the guest is given up.
    pub patience: Duration,
    /// Time without an answer after which a request is sent again (UDP only).
    pub repeat_after: Duration,
}

/// When to stop asking. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Stops.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it is time.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Stops when standard input ends.
    #[must_use]
    pub fn at_end_of_stdin() -> Self {
        let stop = Self::default();
        let other = stop.clone();
        std::thread::spawn(move || {
            let mut input = std::io::stdin().lock();
            while matches!(input.read(&mut [0; 64]), Ok(n) if n > 0) {}
            other.stop();
        });
        stop
    }
}

/// How it went, without the replies themselves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Replies that were waited for.
    pub replies: u64,
    /// Redis: writes that were acknowledged, each looked for at the end.
    pub writes: u64,
    /// Requests that were answered and forgotten, or whose answer never came.
    pub lost: u64,
    /// Requests that were carried out, or answered, more than once.
    pub duplicated: u64,
    /// Replies that were no replies, and guest pages with wrong contents.
    pub corrupt: u64,
    /// TCP: the one connection lasted. UDP has none.
    pub same_connection: Option<bool>,
    /// The guest was silent for too long, or the connection ended.
    pub stuck: bool,
    /// The longest time between two replies, in milliseconds.
    pub longest_gap_ms: f64,
}

impl Summary {
    /// As the `summary` event carries it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "replies": self.replies, "writes": self.writes, "lost": self.lost, "duplicated": self.duplicated,
            "corrupt": self.corrupt, "same_connection": self.same_connection, "stuck": self.stuck,
            "longest_gap_ms": self.longest_gap_ms,
        })
    }

    /// The books of two clients, one after the other.
    #[must_use]
    pub fn and(self, next: &Self) -> Self {
        Self {
            replies: self.replies + next.replies,
            writes: self.writes + next.writes,
            lost: self.lost + next.lost,
            duplicated: self.duplicated + next.duplicated,
            corrupt: self.corrupt + next.corrupt,
            same_connection: self.same_connection.zip(next.same_connection).map(|(a, b)| a && b),
            stuck: self.stuck || next.stuck,
            longest_gap_ms: self.longest_gap_ms.max(next.longest_gap_ms),
        }
    }

    /// Reads the `summary` event's fields. None if one is missing.
    #[must_use]
    pub fn from_json(fields: &serde_json::Map<String, Value>) -> Option<Self> {
        let number = |name: &str| fields.get(name)?.as_u64();
        Some(Self {
            replies: number("replies")?,
            writes: number("writes")?,
            lost: number("lost")?,
            duplicated: number("duplicated")?,
            corrupt: number("corrupt")?,
            same_connection: fields.get("same_connection")?.as_bool(),
            stuck: fields.get("stuck")?.as_bool()?,
            longest_gap_ms: fields.get("longest_gap_ms")?.as_f64()?,
        })
    }
}

/// Asks until `stop`; every line goes to `output`.
///
/// # Errors
/// There was never a connection, or `output` is gone.
pub fn run(plan: &Plan, stop: &Stop, output: &mut dyn Write) -> Result<Summary> {
    let mut diary = Diary::new(output);
    match plan.guest {
        Kind::Linux => tcp::run(plan, stop, &mut diary)?,
        Kind::Redis => redis::run(plan, stop, &mut diary)?,
        Kind::Tiny => udp::run(plan, stop, &mut diary)?,
    }
    let summary = diary.summary.clone();
    diary.say("summary", summary.to_json())?;
    Ok(summary)
}

/// What both kinds of client write down.
struct Diary<'a> {
    output: &'a mut dyn Write,
    summary: Summary,
    last_reply: Option<Instant>,
    random: u64,
}

impl<'a> Diary<'a> {
    fn new(output: &'a mut dyn Write) -> Self {
        Self { output, summary: Summary::default(), last_reply: None, random: 0x9e37_79b9_7f4a_7c15 }
    }

    fn say(&mut self, event: &str, mut fields: Value) -> Result<()> {
        fields["event"] = event.into();
        fields["at_ms"] = now_ms().into();
        let mut line = fields.to_string();
        line.push('\n');
        self.output.write_all(line.as_bytes())?;
        Ok(self.output.flush()?)
    }

    fn reply(&mut self, seq: u64, n: u64, asked: Instant) -> Result<()> {
        let now = Instant::now();
        if let Some(last) = self.last_reply.replace(now) {
            let gap_ms = round(now.duration_since(last).as_secs_f64() * 1e3);
            self.summary.longest_gap_ms = self.summary.longest_gap_ms.max(gap_ms);
        }
        self.summary.replies += 1;
        let latency_us = u64::try_from(now.duration_since(asked).as_micros()).unwrap_or(u64::MAX);
        self.say("reply", json!({ "seq": seq, "n": n, "latency_us": latency_us }))
    }

    fn wrong(&mut self, findings: Vec<Finding>) -> Result<()> {
        for finding in findings {
            match finding.kind {
                books::Wrong::Lost => self.summary.lost += finding.count,
                books::Wrong::Duplicated => self.summary.duplicated += finding.count,
                books::Wrong::Corrupt => self.summary.corrupt += finding.count,
            }
            self.say("wrong", json!({ "what": finding.what }))?;
        }
        Ok(())
    }

    /// Given up, for this reason.
    fn stuck(&mut self, why: &str) -> Result<()> {
        self.summary.stuck = true;
        self.say("stuck", json!({ "why": why }))
    }

    /// A pause before the next request. (xorshift64: all that is asked of it is not to be in step with anything.)
    fn think(&mut self, longest: Duration) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let longest_us = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        if let Some(pause_us) = self.random.checked_rem(longest_us) {
            std::thread::sleep(Duration::from_micros(pause_us));
        }
    }
}
