//! Outside: both ends of one link, what they said, and what must be true of it.

use crate::{
    lab::{Heard, Job, Lab},
    said::{Beats, Counts, Down, Said, Up},
};
use anyhow::{Context, bail, ensure};
use std::{
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

/// How long anything may take before it is called stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// One end.
pub(crate) struct Remote {
    pub(crate) host: &'static str,
    pub(crate) up: Up,
    job: Job,
    /// Said, and not asked for yet.
    waiting: Vec<(Instant, Said)>,
    pub(crate) counts: Counts,
}

impl Remote {
    fn start(lab: &Lab, host: &'static str, session: u64, timeout: u8, queues: usize) -> anyhow::Result<Self> {
        let words = ["--end", &session.to_string(), &timeout.to_string(), &queues.to_string()];
        let nobody = transport_rdma::UdAddress { gid: [0; 16], lid: 0, qpn: 0, qkey: 0 };
        let up = Up { queues: vec![], timeout, retry: 0, gives_up_ms: 0, beats: nobody };
        let counts = Counts { sent: 0, received: 0 };
        Ok(Self { host, up, job: lab.start(host, &words)?, waiting: vec![], counts })
    }

    /// The first thing said that `pick` takes, now or later, and when it was said.
    pub(crate) fn next<T>(&mut self, what: &str, pick: impl Fn(&Said) -> Option<T>) -> anyhow::Result<(Instant, T)> {
        let start = Instant::now();
        loop {
            let found = self.waiting.iter().enumerate().find_map(|(index, (at, said))| Some((index, *at, pick(said)?)));
            if let Some((index, at, picked)) = found {
                self.waiting.remove(index);
                return Ok((at, picked));
            }
            let (host, left) = (self.host, PATIENCE.saturating_sub(start.elapsed()));
            match self.job.heard.recv_timeout(left) {
                Ok(Heard::Line(at, line)) => self.heard(at, &line)?,
                Ok(Heard::Over(how)) => bail!("{host} is over before {what}: {how}"),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{host}: not in {PATIENCE:?}: {what}. There:\n{}", self.job.look_around())
                }
                Err(RecvTimeoutError::Disconnected) => bail!("{host} is over before {what}"),
            }
        }
    }

    fn heard(&mut self, at: Instant, line: &str) -> anyhow::Result<()> {
        let said: Said = serde_json::from_str(line).with_context(|| format!("{} said {line:?}", self.host))?;
        match said {
            Said::Progress(counts) => {
                self.counts = counts;
                self.waiting.retain(|(_, said)| !matches!(said, Said::Progress(_)));
            }
            Said::Complete(counts) | Said::Down(Down { counts, .. }) => self.counts = counts,
            _ => {}
        }
        self.waiting.push((at, said));
        Ok(())
    }

    /// So many more items have arrived here.
    fn gets(&mut self, more: u64) -> anyhow::Result<()> {
        let wanted = self.counts.received + more;
        let enough = |said: &Said| match said {
            Said::Progress(counts) => (counts.received >= wanted).then_some(Ok(())),
            Said::Down(down) => Some(Err(down.words.clone())),
            _ => None,
        };
        let (_, outcome) = self.next(&format!("item {wanted}"), enough)?;
        outcome.map_err(|words| anyhow::anyhow!("{} is down before item {wanted}: {words}", self.host))
    }

    pub(crate) fn down(&mut self) -> anyhow::Result<(Instant, Down)> {
        self.next("its link is down", |said| if let Said::Down(down) = said { Some(down.clone()) } else { None })
    }

    pub(crate) fn suspicion(&mut self) -> anyhow::Result<(Instant, u64, u32)> {
        let suspect = |said: &Said| match said {
            Said::Suspect { silent_ms, missed } => Some((*silent_ms, *missed)),
            _ => None,
        };
        let (at, (silent_ms, missed)) = self.next("it suspects its peer", suspect)?;
        Ok((at, silent_ms, missed))
    }

    /// Its last words, once it was told to quit.
    pub(crate) fn end(&mut self) -> anyhow::Result<Beats> {
        let end = |said: &Said| if let Said::End(beats) = said { Some(beats.clone()) } else { None };
        Ok(self.next("its end", end)?.1)
    }

    /// All of it is home, and nobody can write to it any more.
    pub(crate) fn check_safe(&self, down: &Down) -> anyhow::Result<()> {
        let host = self.host;
        ensure!(down.lost_slabs == 0, "{host}: {} slabs did not come back: {}", down.lost_slabs, down.words);
        ensure!(down.not_fenced.is_none(), "{host}: revoke says {:?} after: {}", down.not_fenced, down.words);
        Ok(())
    }

    /// An error is worth nothing that does not say who, which queue pair, what, how it ended, after how long, with which knobs.
    pub(crate) fn check_words(&self, down: &Down) -> anyhow::Result<()> {
        let Up { timeout, retry, queues, .. } = &self.up;
        let peer = if self.host == "a" { "host b" } else { "host a" };
        let knobs = [format!("timeout {timeout} ("), format!("x {} tries", retry + 1)];
        let parts = [peer, "failed: ", "(status ", " after ", &knobs[0], &knobs[1]];
        let missing: Vec<&str> = parts.into_iter().filter(|part| !down.words.contains(part)).collect();
        let named = queues.iter().any(|qpn| down.words.contains(&format!("queue pair {qpn:#x}:")));
        let request = ["RDMA WRITE", "SEND"].iter().any(|kind| down.words.contains(kind));
        ensure!(
            missing.is_empty() && named && request && !down.orderly,
            "{}: {missing:?}, its queue pair ({queues:x?}) or its work request is not named: {}",
            self.host,
            down.words
        );
        Ok(())
    }
}

/// Both.
pub(crate) struct Session {
    pub(crate) number: u64,
    pub(crate) ends: [Remote; 2],
}

impl Session {
    /// Starts both ends, and waits until items flow both ways.
    pub(crate) fn start(lab: &Lab, number: u64, timeout: u8, queues: usize) -> anyhow::Result<Self> {
        let start = |host| Remote::start(lab, host, number, timeout, queues);
        let mut session = Self { number, ends: [start("a")?, start("b")?] };
        for end in &mut session.ends {
            let up = |said: &Said| if let Said::Up(up) = said { Some(up.clone()) } else { None };
            end.up = end.next("the link is up", up)?.1;
        }
        session.flows(20)?;
        Ok(session)
    }

    /// So many more items arrive at each end.
    pub(crate) fn flows(&mut self, more: u64) -> anyhow::Result<()> {
        self.ends.iter_mut().try_for_each(|end| end.gets(more))
    }

    fn tell(&self, lab: &Lab, what: &str) -> anyhow::Result<()> {
        self.ends.iter().try_for_each(|end| lab.signal(end.host, &format!("{:x}.{what}", self.number)))
    }

    pub(crate) fn quit(&self, lab: &Lab) -> anyhow::Result<()> {
        self.tell(lab, "quit")
    }

    /// Ends a link that is up: everything arrives, and then everything comes home.
    pub(crate) fn finish(mut self, lab: &Lab) -> anyhow::Result<[Counts; 2]> {
        self.tell(lab, "stop")?;
        for end in &mut self.ends {
            let complete = |said: &Said| match said {
                Said::Complete(_) => Some(Ok(())),
                Said::Down(down) => Some(Err(down.words.clone())),
                _ => None,
            };
            let (_, outcome) = end.next("everything has arrived", complete)?;
            outcome.map_err(|words| anyhow::anyhow!("{} is down before all has arrived: {words}", end.host))?;
        }
        let [a, b] = self.counts();
        ensure!(a.sent == b.received && b.sent == a.received, "a {a:?}, b {b:?}");
        self.quit(lab)?;
        for end in &mut self.ends {
            let (_, down) = end.down()?;
            ensure!(down.orderly, "{}: {}", end.host, down.words);
            end.check_safe(&down)?;
            let beats = end.end()?;
            ensure!(beats.state != "Suspect" || beats.after_suspicion > 0, "{}: {beats:?}", end.host);
        }
        Ok([a, b])
    }

    pub(crate) fn counts(&self) -> [Counts; 2] {
        [self.ends[0].counts, self.ends[1].counts]
    }
}
