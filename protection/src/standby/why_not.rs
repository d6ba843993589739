//! Why this standby's copy does not protect the VM, and what to do: for the status.

use super::{
    main_loop::Node,
    report::{UNPROVEN, word},
};
use api::WhyNot;
use mc_core::standby::Role;
use node::standby::StandbyLoop;

/// `None` while it does.
pub(super) fn why_not(node: &Node) -> Option<WhyNot> {
    if node.is_protected() {
        return None;
    }
    let (why, what_to_do) = words(node);
    Some(WhyNot { why, since_ms: node.run.role_since_ms(), times: 1, next_try_in_ms: None, what_to_do })
}

fn words(node: &Node) -> (String, Option<String>) {
    let machine = node.run.driver.machine();
    let why = match machine.role() {
        Role::Idle => match &node.unstartable {
            Some(why) => format!("the VM's QEMU did not wait here: {why}"),
            None => "no primary uses this standby now".to_owned(),
        },
        Role::Syncing => "the full copy is on its way".to_owned(),
        Role::Rehearsing => "this host's QEMU tries whether it can load the VM".to_owned(),
        Role::Protecting => protecting(node),
        Role::Revoking | Role::Claiming => {
            let peer = if machine.was_left() { "the primary has left" } else { "the primary fell silent" };
            let health = node.run.host.arbiter.health();
            let error = health.last_error.map_or_else(String::new, |error| format!(" ({error})"));
            format!(
                "{peer}, and the arbiter has not said who owns the VM{error}: the copy here does not run, and has no network"
            )
        }
        Role::Lost => "the other host has the VM; this copy is kept until its room is needed".to_owned(),
        Role::Disputed => {
            "this copy may lack what the VM has sent, or the arbiter says what cannot be believed: it is kept, and does not run"
                .to_owned()
        }
        Role::TakingOver => "this host has won the VM, and starts it".to_owned(),
        Role::Active => "the VM runs here alone".to_owned(),
    };
    (why, what_to_do(machine.role(), node.config.vm.as_str()))
}

fn protecting(node: &Node) -> String {
    let machine = node.run.driver.machine();
    let stalled = node.stalled();
    match stalled {
        Some(why) => why,
        None if machine.is_unproven() => UNPROVEN.to_owned(),
        None if machine.is_entitled() => {
            let cannot = node.run.host.arbiter.health().failover_possible().err();
            let cannot = cannot.map_or_else(String::new, |why| format!(": {why}"));
            format!("the register has not said yet that it names this copy{cannot}")
        }
        None => "no checkpoint whose output was held has been committed yet".to_owned(),
    }
}

/// If anything has to be done.
pub(super) fn what_to_do(role: Role, vm: &str) -> Option<String> {
    let takeover = format!("`afterimage takeover --vm {vm} --yes-the-other-side-is-stopped`");
    match role {
        Role::Idle => Some(
            "run `afterimage protect` on the host where the VM runs, with this standby as --to; if it runs already, \
             `afterimage status` there says why it does not come here"
                .to_owned(),
        ),
        Role::Revoking | Role::Claiming => Some(format!(
            "wait for the arbiter. If it stays away, check the other host; when you are certain that it is stopped: \
             {takeover}"
        )),
        Role::Lost => Some("look at the other host: `afterimage status` there".to_owned()),
        Role::Disputed => Some(format!(
            "look at the other host. If the VM runs nowhere, and cannot: {takeover}, which may lose what the VM has sent last"
        )),
        Role::Active => Some("`afterimage protect --qmp` here protects it again".to_owned()),
        Role::Syncing | Role::Rehearsing | Role::Protecting | Role::TakingOver => None,
    }
}

/// Why there is nothing to take over.
pub(super) fn nothing_to_take(role: Role) -> (String, String) {
    let why = match role {
        Role::Syncing | Role::Rehearsing => "its copy is not complete, and the VM runs on the other host",
        Role::Lost => "the other host has the VM",
        Role::TakingOver | Role::Active => "this host has the VM already",
        _ => "it has no copy of the VM",
    };
    let todo = match role {
        Role::TakingOver | Role::Active => "wait: `afterimage status` here says how far it is",
        _ => {
            "run `afterimage status` on the other host to see whether the VM runs there; if that host is gone, start \
             the VM without Afterimage"
        }
    };
    (format!("nothing to take over: this standby is {}: {why}", word(role)), todo.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_is_told_in_the_status_words_and_what_to_do() {
        let (why, todo) = nothing_to_take(Role::Idle);
        assert_eq!(why, "nothing to take over: this standby is idle: it has no copy of the VM");
        assert!(todo.contains("afterimage status"), "{todo}");
        let todo = what_to_do(Role::Claiming, "web").unwrap();
        assert!(todo.contains("afterimage takeover --vm web") && todo.contains("certain that it is stopped"), "{todo}");
        assert!(what_to_do(Role::Idle, "web").unwrap().contains("--to"));
    }
}
