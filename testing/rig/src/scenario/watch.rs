//! What is done to a round, and what is seen of it.

use super::{
    evidence::{Evidence, Side},
    round::Round,
    status,
    suspicion::Due,
};
use crate::{
    client::Summary,
    hosts::Place,
    process::Proc,
    timeline::{Entry, Mark, now_ms, pass, poll},
};
use anyhow::{Context, Result};
use node::events::Event;
use serde_json::Value;
use std::time::Duration;

/// How long the survivor's VM may take to be seen executing: it stands still for every checkpoint.
const SEEN_RUNNING: Duration = Duration::from_secs(30);
/// How much a host's clock may be off that is not this machine's, ms.
const CLOCK_MS: f64 = 150.0;
/// How long "nothing happens" is looked at.
pub(super) const WHILE: Duration = Duration::from_secs(3);

/// An observer of one round.
#[derive(Debug)]
pub(super) struct Watch {
    /// Since when events count.
    pub(super) mark: Mark,
    at_ms: f64,
    pub(super) survivor: Option<Place>,
    /// Frames that the primary had let out when the last one was due.
    pub(super) last_due_frame: Option<u64>,
    /// What should have been otherwise.
    pub(super) complaints: Vec<String>,
    /// What must never be.
    pub(super) violations: Vec<String>,
    due: Vec<Due>,
    /// The standby lost, and keeps its copy.
    has_lost: bool,
    /// The survivor did not say so itself.
    is_presumed: bool,
    /// The client was not answered once; nobody waits for it again.
    is_silent: bool,
    /// Books of earlier clients.
    pub(super) earlier: Option<Summary>,
}

impl Watch {
    /// Begins: from here on roles change because of what is done, or wrongly.
    pub(super) fn begin(round: &Round<'_>) -> Self {
        Self {
            mark: round.timeline.mark(),
            at_ms: f64::INFINITY,
            survivor: None,
            last_due_frame: None,
            complaints: Vec::new(),
            violations: Vec::new(),
            due: Vec::new(),
            has_lost: false,
            is_presumed: false,
            is_silent: false,
            earlier: None,
        }
    }

    /// The fault comes now.
    pub(super) fn strike(&mut self, round: &Round<'_>, what: &str) {
        self.at_ms = round.timeline.note(what);
    }

    /// From here on this process has a reason to suspect the other side.
    pub(super) fn due(&mut self, round: &Round<'_>, source: &'static str) {
        let place = if source == "standby" { Place::Standby } else { Place::Primary };
        let is_ours = round.topology.host(place).clock_ahead_ms() == 0.0;
        let from_ms = now_ms() - if is_ours { 0.0 } else { CLOCK_MS };
        self.due.push(Due { source, from_ms, until_ms: f64::INFINITY });
    }

    /// From here on nobody has.
    pub(super) fn calm(&mut self) {
        let now = now_ms();
        self.due.iter_mut().for_each(|due| due.until_ms = due.until_ms.min(now));
    }

    /// Whether somebody changed a role already, or is about to, though nothing was done yet.
    pub(super) fn is_spoilt(&self, round: &Round<'_>) -> bool {
        let stirred = |e: &Entry| {
            matches!(
                e.told_by("protect").or(e.told_by("standby")),
                Some(
                    Event::Suspect(_)
                        | Event::LinkLost(_)
                        | Event::Asking(_)
                        | Event::Solo(_)
                        | Event::Running(_)
                        | Event::Fenced(_)
                        | Event::Discarded(_)
                        | Event::DataPathDied(_)
                )
            )
        };
        round.timeline.since(self.mark).iter().any(stirred)
    }

    pub(super) fn complain(&mut self, what: impl Into<String>) {
        self.complaints.push(what.into());
    }

    /// Whoever goes on alone says so: the standby `running`, the primary `solo`.
    pub(super) fn await_survivor(&mut self, round: &Round<'_>) -> Result<()> {
        let goes_on = |e: &Entry| {
            matches!(e.told_by("standby"), Some(Event::Running(_)))
                || matches!(e.told_by("protect"), Some(Event::Solo(_)))
        };
        let found = round.timeline.wait(self.mark, round.topology.patience(), goes_on)?;
        self.survivor = found.map(|e| if e.source == "standby" { Place::Standby } else { Place::Primary });
        Ok(())
    }

    /// The loser says that it gave up: a primary that it is fenced, and ends with 4; a standby that it discarded its
    /// copy, or that it lost and keeps the copy for now.
    pub(super) fn await_fenced(&mut self, round: &mut Round<'_>) -> Result<()> {
        let loser = if self.survivor == Some(Place::Primary) { "standby" } else { "protect" };
        let says_so = |e: &Entry| e.told_by(loser).is_some_and(gave_up);
        let mut has_lost = false;
        let told = poll(round.topology.patience(), || {
            has_lost = loser == "standby" && status::role(&round.ask_status(Place::Standby).1) == Some("lost");
            has_lost || round.timeline.since(self.mark).iter().any(says_so)
        })?;
        self.has_lost = has_lost;
        if told && loser == "protect" {
            self.ends_with(round, "protect", 4)?;
        }
        Ok(())
    }

    /// A sidecar ends, with this exit code.
    pub(super) fn ends_with(&mut self, round: &mut Round<'_>, name: &str, code: i32) -> Result<()> {
        let patience = round.topology.patience();
        let process = if name == "protect" { &mut round.protect } else { &mut round.standby };
        let process: &mut Proc = process.as_mut().with_context(|| format!("there is no {name}"))?;
        match process.wait(patience) {
            Some(status) if status.code() == Some(code) => {}
            Some(status) => self.complain(format!("{name} ended with {status}, and not with exit code {code}")),
            None => self.complain(format!("{name} did not end")),
        }
        Ok(())
    }

    /// Both sidecars say this, from `mark` on.
    pub(super) fn both_say(&mut self, round: &Round<'_>, mark: Mark, what: &str, is: fn(&Event) -> bool) -> Result<()> {
        for source in ["protect", "standby"] {
            let says_so = |e: &Entry| e.told_by(source).is_some_and(is);
            if round.timeline.wait(mark, round.topology.patience(), says_so)?.is_none() {
                self.complain(format!("{source} did not say that the arbiter {what}"));
            }
        }
        Ok(())
    }

    /// Nobody has a reason to take the VM over: the primary goes on, unless somebody does all the same before the end.
    pub(super) fn stays(&mut self) {
        self.survivor = Some(Place::Primary);
        self.is_presumed = true;
    }

    /// `afterimage status` comes to say that the VM is not protected.
    pub(super) fn status_degrades(&mut self, round: &Round<'_>, place: Place) -> Result<()> {
        self.status_exits(round, place, 3)
    }

    /// `afterimage status` comes to end with this code.
    pub(super) fn status_exits(&mut self, round: &Round<'_>, place: Place, code: i32) -> Result<()> {
        let mut last = (None, Value::Null);
        let said = poll(round.topology.patience(), || {
            last = round.ask_status(place);
            last.0 == Some(code)
        })?;
        if !said {
            let told = format!("role {}, protected {}", last.1["role"], last.1["protected"]);
            self.complain(format!("status of the {} ends with {:?}, and not with {code}: {told}", name(place), last.0));
        }
        Ok(())
    }

    /// The client is answered, now.
    pub(super) fn is_served(&mut self, round: &mut Round<'_>, when: &str) -> Result<()> {
        if !self.is_silent && !round.client().hear_a_reply()? {
            self.is_silent = true;
            self.complain(format!("no reply {when}"));
        }
        Ok(())
    }

    /// For a while nothing happens to the VM: nobody changes a role, and the client is answered by who served it
    /// before.
    pub(super) fn nothing_happens(&mut self, round: &mut Round<'_>, when: &str) -> Result<()> {
        let mark = round.timeline.mark();
        pass(WHILE)?;
        self.is_served(round, when)?;
        for entry in round.timeline.since(mark) {
            let told = entry.told_by("protect").or(entry.told_by("standby"));
            if told.is_some_and(|e| gave_up(e) || matches!(e, Event::Solo(_) | Event::Running(_))) {
                self.complain(format!("{when} {} said '{}'", entry.source, entry.event));
            }
        }
        Ok(())
    }

    /// For a while nobody serves, and nobody gives its copy up. (Output that nobody has a right to let out is a
    /// violation.)
    pub(super) fn both_are_kept(&mut self, round: &Round<'_>) -> Result<()> {
        let (primary, standby) = (round.topology.host(Place::Primary), round.topology.host(Place::Standby));
        let first = (primary.frames_out()?, standby.frames_out()?);
        pass(WHILE)?;
        let let_out = (primary.frames_out()? - first.0, standby.frames_out()? - first.1);
        if let_out != (0, 0) {
            let what = "frames let out, though nobody could win the arbiter: by primary and standby";
            self.violations.push(format!("{what} {let_out:?}"));
        }
        if round.executes(Place::Standby, Duration::ZERO)? {
            self.violations.push("the standby runs the VM, though nobody could win the arbiter".to_owned());
        }
        for place in [Place::Primary, Place::Standby] {
            if round.topology.host(place).qemus().is_empty() {
                self.complain(format!("the copy of the {} is gone: it has no QEMU", name(place)));
            }
        }
        self.image_is_kept(round);
        Ok(())
    }

    /// The standby's image is a file that is still there.
    pub(super) fn image_is_kept(&mut self, round: &Round<'_>) {
        let files = std::fs::read_dir(&round.settings.ram_dir).into_iter().flatten().flatten();
        let bytes: u64 = files.filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum();
        if bytes < round.settings.guest.ram_bytes() {
            let dir = round.settings.ram_dir.display();
            self.complain(format!("the standby's image is gone: {bytes} bytes in {dir}"));
        }
    }

    /// The survivor alone with the client: who is heard, who runs, and what the client's books say.
    pub(super) fn finish(mut self, round: &mut Round<'_>, replies_from: Mark) -> Result<Evidence> {
        let (primary, standby) = (round.topology.host(Place::Primary), round.topology.host(Place::Standby));
        let took_over = |e: &Entry| matches!(e.told_by("standby"), Some(Event::Running(_)));
        if self.is_presumed && round.timeline.since(self.mark).iter().any(took_over) {
            self.survivor = Some(Place::Standby);
        }
        let first = (self.last_due_frame.map_or_else(|| primary.frames_out(), Ok)?, standby.frames_out()?);
        let quiet_from = now_ms();
        if self.survivor.is_some() && !self.is_silent {
            round.client().hear_a_reply()?;
        }
        pass(round.settings.after)?;
        let last = (primary.frames_out()?, standby.frames_out()?);
        let summary = round.client().stop()?;
        let events = round.timeline.since(self.mark);
        let survivor = self.survivor;
        let side = |place: Place, source: &str, frames_out: u64| -> Result<Side> {
            let patience = if survivor == Some(place) { SEEN_RUNNING } else { Duration::ZERO };
            // Of a host that lost its power only what its last process said counts: the one before was killed bit by bit.
            let begins = |e: &Entry| matches!(e.told_by(source), Some(Event::Attached(_)));
            let begun = events.iter().rposition(|e| self.earlier.is_some() && begins(e)).unwrap_or(0);
            let said = events[begun..].iter().any(|e| e.told_by(source).is_some_and(gave_up));
            let fenced = said || place == Place::Standby && self.has_lost;
            Ok(Side { executes: round.executes(place, patience)?, frames_out, fenced })
        };
        self.violations.extend(round.guest_complaints());
        Ok(Evidence {
            scenario: round.settings.scenario,
            fault_at_ms: self.at_ms.min(quiet_from),
            quiet_from_ms: quiet_from,
            survivor,
            primary: side(Place::Primary, "protect", last.0.saturating_sub(first.0))?,
            standby: side(Place::Standby, "standby", last.1.saturating_sub(first.1))?,
            replies: round.client().replies(replies_from),
            summary: match self.earlier {
                Some(earlier) => summary.map(|s| earlier.and(&s)),
                None => summary,
            },
            complaints: self.complaints,
            violations: self.violations,
            due: self.due,
            status: Value::Null,
            stories: Vec::new(),
            events,
        })
    }
}

/// Whether a side says that its copy is not the one that goes on.
fn gave_up(event: &Event) -> bool {
    matches!(event, Event::Fenced(_) | Event::Discarded(_))
}

/// A host, in words.
pub(super) fn name(place: Place) -> &'static str {
    if place == Place::Standby { "standby" } else { "primary" }
}
