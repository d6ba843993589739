//! Why this standby's copy does not protect the VM, and what to do: for the status.

use super::{
    main_loop::Node,
    report::{UNPROVEN, word},
    running,
    settings::Settings,
};
use api::{RUN_DIR, WhyNot};
use mc_core::standby::Role;
use node::standby::StandbyLoop;
use std::{net::SocketAddr, path::Path};
use transport_tcp::reach::at_port;
use vmm_qemu::argv::quoted;

/// Of a VM that was taken over.
pub(super) const ALONE: &str = "the VM runs here alone";

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
        Role::Active => ALONE.to_owned(),
    };
    let what_to_do = match machine.role() {
        Role::Active => Some(protect_again(&node.config, node.run.host.peer())),
        role => what_to_do(role, node.config.vm.as_str()),
    };
    (why, what_to_do)
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
        Role::Syncing | Role::Rehearsing | Role::Protecting | Role::TakingOver | Role::Active => None,
    }
}

/// The VM was taken over: how it gets a standby again. `peer`: who the other side was ("a at 10.0.1.1:40123").
pub(super) fn protect_again(config: &Settings, peer: Option<&str>) -> String {
    let host = peer.and_then(|peer| peer.rsplit_once(" at ")?.1.parse::<SocketAddr>().ok());
    // The other host's port is its own matter; as a rule both have the same one.
    let to = host.map_or("HOST:PORT".to_owned(), |host| at_port(host, config.listen.port()).to_string());
    let qmp = running::qmp_path(config).display().to_string();
    let mut words = vec!["--vm".into(), config.vm.to_string(), "--node".into(), config.node.to_string()];
    words.extend(["--qmp".into(), qmp, "--to".into(), to, "--arbiter".into(), config.arbiter.to_string()]);
    words.extend(config.nics.iter().flat_map(|nic| ["--nic".to_owned(), nic.to_string()]));
    for (flag, dir, usual) in
        [("--run-dir", &config.run_dir, RUN_DIR), ("--state-dir", &config.state_dir, node::journal::STATE_DIR)]
    {
        if dir != Path::new(usual) {
            words.extend([flag.to_owned(), dir.display().to_string()]);
        }
    }
    let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
    format!(
        "start `afterimage standby` on the other host, then here `afterimage protect {}`; --to is where that standby listens",
        words.join(" ")
    )
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
    use node::{arbiter::ArbiterSpec, paths::PathsConfig};
    use std::time::Duration;

    #[test]
    fn a_vm_that_was_taken_over_is_protected_again_by_a_command_that_can_be_copied() {
        let config = Settings {
            vm: "a b".parse().unwrap(),
            node: "host-b".parse().unwrap(),
            listen: "0.0.0.0:7411".parse().unwrap(),
            arbiter: "witness://10.0.2.9:7400".parse::<ArbiterSpec>().unwrap(),
            accept_witness: false,
            nics: vec!["/run/a b.net=tap0".parse().unwrap()],
            ram_dir: "/dev/shm".into(),
            spill: None,
            no_rehearsal: false,
            staging_bytes: 1 << 20,
            beat_interval: Duration::from_millis(10),
            beat_min_rx: None,
            detect_multiplier: 5,
            stall_after: None,
            run_dir: RUN_DIR.into(),
            state_dir: "/srv/state".into(),
            metrics: None,
            qemu: vec![],
            paths: PathsConfig::tcp(1 << 20),
            config_file: None,
        };
        let command = "`afterimage protect --vm 'a b' --node host-b --qmp '/run/afterimage/a b/standby.qmp' --to \
                       10.0.1.1:7411 --arbiter witness://10.0.2.9:7400 --nic '/run/a b.net=tap0' --state-dir /srv/state`";
        let todo = protect_again(&config, Some("host-a at 10.0.1.1:40123"));
        assert!(todo.contains(command) && todo.contains("start `afterimage standby` on the other host"), "{todo}");
        assert!(protect_again(&config, None).contains("--to HOST:PORT"));
    }

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
