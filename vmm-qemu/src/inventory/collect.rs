//! The commands of a look, and what their answers make together.

use super::{
    Class, Inventory, Output,
    chardevs::{self, Users},
    devices::{self, Device},
    disks::{self, Disk},
    known,
    line::CommandLine,
    network::{self, Client},
};
use crate::{
    profile::Make,
    qmp::{Qmp, QmpError},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// For each command.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes of a command line at most; Linux allows an argument 128 KiB.
const MAX_LINE: u64 = 4 << 20;

/// Why there is no inventory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InventoryError {
    /// QEMU.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// An answer that means nothing here.
    #[error("QEMU's answer to {command}: {why}")]
    Answer {
        /// To what.
        command: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// Something with a name and a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) kind: String,
}

type Command = (&'static str, Value);

/// Commands whose answers change when an output comes or goes; each takes QEMU a few tenths of a millisecond.
pub(super) fn quick_commands() -> Vec<Command> {
    let list = |path: &str| ("qom-list", json!({ "path": path }));
    vec![
        ("human-monitor-command", json!({ "command-line": "info network" })),
        ("query-block", Value::Null),
        list("/chardevs"),
        list("/objects"),
        list("/machine/peripheral"),
        list("/machine/peripheral-anon"),
    ]
}

/// What else has to be known to judge them. QEMU may have been built without the displays.
pub(super) fn slow_commands() -> Vec<Command> {
    vec![
        ("human-monitor-command", json!({ "command-line": "info qtree" })),
        ("human-monitor-command", json!({ "command-line": "info ramblock" })),
        ("query-vnc-servers", Value::Null),
        ("query-spice", Value::Null),
        ("query-display-options", Value::Null),
    ]
}

/// The answers to [`quick_commands`], without what changes from moment to moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Quick {
    clients: Vec<Client>,
    disks: Vec<Disk>,
    chardevs: Vec<Named>,
    objects: Vec<Named>,
    /// Devices that somebody asked for.
    added: Vec<Named>,
}

impl Quick {
    pub(super) fn read(answers: &[Value]) -> Result<Self, InventoryError> {
        let [network, block, chardevs, objects, named, unnamed] = answers else {
            return Err(wrong("the inventory's commands")("not one each".into()));
        };
        let text = network.as_str().ok_or_else(|| wrong("info network")("no text".into()))?;
        let added = [children(named, "/machine/peripheral")?, children(unnamed, "/machine/peripheral-anon")?].concat();
        Ok(Self {
            clients: network::parse(text).map_err(wrong("info network"))?,
            disks: disks::parse(block).map_err(wrong("query-block"))?,
            chardevs: children(chardevs, "/chardevs")?,
            objects: children(objects, "/objects")?,
            added,
        })
    }

    /// Devices, netdevs and objects decide which sections a device state has; so do drives, by their devices.
    fn shape(&self) -> Vec<String> {
        let named = |what: &'static str| move |one: &Named| format!("{what} {} {}", one.name, one.kind);
        let clients =
            self.clients.iter().map(|client| format!("net {} {} {:?}", client.name, client.kind, client.peer));
        let devices = self.added.iter().map(named("device"));
        clients.chain(devices).chain(self.objects.iter().map(named("object"))).collect()
    }
}

/// The answers to [`slow_commands`].
#[derive(Clone, Debug)]
pub(super) struct Slow {
    devices: Vec<Device>,
    displays: Vec<Output>,
    pub(super) make: Make,
}

impl Slow {
    pub(super) fn read(answers: &[Value]) -> Result<Self, InventoryError> {
        let [tree, blocks, vnc, spice, display] = answers else {
            return Err(wrong("the inventory's commands")("not one each".into()));
        };
        let tree = tree.as_str().ok_or_else(|| wrong("info qtree")("no text".into()))?;
        let blocks = blocks.as_str().ok_or_else(|| wrong("info ramblock")("no text".into()))?;
        let make = Make::read(tree, blocks).map_err(|error| wrong("info ramblock")(error.to_string()))?;
        let screen = |name: &str, what: &str| Output::new("display", name, Class::operator(what));
        let servers = vnc.as_array().into_iter().flatten().filter_map(|server| server["id"].as_str());
        let mut displays: Vec<Output> = servers.map(|id| screen(&format!("vnc-{id}"), "VNC")).collect();
        if spice["enabled"] == true {
            displays.push(screen("spice", "SPICE"));
        }
        if let Some(kind) = display["type"].as_str().filter(|kind| *kind != "none") {
            displays.push(screen(&format!("display-{kind}"), "a window"));
        }
        Ok(Self { devices: devices::parse(tree), displays, make })
    }
}

fn wrong(command: &'static str) -> impl Fn(String) -> InventoryError {
    move |why| InventoryError::Answer { command, why }
}

/// Reads an answer to `qom-list`: the children, in an order of their own.
fn children(answer: &Value, command: &'static str) -> Result<Vec<Named>, InventoryError> {
    let entries = answer.as_array().ok_or_else(|| wrong(command)("no list".into()))?;
    let child = |entry: &Value| {
        let kind = entry["type"].as_str()?.strip_prefix("child<")?.strip_suffix('>')?;
        Some(Named { name: entry["name"].as_str()?.to_owned(), kind: kind.to_owned() })
    };
    let mut children: Vec<Named> = entries.iter().filter_map(child).collect();
    children.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(children)
}

/// What is known of the QEMU process, besides QMP.
#[derive(Clone, Debug, Default)]
pub(super) struct Host {
    pub(super) line: CommandLine,
    /// Paths, as QEMU has them, of sockets that `--nic` names.
    pub(super) held: BTreeSet<String>,
}

impl Host {
    /// `nics`: the sockets of `--nic`.
    pub(super) fn look(pid: u32, quick: &Quick, nics: &[PathBuf]) -> Self {
        let line = CommandLine::parse(&arguments(pid));
        let ours: Vec<_> = nics.iter().filter_map(|path| identity(path)).collect();
        let is_ours = |path: &String| {
            let seen = seen_by(pid, path);
            identity(&seen).map_or_else(|| nics.contains(&PathBuf::from(path)), |file| ours.contains(&file))
        };
        let held = network::socket_paths(&quick.clients, &line).into_iter().filter(is_ours).collect();
        Self { line, held }
    }
}

fn arguments(pid: u32) -> Vec<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = fs::File::open(format!("/proc/{pid}/cmdline"));
    let _ = file.and_then(|file| file.take(MAX_LINE).read_to_end(&mut bytes));
    bytes.split(|b| *b == 0).map(|argument| String::from_utf8_lossy(argument).into_owned()).collect()
}

/// A path of another process: it may have a root and a working directory of its own.
fn seen_by(pid: u32, path: &str) -> PathBuf {
    let base = if path.starts_with('/') { "root" } else { "cwd" };
    Path::new("/proc").join(pid.to_string()).join(base).join(path.trim_start_matches('/'))
}

/// What tells a file from every other one.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

pub(super) fn judge(quick: &Quick, slow: &Slow, host: &Host) -> Inventory {
    let mut users: Users = host.line.users.clone();
    devices::add_users(&slow.devices, &mut users);
    let added = quick.added.iter().map(|device| device.kind.clone()).collect();
    let mut outputs = network::outputs(&quick.clients, &host.line, &host.held);
    outputs.extend(disks::outputs(&quick.disks));
    outputs.extend(chardevs::outputs(&quick.chardevs, &users));
    outputs.extend(devices::outputs(&slow.devices, &added));
    outputs.extend(quick.objects.iter().filter_map(object));
    outputs.extend(slow.displays.iter().cloned());
    Inventory::new(outputs, quick.shape())
}

fn object(object: &Named) -> Option<Output> {
    let class = match known::object(&object.kind) {
        known::Verdict::Harmless => return None,
        known::Verdict::Operator(why) => Class::operator(why),
        known::Verdict::Unheld { why, remedy } => Class::unheld(format!("{}: {why}", object.kind), remedy),
        known::Verdict::Unknown => {
            let why = format!("afterimage does not know whether objects of type {} let output out", object.kind);
            Class::unheld(why, "remove it")
        }
    };
    Some(Output::new("object", &object.name, class))
}

/// Takes a whole inventory, and waits for it. `nics`: the sockets of `--nic`.
pub fn take(qmp: &mut Qmp, nics: &[PathBuf]) -> Result<Inventory, InventoryError> {
    let mut answers = |commands: Vec<Command>, optional: bool| -> Result<Vec<Value>, InventoryError> {
        let ask = |(name, arguments): Command| match qmp.execute(name, arguments, TIMEOUT) {
            Err(QmpError::Command { .. }) if optional => Ok(Value::Null),
            answer => answer,
        };
        Ok(commands.into_iter().map(ask).collect::<Result<_, _>>()?)
    };
    let quick = Quick::read(&answers(quick_commands(), false)?)?;
    let slow = Slow::read(&answers(slow_commands(), true)?)?;
    let host = Host::look(qmp.peer_pid()?, &quick, nics);
    Ok(judge(&quick, &slow, &host))
}

/// Answers of real QEMUs (`tests/fixtures/README.md`).
#[cfg(test)]
pub(super) mod captured {
    use super::{super::line::CommandLine, Value};

    pub(in super::super) const VERSIONS: [&str; 2] = ["7.2.22", "10.0.13"];

    pub(in super::super) fn read(version: &str) -> Value {
        let text = match version {
            "7.2.22" => include_str!("../../tests/fixtures/inventory-qemu-7.2.22.json"),
            _ => include_str!("../../tests/fixtures/inventory-qemu-10.0.13.json"),
        };
        serde_json::from_str(text).unwrap()
    }

    pub(in super::super) fn line(version: &str) -> CommandLine {
        let words = read(version)["cmdline"]
            .as_array()
            .unwrap()
            .iter()
            .map(|w| w.as_str().unwrap().to_owned())
            .collect::<Vec<_>>();
        CommandLine::parse(&words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: &str = "Block Name PSize Offset Used Total\n pc.ram    4 KiB  0x0 0x1000000 0x1000000\n";

    fn quick(captured: &Value) -> Quick {
        let keys = [
            "info network",
            "query-block",
            "qom-list /chardevs",
            "qom-list /objects",
            "qom-list /machine/peripheral",
            "qom-list /machine/peripheral-anon",
        ];
        Quick::read(&keys.map(|key| captured[key].clone())).unwrap()
    }

    #[test]
    fn the_whole_of_a_real_vm() {
        for version in captured::VERSIONS {
            let captured = captured::read(version);
            let keys = ["info qtree", "query-vnc-servers", "query-spice", "query-display-options"];
            let [tree, screens @ ..] = keys.map(|key| captured[key].clone());
            let slow = Slow::read(&[&[tree, json!(BLOCKS)][..], &screens].concat()).unwrap();
            let host = Host { line: captured::line(version), held: ["/run/vm/n0.sock".to_owned()].into() };
            let inventory = judge(&quick(&captured), &slow, &host);
            let of = |class: &str| {
                let found = inventory.outputs.iter().filter(|output| output.class.word() == class);
                found.map(|output| output.name.as_str()).collect::<Vec<_>>()
            };
            assert_eq!(of("held"), ["n0"], "{version}");
            let mut expected = vec![
                "app",
                "cp",
                "cu",
                "serial1",
                "serial2",
                "ivshmem-plain@0f.0",
                "virtio-9p-pci@0e.0",
                "d0",
                "r2",
                "n1",
                "n2",
                "n3",
                "n4",
            ];
            if version == "7.2.22" {
                expected.insert(5, "ur"); // USB redirection; this 10.0 was built without
            }
            assert_eq!(of("unheld"), expected, "{version}");
            let operators = of("operator");
            for name in [
                "compat_monitor0",
                "ga",
                "gdb",
                "serial0",
                "serial3",
                "mx-base",
                "debugcon",
                "au",
                "vnc-default",
                "fd0",
            ] {
                assert!(operators.contains(&name), "{version}: {name}: {operators:?}");
            }
            assert!(
                inventory.shape.iter().any(|line| line == "net n2 user Client(\"rtl8139.0\")"),
                "{:?}",
                inventory.shape
            );
        }
    }

    /// Else every look would be followed by the long command.
    #[test]
    fn what_changes_from_moment_to_moment_is_no_change() {
        let mut captured = captured::read("7.2.22");
        let before = quick(&captured);
        captured["query-block"][0]["inserted"]["image"]["actual-size"] = json!(5);
        captured["query-block"][0]["io-status"] = json!("nospace");
        captured["qom-list /chardevs"].as_array_mut().unwrap().reverse();
        assert_eq!(before, quick(&captured));
        captured["query-block"][1]["inserted"]["ro"] = json!(false);
        assert_ne!(before, quick(&captured));
    }

    #[test]
    fn an_answer_that_means_nothing_is_an_error() {
        let mut answers = vec![json!(""), json!([]), json!([]), json!([]), json!([]), json!([])];
        assert!(Quick::read(&answers).is_ok());
        for at in 0..answers.len() {
            let right = std::mem::replace(&mut answers[at], json!(7));
            assert!(matches!(Quick::read(&answers), Err(InventoryError::Answer { .. })), "{at}");
            answers[at] = right;
        }
        assert!(Quick::read(&answers[1..]).is_err());
    }
}
