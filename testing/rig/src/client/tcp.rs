//! One TCP connection to the Linux guest, for the whole run.

use super::{Diary, Plan, Stop, books::StreamBooks};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

/// Longest reply that is accepted.
const LINE_MAX: usize = 4096;
/// How often to look up while nothing comes.
pub(super) const GLANCE: Duration = Duration::from_millis(20);

pub(super) fn run(plan: &Plan, stop: &Stop, diary: &mut Diary<'_>) -> Result<()> {
    let stream = connect(plan, stop)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(GLANCE))?;
    diary.say("connected", json!({ "address": plan.address.to_string() }))?;
    diary.summary.same_connection = Some(true);
    let mut client =
        Client { stream, books: StreamBooks::default(), asked: VecDeque::new(), next: 1, input: Vec::new() };
    let outcome = client.converse(plan, stop, diary);
    let Err(error) = outcome else { return Ok(()) };
    diary.summary.same_connection = Some(false);
    diary.stuck(&format!("the conversation broke: {error:#}"))
}

pub(super) fn connect(plan: &Plan, stop: &Stop) -> Result<TcpStream> {
    let start = Instant::now();
    loop {
        match TcpStream::connect_timeout(&plan.address, plan.patience) {
            Ok(stream) => return Ok(stream),
            Err(error) if stop.is_stopped() || start.elapsed() > plan.patience => {
                return Err(error).with_context(|| format!("no connection to {}", plan.address));
            }
            Err(_) => std::thread::sleep(GLANCE),
        }
    }
}

struct Client {
    stream: TcpStream,
    books: StreamBooks,
    /// When the requests under way were sent, the oldest first.
    asked: VecDeque<Instant>,
    next: u64,
    input: Vec<u8>,
}

impl Client {
    /// Errors are the connection's; a guest that is merely silent for too long is noted as stuck.
    fn converse(&mut self, plan: &Plan, stop: &Stop, diary: &mut Diary<'_>) -> Result<()> {
        let mut heard = Instant::now();
        loop {
            let depth = if stop.is_stopped() { 0 } else { plan.pipeline.max(1) };
            while self.asked.len() < depth {
                self.ask()?;
            }
            if self.asked.is_empty() {
                return Ok(());
            }
            if let Some(line) = self.line()? {
                heard = Instant::now();
                self.book(&line, diary)?;
                diary.think(plan.think);
            } else if heard.elapsed() > plan.patience {
                return diary.stuck(&format!(
                    "no reply for {:?}; {} requests are open",
                    plan.patience,
                    self.asked.len()
                ));
            }
        }
    }

    fn ask(&mut self) -> Result<()> {
        self.asked.push_back(Instant::now());
        self.stream.write_all(format!("{}\n", self.next).as_bytes())?;
        self.next += 1;
        Ok(())
    }

    /// The next line, if one comes soon.
    fn line(&mut self) -> Result<Option<String>> {
        if !self.input.contains(&b'\n') {
            let mut bytes = [0; LINE_MAX];
            match self.stream.read(&mut bytes) {
                Ok(0) => bail!("the guest closed it"),
                Ok(len) => self.input.extend_from_slice(&bytes[..len]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                }
                Err(error) => return Err(error.into()),
            }
        }
        let Some(end) = self.input.iter().position(|b| *b == b'\n') else {
            anyhow::ensure!(self.input.len() <= LINE_MAX, "a reply of more than {LINE_MAX} bytes");
            return Ok(None);
        };
        let line: Vec<u8> = self.input.drain(..=end).collect();
        Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()))
    }

    fn book(&mut self, line: &str, diary: &mut Diary<'_>) -> Result<()> {
        let (reply, findings) = self.books.reply(line);
        diary.wrong(findings)?;
        let Some((seq, n)) = reply else { return Ok(()) };
        anyhow::ensure!(seq < self.next, "a reply to request {seq}, which was never sent");
        // Replies that were skipped are lost, and noted as such; they are not waited for.
        let oldest = self.next - self.asked.len() as u64;
        let skipped = usize::try_from(seq - oldest).context("a reply out of order")?;
        let Some(asked) = self.asked.drain(..=skipped).next_back() else { return Ok(()) };
        diary.reply(seq, n, asked)
    }
}
