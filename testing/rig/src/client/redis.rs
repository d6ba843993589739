//! One TCP connection to a Redis, for the whole run. A request is two writes: `RPUSH LIST seq` and `INCR COUNTER`.
//! Neither can be done twice, or be forgotten, without the list or the counter showing it; the list is read back at the
//! end.
//!
//! Replies are RESP 2 (redis.io, "Redis serialization protocol specification"): `:N\r\n`, `-ERROR\r\n`, arrays of bulk
//! strings. They carry no number of their own: they come in the order of the requests.

use super::{
    Diary, Plan, Stop,
    books::{Finding, StreamBooks, Wrong},
    tcp::{GLANCE, connect},
};
use crate::timeline::now_ms;
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

/// Longest bulk string that is accepted: a sequence number in decimal.
const BULK_MAX: usize = 64;
/// Entries of the list that are read back at a time.
const CHUNK: u64 = 1000;

pub(super) fn run(plan: &Plan, stop: &Stop, diary: &mut Diary<'_>) -> Result<()> {
    let stream = connect(plan, stop)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(GLANCE))?;
    diary.say("connected", json!({ "address": plan.address.to_string() }))?;
    diary.summary.same_connection = Some(true);
    let mut client = Client {
        wire: Wire { stream, input: Vec::new(), patience: plan.patience },
        // Whoever was there before us wrote elsewhere.
        keys: format!("{:.0}", now_ms() * 1e3),
        books: StreamBooks::default(),
        asked: VecDeque::new(),
        next: 1,
    };
    let outcome = client.converse(plan, stop, diary).and_then(|()| client.read_back(diary));
    let Err(error) = outcome else { return Ok(()) };
    diary.summary.same_connection = Some(error.is::<Silence>());
    diary.stuck(&format!("the conversation broke: {error:#}"))
}

/// The guest said nothing for so long.
#[derive(Debug)]
struct Silence(Duration);

impl std::fmt::Display for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no reply for {:?}", self.0)
    }
}

impl std::error::Error for Silence {}

struct Client {
    wire: Wire,
    keys: String,
    /// Over the counter.
    books: StreamBooks,
    /// When the requests under way were sent, the oldest first.
    asked: VecDeque<Instant>,
    next: u64,
}

impl Client {
    fn converse(&mut self, plan: &Plan, stop: &Stop, diary: &mut Diary<'_>) -> Result<()> {
        loop {
            let depth = if stop.is_stopped() { 0 } else { plan.pipeline.max(1) };
            while self.asked.len() < depth {
                self.ask()?;
            }
            let Some(asked) = self.asked.pop_front() else { return Ok(()) };
            let seq = self.next - 1 - self.asked.len() as u64;
            let (length, count) = (self.wire.number()?, self.wire.number()?);
            diary.summary.writes += 2;
            if length != seq {
                let what = format!("write {seq} made the list {length} long");
                let kind = if length < seq { Wrong::Lost } else { Wrong::Duplicated };
                diary.wrong(vec![Finding { kind, count: 1, what }])?;
            }
            let (_, findings) = self.books.reply(&format!("{seq} {count}"));
            diary.wrong(findings)?;
            diary.reply(seq, count, asked)?;
            diary.think(plan.think);
        }
    }

    fn ask(&mut self) -> Result<()> {
        self.asked.push_back(Instant::now());
        let (keys, seq) = (&self.keys, self.next.to_string());
        let mut request = command(&["RPUSH", &format!("log:{keys}"), &seq]);
        request.extend(command(&["INCR", &format!("count:{keys}")]));
        self.wire.stream.write_all(&request)?;
        self.next += 1;
        Ok(())
    }

    /// Looks for everything that was acknowledged.
    fn read_back(&mut self, diary: &mut Diary<'_>) -> Result<()> {
        let (key, acked) = (format!("log:{}", self.keys), self.next - 1);
        let (mut list, mut from) = (Vec::new(), 0);
        loop {
            let range = command(&["LRANGE", &key, &from.to_string(), &(from + CHUNK - 1).to_string()]);
            self.wire.stream.write_all(&range)?;
            let chunk = self.wire.numbers()?;
            if chunk.is_empty() {
                break;
            }
            list.extend(chunk);
            from += CHUNK;
        }
        diary.say("read-back", json!({ "acknowledged": acked, "found": list.len() }))?;
        diary.wrong(audit(&list, acked))
    }
}

/// What a list proves in which 1 to `acked` must be, each once. (What the counter showed already is counted again here:
/// both are acknowledged writes.)
fn audit(list: &[u64], acked: u64) -> Vec<Finding> {
    let mut sorted = list.to_vec();
    sorted.sort_unstable();
    let written = sorted.len() as u64;
    sorted.dedup();
    let known = sorted.iter().filter(|seq| (1..=acked).contains(seq)).count() as u64;
    let distinct = sorted.len() as u64;
    let kinds = [
        (Wrong::Lost, acked - known, "acknowledged writes are not in the list"),
        (Wrong::Duplicated, written - distinct, "writes are in the list more than once"),
        (Wrong::Corrupt, distinct - known, "entries of the list were never written"),
    ];
    let found = kinds.into_iter().filter(|(_, count, _)| *count > 0);
    found.map(|(kind, count, what)| Finding { kind, count, what: format!("{count} {what}") }).collect()
}

/// A command: an array of bulk strings.
fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len());
    words.iter().for_each(|word| bytes += &format!("${}\r\n{word}\r\n", word.len()));
    bytes.into_bytes()
}

struct Wire {
    stream: TcpStream,
    input: Vec<u8>,
    patience: Duration,
}

impl Wire {
    /// A line without its end.
    fn line(&mut self) -> Result<String> {
        let start = Instant::now();
        loop {
            if let Some(end) = self.input.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.input.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            let mut bytes = [0; 65536];
            match self.stream.read(&mut bytes) {
                Ok(0) => bail!("the guest closed it"),
                Ok(len) => self.input.extend_from_slice(&bytes[..len]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                    ensure!(start.elapsed() < self.patience, Silence(self.patience));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A reply that is a number.
    fn number(&mut self) -> Result<u64> {
        let line = self.line()?;
        line.strip_prefix(':').and_then(|n| n.parse().ok()).with_context(|| format!("'{line}' is not a number"))
    }

    /// A reply that is an array of numbers, as bulk strings.
    fn numbers(&mut self) -> Result<Vec<u64>> {
        let head = self.line()?;
        let count = head.strip_prefix('*').and_then(|n| n.parse::<u64>().ok()).filter(|n| *n <= CHUNK);
        let count = count.with_context(|| format!("'{head}' is not an array"))?;
        (0..count).map(|_| self.bulk()).collect()
    }

    fn bulk(&mut self) -> Result<u64> {
        let head = self.line()?;
        let len = head.strip_prefix('$').and_then(|n| n.parse::<usize>().ok()).filter(|n| *n <= BULK_MAX);
        let len = len.with_context(|| format!("'{head}' is not a short string"))?;
        let text = self.line()?;
        let number = text.parse().ok().filter(|_| text.len() == len);
        number.with_context(|| format!("'{text}' is not a sequence number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_arrays_of_bulk_strings() {
        assert_eq!(command(&["INCR", "n"]), b"*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n");
    }

    #[test]
    fn a_list_is_held_against_what_was_acknowledged() {
        let totals = |list: &[u64], acked| -> Vec<(Wrong, u64)> {
            audit(list, acked).iter().map(|finding| (finding.kind, finding.count)).collect()
        };
        assert_eq!(totals(&[1, 2, 3], 3), []);
        assert_eq!(totals(&[1, 3], 4), [(Wrong::Lost, 2)]);
        assert_eq!(totals(&[1, 2, 2, 3], 3), [(Wrong::Duplicated, 1)]);
        assert_eq!(totals(&[1, 2, 9, 9], 2), [(Wrong::Duplicated, 1), (Wrong::Corrupt, 1)]);
        assert_eq!(totals(&[], 2), [(Wrong::Lost, 2)]);
    }
}
