//! Whether the other side of a VM, which an operator says is stopped, beats all the same.

use crate::cli::OperatorArgs;
use api::{ANSWER_PATIENCE, Request, Response, Side, Status, ask};
use node::exit::ExitError;
use std::{path::Path, time::Duration};

/// Whoever asks does not wait for longer; a longer silence is a matter of seconds, and may be asked for again.
const LONGEST_LOOK: Duration = Duration::from_secs(5);

/// The other side, if it beats: was heard within a detection time, and again within another. Of one that has just died the last beat
/// is as young.
pub(super) fn heard_again(path: &Path) -> Option<Beating> {
    let look = || match ask(path, Request::Status, ANSWER_PATIENCE) {
        Ok(Response::Status(status)) => Beating::of(&status).map(|beating| (beating, status.beats.detection_time_us)),
        _ => None, // told later, by whoever does not answer
    };
    let (first, detection_us) = look()?;
    let silent_at = Duration::from_micros(detection_us).saturating_sub(Duration::from_millis(first.ago_ms));
    std::thread::sleep(silent_at.min(LONGEST_LOOK));
    look().map(|(beating, _)| beating)
}

/// The other side, which is heard.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Beating {
    node: String,
    ago_ms: u64,
    /// The arbiter would decide a swap now, and not the operator.
    decided_by_arbiter: bool,
}

impl Beating {
    /// By what its process says of the beats: nobody whose silence has lasted for a detection time.
    fn of(status: &Status) -> Option<Self> {
        let ago_ms = status.beats.last_heard_ago_ms?;
        let arbiter = &status.arbiter;
        let (node, _) = status.peer.split_once(" at ")?;
        (ago_ms.saturating_mul(1000) < status.beats.detection_time_us).then(|| Self {
            node: node.to_owned(),
            ago_ms,
            decided_by_arbiter: arbiter.witness.is_some()
                && arbiter.reachable
                && arbiter.fault.is_none()
                && arbiter.failover_impossible.is_none(),
        })
    }

    /// The word has to name the one that it contradicts.
    pub(super) fn confirm(&self, args: &OperatorArgs, word: &str, other: Side) -> Result<(), ExitError> {
        let Self { node, ago_ms, decided_by_arbiter } = self;
        let (vm, other) = (args.vm, other.as_str());
        let heard = format!("beats of {node} arrive (the last one {ago_ms} ms ago): the {other} is alive");
        match args.although_it_beats {
            Some(named) if named.as_str() == node => return Ok(()),
            Some(named) => {
                return Err(ExitError::usage(format!("--although-it-beats {named}: {heard}, and {node} is its name")));
            }
            None => {}
        }
        let remedy = if *decided_by_arbiter {
            format!(
                "the witness decides: {node} asks it too, and either side may win and go on, the other one stops. If that is what you \
                 want, `afterimage {word} --vm {vm} --although-it-beats {node}`; it says who won"
            )
        } else {
            format!(
                "power {node} off, or stop its `afterimage` and its QEMU, and check; then the beats stop. Only if \
                 you know that {vm} does not run there and cannot start: `afterimage {word} --vm {vm} \
                 --although-it-beats {node}`. If it ran there, two copies would answer the same clients"
            )
        };
        Err(ExitError::usage(format!("{heard}; nothing was done")).remedy(remedy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::{ArbiterStatus, Beats};

    #[test]
    fn only_who_was_heard_within_the_detection_time_is_alive() {
        let status = |peer: &str, ago_ms| Status {
            peer: peer.into(),
            beats: Beats { detection_time_us: 50_000, last_heard_ago_ms: ago_ms, ..Beats::default() },
            arbiter: ArbiterStatus { reachable: true, witness: Some("w".into()), ..ArbiterStatus::default() },
            ..Status::default()
        };
        let alive = Beating::of(&status("host-a at 10.0.0.1:7", Some(49))).unwrap();
        assert_eq!((alive.node.as_str(), alive.decided_by_arbiter), ("host-a", true));
        assert_eq!(Beating::of(&status("host-a at 10.0.0.1:7", Some(50))), None);
        assert_eq!(Beating::of(&status("host-a at 10.0.0.1:7", None)), None);
        assert_eq!(Beating::of(&status("", Some(1))), None, "no session");
        let mut unable = status("host-a at 10.0.0.1:7", Some(1));
        unable.arbiter.failover_impossible = Some("its disk is full".into());
        assert!(!Beating::of(&unable).unwrap().decided_by_arbiter);
    }
}
