//! Checks that the waiting QEMU responds; a running process and a connected socket do not prove that.
//!
//! It is asked (`query-status`) and has [`ANSWER`] to answer. One that a signal stopped, or a cgroup freezer, is there and does
//! nothing: a takeover must not wait for whoever lets it go on.

use super::{StandbyError, StandbyVm};
use crate::qmp::{QmpError, is_stopped};
use node::units::spoken;
use serde_json::Value;
use std::time::{Duration, Instant};

/// For a QEMU that waits to answer. It does nothing else.
pub(super) const ANSWER: Duration = Duration::from_secs(2);
/// From the stream's last byte to the VM running.
const RESUME: Duration = Duration::from_secs(20);
/// Between two looks whether something stopped it meanwhile.
const LOOK: Duration = Duration::from_millis(500);

/// How the QEMU that waits is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// It answers, as far as is known.
    Waits,
    /// A signal stopped it a moment ago.
    Stopped(String),
    /// It does not answer.
    Silent(String),
    /// Its process has ended.
    Ended,
}

impl StandbyVm {
    /// Hears what it has answered, and asks again. Does not wait.
    pub fn look(&mut self) -> Look {
        if !self.is_alive() {
            return Look::Ended;
        }
        if let Some((id, _)) = self.asked
            && !matches!(self.qmp.answer(id), Ok(None))
        {
            self.asked = None;
        }
        let silent = match self.asked {
            Some((_, since)) => since.elapsed() >= ANSWER,
            None => match self.qmp.ask("query-status", Value::Null) {
                Ok(id) => {
                    self.asked = Some((id, Instant::now()));
                    false
                }
                Err(QmpError::Closed) => return Look::Silent(format!("(process {}) has closed QMP", self.pid())),
                Err(_) => true,
            },
        };
        let stopped = is_stopped(self.pid());
        match (silent, stopped) {
            (true, _) => Look::Silent(self.why_silent()),
            (false, true) => Look::Stopped(self.why_silent()),
            (false, false) => Look::Waits,
        }
    }

    /// Asks, and waits for the answer. What does not answer is killed: it must not come back beside another one.
    ///
    /// # Errors
    /// [`StandbyError::Silent`]; then it is killed.
    pub fn must_answer(&mut self) -> Result<(), StandbyError> {
        // What a signal stopped is not waited for: nobody has to let it go on.
        if !is_stopped(self.pid()) && self.qmp.execute("query-status", Value::Null, ANSWER).is_ok() {
            return Ok(());
        }
        let why = self.why_silent();
        self.kill()?;
        Err(StandbyError::Silent(why))
    }

    fn why_silent(&self) -> String {
        let pid = self.pid();
        match is_stopped(pid) {
            true => format!("(process {pid}) does not answer: it was stopped by a signal"),
            false => format!("(process {pid}) does not answer within {}: it is frozen, or hangs", spoken(ANSWER)),
        }
    }

    /// Waits until the VM runs; not for one that a signal stopped in the middle.
    pub(super) fn wait_resume(&mut self) -> Result<(), QmpError> {
        let deadline = Instant::now() + RESUME;
        loop {
            match self.qmp.wait_event("RESUME", LOOK) {
                Err(QmpError::Timeout { what, .. }) if Instant::now() >= deadline => {
                    return Err(QmpError::Timeout { what, after: RESUME });
                }
                Err(QmpError::Timeout { .. }) if !is_stopped(self.pid()) => {}
                heard => return heard.map(drop),
            }
        }
    }
}
