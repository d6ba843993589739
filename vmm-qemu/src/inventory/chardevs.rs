//! Chardevs: where characters go that the VM's serial ports, consoles and the like print, and what monitors say.

use super::{Class, Output, collect::Named, known, line::User};
use std::collections::BTreeMap;

/// Who uses which chardev.
pub(super) type Users = BTreeMap<String, Vec<User>>;

/// `chardevs`: name, and type such as "chardev-socket".
pub(super) fn outputs(chardevs: &[Named], users: &Users) -> Vec<Output> {
    let output = |chardev: &Named| {
        let class = class(chardev.kind.trim_start_matches("chardev-"), &users_of(&chardev.name, users))?;
        Some(Output::new("chardev", &chardev.name, class))
    };
    chardevs.iter().filter_map(output).collect()
}

/// QEMU itself names those of `-serial`, `-monitor` and so on; what several share has one of its own behind it, "ID-base".
fn users_of(name: &str, users: &Users) -> Vec<User> {
    if let Some(found) = users.get(name) {
        return found.clone();
    }
    if let Some(shared) = name.strip_suffix("-base") {
        return users_of(shared, users);
    }
    let user = match name.trim_end_matches(|c: char| c.is_ascii_digit()) {
        "compat_monitor" => User::Monitor,
        "gdb" => User::Debugger,
        "serial" | "parallel" | "debugcon" => User::Console,
        _ => return Vec::new(),
    };
    vec![user]
}

/// `None`: it is a part of what uses it, and judged there.
fn class(backend: &str, users: &[User]) -> Option<Class> {
    let all = |are: fn(&User) -> bool| !users.is_empty() && users.iter().all(are);
    if all(is_judged_elsewhere) {
        return None;
    }
    Some(match backend {
        "null" | "testdev" => Class::harmless("it goes nowhere"),
        "ringbuf" | "memory" => Class::harmless("it stays in QEMU's memory"),
        "mux" | "hub" => Class::harmless("it shares other chardevs, which are listed"),
        "gdb" => Class::harmless("a part of QEMU's debugger"),
        "msmouse" | "wctablet" => Class::harmless("an input device"),
        _ if all(|user| matches!(user, User::Monitor)) => Class::operator("a monitor"),
        _ if all(|user| matches!(user, User::Debugger)) => Class::operator("the debugger"),
        _ if all(is_guest_agent) => Class::operator("the guest agent"),
        _ if all(|user| matches!(user, User::Object(kind) if kind == "rng-egd")) => {
            Class::harmless("it only asks for random bytes")
        }
        "pty" | "stdio" | "console" | "vc" => Class::operator("a console"),
        "spicevmc" | "spiceport" => Class::operator("a channel of SPICE"),
        "dbus" => Class::operator("a channel of the display"),
        "qemu-vdagent" => Class::operator("the display's clipboard"),
        "braille" => Class::operator("a Braille display"),
        "file" if all(is_console) => Class::operator("a console's log file"),
        backend => leaves(backend, users),
    })
}

fn leaves(backend: &str, users: &[User]) -> Class {
    let what = match users.first() {
        None => "something unknown".to_owned(),
        Some(User::Console) => "a serial port".to_owned(),
        Some(User::Monitor) => "a monitor".to_owned(),
        Some(User::Debugger) => "the debugger".to_owned(),
        Some(User::Tpm(id) | User::Netdev(id)) => id.clone(),
        Some(User::Device { kind, port }) if port.is_empty() => kind.clone(),
        Some(User::Device { kind, port }) => format!("{kind} {port:?}"),
        Some(User::Object(kind)) => kind.clone(),
    };
    let why = format!("output of {what} leaves at once through a chardev of type {backend}");
    Class::unheld(why, "use a pty, or remove it")
}

/// Whose own entry in the inventory says what is to be said.
fn is_judged_elsewhere(user: &User) -> bool {
    match user {
        User::Tpm(_) | User::Netdev(_) => true,
        User::Device { kind, .. } => matches!(known::device(kind), known::Verdict::Unheld { .. }),
        _ => false,
    }
}

/// The names that QEMU's own agents give their ports.
fn is_guest_agent(user: &User) -> bool {
    matches!(user, User::Device { kind, port } if kind == "virtserialport" && port.starts_with("org.qemu.guest_agent."))
}

fn is_console(user: &User) -> bool {
    match user {
        User::Console => true,
        User::Device { kind, .. } => {
            let consoles = ["isa-serial", "pci-serial", "usb-serial", "virtconsole", "isa-debugcon", "isa-parallel"];
            consoles.iter().any(|console| kind.starts_with(console))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(name: &str, kind: &str, users: &[User]) -> &'static str {
        let users = if users.is_empty() { Users::new() } else { Users::from([(name.into(), users.to_vec())]) };
        let chardev = Named { name: name.into(), kind: format!("chardev-{kind}") };
        outputs(&[chardev], &users).first().map_or("none", |output| output.class.word())
    }

    #[test]
    fn what_reaches_other_programs_is_unheld_and_what_people_look_at_is_not() {
        let device = |kind: &str, port: &str| User::Device { kind: kind.into(), port: port.into() };
        let agent = device("virtserialport", "org.qemu.guest_agent.0");
        let cases: [(&str, &str, &[User], &str); 22] = [
            ("serial0", "socket", &[], "unheld"),
            ("serial0", "udp", &[], "unheld"),
            ("serial0", "pipe", &[], "unheld"),
            ("serial0", "serial", &[], "unheld"), // a serial line of the host
            ("serial0", "pty", &[], "operator"),
            ("serial0", "stdio", &[], "operator"),
            ("serial0", "file", &[], "operator"),
            ("serial0", "null", &[], "harmless"),
            ("serial0", "mux", &[], "harmless"),
            ("serial0-base", "stdio", &[], "operator"),
            ("serial0-base", "socket", &[], "unheld"),
            ("compat_monitor1", "socket", &[], "operator"),
            ("gdb", "socket", &[], "operator"),
            ("c", "socket", &[], "unheld"),
            ("c", "file", &[], "unheld"),
            ("c", "file", &[device("virtserialport", "org.app")], "unheld"),
            ("c", "spicevmc", &[device("usb-redir", "")], "operator"),
            ("c", "socket", &[device("usb-redir", "")], "unheld"),
            ("c", "socket", std::slice::from_ref(&agent), "operator"),
            ("c", "socket", &[User::Object("rng-egd".into())], "harmless"),
            ("c", "a-later-one", &[User::Console], "unheld"),
            ("c", "socket", &[device("vhost-user-blk-pci", "")], "none"), // the device is listed
        ];
        for (name, kind, users, expected) in cases {
            assert_eq!(word(name, kind, users), expected, "{name} {kind} {users:?}");
        }
        // A monitor that shares a socket with a serial port does not make the port's output an operator's.
        assert_eq!(word("c", "socket", &[User::Monitor, User::Console]), "unheld");
        assert_eq!(word("c", "socket", &[User::Monitor]), "operator");
        assert_eq!(word("c", "socket", &[agent, User::Console]), "unheld");
    }
}
