//! The client of a VM, as a process on the client host, and what it heard.

use super::{Settings, report::Reply};
use crate::{
    client::Summary,
    hosts::{GUEST_IP, Place, Topology},
    process::{Line, Proc},
    timeline::{Mark, Timeline},
};
use anyhow::{Result, bail};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// How long the guest may be silent before the client gives it up: longer than anything that is waited for meanwhile.
const PATIENCE: Duration = Duration::from_secs(240);

/// The client, running or not. Dropped: killed.
#[derive(Debug)]
pub struct Asker<'a> {
    settings: &'a Settings,
    topology: &'a dyn Topology,
    timeline: Timeline,
    replies: Timeline,
    dir: PathBuf,
    process: Option<Proc>,
}

impl<'a> Asker<'a> {
    /// One that does not run yet. Its log goes to `dir`; what it finds wrong goes to `timeline`, replies do not.
    #[must_use]
    pub fn new(settings: &'a Settings, topology: &'a dyn Topology, dir: &Path, timeline: &Timeline) -> Self {
        let (timeline, replies) = (timeline.clone(), Timeline::new(false));
        Self { settings, topology, timeline, replies, dir: dir.to_owned(), process: None }
    }

    /// Starts it, and waits for its first reply.
    ///
    /// # Errors
    /// There is none.
    pub fn start(&mut self) -> Result<()> {
        let mark = self.replies.mark();
        let s = self.settings;
        let line = Line::new(&s.rig)
            .args(["client", "--guest", s.guest.kind.name()])
            .flag("--address", format!("{GUEST_IP}:{}", s.guest.kind.port()))
            .flag("--pipeline", s.pipeline.to_string())
            .flag("--repeat-after", format!("{}ms", s.repeat_after.as_millis()))
            .flag("--patience", format!("{}ms", PATIENCE.as_millis()));
        let host = self.topology.host(Place::Client);
        self.process = Some(Proc::spawn(host, "client", &line, &self.dir, &self.replies)?);
        let told = |event: &str| matches!(event, "reply" | "stuck");
        let first = self.replies.wait(mark, self.topology.patience(), |e| told(&e.event))?;
        if first.is_none_or(|e| e.event == "stuck") {
            bail!("the client gets no reply from the guest");
        }
        Ok(())
    }

    /// Has it finish. None: it ended without a summary.
    ///
    /// # Errors
    /// Somebody interrupted the rig.
    pub fn stop(&mut self) -> Result<Option<Summary>> {
        let Some(mut process) = self.process.take() else { return Ok(None) };
        drop(process.take_stdin());
        if process.wait(PATIENCE + self.topology.patience()).is_none() {
            return Ok(None);
        }
        let entries = self.replies.since(Mark::default());
        let findings = entries.iter().filter(|e| matches!(e.event.as_str(), "wrong" | "stuck"));
        findings.for_each(|e| self.timeline.push(e.clone()));
        Ok(entries.iter().rfind(|e| e.event == "summary").and_then(|e| Summary::from_json(&e.fields)))
    }

    /// The present end of the list of replies.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.replies.mark()
    }

    /// The replies since `mark`.
    #[must_use]
    pub fn replies(&self, mark: Mark) -> Vec<Reply> {
        self.replies.since(mark).iter().filter_map(Reply::of).collect()
    }

    /// Waits for a reply that comes after now. False: none came.
    ///
    /// # Errors
    /// Somebody interrupted the rig.
    pub fn hear_a_reply(&self) -> Result<bool> {
        let heard = self.replies.wait(self.mark(), PATIENCE, |e| matches!(e.event.as_str(), "reply" | "stuck"))?;
        Ok(heard.is_some_and(|e| e.event == "reply"))
    }
}
