//! The operator's command line, made fit for a QEMU that waits over the RAM image: what is in the way is taken out and said,
//! or refused with what to change.

use super::{StandbyError, memory::MainRam};
use crate::argv::{CommandLine, Item, Params};

/// Options that go, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("S", "the VM has to run when it is taken over"),
    ("daemonize", "this program looks after QEMU's process"),
    ("incoming", "the standby waits by itself"),
    ("mem-path", "the RAM image is the VM's memory"),
    ("mem-prealloc", "the RAM image is allocated beforehand"),
];

/// Options that cannot be rewritten, and what to change.
const REFUSED: &[(&str, &str)] = &[
    ("preconfig", "QEMU would wait for commands before it makes the VM: leave it out"),
    ("loadvm", "the VM's state comes from the primary: leave it out"),
];

/// Options whose value is a character device; with `server` QEMU waits there for a client, unless told otherwise.
const CHARACTER_DEVICES: &[&str] = &["chardev", "debugcon", "monitor", "parallel", "qmp", "qmp-pretty", "serial"];

/// What joins the main memory's backend to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attach {
    /// `-machine memory-backend=`, which we add.
    Machine,
    /// `-numa node,memdev=`, which stays.
    Numa,
}

/// The operator's options, without those that are in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) line: CommandLine,
    pub(super) attach: Attach,
    /// Whether the operator had named a backend for the main memory.
    pub(super) named: bool,
    /// What was changed, each in a sentence.
    pub(super) notes: Vec<String>,
}

impl Line {
    /// Rewrites `argv` for a VM with this main memory; `None` where it is not known yet.
    ///
    /// # Errors
    /// [`StandbyError::Argument`] names the option and what to change.
    pub(super) fn prepare(argv: &[String], main: Option<&MainRam>) -> Result<Self, StandbyError> {
        if argv.is_empty() {
            return Err(StandbyError::NoCommand);
        }
        let line = CommandLine::parse(argv);
        if let Some((item, why)) = line.items.iter().find_map(|item| Some((item, reason(REFUSED, item)?))) {
            return Err(StandbyError::Argument { found: item.to_string(), why });
        }
        let memdevs = memdevs(&line)?;
        let named = memdevs.iter().chain(&machine_backends(&line)).cloned().collect();
        let attach = if memdevs.is_empty() { Attach::Machine } else { Attach::Numa };
        let mut rewriting = Rewriting { main, named, notes: Vec::new() };
        let mut items = Vec::with_capacity(line.items.len());
        for item in &line.items {
            items.extend(rewriting.item(item)?);
        }
        let Rewriting { named, notes, .. } = rewriting;
        let line = CommandLine { program: line.program, items };
        Ok(Self { line, attach, named: !named.is_empty(), notes })
    }
}

fn reason(table: &[(&str, &'static str)], item: &Item) -> Option<&'static str> {
    table.iter().find(|(name, _)| *name == item.name()).map(|(_, why)| *why)
}

/// The backends that `-machine` options name.
fn machine_backends(line: &CommandLine) -> Vec<String> {
    line.named("machine").filter_map(|item| item.params()?.get("memory-backend")).collect()
}

/// The backends of NUMA nodes: none, or one.
fn memdevs(line: &CommandLine) -> Result<Vec<String>, StandbyError> {
    let nodes = line.named("numa").filter_map(|item| Some((item, item.params()?.get("memdev")?)));
    let nodes: Vec<_> = nodes.collect();
    match nodes.get(1) {
        None => Ok(nodes.into_iter().map(|(_, id)| id).collect()),
        Some((second, _)) => Err(StandbyError::Argument {
            found: second.to_string(),
            why: "the RAM image is one file, so one NUMA node at most may have a memdev: give the VM, on both hosts, one node",
        }),
    }
}

struct Rewriting<'a> {
    main: Option<&'a MainRam>,
    /// Backends that stood for the main memory.
    named: Vec<String>,
    notes: Vec<String>,
}

impl Rewriting<'_> {
    fn item(&mut self, item: &Item) -> Result<Option<Item>, StandbyError> {
        if let Some(why) = reason(LEFT_OUT, item) {
            self.notes.push(format!("{item} was left out: {why}"));
            return Ok(None);
        }
        let Some(params) = item.params() else { return Ok(Some(item.clone())) };
        match item.name() {
            "machine" => Ok(self.machine(item, params)),
            "numa" => Ok(Some(self.numa(item, params))),
            "object" => self.object(item, params),
            name if CHARACTER_DEVICES.contains(&name) => Ok(Some(self.server(item, params))),
            _ => Ok(Some(item.clone())),
        }
    }

    fn machine(&mut self, item: &Item, mut params: Params) -> Option<Item> {
        let Some(backend) = params.get("memory-backend") else { return Some(item.clone()) };
        self.notes.push(format!("memory-backend={backend} of {} was replaced: {}", item.written, LEFT_OUT[3].1));
        params.remove("memory-backend");
        let rest = item.with_params(&params);
        (rest.value.as_deref() != Some("")).then_some(rest)
    }

    fn numa(&mut self, item: &Item, mut params: Params) -> Item {
        let (Some(found), Some(main)) = (params.get("memdev"), self.main) else { return item.clone() };
        if found == main.id {
            return item.clone();
        }
        self.notes.push(format!("memdev={found} of {} was made {}, as on the primary", item.written, main.id));
        params.set("memdev", &main.id);
        item.with_params(&params)
    }

    /// The main memory's backend goes; no other may be shared: what is shared is not in the state that QEMU loads.
    fn object(&mut self, item: &Item, mut params: Params) -> Result<Option<Item>, StandbyError> {
        let kind = params.kind("qom-type").unwrap_or_default();
        let Some(backend) = kind.strip_prefix("memory-backend-") else { return Ok(Some(item.clone())) };
        let id = params.get("id").unwrap_or_default();
        if self.named.contains(&id) || self.main.is_some_and(|main| main.id == id) {
            self.notes.push(format!("{} {kind} {id:?} was replaced: {}", item.written, LEFT_OUT[3].1));
            return Ok(None);
        }
        let shared = match params.get("share") {
            Some(share) => share == "on" || share == "yes" || share == "true",
            None => backend == "memfd",
        };
        if backend == "shm" {
            let why = "memory beside the main memory must not be shared: make it memory-backend-ram on both hosts";
            return Err(StandbyError::Argument { found: item.to_string(), why });
        }
        if !shared {
            return Ok(Some(item.clone()));
        }
        self.notes.push(format!(
            "{} {kind} {id:?} was made private (share=off): only the main memory is shared",
            item.written
        ));
        params.set("share", "off");
        Ok(Some(item.with_params(&params)))
    }

    fn server(&mut self, item: &Item, mut params: Params) -> Item {
        let off = |key: &str| params.get(key).is_some_and(|value| value == "off");
        let waits = params.has("server") && !off("server") && !off("wait") && !params.has("nowait");
        if !waits {
            return item.clone();
        }
        self.notes.push(format!("{item} was given wait=off: QEMU would not start before a client comes"));
        params.set("wait", "off");
        item.with_params(&params)
    }
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
