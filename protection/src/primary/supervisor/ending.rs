//! What a supervisor says when it ends without a VM to look after.

use super::claim::Verdict;

/// Why the VM is stopped.
pub(super) const GIVEN_AWAY: &str = "the data path died, and the arbiter gave the VM to another node";
/// A second signal came while QEMU was told to leave its checkpoints.
pub(super) const STILL_IN_CHECKPOINT: &str = "ended by a second signal although QEMU has not left its checkpoint: the VM may stand still. \
     `afterimage protect` on this host lets it go on";

/// The VM is not run here: whose it is then. `proven`: it was protected.
pub(super) fn left_to(verdict: &Verdict, proven: bool) -> String {
    const DIED: &str = "QEMU and the data path died";
    match verdict {
        Verdict::VmGone { standby: Some(standby), .. } if proven => {
            format!("{DIED}; the standby {standby} has the VM's last commit, and takes over")
        }
        Verdict::VmGone { standby: Some(standby), .. } => format!(
            "{DIED}; the standby {standby} takes over if it has a commit whose output was held: see `afterimage status` there"
        ),
        Verdict::VmGone { standby: None, .. } if proven => {
            format!("{DIED}; the standby has the VM's last commit, and takes over")
        }
        Verdict::VmGone { standby: None, .. } => format!("{DIED}; the standby, if there is one, asks for the VM"),
        Verdict::Silent { standby } => format!(
            "the data path died, and QEMU does not answer: the VM is left to {standby}, which has its last commit. This QEMU was \
             not touched; it has no network. End it before this host stands by"
        ),
        Verdict::Stranded(why) => format!(
            "{DIED} after the arbiter had given the VM to this host; {why}. Nobody runs it: `afterimage witness assign`, on the \
             witness's host, gives it to a node that has a copy"
        ),
        Verdict::Ours(_) | Verdict::Theirs | Verdict::Told | Verdict::Unknown(_) => GIVEN_AWAY.to_owned(),
    }
}

/// Another node has the VM; `error`: why this copy could not be stopped.
pub(super) fn fenced(error: Option<&str>) -> String {
    let what = "the data path died, and another node owns the VM now";
    match error {
        None => format!("{what}; this copy was stopped"),
        Some(error) => format!("{what}; this copy has no network, and could not be stopped ({error}): end its QEMU"),
    }
}

/// Why the data path ended; `unfenced`: why QEMU could not be stopped then.
pub(super) fn ended(why: &str, unfenced: Option<&str>) -> String {
    match unfenced {
        Some(error) => format!("{why}; but its QEMU could not be stopped ({error}): it has no network; end it"),
        None => why.to_owned(),
    }
}
